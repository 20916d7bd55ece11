//! `outbox config reference`: every setting in Markdown, printed from the tables of the adapters.

use outbox_core::{
    RelayConfig,
    settings::{Kind, Setting},
};

use super::side::Side;

const HEAD: &str = "\
# Settings

The reference of the `outbox` program, printed by `outbox config reference`. `outbox config example` prints a file with
all of it.

A setting stands in `outbox.toml`, or in the file that `--config` names. Each can be given by environment, which wins
over the file: the variable is `OUTBOX_` and the key in capitals with `_` for each dot, so `relay.retry.attempts_max`
is `OUTBOX_RELAY_RETRY_ATTEMPTS_MAX`. With `_FILE` behind its name, a variable names a file that holds the value:
`OUTBOX_STORE_URL_FILE=/run/secrets/url`. An empty variable, and an empty text in the file where there is no default,
counts as absent. Of several outboxes, `OUTBOX_SHOP_STORE_URL` is `store.url` of the one with the name `shop`.

Times have a unit, such as `250ms`, `5s`, `1m 30s` or `3d`; in the file they stand in quotes. Numbers may be grouped:
`16_777_216`. A setting of a store or publisher that the URL does not choose is refused by name, as every unknown one is.
";

/// The document.
pub(crate) fn reference() -> String {
    let mut out = HEAD.to_owned();
    side(&mut out, &Side::store(), "Stores");
    side(&mut out, &Side::publisher(), "Publishers");
    out.push_str("\n## Relay\n\n");
    table(&mut out, "relay.", RelayConfig::SETTINGS);
    out
}

fn side(out: &mut String, side: &Side, title: &str) {
    out.push_str(&format!("\n## {title}\n\n{}\n\n| `{}.url` | |\n|---|---|\n", side.url.text, side.name));
    for adapter in &side.adapters {
        let schemes = adapter.schemes.iter().filter(|scheme| !adapter.url_form.starts_with(**scheme));
        let others: String = schemes.map(|scheme| format!(", `{scheme}…`")).collect();
        out.push_str(&format!("| `{}`{others} | {} |\n", adapter.url_form, cell(adapter.text)));
    }
    for adapter in side.adapters.iter().filter(|adapter| !adapter.settings.is_empty()) {
        let mut title = adapter.title.chars();
        let first = title.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
        out.push_str(&format!("\n### {first}{}\n\n", title.as_str()));
        table(out, &side.table(adapter), adapter.settings);
    }
}

fn table(out: &mut String, table: &str, settings: &[Setting]) {
    out.push_str("| setting | accepts | default | |\n|---|---|---|---|\n");
    for setting in settings {
        let default = setting.default.map(|default| format!("`{default}`")).unwrap_or_default();
        let reloaded = if setting.reloadable { " Read again for each connection." } else { "" };
        out.push_str(&format!(
            "| `{table}{}` | {} | {default} | {}{reloaded} |\n",
            setting.key,
            cell(&accepts(setting)),
            cell(setting.text)
        ));
    }
}

/// In few words what a setting accepts.
fn accepts(setting: &Setting) -> String {
    let time = |time| humantime::format_duration(time).to_string();
    match setting.kind {
        Kind::Text => "text".to_owned(),
        Kind::Path => "path".to_owned(),
        Kind::Bool => "`true` or `false`".to_owned(),
        Kind::IntegerOr(word) => format!("`{word}` or a whole number"),
        Kind::DurationOr(word) => format!("`{word}` or a time"),
        Kind::Duration { min, max } if min.as_millis() > 0 => {
            format!("time from {} to {}", time(min), time(max))
        }
        Kind::Duration { max, .. } if max.as_secs() < 86_400 => format!("time up to {}", time(max)),
        Kind::Duration { min, .. } if min.is_zero() => "time, zero too".to_owned(),
        Kind::Duration { .. } => "time".to_owned(),
        Kind::Choice(words) => words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(" or "),
        _ => setting.accepted().trim_start_matches("a ").to_owned(),
    }
}

/// A text that can stand in a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}
