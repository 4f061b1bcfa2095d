//! Single keys: a text, a word of a few, a size, an address. What cannot be read is a fault, and a stand-in goes on.

use super::{Build, Section};
use crate::access::ClientFiles;
use crate::config::Listen;
use crate::config::value;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

const LOOPBACK_ONLY: &str = "is reached beyond loopback without TLS and credentials";

impl Build<'_> {
    /// A key that must be there; empty, with a fault, when it is not.
    pub(super) fn required(&mut self, section: &Section<'_>, name: &str, mend: &str) -> String {
        let key = section.key(name);
        match section.text(name) {
            Some("") => self.faults.push(&key, "is empty", mend),
            Some(text) => return text.to_owned(),
            None if self.faults.has(&key) => {}
            None => self.faults.push(&key, "is missing", mend),
        }
        String::new()
    }

    /// Names label metrics and stand before the colon of `tablet:xid`, so they are short, plain and unique.
    pub(super) fn name(&mut self, name: &str, key: &str, seen: &mut BTreeMap<String, String>) {
        if name.is_empty() {
            return;
        }
        if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b)) || name.len() > 63 {
            self.faults.push(key, format!("{name:?} is no name"), "use at most 63 letters, digits, `_`, `-` and `.`");
        }
        if let Some(other) = seen.insert(name.to_owned(), key.to_owned()) {
            self.faults.push(key, format!("{name:?} is the name of {other} too"), "give each its own name");
        }
    }

    /// Keys that mean something only under another kind.
    pub(super) fn foreign(&mut self, section: &Section<'_>, names: &[&str], needs: &str) {
        for name in names.iter().filter(|name| section.get(name).is_some()) {
            self.faults.push(&section.key(name), format!("needs {needs}"), "set that, or remove the key");
        }
    }

    /// One of a few words; the first when absent.
    pub(super) fn one_of<T: Copy>(&mut self, section: &Section<'_>, name: &str, choices: &[(&str, T)]) -> T {
        let text = section.text(name).unwrap_or(choices[0].0);
        choices.iter().find(|(word, _)| *word == text).map_or_else(
            || {
                let words: Vec<String> = choices.iter().map(|(word, _)| format!("{word:?}")).collect();
                self.faults.push(
                    &section.key(name),
                    format!("{text:?} is unknown"),
                    format!("write {}", words.join(" or ")),
                );
                choices[0].1
            },
            |(_, choice)| *choice,
        )
    }

    pub(super) fn size(&mut self, section: &Section<'_>, name: &str, default: u64) -> u64 {
        let Some(text) = section.text(name) else { return default };
        value::size(text).unwrap_or_else(|| {
            let what = format!("{text:?} is no size");
            self.faults.push(&section.key(name), what, "write a whole number with B, KiB, MiB, GiB or TiB: \"512MiB\"");
            default
        })
    }

    pub(super) fn duration(&mut self, section: &Section<'_>, name: &str, default: Duration) -> Duration {
        let Some(text) = section.text(name) else { return default };
        value::duration(text).unwrap_or_else(|| {
            let what = format!("{text:?} is no duration");
            self.faults.push(&section.key(name), what, "write a whole number with ms, s, m, h or d: \"500ms\"");
            default
        })
    }

    /// The section's `listen`, required when there is no default, with its TLS.
    pub(super) fn listen(&mut self, section: &Section<'_>, default: Option<&str>) -> Listen {
        let tls = self.listen_tls(section);
        let address = self.listen_address(section, default);
        let named = section.section("tls").table.is_some();
        if !address.ip().is_loopback() && !named && !section.flag("insecure") {
            let (tls, access, insecure) = (section.key("tls"), section.key("access"), section.key("insecure"));
            let mend = format!("listen on 127.0.0.1, add [{tls}] and [[{access}]], or set {insecure} = true");
            self.faults.push(&section.key("listen"), LOOPBACK_ONLY, mend);
        }
        Listen { address, tls }
    }

    fn listen_address(&mut self, section: &Section<'_>, default: Option<&str>) -> SocketAddr {
        let key = section.key("listen");
        let fallback = SocketAddr::from(([127, 0, 0, 1], 0));
        let text = match (section.text("listen"), default) {
            (Some(text), _) => text.to_owned(),
            (None, Some(default)) => default.to_owned(),
            (None, None) => self.required(section, "listen", "write \"127.0.0.1:7200\""),
        };
        if text.is_empty() {
            return fallback;
        }
        value::listen(&text).unwrap_or_else(|| {
            let what = format!("{text:?} is no address to listen on");
            self.faults.push(&key, what, "write an IP address and a port: \"127.0.0.1:7200\", \"[::1]:7200\"");
            fallback
        })
    }

    /// The section's `url` of a gRPC server, and its TLS.
    pub(super) fn http_url(&mut self, section: &Section<'_>) -> (String, Option<ClientFiles>) {
        let url = self.required(section, "url", "write http://host:port, or https://host:port and tls");
        let tls = self.connect_tls(section, url.is_empty() || url.starts_with("https://"));
        if !url.is_empty() {
            self.http_host(section, &url);
        }
        (url, tls)
    }

    fn http_host(&mut self, section: &Section<'_>, url: &str) {
        let key = section.key("url");
        let tls = url.starts_with("https://");
        match value::http_host(url) {
            Err(what) => self.faults.push(&key, what, "write http://host:port, or https://host:port and tls"),
            Ok(host) if !tls && !value::is_loopback(&host) && !section.flag("insecure") => {
                let (tls, insecure) = (section.key("tls"), section.key("insecure"));
                let mend = format!("write https:// and {tls} with ca, cert and key, or set {insecure} = true");
                self.faults.push(&key, LOOPBACK_ONLY, mend);
            }
            Ok(_) => {}
        }
    }
}
