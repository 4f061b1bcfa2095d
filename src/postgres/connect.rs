//! How a server is reached: URL, password, TLS.

use super::error::Failure;
use super::sql::Sql;
use super::tls::{self, Tls};
use crate::limits;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};

/// What both kinds of session set, so that a copied row and a streamed one have the same text.
pub const SESSION: [(&str, &str); 8] = [
    ("client_encoding", "UTF8"),
    ("datestyle", "ISO"),
    ("intervalstyle", "postgres"),
    ("timezone", "UTC"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    // A copy may take hours, in one transaction that now and then waits for the replica.
    ("statement_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
];

/// A server and its database, as the configuration names them.
#[derive(Clone)]
pub struct Target {
    name: String,
    config: tokio_postgres::Config,
    tls: Tls,
    password_file: Option<PathBuf>,
}

impl Target {
    /// From an entry's `name, url, password_file`. The URL takes libpq's `sslmode`, `sslrootcert`, `sslcert` and
    /// `sslkey`.
    ///
    /// # Errors
    /// What is wrong with the URL.
    pub fn parse(name: &str, url: &str, password_file: Option<PathBuf>) -> Result<Self, String> {
        let (bare, words) = tls::split_url(url)?;
        let mut config: tokio_postgres::Config = bare.parse().map_err(|e: tokio_postgres::Error| {
            let cause = std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string);
            format!("not a PostgreSQL URL: {cause}")
        })?;
        if config.get_hosts().is_empty() {
            return Err("the URL names no host".into());
        }
        // One server and its standbys: whoever takes writes is the one that is read.
        if config.get_hosts().len() > 1 {
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        if config.get_user().is_none() {
            return Err("the URL names no user".into());
        }
        let tls = Tls::new(words)?;
        config.ssl_mode(match &tls {
            Tls::Disable => SslMode::Disable,
            Tls::Prefer(_) => SslMode::Prefer,
            Tls::Require(_) => SslMode::Require,
        });
        let options: Vec<String> = SESSION.iter().map(|(name, value)| format!("-c {name}={value}")).collect();
        let options = config.get_options().into_iter().map(str::to_owned).chain(options).collect::<Vec<_>>().join(" ");
        config.options(options).application_name("untorn").connect_timeout(limits::CONNECT_TIMEOUT);
        config.keepalives_idle(Duration::from_secs(30)).tcp_user_timeout(limits::CONNECTION_DEAD_AFTER);
        Ok(Self { name: name.to_owned(), config, tls, password_file })
    }

    /// The entry's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The server as messages name it: `shard-a (10.0.0.1:5432/app)`.
    #[must_use]
    pub fn label(&self) -> String {
        let at = |(host, port): (&Host, u16)| match host {
            Host::Tcp(host) => format!("{host}:{port}"),
            Host::Unix(folder) => format!("{}:{port}", folder.display()),
        };
        let servers: Vec<String> = self.servers().map(at).collect();
        format!("{} ({}/{})", self.name, servers.join(","), self.database())
    }

    /// The hosts of the URL, each with its port.
    pub fn servers(&self) -> impl Iterator<Item = (&Host, u16)> {
        let ports = self.config.get_ports();
        let port = |place: usize| ports.get(place).or(ports.first()).copied().unwrap_or(5432);
        self.config.get_hosts().iter().enumerate().map(move |(place, host)| (host, port(place)))
    }

    /// A session for SQL.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn sql(&self) -> Result<Sql, Failure> {
        let config = self.with_password().await?;
        match &self.tls {
            Tls::Disable => Sql::connect(&config, tokio_postgres::NoTls).await,
            Tls::Prefer(tls) | Tls::Require(tls) => Sql::connect(&config, tls.clone()).await,
        }
    }

    /// Whether and how connections are encrypted.
    #[must_use]
    pub fn tls(&self) -> &Tls {
        &self.tls
    }

    fn port(&self) -> u16 {
        self.config.get_ports().first().copied().unwrap_or(5432)
    }

    /// The user who logs in.
    #[must_use]
    pub fn user(&self) -> &str {
        self.config.get_user().unwrap_or_default()
    }

    /// The database.
    #[must_use]
    pub fn database(&self) -> &str {
        self.config.get_dbname().unwrap_or_else(|| self.user())
    }

    /// The configuration with the password of now: it may be changed while the daemon runs.
    ///
    /// # Errors
    /// The password's file cannot be read.
    pub async fn with_password(&self) -> Result<tokio_postgres::Config, Failure> {
        let mut config = self.config.clone();
        if config.get_password().is_some() {
            return Ok(config);
        }
        if let Some(path) = &self.password_file {
            let read = tokio::fs::read_to_string(path).await;
            let text = read.map_err(|error| Failure::lost(format!("{}: {error}", path.display())))?;
            config.password(text.trim_end_matches(['\r', '\n']));
        } else if let Some(path) = pgpass_path()
            && let Ok(text) = tokio::fs::read_to_string(&path).await
        {
            let host = match self.config.get_hosts().first() {
                Some(Host::Tcp(host)) => host.as_str(),
                _ => "localhost",
            };
            let wanted = [host, &self.port().to_string(), self.database(), self.user()];
            if let Some(password) = pgpass_password(&text, wanted) {
                config.password(password);
            }
        }
        Ok(config)
    }
}

fn pgpass_path() -> Option<PathBuf> {
    let named = std::env::var_os("PGPASSFILE").map(PathBuf::from);
    named.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".pgpass")))
}

/// The password of the first line of a libpq password file that fits host, port, database and user.
fn pgpass_password(text: &str, wanted: [&str; 4]) -> Option<String> {
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let mut fields = vec![String::new()];
        let mut characters = line.chars();
        while let Some(character) = characters.next() {
            match character {
                '\\' => fields.last_mut()?.extend(characters.next()),
                ':' if fields.len() < 5 => fields.push(String::new()),
                other => fields.last_mut()?.push(other),
            }
        }
        let fits =
            fields.len() == 5 && fields.iter().zip(wanted).all(|(field, wanted)| field == "*" || field == wanted);
        fits.then(|| fields.pop()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_fitting_line_of_a_password_file_counts() {
        let text = "# mine\nother:5432:app:u:no\n*:5432:app:u:a\\:b\\\\c:d\n*:*:*:*:last\n";
        assert_eq!(pgpass_password(text, ["h", "5432", "app", "u"]).as_deref(), Some("a:b\\c:d"));
        assert_eq!(pgpass_password(text, ["h", "5433", "app", "u"]).as_deref(), Some("last"));
        assert_eq!(pgpass_password("short:line\n", ["short", "line", "", ""]), None);
    }

    #[test]
    fn a_url_is_taken_apart() {
        let target = Target::parse("a", "postgres://u@10.0.0.1:5433/app?sslmode=disable", None).unwrap();
        assert_eq!(target.label(), "a (10.0.0.1:5433/app)");
        assert!(Target::parse("a", "postgres://10.0.0.1/app", None).err().unwrap().contains("user"));
        let target = Target::parse("a", "postgres://u@h1:5433,h2:5434/app", None).unwrap();
        assert_eq!(target.label(), "a (h1:5433,h2:5434/app)");
        assert!(Target::parse("a", "postgres://u@h/app?sslmode=maybe", None).err().unwrap().contains("maybe"));
        assert!(Target::parse("a", "http://u@h/app", None).err().unwrap().contains("URL"));
    }
}
