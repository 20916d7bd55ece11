//! What would break a guarantee, and what costs throughput: looked for at start, named all at once. Changes
//! nothing.

use std::collections::BTreeMap;

use outbox_core::{Finding, StoreError, StoreErrorKind};
use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::{
    SqliteConfig,
    database::{Database, open},
    error::{classify, store_error},
    schema::{INDEX_OF_VERSION_1, MIGRATE, exists, recorded_version, schema, statements},
};

/// The oldest SQLite library this crate can run on: `RETURNING` came with 3.35.
const SQLITE_VERSION_MIN: i32 = 3_035_000;

pub(super) async fn check(database: &Database) -> Result<Vec<Finding>, StoreError> {
    let config = database.config.clone();
    // On its own connection: the worker's may be to a file that has been replaced since.
    database.reader.detached(move || look(&config)).await
}

/// Looks at the file and everything in it that could break a guarantee.
fn look(config: &SqliteConfig) -> Result<Vec<Finding>, StoreError> {
    let path = config.path().display();
    if !config.path().exists() {
        let problem = format!("there is no file {path}");
        return Ok(vec![Finding::error(
            "missing-file",
            problem,
            "correct the path, or create it by `outbox migrate` or `SqliteStore::migrate`",
        )]);
    }
    match open(config, OpenFlags::empty()).and_then(|connection| inspect(config, &connection)) {
        Ok(findings) => Ok(findings),
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::NotADatabase) => Ok(vec![Finding::error(
            "not-a-database",
            format!("{path} is not a SQLite database, or an encrypted one"),
            "correct the path",
        )]),
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseCorrupt) => {
            Ok(vec![Finding::error(
                "corrupt",
                format!("{path} is damaged: {error}"),
                "restore it from a backup, or recover it with the sqlite3 shell's .recover",
            )])
        }
        Err(error) if matches!(classify(&error), StoreErrorKind::Unavailable | StoreErrorKind::Denied) => {
            Ok(vec![Finding::error(
                "unreadable",
                format!("{path} cannot be opened: {error}"),
                "let the relay read and write the file and its directory, where SQLite keeps the write-ahead log",
            )])
        }
        Err(error) => Err(store_error("inspect the database", error)),
    }
}

fn inspect(config: &SqliteConfig, connection: &Connection) -> rusqlite::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let path = config.path().display();
    if rusqlite::version_number() < SQLITE_VERSION_MIN {
        findings.push(Finding::error(
            "sqlite-too-old",
            format!("the SQLite library is {}, and 3.35.0 is needed", rusqlite::version()),
            "build with the bundled library, which is the default of this crate",
        ));
    }
    if connection.is_readonly("main")? {
        findings.push(Finding::error(
            "read-only",
            format!("{path} can be read but not written"),
            "let the relay write the file and its directory",
        ));
    }
    let mode: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
    if !mode.eq_ignore_ascii_case("wal") {
        findings.push(Finding::warning(
            "journal-mode",
            format!("the journal mode of {path} is {mode}: the relay and the service block each other"),
            "run `outbox migrate`, or PRAGMA journal_mode = WAL",
        ));
    }
    inspect_schema(config, connection, &mut findings)?;
    Ok(findings)
}

