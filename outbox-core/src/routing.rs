//! Where an event goes: [`TopicTemplate`].

use std::{
    collections::HashSet,
    fmt::{self, Write},
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{AggregateKey, store::StoredEvent};

/// How many topics a template remembers, so that resolving one of them again allocates nothing. Far above the
/// number of topics of a sensible broker; it bounds memory where a template names the aggregate's id.
const TOPICS_REMEMBERED_MAX: usize = 1024;

const FIELDS: &str = "{aggregate_type}, {aggregate_id}, {event_type}, {version}, {header:NAME}";

/// A topic as a function of the event: text with fields in braces, such as `{aggregate_type}.events`.
///
/// The fields are `aggregate_type`, `aggregate_id`, `event_type`, `version` and `header:NAME`; a brace is
/// written `{{` or `}}`. The topic that an event names itself wins over the template. Cheap to clone; clones
/// share memory.
///
/// ```
/// use outbox_core::TopicTemplate;
///
/// let template: TopicTemplate = "shop.{aggregate_type}.v{version}".parse()?;
/// assert_eq!(template.to_string(), "shop.{aggregate_type}.v{version}");
/// assert!("{tenant}.events".parse::<TopicTemplate>().is_err());
/// # Ok::<(), outbox_core::relay::TemplateError>(())
/// ```
#[derive(Clone)]
pub struct TopicTemplate(Arc<Template>);

struct Template {
    source: String,
    parts: Vec<Part>,
    /// The topic of a template without a field.
    constant: Option<Arc<str>>,
    remembered: Mutex<Remembered>,
}

#[derive(Default)]
struct Remembered {
    scratch: String,
    topics: HashSet<Arc<str>>,
}

#[derive(Debug, PartialEq)]
enum Part {
    Text(String),
    AggregateType,
    AggregateId,
    EventType,
    Version,
    Header(String),
}

/// A template that cannot be one. Found at start, never by an event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// Nothing to send to.
    #[error("the topic template is empty: give a topic, or fields among {FIELDS}")]
    Empty,
    /// An opening brace without its closing one, or the other way round.
    #[error(
        "the topic template {template:?} has an unmatched brace: close each field, and write a brace as {{{{ or }}}}"
    )]
    Brace {
        /// The template.
        template: String,
    },
    /// A field that no event has.
    #[error("the topic template {template:?} names the unknown field {{{field}}}: use {FIELDS}")]
    UnknownField {
        /// The template.
        template: String,
        /// The field.
        field: String,
    },
}

/// An event that the template gives no topic.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RoutingError {
    /// The event names a topic of its own, and it is the empty text.
    #[error("the event's own topic is empty: name a topic, or none to use the template")]
    EmptyTopic,
    /// A field of the template is empty in this event.
    #[error("the topic template {template:?} asks for {{{field}}}, which is empty in this event")]
    EmptyField {
        /// The template.
        template: String,
        /// The field, `header:NAME` for a header.
        field: String,
    },
    /// The event lacks a header that the template names.
    #[error("the topic template {template:?} asks for the header {header:?}, which this event does not have")]
    MissingHeader {
        /// The template.
        template: String,
        /// The header's name.
        header: String,
    },
}

impl TopicTemplate {
    /// Reads a template.
    ///
    /// # Errors
    /// An empty text, an unmatched brace, or an unknown field, which is named beside those that there are.
    pub fn new(template: &str) -> Result<Self, TemplateError> {
        let parts = parse(template)?;
        let constant = match parts.as_slice() {
            [] => return Err(TemplateError::Empty),
            [Part::Text(text)] => Some(Arc::from(text.as_str())),
            _ => None,
        };
        let remembered = Mutex::default();
        Ok(Self(Arc::new(Template { source: template.to_owned(), parts, constant, remembered })))
    }

    /// The topics that are known before any event: one, of a template without a field.
    pub fn topics(&self) -> Vec<String> {
        self.0.constant.iter().map(|topic| topic.to_string()).collect()
    }

