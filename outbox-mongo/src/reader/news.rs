//! All that a fetch has to know before it reads events, by one statement: an idle relay has one more, the
//! scan.

use std::collections::HashMap;

use mongodb::{
    ClientSession,
    bson::{Bson, DateTime as BsonDateTime, Document, RawBsonRef, RawDocument, doc},
};
use outbox_core::{AggregateKey, store::Sequence};

use super::position::{DUE_HOLDS_MAX, Position, SCHEDULED_ROWS_MAX};
use crate::{
    codec::{
        document::{Stored, pending},
        sequence::timestamp_of,
    },
    database::Database,
    error::Fault,
    holds::{Held, key_of},
    schema::VERSION_ID,
};

/// How far back pauses are looked for beyond the last fetch, in milliseconds: a pause is visible a moment
/// after its time.
const PAUSES_BACK_MS: i64 = 10_000;

/// The most pauses that one fetch takes note of.
const PAUSES_MAX: i64 = 10_000;

#[derive(Debug)]
pub(super) struct News {
    pub(super) now: BsonDateTime,
    pub(super) any_hold: bool,
    /// The holds that are due, the longest due first.
    pub(super) due: Vec<(AggregateKey, Held)>,
    /// There may be more of them.
    pub(super) more_due: bool,
    /// The pauses of late, with the time of each.
    pub(super) paused: HashMap<AggregateKey, BsonDateTime>,
    /// Scheduled events whose time has come: when that was, their sequence and aggregate.
    pub(super) scheduled: Vec<(BsonDateTime, Sequence, AggregateKey)>,
    /// When the next hold or scheduled event becomes due.
    pub(super) next_due: Option<BsonDateTime>,
}

impl News {
    /// `None` where there is no outbox.
    pub(super) async fn read(
        database: &Database,
        session: &mut ClientSession,
        position: &Position,
    ) -> Result<Option<Self>, Fault> {
        // Those that the relay has in hand are still due.
        let due_max = DUE_HOLDS_MAX + position.given.len();
        let pipeline = pipeline(database, position, due_max);
        let meta = database.snapshot(&database.names().meta);
        let mut cursor = meta.aggregate(pipeline).session(&mut *session).await?;
        if !cursor.advance(session).await? {
            return Ok(None);
        }
        let found = cursor.current();
        let Ok(now) = found.get_datetime("now") else { return Ok(None) };
        let documents = |name: &str| -> Vec<&RawDocument> {
            let list = found.get_array(name).ok().into_iter().flatten().flatten();
            list.filter_map(
                |item| if let RawBsonRef::Document(document) = item { Some(document) } else { None },
            )
            .collect()
        };
        let due: Vec<_> = documents("due").into_iter().filter_map(Held::of).collect();
        let paused = documents("paused").into_iter();
        let scheduled = documents("scheduled").into_iter().filter_map(|document| {
            let stored = Stored::of(document);
            Some((stored.available_at()?, stored.sequence()?, stored.key().0))
        });
        let next = [("next_hold", "until"), ("next_scheduled", "available_at")].into_iter().filter_map(
            |(list, name)| documents(list).first().and_then(|document| document.get_datetime(name).ok()),
        );
        Ok(Some(Self {
            now,
            any_hold: !documents("any_hold").is_empty(),
            more_due: due.len() == due_max,
            due,
            paused: paused.filter_map(|hold| key_of(hold).zip(hold.get_datetime("paused_at").ok())).collect(),
            scheduled: scheduled.collect(),
            next_due: next.min(),
        }))
    }
}

/// The statement: the document of the version, with what is looked up beside it.
pub(super) fn pipeline(database: &Database, position: &Position, due_max: usize) -> Vec<Document> {
    let names = database.names();
    let look_up = |from: &str, name: &str, pipeline: Vec<Document>| {
        doc! { "$lookup": { "from": from, "as": name, "pipeline": pipeline } }
    };
    let in_time = |name: &str, compare: &str| doc! { compare: [format!("${name}"), "$$NOW"] };
    // A null sorts before all dates and is not a date.
    let hold_until = |compare: &str| {
        let mut filter = position.of_partitions();
        filter.extend(doc! { "paused_at": Bson::Null, "until": { "$gt": BsonDateTime::MIN } });
        filter.insert("$expr", in_time("until", compare));
        doc! { "$match": filter }
    };
    let scheduled = |compare: &str, after: Document| {
        let mut filter = pending();
        filter.extend(after);
        filter.insert("$expr", in_time("available_at", compare));
        doc! { "$match": filter }
    };
    let (due_at, due_sequence) = position.due;
    let mut after = doc! { "available_at": { "$gte": due_at } };
    if due_sequence < Sequence::MAX {
        // Many can be scheduled for one moment.
        let same = doc! { "available_at": due_at, "sequence": { "$gt": timestamp_of(due_sequence) } };
        after.insert("$or", vec![doc! { "available_at": { "$gt": due_at } }, same]);
    } else {
        after = doc! { "available_at": { "$gt": due_at } };
    }
    let fields = doc! { "sequence": 1, "available_at": 1, "aggregate_type": 1, "aggregate_id": 1 };
    let pauses_from = position.fetched_at.map_or(BsonDateTime::MIN, |at| {
        BsonDateTime::from_millis(at.timestamp_millis().saturating_sub(PAUSES_BACK_MS))
    });
    let paused = doc! { "$match": { "paused_at": { "$gte": pauses_from } } };
    let by_time = doc! { "$sort": { "available_at": 1, "sequence": 1 } };
    vec![
        doc! { "$match": { "_id": VERSION_ID } },
        doc! { "$project": { "now": "$$NOW" } },
        look_up(&names.holds, "any_hold", vec![doc! { "$limit": 1 }, doc! { "$project": { "_id": 1 } }]),
        look_up(
            &names.holds,
            "due",
            vec![hold_until("$lte"), doc! { "$sort": { "until": 1 } }, doc! { "$limit": due_max as i64 }],
        ),
        look_up(
            &names.holds,
            "next_hold",
            vec![hold_until("$gt"), doc! { "$sort": { "until": 1 } }, doc! { "$limit": 1 }],
        ),
        look_up(
            &names.holds,
            "paused",
            vec![
                paused,
                doc! { "$sort": { "paused_at": -1 } },
                doc! { "$limit": PAUSES_MAX },
                doc! { "$project": { "paused_at": 1 } },
            ],
        ),
        look_up(
            &names.outbox,
            "scheduled",
            vec![
                scheduled("$lte", after),
                by_time.clone(),
                doc! { "$limit": SCHEDULED_ROWS_MAX as i64 },
                doc! { "$project": fields },
            ],
        ),
        look_up(
            &names.outbox,
            "next_scheduled",
            vec![
                scheduled("$gt", doc! { "available_at": { "$gt": BsonDateTime::MIN } }),
                by_time,
                doc! { "$limit": 1 },
                doc! { "$project": { "available_at": 1 } },
            ],
        ),
    ]
}