fn inspect_schema(
    config: &SqliteConfig,
    connection: &Connection,
    findings: &mut Vec<Finding>,
) -> rusqlite::Result<()> {
    let fresh = Connection::open_in_memory()?;
    fresh.execute_batch(&statements(config))?;
    let (wanted, found) = (objects(&fresh)?, objects(connection)?);
    for ((kind, name), object) in &wanted {
        let Some(other) = found.get(&(kind.clone(), name.clone())) else {
            let table = found.get(&("table".to_owned(), object.table.clone()));
            findings.extend(missing(kind, name, table));
            continue;
        };
        if kind == "table" {
            table(name, &object.sql, &other.sql, findings);
            continue;
        }
        let (wanted, found) = (normalized(&object.sql), normalized(&other.sql));
        if wanted != found {
            let code = if kind == "index" { "different-index" } else { "different-trigger" };
            let problem = format!("{kind} {name} is `{found}`, and not `{wanted}`");
            findings.push(Finding::error(code, problem, format!("drop that {kind}, then {MIGRATE}")));
        }
    }
    let old = format!("{}{INDEX_OF_VERSION_1}", config.prefix());
    if exists(connection, "index", &old)? {
        findings.push(Finding::error(
            "old-index",
            format!(
                "there is an index {old}, by which relays of version 1 read: they fail an event without a payload"
            ),
            MIGRATE,
        ));
    }
    if exists(connection, "table", &config.sql("{p}_schema"))? {
        findings.extend(schema(config).check(recorded_version(config, connection)?));
    }
    Ok(())
}

/// A missing object; nothing for what belongs to a table that is missing too.
fn missing(kind: &str, name: &str, table: Option<&Object>) -> Option<Finding> {
    let (code, problem) = match kind {
        "table" => ("missing-table", format!("there is no table {name}")),
        "index" => ("missing-index", format!("there is no index {name}, which the reader names")),
        _ => {
            let problem = format!("there is no trigger {name}, which refuses what no relay could record");
            ("missing-trigger", problem)
        }
    };
    (kind == "table" || table.is_some()).then(|| Finding::error(code, problem, MIGRATE))
}

/// Compares the definitions of a table's columns and its constraints. Columns of the user's own are left
/// alone.
fn table(name: &str, wanted: &str, found: &str, findings: &mut Vec<Finding>) {
    let (wanted, found) = (definitions(wanted), definitions(found));
    let of = |column: &str| found.iter().find(|definition| first_word(definition) == column);
    let remedy =
        "rename that table, run `outbox migrate`, or `SqliteStore::migrate` in a program, and copy the rows";
    let mut missing = Vec::new();
    for definition in wanted.iter().filter(|definition| !is_constraint(definition)) {
        let column = first_word(definition);
        let (code, problem) = match of(column) {
            None => {
                missing.push(column);
                continue;
            }
            Some(other) if other == definition => continue,
            Some(other) if definition.contains("autoincrement") && !other.contains("autoincrement") => (
                "no-autoincrement",
                format!(
                    "table {name} has no AUTOINCREMENT: SQLite gives the numbers of deleted rows again, out of order"
                ),
            ),
            Some(other) => (
                "different-column",
                format!("column {column} of table {name} is `{other}`, and not `{definition}`"),
            ),
        };
        findings.push(Finding::error(code, problem, remedy));
    }
    if !missing.is_empty() {
        let problem = format!("table {name} has no column {}", missing.join(", "));
        findings.push(Finding::error("missing-column", problem, remedy));
    }
    let constraints = |list: &[String], others: &[String]| -> Vec<String> {
        let only = list.iter().filter(|item| is_constraint(item) && !others.contains(item));
        only.cloned().collect()
    };
    for (verb, constraints) in
        [("lacks", constraints(&wanted, &found)), ("has", constraints(&found, &wanted))]
    {
        for constraint in constraints {
            let problem =
                format!("table {name} {verb} the constraint `{constraint}`, unlike the migration's");
            findings.push(Finding::error("different-constraint", problem, remedy));
        }
    }
}

/// A table, index or trigger as SQLite describes it.
struct Object {
    table: String,
    sql: String,
}

/// What a statement made, by kind and name, both in lower case: names ignore it.
fn objects(connection: &Connection) -> rusqlite::Result<BTreeMap<(String, String), Object>> {
    let sql = "SELECT type, lower(name), lower(tbl_name), sql FROM sqlite_master WHERE sql IS NOT NULL \
               AND name NOT LIKE 'sqlite_%'";
    let mut statement = connection.prepare(sql)?;
    let objects = statement.query_map([], |row| {
        Ok(((row.get(0)?, row.get(1)?), Object { table: row.get(2)?, sql: row.get(3)? }))
    })?;
    objects.collect()
}

