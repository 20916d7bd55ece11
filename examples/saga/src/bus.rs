//! The broker, in this process: a topic is a service, and a message is acknowledged when that has committed.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use outbox::{
    Finding, Publisher,
    publisher::{Message, PublishError, Reporter},
};

use crate::service::Service;

/// Hands each message to the service of its topic.
#[derive(Clone)]
pub(crate) struct Bus(Arc<[Arc<Service>]>);

impl Bus {
    pub(crate) fn new(services: &[Arc<Service>]) -> Self {
        Self(services.into())
    }

    async fn deliver(&self, message: Arc<Message>) -> Result<(), PublishError> {
        let Some(service) = self.0.iter().find(|service| service.name() == &*message.topic).cloned() else {
            return Err(PublishError::permanent("NoTopic", format!("no service reads {}", message.topic)));
        };
        // SQLite works on the calling thread.
        let handled = tokio::task::spawn_blocking(move || service.handle(&message)).await;
        match handled {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(PublishError::transient("Refused", error.to_string())),
            Err(error) => Err(PublishError::transient("Panicked", error.to_string())),
        }
    }
}

#[async_trait]
impl Publisher for Bus {
    async fn check(&self, _topics: &[String]) -> Vec<Finding> {
        Vec::new()
    }

    async fn publish(&self, messages: Vec<Arc<Message>>, _timeout: Duration, reporter: Reporter) {
        for (index, message) in messages.into_iter().enumerate() {
            reporter.report(index, self.deliver(message).await);
        }
    }
}
