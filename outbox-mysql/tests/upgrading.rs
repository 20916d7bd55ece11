//! From every released version of the tables to the newest, with data in them.
#![allow(clippy::unwrap_used, reason = "the helpers of a test, which clippy does not take for tests")]

mod support;

use outbox_conformance::testing::{Written, expect_upgraded};
use outbox_core::{
    EventFilter, OutboxAdmin as _, OutboxStore as _,
    store::{FailureCause, Status},
};
use outbox_mysql::{MysqlStore, migration_sql};
use sqlx::Row as _;
use support::{Place, Server, execute, on_both, request};

on_both! {
    every_released_version_is_migrated_with_its_data
    the_newest_version_is_what_its_file_says
    what_the_new_version_refuses_goes_to_the_archive
    programs_of_version_1_are_refused_or_right
    an_older_version_is_told_which_migration_is_missing_and_a_newer_one_is_kept
    two_processes_may_migrate_at_once
}

/// What each version left behind, the first one first. A version that is released gets its file, which stays.
const VERSIONS: [&str; 2] = [include_str!("fixtures/schema_1.sql"), include_str!("fixtures/schema_2.sql")];

const WRITTEN: Written = Written { created_micros: 1_760_000_000_000_001, number: std::convert::identity };

async fn used(server: Server, version: usize) -> Option<Place> {
    let place = Place::empty(server).await?;
    place.run(VERSIONS[version]).await;
    Some(place)
}

/// Every column, index, table and check, as the server describes it.
async fn schema(place: &Place) -> Vec<String> {
    let sql = "SELECT CONCAT_WS(' ', table_name, column_name, ordinal_position, column_type, is_nullable, column_default, \
                 extra, generation_expression, collation_name) AS line \
               FROM information_schema.columns WHERE table_schema = DATABASE() \
               UNION ALL SELECT CONCAT_WS(' ', table_name, index_name, non_unique, seq_in_index, column_name, sub_part) \
               FROM information_schema.statistics WHERE table_schema = DATABASE() \
               UNION ALL SELECT CONCAT_WS(' ', table_name, engine, row_format, table_collation) \
               FROM information_schema.tables WHERE table_schema = DATABASE() \
               UNION ALL SELECT CONCAT_WS(' ', constraint_name, check_clause) \
               FROM information_schema.check_constraints WHERE constraint_schema = DATABASE() ORDER BY line";
    sqlx::query_scalar(sql).fetch_all(&place.pool).await.unwrap()
}

async fn version(place: &Place) -> usize {
    let sql = "SELECT value FROM outbox_meta WHERE name = 'schema_version'";
    usize::try_from(place.number(sql).await).unwrap()
}

async fn every_released_version_is_migrated_with_its_data(server: Server) {
    for (index, _) in VERSIONS.iter().enumerate() {
        let Some(place) = used(server, index).await else { return };
        let codes: Vec<_> = place.store.check().await.unwrap().iter().map(|finding| finding.code).collect();
        let expected: &[&str] = if index + 1 < VERSIONS.len() { &["schema-older"] } else { &[] };
        assert_eq!(codes, expected, "of version {}", index + 1);
        let fresh = Place::new(server).await.unwrap();
        assert_eq!(version(&fresh).await, VERSIONS.len(), "every version has its file");
        // The second time there is nothing to do.
        for _ in 0..2 {
            place.store.migrate().await.unwrap();
        }
        assert_eq!(schema(&place).await, schema(&fresh).await, "from version {}", index + 1);
        assert_eq!(place.store.check().await.unwrap(), []);
        expect_upgraded(&place.store, WRITTEN).await;
        fresh.drop().await;
        place.drop().await;
    }
}

