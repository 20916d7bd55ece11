//! What the inboxes of a store have received: [`InboxState`], and [`InboxWork`] of an open transaction.

use std::collections::{BTreeMap, BTreeSet};

use super::time::Time;

/// Consumer, source and id.
pub(super) type ReceiptKey = (String, String, String);

/// Consumer and source.
pub(super) type HorizonKey = (String, String);

/// The inboxes' tables.
#[derive(Debug, Default)]
pub(super) struct InboxState {
    pub(super) receipts: BTreeMap<ReceiptKey, Option<Time>>,
    /// What open transactions have received.
    pub(super) open: BTreeSet<ReceiptKey>,
    pub(super) horizons: BTreeMap<HorizonKey, Time>,
}

/// What a transaction has done to the inboxes.
#[derive(Debug, Default)]
pub(super) struct InboxWork {
    pub(super) received: BTreeMap<ReceiptKey, Option<Time>>,
    pub(super) purged: BTreeSet<ReceiptKey>,
    pub(super) raised: BTreeMap<HorizonKey, Time>,
}

impl InboxState {
    pub(super) fn commit(&mut self, work: InboxWork) {
        for key in &work.purged {
            self.receipts.remove(key);
        }
        for (key, time) in work.raised {
            let horizon = self.horizons.entry(key).or_insert(time);
            *horizon = time.max(*horizon);
        }
        for (key, time) in work.received {
            self.open.remove(&key);
            self.receipts.insert(key, time);
        }
    }

    pub(super) fn roll_back(&mut self, work: &InboxWork) {
        for key in work.received.keys() {
            self.open.remove(key);
        }
    }
}
