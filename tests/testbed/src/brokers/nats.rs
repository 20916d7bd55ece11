//! NATS JetStream: a stream with one subject for each scenario.

use std::sync::Arc;

use async_nats::{
    ConnectOptions, ServerAddr,
    jetstream::{self, Context, stream::Config},
};
use async_trait::async_trait;
use outbox::{
    Publisher,
    nats::{NatsConfig, NatsPublisher},
};

use super::broker::{Broker, BrokerAt};
use crate::{checker::Delivery, servers};

pub(crate) struct Nats {
    url: String,
}

impl Nats {
    pub(crate) fn find() -> Option<Self> {
        Some(Self { url: servers::address("nats", "OUTBOX_TEST_NATS_URL")? })
    }

    async fn jetstream(&self) -> Context {
        let server: ServerAddr = self.url.parse().unwrap();
        let (user, password) = (server.username().unwrap(), server.password().unwrap());
        let options = ConnectOptions::new().user_and_password(user.to_owned(), password.to_owned());
        jetstream::new(options.connect(server).await.unwrap())
    }
}

#[async_trait]
impl Broker for Nats {
    fn broker_at(&self) -> BrokerAt {
        BrokerAt::Nats { url: self.url.clone() }
    }

    fn server(&self) -> (&'static str, String) {
        ("nats", self.url.clone())
    }

    async fn create(&self, topic: &str) {
        let config = Config { name: stream_of(topic), subjects: vec![topic.to_owned()], ..Config::default() };
        self.jetstream().await.create_stream(config).await.unwrap();
    }

    async fn read(&self, topic: &str) -> Vec<Delivery> {
        let stream = self.jetstream().await.get_stream(stream_of(topic)).await.unwrap();
        let state = &stream.cached_info().state;
        let mut deliveries = Vec::new();
        for sequence in (state.first_sequence..=state.last_sequence).filter(|_| state.messages > 0) {
            let message = stream.get_raw_message(sequence).await.unwrap();
            let headers = message.headers.iter();
            deliveries.push(Delivery::from_headers(headers.flat_map(|(name, values)| {
                values.iter().map(move |value| (name.to_string(), value.as_str().to_owned()))
            })));
        }
        deliveries
    }

    async fn remove(&self, topic: &str) {
        self.jetstream().await.delete_stream(stream_of(topic)).await.unwrap();
    }
}

pub(super) fn open(url: &str) -> Arc<dyn Publisher> {
    Arc::new(NatsPublisher::new(NatsConfig::builder(url).build().unwrap()))
}

/// The name of a stream has no dots.
fn stream_of(topic: &str) -> String {
    topic.replace('.', "_")
}
