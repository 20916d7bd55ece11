//! MySQL and MariaDB, in databases of one server.

use sqlx::{AssertSqlSafe, Connection, MySqlConnection};
use tokio::runtime::Runtime;

use crate::{Databases, address, new_names};

struct Schemas<const MARIADB: bool> {
    url: String,
    names: Vec<String>,
    runtime: Runtime,
}

impl<const MARIADB: bool> Schemas<MARIADB> {
    fn run(&self, sql: &str) {
        self.runtime.block_on(async {
            let mut connection = MySqlConnection::connect(&self.url).await.unwrap();
            sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.unwrap();
            connection.close().await.unwrap();
        });
    }
}

impl<const MARIADB: bool> Databases for Schemas<MARIADB> {
    fn new(count: usize) -> Option<Self> {
        let (name, service) = if MARIADB { ("MariaDB", "mariadb") } else { ("MySQL", "mysql") };
        let url = address(name, service)?;
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
             WITH RECURSIVE numbers AS (SELECT {from} AS n UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < {to})
             SELECT 'order', n % 3, 'order.placed', CONCAT('{{\"n\": ', n, '}}') FROM numbers ORDER BY n",
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
        let name = &self.names[index];
        self.run(&format!("RENAME TABLE {name}.outbox_holds TO {name}.away"));
    }

    fn mend_it(&self, index: usize) {
        let name = &self.names[index];
        self.run(&format!("RENAME TABLE {name}.away TO {name}.outbox_holds"));
    }

    fn make_newer(&self, index: usize) {
        let meta = format!("{}.outbox_meta", self.names[index]);
        self.run(&format!("UPDATE {meta} SET value = 9 WHERE name = 'schema_version'"));
    }
}

impl<const MARIADB: bool> Drop for Schemas<MARIADB> {
    fn drop(&mut self) {
        for name in self.names.clone() {
            self.run(&format!("DROP DATABASE IF EXISTS {name}"));
        }
    }
}

mod on_mysql {
    tell_stories!(super::Schemas<false>);
}

mod on_mariadb {
    tell_stories!(super::Schemas<true>);
}
