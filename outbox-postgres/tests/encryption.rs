//! A server that lets an account in with encryption only: `scripts/services.sh up postgres` has one.
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod support;

use outbox_core::OutboxStore as _;
use outbox_postgres::{PostgresConfig, PostgresStore};
use support::{Place, address};

/// The store of `place` as the account that must encrypt, with these parameters of the address.
async fn connect(place: &Place, parameters: &str) -> Result<PostgresStore, outbox_core::StoreError> {
    let url = format!("{}?{parameters}", place.url.replacen("outbox:", "demands_tls:", 1));
    let config = PostgresConfig::builder().url(url).schema(&place.schema).build().unwrap();
    PostgresStore::connect_lazy(&config).await
}

#[tokio::test]
async fn an_account_that_must_encrypt_relays_with_a_verified_certificate() {
    let Some(place) = Place::new().await else { return };
    let Some(certificates) = address("OUTBOX_TEST_POSTGRES_CERTIFICATES") else { return };
    let parameters = format!("sslmode=verify-full&sslrootcert={certificates}/ca.pem");
    let store = connect(&place, &parameters).await.unwrap();
    assert_eq!(store.check().await.unwrap(), []);
    assert_eq!(store.stats().await.unwrap().pending, 0);
    place.drop().await;
}

#[tokio::test]
async fn without_encryption_or_with_a_stranger_s_certificate_it_is_refused() {
    let Some(place) = Place::new().await else { return };
    let Some(certificates) = address("OUTBOX_TEST_POSTGRES_CERTIFICATES") else { return };
    // The client's certificate is signed by the authority, and is not an authority itself.
    let stranger = format!("sslmode=verify-full&sslrootcert={certificates}/client.pem");
    for (parameters, reason) in [("sslmode=disable", "demands_tls"), (stranger.as_str(), "ertificate")] {
        let refused = match connect(&place, parameters).await {
            Err(error) => outbox_core::chain(&error).to_string(),
            Ok(store) => format!("{:?}", store.check().await.unwrap()),
        };
        assert!(refused.contains(reason), "{parameters}: {refused}");
        assert!(!refused.contains("demands_tls:outbox"), "the password is told: {refused}");
    }
    place.drop().await;
}
