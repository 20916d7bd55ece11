//! URLs as they may be shown, and what those of files name: [`shown_url`], [`url_path`].

use std::path::PathBuf;

/// A URL as it may be shown: without the password, and without the parameters, which may hold one.
///
/// A password that should have been percent-encoded can contain any of the URL's own marks, so everything up
/// to the last `@` counts as the user's part.
///
/// ```
/// let shown = outbox_core::settings::shown_url("postgres://me:hu@sh@h:5432/shop?sslpassword=hush");
/// assert_eq!(shown, "postgres://me@h:5432/shop");
/// ```
pub fn shown_url(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (user, rest) = match rest.rsplit_once('@') {
        Some((user, rest)) => (user.split([':', '/', '?', '#']).next().map(|user| format!("{user}@")), rest),
        None => (None, rest),
    };
    let place = rest.split(['?', '#']).next().unwrap_or_default();
    let (host, database) = place.split_once('/').unwrap_or((place, ""));
    // Without an @, what looks like a port may be the password of a URL whose end got lost.
    let host = match host.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_err() => name,
        _ => host,
    };
    format!("{scheme}://{}{host}/{database}", user.unwrap_or_default())
}

/// The path behind the scheme of `file:path` and the like, with or without the two slashes of a URL.
pub fn url_path(url: &str) -> PathBuf {
    let rest = url.split_once(':').map_or("", |(_, rest)| rest);
    PathBuf::from(rest.strip_prefix("//").unwrap_or(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_secret_is_left_out() {
        for (url, shown) in [
            ("postgres://me:hush@h:5432/shop?sslpassword=hush", "postgres://me@h:5432/shop"),
            ("postgres://me:hu/sh@h/shop", "postgres://me@h/shop"),
            ("postgres://me:hu?sh#hush@h/shop", "postgres://me@h/shop"),
            ("postgres://me:hu@sh@h/shop", "postgres://me@h/shop"),
            ("postgres://h/shop#hush", "postgres://h/shop"),
            ("postgres://me:hush", "postgres://me/"),
            ("postgres:///shop?host=/run", "postgres:///shop"),
        ] {
            assert_eq!(shown_url(url), shown);
            assert!(!shown_url(url).contains("hush"));
        }
    }

    #[test]
    fn a_path_stands_behind_the_scheme() {
        for (url, path) in
            [("file:a:b", "a:b"), ("sqlite:///abs", "/abs"), ("sqlite://rel", "rel"), ("file:", "")]
        {
            assert_eq!(url_path(url), PathBuf::from(path));
        }
    }
}