    /// The topic of an event.
    ///
    /// A topic that was resolved before is shared, not allocated again, unless there are more than 1024 of
    /// them.
    ///
    /// # Errors
    /// A field that the template asks for is empty or missing in this event, which is named.
    pub fn resolve(&self, key: &AggregateKey, event: &StoredEvent) -> Result<Arc<str>, RoutingError> {
        let template = &*self.0;
        if let (None, Some(constant)) = (&event.topic, &template.constant) {
            return Ok(Arc::clone(constant));
        }
        let mut guard = template.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        let Remembered { scratch, topics } = &mut *guard;
        let topic = match event.topic.as_deref() {
            Some("") => return Err(RoutingError::EmptyTopic),
            Some(topic) => topic,
            None => {
                scratch.clear();
                template.render(key, event, scratch)?;
                scratch.as_str()
            }
        };
        if let Some(known) = topics.get(topic) {
            return Ok(Arc::clone(known));
        }
        if topics.len() >= TOPICS_REMEMBERED_MAX {
            topics.clear();
        }
        let topic: Arc<str> = Arc::from(topic);
        topics.insert(Arc::clone(&topic));
        Ok(topic)
    }
}

/// `{aggregate_type}`: a topic for each type of aggregate.
impl Default for TopicTemplate {
    fn default() -> Self {
        let parts = vec![Part::AggregateType];
        let source = "{aggregate_type}".to_owned();
        Self(Arc::new(Template { source, parts, constant: None, remembered: Mutex::default() }))
    }
}

impl FromStr for TopicTemplate {
    type Err = TemplateError;

    fn from_str(template: &str) -> Result<Self, TemplateError> {
        Self::new(template)
    }
}

impl fmt::Display for TopicTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.source)
    }
}

impl fmt::Debug for TopicTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TopicTemplate({:?})", self.0.source)
    }
}

impl Template {
    fn render(
        &self,
        key: &AggregateKey,
        event: &StoredEvent,
        topic: &mut String,
    ) -> Result<(), RoutingError> {
        for part in &self.parts {
            let value = match part {
                Part::Text(text) => text,
                Part::AggregateType => key.aggregate_type(),
                Part::AggregateId => key.aggregate_id(),
                Part::EventType => &event.event_type,
                Part::Version => {
                    let _ = write!(topic, "{}", event.version);
                    continue;
                }
                Part::Header(name) => event.headers.get(name).ok_or_else(|| RoutingError::MissingHeader {
                    template: self.source.clone(),
                    header: name.clone(),
                })?,
            };
            if value.is_empty() {
                return Err(RoutingError::EmptyField { template: self.source.clone(), field: part.field() });
            }
            topic.push_str(value);
        }
        Ok(())
    }
}

impl Part {
    fn of_field(field: &str) -> Option<Self> {
        Some(match field {
            "aggregate_type" => Self::AggregateType,
            "aggregate_id" => Self::AggregateId,
            "event_type" => Self::EventType,
            "version" => Self::Version,
            _ => match field.strip_prefix("header:") {
                Some(name) if !name.is_empty() => Self::Header(name.to_owned()),
                _ => return None,
            },
        })
    }

    fn field(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::AggregateType => "aggregate_type".to_owned(),
            Self::AggregateId => "aggregate_id".to_owned(),
            Self::EventType => "event_type".to_owned(),
            Self::Version => "version".to_owned(),
            Self::Header(name) => format!("header:{name}"),
        }
    }
}

