//! How partitions are shared: pure functions of the membership.

use crate::store::{Epoch, Membership, Owner, Partition};

/// The most partitions one of `relays` relays should own: everybody's ceiling covers everything.
pub(crate) fn fair_share(partitions: usize, relays: u32) -> usize {
    partitions.div_ceil(relays.max(1) as usize)
}

/// The free partitions that a relay owning `owned` should try to claim, in an order that differs between
/// relays, so that they do not all run for the same ones.
pub(crate) fn wanted(
    membership: &Membership,
    owned: usize,
    rng: &mut fastrand::Rng,
) -> Vec<(Partition, Epoch)> {
    let share = fair_share(membership.partitions.len(), membership.relays_live);
    let mut free: Vec<(Partition, Epoch)> = membership
        .partitions
        .iter()
        .filter(|view| view.owner == Owner::Free)
        .map(|view| (view.partition, view.epoch))
        .collect();
    rng.shuffle(&mut free);
    free.truncate(share.saturating_sub(owned));
    free
}

/// How many of `owned` partitions are to be given up so that others can have their share.
pub(crate) fn surplus(membership: &Membership, owned: usize) -> usize {
    owned.saturating_sub(fair_share(membership.partitions.len(), membership.relays_live))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::PartitionView;

    fn membership(relays_live: u32, free: u16, taken: u16) -> Membership {
        let view = |partition, owner| PartitionView { partition, epoch: 7, owner };
        Membership {
            relays_live,
            partitions: (0..free)
                .map(|partition| view(partition, Owner::Free))
                .chain((free..free + taken).map(|partition| view(partition, Owner::Other)))
                .collect(),
            paused_topics: Vec::new(),
        }
    }

    #[test]
    fn every_partition_is_covered_and_nobody_has_more_than_a_ceiling() {
        for relays in 1..=70_u32 {
            let share = fair_share(64, relays);
            assert!(share * relays as usize >= 64, "{relays} relays leave partitions uncovered");
            assert!((share - 1) * (relays as usize) < 64, "{relays} relays take more than a ceiling");
        }
        assert_eq!(fair_share(64, 0), 64, "a relay that does not see itself does not divide by zero");
    }

    #[test]
    fn a_relay_claims_free_ones_up_to_its_share_and_no_more() {
        let mut rng = fastrand::Rng::with_seed(1);
        assert_eq!(wanted(&membership(1, 64, 0), 0, &mut rng).len(), 64);
        assert_eq!(wanted(&membership(2, 64, 0), 0, &mut rng).len(), 32);
        assert_eq!(wanted(&membership(2, 10, 54), 30, &mut rng).len(), 2);
        assert_eq!(wanted(&membership(2, 0, 64), 0, &mut rng).len(), 0);
        assert_eq!(surplus(&membership(2, 0, 64), 64), 32);
        assert_eq!(surplus(&membership(2, 0, 64), 32), 0);
    }
}
