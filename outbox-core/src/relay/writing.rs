//! The task that records outcomes, one statement after the other: [`write`].

use std::sync::Arc;

use tokio::sync::mpsc;

use super::{
    StoreWork,
    happening::{Happening, Written},
    parts::Parts,
};
use crate::{
    StoreError, StoreErrorKind,
    retry::backoff,
    store::{Lease, Outcome, RelayId, Sequence, SettleRequest, Settled, Settlement, Unhold, WhenSent},
};

/// What is written in place of an error's text that the database refuses.
const PLAIN_ERROR: &str = "the database refused to store what went wrong: see the relay's log";

/// What the settler is asked to write.
pub(crate) enum Write {
    Settle(Arc<SettleRequest>),
    Attempt(RelayId, Lease, Sequence, u32),
}

/// Writes as it is told, one thing after the other, each until it has succeeded or the store refuses it by
/// itself: an outcome that is not recorded would be published again.
pub(crate) async fn write(
    parts: Parts,
    rng: fastrand::Rng,
    mut orders: mpsc::UnboundedReceiver<Write>,
    tell: mpsc::UnboundedSender<Happening>,
) {
    let mut writer = Writer { parts, rng, tell };
    while let Some(order) = orders.recv().await {
        let happening = match order {
            Write::Settle(request) => Happening::Settled(Box::new(writer.settle(&request).await)),
            Write::Attempt(relay, lease, sequence, attempts) => {
                let store = Arc::clone(&writer.parts.store);
                let begin = || store.begin_attempt(relay, lease, sequence, attempts);
                Happening::AttemptBegun(writer.ask(begin).await)
            }
        };
        let _ = writer.tell.send(happening);
    }
}

/// True if the store would refuse the same again, for a reason that is in what it was asked to write: a
/// trigger, a constraint, a row that is too large for an index. A missing table or privilege can be the
/// trigger's own, so that it may concern a single row as well.
fn refuses(kind: StoreErrorKind) -> bool {
    !matches!(kind, StoreErrorKind::Unavailable | StoreErrorKind::Conflict)
}

struct Writer {
    parts: Parts,
    rng: fastrand::Rng,
    tell: mpsc::UnboundedSender<Happening>,
}

impl Writer {
    /// Asks until the store has answered: did it, or refuses it.
    async fn ask<T, F>(&mut self, mut question: impl FnMut() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let mut failures = 0;
        loop {
            match question().await {
                Err(error) if !refuses(error.kind()) => {
                    failures += 1;
                    let _ = self.tell.send(Happening::Trouble(StoreWork::Settling, error));
                    let (min, max) = self.parts.config.unavailable_delay;
                    self.parts.clock.sleep(backoff(min, max, failures, self.rng.f64())).await;
                }
                answer => return answer,
            }
        }
    }

    /// Records a request. One that the store refuses is halved until each outcome that it refuses stands
    /// alone, so that the others are recorded, in the order given.
    async fn settle(&mut self, request: &Arc<SettleRequest>) -> Written {
        let mut written = Written::default();
        let mut parts = vec![Arc::clone(request)];
        while let Some(part) = parts.pop() {
            let began_at = self.parts.clock.now();
            match self.ask_settle(&part).await {
                Ok(settled) => {
                    written.took += self.parts.clock.now().saturating_sub(began_at);
                    written.settled.fenced.extend(settled.fenced);
                }
                Err(error) => match halves(&part) {
                    Some((first, second)) => parts.extend([second, first]),
                    None => self.refused(&part, error, &mut written).await,
                },
            }
        }
        written.settled.fenced.sort_unstable();
        written.settled.fenced.dedup();
        written
    }

    async fn ask_settle(&mut self, request: &Arc<SettleRequest>) -> Result<Settled, StoreError> {
        let store = Arc::clone(&self.parts.store);
        self.ask(|| {
            let (store, request) = (Arc::clone(&store), Arc::clone(request));
            async move { store.settle(&request).await }
        })
        .await
    }

