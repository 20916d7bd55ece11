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
const MIGRATIONS: &[&str] =
    &["the tables of the outbox", "payloads that are text or bytes or absent, and names that are text"];

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
     payload_binary, content_type, headers, topic, created_at, available_at, status, attempts, last_error, cause, sent_at, failed_at";

/// The columns of the outbox and its archive that are names.
pub(crate) const NAMES: [&str; 5] = ["aggregate_type", "aggregate_id", "event_type", "content_type", "topic"];

/// The collations of names, that of MySQL and that of MariaDB: of the order of bytes, and without padding.
pub(crate) const NAME_COLLATIONS: [&str; 2] = ["utf8mb4_0900_bin", "utf8mb4_nopad_bin"];

/// The aggregate's partition, of two parameters or columns: the expression of the generated column
/// `partition`.
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
    let text = expand_steps(include_str!("schema.sql"), &config.tables);
    let text = config.tables.text(&text);
    text.replace("{parts}", &parts.join(", ")).replace("{version}", &SCHEMA_VERSION.to_string())
}

/// Puts in what the steps of the migration repeat. Neither server can make a step depend on a condition but
/// by preparing its text, and what stands in such a text has its quotes doubled.
fn expand_steps(template: &str, tables: &Tables) -> String {
    let run = "PREPARE outbox_step FROM @outbox_step;\nEXECUTE outbox_step;\nDEALLOCATE PREPARE outbox_step;";
    let mut text = template
        .replace("{step}", run)
        .replace("{refused}", &format!("{} OR attempts < 0", refused_names()))
        .replace("{refused_names}", &refused_names())
        .replace("{why_refused}", &why_refused());
    for name in NAMES {
        text = text
            .replace(&format!("{{readable {name}}}"), &readable(name))
            .replace(&format!("{{not_utf8 {name}}}"), &not_utf8(name));
    }
    for suffix in ["", "_archive", "_holds", "_topics"] {
        text = text
            .replace(&format!("{{of_version_1 {suffix}}}"), &of_version_1(tables, suffix))
            .replace(&format!("{{has_names {suffix}}}"), &has_names(tables, suffix));
    }
    text
}

/// The columns of a table, as a condition on `information_schema.columns`.
fn columns_of(tables: &Tables, suffix: &str) -> String {
    let schema = tables.schema().map_or("DATABASE()".to_owned(), |schema| format!("'{schema}'"));
    format!("table_schema = {schema} AND table_name = '{}{suffix}'", tables.prefix())
}

/// Whether the outbox or its archive is as version 1 has made it.
fn of_version_1(tables: &Tables, suffix: &str) -> String {
    let columns = columns_of(tables, suffix);
    format!(
        "NOT EXISTS (SELECT 1 FROM information_schema.columns WHERE {columns} AND column_name = 'payload_binary')"
    )
}

/// Whether the names of a table have their collation.
fn has_names(tables: &Tables, suffix: &str) -> String {
    let (columns, names, right) =
        (columns_of(tables, suffix), NAMES.join("', '"), NAME_COLLATIONS.join("', '"));
    format!(
        "NOT EXISTS (SELECT 1 FROM information_schema.columns WHERE {columns} AND column_name IN ('{names}') \
         AND COALESCE(collation_name, '') NOT IN ('{right}'))"
    )
}

/// Whether a name of version 1 is not UTF-8. Of one that is not, MySQL makes NULL, and MariaDB something
/// else.
fn not_utf8(name: &str) -> String {
    format!("(NOT (CAST(CONVERT({name} USING utf8mb4) AS BINARY) <=> {name}))")
}

/// Whether a name of version 1 could not be written any more. It is too long only where its column was
/// widened by hand.
fn is_refused(name: &str) -> String {
    format!("({} OR OCTET_LENGTH({name}) > 255)", not_utf8(name))
}

fn refused_names() -> String {
    NAMES.map(is_refused).join(" OR ")
}

/// The name, or what of it is ASCII with a question mark for each other byte.
fn readable(name: &str) -> String {
    let ascii = format!("LEFT(CONVERT(CONVERT({name} USING latin1) USING ascii), 255)");
    format!("IF({}, {ascii}, {name})", is_refused(name))
}

/// What was wrong with a row, behind its last error: the columns and their limits, and the bytes of names.
fn why_refused() -> String {
    let names = NAMES.map(|name| {
        format!(
            "IF({}, CONCAT(IF(OCTET_LENGTH({name}) > 255, CONCAT(''{name} has '', OCTET_LENGTH({name}), \
             '' bytes, of 255 at most''), ''{name} is not UTF-8''), '': 0x'', LEFT(HEX({name}), 1020)), NULL)",
            is_refused(name)
        )
    });
    let attempts = "IF(attempts < 0, CONCAT(''attempts is '', attempts, '', less than 0''), NULL)";
    format!("CONCAT_WS(''; '', last_error, {}, {attempts})", names.join(", "))
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
    let applied = sqlx::raw_sql(AssertSqlSafe(tables_sql(config))).execute(&mut *connection).await;
    if applied.is_err() {
        // The connection goes back to a pool, which may be the caller's. What matters is the first error.
        let restore = "ROLLBACK; SET SESSION sql_mode = COALESCE(@outbox_sql_mode, @@SESSION.sql_mode)";
        let _ = sqlx::raw_sql(restore).execute(&mut *connection).await;
    }
    applied.map(|_| None)
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
