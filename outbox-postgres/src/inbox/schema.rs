//! The inbox's tables, which need no outbox beside them: printed, applied, and looked at.

use outbox_core::{Finding, StoreError, store::Schema};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};

use crate::{
    PostgresConfig,
    config::Tables,
    error::{store_error, within},
};

/// What each version of the tables brought, the first one first.
const MIGRATIONS: &[&str] = &["the tables of the inbox"];

/// The version of the tables that this program reads and writes.
const SCHEMA_VERSION: i64 = MIGRATIONS.len() as i64;

/// The columns that are used, by table, and the privileges that a consumer needs there.
const TABLES: [(&str, &str, &str); 3] = [
    ("{inbox}", "consumer source id time received_at", "SELECT INSERT UPDATE DELETE"),
    ("{inbox_horizons}", "consumer source horizon changed_at", "SELECT INSERT UPDATE"),
    ("{inbox_meta}", "key value", "SELECT"),
];

const MIGRATE: &str = "run `PostgresInbox::migrate`, or the statements of `inbox_migration_sql`";

/// The statements that create the inbox's tables, for one's own migration tool. They may be run again at any
/// time and change nothing then. They need none of the outbox's tables.
///
/// ```
/// let config = outbox_postgres::PostgresConfig::builder().schema("billing").build()?;
/// let sql = outbox_postgres::inbox_migration_sql(&config);
/// assert!(sql.contains(r#"CREATE TABLE IF NOT EXISTS "billing"."outbox_inbox""#));
/// # Ok::<(), outbox_core::StoreError>(())
/// ```
pub fn inbox_migration_sql(config: &PostgresConfig) -> String {
    let tables = tables_sql(&config.tables);
    match config.tables.schema() {
        Some(schema) => format!("CREATE SCHEMA IF NOT EXISTS \"{schema}\";\n\n{tables}"),
        None => tables,
    }
}

fn tables_sql(tables: &Tables) -> String {
    tables.text(include_str!("schema.sql")).replace("{version}", &SCHEMA_VERSION.to_string())
}

/// Applies the migration in one transaction. An advisory lock lets two processes do it at once: the second
/// finds it done. Refuses tables of a newer version.
pub(super) async fn migrate(connection: &mut PgConnection, tables: &Tables) -> Result<(), StoreError> {
    let what = format!("migrate {}", tables.text("{inbox}"));
    let migration = async {
        let mut transaction = connection.begin().await?;
        let newer = migrate_locked(&mut transaction, tables).await?;
        if newer.is_none() {
            transaction.commit().await?;
        }
        Ok(newer)
    };
    match migration.await {
        Ok(None) => Ok(()),
        Ok(Some(version)) => Err(schema(tables).newer(version)),
        Err(error) => Err(store_error(&what, error)),
    }
}

/// The version, if it is newer than what this program knows; else the tables are there.
async fn migrate_locked(connection: &mut PgConnection, tables: &Tables) -> Result<Option<i64>, sqlx::Error> {
    let place = tables.schema().map_or_else(|| "current_schema()".to_owned(), |schema| format!("'{schema}'"));
    let lock = format!(
        "SELECT pg_advisory_xact_lock(hashtextextended('outbox-inbox-migration:' || coalesce({place}, '') || ':{}', 0))",
        tables.prefix()
    );
    sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut *connection).await?;
    if let Some(version) = version(&mut *connection, tables).await?
        && version >= SCHEMA_VERSION
    {
        return Ok((version > SCHEMA_VERSION).then_some(version));
    }
    // Creating a schema asks for a privilege even when it is there, which a migrating role need not have.
    let exists = format!("SELECT EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = {place})");
    let exists: bool = sqlx::query_scalar(AssertSqlSafe(exists)).fetch_one(&mut *connection).await?;
    if let Some(schema) = tables.schema().filter(|_| !exists) {
        let create = format!("CREATE SCHEMA IF NOT EXISTS \"{schema}\"");
        sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut *connection).await?;
    }
    sqlx::raw_sql(AssertSqlSafe(tables_sql(tables))).execute(&mut *connection).await?;
    Ok(None)
}

fn schema(tables: &Tables) -> Schema {
    Schema::new(format!("the inbox {}", tables.text("{inbox}")), MIGRATIONS, MIGRATE)
}

