//! `replica.kind = "postgres"`: the server that rows go to, and what is done about what it lacks.

use super::{Build, Section};
use crate::config::{PostgresReplicaConfig, PostgresServerConfig, Secret};
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
            servers: Vec::new(),
            synchronous_commit: section.get("synchronous_commit").and_then(Value::as_bool).unwrap_or(true),
            create_tables: self.one_of(section, "missing_tables", &[("stop", false), ("create", true)]),
            add_columns: self.one_of(section, "missing_columns", &[("stop", false), ("add", true)]),
        };
        let mut listed: BTreeMap<String, String> = BTreeMap::new();
        for tablet in tablets {
            self.foreign(tablet, &["from_key"], "replica.kind = \"grpc\"");
            let name = self.required(tablet, "name", "name the server");
            self.name(&name, &tablet.key("name"), &mut names);
            let password_file = self.password_file(tablet);
            let url = self.required(tablet, "url", "write postgres://user@host:5432/database");
            self.postgres_url(tablet, &url, password_file.is_some());
            let key = tablet.key("tables");
            let tables = tablet.names("tables").unwrap_or_default();
            let rest = [String::new()];
            for table in if tables.is_empty() { &rest[..] } else { &tables[..] } {
                if let Some(other) = listed.insert(table.clone(), tablet.path.clone()) {
                    let (what, mend) = match table.as_str() {
                        "" => (format!("is missing, and {other} has every other table already"), "name its tables"),
                        table => (format!("names {table:?}, as {other} does"), "place each table on one server"),
                    };
                    self.faults.push(&key, what, mend);
                }
            }
            for table in tables.iter().filter(|table| table.split('.').count() != 2) {
                let what = format!("{table:?} is no table");
                self.faults.push(&key, what, "write schema.table, or schema.*");
            }
            config.servers.push(PostgresServerConfig { name, url: Secret::new(url), password_file, tables });
        }
        config
    }
}
