//! Values of the core as the server's, and back: numbers, times, and rows as a parameter.

use std::time::Duration;

use outbox_core::store::Partition;

/// The server's code of a partition.
pub(crate) fn partition_code(partition: Partition) -> u8 {
    u8::try_from(partition).unwrap_or(u8::MAX)
}

/// A duration as the server's microseconds.
pub(crate) fn micros(duration: Duration) -> i64 {
    // A thousand years: beyond that an interval added to now leaves the range of a DATETIME.
    const MICROS_MAX: i64 = 1000 * 365 * 86_400 * 1_000_000;
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX).min(MICROS_MAX)
}

/// Microseconds of the server as a duration; nothing if they are below zero.
pub(crate) fn duration(micros: i64) -> Duration {
    Duration::from_micros(u64::try_from(micros).unwrap_or_default())
}

/// The server's clock, as microseconds since 1970.
pub(crate) const NOW_MICROS: &str =
    "TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', UTC_TIMESTAMP(6))";

/// A column that is a time, as microseconds since 1970: a number can be read whatever stands there.
pub(crate) fn micros_of(column: &str) -> String {
    format!("TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', {column})")
}

/// The time of microseconds since 1970, which stand in `expression`.
pub(crate) fn time_of(expression: &str) -> String {
    format!("TIMESTAMP'1970-01-01 00:00:00' + INTERVAL {expression} MICROSECOND")
}

/// More rows than a parameter ever has.
pub(crate) const ROWS_MAX: u64 = 1_000_000_000;

/// A parameter as rows: an array of arrays, in JSON. `columns` are names with their types, such as `part
/// BIGINT, epoch BIGINT`, in the order of the inner arrays. A statement stays constant that way however many
/// rows there are.
///
/// What is joined to it names its index: a planner that finds few rows would rather read, and lock, all of
/// them, those of writers that are still at work among them, and wait.
///
/// In brackets and with a limit, since MySQL takes no lock in a statement that joins the function itself. And
/// converted, since MariaDB keeps what is escaped in the character set of the text, that of the connection.
pub(crate) fn rows(alias: &str, columns: &str) -> String {
    let columns: Vec<String> =
        columns.split(", ").enumerate().map(|(n, column)| format!("{column} PATH '$[{n}]'")).collect();
    format!(
        "(SELECT * FROM JSON_TABLE(CONVERT(? USING utf8mb4), '$[*]' COLUMNS ({})) j LIMIT {ROWS_MAX}) {alias}",
        columns.join(", ")
    )
}

/// The type of a name in such rows. Its collation gives way to that of the column it is compared with, which
/// the two servers call by different names; a binary one would not.
pub(crate) const NAME: &str = "VARCHAR(1024) CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci";

/// The rows themselves.
pub(crate) fn json(rows: impl serde::Serialize) -> String {
    ascii(&serde_json::to_string(&rows).unwrap_or_default())
}

/// The same JSON in ASCII alone: a text is read in the character set of its connection, which may be any that
/// the caller's pool was set to, and the server takes no JSON as bytes.
pub(crate) fn ascii(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() {
            text.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            text.push_str(&format!("\\u{unit:04x}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_ascii_and_mean_the_same() {
        let rows = [("a\"\\\n\0", "ä"), ("e\u{301}", "\u{1f980}\u{ffff}")];
        let text = json(rows);
        assert!(text.is_ascii(), "{text}");
        let read: Vec<(String, String)> = serde_json::from_str(&text).unwrap();
        assert_eq!(read, rows.map(|(a, b)| (a.to_owned(), b.to_owned())));
    }
}
