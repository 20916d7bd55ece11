//! URLs as they may be given and shown, and what those of files name: [`UrlRules`], [`shown_url`],
//! [`url_path`].

use std::path::PathBuf;

use super::Problem;

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

/// What the URL of a server may have, so that one with a mistake in it is refused before a driver reads part
/// of a password as a host, a port or a database.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct UrlRules {
    /// The schemes, without `://`; the first is the one to be recommended.
    pub schemes: &'static [&'static str],
    /// How a whole one looks, for the remedy.
    pub form: &'static str,
    /// More than one host may be given, with commas.
    pub many_hosts: bool,
    /// The parameters behind `?` that the driver knows. One that ends in `[` is the beginning of several.
    /// `None` leaves them to the driver.
    pub parameters: Option<&'static [&'static str]>,
}

impl UrlRules {
    /// One host, and parameters that the driver checks itself.
    pub const fn new(schemes: &'static [&'static str], form: &'static str) -> Self {
        Self { schemes, form, many_hosts: false, parameters: None }
    }

    /// Several hosts may be given.
    #[must_use]
    pub const fn many_hosts(mut self) -> Self {
        self.many_hosts = true;
        self
    }

    /// These parameters are known, and no others.
    #[must_use]
    pub const fn parameters(mut self, parameters: &'static [&'static str]) -> Self {
        self.parameters = Some(parameters);
        self
    }

    /// What is wrong with a URL. Nothing of the URL is repeated: where one is wrong, any part of it may be
    /// one of the password.
    ///
    /// ```
    /// use outbox_core::settings::UrlRules;
    ///
    /// let rules = UrlRules::new(&["postgres"], "postgres://user:password@host:port/database");
    /// assert_eq!(rules.check("url", "postgres://me:hu%2Fsh@[::1]:5432/shop"), Ok(()));
    /// let problem = rules.check("url", "postgres://me:77/hush@host/shop").unwrap_err();
    /// assert_eq!(
    ///     problem.to_string(),
    ///     "url has an @ behind its host; percent-encode the special characters of the user and the password (@ is %40, \
    ///      / is %2F, ? is %3F, # is %23, % is %25), as in postgres://user:password@host:port/database"
    /// );
    /// ```
    ///
    /// # Errors
    /// The first mistake: those behind it may follow from it.
    pub fn check(&self, setting: &'static str, url: &str) -> Result<(), Problem> {
        let encode = || {
            format!(
                "percent-encode the special characters of the user and the password (@ is %40, / is %2F, ? is %3F, # is \
                 %23, % is %25), as in {}",
                self.form
            )
        };
        let wrong = |what: String| Err(Problem::new(setting, what, encode()));
        let scheme = |scheme: &&&str| url.strip_prefix(**scheme).is_some_and(|rest| rest.starts_with("://"));
        let Some(scheme) = self.schemes.iter().find(scheme) else {
            let schemes: Vec<String> = self.schemes.iter().map(|scheme| format!("{scheme}://")).collect();
            let what = format!("does not start with {}", schemes.join(" or "));
            return Err(Problem::new(setting, what, format!("give {}", self.form)));
        };
        let rest = &url[scheme.len() + 3..];
        if url.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return wrong("has a blank or a control character in it".to_owned());
        }
        if rest.contains('#') {
            return wrong("has a # in it".to_owned());
        }
        let (authority, tail) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if tail.contains('@') {
            return wrong("has an @ behind its host".to_owned());
        }
        if authority.matches('@').count() > 1 {
            return wrong("has more than one @".to_owned());
        }
        if !is_encoded(rest) {
            return wrong("has a % that is not followed by two hexadecimal digits".to_owned());
        }
        let hosts = authority.rsplit_once('@').map_or(authority, |(_, hosts)| hosts);
        let count = hosts.split(',').count();
        if count > 1 && !self.many_hosts {
            return Err(Problem::new(
                setting,
                format!("names {count} hosts"),
                "give one, or an address that moves",
            ));
        }
        for (number, host) in (1..).zip(hosts.split(',')) {
            if let Some(problem) = host_problem(host) {
                return wrong(format!("{problem} (host {number} of {count})"));
            }
        }
        self.check_parameters(setting, tail)
    }

    fn check_parameters(&self, setting: &'static str, tail: &str) -> Result<(), Problem> {
        let (Some(known), Some((_, query))) = (self.parameters, tail.split_once('?')) else { return Ok(()) };
        let is_known = |name: &str| {
            known
                .iter()
                .any(|known| if known.ends_with('[') { name.starts_with(known) } else { name == *known })
        };
        for (number, pair) in (1..).zip(query.split('&').filter(|pair| !pair.is_empty())) {
            if !is_known(pair.split('=').next().unwrap_or_default()) {
                let what =
                    format!("has a parameter that is not known, number {number} behind the question mark");
                return Err(Problem::new(setting, what, format!("known are {}", known.join(", "))));
            }
        }
        Ok(())
    }
}

