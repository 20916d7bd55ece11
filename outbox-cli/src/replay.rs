//! `outbox replay`: publishes events of the past once more.

use std::{convert::Infallible, io::IsTerminal, num::NonZeroU32, sync::Arc, time::Duration};

use chrono::Utc;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use outbox_core::{
    Finding, Publisher, Replay, ReplayConfig, TopicTemplate, chain,
    replay::{Refusal, ReplayEnd, ReplayPlan, ReplayProgress},
    settings::Problem,
    store::Sequence,
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    config::Config,
    filter::{Chosen, Conditions},
    operate::events,
    output::{self, Failure, LogFormat, has_errors, name_findings},
    relay::Signals,
    table::printable,
};

/// How often the log says how far it is, where there is no terminal to show a bar.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Args)]
pub(crate) struct ReplayArgs {
    /// Where the events go: a topic, or a template such as {aggregate_type}.replayed. A consumer with an
    /// inbox ignores what it has seen, so that a replay is for another consumer
    #[arg(
        long,
        value_name = "TOPIC",
        required_unless_present = "same_topics",
        conflicts_with = "same_topics"
    )]
    topic: Option<TopicTemplate>,

    /// Send them where relay.topic, or the event itself, says: the past arrives among the present
    #[arg(long)]
    same_topics: bool,

    #[command(flatten)]
    chosen: Chosen,

    #[command(flatten)]
    conditions: Conditions,

    /// Resume after this sequence
    #[arg(long, value_name = "SEQUENCE")]
    after: Option<Sequence>,

    /// At most so many events a second
    #[arg(long, value_name = "EVENTS")]
    rate: Option<NonZeroU32>,

    /// Count what would be sent, and send nothing
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(config: Config, args: ReplayArgs, format: LogFormat) -> Result<(), Failure> {
    let (outbox, publisher) = config.one()?;
    let mut filter = args.chosen.apply(args.conditions.filter().after(args.after));
    // A replay of what is being sent meanwhile would have no end.
    filter.created_before = filter.created_before.or_else(|| Some(Utc::now()));
    let topic = args.topic.clone().unwrap_or_else(|| outbox.relay.topic.clone());
    let settings = ReplayConfig::new(filter, topic)
        .with_own_topics(args.same_topics)
        .with_rate(args.rate)
        .with_source(outbox.relay.source.clone())
        .with_publish_timeout(outbox.relay.publish_timeout)
        .with_retry(outbox.relay.retry.clone())
        .with_unavailable_delay(outbox.relay.unavailable_delay);
    let publisher = match publisher {
        Some(publisher) if !args.dry_run => publisher.open()?,
        _ => Arc::new(outbox_core::memory::MemoryPublisher::new()),
    };
    let topics = settings.topic.topics();
    let admin = outbox.store.open().await?.admin;
    let new = || {
        Replay::new(Arc::clone(&admin), Arc::clone(&publisher), settings.clone()).map_err(|error| {
            let finding = |problem: &Problem| {
                Finding::error("settings", format!("{} {}", problem.setting, problem.what), &*problem.remedy)
            };
            error.problems().iter().map(finding).collect::<Vec<_>>()
        })
    };
    let (replay, plan) = (new()?, new()?);
    if args.dry_run {
        let plan = plan.plan(|_| ()).await?;
        return if args.json {
            output::print_json(&plan_json(&plan))
        } else {
            output::print(&plan_text(&plan))
        };
    }
    let findings = publisher.check(&topics).await;
    if has_errors(&findings) {
        return Err(findings.into());
    }
    name_findings(&findings, format);
    send(replay, &plan, &*publisher, args.json).await
}

/// Sends what is to be sent, while `plan` counts how much that is.
async fn send(replay: Replay, plan: &Replay, publisher: &dyn Publisher, json: bool) -> Result<(), Failure> {
    let (id, mut handle) = (replay.id(), replay.handle());
    let mut signals = Signals::new()?;
    let stop = async {
        let name = signals.next().await;
        tracing::info!("{name}: finishing what is in flight");
    };
    let mut view = View::new();
    let bar = view.bar.clone();
    // The bar's end is counted beside the replay, and moves until the count is done.
    let counting = async {
        if let Some(bar) = bar {
            let _ = plan.plan(|plan| bar.set_length(plan.events)).await;
        }
        std::future::pending::<Infallible>().await
    };
    let watching = async {
        let mut shown = ReplayProgress::default();
        while let Ok(progress) = handle.wait_for(|progress| *progress != shown).await {
            view.show(&progress);
            shown = progress;
        }
        std::future::pending::<Infallible>().await
    };
    let (progress, end) = tokio::select! {
        biased;
        done = replay.run_until(stop) => done,
        never = watching => match never {},
        never = counting => match never {},
    };
    view.show(&progress);
    view.finish();
    publisher.close().await;
    let (ended, why) = match &end {
        ReplayEnd::Complete => ("complete", None),
        ReplayEnd::Stopped => ("stopped", None),
        ReplayEnd::Store(error) => ("failed", Some(chain(error).to_string())),
    };
    if json {
        output::print_json(&progress_json(id, &progress, ended))?;
    } else {
        output::print(&progress_text(&progress, ended))?;
    }
    match (why, &end) {
        (Some(error), _) => Err(Failure::Runtime(error)),
        (None, ReplayEnd::Complete) if progress.refused == 0 => Ok(()),
        _ => Err(Failure::Runtime("the replay is not complete".to_owned())),
    }
}

