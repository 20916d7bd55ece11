//! From the type to its `impl OutboxEvent`.

use proc_macro2::{Span, TokenStream};
use quote::{quote, quote_spanned};
use syn::{Data, DataEnum, DeriveInput, Error, Fields, Ident, LitStr, Member, Result, spanned::Spanned as _};

use crate::settings::{Place, Settings, is_aggregate_id};

/// The `impl`, or a compile error that names the attribute and the remedy.
pub(crate) fn expand(input: &DeriveInput) -> Result<TokenStream> {
    let (settings, kinds) = match &input.data {
        Data::Struct(data) => {
            let settings = Settings::read(&input.attrs, Place::Struct)?;
            let kind = Kind::of_struct(&input.ident, &settings, &data.fields)?;
            (settings, vec![kind])
        }
        Data::Enum(data) => {
            let settings = Settings::read(&input.attrs, Place::Enum)?;
            let kinds = Kind::of_variants(&input.ident, &settings, data)?;
            (settings, kinds)
        }
        Data::Union(_) => {
            return Err(Error::new(input.ident.span(), "a union is not an event: use a struct or an enum"));
        }
    };
    let Some(aggregate_type) = &settings.aggregate_type else {
        return Err(missing(input.ident.span(), "aggregate_type", "order"));
    };
    Ok(implementation(input, &settings, aggregate_type, &kinds))
}

/// One event type of the Rust type: a struct, or a variant.
struct Kind {
    /// `Self`, or `Self::Variant`.
    path: TokenStream,
    /// An arm of a match that gives the aggregate's id.
    id: TokenStream,
    event_type: LitStr,
    version: i32,
    topic: Option<LitStr>,
}

impl Kind {
    fn of_struct(name: &Ident, settings: &Settings, fields: &Fields) -> Result<Self> {
        let event_type = settings.event_type.clone();
        let event_type = event_type.ok_or_else(|| missing(name.span(), "event_type", "order.placed"))?;
        let path = quote!(Self);
        let id = identify(name, &path, settings, fields)?;
        let version = settings.version.unwrap_or(1);
        Ok(Self { path, id, event_type, version, topic: settings.topic.clone() })
    }

