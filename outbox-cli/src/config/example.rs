//! `outbox config example`: a configuration file with every setting, printed from the tables of the adapters.

use outbox_core::{
    RelayConfig,
    settings::{Kind, Setting},
};

use super::side::Side;

/// The width of the comments.
const WIDTH: usize = 110;

const HEAD: &str = "\
# Every setting of the `outbox` relay, printed by `outbox config example`. What is commented out has its default, and
# an empty text counts as absent.
#
# Each setting can be given by environment, which wins over this file: [relay] lease_ttl is OUTBOX_RELAY_LEASE_TTL,
# and [relay.retry] attempts_max is OUTBOX_RELAY_RETRY_ATTEMPTS_MAX. With _FILE behind its name, the variable names a
# file that holds the value, which suits secrets: OUTBOX_STORE_URL_FILE=/run/secrets/store_url.
#
# Times have a unit: \"250ms\", \"5s\", \"1m 30s\", \"3d\". Numbers may be grouped: 16_777_216.
";

const TAIL: &str = "
# Several outboxes in one process: a table for each, with a name and whatever differs from the tables above. By
# environment, OUTBOX_BILLING_STORE_URL is store.url of the one that is called billing.
#     [[outbox]]
#     name = \"billing\"
#     store.schema = \"billing\"
#     relay.topic = \"billing.{event_type}\"
";

/// The file.
pub(crate) fn example() -> String {
    let mut out = HEAD.to_owned();
    side(&mut out, &Side::store(), "sqlite:shop.db");
    side(&mut out, &Side::publisher(), "stdout:");
    settings(&mut out, "relay.", RelayConfig::SETTINGS);
    out.push_str(TAIL);
    out
}

fn side(out: &mut String, side: &Side, url: &str) {
    out.push_str(&format!("\n[{}]\n", side.name));
    comment(out, side.url.text);
    for adapter in &side.adapters {
        comment(out, &format!("- {}: {}", adapter.url_form, adapter.text));
    }
    out.push_str(&format!("url = {url:?}\n"));
    for adapter in side.adapters.iter().filter(|adapter| !adapter.settings.is_empty()) {
        let table = side.table(adapter);
        if table == format!("{}.", side.name) {
            let only = format!("\n# Of {} only, {}\n", adapter.title, adapter.url_form);
            out.push_str(&only);
            adapter.settings.iter().for_each(|setting| line(out, setting, setting.key));
        } else {
            settings(out, &table, adapter.settings);
        }
    }
}

/// The settings of a table, in tables by the dots of their keys.
fn settings(out: &mut String, table: &str, settings: &[Setting]) {
    let mut current = None;
    for setting in settings {
        let key = format!("{table}{}", setting.key);
        let Some((table, name)) = key.rsplit_once('.') else { continue };
        if current.as_deref() != Some(table) {
            out.push_str(&format!("\n[{table}]\n"));
            current = Some(table.to_owned());
        } else {
            out.push('\n');
        }
        line(out, setting, name);
    }
}

fn line(out: &mut String, setting: &Setting, name: &str) {
    comment(out, setting.text);
    match setting.kind {
        Kind::Rest { examples, .. } => {
            examples.iter().for_each(|example| out.push_str(&format!("#     {example}\n")));
            return;
        }
        Kind::Form { accepted, .. } => comment(out, &format!("Give {accepted}.")),
        Kind::Choice(_) | Kind::IntegerOr(_) | Kind::DurationOr(_) => {
            comment(out, &format!("Give {}.", setting.accepted()));
        }
        _ => {}
    }
    out.push_str(&format!("#{name} = {}\n", value(setting)));
}

/// The default as the file has it.
fn value(setting: &Setting) -> String {
    let default = setting.default.unwrap_or_default();
    match setting.kind {
        Kind::Integer { .. } | Kind::Bool => default.to_owned(),
        _ => format!("{default:?}"),
    }
}

fn comment(out: &mut String, text: &str) {
    let mut line = String::from("#");
    for word in text.split_whitespace() {
        if line.len() + 1 + word.len() > WIDTH {
            out.push_str(&line);
            out.push('\n');
            "#".clone_into(&mut line);
        }
        line.push(' ');
        line.push_str(word);
    }
    out.push_str(&line);
    out.push('\n');
}