/// What version 1 takes and version 2 does not, beside names that only bytes keep apart. The partition of
/// each row is read before the upgrade and after it.
const REFUSED: &str = "SET @mode = @@sql_mode, sql_mode = 'NO_AUTO_VALUE_ON_ZERO'; \
    INSERT INTO outbox (sequence, id, aggregate_type, aggregate_id, event_type, payload, topic, content_type, status, \
                        attempts, last_error, cause, failed_at, headers) VALUES \
      (20, UUID(), 'order', X'61FF', 'e', '20', NULL, NULL, 0, 1, 'Busy', NULL, NULL, '{\"a\": \"b\"}'), \
      (21, UUID(), 'order', 'late', 'e', X'FF', X'C3', NULL, 0, 0, NULL, NULL, NULL, NULL), \
      (22, UUID(), 'order', 'late', 'e', '22', NULL, NULL, 0, 0, NULL, NULL, NULL, NULL), \
      (23, UUID(), 'order', 'm', X'FE', '23', NULL, NULL, 1, 1, NULL, NULL, NULL, NULL), \
      (24, UUID(), 'order', 'n', 'e', '24', NULL, X'80', 2, -1, 'no', 'permanent', '2025-10-09 08:53:23', NULL), \
      (30, UUID(), 'Order', X'C3A4', 'e', '30', NULL, NULL, 1, 1, NULL, NULL, NULL, NULL), \
      (31, UUID(), 'order', X'61CC88', 'e', '31', NULL, NULL, 1, 1, NULL, NULL, NULL, NULL), \
      (32, UUID(), 'order', 'a ', 'e', '32', NULL, NULL, 1, 1, NULL, NULL, NULL, NULL), \
      (33, UUID(), 'order', X'F09FA680', '', '33', '', '', 1, 1, NULL, NULL, NULL, NULL), \
      (-3, UUID(), 'order', 'below', 'e', '34', NULL, NULL, 1, 1, NULL, NULL, NULL, NULL), \
      (0, UUID(), 'order', 'zero', 'e', '35', NULL, NULL, 1, 1, NULL, NULL, NULL, NULL); \
    UPDATE outbox SET id = UNHEX(REPLACE(UUID(), '-', '')) WHERE sequence >= 20 OR sequence <= 0; \
    INSERT INTO outbox_archive (sequence, id, aggregate_type, aggregate_id, event_type, version, payload, created_at, \
                                status, attempts, last_error) VALUES \
      (20, X'00000000000040008000000000000a20', 'order', 'other', 'e', 1, '', '2025-06-15 15:06:40', 1, 1, NULL), \
      (101, X'00000000000040008000000000000a01', X'4FFF', REPEAT(X'FF', 255), 'e', 1, X'00', '2025-06-15 15:06:40', 1, 1, 'x'); \
    INSERT INTO outbox_holds (part, aggregate_type, aggregate_id, sequence, until, reason, paused_at) VALUES \
      (1, 'order', X'61EFBFBD', 20, NULL, 'parked', NULL), (2, 'order', X'FF', NULL, NULL, 'paused', '2025-10-09'), \
      (3, 'order', 'paused', 24, NULL, 'paused', '2025-10-09'); \
    INSERT INTO outbox_holds (part, aggregate_type, aggregate_id, sequence, until, reason) \
      SELECT part, aggregate_type, aggregate_id, 21, '2125-10-09', 'backoff' FROM outbox WHERE sequence = 21; \
    INSERT INTO outbox_topics (topic) VALUES (X'FF'), (X'C3A4'); SET sql_mode = @mode";

/// The partitions of the events that stay.
async fn partitions(place: &Place, column: &str) -> Vec<(i64, u8)> {
    let sql = format!(
        "SELECT sequence, {column} FROM outbox WHERE sequence NOT IN (20, 21, 23, 24) ORDER BY sequence"
    );
    sqlx::query_as(sqlx::AssertSqlSafe(sql)).fetch_all(&place.pool).await.unwrap()
}

