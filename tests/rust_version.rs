//! The oldest Rust that works is what `Cargo.toml` says. Clippy's `incompatible_msrv` looks for what the
//! standard library has only since later; this looks for dependencies that ask for a later compiler.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "these are tests")]

use std::process::Command;

use serde_json::Value;

/// A version of Rust, such as 1.94 or 1.94.0.
fn version(text: &str) -> Vec<u32> {
    let parts = text.split('.').map(|part| part.parse().unwrap_or_else(|_| panic!("{text}")));
    let mut parts: Vec<u32> = parts.collect();
    parts.resize(3, 0);
    parts
}

#[test]
fn no_dependency_asks_for_a_newer_rust() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    // Of this platform, since cargo has not fetched what others need.
    let host = Command::new(&cargo).arg("-vV").output().expect("cargo runs");
    let host = String::from_utf8(host.stdout).unwrap();
    let host = host.lines().find_map(|line| line.strip_prefix("host: ")).expect("cargo names its host");
    let output = Command::new(cargo)
        .args(["metadata", "--offline", "--all-features", "--format-version", "1", "--filter-platform", host])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let declared = |package: &Value| package["rust_version"].as_str().map(version);
    let ours =
        packages.iter().find(|package| package["name"] == "outbox").and_then(declared).expect("our own");
    let newer: Vec<String> = packages
        .iter()
        .filter(|package| declared(package).is_some_and(|theirs| theirs > ours))
        .map(|package| {
            format!("{} {} asks for {}", package["name"], package["version"], package["rust_version"])
        })
        .collect();
    assert!(newer.is_empty(), "raise rust-version {ours:?}, or choose older versions: {newer:?}");
    assert!(packages.len() > 200, "only {} packages were seen", packages.len());
}