async fn version(connection: &mut PgConnection, tables: &Tables) -> Result<Option<i64>, sqlx::Error> {
    let exists: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
        .bind(tables.text("{inbox_meta}"))
        .persistent(false)
        .fetch_one(&mut *connection)
        .await?;
    if !exists {
        return Ok(None);
    }
    sqlx::query_scalar(tables.sql("SELECT value FROM {inbox_meta} WHERE key = 'schema_version'"))
        .persistent(false)
        .fetch_optional(connection)
        .await
}

/// Looks for whatever would break a guarantee, and names all of it at once. Changes nothing.
pub(super) async fn check(
    connection: &mut PgConnection,
    tables: &Tables,
    consumer: &str,
) -> Result<Vec<Finding>, StoreError> {
    let look = async {
        let mut findings = Vec::new();
        server(connection, &mut findings).await?;
        if inspect_tables(connection, tables, &mut findings).await? {
            rows(connection, tables, consumer, &mut findings).await?;
        }
        Ok(findings)
    };
    within("check the inbox", look).await
}

async fn server(connection: &mut PgConnection, findings: &mut Vec<Finding>) -> Result<(), sqlx::Error> {
    let sql = "SELECT pg_is_in_recovery() AS replica, current_setting('synchronous_commit') AS durable";
    let row = sqlx::query(sql).persistent(false).fetch_one(connection).await?;
    if row.try_get("replica")? {
        findings.push(Finding::error(
            "read-replica",
            "the server is a replica, which only reads",
            "connect to the primary, by `target_session_attrs=read-write` or its own name",
        ));
    }
    if row.try_get::<String, _>("durable")? == "off" {
        findings.push(Finding::warning(
            "synchronous-commit",
            "synchronous_commit is off: a crash of the server can undo an effect after its message was acknowledged",
            "set it to on for the consumer's role",
        ));
    }
    Ok(())
}

/// Version, tables, columns and privileges; true if the rows can be looked at.
async fn inspect_tables(
    connection: &mut PgConnection,
    tables: &Tables,
    findings: &mut Vec<Finding>,
) -> Result<bool, sqlx::Error> {
    let mut complete = true;
    for (token, columns, privileges) in TABLES {
        let table = tables.text(token);
        // Of a table that is not there, to_regclass is null, and so is every answer.
        let sql = "SELECT t.oid IS NULL AS missing, \
                     ARRAY(SELECT c FROM unnest(string_to_array($2, ' ')) c WHERE NOT EXISTS (SELECT 1 \
                       FROM pg_attribute a WHERE a.attrelid = t.oid AND a.attname = c AND NOT a.attisdropped)) AS columns, \
                     ARRAY(SELECT p FROM unnest(string_to_array($3, ' ')) p \
                       WHERE NOT has_table_privilege(t.oid, p)) AS privileges \
                   FROM (SELECT to_regclass($1)::oid AS oid) t";
        let row = sqlx::query(sql).bind(&table).bind(columns).bind(privileges).persistent(false);
        let row = row.fetch_one(&mut *connection).await?;
        let (absent, refused): (Vec<String>, Vec<String>) =
            (row.try_get("columns")?, row.try_get("privileges")?);
        if row.try_get("missing")? {
            let problem = format!("there is no {table} in the database, or not in the search_path");
            findings.push(Finding::error("missing-table", problem, MIGRATE));
        } else if !absent.is_empty() {
            let problem = format!("{table} has no column {}", absent.join(", "));
            findings.push(Finding::error("missing-column", problem, MIGRATE));
        } else if !refused.is_empty() {
            let refused = refused.join(", ");
            findings.push(Finding::error(
                "privilege",
                format!("the role of the consumer may not {refused} on {table}"),
                format!("GRANT {refused} ON {table} TO its role"),
            ));
        } else {
            continue;
        }
        complete = false;
    }
    if complete {
        findings.extend(schema(tables).check(version(connection, tables).await?));
    }
    Ok(complete)
}

async fn rows(
    connection: &mut PgConnection,
    tables: &Tables,
    consumer: &str,
    findings: &mut Vec<Finding>,
) -> Result<(), sqlx::Error> {
    let sql = "SELECT EXISTS (SELECT 1 FROM {inbox} WHERE consumer = $1 AND time IS NULL)";
    let timeless: bool =
        sqlx::query_scalar(tables.sql(sql)).bind(consumer).persistent(false).fetch_one(connection).await?;
    if timeless {
        findings.push(Finding::warning(
            "events-without-time",
            format!(
                "{} has receipts of {consumer:?} for events without a time, which cannot be purged",
                tables.text("{inbox}")
            ),
            "let their producer set the CloudEvents attribute time, or give them UUIDv7 ids",
        ));
    }
    Ok(())
}
