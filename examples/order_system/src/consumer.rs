//! What the three services have in common: they read events without end, and handle each once.

use std::{future::Future, pin::pin, time::Duration};

use clap::Args;
use outbox::{Receipt, ReceivedEvent};

use crate::{
    broker::{Broker, message::Message},
    error::Error,
    shop::{Order, Step},
};

/// How long receipts are kept: longer than the broker keeps messages, and longer than an event can wait in
/// the order service's outbox.
pub(crate) const RECEIPTS_KEPT: Duration = Duration::from_secs(30 * 24 * 3600);

/// What a service says of an event that it has handled for the first time.
pub(crate) const HANDLED: &str = ": handled";

/// What a service says of an event that comes again.
pub(crate) const SEEN: &str = ": seen before, nothing done";

/// What a service says when it stands still, to be killed.
pub(crate) const PAUSED: &str = "committed, and stands still before the acknowledgement";

/// A service that consumes the events.
#[derive(Args)]
pub(crate) struct Consumer {
    /// The service's own database.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub(crate) database_url: String,
    #[command(flatten)]
    broker: Broker,
    /// Stand still when the effect of the N-th new event has committed and the broker does not know it yet:
    /// the worst moment to be killed.
    #[arg(long, value_name = "N")]
    pause_before_acknowledgement: Option<u64>,
}

/// A service with a database of its own.
pub(crate) trait Service: Sized {
    /// The name under which it reads and keeps its receipts, so it never changes.
    const NAME: &'static str;

    /// Opens the database, and makes what is missing in it.
    async fn open(database_url: &str) -> Result<Self, Error>;

    /// One transaction: ask the inbox, make the effect if the event is new, commit.
    async fn handle(&mut self, event: &ReceivedEvent, step: Step, order: &Order) -> Result<Receipt, Error>;

    /// Keeps a message that cannot be handled, for a person to look at.
    async fn set_aside(&mut self, message: &Message, reason: &str) -> Result<(), Error>;
}

/// Handles events until `ended`. The order is what matters: the effect commits together with the receipt, and
/// only then does the broker hear of it. Killed at any point and started again, the service makes each effect
/// once.
///
/// An error ends the process. Nothing was acknowledged then, and when it is started again, the message comes
/// again.
pub(crate) async fn run<S: Service>(
    arguments: &Consumer,
    ended: impl Future<Output = ()>,
) -> Result<(), Error> {
    let mut service = S::open(&arguments.database_url).await?;
    let mut subscription = arguments.broker.subscribe(S::NAME).await?;
    let mut ended = pin!(ended);
    let mut new = 0;
    println!("ready");
    loop {
        let message = tokio::select! {
            message = subscription.next() => message?,
            () = &mut ended => break,
        };
        match read(&message) {
            Err(problem) => service.set_aside(&message, &problem.to_string()).await?,
            // The agreement may grow: what came later is not for this service.
            Ok((_, None, _)) => {}
            Ok((event, Some(step), order)) => {
                let what = format!("{} of {}", event.event_type, order.id);
                match service.handle(&event, step, &order).await? {
                    Receipt::New => {
                        new += 1;
                        println!("{what}{HANDLED}");
                        if arguments.pause_before_acknowledgement == Some(new) {
                            println!("{what}: {PAUSED}");
                            ended.await;
                            break;
                        }
                    }
                    Receipt::Seen => println!("{what}{SEEN}"),
                    Receipt::TooOld => {
                        service.set_aside(&message, "older than the receipts that are kept").await?;
                    }
                }
            }
        }
        subscription.acknowledge().await?;
    }
    println!("ended");
    Ok(())
}

fn read(message: &Message) -> Result<(ReceivedEvent, Option<Step>, Order), Error> {
    let event = message.event()?;
    let step = Step::of_event(&event.event_type);
    let order = serde_json::from_slice(&message.payload)?;
    Ok((event, step, order))
}
