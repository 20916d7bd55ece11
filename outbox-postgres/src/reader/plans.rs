//! The plans of the relay's statements, on the real server: the same on an empty, a small and a huge table,
//! whatever the statistics say.

use outbox_core::WhenSent;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _, postgres::PgPoolOptions};
use uuid::Uuid;

use super::statements::{HOLDS_HASHED_MAX, KIND_FEW_HOLDS, KIND_MANY_HOLDS, Statements};
use crate::{
    PostgresConfig, PostgresStore,
    database::{Purpose, Session},
    store::settle::sent_sql,
};

const VARIABLE: &str = "OUTBOX_TEST_POSTGRES_URL";
const TYPES_MAIN: &str = "bigint, bigint, bigint, smallint[], timestamptz, bigint[], bigint, bigint, \
     text[], text[]";
const TYPES_PROBE: &str = "oid, bigint, boolean, oid, oid, integer, smallint[], timestamptz, timestamptz";
const PARTS: &str = "(SELECT array_agg(n) FROM generate_series(0, 63) n)";

struct TestSchema {
    schema: String,
    connection: PgConnection,
    config: PostgresConfig,
    fetch: Session,
    settle: Session,
}

impl TestSchema {
    async fn new() -> Option<Self> {
        let url = outbox_conformance::testing::address("PostgreSQL", "postgres", VARIABLE)?;
        let schema = format!("outbox_plan_{}", &Uuid::now_v7().simple().to_string()[4..]);
        let mut connection = PgConnection::connect(&url).await.unwrap();
        run(&mut connection, &format!("CREATE SCHEMA {schema}; SET search_path = {schema}")).await;
        let config = PostgresConfig::builder().url(&url).schema(&schema).build().unwrap();
        let store = PostgresStore::connect_lazy(&config).await.unwrap();
        store.migrate().await.unwrap();
        let pool = PgPoolOptions::new().connect(&url).await.unwrap();
        let fetch = Session::open(&pool, Purpose::Fetch).await.unwrap();
        let settle = Session::open(&pool, Purpose::Settle).await.unwrap();
        // Statistics are the test's own.
        run(&mut connection, "ALTER TABLE outbox SET (autovacuum_enabled = off)").await;
        Some(Self { schema, connection, config, fetch, settle })
    }

    async fn insert(&mut self, rows: usize) {
        let insert = format!(
            "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload) \
             SELECT 'order', n % 1000, 'e', '' FROM generate_series(1, {rows}) n"
        );
        run(&mut self.connection, &insert).await;
    }

    async fn drop(mut self) {
        run(&mut self.connection, &format!("DROP SCHEMA {} CASCADE", self.schema)).await;
    }
}

async fn run(connection: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.unwrap();
}

/// The plan of a statement that the session has prepared before, as the relay has.
async fn plan(session: &mut Session, name: &str, arguments: &str) -> String {
    // An argument of EXECUTE may not be a sub-select.
    let parts: Vec<String> = (0..64).map(|partition: u8| partition.to_string()).collect();
    let arguments = arguments.replace(PARTS, &format!("'{{{}}}'", parts.join(",")));
    let sql = format!("EXPLAIN (COSTS OFF) EXECUTE {name}({arguments})");
    let rows = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(&mut session.connection).await.unwrap();
    rows.iter().map(|row| row.get::<String, _>(0) + "\n").collect()
}