/// A bar on a terminal, else a line of the log now and then.
struct View {
    bar: Option<ProgressBar>,
    logged_at: std::time::Instant,
    waiting_for: Option<String>,
}

impl View {
    fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = "{bar:30} {pos} of {len}  {per_sec}  {eta} left  {msg}";
            // The style is a constant that parses.
            let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(0).with_style(style)
        });
        Self { bar, logged_at: std::time::Instant::now(), waiting_for: None }
    }

    fn show(&mut self, progress: &ReplayProgress) {
        if progress.waiting_for != self.waiting_for {
            self.waiting_for.clone_from(&progress.waiting_for);
            match (&self.bar, &self.waiting_for) {
                (Some(bar), waiting) => {
                    bar.set_message(waiting.as_deref().map(printable).unwrap_or_default());
                }
                (None, Some(error)) => tracing::warn!(error, "waiting"),
                (None, None) => tracing::info!("going on"),
            }
        }
        match &self.bar {
            Some(bar) => bar.set_position(progress.sent + progress.refused),
            None if self.logged_at.elapsed() >= LOG_INTERVAL => {
                self.logged_at = std::time::Instant::now();
                let &ReplayProgress { sent, refused, retried, .. } = progress;
                tracing::info!(sent, refused, retried, position = progress.position, "replaying");
            }
            None => {}
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}

fn plan_text(plan: &ReplayPlan) -> String {
    let range = plan.range.map(|(first, last)| format!(", sequences {first} to {last}")).unwrap_or_default();
    let mut out = format!(
        "{} with {} bytes of payload would be sent{range}\n",
        events(plan.events),
        plan.payload_bytes
    );
    for (topic, count) in &plan.topics {
        out.push_str(&format!("  {count} to {}\n", printable(topic)));
    }
    if plan.other_topics > 0 {
        out.push_str(&format!("  {} to other topics\n", plan.other_topics));
    }
    out.push_str(&refusals_text(plan.refused, &plan.refusals));
    out
}

fn progress_text(progress: &ReplayProgress, ended: &str) -> String {
    let mut out = format!("{} sent, the replay is {ended}\n", events(progress.sent));
    if let Some(position) = progress.position.filter(|_| ended != "complete") {
        out.push_str(&format!("resume it with --after {position}\n"));
    }
    out.push_str(&refusals_text(progress.refused, &progress.refusals));
    out
}

fn refusals_text(count: u64, refusals: &[Refusal]) -> String {
    let mut out = String::new();
    if count > 0 {
        out.push_str(&format!("{} cannot be sent:\n", events(count)));
    }
    for Refusal { sequence, id, error, .. } in refusals {
        let id = id.map(|id| format!(" {id}")).unwrap_or_default();
        out.push_str(&format!("  {sequence}{id}: {}\n", printable(error)));
    }
    out
}

fn plan_json(plan: &ReplayPlan) -> Value {
    let topics: serde_json::Map<String, Value> =
        plan.topics.iter().map(|(topic, count)| (topic.to_string(), (*count).into())).collect();
    json!({
        "events": plan.events,
        "payload_bytes": plan.payload_bytes,
        "first": plan.range.map(|(first, _)| first),
        "last": plan.range.map(|(_, last)| last),
        "topics": topics,
        "other_topics": plan.other_topics,
        "refused": plan.refused,
        "refusals": refusals_json(&plan.refusals),
    })
}

fn progress_json(id: Uuid, progress: &ReplayProgress, ended: &str) -> Value {
    json!({
        "replay": id.to_string(),
        "ended": ended,
        "sent": progress.sent,
        "retried": progress.retried,
        "position": progress.position,
        "refused": progress.refused,
        "refusals": refusals_json(&progress.refusals),
    })
}

fn refusals_json(refusals: &[Refusal]) -> Vec<Value> {
    let json = |Refusal { sequence, id, error, .. }: &Refusal| {
        let id = id.map(|id| id.to_string());
        json!({"sequence": sequence, "id": id, "error": error})
    };
    refusals.iter().map(json).collect()
}
