//! A URL with a mistake in it is refused, and nothing of its password is shown.

use outbox_conformance::testing::{URL_SECRET, malformed_urls};
use outbox_mysql::MysqlConfig;

#[test]
fn no_password_is_shown_whatever_is_wrong_with_the_url() {
    let urls = malformed_urls("mysql");
    let mut refused = 0;
    for url in &urls {
        let built = MysqlConfig::builder().url(url).build();
        refused += usize::from(built.is_err());
        let shown = match &built {
            Ok(config) => format!("{config:?}"),
            Err(error) => format!("{error} {error:?}"),
        };
        assert!(!shown.contains(URL_SECRET), "{url:?}: {shown}");
    }
    assert!(urls.len() > 400 && refused > urls.len() / 2, "{refused} of {}", urls.len());
}