/// Every `%` begins a byte in hexadecimal digits.
fn is_encoded(text: &str) -> bool {
    text.split('%').skip(1).all(|rest| rest.bytes().take(2).filter(u8::is_ascii_hexdigit).count() == 2)
}

/// What is wrong with `name`, `name:port`, `[address]` or `[address]:port`; an empty one is the driver's
/// default, or a socket that a parameter names.
fn host_problem(host: &str) -> Option<&'static str> {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let Some((address, port)) = rest.split_once(']') else { return Some("has a [ without a ]") };
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return Some("has something in brackets that is not an IPv6 address");
            }
            ("", port.strip_prefix(':').or((!port.is_empty()).then_some("?")))
        }
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    if port.is_some_and(|port| port.parse::<u16>().is_err()) {
        return Some("has a port that is not a number from 0 to 65535");
    }
    let is_of_name = |c: char| c.is_alphanumeric() || "-._~%".contains(c);
    (!name.chars().all(is_of_name)).then_some("has a host with a character that no name of a host has")
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

    const RULES: UrlRules =
        UrlRules::new(&["db", "database"], "db://user:password@host/name").parameters(&["tls", "options["]);

    #[test]
    fn what_a_driver_would_read_differently_is_refused() {
        for url in [
            "db://h",
            "database://me:s%40cret@h.example-1.org:5432/shop?tls=on&options[a]=b",
            "db://me@[::1]:1/shop",
            "db:///shop?tls=on",
            "db://[fe80::1]/",
        ] {
            assert_eq!(RULES.check("url", url), Ok(()), "{url}");
        }
        for (url, said) in [
            ("http://h", "does not start with db:// or database://"),
            ("db:/h", "does not start with"),
            ("db://me:hu sh@h/", "blank"),
            ("db://me:hu#sh@h/", "has a #"),
            ("db://me:77/hush@h/", "an @ behind"),
            ("db://me:77?hush@h/", "an @ behind"),
            ("db://me:hu@sh@h/", "more than one @"),
            ("db://me:hu%sh@h/", "a % that"),
            ("db://me:hush", "a port that is not a number"),
            ("db://h:70000/", "a port that"),
            ("db://h:1,i:2/", "names 2 hosts"),
            ("db://[::1/", "a [ without a ]"),
            ("db://[hush]/", "not an IPv6 address"),
            ("db://[::1]hush/", "a port that"),
            ("db://h!/", "a host with a character"),
            ("db://h/?hush=1", "number 1 behind"),
            ("db://h/?tls=on&hush", "number 2 behind"),
        ] {
            let problem = RULES.check("url", url).unwrap_err().to_string();
            assert!(problem.contains(said) && !problem.contains("hush"), "{url}: {problem}");
        }
        assert!(RULES.many_hosts().check("url", "db://h:1,i:2,[::1]:3/").is_ok());
        let second = RULES.many_hosts().check("url", "db://h:1,i:x/").unwrap_err();
        assert!(second.to_string().contains("host 2 of 2"), "{second}");
    }
}
