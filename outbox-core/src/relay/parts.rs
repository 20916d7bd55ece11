//! What a relay is made of: [`Parts`].

use std::sync::Arc;

use super::{Observer, RelayConfig};
use crate::{OutboxStore, Publisher, clock::Clock};

/// The parts that every task needs.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) store: Arc<dyn OutboxStore>,
    pub(crate) publisher: Arc<dyn Publisher>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) config: RelayConfig,
    pub(crate) observer: Option<Arc<dyn Observer>>,
}
