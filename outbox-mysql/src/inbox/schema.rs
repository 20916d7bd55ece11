//! The inbox's tables, which need no outbox beside them: printed, applied, and looked at.

use outbox_core::{Finding, StoreError, store::Schema};
use sqlx::{AssertSqlSafe, MySqlConnection, Row as _};

use crate::{
    MysqlConfig,
    config::Tables,
    error::{store_error, within},
    schema::{create_schema, lock, unlock, version_in},
    store::{Wanted, inspect},
};

/// What each version of the tables brought, the first one first.
const MIGRATIONS: &[&str] = &["the tables of the inbox"];

/// The version of the tables that this program reads and writes.
const SCHEMA_VERSION: i64 = MIGRATIONS.len() as i64;

/// What a consumer needs.
const TABLES: [Wanted; 3] = [
    ("{inbox}", "_inbox", "consumer source id time received_at", "SELECT INSERT DELETE"),
    ("{inbox_horizons}", "_inbox_horizons", "consumer source horizon changed_at", "SELECT INSERT UPDATE"),
    ("{inbox_meta}", "_inbox_meta", "name value", "SELECT"),
];

const MIGRATE: &str = "run `MysqlInbox::migrate`, or the statements of `inbox_migration_sql`";

/// The statements that create the inbox's tables, for one's own migration tool. They may be run again at any
/// time and change nothing then. They need none of the outbox's tables.
///
/// ```
/// let config = outbox_mysql::MysqlConfig::builder().schema("billing").build()?;
/// let sql = outbox_mysql::inbox_migration_sql(&config);
/// assert!(sql.contains("CREATE TABLE IF NOT EXISTS `billing`.`outbox_inbox`"));
/// # Ok::<(), outbox_core::StoreError>(())
/// ```
pub fn inbox_migration_sql(config: &MysqlConfig) -> String {
    let tables = tables_sql(&config.tables);
    match config.tables.schema() {
        Some(schema) => format!("CREATE DATABASE IF NOT EXISTS `{schema}`;\n\n{tables}"),
        None => tables,
    }
}

fn tables_sql(tables: &Tables) -> String {
    tables.text(include_str!("schema.sql")).replace("{version}", &SCHEMA_VERSION.to_string())
}

/// Applies the migration. A named lock lets two processes do it at once: the second finds it done. Refuses
/// tables of a newer version.
pub(super) async fn migrate(connection: &mut MySqlConnection, tables: &Tables) -> Result<(), StoreError> {
    let what = format!("migrate {}", tables.text("{inbox}"));
    let name = format!("{}_inbox", tables.prefix());
    let table = (tables.schema(), name.as_str());
    lock(connection, table, &what).await?;
    let result = migrate_locked(connection, tables).await;
    unlock(connection, table).await;
    match result {
        Ok(None) => Ok(()),
        Ok(Some(version)) => Err(schema(tables).newer(version)),
        Err(error) => Err(store_error(&what, error)),
    }
}

/// The version, if it is newer than what this program knows; else the tables are there.
async fn migrate_locked(
    connection: &mut MySqlConnection,
    tables: &Tables,
) -> Result<Option<i64>, sqlx::Error> {
    if let Some(version) = version_in(connection, tables, "{inbox_meta}").await?
        && version >= SCHEMA_VERSION
    {
        return Ok((version > SCHEMA_VERSION).then_some(version));
    }
    create_schema(connection, tables).await?;
    sqlx::raw_sql(AssertSqlSafe(tables_sql(tables))).execute(connection).await?;
    Ok(None)
}

fn schema(tables: &Tables) -> Schema {
    Schema::new(format!("the inbox {}", tables.text("{inbox}")), MIGRATIONS, MIGRATE)
}

/// Looks for whatever would break a guarantee, and names all of it at once. Changes nothing.
pub(super) async fn check(
    connection: &mut MySqlConnection,
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

async fn server(connection: &mut MySqlConnection, findings: &mut Vec<Finding>) -> Result<(), sqlx::Error> {
    let sql = "SELECT @@GLOBAL.read_only AS read_only, @@GLOBAL.log_bin AS log_bin, \
               @@GLOBAL.sync_binlog AS sync_binlog, @@GLOBAL.innodb_flush_log_at_trx_commit AS flush_log";
    let row = sqlx::query(sql).persistent(false).fetch_one(connection).await?;
    let number = |name: &str| row.try_get_unchecked::<i64, _>(name);
    if number("read_only")? != 0 {
        findings.push(Finding::error(
            "read-replica",
            "the server is set to read_only, as a replica is",
            "connect to the primary",
        ));
    }
    if number("flush_log")? != 1 || (number("log_bin")? != 0 && number("sync_binlog")? == 0) {
        findings.push(Finding::warning(
            "durability",
            "innodb_flush_log_at_trx_commit or sync_binlog is not 1: a crash of the server can undo an effect after its \
             message was acknowledged",
            "set both to 1",
        ));
    }
    Ok(())
}

/// Version, tables, columns and privileges; true if the rows can be looked at.
async fn inspect_tables(
    connection: &mut MySqlConnection,
    tables: &Tables,
    findings: &mut Vec<Finding>,
) -> Result<bool, sqlx::Error> {
    let missing = inspect(tables, connection, &TABLES, ("consumer", MIGRATE), findings).await?;
    if !missing.is_empty() {
        let problem = format!("there is no {} in the database", missing.join(", "));
        findings.push(Finding::error("missing-table", problem, MIGRATE));
    }
    if findings.iter().any(|finding| ["missing-table", "missing-column", "privilege"].contains(&finding.code))
    {
        return Ok(false);
    }
    findings.extend(schema(tables).check(version_in(connection, tables, "{inbox_meta}").await?));
    Ok(true)
}

async fn rows(
    connection: &mut MySqlConnection,
    tables: &Tables,
    consumer: &str,
    findings: &mut Vec<Finding>,
) -> Result<(), sqlx::Error> {
    let sql = tables.sql("SELECT EXISTS (SELECT 1 FROM {inbox} WHERE consumer = ? AND time IS NULL)");
    let query = sqlx::query_scalar(sql).bind(consumer.as_bytes()).persistent(false);
    if query.fetch_one(connection).await? {
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
