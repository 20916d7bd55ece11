//! The tables: whether they are there, of this version, of the right make, and open to the relay.

use std::collections::HashMap;

use outbox_core::Finding;
use sqlx::{AssertSqlSafe, MySqlConnection, Row as _};

use crate::{
    config::Tables,
    database::Database,
    error::number,
    schema::{MIGRATE, NAME_COLLATIONS, NAMES, SCHEMA_VERSION, schema, version},
};

/// A table as `{token}`, its suffix, the columns that are read or written, and the privileges that this
/// takes.
pub(crate) type Wanted = (&'static str, &'static str, &'static str, &'static str);

/// What a relay and its operator need.
const TABLES: [Wanted; 7] = [
    (
        "{outbox}",
        "",
        "sequence id aggregate_type aggregate_id event_type version payload payload_binary content_type headers topic \
         created_at available_at status attempts last_error cause sent_at failed_at partition payload_bytes",
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
        "sequence id aggregate_type aggregate_id event_type version payload payload_binary content_type headers topic \
         created_at available_at status attempts last_error cause sent_at failed_at",
        "SELECT INSERT DELETE",
    ),
    ("{topics}", "_topics", "topic paused_at", "SELECT INSERT UPDATE DELETE"),
    ("{meta}", "_meta", "name value", "SELECT"),
];

/// The indexes that statements name, by table.
const INDEXES: [(&str, &str); 4] =
    [("", "pending"), ("_holds", "until"), ("_holds", "paused_at"), ("_inbox", "time")];

/// The columns that the server computes, with their expressions as [`normal`] has them.
const GENERATED: [(&str, &str); 2] = [
    ("partition", "crc32concataggregate_type,'/',aggregate_id&63"),
    ("payload_bytes", "coalescelengthpayload,0+coalescelengthpayload_binary,0"),
];

/// What the table refuses: the ends of the constraints' names, with their conditions as [`normal`] has them.
const CONSTRAINTS: [(&str, &str); 6] = [
    ("_aggregate_type_bytes", "lengthaggregate_type<=255"),
    ("_aggregate_id_bytes", "lengthaggregate_id<=255"),
    ("_event_type_bytes", "lengthevent_type<=255"),
    ("_content_type_bytes", "lengthcontent_type<=255"),
    ("_topic_bytes", "lengthtopic<=255"),
    ("_attempts", "attempts>=0"),
];

/// What tables of an older version lack, of which one finding is enough: that they are older.
const BROUGHT_BY_VERSIONS: [&str; 6] = [
    "missing-column",
    "collation",
    "column-type",
    "column-not-generated",
    "missing-constraint",
    "archive-key",
];

/// What puts tables of this version right, whose version a migration would find there.
const MEND: &str =
    "run the statements of `outbox migrate --print`, or of `migration_sql`, which put it right";

/// What `information_schema` says of a column.
struct Column {
    /// With its length, in small letters.
    column_type: String,
    collation: Option<String>,
    /// Its expression, if it is generated and stored.
    generated: Option<String>,
    auto_increment: bool,
}

impl Column {
    fn is_binary(&self) -> bool {
        ["binary", "varbinary", "longblob"].iter().any(|binary| self.column_type.starts_with(binary))
    }

    fn is_name(&self) -> bool {
        self.collation.as_deref().is_some_and(|found| NAME_COLLATIONS.contains(&found))
    }

    fn is_utf8mb4(&self) -> bool {
        self.collation.as_deref().is_some_and(|found| found.starts_with("utf8mb4_"))
    }

    fn described(&self) -> String {
        match &self.collation {
            Some(collation) => format!("{} COLLATE {collation}", self.column_type),
            None => self.column_type.clone(),
        }
    }
}