    fn of_variants(name: &Ident, settings: &Settings, data: &DataEnum) -> Result<Vec<Self>> {
        if data.variants.is_empty() {
            return Err(Error::new(name.span(), "an enum without variants has no event type: add one"));
        }
        let mut kinds = Vec::new();
        for variant in &data.variants {
            let (variant_name, own) = (&variant.ident, Settings::read(&variant.attrs, Place::Variant)?);
            let Some(event_type) = own.event_type else {
                return Err(missing(variant_name.span(), "event_type", "order.placed"));
            };
            let path = quote!(Self::#variant_name);
            let id = identify(variant_name, &path, settings, &variant.fields)?;
            let version = own.version.or(settings.version).unwrap_or(1);
            let topic = own.topic.or_else(|| settings.topic.clone());
            kinds.push(Self { path, id, event_type, version, topic });
        }
        Ok(kinds)
    }
}

/// The arm of a match that gives the aggregate's id.
fn identify(name: &Ident, path: &TokenStream, settings: &Settings, fields: &Fields) -> Result<TokenStream> {
    let mut marked = None;
    for (index, field) in fields.iter().enumerate() {
        if !is_aggregate_id(&field.attrs)? {
            continue;
        }
        let member = field.ident.clone().map_or_else(|| Member::from(index), Member::from);
        let twice = marked.replace((member, field.ty.span())).is_some();
        if twice || settings.aggregate_id.is_some() {
            let problem = "the aggregate's id is given twice: mark one field with #[outbox(aggregate_id)], or name a \
                           function on the type";
            return Err(Error::new(field.span(), problem));
        }
    }
    match (marked, &settings.aggregate_id) {
        (Some((member, span)), _) => {
            // At the field's type, so that the compiler points there if the type has no `Display`.
            let id = quote_spanned!(span=> ::std::string::ToString::to_string(id));
            Ok(quote!(#path { #member: id, .. } => #id))
        }
        (None, Some(function)) => {
            let id = quote_spanned!(function.span()=> ::std::string::ToString::to_string(&#function(self)));
            Ok(quote!(#path { .. } => #id))
        }
        (None, None) => {
            let problem = format!(
                "{name} has no aggregate id: mark the field that is it with #[outbox(aggregate_id)], or name a function \
                 on the type: #[outbox(aggregate_id = Self::key)]"
            );
            Err(Error::new(name.span(), problem))
        }
    }
}

fn missing(span: Span, attribute: &str, example: &str) -> Error {
    Error::new(span, format!("there is no {attribute}: add #[outbox({attribute} = \"{example}\")]"))
}

fn implementation(
    input: &DeriveInput,
    settings: &Settings,
    aggregate_type: &LitStr,
    kinds: &[Kind],
) -> TokenStream {
    let outbox = settings.krate.as_ref().map_or_else(|| quote!(::outbox), |path| quote!(#path));
    let name = &input.ident;
    let (generics, arguments, bounds) = input.generics.split_for_impl();
    let all: Vec<_> = kinds
        .iter()
        .map(|Kind { event_type, version, .. }| quote!(#outbox::EventKind::new(#event_type, #version)))
        .collect();
    let paths: Vec<_> = kinds.iter().map(|kind| &kind.path).collect();
    let ids = kinds.iter().map(|kind| &kind.id);
    let content_type = settings
        .content_type
        .as_ref()
        .map(|content_type| quote!(const CONTENT_TYPE: &'static str = #content_type;));
    let topic = kinds.iter().any(|kind| kind.topic.is_some()).then(|| {
        let topics = kinds.iter().map(|kind| match &kind.topic {
            Some(topic) => quote!(::core::option::Option::Some(#topic)),
            None => quote!(::core::option::Option::None),
        });
        quote! {
            fn topic(&self) -> ::core::option::Option<&str> {
                match self { #(#paths { .. } => #topics,)* }
            }
        }
    });
    quote! {
        #[automatically_derived]
        impl #generics #outbox::OutboxEvent for #name #arguments #bounds {
            const AGGREGATE_TYPE: &'static str = #aggregate_type;
            const KINDS: &'static [#outbox::EventKind] = &[#(#all),*];
            #content_type

            fn kind(&self) -> #outbox::EventKind {
                match self { #(#paths { .. } => #all,)* }
            }

            fn aggregate_id(&self) -> ::std::string::String {
                match self { #(#ids,)* }
            }

            #topic
        }
    }
}

#[cfg(test)]
mod tests {
    use syn::parse_quote;

    use super::*;

    fn error(input: &DeriveInput) -> String {
        expand(input).expect_err("it is refused").to_string()
    }

    #[test]
    fn what_is_missing_is_named_with_the_attribute_that_gives_it() {
        let errors = [
            error(&parse_quote! { #[outbox(event_type = "e")] struct A { #[outbox(aggregate_id)] id: u64 } }),
            error(
                &parse_quote! { #[outbox(aggregate_type = "a")] struct A { #[outbox(aggregate_id)] id: u64 } },
            ),
            error(&parse_quote! { #[outbox(aggregate_type = "a", event_type = "e")] struct A { id: u64 } }),
            error(
                &parse_quote! { #[outbox(aggregate_type = "a")] enum A { One { #[outbox(aggregate_id)] id: u64 } } },
            ),
            error(
                &parse_quote! { #[outbox(aggregate_type = "a")] enum A { #[outbox(event_type = "e")] One(u64) } },
            ),
        ];
        let no_id = |name| {
            format!(
                "{name} has no aggregate id: mark the field that is it with #[outbox(aggregate_id)], or name a function \
                 on the type: #[outbox(aggregate_id = Self::key)]"
            )
        };
        assert_eq!(errors[0], r#"there is no aggregate_type: add #[outbox(aggregate_type = "order")]"#);
        assert_eq!(errors[1], r#"there is no event_type: add #[outbox(event_type = "order.placed")]"#);
        assert_eq!(errors[2], no_id("A"));
        assert_eq!(errors[3], r#"there is no event_type: add #[outbox(event_type = "order.placed")]"#);
        assert_eq!(errors[4], no_id("One"));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_remedy() {
        let cases: [(DeriveInput, &str); 12] = [
            (
                parse_quote! { #[outbox(aggregate = "a")] struct A; },
                "unknown outbox attribute \"aggregate\" on a struct: it has aggregate_type, event_type, aggregate_id, version, topic, content_type, crate",
            ),
            (
                parse_quote! { #[outbox(event_type = "e")] enum A { One } },
                "each variant of an enum is an event type: put event_type on the variants",
            ),
            (
                parse_quote! { #[outbox(aggregate_type = order)] struct A; },
                "aggregate_type is a text in quotes: write aggregate_type = \"…\"",
            ),
            (
                parse_quote! { #[outbox(aggregate_type = "")] struct A; },
                "aggregate_type is empty: name it, or leave the attribute out",
            ),
            (
                parse_quote! { #[outbox(event_type = "a\nb")] struct A; },
                "event_type holds a control character: remove it",
            ),
            (parse_quote! { #[outbox(version = 0)] struct A; }, "version is 0: it starts at 1"),
            (
                parse_quote! { #[outbox(version = "2")] struct A; },
                "version is a number from 1: write version = 2",
            ),
            (
                parse_quote! { #[outbox(version = 1, version = 2)] struct A; },
                "version is given twice: leave one",
            ),
            (
                parse_quote! { #[outbox(content_type = "text/plain")] struct A; },
                "content_type is of a payload that is written as JSON: end it in +json, or implement OutboxEvent by hand",
            ),
            (
                parse_quote! { #[outbox(aggregate_id)] struct A; },
                "name a function of &Self, as in aggregate_id = Self::key, or put a bare aggregate_id on a field",
            ),
            (
                parse_quote! { #[outbox(aggregate_type = "a", event_type = "e")] struct A { #[outbox(aggregate_id = "x")] id: u64 } },
                "aggregate_id of a field has no value: write #[outbox(aggregate_id)]",
            ),
            (parse_quote! { union A { a: u64 } }, "a union is not an event: use a struct or an enum"),
        ];
        for (input, expected) in cases {
            assert_eq!(error(&input), expected);
        }
    }

    #[test]
    fn an_id_that_is_given_twice_is_refused() {
        let two: DeriveInput = parse_quote! {
            #[outbox(aggregate_type = "a", event_type = "e")]
            struct A(#[outbox(aggregate_id)] u64, #[outbox(aggregate_id)] u64);
        };
        let beside_a_function: DeriveInput = parse_quote! {
            #[outbox(aggregate_type = "a", event_type = "e", aggregate_id = Self::key)]
            struct A(#[outbox(aggregate_id)] u64);
        };
        for input in [two, beside_a_function] {
            assert!(error(&input).starts_with("the aggregate's id is given twice: mark one field"));
        }
    }
}
