//! `replica.kind = "postgres"`: the server that rows go to, and what is done about what it lacks.

use super::{Build, Section};
use crate::config::{PostgresReplicaConfig, Secret};
use std::collections::BTreeMap;
use toml::Value;

impl Build<'_> {
    pub(super) fn postgres_replica(&mut self, section: &Section<'_>, tablets: &[Section<'_>]) -> PostgresReplicaConfig {
        self.foreign(section, &["tablet_count"], "replica.kind = \"embedded\"");
        let key = section.key("tablets");
        if tablets.is_empty() && !self.faults.has(&key) {
            let what = "has no entry, and replica.kind = \"postgres\" needs one";
            self.faults.push(&key, what, "write [[replica.tablets]] with name and url");
        }
        let mut names = BTreeMap::new();
        let mut config = PostgresReplicaConfig {
            name: String::new(),
            url: Secret::new(String::new()),
            password_file: None,
            synchronous_commit: section.get("synchronous_commit").and_then(Value::as_bool).unwrap_or(true),
            create_tables: self.one_of(section, "missing_tables", &[("stop", false), ("create", true)]),
            add_columns: self.one_of(section, "missing_columns", &[("stop", false), ("add", true)]),
        };
        for (i, tablet) in tablets.iter().enumerate() {
            self.foreign(tablet, &["from_key"], "replica.kind = \"grpc\"");
            let name = self.required(tablet, "name", "name the server");
            self.name(&name, &tablet.key("name"), &mut names);
            let password_file = self.password_file(tablet);
            let url = self.required(tablet, "url", "write postgres://user@host:5432/database");
            self.postgres_url(tablet, &url, password_file.is_some());
            if i == 0 {
                (config.name, config.url, config.password_file) = (name, Secret::new(url), password_file);
            } else {
                let what = "is a second server, and one is what this version writes to";
                self.faults.push(&tablet.path, what, "remove it");
            }
        }
        config
    }
}
