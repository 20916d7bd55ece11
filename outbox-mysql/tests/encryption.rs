//! Servers that let an account in with encryption only: `scripts/services.sh up mysql mariadb` has both.
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod support;

use std::time::Duration;

use outbox_core::{Finding, OutboxStore as _};
use outbox_mysql::{MysqlConfig, MysqlStore};
use support::{Place, Server, on_both};

on_both! {
    an_account_that_must_encrypt_relays_with_a_verified_certificate
    without_encryption_or_with_a_stranger_s_certificate_it_is_refused
}

/// The store of `place` as the account that must encrypt, with these parameters of the address.
async fn connect(place: &Place, parameters: &str) -> MysqlStore {
    let url = format!("{}?{parameters}", place.url.replacen("outbox:", "demands_tls:", 1));
    MysqlStore::connect_lazy(&MysqlConfig::builder().url(url).build().unwrap()).await.unwrap()
}

async fn an_account_that_must_encrypt_relays_with_a_verified_certificate(server: Server) {
    let Some(place) = Place::new(server).await else { return };
    let Some(certificates) = server.certificates() else { return };
    let store = connect(&place, &format!("ssl-mode=VERIFY_IDENTITY&ssl-ca={certificates}/ca.pem")).await;
    assert_eq!(store.check().await.unwrap(), []);
    let relay = store.join(Duration::from_secs(60)).await.unwrap();
    assert_eq!(store.membership(relay).await.unwrap().relays_live, 1);
    store.leave(relay).await.unwrap();
    place.drop().await;
}

async fn without_encryption_or_with_a_stranger_s_certificate_it_is_refused(server: Server) {
    let Some(place) = Place::new(server).await else { return };
    let Some(certificates) = server.certificates() else { return };
    // The client's certificate is signed by the authority, and is not an authority itself.
    let stranger = format!("ssl-mode=VERIFY_CA&ssl-ca={certificates}/client.pem");
    let refused: Vec<Finding> = connect(&place, &stranger).await.check().await.unwrap();
    assert_eq!(refused.iter().map(|finding| finding.code).collect::<Vec<_>>(), ["encryption"]);
    // MySQL's way to authenticate needs TLS, unless the server has seen the account lately: then it is the
    // server that refuses, and else the driver.
    let refused: Vec<Finding> = connect(&place, "ssl-mode=DISABLED").await.check().await.unwrap();
    let expected: &[&str] = if server == Server::Mysql { &["denied", "encryption"] } else { &["denied"] };
    assert!(refused.len() == 1 && expected.contains(&refused[0].code), "{refused:?}");
    assert!(!format!("{refused:?}").contains("demands_tls:outbox"), "the password is told: {refused:?}");
    place.drop().await;
}
