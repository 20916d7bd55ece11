//! What would break a guarantee, and what costs throughput: looked for at start, named all at once. Changes
//! nothing.

use outbox_core::{Finding, StoreError, StoreErrorKind};
use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::{
    SqliteConfig,
    database::{Database, open},
    error::{classify, store_error},
    schema::{COLUMNS, INDEXES, MIGRATE, TABLES, exists, recorded_version, schema},
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
    let prefix = config.prefix();
    for suffix in TABLES {
        if !exists(connection, "table", &format!("{prefix}{suffix}"))? {
            let problem = format!("there is no table {prefix}{suffix}");
            findings.push(Finding::error("missing-table", problem, MIGRATE));
        }
    }
    for (table, columns) in [(prefix.to_owned(), COLUMNS), (format!("{prefix}_archive"), COLUMNS)] {
        let missing = missing_columns(connection, &table, columns)?;
        if !missing.is_empty() {
            let problem = format!("table {table} has no column {}", missing.join(", "));
            findings.push(Finding::error(
                "missing-column",
                problem,
                "rename that table, then run `outbox migrate`, or `SqliteStore::migrate` in a program",
            ));
        }
    }
    for suffix in INDEXES {
        // A missing index of a missing table is not worth a finding.
        let table = if suffix.starts_with("_holds") { format!("{prefix}_holds") } else { prefix.to_owned() };
        if exists(connection, "table", &table)? && !exists(connection, "index", &format!("{prefix}{suffix}"))?
        {
            let problem = format!("there is no index {prefix}{suffix}, which the reader names");
            findings.push(Finding::error("missing-index", problem, MIGRATE));
        }
    }
    if exists(connection, "table", prefix)? && !has_autoincrement(connection, prefix)? {
        findings.push(Finding::error(
            "no-autoincrement",
            format!("table {prefix} has no AUTOINCREMENT: SQLite gives the numbers of deleted rows again, out of order"),
            "create the table by the migration and copy the rows",
        ));
    }
    if exists(connection, "table", &format!("{prefix}_schema"))? {
        findings.extend(schema(config).check(recorded_version(config, connection)?));
    }
    Ok(())
}

fn missing_columns(
    connection: &Connection,
    table: &str,
    columns: &[&'static str],
) -> rusqlite::Result<Vec<&'static str>> {
    if !exists(connection, "table", table)? {
        return Ok(Vec::new());
    }
    let mut statement = connection.prepare("SELECT lower(name) FROM pragma_table_info(?1)")?;
    let present =
        statement.query_map([table], |row| row.get(0))?.collect::<rusqlite::Result<Vec<String>>>()?;
    Ok(columns.iter().copied().filter(|column| !present.iter().any(|name| name == column)).collect())
}

fn has_autoincrement(connection: &Connection, table: &str) -> rusqlite::Result<bool> {
    let sql = "SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?1 COLLATE NOCASE";
    let text: String = connection.query_row(sql, [table], |row| row.get(0))?;
    // SQLite keeps comments in the text, and ours name the word.
    Ok(text.lines().any(|line| {
        line.split("--").next().is_some_and(|code| code.to_ascii_uppercase().contains("AUTOINCREMENT"))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migrate;

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
