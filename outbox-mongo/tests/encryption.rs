//! TLS and accounts: every setting of the url reaches the driver. The account of the certificate is one that
//! demands TLS, since there is no other way to it.
#![allow(clippy::unwrap_used, reason = "the helpers of a test, which clippy does not take for tests")]

mod support;

use std::path::Path;

use mongodb::{
    Client,
    bson::{Bson, Document, doc},
};
use outbox_core::{Enqueue as _, OutboxStore as _, Severity};
use outbox_mongo::{MongoConfig, MongoStore};
use support::{Place, address, event, request, sequences};

async fn codes(place: &Place, url: &str) -> Vec<&'static str> {
    let config = MongoConfig::builder().url(url).database(&place.name).build().unwrap();
    let findings = MongoStore::connect_lazy(&config).await.unwrap().check().await.unwrap();
    assert!(findings.iter().all(|finding| finding.severity == Severity::Error), "{findings:?}");
    findings.iter().map(|finding| finding.code).collect()
}

#[tokio::test]
async fn tls_with_a_password() {
    let Some(place) = Place::new().await else { return };
    let Some(folder) = address("OUTBOX_TEST_MONGODB_CERTIFICATES") else { return };
    let tls = format!("{}&tls=true&serverSelectionTimeoutMS=2000", place.url);
    let trusted = format!("{tls}&tlsCAFile={folder}/ca.pem");
    assert_eq!(codes(&place, &trusted).await, [] as [&str; 0]);
    // An authority that is not trusted is refused, and so is another's.
    assert_eq!(codes(&place, &tls).await, ["unreachable"]);
    assert_eq!(codes(&place, &format!("{tls}&tlsCAFile={folder}/client.pem")).await, ["unreachable"]);
    // The connection is encrypted indeed.
    let client = Client::with_uri_str(&trusted).await.unwrap();
    let status = client.database("admin").run_command(doc! { "serverStatus": 1 }).await.unwrap();
    assert!(status.get_document("transportSecurity").is_ok(), "the server counts what is encrypted");
    place.drop().await;
}

#[tokio::test]
async fn an_account_that_only_a_certificate_opens() {
    let Some(place) = Place::new().await else { return };
    let Some(folder) = address("OUTBOX_TEST_MONGODB_CERTIFICATES") else { return };
    let external = place.client.database("$external");
    let roles: Bson = vec![doc! { "role": "readWrite", "db": &place.name }].into();
    let user = "CN=outbox";
    // Another run may have made it, for another database.
    let _ = external.run_command(doc! { "createUser": user, "roles": [] }).await;
    external.run_command(doc! { "grantRolesToUser": user, "roles": roles }).await.unwrap();

    let (_, rest) = place.url.split_once('@').unwrap();
    let rest = rest.replace("authSource=admin", "authSource=%24external&authMechanism=MONGODB-X509");
    let plain = format!("mongodb://{rest}&serverSelectionTimeoutMS=2000");
    let tls = format!("{plain}&tls=true&tlsCAFile={folder}/ca.pem");
    // The driver takes the certificate and its key from one file.
    let both = std::env::temp_dir().join(format!("{}.pem", place.name));
    let parts =
        ["client.pem", "client.key"].map(|name| std::fs::read(Path::new(&folder).join(name)).unwrap());
    std::fs::write(&both, parts.concat()).unwrap();
    let url = format!("{tls}&tlsCertificateKeyFile={}", both.display());
    for refused in [&plain, &tls] {
        let found = codes(&place, refused).await;
        assert!(found == ["denied"] || found == ["unreachable"], "{refused}: {found:?}");
    }
    assert_eq!(codes(&place, &url).await, [] as [&str; 0]);

    // Both sides work by it.
    let config = MongoConfig::builder().url(&url).database(&place.name).build().unwrap();
    let store = MongoStore::connect_lazy(&config).await.unwrap();
    let client = Client::with_uri_str(&url).await.unwrap();
    let mut session = client.start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    client
        .database(&place.name)
        .collection::<Document>("outbox_orders")
        .insert_one(doc! {})
        .session(&mut session)
        .await
        .unwrap();
    let sequence = store.outbox().enqueue(&mut session, &event("1")).await.unwrap();
    session.commit_transaction().await.unwrap();
    let relay = store.join(std::time::Duration::from_secs(60)).await.unwrap();
    let leases = place.claim_all(relay).await;
    let rows = store.reader(relay).await.unwrap().fetch(request(&leases)).await.unwrap().rows;
    assert_eq!(sequences(&rows), [sequence]);
    std::fs::remove_file(both).unwrap();
    place.drop().await;
}
