#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod expand;
mod settings;

use proc_macro::TokenStream;
use syn::{DeriveInput, parse_macro_input};

/// Implements `OutboxEvent` for a struct or an enum that is `Serialize`; the attributes are listed above.
///
/// What is missing or wrong is a compile error that names the attribute and the remedy:
///
/// ```text
/// error: there is no event_type: add #[outbox(event_type = "order.placed")]
///  --> src/order.rs:5:8
///   |
/// 5 | struct OrderPlaced {
///   |        ^^^^^^^^^^^
/// ```
#[proc_macro_derive(OutboxEvent, attributes(outbox))]
pub fn outbox_event(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    expand::expand(&input).unwrap_or_else(syn::Error::into_compile_error).into()
}
