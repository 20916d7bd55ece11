//! The events that an operator means, as conditions of a statement.

use outbox_core::EventFilter;
use sqlx::{MySql, QueryBuilder};

use crate::enqueue::storable;

pub(super) fn push_filter(query: &mut QueryBuilder<MySql>, filter: &EventFilter) {
    if !filter.ids.is_empty() {
        query.push(" AND o.id IN (");
        let mut ids = query.separated(", ");
        for id in &filter.ids {
            ids.push_bind(*id);
        }
        query.push(")");
    }
    if let Some(status) = filter.status {
        query.push(" AND o.status = ").push_bind(status.code());
    }
    if let Some(cause) = filter.cause {
        query.push(" AND o.cause = ").push_bind(cause.as_str());
    }
    let texts = [
        (" AND o.aggregate_type = ", &filter.aggregate_type),
        (" AND o.aggregate_id = ", &filter.aggregate_id),
        (" AND o.event_type = ", &filter.event_type),
    ];
    for (condition, text) in texts {
        if let Some(text) = text {
            query.push(condition).push_bind(text.clone().into_bytes());
        }
    }
    for (condition, time) in
        [(" AND o.created_at >= ", filter.created_from), (" AND o.created_at < ", filter.created_before)]
    {
        if let Some(time) = time {
            query.push(condition).push_bind(storable(time));
        }
    }
    if let Some(after) = filter.after {
        query.push(" AND o.sequence > ").push_bind(after);
    }
}
