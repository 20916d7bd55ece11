//! The tables: printed for one's own migration tool, or applied.

use outbox_core::{StoreError, store::Schema};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use crate::{PostgresConfig, config::Tables, error::store_error};

/// What each version of the tables brought, the first one first. A version that was released is never
/// changed: a change is a further entry. `schema.sql` has the newest tables, and a file of each later version
/// what makes them of those before it, such that it does nothing where it was done.
const MIGRATIONS: &[&str] = &[
    "the tables of the outbox",
    "payloads as text or bytes, names of at most 255 bytes, an archive that takes the same twice",
];

/// The version of the tables that this program reads and writes.
pub(crate) const SCHEMA_VERSION: i64 = MIGRATIONS.len() as i64;

/// The columns that the archive shares with the outbox, less those that a settle changes.
pub(crate) const ARCHIVED: &str = "sequence, id, aggregate_type, aggregate_id, event_type, version, payload, \
     payload_binary, content_type, headers, topic, created_at, available_at, last_error";

/// What becomes of an event that the archive has: it keeps what it has, and the settle or the purge succeeds.
/// To overwrite it would ask for another privilege.
pub(crate) const ARCHIVED_TWICE: &str = "ON CONFLICT (sequence, id) DO NOTHING";

/// The remedy for what a migration puts right.
pub(crate) const MIGRATE: &str = "run `outbox migrate`, or `PostgresStore::migrate` in a program; \
    `outbox migrate --print` and `migration_sql` give the statements";

/// The aggregate's partition, of two text parameters or columns: the expression of the generated column
/// `partition`.
///
/// `md5` of text depends on the encoding of the database alone, and `check` insists on UTF8; `hashtext` is
/// not promised to stay the same in another release of PostgreSQL.
pub(crate) fn partition_expression(aggregate_type: &str, aggregate_id: &str) -> String {
    format!("(get_byte(decode(md5({aggregate_type} || '/' || {aggregate_id}), 'hex'), 0) & 63)::smallint")
}

/// The statements that create or upgrade the tables, for one's own migration tool. They may be run again at
/// any time and change nothing then. An upgrade locks the tables, so run them in one transaction.
///
/// ```
/// let config = outbox_postgres::PostgresConfig::builder().schema("billing").build()?;
/// let sql = outbox_postgres::migration_sql(&config);
/// assert!(sql.contains(r#"CREATE TABLE IF NOT EXISTS "billing"."outbox""#));
/// # Ok::<(), outbox_core::StoreError>(())
/// ```
pub fn migration_sql(config: &PostgresConfig) -> String {
    let tables = config
        .tables
        .text(concat!(include_str!("schema/version_2.sql"), include_str!("schema.sql")))
        .replace("{fillfactor}", &config.sent_rows.fillfactor().to_string())
        .replace("{version}", &SCHEMA_VERSION.to_string());
    match config.tables.schema() {
        Some(schema) => format!("CREATE SCHEMA IF NOT EXISTS \"{schema}\";\n\n{tables}"),
        None => tables,
    }
}

/// Applies the migration in one transaction. An advisory lock lets two processes do it at once: the second
/// finds it done. Refuses tables of a newer version.
pub(crate) async fn migrate(
    connection: &mut PgConnection,
    config: &PostgresConfig,
) -> Result<(), StoreError> {
    let what = format!("migrate the tables of {}", config.tables.outbox());
    let fail = |error| store_error(&what, error);
    let tables = &config.tables;
    let mut transaction = connection.begin().await.map_err(fail)?;
    let result = migrate_locked(&mut transaction, config).await;
    if matches!(result, Ok(None)) {
        transaction.commit().await.map_err(fail)?;
    }
    match result {
        Ok(Some(newer)) => Err(schema(tables).newer(newer)),
        Ok(None) => Ok(()),
        Err(error) => Err(fail(error)),
    }
}

/// What is known of the tables.
pub(crate) fn schema(tables: &Tables) -> Schema {
    Schema::new(format!("the outbox {}", tables.outbox()), MIGRATIONS, MIGRATE)
}

/// The version, if it is newer than what this program knows; else the tables are there.
async fn migrate_locked(
    connection: &mut PgConnection,
    config: &PostgresConfig,
) -> Result<Option<i64>, sqlx::Error> {
    let tables = &config.tables;
    let place = tables.schema().map_or_else(|| "current_schema()".to_owned(), |schema| format!("'{schema}'"));
    let lock = format!(
        "SELECT pg_advisory_xact_lock(hashtextextended('outbox-migration:' || coalesce({place}, '') || ':{}', 0))",
        tables.prefix()
    );
    sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut *connection).await?;
    if let Some(version) = version(&mut *connection, tables).await?
        && version >= SCHEMA_VERSION
    {
        return Ok((version > SCHEMA_VERSION).then_some(version));
    }
    // An upgrade reads the table, which takes longer on a large one than any statement of the relay may. How
    // long it waits for the lock, before which writers wait as well, is what the pool says.
    sqlx::raw_sql("SET LOCAL statement_timeout = 0").execute(&mut *connection).await?;
    let mut sql = migration_sql(config);
    // Creating a schema asks for a privilege even when it is there, which a migrating role need not have.
    let exists = format!("SELECT EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = {place})");
    let exists: bool = sqlx::query_scalar(AssertSqlSafe(exists)).fetch_one(&mut *connection).await?;
    if exists && let Some((_, tables)) = sql.split_once(";\n\n").filter(|_| tables.schema().is_some()) {
        sql = tables.to_owned();
    }
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *connection).await?;
    Ok(None)
}

/// The version of the tables; `None` where there are no tables.
pub(crate) async fn version(
    connection: &mut PgConnection,
    tables: &Tables,
) -> Result<Option<i64>, sqlx::Error> {
    let meta = tables.text("{meta}");
    let exists: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
        .bind(&meta)
        .persistent(false)
        .fetch_one(&mut *connection)
        .await?;
    if !exists {
        return Ok(None);
    }
    sqlx::query_scalar(tables.sql("SELECT value FROM {meta} WHERE key = 'schema_version'"))
        .persistent(false)
        .fetch_optional(&mut *connection)
        .await
}