fn parse(template: &str) -> Result<Vec<Part>, TemplateError> {
    let unmatched = || TemplateError::Brace { template: template.to_owned() };
    let mut parts = Vec::new();
    let mut text = String::new();
    let mut rest = template;
    while let Some(at) = rest.find(['{', '}']) {
        text.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("{{").or_else(|| rest.strip_prefix("}}")) {
            text.push_str(&rest[..1]);
            rest = after;
            continue;
        }
        let (field, after) =
            rest.strip_prefix('{').and_then(|rest| rest.split_once('}')).ok_or_else(unmatched)?;
        if field.contains('{') {
            return Err(unmatched());
        }
        let part = Part::of_field(field).ok_or_else(|| TemplateError::UnknownField {
            template: template.to_owned(),
            field: field.to_owned(),
        })?;
        if !text.is_empty() {
            parts.push(Part::Text(std::mem::take(&mut text)));
        }
        parts.push(part);
        rest = after;
    }
    text.push_str(rest);
    if !text.is_empty() {
        parts.push(Part::Text(text));
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use uuid::Uuid;

    use super::*;

    fn event(topic: Option<&str>, headers: &[(&str, &str)]) -> StoredEvent {
        StoredEvent {
            id: Uuid::nil(),
            event_type: "order.placed".to_owned(),
            version: 3,
            payload: None,
            content_type: None,
            headers: headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
            topic: topic.map(str::to_owned),
            created_at: DateTime::UNIX_EPOCH,
        }
    }

    fn resolved(template: &str, event: &StoredEvent) -> Result<String, RoutingError> {
        let key = AggregateKey::new("order", "4711");
        TopicTemplate::new(template).unwrap().resolve(&key, event).map(|topic| topic.to_string())
    }

    #[test]
    fn every_field_is_filled_in() {
        let event = event(None, &[("tenant", "acme")]);
        for (template, topic) in [
            ("orders", "orders"),
            ("{aggregate_type}.events", "order.events"),
            ("{aggregate_type}-{aggregate_id}", "order-4711"),
            ("{event_type}.v{version}", "order.placed.v3"),
            ("{header:tenant}/{{{aggregate_type}}}", "acme/{order}"),
            ("{{}}", "{}"),
        ] {
            assert_eq!(resolved(template, &event).unwrap(), topic, "{template}");
        }
    }

    #[test]
    fn a_template_that_cannot_be_one_is_refused_by_name() {
        assert_eq!(TopicTemplate::new("").unwrap_err(), TemplateError::Empty);
        for template in ["a{", "a}", "{aggregate_type", "{{aggregate_type}", "{a{b}"] {
            let error = TopicTemplate::new(template).unwrap_err();
            assert_eq!(error, TemplateError::Brace { template: template.to_owned() });
        }
        for (template, field) in [("{tenant}.x", "tenant"), ("{}", ""), ("{header:}", "header:")] {
            let error = TopicTemplate::new(template).unwrap_err();
            assert_eq!(
                error,
                TemplateError::UnknownField { template: template.to_owned(), field: field.to_owned() }
            );
        }
        assert_eq!(
            TopicTemplate::new("{tenant}.x").unwrap_err().to_string(),
            "the topic template \"{tenant}.x\" names the unknown field {tenant}: use {aggregate_type}, \
             {aggregate_id}, {event_type}, {version}, {header:NAME}"
        );
    }

    #[test]
    fn an_events_own_topic_wins() {
        assert_eq!(resolved("orders", &event(Some("mine"), &[])).unwrap(), "mine");
        assert_eq!(resolved("{header:absent}", &event(Some("mine"), &[])).unwrap(), "mine");
        assert_eq!(resolved("orders", &event(Some(""), &[])).unwrap_err(), RoutingError::EmptyTopic);
    }

    #[test]
    fn what_an_event_lacks_is_named() {
        assert_eq!(
            resolved("{header:tenant}.events", &event(None, &[])).unwrap_err().to_string(),
            "the topic template \"{header:tenant}.events\" asks for the header \"tenant\", which this event does \
             not have"
        );
        assert_eq!(
            resolved("{header:tenant}", &event(None, &[("tenant", "")])).unwrap_err(),
            RoutingError::EmptyField {
                template: "{header:tenant}".to_owned(),
                field: "header:tenant".to_owned()
            }
        );
    }

    #[test]
    fn topics_are_known_beforehand_only_without_fields() {
        assert_eq!(TopicTemplate::new("orders").unwrap().topics(), ["orders"]);
        assert!(TopicTemplate::new("{aggregate_type}").unwrap().topics().is_empty());
    }

    #[test]
    fn a_topic_that_was_resolved_before_is_shared_and_memory_is_bounded() {
        let template = TopicTemplate::new("{aggregate_type}.events").unwrap();
        let (plain, own) = (event(None, &[]), event(Some("mine"), &[]));
        let resolve = |aggregate_type: &str, event: &StoredEvent| {
            template.resolve(&AggregateKey::new(aggregate_type, "1"), event).unwrap()
        };
        assert!(Arc::ptr_eq(&resolve("order", &plain), &resolve("order", &plain)));
        assert!(Arc::ptr_eq(&resolve("order", &own), &resolve("cart", &own)));
        assert_ne!(resolve("order", &plain), resolve("cart", &plain));
        for i in 0..3 * TOPICS_REMEMBERED_MAX {
            resolve(&i.to_string(), &plain);
            assert!(template.0.remembered.lock().unwrap().topics.len() <= TOPICS_REMEMBERED_MAX);
        }
    }
}