/// An expression without what the two servers write differently: quoting, brackets, the character set of a
/// literal, and one of two names of a function.
fn normal(expression: &str) -> String {
    let text = expression.to_ascii_lowercase().replace("_utf8mb4", "").replace("octet_length", "length");
    text.chars().filter(|c| !matches!(c, '`' | '(' | ')' | ' ' | '\\')).collect()
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
            if found.is_some_and(|found| found < SCHEMA_VERSION) {
                findings.retain(|finding| !BROUGHT_BY_VERSIONS.contains(&finding.code));
            }
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
        if suffix.is_empty() && !denied.contains(&"SELECT") {
            constraints((names, &table), connection, findings).await?;
        }
        if suffix == "_archive" {
            archive_key(names, connection, &table, findings).await?;
        }
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
    let sql = "SELECT LOWER(column_name), LOWER(column_type), LOWER(extra), collation_name, generation_expression \
               FROM information_schema.columns \
               WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ?";
    let query = sqlx::query(sql).bind(names.schema());
    let rows = query.bind(format!("{}{suffix}", names.prefix())).fetch_all(connection).await?;
    let mut columns = HashMap::new();
    for row in rows {
        let extra: String = row.try_get_unchecked(2)?;
        let expression: Option<String> = row.try_get_unchecked(4)?;
        let column = Column {
            column_type: row.try_get_unchecked(1)?,
            collation: row.try_get_unchecked(3)?,
            generated: expression.filter(|_| extra.contains("stored generated")),
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
    collations(table, suffix, found, findings);
    if ["", "_archive"].contains(&suffix) {
        payloads(table, found, findings);
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

/// Names whose distinct values the server would take for the same.
fn collations(table: &str, suffix: &str, found: &HashMap<String, Column>, findings: &mut Vec<Finding>) {
    let is = |name: &str, right: fn(&Column) -> bool| found.get(name).is_none_or(right);
    // Those of the inbox are bytes.
    let (wrong, remedy): (Vec<_>, _) = if suffix.starts_with("_inbox") {
        let names = ["consumer", "source", "id"].into_iter();
        (
            names.filter(|name| !is(name, Column::is_binary)).collect(),
            "make it VARBINARY(255), as the migration does",
        )
    } else {
        (NAMES.into_iter().filter(|name| !is(name, Column::is_name)).collect(), MEND)
    };
    if !wrong.is_empty() {
        let columns: Vec<_> = wrong
            .iter()
            .map(|name| format!("{name} ({})", found.get(*name).map(Column::described).unwrap_or_default()))
            .collect();
        findings.push(Finding::error(
            "collation",
            format!(
                "{table} compares {} otherwise than by their bytes, or not as text: distinct names may be taken for the \
                 same",
                columns.join(", ")
            ),
            remedy,
        ));
    }
}

/// The two columns of payloads.
fn payloads(table: &str, found: &HashMap<String, Column>, findings: &mut Vec<Finding>) {
    let is_text = |column: &Column| column.column_type == "longtext" && column.is_utf8mb4();
    for (name, wanted) in [("payload", "LONGTEXT CHARACTER SET utf8mb4"), ("payload_binary", "LONGBLOB")] {
        let Some(column) = found.get(name) else { continue };
        let is_right = if name == "payload" { is_text(column) } else { column.column_type == "longblob" };
        if !is_right {
            findings.push(Finding::error(
                "column-type",
                format!("the column {name} of {table} is {}, and not {wanted}", column.described()),
                format!("ALTER TABLE {table} MODIFY {name} {wanted}"),
            ));
        }
    }
}

/// What the table refuses: without it, a row may come in whose outcome could not be recorded.
async fn constraints(
    (names, table): (&Tables, &str),
    connection: &mut MySqlConnection,
    findings: &mut Vec<Finding>,
) -> Result<(), sqlx::Error> {
    // MariaDB shows them to a user of few privileges nowhere else.
    let sql = format!("SHOW CREATE TABLE {table}");
    let row = sqlx::query(AssertSqlSafe(sql)).persistent(false).fetch_one(connection).await?;
    let definition: String = row.try_get_unchecked(1)?;
    let enforced = definition.lines().filter(|line| !line.contains("NOT ENFORCED"));
    let clauses: HashMap<String, String> = enforced
        .filter_map(|line| {
            line.trim().trim_end_matches(',').strip_prefix("CONSTRAINT `")?.split_once("` CHECK ")
        })
        .map(|(name, clause)| (name.to_ascii_lowercase(), normal(clause)))
        .collect();
    for (end, right) in CONSTRAINTS {
        let name = format!("{}{end}", names.prefix());
        if clauses.get(&name.to_ascii_lowercase()).is_none_or(|clause| clause != right) {
            let (column, condition) = match end.strip_suffix("_bytes") {
                Some(column) => (&column[1..], format!("OCTET_LENGTH({}) <= 255", &column[1..])),
                None => ("attempts", "attempts >= 0".to_owned()),
            };
            findings.push(Finding::error(
                "missing-constraint",
                format!("{table} has no constraint {name}, so that it takes a value of {column} that cannot be recorded"),
                format!("ALTER TABLE {table} ADD CONSTRAINT `{name}` CHECK ({condition})"),
            ));
        }
    }
    Ok(())
}

/// By any other key, the archive would lose an event for another one.
async fn archive_key(
    names: &Tables,
    connection: &mut MySqlConnection,
    table: &str,
    findings: &mut Vec<Finding>,
) -> Result<(), sqlx::Error> {
    let sql = "SELECT LOWER(column_name) FROM information_schema.statistics \
               WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ? AND index_name = 'PRIMARY' \
               ORDER BY seq_in_index";
    let query = sqlx::query(sql).bind(names.schema()).bind(format!("{}_archive", names.prefix()));
    let rows = query.fetch_all(connection).await?;
    let key: Vec<String> = rows.iter().map(|row| row.try_get_unchecked(0)).collect::<Result<_, _>>()?;
    if key != ["sequence", "id"] {
        findings.push(Finding::error(
            "archive-key",
            format!(
                "the primary key of {table} is ({}): an event whose sequence comes again takes the place of another",
                key.join(", ")
            ),
            format!("ALTER TABLE {table} DROP PRIMARY KEY, ADD PRIMARY KEY (sequence, id)"),
        ));
    }
    Ok(())
}

fn main_table(table: &str, found: &HashMap<String, Column>, findings: &mut Vec<Finding>) {
    let lacks = |name: &str, has: fn(&Column) -> bool| found.get(name).is_some_and(|column| !has(column));
    for (name, right) in GENERATED {
        let problem = match found.get(name).map(|column| column.generated.as_deref()) {
            Some(Some(expression)) if normal(expression) != right => {
                format!("the column {name} of {table} is computed in another way: {expression}")
            }
            Some(None) => {
                format!(
                    "the column {name} of {table} is not generated, so that writers would have to compute it"
                )
            }
            _ => continue,
        };
        findings.push(Finding::error("column-not-generated", problem, "create the table by the migration"));
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
