//! The tables: printed for one's own migration tool, or applied.

use outbox_core::{
    StoreError, StoreErrorKind,
    store::{PARTITIONS, Schema},
};
use sqlx::{AssertSqlSafe, MySqlConnection};

use crate::{
    MysqlConfig,
    config::Tables,
    error::{NO_DATABASE, NO_TABLE, number, store_error},
};

/// What each version of the tables brought, the first one first. A version that was released is never
/// changed: a change is a further entry, with its statements in `schema.sql` such that they do nothing where
/// they were done.
const MIGRATIONS: &[&str] = &["the tables of the outbox"];

/// The version of the tables that this program reads and writes.
pub(crate) const SCHEMA_VERSION: i64 = MIGRATIONS.len() as i64;

/// The remedy for what a migration puts right.
pub(crate) const MIGRATE: &str = "run `outbox migrate`, or `MysqlStore::migrate` in a program; \
    `outbox migrate --print` and `migration_sql` give the statements";

/// How long a migration waits for one that is under way, in seconds.
const MIGRATION_WAIT_S: u32 = 30;

/// The name of a migration's lock. It has at most 64 characters, so a hash stands for the database and the
/// first of the tables.
const LOCK_NAME: &str = "CONCAT('outbox-', LEFT(SHA2(CONCAT(COALESCE(?, DATABASE()), '/', ?), 256), 40))";

/// The columns that the archive shares with the outbox.
pub(crate) const ARCHIVED: &str = "sequence, id, aggregate_type, aggregate_id, event_type, version, payload, \
     content_type, headers, topic, created_at, available_at, status, attempts, last_error, cause, sent_at, failed_at";

/// The aggregate's partition, of two parameters or columns: the expression of the generated column `part`.
pub(crate) fn part_of(aggregate_type: &str, aggregate_id: &str) -> String {
    format!("(CRC32(CONCAT({aggregate_type}, '/', {aggregate_id})) & 63)")
}

/// The statements that create the tables, for one's own migration tool. They may be run again at any time and
/// change nothing then.
///
/// ```
/// let config = outbox_mysql::MysqlConfig::builder().schema("billing").build()?;
/// let sql = outbox_mysql::migration_sql(&config);
/// assert!(sql.contains("CREATE TABLE IF NOT EXISTS `billing`.`outbox`"));
/// # Ok::<(), outbox_core::StoreError>(())
/// ```
pub fn migration_sql(config: &MysqlConfig) -> String {
    let tables = tables_sql(config);
    match config.tables.schema() {
        Some(schema) => format!("CREATE DATABASE IF NOT EXISTS `{schema}`;\n\n{tables}"),
        None => tables,
    }
}

fn tables_sql(config: &MysqlConfig) -> String {
    let parts: Vec<String> = (0..PARTITIONS).map(|part| format!("({part})")).collect();
    let text = config.tables.text(include_str!("schema.sql"));
    text.replace("{parts}", &parts.join(", ")).replace("{version}", &SCHEMA_VERSION.to_string())
}

/// Applies the migration. A named lock lets two processes do it at once: the second finds it done. These
/// databases commit each definition by itself, so every statement may find its work done, and the version is
/// written last. Refuses tables of a newer version.
pub(crate) async fn migrate(
    connection: &mut MySqlConnection,
    config: &MysqlConfig,
) -> Result<(), StoreError> {
    let what = format!("migrate the tables of {}", config.tables.outbox());
    let fail = |error| store_error(&what, error);
    let table = (config.tables.schema(), config.tables.prefix());
    lock(connection, table, &what).await?;
    let result = migrate_locked(connection, config).await;
    unlock(connection, table).await;
    match result {
        Ok(Some(newer)) => Err(schema(&config.tables).newer(newer)),
        Ok(None) => Ok(()),
        Err(error) => Err(fail(error)),
    }
}

/// Waits until no other program migrates these tables, of which this is the first, by its schema and its
/// name.
pub(crate) async fn lock(
    connection: &mut MySqlConnection,
    (schema, table): (Option<&str>, &str),
    what: &str,
) -> Result<(), StoreError> {
    let sql = format!("SELECT GET_LOCK({LOCK_NAME}, ?)");
    let query = sqlx::query_scalar(AssertSqlSafe(sql)).bind(schema).bind(table);
    let locked = query.bind(MIGRATION_WAIT_S).persistent(false).fetch_one(connection).await;
    match locked.map_err(|error| store_error(what, error))? {
        Some(1_i64) => Ok(()),
        _ => Err(StoreError::new(
            StoreErrorKind::Conflict,
            format!("cannot {what}: another migration has been under way for {MIGRATION_WAIT_S} s"),
        )),
    }
}

/// Lets others migrate. The lock ends with the connection too, so that an error here is not one of the
/// migration.
pub(crate) async fn unlock(connection: &mut MySqlConnection, (schema, table): (Option<&str>, &str)) {
    let sql = format!("DO RELEASE_LOCK({LOCK_NAME})");
    let query = sqlx::query(AssertSqlSafe(sql)).bind(schema).bind(table);
    let _ = query.persistent(false).execute(connection).await;
}

/// What is known of the tables.
pub(crate) fn schema(tables: &Tables) -> Schema {
    Schema::new(format!("the outbox {}", tables.outbox()), MIGRATIONS, MIGRATE)
}

/// The version, if it is newer than what this program knows; else the tables are there.
async fn migrate_locked(
    connection: &mut MySqlConnection,
    config: &MysqlConfig,
) -> Result<Option<i64>, sqlx::Error> {
    if let Some(version) = version(&mut *connection, &config.tables).await?
        && version >= SCHEMA_VERSION
    {
        return Ok((version > SCHEMA_VERSION).then_some(version));
    }
    create_schema(connection, &config.tables).await?;
    sqlx::raw_sql(AssertSqlSafe(tables_sql(config))).execute(&mut *connection).await?;
    Ok(None)
}

/// Creates the database that the tables are in, if that is another one than the connection's.
pub(crate) async fn create_schema(
    connection: &mut MySqlConnection,
    tables: &Tables,
) -> Result<(), sqlx::Error> {
    let Some(schema) = tables.schema() else { return Ok(()) };
    // This asks for a privilege even when the database is there, which a migrating user need not have.
    let exists = "SELECT EXISTS (SELECT 1 FROM information_schema.schemata WHERE schema_name = ?)";
    if !sqlx::query_scalar(exists).bind(schema).persistent(false).fetch_one(&mut *connection).await? {
        let sql = format!("CREATE DATABASE IF NOT EXISTS `{schema}`");
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await?;
    }
    Ok(())
}

/// The version of the tables; `None` where there are no tables.
pub(crate) async fn version(
    connection: &mut MySqlConnection,
    tables: &Tables,
) -> Result<Option<i64>, sqlx::Error> {
    version_in(connection, tables, "{meta}").await
}

/// The version that a table of versions says.
pub(crate) async fn version_in(
    connection: &mut MySqlConnection,
    tables: &Tables,
    meta: &str,
) -> Result<Option<i64>, sqlx::Error> {
    let sql = tables.text(&format!("SELECT value FROM {meta} WHERE name = 'schema_version'"));
    let query = sqlx::query_scalar(AssertSqlSafe(sql)).persistent(false);
    match query.fetch_optional(connection).await {
        Err(error) if matches!(number(&error), Some(NO_TABLE | NO_DATABASE)) => Ok(None),
        other => other,
    }
}
