//! The tables: whether they are there, of this version, of the right make, and open to the relay.

use std::collections::HashMap;

use outbox_core::Finding;
use sqlx::{AssertSqlSafe, MySqlConnection, Row as _};

use crate::{
    config::Tables,
    database::Database,
    error::number,
    schema::{MIGRATE, schema, version},
};

/// A table as `{token}`, its suffix, the columns that are read or written, and the privileges that this
/// takes.
pub(crate) type Wanted = (&'static str, &'static str, &'static str, &'static str);

/// What a relay and its operator need.
const TABLES: [Wanted; 7] = [
    (
        "{outbox}",
        "",
        "sequence id aggregate_type aggregate_id event_type version payload content_type headers topic created_at \
         available_at status attempts last_error cause sent_at failed_at part payload_bytes",
        "SELECT UPDATE DELETE",
    ),
    ("{relays}", "_relays", "relay_id expires_at ttl_ms", "SELECT INSERT UPDATE DELETE"),
    ("{partitions}", "_partitions", "part owner epoch", "SELECT UPDATE"),
    (
        "{holds}",
        "_holds",
        "part aggregate_type aggregate_id sequence until reason paused_at",
        "SELECT INSERT UPDATE DELETE",
    ),
    (
        "{archive}",
        "_archive",
        "sequence id aggregate_type aggregate_id event_type version payload content_type headers topic created_at \
         available_at status attempts last_error cause sent_at failed_at",
        "SELECT INSERT DELETE",
    ),
    ("{topics}", "_topics", "topic paused_at", "SELECT INSERT UPDATE DELETE"),
    ("{meta}", "_meta", "name value", "SELECT"),
];

/// The indexes that statements name, by table.
const INDEXES: [(&str, &str); 4] =
    [("", "pending"), ("_holds", "until"), ("_holds", "paused_at"), ("_inbox", "time")];

/// What `information_schema` says of a column.
struct Column {
    binary: bool,
    generated: bool,
    auto_increment: bool,
}

pub(super) async fn tables(
    database: &Database,
    connection: &mut MySqlConnection,
    findings: &mut Vec<Finding>,
) -> Result<(), sqlx::Error> {
    let names = database.tables();
    // Without the privilege to read it, that is found below.
    let said = version(connection, names).await;
    let missing = inspect(names, connection, &TABLES, ("relay", MIGRATE), findings).await?;
    let found = match said {
        Ok(found) if !missing.contains(&names.text("{meta}")) => {
            findings.extend(schema(names).check(found));
            found
        }
        _ => None,
    };
    if missing.is_empty() {
        return partitions(database, connection, findings).await;
    }
    if missing.len() < TABLES.len() && found.is_none() && !missing.iter().any(|table| table == names.outbox())
    {
        findings.push(Finding::error(
            "foreign-schema",
            format!("{} is there, but says no version: it may be another program's", names.outbox()),
            "give the outbox another name by `table`, or run the migration if it is this one's",
        ));
    }
    findings.push(Finding::error(
        "missing-table",
        format!("there is no {} in the database", missing.join(", ")),
        MIGRATE,
    ));
    Ok(())
}

/// Looks at tables for the user of `whom`, and returns those that are missing.
pub(crate) async fn inspect(
    names: &Tables,
    connection: &mut MySqlConnection,
    wanted: &[Wanted],
    (whom, migrate): (&str, &'static str),
    findings: &mut Vec<Finding>,
) -> Result<Vec<String>, sqlx::Error> {
    let mut missing = Vec::new();
    let mut refused = Vec::new();
    for &(token, suffix, columns, privileges) in wanted {
        let table = names.text(token);
        let denied = denied(connection, &table, columns, privileges).await?;
        let found = columns_of(names, connection, suffix).await?;
        if found.is_empty() && denied.is_empty() {
            missing.push(table);
            continue;
        }
        if !denied.is_empty() {
            refused.push(Finding::error(
                "privilege",
                format!("the user of the {whom} may not {} on {table}", denied.join(", ")),
                format!("GRANT {} ON {table} TO its user", denied.join(", ")),
            ));
        }
        // What the user may not see at all cannot be judged.
        if found.is_empty() {
            continue;
        }
        let absent: Vec<_> = columns.split(' ').filter(|column| !found.contains_key(*column)).collect();
        if !absent.is_empty() {
            let problem = format!("{table} has no column {}", absent.join(", "));
            findings.push(Finding::error("missing-column", problem, migrate));
        }
        make(names, connection, (&table, suffix), &found, findings).await?;
    }
    findings.extend(refused);
    Ok(missing)
}

/// The privileges that are lacking. To explain a statement takes those that it takes to run it.
async fn denied(
    connection: &mut MySqlConnection,
    table: &str,
    columns: &str,
    privileges: &'static str,
) -> Result<Vec<&'static str>, sqlx::Error> {
    let column = columns.split(' ').next().unwrap_or_default();
    let mut denied = Vec::new();
    for privilege in privileges.split(' ') {
        let statement = match privilege {
            "SELECT" => format!("SELECT 1 FROM {table} WHERE {column} IS NULL"),
            "INSERT" => format!("INSERT INTO {table} ({column}) VALUES (DEFAULT)"),
            "UPDATE" => format!("UPDATE {table} SET {column} = DEFAULT"),
            _ => format!("DELETE FROM {table}"),
        };
        let explained =
            sqlx::raw_sql(AssertSqlSafe(format!("EXPLAIN {statement}"))).execute(&mut *connection).await;
        match explained.map_err(|error| (number(&error), error)) {
            // ER_TABLEACCESS_DENIED_ERROR, ER_COLUMNACCESS_DENIED_ERROR, ER_DBACCESS_DENIED_ERROR
            Err((Some(1044 | 1142 | 1143), _)) => denied.push(privilege),
            Err((None, error)) => return Err(error),
            // Anything else, such as a missing table, is found otherwise.
            _ => {}
        }
    }
    Ok(denied)
}

