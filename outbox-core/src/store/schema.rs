//! The version of a store's tables: [`Schema`].

use crate::{Finding, StoreError, StoreErrorKind};

/// What this program knows of one set of tables or collections, to be compared with the version that they
/// say.
///
/// Each release of a store lists what every version brought, the first one first, so that its number is the
/// length of the list. Tables of an older version lack migrations; those of a newer one were made by a later
/// release, and are left alone.
///
/// ```
/// use outbox_core::store::Schema;
///
/// const MIGRATIONS: &[&str] = &["the tables of the outbox", "an index for the operator"];
/// let schema = Schema::new("the outbox shop", MIGRATIONS, "run `outbox migrate`");
/// assert_eq!(schema.check(Some(2)), None);
/// let finding = schema.check(Some(1)).expect("an older version is found");
/// assert_eq!(
///     finding.to_string(),
///     "error [schema-older]: the outbox shop has version 1, older than 2: migration 2 (an index for the operator) \
///      is missing; run `outbox migrate`"
/// );
/// assert!(schema.refuse_newer(Some(3)).is_err());
/// ```
#[derive(Debug, Clone)]
pub struct Schema {
    object: String,
    migrations: &'static [&'static str],
    migrate: &'static str,
}

impl Schema {
    /// The tables called `object` in texts, what each of their versions brought, and how to migrate them:
    /// what a user of the command line types, and what a program calls.
    pub fn new(
        object: impl Into<String>,
        migrations: &'static [&'static str],
        migrate: &'static str,
    ) -> Self {
        Self { object: object.into(), migrations, migrate }
    }

    /// The version that this program reads and writes.
    pub fn version(&self) -> i64 {
        i64::try_from(self.migrations.len()).unwrap_or(i64::MAX)
    }

    /// What is wrong with tables that say the version `found`: `schema-older` or `schema-newer`. Tables that
    /// say no version are older than any.
    pub fn check(&self, found: Option<i64>) -> Option<Finding> {
        let (object, version) = (&self.object, self.version());
        match found {
            Some(found) if found > version => Some(Finding::error(
                "schema-newer",
                self.newer_than_known(found),
                "upgrade this program, or connect it to other tables",
            )),
            Some(found) if found == version => None,
            found => {
                let said = match found {
                    Some(found) => format!("{object} has version {found}, older than {version}"),
                    None => format!("{object} does not say its version, and {version} is needed"),
                };
                let problem = format!("{said}: {}", self.missing_since(found.unwrap_or_default()));
                Some(Finding::error("schema-older", problem, self.migrate))
            }
        }
    }

    /// Keeps a migration from touching tables that a later release has made.
    ///
    /// # Errors
    /// [`newer`](Self::newer), if `found` is newer than what this program knows.
    pub fn refuse_newer(&self, found: Option<i64>) -> Result<(), StoreError> {
        match found {
            Some(found) if found > self.version() => Err(self.newer(found)),
            _ => Ok(()),
        }
    }

    /// The error of tables that are newer than what this program knows, of kind [`StoreErrorKind::Schema`].
    pub fn newer(&self, found: i64) -> StoreError {
        let what = format!("{}: upgrade this program", self.newer_than_known(found));
        StoreError::new(StoreErrorKind::Schema, what)
    }

    fn newer_than_known(&self, found: i64) -> String {
        let (object, version) = (&self.object, self.version());
        format!("{object} has version {found}, newer than {version}, the last that this program knows")
    }

    fn missing_since(&self, found: i64) -> String {
        let numbered = (1_i64..).zip(self.migrations).filter(|(number, _)| *number > found);
        let names: Vec<String> = numbered.map(|(number, brought)| format!("{number} ({brought})")).collect();
        let (noun, verb) = if names.len() == 1 { ("migration", "is") } else { ("migrations", "are") };
        format!("{noun} {} {verb} missing", names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema() -> Schema {
        Schema::new("the outbox shop", &["the tables", "an index", "a column"], "migrate it")
    }

    #[test]
    fn tables_of_this_version_are_in_order() {
        assert_eq!(schema().version(), 3);
        assert_eq!(schema().check(Some(3)), None);
        assert!(schema().refuse_newer(Some(3)).is_ok());
    }

    #[test]
    fn older_tables_are_told_what_they_lack() {
        let said = |found| schema().check(found).unwrap().to_string();
        assert_eq!(
            said(Some(1)),
            "error [schema-older]: the outbox shop has version 1, older than 3: migrations 2 (an index), 3 (a column) are \
             missing; migrate it"
        );
        assert_eq!(
            said(None),
            "error [schema-older]: the outbox shop does not say its version, and 3 is needed: migrations 1 (the tables), \
             2 (an index), 3 (a column) are missing; migrate it"
        );
        assert!(said(Some(-1)).contains("migrations 1 (the tables), 2"));
        assert!(schema().refuse_newer(Some(2)).is_ok() && schema().refuse_newer(None).is_ok());
    }

    #[test]
    fn newer_tables_are_found_and_refused() {
        let finding = schema().check(Some(4)).unwrap();
        assert_eq!(finding.code, "schema-newer");
        let error = schema().refuse_newer(Some(4)).unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Schema);
        let said = "the outbox shop has version 4, newer than 3, the last that this program knows";
        assert_eq!(finding.problem, said);
        assert_eq!(error.to_string(), format!("{said}: upgrade this program"));
    }
}