/// The statements with their types, as they are prepared.
async fn prepare(schema: &mut TestSchema) {
    let sql = Statements::new(&schema.config.tables);
    let pass = "bigint, bigint, text[], text[], timestamptz, bigint[], smallint[], bigint";
    for (name, types, text) in [
        ("probe", TYPES_PROBE.to_owned(), &sql.probe),
        ("main", TYPES_MAIN.to_owned(), &sql.main),
        ("main_held", TYPES_MAIN.to_owned(), &sql.main_held),
        ("pass_leases", pass.to_owned(), &sql.pass_leases),
        ("pass_keys", pass.to_owned(), &sql.pass_keys),
        ("due", "timestamptz, bigint, timestamptz, smallint[], bigint, bigint".to_owned(), &sql.due),
        ("due_rows", "bigint[], smallint[]".to_owned(), &sql.due_rows),
        ("hold_rows", "bigint[], timestamptz".to_owned(), &sql.hold_rows),
        ("payloads", "bigint[]".to_owned(), &sql.payloads),
    ] {
        run(&mut schema.fetch.connection, &format!("PREPARE {name} ({types}) AS {text}")).await;
    }
    for (name, when) in
        [("keep", WhenSent::Keep), ("remove", WhenSent::Delete), ("archive", WhenSent::Archive)]
    {
        let text = schema.config.tables.text(&sent_sql(when));
        let types = "smallint[], bigint[], uuid, bigint[], integer";
        run(&mut schema.settle.connection, &format!("PREPARE {name} ({types}) AS {text}")).await;
    }
}

async fn check_plans(schema: &mut TestSchema, when: &str) {
    let known = "'{1,2,3}'";
    let main = format!("0, 10, 200000, {PARTS}, now(), {known}, 1000, 1000, '{{a}}', '{{b}}'");
    let pass = format!("0, 20000, '{{a}}', '{{b}}', now(), {known}, {PARTS}, 1000");
    let cases = [
        ("probe", format!("1, 0, true, 1, 1, 0, {PARTS}, now(), now()"), false),
        ("main", main.clone(), true),
        ("main_held", main, true),
        ("pass_leases", pass.clone(), true),
        ("pass_keys", pass, true),
        ("due", format!("now(), 0, now(), {PARTS}, 100, 1000"), false),
        ("due_rows", format!("{known}, {PARTS}"), false),
        ("hold_rows", format!("{known}, now()"), false),
        ("payloads", known.to_owned(), false),
    ];
    for (name, arguments, streams) in cases {
        let plan = plan(&mut schema.fetch, name, &arguments).await;
        let context = format!("{name} on a table that is {when}:\n{plan}");
        assert!(!plan.contains("Seq Scan on outbox") && !plan.contains("Bitmap"), "{context}");
        let index = match name {
            "due" | "probe" => "using outbox_scheduled_idx on outbox",
            _ => "using outbox_pkey on outbox",
        };
        assert!(plan.contains(index), "{context}");
        if streams {
            // Whatever sorts or joins would read the whole backlog before the limit.
            assert!(!plan.contains("Sort") && !plan.contains("Join") && !plan.contains("Hash "), "{context}");
            assert!(plan.contains("Index Cond: ((sequence > $1) AND (sequence <= $2))"), "{context}");
        }
        if name == "main" {
            // Holds are hashed, and not gone through for each row.
            assert!(plan.contains("(NOT (hashed SubPlan") && !plan.contains("(NOT (SubPlan"), "{context}");
        }
    }
    for name in ["keep", "remove", "archive"] {
        let lease = "'{1}', '{1}', gen_random_uuid()";
        let plan = plan(&mut schema.settle, name, &format!("{lease}, {known}, 1")).await;
        let context = format!("{name} on a table that is {when}:\n{plan}");
        assert!(!plan.contains("Seq Scan on outbox"), "{context}");
        assert!(plan.contains("Index Cond: (sequence = ANY ($4))"), "{context}");
    }
}

