//! The server and the connections to it.

use outbox_core::Finding;
use sqlx::{AssertSqlSafe, MySqlConnection, Row as _, mysql::MySqlRow};

use crate::store::Inner;

/// The oldest releases that have what the tables and statements are made of: expressions as defaults and `JSON_TABLE`.
const MYSQL_MIN: (u32, u32, u32) = (8, 0, 22);
const MARIADB_MIN: (u32, u32, u32) = (10, 6, 0);

/// What a connection of the pool must be set to: it is used as it is.
pub(super) async fn pool(
    connection: &mut MySqlConnection,
    findings: &mut Vec<Finding>,
) -> Result<(), sqlx::Error> {
    let isolation = isolation(connection).await?;
    if isolation != "READ-COMMITTED" && isolation != "REPEATABLE-READ" {
        findings.push(Finding::error(
            "isolation",
            format!("the connections of the pool are set to {isolation}, where owners and holds are not seen as they are"),
            "set them to READ COMMITTED",
        ));
    }
    let row = query(connection, "SELECT @@SESSION.autocommit AS autocommit").await?;
    if row.try_get_unchecked::<i64, _>("autocommit")? == 0 {
        findings.push(Finding::error(
            "autocommit",
            "the connections of the pool are set to autocommit = 0, so that nothing the relay writes is committed",
            "SET autocommit = 1 on them",
        ));
    }
    Ok(())
}

/// Both servers; true if this one is too old to be looked at further.
pub(super) async fn server(
    inner: &Inner,
    connection: &mut MySqlConnection,
    findings: &mut Vec<Finding>,
) -> Result<bool, sqlx::Error> {
    let isolation = isolation(connection).await?;
    if isolation != "READ-COMMITTED" {
        findings.push(Finding::error(
            "isolation",
            format!("a session that was set to READ COMMITTED says it is {isolation}: something between changes it"),
            "connect the relay to the server directly, or by a proxy that keeps the settings of a session",
        ));
    }
    let sql = "SELECT VERSION() AS version, @@GLOBAL.read_only AS read_only, @@GLOBAL.sql_mode AS sql_mode, \
               @@GLOBAL.log_bin AS log_bin, @@SESSION.binlog_format AS binlog_format, \
               @@GLOBAL.sync_binlog AS sync_binlog, \
               @@GLOBAL.innodb_flush_log_at_trx_commit AS flush_log, \
               CAST(@@SESSION.max_allowed_packet AS SIGNED) AS packet";
    let row = query(connection, sql).await?;
    let version: String = row.try_get_unchecked("version")?;
    let number = |name: &str| row.try_get_unchecked::<i64, _>(name);
    if is_too_old(&version) {
        findings.push(Finding::error(
            "server-too-old",
            format!("the server is {version}"),
            "upgrade it to MySQL 8.0.22 or MariaDB 10.6 at least, which have JSON_TABLE and expressions as defaults",
        ));
        return Ok(true);
    }
    if number("read_only")? != 0 {
        findings.push(Finding::error(
            "read-replica",
            "the server is set to read_only, as a replica is",
            "connect to the primary",
        ));
    }
    let mode: String = row.try_get_unchecked("sql_mode")?;
    if !mode.contains("STRICT_TRANS_TABLES") && !mode.contains("STRICT_ALL_TABLES") {
        findings.push(Finding::warning(
            "sql-mode",
            "the server's sql_mode is not strict: an aggregate's name that is too long would be cut off, and its event \
             go to another aggregate",
            "add STRICT_TRANS_TABLES to sql_mode, at least for those who write events",
        ));
    }
    let binlog: String = row.try_get_unchecked("binlog_format")?;
    if number("log_bin")? != 0 && binlog == "STATEMENT" {
        findings.push(Finding::error(
            "binlog-format",
            "binlog_format is STATEMENT, with which InnoDB refuses to write under READ COMMITTED",
            "set binlog_format to ROW",
        ));
    }
    if number("flush_log")? != 1 || (number("log_bin")? != 0 && number("sync_binlog")? == 0) {
        findings.push(Finding::warning(
            "durability",
            "innodb_flush_log_at_trx_commit is not 1, or sync_binlog is 0: a crash of the server can undo an event \
             together with the change it tells of, after it was published",
            "set both to 1",
        ));
    }
    let payload = i64::try_from(inner.config.payload_bytes_max).unwrap_or(i64::MAX);
    // The rest of an event: its headers and its names.
    let needed = payload.saturating_add(64 * 1024);
    if number("packet")? < needed {
        findings.push(Finding::error(
            "packet",
            format!("max_allowed_packet is {}, and a payload may have {payload} bytes", number("packet")?),
            format!("raise max_allowed_packet to {needed} at least, or lower payload_bytes_max"),
        ));
    }
    Ok(false)
}

async fn isolation(connection: &mut MySqlConnection) -> Result<String, sqlx::Error> {
    // The variable has one name in MySQL and another in MariaDB before 11.1.
    let sql = "SHOW SESSION VARIABLES WHERE Variable_name IN ('transaction_isolation', 'tx_isolation')";
    query(connection, sql).await?.try_get_unchecked(1)
}

async fn query(connection: &mut MySqlConnection, sql: &'static str) -> Result<MySqlRow, sqlx::Error> {
    sqlx::query(AssertSqlSafe(sql)).fetch_one(connection).await
}

fn is_too_old(version: &str) -> bool {
    // MariaDB before 11 announces itself to old clients as 5.5.5-10.x.
    let maria = version.to_ascii_lowercase().contains("mariadb");
    let version = version.strip_prefix("5.5.5-").filter(|_| maria).unwrap_or(version);
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    let found = (next(), next(), next());
    found < if maria { MARIADB_MIN } else { MYSQL_MIN }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_releases_are_told_from_new_ones() {
        for (version, old) in [
            ("9.7.4-2", false),
            ("8.0.36", false),
            ("8.0.21", true),
            ("5.7.44-log", true),
            ("10.11.19-MariaDB-0+deb12u1-log", false),
            ("5.5.5-10.6.4-MariaDB", false),
            ("10.5.9-MariaDB", true),
            ("11.4.2-MariaDB", false),
        ] {
            assert_eq!(is_too_old(version), old, "{version}");
        }
    }
}