async fn columns_of(
    names: &Tables,
    connection: &mut MySqlConnection,
    suffix: &str,
) -> Result<HashMap<String, Column>, sqlx::Error> {
    let sql = "SELECT LOWER(column_name), data_type IN ('binary', 'varbinary', 'blob'), LOWER(extra) \
               FROM information_schema.columns \
               WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ?";
    let query = sqlx::query(sql).bind(names.schema());
    let rows = query.bind(format!("{}{suffix}", names.prefix())).fetch_all(connection).await?;
    let mut columns = HashMap::new();
    for row in rows {
        let extra: String = row.try_get_unchecked(2)?;
        let column = Column {
            binary: row.try_get_unchecked(1)?,
            generated: extra.contains("stored generated"),
            auto_increment: extra.contains("auto_increment"),
        };
        columns.insert(row.try_get_unchecked(0)?, column);
    }
    Ok(columns)
}

/// What one table is made of.
async fn make(
    names: &Tables,
    connection: &mut MySqlConnection,
    (table, suffix): (&str, &str),
    found: &HashMap<String, Column>,
    findings: &mut Vec<Finding>,
) -> Result<(), sqlx::Error> {
    let name = format!("{}{suffix}", names.prefix());
    let collated = ["aggregate_type", "aggregate_id", "topic", "consumer", "source", "id"];
    let collated: Vec<_> =
        collated.into_iter().filter(|n| found.get(*n).is_some_and(|c| !c.binary)).collect();
    if !collated.is_empty() {
        findings.push(Finding::error(
            "collation",
            format!(
                "{} of {table} is a text with a collation, which takes distinct names for the same",
                collated.join(", ")
            ),
            "make it VARBINARY(255), as the migration does",
        ));
    }
    if suffix.is_empty() {
        main_table(table, found, findings);
    }
    let sql = "SELECT engine FROM information_schema.tables \
               WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ?";
    let query = sqlx::query(sql).bind(names.schema()).bind(&name);
    let engine: Option<String> = query.fetch_one(&mut *connection).await?.try_get_unchecked(0)?;
    if !engine.as_deref().is_some_and(|engine| engine.eq_ignore_ascii_case("InnoDB")) {
        findings.push(Finding::error(
            "engine",
            format!("{table} has the engine {}, which knows no transactions", engine.unwrap_or_default()),
            format!("ALTER TABLE {table} ENGINE = InnoDB"),
        ));
    }
    for (_, index) in INDEXES.iter().filter(|(of, _)| *of == suffix) {
        let sql = "SELECT 1 FROM information_schema.statistics \
                   WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ? AND index_name = ? LIMIT 1";
        let query = sqlx::query(sql).bind(names.schema()).bind(&name).bind(*index);
        if query.fetch_optional(&mut *connection).await?.is_none() {
            findings.push(Finding::error(
                "missing-index",
                format!("{table} has no index {index}, by which the relay reads it"),
                "create it as the migration does",
            ));
        }
    }
    Ok(())
}

fn main_table(table: &str, found: &HashMap<String, Column>, findings: &mut Vec<Finding>) {
    let lacks = |name: &str, has: fn(&Column) -> bool| found.get(name).is_some_and(|column| !has(column));
    for name in ["part", "payload_bytes"] {
        if lacks(name, |column| column.generated) {
            findings.push(Finding::error(
                "column-not-generated",
                format!(
                    "the column {name} of {table} is not generated, so that writers would have to compute it"
                ),
                "create the table by the migration",
            ));
        }
    }
    if lacks("sequence", |column| column.auto_increment) {
        findings.push(Finding::error(
            "sequence",
            format!("the column sequence of {table} is not AUTO_INCREMENT"),
            "create the table by the migration",
        ));
    }
}

async fn partitions(
    database: &Database,
    connection: &mut MySqlConnection,
    findings: &mut Vec<Finding>,
) -> Result<(), sqlx::Error> {
    if findings.iter().any(|finding| finding.code == "privilege" || finding.code == "missing-column") {
        return Ok(());
    }
    let sql = "SELECT COUNT(*) FROM {partitions} WHERE part < 64";
    let count: i64 = sqlx::query_scalar(database.tables().sql(sql)).fetch_one(&mut *connection).await?;
    if count != 64 {
        findings.push(Finding::error(
            "missing-partitions",
            format!("{} has {count} of its 64 rows", database.tables().text("{partitions}")),
            MIGRATE,
        ));
    }
    Ok(())
}
