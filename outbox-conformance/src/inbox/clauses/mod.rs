//! The table of clauses, from which both [`INBOX_CLAUSES`] and [`inbox_suite!`](crate::inbox_suite) are made.

mod purging;
mod receiving;

use crate::InboxClause;

macro_rules! inbox_clauses {
    ($d:tt $($module:ident :: $name:ident $sentence:literal;)+) => {
        /// Every clause of the contract of an inbox that the suite asks.
        pub const INBOX_CLAUSES: &[InboxClause] = &[
            $(InboxClause {
                name: stringify!($name),
                sentence: $sentence,
                run: |stage| Box::pin($module::$name(stage)),
            },)+
        ];

        /// One `#[test]` for each of [`INBOX_CLAUSES`], on the [`InboxHarness`](crate::InboxHarness) that is
        /// named: `inbox_suite!(MyHarness);`.
        #[macro_export]
        macro_rules! inbox_suite {
            ($d harness:ty) => {
                $(
                    #[test]
                    fn $name() {
                        $d crate::run_inbox_clause::<$d harness>(
                            concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")),
                            stringify!($name),
                        );
                    }
                )+
            };
        }
    };
}

inbox_clauses! { $
    receiving::an_event_that_nobody_received_is_new
        "an event that no transaction has received is new";
    receiving::an_event_that_was_received_is_seen
        "an event whose receipt has committed is seen by every later transaction";
    receiving::an_event_is_new_once_in_a_transaction
        "an event that the same transaction has received already is seen";
    receiving::a_receipt_that_was_rolled_back_never_was
        "an event whose receipt was rolled back is new, and its effect was not made";
    receiving::of_many_copies_one_has_its_effect
        "of many copies that are handled at the same time, one has its effect";
    receiving::a_copy_waits_for_the_commit_of_the_first
        "a copy is not answered while the first is being handled, and seen once that has committed";
    receiving::a_copy_is_new_after_the_rollback_of_the_first
        "a copy is not answered while the first is being handled, and new once that was rolled back";
    receiving::consumers_are_apart
        "what one consumer has received is new to another";
    receiving::sources_are_apart
        "an id that was received from one source is new from another";
    receiving::names_that_look_alike_stay_apart
        "names that differ in one byte are different names";
    receiving::the_longest_names_are_taken
        "consumers, sources and ids of the greatest length are taken whole";
    receiving::outside_a_transaction_is_refused
        "outside a transaction a receipt is refused and nothing is written";

    purging::a_purge_removes_old_receipts_only
        "a purge removes receipts of events that are older than the age, counts them, and leaves the others";
    purging::a_purge_takes_the_oldest_first
        "a purge removes at most rows_max receipts, those of the oldest events";
    purging::a_purged_event_is_too_old
        "an event of which the receipt was purged is too old, however often it comes";
    purging::an_event_before_the_horizon_is_too_old
        "an event that is as old as a purged one, or older, is too old although it was never received";
    purging::an_event_after_the_horizon_is_new
        "an event that is later than every purged one is new, however old it is";
    purging::what_is_too_old_leaves_nothing
        "an event that is too old leaves no receipt";
    purging::a_receipt_before_the_horizon_is_seen
        "an event of which the receipt is still there is seen, wherever the horizon is";
    purging::the_horizon_never_falls
        "a purge of older events than those before leaves the horizon where it is";
    purging::a_purge_that_was_rolled_back_never_was
        "a purge that was rolled back removes nothing and raises no horizon";
    purging::a_purge_leaves_other_consumers_and_sources
        "a purge of one consumer's inbox changes nothing for another, nor for sources of which nothing was purged";
    purging::a_receipt_without_a_time_is_kept
        "a receipt of an event without a time is never purged, and such an event is never too old";
    purging::a_copy_beside_a_purge_is_not_new
        "a copy of an event that is being purged is never new, whether the purge commits or not";
    purging::purges_beside_each_other_forget_nothing
        "of events that several purges take at the same time, none is new afterwards";
    purging::young_receipts_are_not_purged
        "a purge with an age below the least is refused and removes nothing";
}
