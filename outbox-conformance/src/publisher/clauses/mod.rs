//! The table of clauses, from which both [`PUBLISHER_CLAUSES`] and
//! [`publisher_suite!`](crate::publisher_suite) are made.

mod breaking;
mod checking;
mod delivering;
mod ending;
mod refusing;
mod reporting;

use crate::PublisherClause;

macro_rules! publisher_clauses {
    ($d:tt $($module:ident :: $name:ident $sentence:literal;)+) => {
        /// Every clause of the contract of a publisher that the suite asks.
        pub const PUBLISHER_CLAUSES: &[PublisherClause] = &[
            $(PublisherClause {
                name: stringify!($name),
                sentence: $sentence,
                run: |stage| Box::pin($module::$name(stage)),
            },)+
        ];

        /// One `#[test]` for each of [`PUBLISHER_CLAUSES`], on the
        /// [`PublisherHarness`](crate::PublisherHarness) that is named: `publisher_suite!(MyHarness);`.
        #[macro_export]
        macro_rules! publisher_suite {
            ($d harness:ty) => {
                $(
                    #[test]
                    fn $name() {
                        $d crate::run_publisher_clause::<$d harness>(
                            concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")),
                            stringify!($name),
                        );
                    }
                )+
            };
        }
    };
}

publisher_clauses! { $
    reporting::every_message_has_one_outcome
        "when a call returns, each of its messages has been reported exactly once, and nothing else has";
    reporting::an_outcome_belongs_to_its_message
        "of a call with sound and unsound messages, those that are reported as failed are the unsound ones";
    reporting::an_outcome_is_reported_as_soon_as_it_is_known
        "what is known of one message is reported while another one of the call still waits for the broker";
    reporting::success_means_that_it_is_stored
        "when a success is reported, the broker has the message";
    reporting::without_an_answer_nothing_is_a_success
        "a message that the broker has not acknowledged is never reported as a success, stored or not";
    reporting::what_is_called_not_stored_is_not_stored
        "an error says that the message was not stored only where it was not";
    reporting::concurrent_calls_are_kept_apart
        "calls that run at the same time each report their own messages, and all are stored";

    delivering::a_message_is_stored_once
        "while nothing fails, each message of a call is stored exactly once, however many they are";
    delivering::a_message_goes_to_its_destination
        "a message is stored at the destination that it names, and nowhere else";
    delivering::an_aggregate_keeps_its_order
        "messages of an aggregate that are published one after the other are stored in that order";
    delivering::an_aggregate_has_one_key
        "where the broker keeps messages together by a key, all of one aggregate have one, and other ids another";
    delivering::every_byte_of_a_payload_is_stored
        "a payload of any bytes is stored byte for byte, whatever its content type says";
    delivering::an_empty_payload_is_stored
        "an empty payload is stored as a message with an empty payload";
    delivering::a_tombstone_is_marked
        "an event without a payload is stored with an empty one, or none, and the attribute `tombstone`, which is `true`";
    delivering::a_large_payload_is_stored_whole
        "a payload of a megabyte, or of the declared limit if that is lower, is stored whole";
    delivering::headers_are_stored_as_written
        "the headers of an event are stored under their own names, with every character, long and empty values included";
    delivering::the_event_is_a_cloudevent
        "id, source, type, subject, time, sequence, attempt, dataversion and the content type are stored with the message";

    refusing::the_largest_payload_is_taken
        "a payload of exactly the declared limit is taken";
    refusing::a_larger_payload_is_refused_before_it_is_sent
        "a payload above the declared limit fails alone, for good and for certain, without the broker being asked";
    refusing::an_oversized_message_fails_alone
        "a message that the broker finds too large fails alone and for good, and those beside it are taken";
    refusing::an_unroutable_message_fails_alone
        "a message to a destination that does not exist fails, no further than that destination";
    refusing::a_broken_name_fails_alone
        "a message to a name that no destination can have fails alone and for good";
    refusing::a_broken_header_fails_alone
        "a message with a header that the protocol cannot carry fails alone and for good, or is stored as written";
    refusing::an_error_has_a_stable_code
        "an error has a code, a short name which is the same each time that the same thing goes wrong";
    refusing::no_text_holds_a_secret
        "no error and no finding holds a password or a key of the configuration";

    ending::nothing_is_sent_after_the_deadline
        "what a call could not send before its timeout is never sent";
    ending::nothing_is_sent_after_a_call_is_dropped
        "what a call could not send before it was dropped is never sent";
    ending::nothing_is_sent_after_a_call_returned
        "what a call reported as failed during an outage is not sent after it";
    ending::a_call_after_close_is_answered
        "a call after close panics nowhere, ends, and reports no success of what is not stored";

    breaking::a_cut_connection_is_an_unavailable_broker
        "while the broker cannot be reached, each message is reported as unavailable, with the whole broker as the scope";
    breaking::a_frozen_broker_spends_no_attempt
        "while the broker does not answer, each message is reported as unavailable, beyond that message alone";
    breaking::a_restart_needs_no_new_publisher
        "after a restart or an outage of the broker the same publisher works again by itself";
    breaking::the_delivery_timeout_is_kept
        "the publisher gives up by itself within the delivery timeout that it declares, and says so";
    breaking::a_later_message_does_not_overtake
        "if overtaking is declared impossible, nothing of an aggregate is stored behind a message of it that failed";

    checking::check_passes_what_is_there
        "check finds no error with a destination that is there, before and after it is used";
    checking::check_names_a_missing_destination
        "check names a destination that does not exist, each time it is asked, and does not create it";
    checking::check_names_a_broken_name
        "check names a destination whose name is invalid";
    checking::check_names_an_unreachable_broker
        "check ends with a finding when the broker cannot be reached, whatever destinations it is asked for, none included";
}
