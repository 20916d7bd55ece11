//! Settings as data: each adapter names its URL schemes and its keys once, and a mistake is a [`Problem`].
//!
//! A program that reads settings from somewhere (a file, the environment, flags) knows no adapter. It takes
//! an [`Adapter`]'s table, reads what was given for each [`Setting`], and hands the [`Values`] to
//! [`StoreAdapter::configure`] or [`PublisherAdapter::configure`]. Whatever is wrong comes back as problems
//! that name their settings, so that the program can say where each was given. Examples and references are
//! printed from the same table.
//!
//! The builders of the adapters are the other way in, for programs in Rust. Both ways end in the same
//! validation.

mod adapter;
mod problem;
mod setting;
mod url;
mod values;

pub use adapter::{
    Adapter, ConfiguredPublisher, ConfiguredStore, OpenedStore, PublisherAdapter, StoreAdapter, URL,
};
pub use problem::{ConfigError, IDENTIFIER_BYTES_MAX, Problem, check_file, check_identifier};
pub(crate) use setting::duration;
pub use setting::{Given, Kind, Setting};
pub use url::{UrlRules, shown_url, url_path};
pub use values::{Value, Values};
