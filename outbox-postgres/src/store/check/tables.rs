//! Tables with their version, columns, rules and privileges.

use outbox_core::Finding;
use sqlx::{PgConnection, postgres::types::Oid};

use crate::{
    database::Database,
    schema::{MIGRATE, schema, version},
};

/// The columns that are read or written, by table, as the server writes their types, and the privileges that
/// a relay and its operator need there.
const TABLES: [(&str, &str, &str); 8] = [
    (
        "{outbox}",
        "sequence bigint NOT NULL, id uuid NOT NULL, aggregate_type text NOT NULL, aggregate_id text NOT NULL, \
         event_type text NOT NULL, version integer NOT NULL, payload text, payload_binary bytea, content_type text, \
         headers jsonb, topic text, created_at timestamp with time zone NOT NULL, \
         available_at timestamp with time zone, status smallint NOT NULL, attempts integer NOT NULL, last_error text, \
         cause text, sent_at timestamp with time zone, partition smallint NOT NULL",
        "SELECT UPDATE DELETE",
    ),
    (
        "{relays}",
        "relay_id uuid NOT NULL, expires_at timestamp with time zone NOT NULL, lease_ttl interval NOT NULL",
        "SELECT INSERT UPDATE DELETE",
    ),
    (
        "{partitions}",
        "partition smallint NOT NULL, owner uuid, epoch bigint NOT NULL, floor bigint NOT NULL",
        "SELECT UPDATE",
    ),
    (
        "{holds}",
        "partition smallint NOT NULL, aggregate_type text NOT NULL, aggregate_id text NOT NULL, sequence bigint, \
         from_sequence bigint NOT NULL, until timestamp with time zone NOT NULL, reason text NOT NULL, \
         paused boolean NOT NULL, changed_at timestamp with time zone NOT NULL",
        "SELECT INSERT UPDATE DELETE",
    ),
    (
        "{failed}",
        "sequence bigint NOT NULL, failed_at timestamp with time zone NOT NULL",
        "SELECT INSERT UPDATE DELETE",
    ),
    (
        "{archive}",
        "sequence bigint NOT NULL, id uuid NOT NULL, aggregate_type text NOT NULL, aggregate_id text NOT NULL, \
         event_type text NOT NULL, version integer NOT NULL, payload text, payload_binary bytea, content_type text, \
         headers jsonb, topic text, created_at timestamp with time zone NOT NULL, \
         available_at timestamp with time zone, status smallint NOT NULL, attempts integer NOT NULL, last_error text, \
         cause text, sent_at timestamp with time zone, failed_at timestamp with time zone, \
         archived_at timestamp with time zone NOT NULL",
        "SELECT INSERT",
    ),
    ("{topics}", "topic text NOT NULL, paused_at timestamp with time zone NOT NULL", "SELECT INSERT DELETE"),
    ("{meta}", "key text NOT NULL, value bigint NOT NULL", "SELECT UPDATE"),
];

/// The rules of the tables, by table and name, as the server writes them.
const RULES: [(&str, &str, &str); 8] = [
    ("{outbox}", "aggregate_type_has_at_most_255_bytes", "CHECK ((octet_length(aggregate_type) <= 255))"),
    ("{outbox}", "aggregate_id_has_at_most_255_bytes", "CHECK ((octet_length(aggregate_id) <= 255))"),
    ("{outbox}", "event_type_has_at_most_255_bytes", "CHECK ((octet_length(event_type) <= 255))"),
    ("{outbox}", "topic_has_at_most_255_bytes", "CHECK ((octet_length(topic) <= 255))"),
    ("{outbox}", "content_type_has_at_most_255_bytes", "CHECK ((octet_length(content_type) <= 255))"),
    ("{outbox}", "sequence_is_positive", "CHECK ((sequence > 0))"),
    ("{outbox}", "attempts_are_not_negative", "CHECK ((attempts >= 0))"),
    (
        "{outbox}",
        "payload_is_text_write_bytes_to_payload_binary",
        r"CHECK (((status = 1) OR (NOT starts_with(payload, '\x'::text))))",
    ),
];

/// The archive's key: any other one makes a settle fail when the same comes twice.
const ARCHIVE_KEY: &str = "PRIMARY KEY (sequence, id)";

