//! `[source]`: where streams come from.

use super::{Build, Section};
use crate::config::value::{self, PostgresParts, Secret};
use crate::config::{CdcTabletConfig, PostgresSourceConfig, PostgresTabletConfig, SourceConfig};
use crate::limits;
use crate::source::postgres::{Pattern, Rename, TableRules};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use toml::Value;

impl Build<'_> {
    pub(super) fn source(&mut self, section: &Section<'_>) -> SourceConfig {
        let tablets = section.tables("tablets");
        let kind = section.text("kind");
        let key = section.key("kind");
        match kind {
            None if tablets.is_empty() => return SourceConfig::None,
            None if self.faults.has(&key) => {}
            None => self.faults.push(&key, "is missing", "write \"postgres\" or \"cdc\""),
            Some("postgres" | "cdc") => {}
            Some(other) => {
                self.faults.push(&key, format!("{other:?} is no kind of source"), "write \"postgres\" or \"cdc\"");
            }
        }
        if kind == Some("cdc") {
            let foreign = ["gid_pattern", "clock_skew", "include", "exclude", "rename", "copy_rate", "copy_parallel"];
            self.foreign(section, &foreign, "source.kind = \"postgres\"");
        }
        if tablets.len() > limits::STREAMS_MAX {
            let what = format!("has {} entries, {} at most are served", tablets.len(), limits::STREAMS_MAX);
            self.faults.push(&section.key("tablets"), what, "divide them among several daemons");
        }
        let mut names = BTreeMap::new();
        for tablet in &tablets {
            let name = self.required(tablet, "name", "name the stream");
            self.name(&name, &tablet.key("name"), &mut names);
        }
        match kind {
            Some("cdc") => SourceConfig::Cdc(tablets.iter().map(|tablet| self.cdc_tablet(tablet)).collect()),
            Some("postgres") => SourceConfig::Postgres(PostgresSourceConfig {
                gid_pattern: self.gid_pattern(section),
                clock_skew: self.duration(section, "clock_skew", Duration::from_millis(500)),
                copy_rate: section.text("copy_rate").map(|_| self.size(section, "copy_rate", 1)),
                copy_parallel: self.copy_parallel(section),
                tablets: self.postgres_tablets(section, &tablets),
            }),
            _ => SourceConfig::None,
        }
        .none_without_tablets()
    }

    fn copy_parallel(&mut self, section: &Section<'_>) -> usize {
        let asked = section.get("copy_parallel").and_then(Value::as_integer).unwrap_or(limits::COPY_PARALLEL as i64);
        usize::try_from(asked)
            .ok()
            .filter(|parallel| (1..=limits::COPY_PARALLEL_MAX).contains(parallel))
            .unwrap_or_else(|| {
                let what = format!("is {asked}, and 1 to {} are possible", limits::COPY_PARALLEL_MAX);
                self.faults.push(&section.key("copy_parallel"), what, "give a number in that range");
                limits::COPY_PARALLEL
            })
    }

    fn cdc_tablet(&mut self, tablet: &Section<'_>) -> CdcTabletConfig {
        let foreign = ["publication", "slot", "password_file", "include", "exclude", "rename"];
        self.foreign(tablet, &foreign, "source.kind = \"postgres\"");
        let name = tablet.text("name").unwrap_or_default().to_owned();
        let (url, tls) = self.http_url(tablet);
        CdcTabletConfig { url, tls, tablet: tablet.text("tablet").unwrap_or(&name).to_owned(), name }
    }

    fn postgres_tablets(&mut self, source: &Section<'_>, tablets: &[Section<'_>]) -> Vec<PostgresTabletConfig> {
        let mut slots = BTreeMap::new();
        let shared = self.rules(source, &TableRules::default());
        let mut read = |tablet: &Section<'_>| {
            self.foreign(tablet, &["tablet", "tls"], "source.kind = \"cdc\"");
            let slot = self.required(tablet, "slot", "name the replication slot; it is created when missing");
            if !slot.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_')) || slot.len() > 63 {
                let what = format!("{slot:?} is no name of a slot");
                self.faults.push(&tablet.key("slot"), what, "use at most 63 of a-z, 0-9 and _");
            }
            let publication =
                self.required(tablet, "publication", "name the publication, made with CREATE PUBLICATION");
            let password_file = self.password_file(tablet);
            let url = self.required(tablet, "url", "write postgres://user@host:5432/database");
            if let Some(parts) = self.postgres_url(tablet, &url, password_file.is_some())
                && let Some(other) = slots.insert((parts.hosts, slot.clone()), tablet.path.clone())
            {
                let what = format!("is the slot of {other} too, and one slot feeds one stream");
                self.faults.push(&tablet.key("slot"), what, "give each stream a slot of its own");
            }
            let name = tablet.text("name").unwrap_or_default().to_owned();
            let tables = Arc::new(self.rules(tablet, &shared));
            PostgresTabletConfig { name, url: Secret::new(url), password_file, publication, slot, tables }
        };
        tablets.iter().map(&mut read).collect()
    }

    pub(super) fn postgres_url(&mut self, tablet: &Section<'_>, url: &str, password: bool) -> Option<PostgresParts> {
        let key = tablet.key("url");
        if url.is_empty() {
            return None;
        }
        let parts = match value::postgres_url(url) {
            Ok(parts) => parts,
            Err(what) => {
                self.faults.push(&key, what, "write postgres://user@host:5432/database?sslmode=verify-full");
                return None;
            }
        };
        if !parts.loopback && !tablet.flag("insecure") {
            let insecure = tablet.key("insecure");
            if !parts.verified {
                let what = "is reached beyond loopback without TLS that verifies the server";
                let mend = format!("write ?sslmode=verify-full in the URL, or set {insecure} = true");
                self.faults.push(&key, what, mend);
            }
            if !parts.credentials && !password && !self.libpq_credentials() {
                let mend = format!("set password_file (or PGPASSFILE), or set {insecure} = true");
                self.faults.push(&key, "is reached beyond loopback without credentials", mend);
            }
        }
        Some(parts)
    }

    /// Whether libpq would find a password by itself.
    fn libpq_credentials(&self) -> bool {
        let home = self.vars.get("HOME").map(|home| PathBuf::from(home).join(".pgpass"));
        self.vars.contains_key("PGPASSWORD")
            || self.vars.contains_key("PGPASSFILE")
            || home.is_some_and(|file| file.exists())
    }

    pub(super) fn password_file(&mut self, tablet: &Section<'_>) -> Option<PathBuf> {
        let file = tablet.text("password_file")?;
        let key = tablet.key("password_file");
        match std::fs::read_to_string(file) {
            Ok(text) if text.trim().is_empty() => {
                self.faults.push(&key, format!("{file} is empty"), "write the password into it");
            }
            Ok(_) => {}
            Err(error) => {
                self.faults.push(
                    &key,
                    format!("{file} cannot be read: {error}"),
                    "name a file that this user can read",
                );
            }
        }
        Some(PathBuf::from(file))
    }

    /// The rules of a section; where it has none of a kind, the ones that `shared` has.
    fn rules(&mut self, section: &Section<'_>, shared: &TableRules) -> TableRules {
        const MEND: &str = "write it as \"public.accounts\", or \"public.*\"";
        const MEND_RENAME: &str = "write it as \"shop.* -> public.*\"";
        TableRules {
            include: self.rule(section, "include", &shared.include, Pattern::parse, MEND),
            exclude: self.rule(section, "exclude", &shared.exclude, Pattern::parse, MEND),
            rename: self.rule(section, "rename", &shared.rename, Rename::parse, MEND_RENAME),
        }
    }

    fn rule<T: Clone>(
        &mut self,
        section: &Section<'_>,
        name: &str,
        shared: &[T],
        parse: fn(&str) -> Result<T, String>,
        mend: &str,
    ) -> Vec<T> {
        let Some(texts) = section.names(name) else { return shared.to_vec() };
        let mut rules = Vec::with_capacity(texts.len());
        for (i, text) in texts.iter().enumerate() {
            match parse(text) {
                Ok(rule) => rules.push(rule),
                Err(what) => {
                    self.faults.push(&format!("{}[{i}]", section.key(name)), format!("{text:?} {what}"), mend);
                }
            }
        }
        rules
    }

    fn gid_pattern(&mut self, section: &Section<'_>) -> Option<String> {
        let pattern = section.text("gid_pattern")?;
        if !matches!(pattern, "citus" | "xa") {
            let key = section.key("gid_pattern");
            match regex::Regex::new(pattern) {
                Ok(regex) if regex.capture_names().any(|name| name == Some("txn")) => {}
                Ok(_) => self.faults.push(&key, "has no group named txn", "write it as '^(?<txn>.+)$'"),
                Err(error) => {
                    // The last line of regex's message says what is wrong; those above draw an arrow.
                    let error = error.to_string();
                    let what = format!("is no regular expression: {}", error.lines().last().unwrap_or_default().trim());
                    self.faults.push(&key, what, "mend it, or write \"citus\" or \"xa\"");
                }
            }
        }
        Some(pattern.to_owned())
    }

    pub(super) fn poll(&mut self, section: &Section<'_>, source: &SourceConfig) -> Vec<String> {
        let known = source.names();
        let Some(poll) = section.names("poll") else {
            return known.into_iter().map(str::to_owned).collect();
        };
        for (i, name) in poll.iter().enumerate() {
            let key = format!("{}[{i}]", section.key("poll"));
            if !known.contains(&name.as_str()) {
                self.faults.push(&key, format!("{name:?} is no source tablet"), "write a name of [[source.tablets]]");
            } else if poll[..i].contains(name) {
                self.faults.push(&key, format!("{name:?} is named twice"), "name each stream once");
            }
        }
        poll
    }
}

impl SourceConfig {
    /// No source tablets at all are legal, whatever the kind says.
    fn none_without_tablets(self) -> Self {
        if self.names().is_empty() { Self::None } else { self }
    }
}