#[tokio::test]
async fn plans_are_index_scans_whatever_the_statistics_say() {
    let Some(mut schema) = TestSchema::new().await else { return };
    prepare(&mut schema).await;
    check_plans(&mut schema, "empty and unknown").await;
    run(&mut schema.connection, "ANALYZE outbox").await;
    check_plans(&mut schema, "empty").await;
    schema.insert(100).await;
    check_plans(&mut schema, "small, and empty by its statistics").await;
    run(&mut schema.connection, "ANALYZE outbox").await;
    check_plans(&mut schema, "small").await;
    schema.insert(200_000).await;
    check_plans(&mut schema, "huge, and small by its statistics").await;
    run(&mut schema.connection, "ANALYZE outbox; ANALYZE outbox_holds; ANALYZE outbox_partitions").await;
    check_plans(&mut schema, "huge").await;
    // Prepared afresh, as by a relay that starts now.
    run(&mut schema.fetch.connection, "DEALLOCATE ALL").await;
    run(&mut schema.settle.connection, "DEALLOCATE ALL").await;
    prepare(&mut schema).await;
    check_plans(&mut schema, "huge from the start").await;
    let holds = "INSERT INTO outbox_holds (partition, aggregate_type, aggregate_id, reason) \
                 SELECT n % 64, 'order', 'held ' || n, 'backoff' FROM generate_series(1, 200000) n";
    run(&mut schema.connection, &format!("{holds}; ANALYZE outbox_holds")).await;
    check_plans(&mut schema, "huge, and so are the holds").await;
    run(&mut schema.connection, "DELETE FROM outbox; ANALYZE outbox").await;
    check_plans(&mut schema, "empty again").await;
    schema.drop().await;
}

#[tokio::test]
async fn the_partition_of_an_aggregate_is_the_one_of_its_rows() {
    let Some(mut schema) = TestSchema::new().await else { return };
    let insert = "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload) \
                  SELECT chr(64 + n % 60), repeat(chr(945 + n % 7), n), 'e', '' FROM generate_series(1, 100) n";
    run(&mut schema.connection, insert).await;
    let rows: Vec<(i16, String, String)> =
        sqlx::query_as("SELECT partition, aggregate_type, aggregate_id FROM outbox ORDER BY sequence")
            .fetch_all(&mut schema.connection)
            .await
            .unwrap();
    let types: Vec<&str> = rows.iter().map(|(_, kind, _)| &**kind).collect();
    let ids: Vec<&str> = rows.iter().map(|(.., id)| &**id).collect();
    let sql = Statements::new(&schema.config.tables).parts;
    let parts: Vec<i16> = sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(types)
        .bind(ids)
        .fetch_all(&mut schema.connection)
        .await
        .unwrap();
    assert_eq!(parts, rows.iter().map(|(partition, ..)| *partition).collect::<Vec<_>>());
    schema.drop().await;
}

#[tokio::test]
async fn the_statement_for_few_holds_returns_nothing_where_there_are_many() {
    let Some(mut schema) = TestSchema::new().await else { return };
    prepare(&mut schema).await;
    schema.insert(10).await;
    let parts: Vec<String> = (0..64).map(|partition: u8| partition.to_string()).collect();
    let parts = parts.join(",");
    let main =
        format!("EXECUTE main(0, 5, 10, '{{{parts}}}', now(), '{{}}', 100, 100, '{{order}}', '{{7}}')");
    let mut kinds = Vec::new();
    for holds in [
        "SELECT 1, '', '', '' WHERE false".to_owned(),
        "SELECT partition, aggregate_type, aggregate_id, 'paused' FROM outbox WHERE sequence < 4".to_owned(),
        format!("SELECT n % 64, 'a', n::text, 'paused' FROM generate_series(4, {HOLDS_HASHED_MAX}) n"),
        "SELECT 9, 'a', 'one more', 'paused'".to_owned(),
    ] {
        let insert = "INSERT INTO outbox_holds (partition, aggregate_type, aggregate_id, reason)";
        run(&mut schema.connection, &format!("{insert} {holds}")).await;
        let rows =
            sqlx::raw_sql(AssertSqlSafe(main.clone())).fetch_all(&mut schema.fetch.connection).await.unwrap();
        kinds.push((rows.len(), rows[0].get::<i32, _>(super::COLUMN_COUNT)));
    }
    // A row that says which; of ten rows one is read by key, and then three more are held.
    let few = KIND_FEW_HOLDS;
    assert_eq!(kinds, [(10, few), (7, few), (7, few), (1, KIND_MANY_HOLDS)]);
    schema.drop().await;
}
