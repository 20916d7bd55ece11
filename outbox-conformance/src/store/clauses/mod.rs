//! The table of clauses, from which both [`STORE_CLAUSES`] and [`store_suite!`](crate::store_suite) are made.

mod crowding;
mod holding;
mod listing;
mod operating;
mod reading;
mod relays;
mod retaining;
mod ruling;
mod settling;
mod storming;
mod writing;

use crate::StoreClause;

macro_rules! store_clauses {
    ($d:tt $($module:ident :: $name:ident $sentence:literal;)+) => {
        /// Every clause of the contract of a store that the suite asks.
        pub const STORE_CLAUSES: &[StoreClause] = &[
            $(StoreClause {
                name: stringify!($name),
                sentence: $sentence,
                run: |stage| Box::pin($module::$name(stage)),
            },)+
        ];

        /// One `#[test]` for each of [`STORE_CLAUSES`], on the [`StoreHarness`](crate::StoreHarness) that is
        /// named: `store_suite!(MyHarness);`.
        #[macro_export]
        macro_rules! store_suite {
            ($d harness:ty) => {
                $(
                    #[test]
                    fn $name() {
                        $d crate::run_store_clause::<$d harness>(
                            concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")),
                            stringify!($name),
                        );
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
    writing::every_kind_of_payload_is_returned_as_written
        "a payload comes back byte for byte, text or not; one that is absent is not one that is empty";
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

    crowding::a_full_aggregate_is_not_returned
        "rows of an aggregate that is named as full are not returned, by any reader, and others are";
    crowding::a_full_aggregate_keeps_nobody_back
        "events behind a long backlog of a full aggregate are returned";
    crowding::what_was_full_comes_in_order
        "an aggregate that is not full any more is read on from where it was left, in order and without a gap";
    crowding::a_late_commit_of_what_was_full_is_returned
        "a lower sequence that commits while its aggregate is full is returned once it is not, before later ones";
    crowding::a_full_aggregate_that_is_claimed_anew_comes_from_the_beginning
        "where the relay left a full aggregate is forgotten with the lease of its partition";
    crowding::a_due_hold_of_a_full_aggregate_is_returned
        "a due hold is returned whether its aggregate is full or not, and what waits behind it once it is not";

    storming::nothing_is_lost_or_overtaken_when_sent_rows_are_kept
        "with Keep, whatever commits late, fails, is held, paused, full or claimed anew, nothing is lost and nothing overtakes";
    storming::nothing_is_lost_or_overtaken_when_sent_rows_are_deleted
        "with Delete, whatever commits late, fails, is held, paused, full or claimed anew, nothing is lost and nothing overtakes";
    storming::nothing_is_lost_or_overtaken_when_sent_rows_are_archived
        "with Archive, whatever commits late, fails, is held, paused, full or claimed anew, nothing is lost and nothing overtakes";

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

    settling::sent_rows_are_kept
        "with Keep, a sent row stays as sent, with its time and attempts, and is not returned again";
    settling::sent_rows_are_deleted
        "with Delete, a sent row is gone with the settle, and is not in the archive";
    settling::sent_rows_are_archived
        "with Archive, a sent row is in the archive with the settle, and nowhere else";
    settling::a_failed_event_releases_its_successors
        "an event that failed with Release is kept with its cause, and its successors go on";
    settling::outcomes_are_recorded_together
        "one settle records many outcomes of every kind, each to its own event";
    settling::settling_twice_counts_once
        "a settle that is repeated changes nothing, and neither does one of an event that is not pending";
    settling::a_stale_lease_is_fenced_and_the_others_are_recorded
        "nothing is changed under a lost lease, which is named, and everything else of the settle is recorded";
    settling::a_settle_needs_the_owner_and_the_epoch
        "a lease is matched by owner and epoch: another relay, an old epoch and a released lease are fenced";
    settling::what_the_database_refuses_is_an_error_of_its_own
        "an outcome that the database refuses is an error that is neither an outage nor a conflict, nothing of its settle \
         is recorded, and all else can be";
    settling::an_attempt_is_recorded_under_the_lease
        "begin_attempt records the number of attempts, and without the lease it records nothing";

    holding::a_retry_holds_its_aggregate_alone
        "after a Retry its aggregate is not returned, by any reader, and others are";
    holding::a_due_hold_is_returned_alone
        "a due hold is returned with its event and nothing else of its aggregate, until it has been dealt with";
    holding::a_hold_that_goes_on_becomes_due_again
        "a due hold whose event is held again is returned again when that time comes";
    holding::every_due_hold_gets_its_turn
        "due holds count as rows for events_max, and all of them come in the end";
    holding::the_longest_due_hold_comes_first
        "due holds come in the order in which they became due";
    holding::a_hold_outlives_its_relay
        "a hold and its attempts are inherited by the next owner of the partition";
    holding::a_parked_aggregate_waits_for_an_operator
        "a park holds the aggregate without end; resumed, it is a due hold without an event";
    holding::a_hold_keeps_the_lower_sequence_and_the_later_time
        "a Retry beside a hold of another event keeps the lower sequence and the later time; of its own event, its own";
    holding::the_end_of_another_event_leaves_the_hold
        "a hold is removed by the end of its own event only";
    holding::an_unhold_removes_only_what_holds_nothing
        "an unhold removes a hold that is due, unchanged, not paused, and whose event is not pending";

    ruling::every_hold_follows_the_rules
        "whatever is settled, requeued, discarded, paused and resumed, each hold is what the rules of `Hold` make of it";

    operating::a_requeued_event_is_delivered_next
        "a failed event that is requeued is pending without attempts and comes next, as a due hold";
    operating::requeued_events_come_in_order
        "of several events of an aggregate that are requeued the first is held, and the others follow it";
    operating::a_requeue_beside_a_hold_keeps_its_time
        "a requeue beside a hold of another event keeps the lower sequence and the hold's time; a pause stays a pause";
    operating::only_failed_events_are_requeued
        "events that are pending, held or sent are not touched by a requeue";
    operating::a_discarded_event_is_given_up
        "failed, held and parked events can be discarded, and the successors of a held or parked one go on";
    operating::a_plain_pending_event_is_not_discarded
        "events that are pending without being held, or sent, are not touched by a discard";
    operating::a_paused_aggregate_is_kept_back
        "a paused aggregate is not returned, and after resume it comes as a due hold without an event";
    operating::a_pause_is_told_to_the_reader
        "an aggregate that is paused while a reader is at work is among its paused ones";
    operating::a_pause_outlasts_its_event
        "a pause stays a pause through the end or the retry of an event that was in flight";
    operating::a_pause_keeps_the_hold_beneath_it
        "an aggregate that is paused while it is held comes back with its held event";
    operating::resume_says_whether_there_was_a_hold
        "resume answers true if there was a hold, and false if there was none";
    operating::a_paused_topic_is_in_the_membership
        "a paused topic is named by the membership and the operator's list, until it is resumed";
    operating::resuming_a_topic_makes_its_holds_due
        "resume_topic makes holds for a topic due, and no others";
    operating::a_list_is_filtered_and_paged
        "the operator's list keeps to every condition of its filter, to rows_max, and to ascending sequence";
    listing::a_list_keeps_to_a_time_range
        "the operator's list keeps to events written from a time on, that time included, and before another, that excluded";
    listing::archived_events_are_listed
        "the archive is listed where that is asked, by the same conditions and pages as the table, and the table else";
    listing::archived_events_are_neither_requeued_nor_discarded
        "a requeue and a discard of archived events change nothing, neither in the archive nor in the table";
    operating::holds_are_listed_as_they_become_due
        "the operator's holds are listed in the order in which they become due, at most rows_max";

    retaining::a_purge_removes_what_is_old_and_asked_for
        "a purge removes rows of the state that was asked, older than the age, at most rows_max";
    retaining::a_purge_can_archive
        "a purge moves rows to the archive where that was asked";
    retaining::a_requeued_event_is_not_purged
        "an event that is requeued, before a purge or beside it, is not removed by it";
    retaining::stats_count_what_is_there
        "stats count events by status, holds, live relays and owned partitions";
    retaining::quick_stats_count_what_waits
        "quick stats count what is pending, failed and held, and not what was sent";
    retaining::a_fresh_store_has_no_findings
        "check finds nothing wrong with a store that was just migrated, nor with one in use";
}
