//! All of the suite on the references in memory, and the table that they make.
#![allow(clippy::unwrap_used, reason = "a test program")]

mod common;

use std::process::Command;

use outbox_conformance::{INBOX_CLAUSES, PUBLISHER_CLAUSES, STORE_CLAUSES};

mod store {
    outbox_conformance::store_suite!(crate::common::MemoryHarness);
}

mod publisher {
    outbox_conformance::publisher_suite!(crate::common::MemoryPublisherHarness);
}

mod inbox {
    outbox_conformance::inbox_suite!(crate::common::MemoryInboxHarness);
}

/// Runs this program once more, without this test.
#[test]
fn the_tables_name_every_clause() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tables.md");
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--skip", "the_tables_name_every_clause", "--quiet"])
        .env("OUTBOX_CONFORMANCE_TABLE", &file)
        .status()
        .unwrap();
    assert!(status.success());
    let text = std::fs::read_to_string(&file).unwrap();
    let version = env!("CARGO_PKG_VERSION");
    let count = STORE_CLAUSES.len();
    let store = format!(
        "outbox-conformance {version}, `MemoryHarness`: {count} of {count} clauses of a store kept\n"
    );
    assert!(text.contains(&store), "{text}");
    let publisher = format!("outbox-conformance {version}, `MemoryPublisherHarness`: ");
    assert!(text.contains(&publisher), "{text}");
    let inbox = format!("outbox-conformance {version}, `MemoryInboxHarness`: ");
    assert!(text.contains(&inbox), "{text}");
    let names = STORE_CLAUSES.iter().map(|clause| clause.name);
    let inboxes = INBOX_CLAUSES.iter().map(|clause| clause.name);
    for name in names.chain(PUBLISHER_CLAUSES.iter().map(|clause| clause.name)).chain(inboxes) {
        assert_eq!(text.matches(&format!("| `{name}` |")).count(), 1, "{name}");
    }
    let unasked = "| `the_largest_payload_is_taken` | a payload of exactly the declared limit is taken | not asked: \
                   this publisher declares no limit that could be tried out |";
    assert!(text.contains(unasked), "{text}");
}