    /// The store refuses the one thing that this request has.
    async fn refused(&mut self, alone: &SettleRequest, error: StoreError, written: &mut Written) {
        let Some(settlement) = alone.settlements.first() else {
            written.unholds.extend(alone.unholds.first().map(|unhold| (unhold.clone(), error)));
            return;
        };
        match self.ask_settle(&Arc::new(plain(alone))).await {
            Ok(settled) => {
                written.settled.fenced.extend(settled.fenced);
                written.plain.push((settlement.clone(), error));
            }
            Err(_) => written.refused.push((settlement.clone(), error)),
        }
    }
}

/// The two halves of a request, each with the leases that it needs; `None` if there is one thing in it, or
/// nothing.
fn halves(request: &SettleRequest) -> Option<(Arc<SettleRequest>, Arc<SettleRequest>)> {
    let count = request.settlements.len() + request.unholds.len();
    if count < 2 {
        return None;
    }
    // Settlements come first, as they apply first.
    let at = count / 2;
    let (first, second) = request.settlements.split_at(at.min(request.settlements.len()));
    let (first_unholds, second_unholds) =
        request.unholds.split_at(at.saturating_sub(request.settlements.len()));
    let half = |settlements: &[Settlement], unholds: &[Unhold]| {
        let mut half = request.clone();
        (half.settlements, half.unholds) = (settlements.to_vec(), unholds.to_vec());
        half.leases.retain(|lease| {
            half.settlements.iter().any(|settlement| settlement.partition == lease.partition)
                || half.unholds.iter().any(|unhold| unhold.partition == lease.partition)
        });
        Arc::new(half)
    };
    Some((half(first, first_unholds), half(second, second_unholds)))
}

/// The same in the plainest form that a store can write: a sent row stays where it is, and what went wrong is
/// said in plain letters.
fn plain(request: &SettleRequest) -> SettleRequest {
    let mut request = request.clone();
    request.when_sent = WhenSent::Keep;
    for settlement in &mut request.settlements {
        if let Outcome::Retry { error, .. } | Outcome::Failed { error, .. } = &mut settlement.outcome {
            PLAIN_ERROR.clone_into(error);
        }
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::AggregateKey;

    fn request(settlements: Sequence, unholds: usize) -> SettleRequest {
        let key = AggregateKey::new("order", "1");
        let lease = |partition| Lease { partition, epoch: 1 };
        SettleRequest::new(RelayId(uuid::Uuid::nil()), (0..8).map(lease).collect())
            .with_settlements(
                (0..settlements)
                    .map(|number| Settlement::new(number, number as u16, key.clone(), 1, Outcome::Sent))
                    .collect(),
            )
            .with_unholds((0..unholds).map(|_| Unhold::new(key.clone(), 7, None)).collect())
    }

    fn parts(request: SettleRequest) -> Vec<Arc<SettleRequest>> {
        match halves(&request) {
            Some((first, second)) => [first, second].map(|half| parts((*half).clone())).concat(),
            None => vec![Arc::new(request)],
        }
    }

    #[test]
    fn halving_ends_with_each_thing_alone_in_the_order_given() {
        for (settlements, unholds) in [(1, 0), (0, 1), (5, 0), (4, 3), (1, 4), (0, 3)] {
            let parts = parts(request(settlements, unholds));
            let sequences: Vec<Sequence> =
                parts.iter().flat_map(|part| &part.settlements).map(|one| one.sequence).collect();
            assert_eq!(sequences, (0..settlements).collect::<Vec<_>>());
            assert_eq!(parts.iter().map(|part| part.unholds.len()).sum::<usize>(), unholds);
            assert_eq!(parts.len(), settlements as usize + unholds);
            // What is whole from the beginning keeps its leases.
            if parts.len() > 1 {
                assert!(
                    parts.iter().all(|part| part.leases.len() == 1),
                    "a lease for each partition, no more"
                );
            }
        }
    }
}
