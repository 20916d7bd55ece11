//! The example file and the reference.

use super::*;

/// The example with all in force that belongs to one store and one publisher, as a user would edit it.
fn example_in_force(store: &Adapter, publisher: &Adapter) -> String {
    let (mut table, mut only) = (String::new(), true);
    let mut text = String::new();
    for line in example().lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            table = name.to_owned();
            only = !name.starts_with("publisher.") || name == format!("publisher.{}", publisher.name);
        } else if let Some(title) = line.strip_prefix("# Of ") {
            only = title.starts_with(&format!("{} only,", store.title));
        }
        let setting =
            line.strip_prefix('#').filter(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase()));
        let line = match (line.starts_with("url = "), setting) {
            (true, _) => format!("url = {:?}", url_for(if table == "store" { store } else { publisher })),
            (false, Some(setting)) if only => setting.to_owned(),
            _ => line.to_owned(),
        };
        text.push_str(&line);
        text.push('\n');
    }
    text
}

#[test]
fn the_example_is_valid_as_it_is() {
    let config = load(&example(), &[]).unwrap();
    assert_eq!(config.store.shown(), "sqlite:shop.db");
    assert_eq!(format!("{:?}", config.relay), format!("{:?}", RelayConfig::default()));
}

#[cfg(all(
    feature = "postgres",
    feature = "mysql",
    feature = "mongo",
    feature = "kafka",
    feature = "rabbitmq",
    feature = "nats"
))]
#[test]
fn the_printed_files_are_up_to_date() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (path, command, text) in
        [("outbox.example.toml", "example", example()), ("../docs/settings.md", "reference", reference())]
    {
        let kept = fs::read_to_string(folder.join(path)).unwrap_or_default();
        assert!(kept == text, "{path} is out of date: cargo run -p outbox-cli -- config {command} > {path}");
    }
}

#[test]
fn the_example_loads_with_all_that_belongs_to_one_store_and_one_publisher_and_changes_nothing() {
    let mut keys = BTreeSet::new();
    for (store, publisher) in pairs() {
        let text = example_in_force(store, publisher);
        keys.extend(FileSettings::parse(Path::new("x"), &text).given.into_keys());
        let config = load(&text, &[]).map_err(|findings| lines(&findings)).unwrap();
        let default = load(&minimal(&url_for(store), &url_for(publisher)), &[]).unwrap();
        assert_eq!(format!("{:?}", config.relay), format!("{:?}", default.relay));
        assert_eq!(format!("{:?}", config.store), format!("{:?}", default.store));
        assert_eq!(format!("{:?}", config.publisher), format!("{:?}", default.publisher));
    }
    let tables = [Side::store(), Side::publisher()];
    let keys_of = |side: &Side| {
        let of = |adapter: &&'static Adapter| {
            let table = side.table(adapter);
            adapter.settings.iter().map(move |setting| format!("{table}{}", setting.key))
        };
        side.adapters.iter().flat_map(of).collect::<Vec<_>>()
    };
    let mut every: BTreeSet<String> = tables.iter().flat_map(keys_of).collect();
    every.extend(RelayConfig::SETTINGS.iter().map(|setting| format!("relay.{}", setting.key)));
    every.extend(["store.url", "publisher.url"].map(str::to_owned));
    // The names of a client's own properties are shown as examples.
    every.retain(|key| !key.ends_with(".*"));
    // Tables of publishers that are left empty.
    keys.retain(|key| {
        every.contains(key) || !every.iter().any(|known| known.starts_with(&format!("{key}.")))
    });
    assert_eq!(keys, every);
}

#[test]
fn the_environment_suffices_for_every_setting() {
    let (mut count, mut configurations) = (0, 0);
    for (store, publisher) in pairs() {
        let file = FileSettings::parse(Path::new("x"), &example_in_force(store, publisher));
        let variables: Vec<(OsString, OsString)> = file
            .given
            .iter()
            .filter(|(_, given)| !matches!(given.value, FileValue::Other(_)))
            .map(|(key, given)| (reader::variable(key).into(), given.value.text().into()))
            .collect();
        (count, configurations) = (count + variables.len(), configurations + 1);
        let config =
            Config::read(None, variables, Needs::StoreAndPublisher).map_err(|findings| lines(&findings));
        assert_eq!(format!("{:?}", One::of(config.unwrap()).relay), format!("{:?}", RelayConfig::default()));
    }
    assert!(configurations > 0 && count > 30 * configurations, "{count}");
}
