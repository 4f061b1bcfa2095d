//! TLS at both ends, and who may call.

use super::{Build, Section};
use crate::access::{ClientFiles, Grant, KeyError, Role, ServerFiles};
use crate::config::ListenTls;
use std::collections::BTreeMap;
use std::path::PathBuf;

const ROLES: &str = "write \"viewer\", \"operator\" or \"admin\"";

impl Build<'_> {
    /// A listening section's `tls` and `access`.
    pub(super) fn listen_tls(&mut self, section: &Section<'_>) -> Option<ListenTls> {
        let (tls, access) = (section.section("tls"), section.tables("access"));
        if tls.table.is_none() {
            if !access.is_empty() {
                let what = format!("needs [{}]: without certificates nobody has a name", tls.path);
                self.faults.push(&section.key("access"), what, "add it, or remove the entries");
            }
            return None;
        }
        self.foreign(&tls, &["ca", "server_name"], &section.key("url"));
        let files = ServerFiles {
            section: tls.path.clone(),
            cert: self.file(&tls, "cert", "name the listener's certificate"),
            key: self.file(&tls, "key", "name the certificate's private key"),
            client_ca: self.file(&tls, "client_ca", "name the authority of the callers' certificates"),
        };
        self.usable(&tls, files.check());
        let key = section.key("access");
        if access.is_empty() && !self.faults.has(&key) {
            let mend = format!("write [[{key}]] with identity and role");
            self.faults.push(&key, "is missing, so that nobody may call", mend);
        }
        let mut seen = BTreeMap::new();
        let grants = access.iter().filter_map(|entry| self.grant(entry, &mut seen)).collect();
        Some(ListenTls { files, grants })
    }

    fn grant(&mut self, entry: &Section<'_>, seen: &mut BTreeMap<String, String>) -> Option<Grant> {
        let identity = self.required(entry, "identity", "write a name in a certificate, like \"grafana.example\"");
        let role = self.required(entry, "role", ROLES);
        if let Some(other) = seen.insert(identity.clone(), entry.path.clone()).filter(|_| !identity.is_empty()) {
            let what = format!("{identity:?} stands in {other} too");
            self.faults.push(&entry.key("identity"), what, "name each once, with its highest role");
        }
        let found = [Role::Viewer, Role::Operator, Role::Admin].into_iter().find(|known| known.word() == role);
        if found.is_none() && !role.is_empty() {
            self.faults.push(&entry.key("role"), format!("{role:?} is no role"), ROLES);
        }
        found.map(|role| Grant { identity, role })
    }

    /// The `tls` of a section or entry that connects; `https` is what its URL says.
    pub(super) fn connect_tls(&mut self, section: &Section<'_>, https: bool) -> Option<ClientFiles> {
        let tls = section.section("tls");
        if tls.table.is_none() {
            if https {
                let mend = format!("add {} with ca, cert and key", tls.path);
                self.faults.push(&section.key("url"), "asks for TLS, and no certificates are named", mend);
            }
            return None;
        }
        if !https {
            let mend = format!("write https://host:port in {}, or remove it", section.key("url"));
            self.faults.push(&tls.path, "is not used: the URL does not begin with https://", mend);
        }
        self.foreign(&tls, &["client_ca"], &section.key("listen"));
        let files = ClientFiles {
            section: tls.path.clone(),
            ca: self.file(&tls, "ca", "name the authority of the server's certificate"),
            cert: self.file(&tls, "cert", "name the certificate to show"),
            key: self.file(&tls, "key", "name the certificate's private key"),
            server_name: tls.text("server_name").map(str::to_owned),
        };
        self.usable(&tls, files.check());
        Some(files)
    }

    fn file(&mut self, section: &Section<'_>, name: &str, mend: &str) -> PathBuf {
        self.required(section, name, mend).into()
    }

    /// Tells what is wrong with files, unless one of them is not even named.
    fn usable(&mut self, tls: &Section<'_>, checked: Result<(), KeyError>) {
        if let Err(error) = checked
            && !error.file.as_os_str().is_empty()
        {
            self.faults.push(
                &tls.path,
                error.to_string(),
                "name PEM files that this user can read and that belong together",
            );
        }
    }
}
