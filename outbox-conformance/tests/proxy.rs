//! The proxy that takes brokers away, before a server that answers each byte with the next one.
#![allow(clippy::unwrap_used, reason = "a test program")]

use std::time::Duration;

use outbox_conformance::{Outage as _, Proxy};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// The address of a server, and the bytes that it gets.
async fn server() -> (String, mpsc::UnboundedReceiver<u8>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (got, bytes) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let got = got.clone();
            tokio::spawn(async move {
                while let Ok(byte) = client.read_u8().await {
                    got.send(byte).unwrap();
                    let _ = client.write_u8(byte + 1).await;
                }
            });
        }
    });
    (address, bytes)
}

async fn ask(connection: &mut TcpStream, byte: u8) -> std::io::Result<u8> {
    connection.write_u8(byte).await?;
    tokio::time::timeout(PATIENCE, connection.read_u8()).await.unwrap()
}

#[tokio::test]
async fn what_is_cut_is_closed_and_refused_until_it_is_restored() {
    let (upstream, _bytes) = server().await;
    let proxy = Proxy::start(upstream).await.unwrap();
    for _ in 0..3 {
        let mut connection = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(ask(&mut connection, 1).await.unwrap(), 2);
        proxy.cut().await;
        assert!(ask(&mut connection, 1).await.is_err());
        let refused = TcpStream::connect(proxy.address()).await.unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        proxy.restore().await;
    }
    let mut connection = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(ask(&mut connection, 3).await.unwrap(), 4);
}

#[tokio::test]
async fn what_is_written_while_nothing_passes_never_arrives() {
    let (upstream, mut bytes) = server().await;
    let proxy = Proxy::start(upstream).await.unwrap();
    let mut old = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(ask(&mut old, 1).await.unwrap(), 2);
    proxy.freeze().await;
    let mut new = TcpStream::connect(proxy.address()).await.unwrap();
    old.write_u8(50).await.unwrap();
    new.write_u8(60).await.unwrap();
    proxy.restore().await;
    assert!(old.read_u8().await.is_err() && new.read_u8().await.is_err(), "both are closed");
    let mut next = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(ask(&mut next, 3).await.unwrap(), 4);
    assert_eq!((bytes.recv().await, bytes.recv().await), (Some(1), Some(3)));
}

#[tokio::test]
async fn answers_can_be_lost_and_rewritten() {
    let (upstream, mut bytes) = server().await;
    let proxy = Proxy::start(upstream).await.unwrap();
    proxy.rewrite_answers([8], [80]);
    let mut connection = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(ask(&mut connection, 7).await.unwrap(), 80);
    proxy.lose_answers().await;
    connection.write_u8(10).await.unwrap();
    assert_eq!((bytes.recv().await, bytes.recv().await), (Some(7), Some(10)));
    proxy.restore().await;
    assert!(connection.read_u8().await.is_err());
}

#[tokio::test]
async fn a_proxy_that_is_dropped_closes_everything() {
    let (upstream, _bytes) = server().await;
    let proxy = Proxy::start(upstream).await.unwrap();
    let mut connection = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(ask(&mut connection, 1).await.unwrap(), 2);
    drop(proxy);
    assert!(tokio::time::timeout(PATIENCE, connection.read_u8()).await.unwrap().is_err());
}
