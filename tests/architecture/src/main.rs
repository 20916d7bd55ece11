//! The direction of dependencies, read from `cargo metadata`: adapters depend on the core, never on each
//! other, and the core knows no database and no broker. Within a crate no two files import each other, by way
//! of others or at once, read from the sources.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "these are tests")]

mod circles;
mod tidy;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use circles::{Sources, describe, graph};

/// Packages that speak to a database or a broker. Of each, packages that merely start with the name count as
/// well.
const DRIVERS: [&str; 18] = [
    "sqlx",
    "rusqlite",
    "libsqlite3-sys",
    "tokio-postgres",
    "postgres",
    "pgwire-replication",
    "mysql",
    "mysql_async",
    "mongodb",
    "bson",
    "rdkafka",
    "lapin",
    "async-nats",
    "redis",
    "diesel",
    "sea-orm",
    "tiberius",
    "pulsar",
];

/// Packages that may know several adapters, or the facade as a stranger does.
const COMPOSITION: [&str; 12] = [
    "axum_orders",
    "benches",
    "consumers",
    "end_to_end",
    "order_system",
    "outbox",
    "outbox-cli",
    "postgres_kafka",
    "saga",
    "simulation",
    "testbed",
    "webhook",
];

/// Packages of the workspace that are not adapters.
const SHARED: [&str; 3] = ["outbox-core", "outbox-conformance", "outbox-derive"];

/// The packages of the workspace, as cargo tells of them.
fn packages() -> Vec<Value> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

/// The workspace: each package with what it depends on, by kind (`normal`, `dev`, `build`), optional ones
/// included.
fn workspace() -> BTreeMap<String, Vec<(String, String)>> {
    let text = |value: &Value| value.as_str().unwrap_or("normal").to_owned();
    let dependencies = |package: &Value| {
        let all = package["dependencies"].as_array().unwrap();
        all.iter().map(|dependency| (text(&dependency["name"]), text(&dependency["kind"]))).collect()
    };
    packages().iter().map(|package| (text(&package["name"]), dependencies(package))).collect()
}

fn is_driver(name: &str) -> bool {
    DRIVERS.iter().any(|driver| name == *driver || name.starts_with(&format!("{driver}-")))
}

#[test]
fn the_workspace_is_seen() {
    let names: BTreeSet<_> = workspace().into_keys().collect();
    for name in ["outbox", "outbox-core", "outbox-kafka"] {
        assert!(names.contains(name), "{name} is not among {names:?}");
    }
    assert!(
        is_driver("sqlx") && is_driver("sqlx-postgres") && is_driver("rdkafka") && !is_driver("serde_json")
    );
}

/// Everything that a newcomer's first command builds. What needs a driver is a package of its own.
#[test]
fn the_facade_needs_no_driver_but_that_of_its_quickstart() {
    let workspace = workspace();
    let drivers: Vec<_> = workspace["outbox"].iter().filter(|(name, _)| is_driver(name)).collect();
    assert_eq!(drivers, [&("rusqlite".to_owned(), "dev".to_owned())]);
}

#[test]
fn the_core_and_the_conformance_suite_name_no_database_and_no_broker() {
    for (package, dependencies) in
        workspace().iter().filter(|(package, _)| SHARED.contains(&package.as_str()))
    {
        let drivers: Vec<_> = dependencies.iter().filter(|(name, _)| is_driver(name)).collect();
        assert!(drivers.is_empty(), "{package} depends on {drivers:?}");
        let adapters: Vec<_> = dependencies
            .iter()
            .filter(|(name, _)| name.starts_with("outbox") && !SHARED.contains(&name.as_str()))
            .collect();
        assert!(adapters.is_empty(), "{package} depends on {adapters:?}");
    }
}

/// But its derive macro, which depends on nothing of it in turn.
#[test]
fn the_core_depends_on_nothing_of_this_workspace() {
    let workspace = workspace();
    let own = |package: &str| -> Vec<String> {
        let dependencies = workspace[package].iter().map(|(name, _)| name.clone());
        dependencies.filter(|name| workspace.contains_key(name)).collect()
    };
    assert_eq!(own("outbox-core"), ["outbox-derive"]);
    assert_eq!(own("outbox-derive"), [""; 0]);
}

