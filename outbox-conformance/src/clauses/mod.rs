//! The table of clauses, from which both [`STORE_CLAUSES`] and [`store_suite!`](crate::store_suite) are made.

mod reading;
mod relays;
mod writing;

use crate::Clause;

macro_rules! store_clauses {
    ($d:tt $($module:ident :: $name:ident $sentence:literal;)+) => {
        /// Every clause of the contract of a store that the suite asks.
        pub const STORE_CLAUSES: &[Clause] = &[
            $(Clause {
                name: stringify!($name),
                sentence: $sentence,
                run: |stage| Box::pin($module::$name(stage)),
            },)+
        ];

        /// One `#[test]` for each of [`STORE_CLAUSES`], on the [`StoreHarness`](crate::StoreHarness) that is named:
        /// `store_suite!(MyHarness);`.
        #[macro_export]
        macro_rules! store_suite {
            ($d harness:ty) => {
                $(
                    #[test]
                    fn $name() {
                        $d crate::run_store_clause::<$d harness>(stringify!($name));
                    }
                )+
            };
        }
    };
}

store_clauses! { $
    writing::a_committed_event_is_returned
        "an event whose transaction has committed is returned, once";
    writing::a_rolled_back_event_is_never_returned
        "an event whose transaction was rolled back is never returned";
    writing::an_open_transaction_is_invisible
        "no event is seen before its transaction commits";
    writing::sequences_ascend_in_the_order_given
        "the sequences of a transaction ascend in the order in which its events were given, and are above zero";
    writing::every_field_is_returned_as_written
        "every field of an event is returned as it was written, byte for byte";
    writing::a_payload_of_a_megabyte_is_returned_whole
        "the largest payload that is allowed by default is returned whole";
    writing::keys_that_look_alike_stay_apart
        "aggregates whose names differ in one byte are different aggregates";
    writing::a_duplicate_id_is_refused
        "an id is written once: the second transaction that carries it is refused and leaves nothing";
    writing::age_is_counted_by_the_stores_clock
        "created_at and age are by the store's clock, to which available_at is compared";

    reading::an_aggregate_is_returned_in_order
        "whatever the limits, rows of an aggregate come in ascending order with no earlier one missing";
    reading::events_max_is_kept
        "no more than events_max rows come at once, more says whether a limit was hit, and all come in the end";
    reading::bytes_max_is_kept
        "no row is added once the bytes of those before it reach bytes_max, and all come in the end";
    reading::one_huge_row_is_returned
        "one row is returned however large it is";
    reading::a_late_commit_is_returned_by_the_same_reader
        "a lower sequence that commits after a higher one was returned is returned by the same reader";
    reading::a_late_commit_below_settled_rows_is_returned
        "a lower sequence that commits after a higher one was settled is returned by the same reader";
    reading::known_rows_are_returned_by_a_new_reader
        "a new reader returns all that is not settled, whatever an earlier reader returned";
    reading::a_partition_that_is_claimed_anew_is_read_from_the_beginning
        "a reader that is given a lease it has not seen returns all that is pending in its partition";
    reading::only_rows_of_the_leases_are_returned
        "only rows of the partitions of the given leases are returned";
    reading::an_aggregate_has_one_partition
        "an aggregate has one partition, below the number that the store declares";
    reading::a_scheduled_event_waits_for_its_time
        "a scheduled event is not returned before its time, and then by the same reader";
    reading::a_scheduled_event_keeps_nobody_back
        "an event whose time has not come keeps back neither its aggregate nor others";
    reading::next_due_is_when_the_next_event_is_due
        "next_due, where it is known, is when the next scheduled event or hold becomes due";
    reading::an_undecodable_row_is_returned_alone
        "a row that cannot be read as an event is returned as such, and nothing else fails with it";

    relays::a_relay_lives_as_long_as_it_beats
        "a relay that joined is alive for its ttl and, with each beat, for another";
    relays::an_expired_relay_is_buried
        "a relay that has expired is told so by its beat, and never comes back";
    relays::an_expired_relay_is_not_counted
        "the membership counts the relays that have not expired, and a beat removes the others";
    relays::the_membership_names_every_partition
        "the membership names every partition, as mine, of another, or free";
    relays::a_claim_needs_the_epoch_that_was_seen
        "a claim with another epoch than the present one is refused, and a claim raises it by one";
    relays::the_partition_of_a_live_relay_is_not_claimed
        "a partition whose owner is alive is not claimed";
    relays::of_racing_claims_one_wins
        "of relays that claim the same partitions at the same time, each partition has one winner";
    relays::an_expired_relay_claims_nothing
        "a relay that is not alive claims nothing";
    relays::a_claim_says_whether_the_owner_died
        "owner_died is true if the previous owner expired, and false if it released or there was none";
    relays::a_stale_release_changes_nothing
        "a release under an old lease, or by another relay, leaves the partition alone";
    relays::leaving_releases_everything
        "a relay that leaves releases its partitions and is no longer counted";
}
