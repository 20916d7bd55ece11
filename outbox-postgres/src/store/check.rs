//! What would break a guarantee, and what costs throughput: looked for at start, named all at once. Changes
//! nothing.

mod tables;

use outbox_core::{Finding, StoreError, StoreErrorKind};
use sqlx::{
    ConnectOptions as _, Connection as _, PgConnection, Row as _,
    postgres::{PgRow, types::Oid},
};

use crate::{
    config::CONNECT_TIMEOUT,
    database::Database,
    error::{classify, within},
    schema::MIGRATE,
};

/// The oldest release with generated columns.
const SERVER_VERSION_MIN: i32 = 120_000;

/// The expression of the column `partition`, as the server writes it.
const PARTITION: &str = "((get_byte(decode(md5(((aggregate_type || '/'::text) || aggregate_id)), 'hex'::text), 0) & 63))::smallint";

pub(super) async fn check(database: &Database) -> Result<Vec<Finding>, StoreError> {
    // Directly and not by the pool, which would try again and again before it says what is wrong.
    let mut direct =
        match tokio::time::timeout(CONNECT_TIMEOUT, database.pool.connect_options().connect()).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return Ok(vec![unreachable(database, &error)]),
            Err(_) => return Ok(vec![unreachable(database, &sqlx::Error::PoolTimedOut)]),
        };
    let mut findings = Vec::new();
    let what = "check the outbox";
    let mut pooled = match database.pool.acquire().await {
        Ok(connection) => connection,
        Err(error) => return Ok(vec![few_connections(&error)]),
    };
    within(what, server(&mut direct, &mut findings)).await?;
    within(what, pooler(database, (&mut pooled, &mut direct), &mut findings)).await?;
    let complete = within(what, tables::inspect(database, &mut direct, &mut findings)).await?;
    if complete {
        within(what, main_table(database, &mut direct, &mut findings)).await?;
        within(what, rows(database, &mut direct, &mut findings)).await?;
    }
    within(what, direct.close()).await?;
    Ok(findings)
}

fn few_connections(error: &sqlx::Error) -> Finding {
    Finding::error(
        "connections",
        format!("the pool gives no connection while another one is open: {error}"),
        "a relay needs two connections beside its pool: raise the limit of the role, the pool or the server",
    )
}

fn unreachable(database: &Database, error: &sqlx::Error) -> Finding {
    let options = database.pool.connect_options();
    let place = format!(
        "PostgreSQL at {}:{}, database {:?}, user {:?}",
        options.get_host(),
        options.get_port(),
        options.get_database().unwrap_or(options.get_username()),
        options.get_username()
    );
    let code = error.as_database_error().and_then(|e| e.code()).map(|code| code.into_owned());
    match (classify(error), code.as_deref()) {
        (_, Some("3D000")) => Finding::error(
            "missing-database",
            format!("{place}: {error}"),
            "create the database, or correct the url",
        ),
        (StoreErrorKind::Denied, _) => Finding::error(
            "denied",
            format!("{place}: {error}"),
            "correct the user and the password of the url",
        ),
        _ => Finding::error(
            "unreachable",
            format!("{place}: {error}"),
            "start the server, open the way to it, or correct the url",
        ),
    }
}

async fn server(connection: &mut PgConnection, findings: &mut Vec<Finding>) -> Result<(), sqlx::Error> {
    let sql = "SELECT current_setting('server_version_num')::integer AS version, pg_is_in_recovery() AS replica, \
               current_setting('server_encoding') AS encoding, current_setting('synchronous_commit') AS durable";
    let row = sqlx::query(sql).persistent(false).fetch_one(connection).await?;
    let (version, encoding): (i32, String) = (row.try_get("version")?, row.try_get("encoding")?);
    if version < SERVER_VERSION_MIN {
        findings.push(Finding::error(
            "server-too-old",
            format!("the server is PostgreSQL {}", version / 10_000),
            "upgrade it to 12 or newer, the first release with generated columns",
        ));
    }
    if row.try_get("replica")? {
        findings.push(Finding::error(
            "read-replica",
            "the server is a replica, which only reads",
            "connect to the primary, by `target_session_attrs=read-write` or its own name",
        ));
    }
    if encoding != "UTF8" {
        findings.push(Finding::error(
            "encoding",
            format!("the database is encoded in {encoding}, so that partitions and texts depend on it"),
            "create the database with ENCODING 'UTF8'",
        ));
    }
    if row.try_get::<String, _>("durable")? == "off" {
        findings.push(Finding::warning(
            "synchronous-commit",
            "synchronous_commit is off: a crash of the server can undo an event together with the change it tells \
             of, after it was published",
            "set it to on, at least for those who write events",
        ));
    }
    Ok(())
}

