//! The table of faults: in which one way an inbox is broken, and exactly which clauses must find it out.

/// One way in which an inbox is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    // Receipts.
    OldRefused,
    ThirdCopyNew,
    OwnReceiptForgotten,
    ReceiptOutlivesRollback,
    RollbackCommits,
    CopyBesideNew,
    CopyBesideSeen,
    CopyBesideForgetsCommit,
    CopyBesideForgetsRollback,
    ConsumersMixed,
    SourcesMixed,
    NamesFolded,
    NamesTruncated,
    OutsideTaken,
    // Purges.
    PurgeTakesYoung,
    PurgeCountsNothing,
    RowsMaxIgnored,
    HorizonForgotten,
    TooOldOnce,
    OnlyPurgedTooOld,
    HorizonTooHigh,
    TooOldKept,
    HorizonFirst,
    HorizonFalls,
    PurgeOutlivesRollback,
    HorizonOfAllSources,
    PurgeOfAllConsumers,
    TimelessPurged,
    PurgedBesideNew,
    PurgesBesideForget,
    AnyAgePurged,
}

/// Each fault with the clauses that must find it out, and no others.
pub(crate) const FAULTS: &[(Fault, &[&str])] = &[
    (Fault::OldRefused, &["an_event_that_nobody_received_is_new"]),
    (
        Fault::ThirdCopyNew,
        &[
            "an_event_is_new_once_in_a_transaction",
            "an_event_that_was_received_is_seen",
            "of_many_copies_one_has_its_effect",
        ],
    ),
    (Fault::OwnReceiptForgotten, &["an_event_is_new_once_in_a_transaction"]),
    (
        Fault::ReceiptOutlivesRollback,
        &["a_copy_is_new_after_the_rollback_of_the_first", "a_receipt_that_was_rolled_back_never_was"],
    ),
    (
        Fault::RollbackCommits,
        &["a_copy_is_new_after_the_rollback_of_the_first", "a_receipt_that_was_rolled_back_never_was"],
    ),
    (
        Fault::CopyBesideNew,
        &[
            "a_copy_is_new_after_the_rollback_of_the_first",
            "a_copy_waits_for_the_commit_of_the_first",
            "of_many_copies_one_has_its_effect",
        ],
    ),
    (
        Fault::CopyBesideSeen,
        &["a_copy_is_new_after_the_rollback_of_the_first", "a_copy_waits_for_the_commit_of_the_first"],
    ),
    (
        Fault::CopyBesideForgetsCommit,
        &["a_copy_waits_for_the_commit_of_the_first", "of_many_copies_one_has_its_effect"],
    ),
    (Fault::CopyBesideForgetsRollback, &["a_copy_is_new_after_the_rollback_of_the_first"]),
    (
        Fault::ConsumersMixed,
        &[
            "a_purge_leaves_other_consumers_and_sources",
            "consumers_are_apart",
            "names_that_look_alike_stay_apart",
            "the_longest_names_are_taken",
        ],
    ),
    (
        Fault::SourcesMixed,
        &[
            "a_purge_leaves_other_consumers_and_sources",
            "names_that_look_alike_stay_apart",
            "sources_are_apart",
            "the_longest_names_are_taken",
        ],
    ),
    (Fault::NamesFolded, &["names_that_look_alike_stay_apart"]),
    (Fault::NamesTruncated, &["the_longest_names_are_taken"]),
    (Fault::OutsideTaken, &["outside_a_transaction_is_refused"]),
    (Fault::PurgeTakesYoung, &["a_purge_removes_old_receipts_only"]),
    (
        Fault::PurgeCountsNothing,
        &[
            "a_copy_beside_a_purge_is_not_new",
            "a_purge_leaves_other_consumers_and_sources",
            "a_purge_removes_old_receipts_only",
            "a_purge_takes_the_oldest_first",
            "a_purge_that_was_rolled_back_never_was",
            "a_purged_event_is_too_old",
            "a_receipt_before_the_horizon_is_seen",
            "a_receipt_without_a_time_is_kept",
            "an_event_after_the_horizon_is_new",
            "an_event_before_the_horizon_is_too_old",
            "purges_beside_each_other_forget_nothing",
            "the_horizon_never_falls",
            "what_is_too_old_leaves_nothing",
        ],
    ),
    (Fault::RowsMaxIgnored, &["a_purge_takes_the_oldest_first", "a_receipt_before_the_horizon_is_seen"]),
    (
        Fault::HorizonForgotten,
        &[
            "a_copy_beside_a_purge_is_not_new",
            "a_purge_leaves_other_consumers_and_sources",
            "a_purge_takes_the_oldest_first",
            "a_purged_event_is_too_old",
            "a_receipt_before_the_horizon_is_seen",
            "an_event_before_the_horizon_is_too_old",
            "purges_beside_each_other_forget_nothing",
            "the_horizon_never_falls",
            "what_is_too_old_leaves_nothing",
        ],
    ),
    (Fault::TooOldOnce, &["a_purged_event_is_too_old"]),
    (
        Fault::OnlyPurgedTooOld,
        &[
            "a_purge_leaves_other_consumers_and_sources",
            "an_event_before_the_horizon_is_too_old",
            "what_is_too_old_leaves_nothing",
        ],
    ),
    (
        Fault::HorizonTooHigh,
        &["a_purge_leaves_other_consumers_and_sources", "an_event_after_the_horizon_is_new"],
    ),
    (Fault::TooOldKept, &["what_is_too_old_leaves_nothing"]),
    (
        Fault::HorizonFirst,
        &["a_purge_leaves_other_consumers_and_sources", "a_receipt_before_the_horizon_is_seen"],
    ),
    (Fault::HorizonFalls, &["the_horizon_never_falls"]),
    (
        Fault::PurgeOutlivesRollback,
        &["a_copy_beside_a_purge_is_not_new", "a_purge_that_was_rolled_back_never_was"],
    ),
    (Fault::HorizonOfAllSources, &["a_purge_leaves_other_consumers_and_sources"]),
    (Fault::PurgeOfAllConsumers, &["a_purge_leaves_other_consumers_and_sources"]),
    (Fault::TimelessPurged, &["a_receipt_without_a_time_is_kept"]),
    (Fault::PurgedBesideNew, &["a_copy_beside_a_purge_is_not_new"]),
    (Fault::PurgesBesideForget, &["purges_beside_each_other_forget_nothing"]),
    (Fault::AnyAgePurged, &["young_receipts_are_not_purged"]),
];