/// Only tests may need the conformance suite.
#[test]
fn no_adapter_depends_on_another() {
    let workspace = workspace();
    let adapters = workspace.iter().filter(|(package, _)| {
        !SHARED.contains(&package.as_str()) && !COMPOSITION.contains(&package.as_str())
    });
    for (package, dependencies) in adapters {
        let own: Vec<_> = dependencies
            .iter()
            .filter(|(name, kind)| {
                workspace.contains_key(name)
                    && name != "outbox-core"
                    && !(name == "outbox-conformance" && kind == "dev")
            })
            .collect();
        assert!(own.is_empty(), "{package} depends on {own:?}");
    }
}

/// The sources in a folder and all below it, by their paths from `root`.
fn read(root: &Path, folder: &Path, sources: &mut Sources) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read(root, &path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            sources.insert(name, fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn no_two_files_import_each_other_in_a_circle() {
    let mut found = Vec::new();
    let mut files = 0;
    for package in packages() {
        let folder = PathBuf::from(package["manifest_path"].as_str().unwrap()).parent().unwrap().join("src");
        let name = package["name"].as_str().unwrap();
        let mut sources = Sources::new();
        read(&folder, &folder, &mut sources);
        files += sources.len();
        let roots = ["lib.rs", "main.rs"].into_iter().filter(|root| sources.contains_key(*root));
        let graph = graph(&sources, &roots.collect::<Vec<_>>());
        found.extend(circles::circles(&graph).iter().map(|circle| {
            let files: Vec<_> = circle.iter().map(String::as_str).collect();
            format!("{name}: {}\n{}", files.join(", "), describe(&graph, circle))
        }));
    }
    assert!(files > 100, "only {files} files are seen");
    assert!(found.is_empty(), "{} circles:\n{}", found.len(), found.join("\n"));
}

/// Versions by name, of every package that is locked.
fn locked() -> BTreeMap<String, BTreeSet<String>> {
    let lock = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.lock")).unwrap();
    let mut locked = BTreeMap::<String, BTreeSet<String>>::new();
    for package in lock.split("[[package]]").skip(1) {
        let field = |name: &str| {
            let line = package.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim_start_matches(" = ").trim_matches('"').to_owned()
        };
        locked.entry(field("name")).or_default().insert(field("version"));
    }
    locked
}

#[test]
fn a_second_version_of_a_package_is_listed_with_its_reason() {
    let deny = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../deny.toml")).unwrap();
    let list = deny.split_once("\nskip = [").unwrap().1.split_once("\n]").unwrap().0;
    let mut listed = BTreeMap::<String, BTreeSet<String>>::new();
    for line in list.lines().filter(|line| !line.is_empty()) {
        let [_, package, _, reason, _] = line.split('"').collect::<Vec<_>>()[..] else { panic!("{line}") };
        assert!(!reason.is_empty(), "{line}");
        let (name, version) = package.split_once('@').unwrap();
        listed.entry(name.to_owned()).or_default().insert(version.to_owned());
    }
    let several =
        |(name, versions): (String, BTreeSet<String>)| (versions.len() > 1).then_some((name, versions));
    let several: BTreeMap<_, _> = locked().into_iter().filter_map(several).collect();
    assert_eq!(several.keys().collect::<Vec<_>>(), listed.keys().collect::<Vec<_>>(), "locked, and listed");
    for (name, versions) in several {
        assert!(listed[&name].is_subset(&versions), "{name} is locked as {versions:?}");
        assert_eq!(
            listed[&name].len(),
            versions.len() - 1,
            "{name} is locked as {versions:?}: list all but one"
        );
    }
}

#[test]
fn there_is_one_provider_of_tls() {
    let locked = locked();
    assert!(locked.contains_key("ring"));
    for other in ["aws-lc-rs", "aws-lc-sys", "native-tls", "openssl"] {
        assert!(!locked.contains_key(other), "{other}: ring is the one provider");
    }
}
