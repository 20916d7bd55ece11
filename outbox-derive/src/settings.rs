//! What the attributes say: [`Settings`] of a type or a variant.

use syn::{Attribute, Error, LitInt, LitStr, Path, Result, meta::ParseNestedMeta};

/// The longest name, in bytes: `outbox_core::store::NAME_BYTES_MAX`.
const NAME_BYTES_MAX: usize = 255;

/// Where attributes stand, which decides what they may be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Place {
    Struct,
    Enum,
    Variant,
    Field,
}

impl Place {
    fn names(self) -> &'static [&'static str] {
        match self {
            Self::Struct => {
                &["aggregate_type", "event_type", "aggregate_id", "version", "topic", "content_type", "crate"]
            }
            Self::Enum => &["aggregate_type", "aggregate_id", "version", "topic", "content_type", "crate"],
            Self::Variant => &["event_type", "version", "topic"],
            Self::Field => &["aggregate_id"],
        }
    }

    fn named(self) -> &'static str {
        match self {
            Self::Struct => "a struct",
            Self::Enum => "an enum",
            Self::Variant => "a variant",
            Self::Field => "a field",
        }
    }
}

/// All attributes `#[outbox(…)]` of one type or variant.
#[derive(Default)]
pub(crate) struct Settings {
    pub(crate) aggregate_type: Option<LitStr>,
    pub(crate) event_type: Option<LitStr>,
    /// A function of `&Self`.
    pub(crate) aggregate_id: Option<Path>,
    pub(crate) version: Option<i32>,
    pub(crate) topic: Option<LitStr>,
    pub(crate) content_type: Option<LitStr>,
    pub(crate) krate: Option<Path>,
}

impl Settings {
    /// Reads the attributes of a type or a variant.
    pub(crate) fn read(attributes: &[Attribute], place: Place) -> Result<Self> {
        let mut settings = Self::default();
        for_each(attributes, place, |name, meta| settings.set(name, meta))?;
        Ok(settings)
    }

    fn set(&mut self, name: &str, meta: &ParseNestedMeta<'_>) -> Result<()> {
        match name {
            "aggregate_type" => put(&mut self.aggregate_type, name, meta, self::name(name, meta)?),
            "event_type" => put(&mut self.event_type, name, meta, self::name(name, meta)?),
            "topic" => put(&mut self.topic, name, meta, self::name(name, meta)?),
            "content_type" => put(&mut self.content_type, name, meta, json_type(name, meta)?),
            "version" => put(&mut self.version, name, meta, version(meta)?),
            "crate" => put(&mut self.krate, name, meta, meta.value()?.call(Path::parse_mod_style)?),
            _ => {
                let function = meta.value().and_then(|value| value.parse()).map_err(|_| {
                    meta.error("name a function of &Self, as in aggregate_id = Self::key, or put a bare aggregate_id on a field")
                })?;
                put(&mut self.aggregate_id, name, meta, function)
            }
        }
    }
}

/// Whether a field is marked as the aggregate's id.
pub(crate) fn is_aggregate_id(attributes: &[Attribute]) -> Result<bool> {
    let mut marked = false;
    for_each(attributes, Place::Field, |_, meta| {
        if !meta.input.is_empty() && !meta.input.peek(syn::Token![,]) {
            return Err(meta.error("aggregate_id of a field has no value: write #[outbox(aggregate_id)]"));
        }
        marked = true;
        Ok(())
    })?;
    Ok(marked)
}

/// Calls `set` with each name in each `#[outbox(…)]`, of those that the place knows.
fn for_each(
    attributes: &[Attribute],
    place: Place,
    mut set: impl FnMut(&str, &ParseNestedMeta<'_>) -> Result<()>,
) -> Result<()> {
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("outbox")) {
        attribute.parse_nested_meta(|meta| {
            let name = meta.path.get_ident().map(ToString::to_string).unwrap_or_default();
            if place.names().contains(&name.as_str()) {
                return set(&name, &meta);
            }
            let known = place.names().join(", ");
            Err(match (place, name.as_str()) {
                (Place::Enum, "event_type") => {
                    meta.error("each variant of an enum is an event type: put event_type on the variants")
                }
                _ => meta
                    .error(format!("unknown outbox attribute {name:?} on {}: it has {known}", place.named())),
            })
        })?;
    }
    Ok(())
}

fn put<T>(slot: &mut Option<T>, name: &str, meta: &ParseNestedMeta<'_>, value: T) -> Result<()> {
    if slot.replace(value).is_some() {
        return Err(meta.error(format!("{name} is given twice: leave one")));
    }
    Ok(())
}

fn text(name: &str, meta: &ParseNestedMeta<'_>) -> Result<LitStr> {
    let text = meta.value().and_then(|value| value.parse::<LitStr>());
    text.map_err(|_| meta.error(format!("{name} is a text in quotes: write {name} = \"…\"")))
}

/// A name, by the rules of `outbox_core::EventBuilder::build`, which would refuse it at each event.
fn name(name: &str, meta: &ParseNestedMeta<'_>) -> Result<LitStr> {
    let text = text(name, meta)?;
    let value = text.value();
    let problem = if value.is_empty() {
        format!("{name} is empty: name it, or leave the attribute out")
    } else if value.len() > NAME_BYTES_MAX {
        format!("{name} has {} bytes, more than the limit of {NAME_BYTES_MAX}: shorten it", value.len())
    } else if value.chars().any(char::is_control) {
        format!("{name} holds a control character: remove it")
    } else {
        return Ok(text);
    };
    Err(Error::new(text.span(), problem))
}

fn json_type(name: &str, meta: &ParseNestedMeta<'_>) -> Result<LitStr> {
    let text = self::name(name, meta)?;
    let value = text.value().to_ascii_lowercase();
    let essence = value.split(';').next().unwrap_or_default().trim();
    if essence == "application/json" || essence.ends_with("+json") {
        return Ok(text);
    }
    let problem = "content_type is of a payload that is written as JSON: end it in +json, or implement OutboxEvent by hand";
    Err(Error::new(text.span(), problem))
}

fn version(meta: &ParseNestedMeta<'_>) -> Result<i32> {
    let number = meta.value().and_then(|value| value.parse::<LitInt>());
    let number = number.map_err(|_| meta.error("version is a number from 1: write version = 2"))?;
    match number.base10_parse::<i32>() {
        Ok(version @ 1..) => Ok(version),
        _ => Err(Error::new(number.span(), format!("version is {number}: it starts at 1"))),
    }
}