async fn main_table(
    database: &Database,
    connection: &mut PgConnection,
    findings: &mut Vec<Finding>,
) -> Result<(), sqlx::Error> {
    let table = database.tables().outbox();
    let sql = "SELECT c.reltuples < 0 AND c.relpages > 0 AS unknown, \
                 coalesce((SELECT option_value::integer FROM pg_options_to_table(c.reloptions) \
                   WHERE option_name = 'fillfactor'), 100) AS fillfactor, \
                 (SELECT pg_get_expr(d.adbin, d.adrelid) FROM pg_attribute a \
                   JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum \
                   WHERE a.attrelid = c.oid AND a.attname = 'partition' AND a.attgenerated = 's') AS expression, \
                 ARRAY(SELECT i.indexrelid::regclass::text FROM pg_index i WHERE i.indrelid = c.oid AND EXISTS ( \
                   SELECT 1 FROM pg_depend d JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = d.refobjsubid \
                   WHERE d.objid = i.indexrelid AND d.refobjid = c.oid AND a.attname = 'status')) AS indexes \
               FROM pg_class c WHERE c.oid = $1::regclass";
    let row = sqlx::query(sql).bind(table).persistent(false).fetch_one(&mut *connection).await?;
    match row.try_get::<Option<String>, _>("expression")?.as_deref() {
        Some(PARTITION) => {}
        Some(other) => findings.push(Finding::error(
            "partition-expression",
            format!(
                "the column partition of {table} is computed as {other}, which is not what operators and holds take"
            ),
            "create the table by the migration",
        )),
        None => findings.push(Finding::error(
            "partition-not-generated",
            format!("the column partition of {table} is not generated, so that writers would have to compute it"),
            "create the table by the migration",
        )),
    }
    layout(database, &row, findings)?;
    let sql = "SELECT s.seqcache, s.seqincrement, \
                 EXISTS (SELECT 1 FROM pg_attribute a WHERE a.attrelid = $1::regclass AND a.attname = 'sequence' \
                   AND a.attidentity = 'a') AS always, \
                 has_sequence_privilege(s.seqrelid, 'SELECT, USAGE') AS readable, s.seqrelid::regclass::text AS name \
               FROM pg_sequence s WHERE s.seqrelid = pg_get_serial_sequence($1, 'sequence')::regclass";
    let row = sqlx::query(sql).bind(table).persistent(false).fetch_optional(&mut *connection).await?;
    let Some(row) = row else {
        findings.push(Finding::error(
            "sequence",
            format!("the column sequence of {table} is not an identity"),
            "create the table by the migration",
        ));
        return Ok(());
    };
    let (cache, increment): (i64, i64) = (row.try_get("seqcache")?, row.try_get("seqincrement")?);
    let name: String = row.try_get("name")?;
    if cache > 1 || increment < 1 {
        findings.push(Finding::error(
            "sequence-cache",
            format!(
                "{name} has CACHE {cache} and INCREMENT {increment}, which gives later events lower numbers"
            ),
            format!("ALTER SEQUENCE {name} CACHE 1 INCREMENT 1, and restart the writers' connections"),
        ));
    }
    if !row.try_get("always")? {
        findings.push(Finding::warning(
            "sequence-by-default",
            format!("{table} takes a sequence from a writer that gives one, and it may be read already"),
            format!("ALTER TABLE {table} ALTER COLUMN sequence SET GENERATED ALWAYS"),
        ));
    }
    if !row.try_get("readable")? {
        findings.push(Finding::error(
            "privilege",
            format!("the role of the relay may not read {name}"),
            format!("GRANT SELECT ON SEQUENCE {name} TO its role"),
        ));
    }
    Ok(())
}

