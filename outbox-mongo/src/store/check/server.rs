//! The server, and what the account may do there.

use mongodb::{
    Database,
    bson::{Bson, Document, doc},
    error::Error,
};
use outbox_core::Finding;

/// The wire version of MongoDB 6.0, the first release that takes a partial index by `$in`.
const WIRE_VERSION_MIN: i32 = 17;

/// False if looking further is of no use.
pub(crate) fn server(hello: &Document, findings: &mut Vec<Finding>) -> bool {
    let found = findings.len();
    let wire_version = hello.get_i32("maxWireVersion").unwrap_or_default();
    if wire_version < WIRE_VERSION_MIN {
        findings.push(Finding::error(
            "server-too-old",
            format!("the server speaks wire version {wire_version}, that of a release before MongoDB 6.0"),
            "upgrade it to 6.0 or newer",
        ));
    }
    if hello.get_str("msg").is_ok_and(|message| message == "isdbgrid") {
        findings.push(Finding::error(
            "sharded",
            "the server is a router of a sharded cluster, where each shard counts for itself: sequences would not be \
             unique",
            "put the outbox, and the data of the services that write to it, into a replica set",
        ));
    } else if !hello.contains_key("setName") {
        findings.push(Finding::error(
            "no-replica-set",
            "the server is not a member of a replica set, and so has no transactions",
            "start it with --replSet and run rs.initiate(), a single member will do",
        ));
    } else if !hello.get_bool("isWritablePrimary").unwrap_or_default() {
        findings.push(Finding::error(
            "not-primary",
            "the server is a secondary, which only reads",
            "list all members in the url, with replicaSet and without directConnection",
        ));
    }
    findings.len() == found
}

/// What the server knows of the account. Without one, a server that knows accounts refuses the first look: a
/// greeting is answered to anybody.
pub(crate) async fn identify(database: &Database) -> Result<Document, Error> {
    let who = doc! { "connectionStatus": 1, "showPrivileges": true };
    let status = database.client().database("admin").run_command(who).await?;
    let info = status.get_document("authInfo").cloned().unwrap_or_default();
    if info.get_array("authenticatedUsers").is_ok_and(|users| users.is_empty()) {
        database.run_command(doc! { "listCollections": 1, "nameOnly": true }).await?;
    }
    Ok(info)
}

/// What the account of `whom` is allowed to do, by `info` of it; false if it may not even look. `needed` has
/// actions by collection.
pub(crate) fn privileges(
    database: &str,
    (whom, needed): (&str, &[(&str, &str)]),
    info: &Document,
    findings: &mut Vec<Finding>,
) -> bool {
    let list = |name: &str| info.get_array(name).cloned().unwrap_or_default();
    // A server without accounts refuses no client.
    if list("authenticatedUsers").is_empty() {
        return true;
    }
    let granted: Vec<Document> = list("authenticatedUserPrivileges")
        .into_iter()
        .filter_map(
            |privilege| if let Bson::Document(privilege) = privilege { Some(privilege) } else { None },
        )
        .collect();
    let has = |collection: &str, action: &str| {
        granted.iter().any(|privilege| {
            let Ok(resource) = privilege.get_document("resource") else { return false };
            let covers = |name: &str, wanted: &str| {
                resource.get_str(name).is_ok_and(|given| given.is_empty() || given == wanted)
            };
            let is_covered = resource.get_bool("anyResource").unwrap_or_default()
                || (covers("db", database) && covers("collection", collection));
            let mut actions = privilege.get_array("actions").into_iter().flatten();
            is_covered && actions.any(|given| matches!(given.as_str(), Some(given) if given == action))
        })
    };
    let mut may_look = has("", "listCollections");
    if !may_look {
        findings.push(Finding::error(
            "privilege",
            format!("the account of the {whom} may not list the collections of the database {database}"),
            format!("grant its role listCollections on {database}"),
        ));
    }
    for &(collection, actions) in needed {
        let lacking: Vec<&str> = actions.split(' ').filter(|action| !has(collection, action)).collect();
        if lacking.is_empty() {
            continue;
        }
        may_look &= !lacking.iter().any(|action| ["find", "listIndexes"].contains(action));
        let lacking = lacking.join(", ");
        findings.push(Finding::error(
            "privilege",
            format!("the account of the {whom} may not {lacking} on {database}.{collection}"),
            format!("grant its role {lacking} on {database}.{collection}"),
        ));
    }
    may_look
}
