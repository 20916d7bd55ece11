//! NATS JetStream: a stream for the order service, and a durable consumer on it for each service.

use std::{sync::Arc, time::Duration};

use async_nats::{
    ConnectOptions, ServerAddr,
    jetstream::{
        self, Context,
        consumer::{AckPolicy, PullConsumer, pull},
        message::Message as Delivery,
        stream,
    },
};
use async_trait::async_trait;
use futures::StreamExt as _;
use outbox::{
    Publisher,
    nats::{NatsConfig, NatsPublisher},
};

use super::message::{Message, Subscription};
use crate::error::Error;

/// When a message that was not acknowledged comes again: how long a service that was killed is waited for. A
/// message that takes longer than this would come while it is still being handled.
const ACK_WAIT: Duration = Duration::from_secs(3);

pub(super) async fn create(url: &str, topic: &str, services: &[&str]) -> Result<(), Error> {
    let config = stream::Config {
        name: topic.to_owned(),
        subjects: vec![topic.to_owned()],
        ..stream::Config::default()
    };
    let stream = connect(url).await?.create_stream(config).await?;
    for service in services {
        let config = pull::Config {
            durable_name: Some((*service).to_owned()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: ACK_WAIT,
            // NATS goes on with the next message while one is not acknowledged, and brings that one later.
            // One at a time keeps the order; a service that needs more speed takes a consumer for each part
            // of the subjects.
            max_ack_pending: 1,
            ..pull::Config::default()
        };
        stream.create_consumer(config).await?;
    }
    Ok(())
}

pub(super) async fn remove(url: &str, topic: &str) -> Result<(), Error> {
    connect(url).await?.delete_stream(topic).await?;
    Ok(())
}

async fn connect(url: &str) -> Result<Context, Error> {
    let server: ServerAddr = url.parse()?;
    let options = match (server.username(), server.password()) {
        (Some(user), Some(password)) => {
            ConnectOptions::new().user_and_password(user.to_owned(), password.to_owned())
        }
        _ => ConnectOptions::new(),
    };
    Ok(jetstream::new(options.connect(server).await?))
}

pub(super) fn publisher(url: &str) -> Result<Arc<dyn Publisher>, Error> {
    Ok(Arc::new(NatsPublisher::new(NatsConfig::builder(url).build()?)))
}

pub(super) struct Nats {
    messages: pull::Stream,
    last: Option<Delivery>,
}

impl Nats {
    pub(super) async fn subscribe(url: &str, topic: &str, service: &str) -> Result<Self, Error> {
        let stream = connect(url).await?.get_stream(topic).await?;
        let consumer: PullConsumer = stream.get_consumer(service).await?;
        Ok(Self { messages: consumer.messages().await?, last: None })
    }
}

#[async_trait]
impl Subscription for Nats {
    async fn next(&mut self) -> Result<Message, Error> {
        let delivery = self.messages.next().await.ok_or("NATS has ended the subscription")??;
        let headers = delivery.headers.iter().flat_map(|headers| headers.iter());
        let headers = headers.flat_map(|(name, values)| {
            values.iter().map(move |value| (name.to_string(), value.as_str().as_bytes().to_vec()))
        });
        let message = Message { headers: headers.collect(), payload: delivery.payload.to_vec() };
        self.last = Some(delivery);
        Ok(message)
    }

    async fn acknowledge(&mut self) -> Result<(), Error> {
        if let Some(delivery) = self.last.take() {
            delivery.ack().await?;
        }
        Ok(())
    }
}
