//! What a newcomer meets first: the pages show no lines that are hidden in the docs, their links lead
//! somewhere, and each crate is documented with all of its features, each of which the facade has.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "these are tests")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The packages that are to be published, by name: where they are, and their features.
fn published() -> BTreeMap<String, (PathBuf, BTreeMap<String, Vec<String>>)> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let arguments = ["metadata", "--no-deps", "--offline", "--format-version", "1"];
    let output = Command::new(cargo).args(arguments).current_dir(ROOT).output().expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap().iter();
    let published = packages.filter(|package| package["publish"].is_null());
    let published: BTreeMap<_, _> = published
        .map(|package| {
            let folder = Path::new(package["manifest_path"].as_str().unwrap()).parent().unwrap();
            let features = serde_json::from_value(package["features"].clone()).unwrap();
            (package["name"].as_str().unwrap().to_owned(), (folder.to_owned(), features))
        })
        .collect();
    assert!(published.len() > 8 && published.contains_key("outbox"), "{published:?}");
    published
}

/// Every page in Markdown that git knows or would take.
fn pages() -> Vec<PathBuf> {
    let arguments = ["ls-files", "--cached", "--others", "--exclude-standard", "*.md"];
    let output = Command::new("git").args(arguments).current_dir(ROOT).output().expect("git runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let pages: Vec<_> =
        String::from_utf8(output.stdout).unwrap().lines().map(|page| Path::new(ROOT).join(page)).collect();
    assert!(pages.len() > 10, "{pages:?}");
    pages
}

#[test]
fn no_page_shows_lines_that_rustdoc_hides() {
    for page in pages() {
        let mut rust = false;
        for (number, line) in fs::read_to_string(&page).unwrap().lines().enumerate() {
            if let Some(fence) = line.strip_prefix("```") {
                // A fence without a language is Rust to rustdoc.
                rust = !rust && (fence.starts_with("rust") || fence.starts_with("no_run"));
            }
            let hidden = rust && (line.trim() == "#" || line.trim_start().starts_with("# "));
            assert!(!hidden, "{} line {}: {line}", page.display(), number + 1);
        }
    }
}

#[test]
fn every_link_within_the_project_leads_somewhere() {
    let mut links = 0;
    for page in pages() {
        for link in fs::read_to_string(&page).unwrap().split("](").skip(1) {
            let target = link.split([')', ' ']).next().unwrap().split('#').next().unwrap();
            if target.is_empty() || target.contains("://") || target.contains("::") {
                continue;
            }
            let path = page.parent().unwrap().join(target);
            assert!(path.exists(), "{} links to {target}, which is not there", page.display());
            links += 1;
        }
    }
    assert!(links > 30, "{links}");
}

#[test]
fn each_crate_is_documented_by_its_readme_with_all_of_its_features() {
    for (name, (folder, _)) in published() {
        let readme = folder.join("README.md");
        let title =
            fs::read_to_string(&readme).unwrap_or_else(|error| panic!("{}: {error}", readme.display()));
        assert!(title.starts_with("# "), "{}: no title", readme.display());
        let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
        assert!(manifest.contains("readme = \"README.md\""), "{name}: readme");
        let docs =
            "[package.metadata.docs.rs]\nall-features = true\nrustdoc-args = [\"--cfg\", \"docsrs\"]\n";
        assert!(manifest.contains(docs), "{name}: its manifest lacks {docs}");
        if let Ok(library) = fs::read_to_string(folder.join("src/lib.rs")) {
            assert!(library.contains("#![cfg_attr(docsrs, feature(doc_cfg))]"), "{name}: docsrs");
            assert!(
                library.contains("include_str!(\"../README.md\")"),
                "{name}: its docs are not its README"
            );
        }
    }
}

#[test]
fn the_facade_has_every_feature_of_an_adapter() {
    let published = published();
    let facade: BTreeSet<&str> = published["outbox"]
        .1
        .values()
        .flatten()
        .filter_map(|feature| feature.strip_prefix("outbox-"))
        .collect();
    for (name, (_, features)) in &published {
        let Some(adapter) =
            name.strip_prefix("outbox-").filter(|adapter| published["outbox"].1.contains_key(*adapter))
        else {
            continue;
        };
        for feature in features.keys().filter(|feature| *feature != "default") {
            let strong = format!("{adapter}/{feature}");
            let weak = format!("{adapter}?/{feature}");
            assert!(
                facade.contains(strong.as_str()) || facade.contains(weak.as_str()),
                "no feature of outbox turns on {feature} of {name}"
            );
        }
    }
}
