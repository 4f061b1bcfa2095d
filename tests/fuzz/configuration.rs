//! What people write: configuration files, URLs, patterns, positions and times.

use untorn::admin::scan::ScanAt;
use untorn::config::{Configuration, Vars, value};
use untorn::postgres::Target;
use untorn::source::postgres::{GidPattern, Pattern, Rename};
use untorn::wal::{HybridTime, OpId};

/// A configuration file, and one variable of the environment in its last line. Every fault names its key.
pub fn file(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (text, last) = text.rsplit_once('\n').unwrap_or((text, ""));
    let vars: Vars =
        last.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter().collect();
    match Configuration::parse(text, &vars) {
        Ok(configuration) => drop(configuration),
        Err(faults) => assert!(!faults.to_string().is_empty()),
    }
}

/// The sample, and what it shows in comments.
pub fn files() -> Vec<Vec<u8>> {
    let sample = include_str!("../../src/docs/untorn.sample.toml");
    let cdc = "[source]\nkind = \"cdc\"\n[[source.tablets]]\nname = \"a\"\nurl = \"http://127.0.0.1:7200\"\n[replica]\nkind = \"grpc\"\n[[replica.tablets]]\nname = \"r\"\nurl = \"http://127.0.0.1:7300\"\n\n";
    let tablet =
        "data_dir = \"/tmp/x\"\n[tablet]\nlisten = \"127.0.0.1:7200\"\nnames = [\"r1\"]\nUNTORN__MEMORY_BUDGET=1GiB";
    [sample, cdc, tablet].map(|text| text.as_bytes().to_vec()).into()
}

/// One text, read in every way. What is read and written again is read as the same.
pub fn address(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(target) = Target::parse("shard-a", text, None) {
        assert!(target.servers().count() > 0);
        let _ = target.label();
    }
    let _ = (value::postgres_url(text), value::http_host(text), value::listen(text), value::size(text));
    let _ = (value::duration(text), value::is_loopback(text));
    let _ = (Pattern::parse(text), Rename::parse(text));
    if let Ok(pattern) = GidPattern::parse(text) {
        let _ = pattern.transaction("transfer_4711@a");
    }
    if let Ok(at) = text.parse::<OpId>() {
        assert_eq!(at.to_string().parse().ok(), Some(at));
    }
    if let Ok(time) = text.parse::<HybridTime>() {
        assert_eq!(time.to_string().parse().ok(), Some(time));
    }
    let _ = text.parse::<ScanAt>();
}

/// One of each.
pub fn addresses() -> Vec<Vec<u8>> {
    let texts = [
        "postgres://replicator:secret@10.0.0.1:5432,10.0.0.2/app?sslmode=verify-full&sslrootcert=/ca.crt",
        "postgres://u@%2Ftmp%2Fsocket/db",
        "host=/tmp port=5432 user=u dbname=d",
        "http://[::1]:7200",
        "127.0.0.1:7100",
        "512MiB",
        "500ms",
        "^(?<txn>[^@]+)@.*$",
        "citus",
        "public.*",
        "shop.* -> public.*",
        "16.300",
        "7286720000000000000",
        "safe",
        "/untorn.admin.v1.AdminService/Scan",
    ];
    texts.map(|text| text.as_bytes().to_vec()).into()
}