/// A sum over every row of every table that has events or holds.
async fn content(place: &Place) -> Vec<(String, i64)> {
    let sql = "CHECKSUM TABLE outbox, outbox_archive, outbox_holds, outbox_topics EXTENDED";
    let rows = sqlx::query(sql).fetch_all(&place.pool).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

async fn what_the_new_version_refuses_goes_to_the_archive(server: Server) {
    for printed in [false, true] {
        let Some(place) = used(server, 0).await else { return };
        place.run(REFUSED).await;
        let before = partitions(&place, "part").await;
        match printed {
            true => place.run(&migration_sql(&place.config)).await,
            false => place.store.migrate().await.unwrap(),
        }
        assert_eq!(place.store.check().await.unwrap(), []);
        assert_eq!(partitions(&place, "`partition`").await, before);
        assert_eq!(before.len(), 14, "all but the four that were moved");
        expect_moved(&place).await;
        // The text may be run again, and the session keeps its mode.
        let upgraded = content(&place).await;
        let run = format!("SET SESSION sql_mode = 'ANSI_QUOTES'; {}", migration_sql(&place.config));
        let mut connection = place.pool.acquire().await.unwrap();
        execute(&mut connection, &run).await;
        let mode: String =
            sqlx::query_scalar("SELECT @@SESSION.sql_mode").fetch_one(&mut *connection).await.unwrap();
        assert_eq!(mode, "ANSI_QUOTES");
        drop(connection);
        assert_eq!(content(&place).await, upgraded);
        // What waited behind an event that was moved is delivered.
        let (relay, leases) = place.relay().await;
        let mut reader = place.store.reader(relay).await.unwrap();
        let fetched = reader.fetch(request(&leases)).await.unwrap();
        let mut due: Vec<_> =
            fetched.due_holds.iter().map(|hold| (hold.sequence, hold.row.is_some())).collect();
        due.sort_unstable();
        assert_eq!(due, [(Some(2), true), (Some(20), false), (Some(21), false)]);
        place.drop().await;
    }
}

async fn expect_moved(place: &Place) {
    let moved = place.store.list(&EventFilter::default().in_archive(), 100).await.unwrap();
    let shown: Vec<_> = moved
        .iter()
        .map(|event| {
            let key = (event.key.aggregate_type(), event.key.aggregate_id());
            (event.sequence, key, event.status, event.cause, event.last_error.as_deref().unwrap_or_default())
        })
        .collect();
    let (sent, failed) = (Status::Sent, Status::Failed);
    let undecodable = Some(FailureCause::Undecodable);
    let marks = "?".repeat(255);
    let bytes =
        format!("x; aggregate_type is not UTF-8: 0x4FFF; aggregate_id is not UTF-8: 0x{}", "FF".repeat(255));
    let mut expected = vec![
        (20, ("order", "a?"), failed, undecodable, "Busy; aggregate_id is not UTF-8: 0x61FF"),
        (20, ("order", "other"), sent, None, ""),
        (21, ("order", "late"), failed, undecodable, "topic is not UTF-8: 0xC3"),
        (23, ("order", "m"), sent, None, "event_type is not UTF-8: 0xFE"),
        (
            24,
            ("order", "n"),
            failed,
            Some(FailureCause::Permanent),
            "no; content_type is not UTF-8: 0x80; attempts is -1, less than 0",
        ),
        (100, ("order", "z"), sent, None, ""),
        (101, ("O?", marks.as_str()), sent, None, bytes.as_str()),
    ];
    let mut shown = shown;
    shown.sort_unstable_by_key(|(sequence, key, ..)| (*sequence, key.1.to_owned()));
    expected.sort_unstable_by_key(|(sequence, key, ..)| (*sequence, key.1.to_owned()));
    assert_eq!(shown, expected);
    let of = |id: &str| moved.iter().find(|event| event.key.aggregate_id() == id).unwrap();
    assert_eq!(of("late").payload.as_deref(), Some(&[0xff][..]));
    assert!(of("late").failed_at.is_some() && of("m").failed_at.is_none());
    assert_eq!(of("a?").headers["a"], "b");
    assert_eq!(place.number("SELECT COUNT(*) FROM outbox WHERE sequence IN (20, 21, 23, 24)").await, 0);
    let holds = place.store.holds(10).await.unwrap();
    let mut shown: Vec<_> = holds.iter().map(|hold| (hold.sequence, hold.paused, hold.due_in)).collect();
    shown.sort_unstable();
    let due = Some(std::time::Duration::ZERO);
    let expected = [
        (Some(2), false, due),
        (Some(4), false, None),
        (Some(20), false, due),
        (Some(21), false, due),
        (Some(24), true, None),
    ];
    assert_eq!(shown, expected);
    assert_eq!(place.store.paused_topics().await.unwrap(), ["paused", "ä"]);
}

/// The reads of version 1: all that is due, and the events of holds.
const FETCHES_1: [&str; 2] = [
    "SELECT o.sequence, o.part, o.aggregate_type, o.aggregate_id, o.attempts, o.id, o.event_type, o.version, o.payload, \
       o.content_type, o.headers, o.topic, TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', o.created_at), \
       TIMESTAMPDIFF(MICROSECOND, o.created_at, UTC_TIMESTAMP(6)) FROM ( \
       SELECT c.sequence, SUM(c.payload_bytes) OVER (ORDER BY c.sequence) - c.payload_bytes AS bytes_before FROM ( \
         SELECT o.sequence, o.payload_bytes FROM outbox o FORCE INDEX (pending) \
         LEFT JOIN outbox_holds h FORCE INDEX (PRIMARY) ON h.part = o.part AND h.aggregate_type = o.aggregate_type \
           AND h.aggregate_id = o.aggregate_id \
         WHERE o.status = 0 AND (CAST(255 AS UNSIGNED) >> o.part) & 1 \
           AND (o.available_at IS NULL OR o.available_at <= UTC_TIMESTAMP(6)) AND h.part IS NULL \
         ORDER BY o.sequence LIMIT 10) c) w \
     STRAIGHT_JOIN outbox o FORCE INDEX (PRIMARY) ON o.sequence = w.sequence WHERE w.bytes_before < 100",
    "SELECT o.sequence, o.part, o.aggregate_type, o.aggregate_id, o.attempts, o.id, o.event_type, o.version, o.payload, \
       o.content_type, o.headers, o.topic FROM (SELECT s.sequence, SUM(o.payload_bytes) OVER (ORDER BY s.place) - \
         o.payload_bytes AS bytes_before FROM (SELECT * FROM JSON_TABLE('[[0,2]]', '$[*]' COLUMNS (place INT PATH '$[0]', \
           sequence BIGINT PATH '$[1]')) j LIMIT 1000) s \
         STRAIGHT_JOIN outbox o FORCE INDEX (PRIMARY) ON o.sequence = s.sequence WHERE o.status = 0) w \
     STRAIGHT_JOIN outbox o FORCE INDEX (PRIMARY) ON o.sequence = w.sequence WHERE w.bytes_before < 100",
];

/// The insert of a writer of version 1.
const INSERT_1: &str = "INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, version, payload, content_type, \
                        headers, topic, available_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";

async fn programs_of_version_1_are_refused_or_right(server: Server) {
    let Some(place) = used(server, 0).await else { return };
    let run = async |sql: &'static str| sqlx::raw_sql(sql).execute(&place.pool).await;
    for sql in FETCHES_1 {
        run(sql).await.unwrap();
    }
    place.store.migrate().await.unwrap();
    for sql in FETCHES_1 {
        let error = run(sql).await.unwrap_err().to_string();
        assert!(error.contains("o.part"), "{error}");
    }
    let settle = "UPDATE outbox_partitions p STRAIGHT_JOIN outbox o ON o.part = p.part SET o.status = 1";
    assert!(run(settle).await.unwrap_err().to_string().contains("o.part"));
    // A writer binds everything as bytes. What is a text arrives, and what is not is refused.
    let bytes = |text: &'static [u8]| text;
    let write = async |payload: &'static [u8]| {
        let query =
            sqlx::query(INSERT_1).bind(uuid::Uuid::now_v7()).bind(bytes(b"order")).bind("ä".as_bytes());
        let query = query.bind(bytes(b"order.placed")).bind(1).bind(payload).bind(None::<&[u8]>);
        let query = query.bind("{\"a\": \"ä\"}").bind(None::<&[u8]>).bind(None::<chrono::NaiveDateTime>);
        query.execute(&place.pool).await
    };
    let text = r#"{"path": "C:\dir", "quote": "'", "name": "José 🦀"}"#.as_bytes();
    let sequence = write(text).await.unwrap().last_insert_id();
    let error = write(b"\xff\x00").await.unwrap_err().to_string();
    assert!(error.contains("payload"), "{error}");
    let last = place.store.list(&EventFilter::default(), 100).await.unwrap().pop().unwrap();
    assert_eq!((u64::try_from(last.sequence).unwrap(), last.payload.as_deref()), (sequence, Some(text)));
    assert_eq!((last.key.aggregate_id(), last.headers["a"].as_str()), ("ä", "ä"));
    place.drop().await;
}