/// Looks at all tables; true if what stands in them can be looked at.
pub(super) async fn inspect(
    database: &Database,
    connection: &mut PgConnection,
    findings: &mut Vec<Finding>,
) -> Result<bool, sqlx::Error> {
    let names = database.tables();
    let (mut missing, mut complete, mut says_version) = (Vec::new(), true, false);
    // What differs is told of tables that say to be of this version: of others the version says it all.
    let mut different = Vec::new();
    for (token, columns, privileges) in TABLES {
        let table = names.text(token);
        let oid: Option<Oid> = sqlx::query_scalar("SELECT to_regclass($1)::oid")
            .bind(&table)
            .persistent(false)
            .fetch_one(&mut *connection)
            .await?;
        let Some(oid) = oid else {
            missing.push(table);
            continue;
        };
        let (absent, others) = compare_columns(connection, oid, columns).await?;
        if !absent.is_empty() {
            complete = false;
            let problem = format!("{table} has no column {}", absent.join(", "));
            findings.push(Finding::error("missing-column", problem, MIGRATE));
        }
        // The floors are read, whatever else is wrong.
        complete &= others.is_empty() || token != "{partitions}";
        says_version |= token == "{meta}" && absent.is_empty() && others.is_empty();
        different.extend(others.into_iter().map(|(column, found, wanted)| {
            Finding::error(
                "different-column",
                format!("the column {column} of {table} is {found}, which should be {wanted}"),
                format!("alter it to {wanted}, or create the table by the migration"),
            )
        }));
        let refused = refused_privileges(connection, oid, privileges).await?;
        if !refused.is_empty() {
            let is_readable = !refused.iter().any(|privilege| privilege == "SELECT");
            complete &= is_readable;
            says_version &= is_readable || token != "{meta}";
            let refused = refused.join(", ");
            findings.push(Finding::error(
                "privilege",
                format!("the role of the relay may not {refused} on {table}"),
                format!("GRANT {refused} ON {table} TO its role"),
            ));
        }
    }
    let version = match says_version {
        true => schema(names).check(version(connection, names).await?),
        false => None,
    };
    if !missing.is_empty() {
        complete = false;
        findings.push(Finding::error(
            "missing-table",
            format!("there is no {} in the database, or not in the search_path", missing.join(", ")),
            MIGRATE,
        ));
    } else if version.is_none() {
        compare_rules(database, connection, &mut different).await?;
        findings.append(&mut different);
    }
    findings.extend(version);
    Ok(complete)
}

/// The columns that are not there, and those of another type: with what they are and what they should be.
async fn compare_columns(
    connection: &mut PgConnection,
    oid: Oid,
    columns: &str,
) -> Result<(Vec<String>, Vec<(String, String, String)>), sqlx::Error> {
    let sql = "SELECT w.name, w.type, format_type(a.atttypid, a.atttypmod) \
                 || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END \
               FROM (SELECT split_part(c, ' ', 1) AS name, substr(c, strpos(c, ' ') + 1) AS type, place \
                     FROM unnest(string_to_array($2, ', ')) WITH ORDINALITY t (c, place)) w \
               LEFT JOIN pg_attribute a ON a.attrelid = $1 AND a.attname = w.name AND NOT a.attisdropped \
               ORDER BY w.place";
    let rows: Vec<(String, String, Option<String>)> =
        sqlx::query_as(sql).bind(oid).bind(columns).persistent(false).fetch_all(connection).await?;
    let (mut absent, mut different) = (Vec::new(), Vec::new());
    for (name, wanted, found) in rows {
        match found {
            None => absent.push(name),
            Some(found) if found != wanted => different.push((name, found, wanted)),
            Some(_) => {}
        }
    }
    Ok((absent, different))
}

async fn refused_privileges(
    connection: &mut PgConnection,
    oid: Oid,
    privileges: &str,
) -> Result<Vec<String>, sqlx::Error> {
    let sql = "SELECT p FROM unnest(string_to_array($2, ' ')) p WHERE NOT has_table_privilege($1, p)";
    sqlx::query_scalar(sql).bind(oid).bind(privileges).persistent(false).fetch_all(connection).await
}

/// What keeps out rows that no relay could record.
async fn compare_rules(
    database: &Database,
    connection: &mut PgConnection,
    findings: &mut Vec<Finding>,
) -> Result<(), sqlx::Error> {
    let names = database.tables();
    for (token, name, wanted) in RULES {
        let table = names.text(token);
        let sql = "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = $1::regclass AND conname = $2";
        let found: Option<String> = sqlx::query_scalar(sql)
            .bind(&table)
            .bind(name)
            .persistent(false)
            .fetch_optional(&mut *connection)
            .await?;
        match found.as_deref() {
            Some(found) if found == wanted => {}
            Some(found) => findings.push(Finding::error(
                "different-constraint",
                format!("the constraint {name} of {table} is {found}, which should be {wanted}"),
                format!("ALTER TABLE {table} DROP CONSTRAINT {name}, ADD CONSTRAINT {name} {wanted}"),
            )),
            None => findings.push(Finding::error(
                "missing-constraint",
                format!(
                    "{table} has no constraint {name}, so that a row may stand in it that cannot be recorded"
                ),
                format!("ALTER TABLE {table} ADD CONSTRAINT {name} {wanted}"),
            )),
        }
    }
    let table = names.text("{archive}");
    let sql =
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = $1::regclass AND contype = 'p'";
    let key: Option<String> =
        sqlx::query_scalar(sql).bind(&table).persistent(false).fetch_optional(connection).await?;
    if key.as_deref() != Some(ARCHIVE_KEY) {
        findings.push(Finding::error(
            "archive-key",
            format!(
                "{table} has {} instead of {ARCHIVE_KEY}, so that an event cannot be moved there",
                key.as_deref().unwrap_or("no primary key")
            ),
            format!("ALTER TABLE {table} ADD {ARCHIVE_KEY}, without a primary key that is there now"),
        ));
    }
    Ok(())
}
