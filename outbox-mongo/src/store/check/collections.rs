//! Collections, their options and indexes.

use mongodb::{
    Database,
    bson::{Bson, Document, doc},
};
use outbox_core::Finding;

use crate::error::{Fault, code_of};

/// Looks at collections and their indexes, and returns what the server says of them, and whether all are
/// there.
pub(crate) async fn inspect(
    database: &Database,
    (needed, wanted): (&[&str], Vec<(&str, Vec<Document>)>),
    migrate: &'static str,
    findings: &mut Vec<Finding>,
) -> Result<(Vec<Document>, bool), Fault> {
    let command = doc! { "listCollections": 1, "cursor": { "batchSize": 10_000 } };
    let listed: Vec<Document> = first_batch(database, command)
        .await?
        .into_iter()
        .filter_map(|entry| if let Bson::Document(entry) = entry { Some(entry) } else { None })
        .collect();
    let missing: Vec<&str> = needed.iter().copied().filter(|name| entry(&listed, name).is_none()).collect();
    if !missing.is_empty() {
        findings.push(Finding::error(
            "missing-collection",
            format!("there is no {} in the database {}", missing.join(", "), database.name()),
            migrate,
        ));
        return Ok((listed, false));
    }
    for (name, entry) in needed.iter().filter_map(|name| Some((*name, entry(&listed, name)?))) {
        options(name, entry, findings);
    }
    for (collection, wanted) in wanted {
        indexes(database, (collection, &wanted), migrate, findings).await?;
    }
    Ok((listed, true))
}

/// The collection of this name.
pub(crate) fn entry<'a>(listed: &'a [Document], name: &str) -> Option<&'a Document> {
    listed.iter().find(|entry| entry.get_str("name").is_ok_and(|found| found == name))
}

/// What a command lists. There is never more of it than one batch takes.
async fn first_batch(database: &Database, command: Document) -> Result<Vec<Bson>, mongodb::error::Error> {
    let answer = database.run_command(command).await?;
    let batch = answer.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch").cloned());
    Ok(batch.unwrap_or_default())
}

fn options(name: &str, entry: &Document, findings: &mut Vec<Finding>) {
    let options = entry.get_document("options").cloned().unwrap_or_default();
    let kind = entry.get_str("type").unwrap_or_default();
    if kind != "collection" || options.get_bool("capped").unwrap_or_default() {
        findings.push(Finding::error(
            "foreign-collection",
            format!("{name} is a {kind}, or capped, and not a plain collection"),
            "choose another table prefix, or rename what is there and run the migration",
        ));
    }
    if options.contains_key("collation") {
        findings.push(Finding::error(
            "collation",
            format!("{name} has a collation, by which different keys can be equal"),
            "make it again without one and copy the documents",
        ));
    }
}

async fn indexes(
    database: &Database,
    (collection, wanted): (&str, &[Document]),
    migrate: &str,
    findings: &mut Vec<Finding>,
) -> Result<(), Fault> {
    let command = doc! { "listIndexes": collection, "cursor": { "batchSize": 10_000 } };
    let listed = match first_batch(database, command).await {
        // A view has none.
        Err(error) if code_of(&error) == Some(166) => return Ok(()),
        listed => listed?,
    };
    for index in wanted {
        let is_it = |found: &Bson| {
            let Some(found) = found.as_document() else { return false };
            index.iter().all(|(option, value)| found.get(option) == Some(value))
        };
        if !listed.iter().any(is_it) {
            let name = index.get_str("name").unwrap_or_default();
            findings.push(Finding::error(
                "missing-index",
                format!("{collection} has no index {name}, or another one of that name"),
                format!("drop an index of that name, then {migrate}"),
            ));
        }
    }
    Ok(())
}
