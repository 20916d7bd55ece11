//! PostgreSQL, in schemas of one database.

use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::runtime::Runtime;

use crate::{Databases, address, new_names};

struct Schemas {
    url: String,
    names: Vec<String>,
    runtime: Runtime,
}

impl Schemas {
    fn run(&self, sql: &str) {
        self.runtime.block_on(async {
            let mut connection = PgConnection::connect(&self.url).await.unwrap();
            sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.unwrap();
            connection.close().await.unwrap();
        });
    }
}

impl Databases for Schemas {
    fn new(count: usize) -> Option<Self> {
        let url = address("PostgreSQL", "postgres")?;
        Some(Self { url, names: new_names(count), runtime: Runtime::new().unwrap() })
    }

    fn url(&self) -> &str {
        &self.url
    }

    fn names(&self) -> &[String] {
        &self.names
    }

    fn insert(&self, index: usize, from: u64, to: u64) {
        self.run(&format!(
            "INSERT INTO {}.outbox (aggregate_type, aggregate_id, event_type, payload)
             SELECT 'order', (n % 3)::text, 'order.placed', '{{\"n\": ' || n || '}}'
             FROM generate_series({from}, {to} - 1) n ORDER BY n",
            self.names[index]
        ));
    }

    fn insert_nonsense(&self, index: usize) {
        self.run(&format!(
            "INSERT INTO {}.outbox (aggregate_type, aggregate_id, event_type, payload, headers)
             VALUES ('order', '1', 'order.placed', '{{}}', '[]')",
            self.names[index]
        ));
    }

    fn break_it(&self, index: usize) {
        self.run(&format!("ALTER TABLE {}.outbox_holds RENAME TO away", self.names[index]));
    }

    fn mend_it(&self, index: usize) {
        self.run(&format!("ALTER TABLE {}.away RENAME TO outbox_holds", self.names[index]));
    }

    fn make_newer(&self, index: usize) {
        let meta = format!("{}.outbox_meta", self.names[index]);
        self.run(&format!("UPDATE {meta} SET value = 9 WHERE key = 'schema_version'"));
    }
}

impl Drop for Schemas {
    fn drop(&mut self) {
        for name in self.names.clone() {
            self.run(&format!("DROP SCHEMA IF EXISTS {name} CASCADE"));
        }
    }
}

tell_stories!(Schemas);