fn layout(database: &Database, row: &PgRow, findings: &mut Vec<Finding>) -> Result<(), sqlx::Error> {
    let table = database.tables().outbox();
    let (wanted, found) = (database.config.sent_rows.fillfactor(), row.try_get::<i32, _>("fillfactor")?);
    // Between 45 and 70 the updates stay on their pages; measured, at 70 and above they do not always.
    if (wanted < 70) != (found < 70) {
        findings.push(Finding::warning(
            "fillfactor",
            format!(
                "{table} has fillfactor {found}, made for sent rows that {}, and here they are {:?}",
                if found < 70 { "are kept" } else { "are deleted" },
                database.config.sent_rows
            ),
            format!("ALTER TABLE {table} SET (fillfactor = {wanted}); it holds for pages that are filled from then on"),
        ));
    }
    let indexes: Vec<String> = row.try_get("indexes")?;
    if !indexes.is_empty() {
        findings.push(Finding::warning(
            "index-on-status",
            format!("{} names status, so that each settle has to touch every index", indexes.join(", ")),
            "drop it: the relay finds its rows by their sequence",
        ));
    }
    if row.try_get("unknown")? {
        findings.push(Finding::warning(
            "statistics",
            format!(
                "{table} was never analysed; the relay's own statements do not mind, lists and counts do"
            ),
            format!("ANALYZE {table}, and leave autovacuum on"),
        ));
    }
    Ok(())
}

/// What stands in the tables.
async fn rows(
    database: &Database,
    connection: &mut PgConnection,
    findings: &mut Vec<Finding>,
) -> Result<(), sqlx::Error> {
    let sql = database.tables().sql(
        "SELECT (SELECT count(*) FROM {partitions} WHERE partition BETWEEN 0 AND 63) AS partitions, \
                (SELECT coalesce(max(floor), 0) FROM {partitions}) AS floor",
    );
    let row = sqlx::query(sql).persistent(false).fetch_one(&mut *connection).await?;
    let (partitions, floor): (i64, i64) = (row.try_get("partitions")?, row.try_get("floor")?);
    if partitions != 64 {
        findings.push(Finding::error(
            "missing-partitions",
            format!("{} has {partitions} of its 64 rows", database.tables().text("{partitions}")),
            MIGRATE,
        ));
    }
    let sql = "SELECT coalesce(pg_sequence_last_value(s.seqrelid), 0) FROM pg_sequence s \
               WHERE s.seqrelid = pg_get_serial_sequence($1, 'sequence')::regclass \
                 AND has_sequence_privilege(s.seqrelid, 'SELECT, USAGE')";
    let drawn: Option<i64> = sqlx::query_scalar(sql)
        .bind(database.tables().outbox())
        .persistent(false)
        .fetch_optional(&mut *connection)
        .await?;
    if let Some(drawn) = drawn.filter(|drawn| *drawn < floor) {
        findings.push(Finding::error(
            "sequence-reset",
            format!(
                "the sequence of {} stands at {drawn}, but was read up to {floor} already: new events would not be \
                 found",
                database.tables().outbox()
            ),
            "set the sequence above the highest number ever used, or, with no relay running, every floor to 0",
        ));
    }
    Ok(())
}

/// A connection of the pool and one beside it: what must be different between them, and what must not.
async fn pooler(
    database: &Database,
    (pooled, direct): (&mut PgConnection, &mut PgConnection),
    findings: &mut Vec<Finding>,
) -> Result<(), sqlx::Error> {
    let mut seen: Vec<(i32, Option<Oid>)> = Vec::new();
    for connection in [pooled, direct] {
        let query = sqlx::query_as("SELECT pg_backend_pid(), to_regclass($1)::oid");
        seen.push(query.bind(database.tables().outbox()).persistent(false).fetch_one(connection).await?);
    }
    let ((pooled_pid, pooled_table), (direct_pid, direct_table)) = (seen[0], seen[1]);
    if pooled_pid == direct_pid {
        findings.push(Finding::error(
            "pooler",
            "two open connections share one server process: there is a pooler in transaction mode between",
            "connect the relay to PostgreSQL directly, or by a pool in session mode; writers may keep the pooler",
        ));
    }
    if pooled_table != direct_table {
        findings.push(Finding::error(
            "search-path",
            format!("{} is another table for the pool than for a connection beside it", database.tables().outbox()),
            "name the schema in the configuration, or set the search_path in the options of the pool instead of \
             on its connections",
        ));
    }
    Ok(())
}