fn first_word(definition: &str) -> &str {
    definition.split_whitespace().next().unwrap_or_default()
}

fn is_constraint(definition: &str) -> bool {
    let word = first_word(definition);
    let word = word.split('(').next().unwrap_or_default();
    ["constraint", "primary", "unique", "check", "foreign"].contains(&word)
}

/// The columns and constraints between the outer parentheses of a table's statement.
fn definitions(sql: &str) -> Vec<String> {
    let text = normalized(sql);
    let body = text.split_once('(').map_or("", |(_, body)| body);
    let (mut depth, mut quoted) = (0_u32, false);
    let mut definitions = vec![String::new()];
    for character in body.chars() {
        match character {
            '\'' => quoted = !quoted,
            ',' if !quoted && depth == 0 => {
                definitions.push(String::new());
                continue;
            }
            '(' if !quoted => depth += 1,
            ')' if !quoted && depth == 0 => break,
            ')' if !quoted => depth -= 1,
            _ => {}
        }
        if let Some(definition) = definitions.last_mut() {
            definition.push(character);
        }
    }
    definitions.iter().map(|definition| definition.trim().to_owned()).collect()
}

/// A statement without its comments and layout, in lower case but for its texts. Identifiers lose their
/// quotes, which other tools put around all of them.
fn normalized(sql: &str) -> String {
    let mut text = String::with_capacity(sql.len());
    let mut quoted = false;
    let mut characters = sql.chars().peekable();
    while let Some(character) = characters.next() {
        let next = characters.peek().copied();
        match character {
            '\'' => {
                quoted = !quoted;
                text.push(character);
            }
            _ if quoted => text.push(character),
            '-' if next == Some('-') => {
                characters.by_ref().find(|character| *character == '\n');
                text.push(' ');
            }
            '/' if next == Some('*') => {
                let mut last = ' ';
                characters
                    .by_ref()
                    .find(|character| std::mem::replace(&mut last, *character) == '*' && *character == '/');
                text.push(' ');
            }
            '"' | '`' | '[' | ']' => {}
            _ => text.extend(character.to_lowercase()),
        }
    }
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    words.replace("( ", "(").replace(" )", ")").replace(" (", "(").replace(" ,", ",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migrate;

    #[test]
    fn a_table_is_compared_by_what_it_says_and_not_by_its_layout() {
        let wanted = definitions(
            "CREATE TABLE o (\n a INTEGER DEFAULT (f(1, ',)')), -- a, b\n b TEXT, PRIMARY KEY (a, b)\n)",
        );
        assert_eq!(wanted, ["a integer default(f(1, ',)'))", "b text", "primary key(a, b)"]);
        let same = "create table \"O\" ([a] integer default ( f(1, ',)') ) /* c, */, `b` text, primary key ( a, b ) )";
        assert_eq!(definitions(same), wanted);
        assert_ne!(
            definitions("CREATE TABLE o (a INTEGER DEFAULT (f(1, ',) ')), b TEXT, PRIMARY KEY (a, b))"),
            wanted
        );
    }

    #[test]
    fn a_file_that_cannot_be_written_is_found() {
        let path = std::env::temp_dir().join(format!("outbox-read-only-{}.db", uuid::Uuid::now_v7()));
        let config = SqliteConfig::builder(&path).build().unwrap();
        migrate(&config).unwrap();
        // Opened read-only, since the permissions of a file do not stop a test that runs as root.
        let connection = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        let codes: Vec<_> =
            inspect(&config, &connection).unwrap().iter().map(|finding| finding.code).collect();
        assert_eq!(codes, ["read-only"]);
        drop(connection);
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{suffix}", path.display()));
        }
    }
}
