//! Texts that mean more than their characters: sizes, durations, addresses, URLs and secrets.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

/// A text that is never printed: a password, or a URL that may carry one.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps a text from being printed by accident.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for whoever connects with it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Bytes written as `512MiB`. `None` if the text is no size.
#[must_use]
pub fn size(text: &str) -> Option<u64> {
    let (number, unit) = split_unit(text)?;
    let shift = match unit {
        "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}

/// A duration written as `500ms`, `2s`, `5m`, `1h`, `7d`. `None` if the text is no duration.
#[must_use]
pub fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = split_unit(text)?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(millis).map(Duration::from_millis)
}

fn split_unit(text: &str) -> Option<(u64, &str)> {
    let unit = text.find(|c: char| !c.is_ascii_digit())?;
    Some((text[..unit].parse().ok()?, text[unit..].trim_start()))
}

/// `host:port` to listen on, the host an address or `localhost`.
#[must_use]
pub fn listen(text: &str) -> Option<SocketAddr> {
    if let Some(port) = text.strip_prefix("localhost:") {
        return Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port.parse().ok()?));
    }
    text.parse().ok()
}

/// Whether a host is this machine: a loopback address, `localhost`, or a Unix socket's folder (also percent-encoded).
#[must_use]
pub fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.is_empty()
        || host == "localhost"
        || host.starts_with('/')
        || host.to_ascii_lowercase().starts_with("%2f")
        || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// What the rules ask of a PostgreSQL URL; the rest is the connection's business.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PostgresParts {
    /// The hosts that it names, with their ports as written; empty for libpq's default socket.
    pub hosts: Vec<String>,
    /// Whether every host is this machine.
    pub loopback: bool,
    /// Whether the connection is always encrypted, and the server verified by its name.
    pub verified: bool,
    /// Whether it carries a password or a client certificate.
    pub credentials: bool,
    /// Which database it names.
    pub database: String,
}

/// Takes a `postgres://` URL apart. `Err` says what is wrong with it, without repeating a password.
///
/// # Errors
/// A sentence's end: "is …".
pub fn postgres_url(url: &str) -> Result<PostgresParts, &'static str> {
    let rest = url
        .strip_prefix("postgres://")
        .or_else(|| url.strip_prefix("postgresql://"))
        .ok_or("does not begin with postgres://")?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    let (user, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    let mut hosts: Vec<String> = hosts.split(',').filter(|host| !host.is_empty()).map(str::to_owned).collect();
    let mut verified = false;
    let mut credentials = user.split_once(':').is_some_and(|(_, password)| !password.is_empty());
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        let (name, value) = parameter.split_once('=').ok_or("has a parameter without a value")?;
        match name {
            "host" | "hostaddr" => hosts.extend(value.split(',').map(str::to_owned)),
            "sslmode" => match value {
                "verify-full" => verified = true,
                "disable" | "allow" | "prefer" | "require" | "verify-ca" => verified = false,
                _ => return Err("has an unknown sslmode"),
            },
            "password" | "sslcert" => credentials = true,
            _ => {}
        }
    }
    for host in &hosts {
        if port(host).is_some_and(|port| port.parse::<u16>().is_err()) {
            return Err("has a port that is no number up to 65535");
        }
    }
    let loopback = hosts.iter().all(|host| is_loopback(without_port(host)));
    Ok(PostgresParts { hosts, loopback, verified, credentials, database: database.to_owned() })
}

/// The host of `http://host:port` or `https://host:port`. `Err` says what is wrong with it.
///
/// # Errors
/// A sentence's end: "is …".
pub fn http_host(url: &str) -> Result<String, &'static str> {
    let authority = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let authority = authority.ok_or("does not begin with http:// or https://")?.trim_end_matches('/');
    if authority.contains(['/', '?', '@', ' ']) || without_port(authority).is_empty() {
        return Err("is more than http://host:port");
    }
    match port(authority).map(str::parse::<u16>) {
        Some(Ok(_)) => Ok(without_port(authority).to_owned()),
        Some(Err(_)) => Err("has a port that is no number up to 65535"),
        None => Err("has no port"),
    }
}

fn port(authority: &str) -> Option<&str> {
    let after_address = authority.rfind(']').map_or(0, |end| end + 1);
    authority[after_address..].rsplit_once(':').map(|(_, port)| port)
}

fn without_port(authority: &str) -> &str {
    match port(authority) {
        Some(port) => &authority[..authority.len() - port.len() - 1],
        None => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations() {
        let sizes = [("512MiB", Some(512 << 20)), ("7 B", Some(7)), ("1GB", None), ("12", None), ("", None)];
        for (text, bytes) in sizes {
            assert_eq!(size(text), bytes, "{text}");
        }
        assert_eq!(size("99999999TiB"), None, "more bytes than a u64 counts");
        assert_eq!(duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(duration("7d"), Some(Duration::from_secs(604_800)));
        assert_eq!(duration("1.5s"), None);
        assert_eq!(duration("-1s"), None);
    }

    #[test]
    fn hosts_of_this_machine() {
        for host in ["localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]", "/run/postgresql", "%2Ftmp", ""] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["0.0.0.0", "10.0.0.1", "db", "localhost.example.com", "127.0.0.1.nip.io", "::"] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn postgres_urls() {
        let parts = postgres_url("postgres://me:s3cret@10.0.0.1:5432/app?sslmode=verify-full").unwrap();
        assert!(parts.verified && parts.credentials && !parts.loopback);
        assert_eq!((parts.hosts, parts.database), (vec!["10.0.0.1:5432".to_owned()], "app".to_owned()));
        assert!(postgres_url("postgres:///app?host=%2Ftmp").unwrap().loopback);
        assert!(!postgres_url("postgres://[::1]:5432,db/app").unwrap().loopback, "one host of two is another machine");
        for mode in ["prefer", "require", "verify-ca"] {
            let parts = postgres_url(&format!("postgresql://u@db/app?sslmode={mode}")).unwrap();
            assert!(!parts.verified, "{mode} may end up with anybody");
        }
        for url in ["mysql://db/app", "postgres://db:x/app", "postgres://db/app?sslmode=maybe", "postgres://db/a?x"] {
            assert!(postgres_url(url).is_err(), "{url}");
        }
    }

    #[test]
    fn http_urls() {
        assert_eq!(http_host("http://127.0.0.1:7200/").as_deref(), Ok("127.0.0.1"));
        assert_eq!(http_host("http://[::1]:7200").as_deref(), Ok("[::1]"));
        assert_eq!(http_host("https://a:1").as_deref(), Ok("a"));
        for url in ["ftp://a:1", "http://a", "http://:1", "http://a:1/path", "http://u@a:1", "a:1", "http://a:66000"] {
            assert!(http_host(url).is_err(), "{url}");
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "(secret)");
    }
}
