//! `[store]` and `[publisher]`: which adapter a URL chooses, and what was given for it. Knows no adapter but
//! by its data.

use outbox_core::settings::{Adapter, ConfigError, Kind, Problem, Setting, URL, Values};

use super::{
    adapters::{PUBLISHERS, PUBLISHERS_LEFT_OUT, STORES, STORES_LEFT_OUT},
    reader::{Reader, variable},
};

/// The store's side or the publisher's.
pub(super) struct Side {
    /// The name of its table.
    pub(super) name: &'static str,
    /// Its URL.
    pub(super) url: Setting,
    pub(super) adapters: Vec<&'static Adapter>,
    /// Each adapter's settings stand in a table of its own, `[publisher.kafka]`, instead of in that of all.
    has_tables: bool,
    /// The cargo features of the adapters that are not in this build.
    pub(super) left_out: &'static [&'static str],
}

/// What a URL chose, and what was given for it.
pub(super) struct Chosen {
    /// The adapter, by its place in the list.
    pub(super) index: usize,
    pub(super) url: String,
    pub(super) values: Values,
}

impl Side {
    pub(super) fn store() -> Self {
        Self {
            name: "store",
            url: Setting::new(URL, Kind::Text, "Where the services write their events.").secret(),
            adapters: STORES.iter().map(|adapter| adapter.adapter()).collect(),
            has_tables: false,
            left_out: STORES_LEFT_OUT,
        }
    }

    pub(super) fn publisher() -> Self {
        Self {
            name: "publisher",
            url: Setting::new(URL, Kind::Text, "Where the messages go.").secret(),
            adapters: PUBLISHERS.iter().map(|adapter| adapter.adapter()).collect(),
            has_tables: true,
            left_out: PUBLISHERS_LEFT_OUT,
        }
    }

    /// The table of an adapter's settings, with the dot behind it.
    pub(super) fn table(&self, adapter: &Adapter) -> String {
        if self.has_tables { format!("{}.{}.", self.name, adapter.name) } else { format!("{}.", self.name) }
    }

    /// Reads the settings of all adapters, so that each is known, and returns those of the one that the URL
    /// chooses.
    pub(super) fn read(&self, reader: &mut Reader, is_needed: bool) -> Option<Chosen> {
        let url_key = self.key_of_url();
        let given = reader.values(&format!("{}.", self.name), std::slice::from_ref(&self.url));
        let url = given.text(URL);
        let index = url.and_then(|url| self.adapters.iter().position(|adapter| adapter.takes(url)));
        let chosen = index.map(|index| self.adapters[index]);
        let values = chosen.map(|adapter| reader.values(&self.table(adapter), adapter.settings));
        for adapter in &self.adapters {
            match chosen {
                None => _ = reader.values(&self.table(adapter), adapter.settings),
                Some(chosen) if chosen.name == adapter.name => {}
                Some(chosen) => self.leave_out(reader, adapter, chosen),
            }
        }
        match (url, index.zip(values)) {
            (None, _) if is_needed => reader.missing(&url_key, &self.url_remedy()),
            (None, _) => {}
            (Some(url), None) => {
                let problem = Problem::new(URL, scheme_problem(url), self.url_remedy());
                reader.problem(&format!("{}.", self.name), &problem);
            }
            (Some(url), Some((index, values))) => {
                return Some(Chosen { index, url: url.to_owned(), values });
            }
        }
        None
    }

    /// Reports what an adapter found wrong.
    pub(super) fn take<T>(
        &self,
        reader: &mut Reader,
        chosen: &Chosen,
        configured: Result<T, ConfigError>,
    ) -> Option<T> {
        let table = self.table(self.adapters[chosen.index]);
        let side = format!("{}.", self.name);
        let report = |error: ConfigError| {
            for problem in error.problems() {
                reader.problem(if problem.setting == URL { &side } else { &table }, problem);
            }
        };
        configured.map_err(report).ok()
    }

    /// The settings of an adapter that the URL does not choose are refused by name, if they were given.
    fn leave_out(&self, reader: &mut Reader, adapter: &Adapter, chosen: &Adapter) {
        let table = self.table(adapter);
        for setting in adapter.settings {
            let has_it = |other: &&&Adapter| other.settings.iter().any(|it| it.key == setting.key);
            let owners = self.adapters.iter().filter(|other| self.table(other) == table);
            let owners: Vec<&str> = owners.filter(has_it).map(|other| other.title).collect();
            let what = format!(
                "is a setting of {}, and {} names {}",
                owners.join(", "),
                self.key_of_url(),
                chosen.title
            );
            reader.leave_out(&table, setting, |key| {
                Problem::new(key.to_owned(), what.clone(), format!("remove it, or unset {}", variable(key)))
            });
        }
    }

    fn key_of_url(&self) -> String {
        format!("{}.{URL}", self.name)
    }

    fn url_remedy(&self) -> String {
        let forms: Vec<String> =
            self.adapters.iter().map(|adapter| format!("{:?}", adapter.url_form)).collect();
        let give = match forms.split_last() {
            Some((last, [])) => format!("give {last}"),
            Some((last, others)) => format!("give {} or {last}", others.join(", ")),
            None => "give a URL".to_owned(),
        };
        match self.left_out {
            [] => give,
            left_out => {
                format!("{give}; this program was built without the cargo features {}", left_out.join(", "))
            }
        }
    }
}

/// What is wrong with a URL's scheme. The text itself may hold a password, also where the scheme should be.
fn scheme_problem(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, _)) if scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+') => {
            format!("has the unknown scheme {scheme:?}")
        }
        _ => "has no known scheme".to_owned(),
    }
}