/// A change of the tables is a version of its own.
async fn the_newest_version_is_what_its_file_says(server: Server) {
    let Some(newest) = used(server, VERSIONS.len() - 1).await else { return };
    let fresh = Place::new(server).await.unwrap();
    assert_eq!(schema(&newest).await, schema(&fresh).await);
    assert!(schema(&fresh).await.len() > 80, "the tables are seen");
    fresh.drop().await;
    newest.drop().await;
}

async fn an_older_version_is_told_which_migration_is_missing_and_a_newer_one_is_kept(server: Server) {
    let Some(place) = used(server, 0).await else { return };
    let said = async |code: &str| {
        let findings = place.store.check().await.unwrap();
        findings.iter().find(|finding| finding.code == code).map(ToString::to_string).unwrap_or_default()
    };
    place.run("UPDATE outbox_meta SET value = 0 WHERE name = 'schema_version'").await;
    let older = said("schema-older").await;
    assert!(
        older.contains("version 0, older than 2: migrations 1 (the tables of the outbox), 2 (payloads"),
        "{older}"
    );
    place.store.migrate().await.unwrap();
    assert_eq!(said("schema-older").await, "", "and the migration says that it is there");
    place.run("UPDATE outbox_meta SET value = 9 WHERE name = 'schema_version'").await;
    // The text of this release, run by a user's own tool.
    place.run(&migration_sql(&place.config)).await;
    let newer = said("schema-newer").await;
    assert!(newer.contains("has version 9, newer than 2") && newer.contains("upgrade"), "{newer}");
    let error = place.store.migrate().await.unwrap_err().to_string();
    assert!(error.contains("version 9"), "{error}");
    place.drop().await;
}

/// Both begin with version 1 and with nothing.
async fn two_processes_may_migrate_at_once(server: Server) {
    let Some(place) = used(server, 0).await else { return };
    place.run("UPDATE outbox_meta SET value = 0 WHERE name = 'schema_version'").await;
    let empty = Place::empty(server).await.unwrap();
    for place in [place, empty] {
        let migrations = [(); 4].map(|()| {
            let config = place.config.clone();
            // Each with a pool of its own, as a process has.
            tokio::spawn(async move { MysqlStore::connect_lazy(&config).await.unwrap().migrate().await })
        });
        for migration in migrations {
            migration.await.unwrap().unwrap();
        }
        assert_eq!(place.store.check().await.unwrap(), []);
        place.drop().await;
    }
}
