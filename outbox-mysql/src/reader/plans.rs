//! The plans of the relay's statements, on real servers: the same on an empty, a small and a large table,
//! with statistics or without.

use outbox_core::WhenSent;
use sqlx::{AssertSqlSafe, Connection as _, MySqlConnection, Row as _, mysql::MySqlArguments, query::Query};
use uuid::Uuid;

use super::Statements;
use crate::{
    MysqlConfig, MysqlStore,
    store::{holds::read_sql, settle::sent_sql},
};

struct TestDatabase {
    schema: String,
    connection: MySqlConnection,
    config: MysqlConfig,
}

/// One table of a plan: its alias, the index by which it is read, and how many bytes of that are compared.
type Step = (String, Option<String>, Option<String>);

/// All of the key of holds: a partition, and two names of 255 characters with their lengths.
const HOLD_KEY_BYTES: &str = "2045";

impl TestDatabase {
    async fn new(variable: &str, name: &str) -> Option<Self> {
        let url = outbox_conformance::testing::address(name, &name.to_lowercase(), variable)?;
        let schema = format!("outbox_plan_{}", &Uuid::now_v7().simple().to_string()[4..]);
        let mut connection = MySqlConnection::connect(&url).await.unwrap();
        run(&mut connection, &format!("CREATE DATABASE {schema}; USE {schema}")).await;
        let config = MysqlConfig::builder().url(&url).schema(&schema).build().unwrap();
        MysqlStore::connect_lazy(&config).await.unwrap().migrate().await.unwrap();
        Some(Self { schema, connection, config })
    }

    async fn drop(mut self) {
        run(&mut self.connection, &format!("DROP DATABASE {}", self.schema)).await;
    }

    async fn plan(
        &mut self,
        sql: &str,
        bind: impl for<'q> Fn(Query<'q, sqlx::MySql, MySqlArguments>) -> Query<'q, sqlx::MySql, MySqlArguments>,
    ) -> (Vec<Step>, String) {
        let explain = format!("EXPLAIN FORMAT = TRADITIONAL {}", self.config.tables.text(sql));
        let explain = match self.is_mariadb().await {
            true => explain.replace("FORMAT = TRADITIONAL ", ""),
            false => explain,
        };
        let query = bind(sqlx::query(AssertSqlSafe(explain))).persistent(false);
        let rows = query.fetch_all(&mut self.connection).await.unwrap();
        let text = |row: &sqlx::mysql::MySqlRow, name: &str| {
            row.get_unchecked::<Option<Vec<u8>>, _>(name).map(|text| String::from_utf8(text).unwrap())
        };
        let steps =
            rows.iter().filter_map(|row| Some((text(row, "table")?, text(row, "key"), text(row, "key_len"))));
        let extras: Vec<String> =
            rows.iter().map(|row| format!("{:?}: {:?}\n", text(row, "table"), text(row, "Extra"))).collect();
        (steps.collect(), extras.concat())
    }

    async fn is_mariadb(&mut self) -> bool {
        let version: String =
            sqlx::query_scalar("SELECT VERSION()").fetch_one(&mut self.connection).await.unwrap();
        version.contains("MariaDB")
    }
}

async fn run(connection: &mut MySqlConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.unwrap();
}

fn has(steps: &[Step], table: &str, index: &str) -> bool {
    steps.iter().any(|(t, key, _)| t == table && key.as_deref() == Some(index))
}

/// A name is compared by the collation of its column, else the index ends before it.
fn has_whole_hold_key(steps: &[Step]) -> bool {
    steps.iter().any(|(t, key, bytes)| {
        t == "h" && key.as_deref() == Some("PRIMARY") && bytes.as_deref() == Some(HOLD_KEY_BYTES)
    })
}

async fn check(test: &mut TestDatabase, rows: usize) {
    let statements = Statements::new(&test.config.tables);
    let (steps, extras) = test
        .plan(&statements.scan, |query| {
            query
                .bind(u64::MAX)
                .bind(1_i64)
                .bind(&[0_u8, 1][..])
                .bind(1_i64)
                .bind(1_i64)
                .bind(2_000_u64)
                .bind(1_i64 << 24)
        })
        .await;
    assert!(has(&steps, "o", "pending"), "{rows} rows: {steps:?}");
    assert!(has(&steps, "o", "PRIMARY"), "{rows} rows: {steps:?}");
    assert!(has_whole_hold_key(&steps), "{rows} rows: {steps:?}");
    // The limit stops a scan in the order of the index; sorted is only what the limit has let through.
    let scan = extras.lines().find(|line| line.contains("\"o\"") && line.contains("Using index")).unwrap();
    assert!(!scan.contains("filesort"), "{rows} rows: {extras}");

    let keys = r#"[[1,"order","\u00e4"],[2,"order","2"]]"#;
    let (steps, extras) = test.plan(&read_sql(), |query| query.bind(keys)).await;
    assert!(has_whole_hold_key(&steps), "{rows} rows: {steps:?} {extras}");

    for when_sent in [WhenSent::Keep, WhenSent::Delete] {
        let relay = Uuid::now_v7();
        let (steps, extras) = test
            .plan(&sent_sql(when_sent), |query| {
                let query = query.bind(0_i64).bind("[[1,1,[1]],[2,1,[2]]]").bind(relay);
                if when_sent == WhenSent::Keep { query.bind(1_i32) } else { query }
            })
            .await;
        for (table, index) in [("p", "PRIMARY"), ("o", "PRIMARY"), ("h", "sequence")] {
            assert!(has(&steps, table, index), "{rows} rows, {when_sent:?}: {table} in {steps:?} {extras}");
        }
    }
}

async fn the_plans_are_right_on_every_table(variable: &str, name: &str) {
    let Some(mut test) = TestDatabase::new(variable, name).await else { return };
    let mut rows = 0;
    check(&mut test, rows).await;
    for more in [50, 20_000] {
        rows += more;
        let insert = "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload) VALUES ";
        for _ in 0..more / 50 {
            let values: Vec<String> = (0..50).map(|n| format!("('order', '{n}', 'e', '')")).collect();
            run(&mut test.connection, &format!("{insert}{}", values.join(", "))).await;
        }
        check(&mut test, rows).await;
        run(&mut test.connection, "ANALYZE TABLE outbox, outbox_holds, outbox_partitions").await;
        check(&mut test, rows).await;
    }
    run(&mut test.connection, "UPDATE outbox SET status = 1 WHERE sequence > 50; ANALYZE TABLE outbox").await;
    check(&mut test, rows).await;
    test.drop().await;
}

#[tokio::test]
async fn the_plans_are_right_on_mysql() {
    the_plans_are_right_on_every_table("OUTBOX_TEST_MYSQL_URL", "MySQL").await;
}

#[tokio::test]
async fn the_plans_are_right_on_mariadb() {
    the_plans_are_right_on_every_table("OUTBOX_TEST_MARIADB_URL", "MariaDB").await;
}
