//! How far a pass has come, which is not how far the main scan has.

use outbox_core::store::Sequence;

use super::Bound;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Progress {
    /// Everything that was visible up to here has been returned.
    pub(super) read: Sequence,
    /// Nothing more can become visible up to here: V at the last step of this pass, or `read`, whichever is
    /// lower. A pass has its turns, and V moves between them; what became visible late meanwhile is still to
    /// be returned.
    pub(super) visible: Sequence,
}

impl Progress {
    /// Nothing waits up to here.
    pub(super) fn at(sequence: Sequence) -> Self {
        Self { read: sequence, visible: sequence }
    }

    /// Everything visible up to `read` is returned by now.
    pub(super) fn to(read: Sequence, bound: &Bound) -> Self {
        Self { read, visible: read.min(bound.visible) }
    }

    /// What both have in common.
    pub(super) fn min(self, other: Self) -> Self {
        Self { read: self.read.min(other.read), visible: self.visible.min(other.visible) }
    }

    /// As far as either.
    pub(super) fn max(self, other: Self) -> Self {
        Self { read: self.read.max(other.read), visible: self.visible.max(other.visible) }
    }
}
