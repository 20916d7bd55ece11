//! The server and the connections to it.

use outbox_core::Finding;
use sqlx::{AssertSqlSafe, MySqlConnection, Row as _, mysql::MySqlRow};

use crate::database::Database;

/// The oldest releases that have what the tables and statements are made of: expressions as defaults and
/// `JSON_TABLE`.
const MYSQL_MIN: (u32, u32, u32) = (8, 0, 22);
const MARIADB_MIN: (u32, u32, u32) = (10, 6, 0);

/// The most bytes of an event beside its payload, generously: its headers and its names.
const EVENT_BYTES_BESIDE: i64 = 64 * 1024;

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

/// The server; true if it is too old to be looked at further.
pub(super) async fn server(
    database: &Database,
    connection: &mut MySqlConnection,
    findings: &mut Vec<Finding>,
) -> Result<bool, sqlx::Error> {
    let settings = Settings::read(connection).await?;
    if is_too_old(&settings.version) {
        findings.push(Finding::error(
            "server-too-old",
            format!("the server is {}", settings.version),
            "upgrade it to MySQL 8.0.22 or MariaDB 10.6 at least, which have JSON_TABLE and expressions as defaults",
        ));
        return Ok(true);
    }
    findings.extend(settings.findings(database.config.payload_bytes_max));
    Ok(false)
}

/// What a server is set to.
#[derive(Debug, Clone)]
struct Settings {
    version: String,
    /// Of a session that was set to READ COMMITTED.
    isolation: String,
    read_only: bool,
    sql_mode: String,
    log_bin: bool,
    binlog_format: String,
    sync_binlog: i64,
    flush_log: i64,
    packet_bytes_max: i64,
}

impl Settings {
    async fn read(connection: &mut MySqlConnection) -> Result<Self, sqlx::Error> {
        let isolation = isolation(connection).await?;
        let sql = "SELECT VERSION() AS version, @@GLOBAL.read_only AS read_only, @@GLOBAL.sql_mode AS sql_mode, \
                   @@GLOBAL.log_bin AS log_bin, @@SESSION.binlog_format AS binlog_format, \
                   @@GLOBAL.sync_binlog AS sync_binlog, @@GLOBAL.innodb_flush_log_at_trx_commit AS flush_log, \
                   CAST(@@SESSION.max_allowed_packet AS SIGNED) AS packet_bytes_max";
        let row = query(connection, sql).await?;
        let number = |name: &str| row.try_get_unchecked::<i64, _>(name);
        Ok(Self {
            version: row.try_get_unchecked("version")?,
            isolation,
            read_only: number("read_only")? != 0,
            sql_mode: row.try_get_unchecked("sql_mode")?,
            log_bin: number("log_bin")? != 0,
            binlog_format: row.try_get_unchecked("binlog_format")?,
            sync_binlog: number("sync_binlog")?,
            flush_log: number("flush_log")?,
            packet_bytes_max: number("packet_bytes_max")?,
        })
    }

    fn findings(&self, payload_bytes_max: usize) -> Vec<Finding> {
        let mut findings = Vec::new();
        if self.isolation != "READ-COMMITTED" {
            findings.push(Finding::error(
                "isolation",
                format!(
                    "a session that was set to READ COMMITTED says it is {}: something between changes it",
                    self.isolation
                ),
                "connect the relay to the server directly, or by a proxy that keeps the settings of a session",
            ));
        }
        if self.read_only {
            findings.push(Finding::error(
                "read-replica",
                "the server is set to read_only, as a replica is",
                "connect to the primary",
            ));
        }
        if !self.sql_mode.contains("STRICT_TRANS_TABLES") && !self.sql_mode.contains("STRICT_ALL_TABLES") {
            findings.push(Finding::warning(
                "sql-mode",
                "the server's sql_mode is not strict: a name that is too long or not UTF-8 would be changed, and its event \
                 go to another aggregate; a text that is not UTF-8 would be cut off or changed in the column payload",
                "add STRICT_TRANS_TABLES to sql_mode, at least for those who write events",
            ));
        }
        if self.log_bin && self.binlog_format == "STATEMENT" {
            findings.push(Finding::error(
                "binlog-format",
                "binlog_format is STATEMENT, with which InnoDB refuses to write under READ COMMITTED",
                "set binlog_format to ROW",
            ));
        }
        if self.flush_log != 1 || (self.log_bin && self.sync_binlog == 0) {
            findings.push(Finding::warning(
                "durability",
                format!(
                    "innodb_flush_log_at_trx_commit is {} and sync_binlog {}: a crash of the server can undo an event \
                     together with the change it tells of, after it was published",
                    self.flush_log, self.sync_binlog
                ),
                "set both to 1",
            ));
        }
        let payload = i64::try_from(payload_bytes_max).unwrap_or(i64::MAX);
        let needed = payload.saturating_add(EVENT_BYTES_BESIDE);
        if self.packet_bytes_max < needed {
            findings.push(Finding::error(
                "packet",
                format!(
                    "max_allowed_packet is {}, and a payload may have {payload} bytes",
                    self.packet_bytes_max
                ),
                format!("raise max_allowed_packet to {needed} at least, or lower payload_bytes_max"),
            ));
        }
        findings
    }
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

    fn right() -> Settings {
        Settings {
            version: "9.7.4".to_owned(),
            isolation: "READ-COMMITTED".to_owned(),
            read_only: false,
            sql_mode: "ONLY_FULL_GROUP_BY,STRICT_TRANS_TABLES".to_owned(),
            log_bin: true,
            binlog_format: "ROW".to_owned(),
            sync_binlog: 1,
            flush_log: 1,
            packet_bytes_max: 16 << 20,
        }
    }

    #[test]
    fn each_wrong_setting_has_its_finding() {
        let codes = |settings: Settings| {
            let findings = settings.findings(1_000_000);
            findings.iter().map(|finding| finding.code).collect::<Vec<_>>()
        };
        assert!(codes(right()).is_empty());
        let proxy = Settings { isolation: "REPEATABLE-READ".to_owned(), ..right() };
        let statement = || Settings { binlog_format: "STATEMENT".to_owned(), ..right() };
        for (settings, code) in [
            (proxy, "isolation"),
            (Settings { read_only: true, ..right() }, "read-replica"),
            (Settings { sql_mode: String::new(), ..right() }, "sql-mode"),
            (statement(), "binlog-format"),
            (Settings { sync_binlog: 0, ..right() }, "durability"),
            (Settings { flush_log: 2, ..right() }, "durability"),
            (Settings { packet_bytes_max: 1 << 20, ..right() }, "packet"),
        ] {
            assert_eq!(codes(settings), [code]);
        }
        // Without a binary log its settings do not matter.
        assert!(codes(Settings { log_bin: false, sync_binlog: 0, ..statement() }).is_empty());
    }

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
