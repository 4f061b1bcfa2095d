//! `[replica]`: where rows go.

use super::{Build, Section};
use crate::config::{GrpcTabletConfig, ReplicaConfig};
use crate::limits;
use std::collections::BTreeMap;
use toml::Value;

impl Build<'_> {
    pub(super) fn replica(&mut self, section: &Section<'_>) -> ReplicaConfig {
        let tablets = section.tables("tablets");
        let key = section.key("kind");
        if section.text("kind") != Some("postgres") {
            let keys = ["synchronous_commit", "missing_tables", "missing_columns"];
            self.foreign(section, &keys, "replica.kind = \"postgres\"");
            for tablet in &tablets {
                self.foreign(tablet, &["tables"], "replica.kind = \"postgres\"");
            }
        }
        match section.text("kind") {
            None | Some("embedded") => {
                if !tablets.is_empty() {
                    let what = "needs replica.kind = \"grpc\" or \"postgres\"";
                    self.faults.push(&section.key("tablets"), what, "set it, or remove the entries");
                }
                ReplicaConfig::Embedded { tablet_count: self.tablet_count(section) }
            }
            Some("grpc") => {
                self.foreign(section, &["tablet_count"], "replica.kind = \"embedded\"");
                ReplicaConfig::Grpc(self.grpc_tablets(section, &tablets))
            }
            Some("postgres") => ReplicaConfig::Postgres(self.postgres_replica(section, &tablets)),
            Some(other) => {
                let what = format!("{other:?} is no kind of replica");
                self.faults.push(&key, what, "write \"embedded\", \"grpc\" or \"postgres\"");
                ReplicaConfig::Grpc(Vec::new())
            }
        }
    }

    fn tablet_count(&mut self, section: &Section<'_>) -> u32 {
        let count = section.get("tablet_count").and_then(Value::as_integer).unwrap_or(3);
        let fits = u32::try_from(count).ok().filter(|count| (1..=limits::TABLETS_MAX).contains(count));
        fits.unwrap_or_else(|| {
            let what = format!("{count} is not between 1 and {}", limits::TABLETS_MAX);
            self.faults.push(&section.key("tablet_count"), what, "give a number in that range");
            1
        })
    }

    fn grpc_tablets(&mut self, section: &Section<'_>, tablets: &[Section<'_>]) -> Vec<GrpcTabletConfig> {
        if tablets.is_empty() && !self.faults.has(&section.key("tablets")) {
            let what = "has no entry, and replica.kind = \"grpc\" needs one";
            self.faults.push(&section.key("tablets"), what, "write [[replica.tablets]] with name and url");
        }
        let mut names = BTreeMap::new();
        let mut below: Option<&str> = None;
        let by_range = tablets.iter().any(|tablet| tablet.get("from_key").is_some());
        let mut out = Vec::new();
        for (i, tablet) in tablets.iter().enumerate() {
            let name = self.required(tablet, "name", "name the tablet as its server does");
            self.name(&name, &tablet.key("name"), &mut names);
            let from_key = tablet.text("from_key");
            let key = tablet.key("from_key");
            if by_range && i > 0 && !self.faults.has(&key) {
                match from_key {
                    None => {
                        self.faults.push(&key, "is missing, and other tablets have one", "give it to all but the first")
                    }
                    Some(from) if below.is_some_and(|below| below >= from) => {
                        self.faults.push(&key, "does not rise", "order the tablets by their lowest key");
                    }
                    Some(_) => {}
                }
            }
            below = from_key.or(below);
            let (url, tls) = self.http_url(tablet);
            out.push(GrpcTabletConfig { name, url, tls, from_key: from_key.map(str::to_owned) });
        }
        out
    }
}
