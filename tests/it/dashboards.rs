//! Every panel of every dashboard answers what it is there for: a real Prometheus scrapes a real daemon, and each panel's
//! value moves under the fault that it exists for. The same faults make alerts fire.
//!
//! `UNTORN_PICTURES=1` also draws the dashboards, as they looked during the faults, for the documentation.

use crate::support::authority::{Authority, put};
use crate::support::daemon::{Daemon, PATIENCE, free_port, source_of};
use crate::support::postgres::Postgres;
use crate::support::prometheus::{Prometheus, Sample};
use regex::Regex;
use serde_json::Value;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use untorn::metrics::METRICS;

fn chart() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("helm")
}

/// The dashboards' files.
fn dashboards() -> Vec<(PathBuf, Value)> {
    let files = std::fs::read_dir(chart().join("dashboards")).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files.collect();
    files.sort();
    let read = |path: PathBuf| {
        let dashboard = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        (path, dashboard)
    };
    files.into_iter().map(read).collect()
}

/// The alerts of the chart, with time run sixty times as fast: a minute is a second.
fn hurried_alerts() -> String {
    let alerts = std::fs::read_to_string(chart().join("alerts.yaml")).unwrap();
    let alerts = Regex::new(r"\b(\d+)m\b").unwrap().replace_all(&alerts, "${1}s");
    alerts.replace("* 60", "* 1")
}

/// The panels' queries, by title, as Grafana would ask them with nothing chosen.
struct Panels<'a> {
    prometheus: &'a Prometheus,
    queries: BTreeMap<String, Vec<String>>,
    shown: BTreeMap<String, BTreeSet<String>>,
}

impl<'a> Panels<'a> {
    fn new(prometheus: &'a Prometheus) -> Self {
        let mut queries = BTreeMap::new();
        for (path, dashboard) in dashboards() {
            for panel in dashboard["panels"].as_array().unwrap() {
                let title = panel["title"].as_str().unwrap().to_owned();
                let query = |target: &Value| {
                    let query = target["expr"].as_str().unwrap();
                    query.replace("$instance", ".*").replace("$stream", ".*").replace("$__rate_interval", "10s")
                };
                let targets = panel["targets"].as_array().unwrap().iter().map(query).collect();
                let twice = queries.insert(title.clone(), targets);
                assert!(twice.is_none(), "{}: two panels are called {title:?}", path.display());
            }
        }
        Self { prometheus, queries, shown: BTreeMap::new() }
    }

    /// Waits until a panel shows what it should `when` this is so.
    async fn show(&mut self, when: &str, title: &str, wanted: impl Fn(&[Sample]) -> bool) {
        let queries = self.queries.get(title).unwrap_or_else(|| panic!("no panel is called {title:?}"));
        let deadline = Instant::now() + PATIENCE;
        loop {
            let samples: Vec<_> = queries.iter().flat_map(|query| self.prometheus.query(query)).collect();
            if wanted(&samples) {
                break;
            }
            assert!(Instant::now() < deadline, "{when}, {title:?} shows {samples:#?}");
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        self.shown.entry(title.to_owned()).or_default().insert(when.to_owned());
    }

    /// Waits until the highest value of each panel is above this.
    async fn rise(&mut self, when: &str, panels: &[(&str, f64)]) {
        for (title, above) in panels {
            self.show(when, title, |samples| highest(samples) > *above).await;
        }
    }

    /// Waits until no value of each panel is above this.
    async fn rest(&mut self, when: &str, panels: &[(&str, f64)]) {
        for (title, below) in panels {
            self.show(when, title, |samples| highest(samples) <= *below).await;
        }
    }

    /// Fails when a panel was not seen both at rest and moved.
    fn all_moved(&self) {
        let still = self.queries.keys().filter(|title| self.shown.get(*title).is_none_or(|shown| shown.len() < 2));
        let still: Vec<_> = still.collect();
        assert!(still.is_empty(), "nothing here moves these panels: {still:?}");
    }
}

/// The highest value; 0 where there is none.
fn highest(samples: &[Sample]) -> f64 {
    samples.iter().map(|sample| sample.value).filter(|value| !value.is_nan()).fold(0.0, f64::max)
}

fn of_stream(samples: &[Sample], stream: &str) -> Option<f64> {
    let found = samples.iter().find(|sample| sample.labels.get("stream").is_some_and(|label| label == stream));
    found.map(|sample| sample.value)
}

/// A transaction over all servers, by two-phase commit. Each key is one server's own.
async fn load(servers: &[Postgres], id: u32) {
    for (shard, server) in servers.iter().enumerate() {
        let key = id * 10 + u32::try_from(shard).unwrap();
        let write = format!("INSERT INTO t VALUES ({key}, 'x'); PREPARE TRANSACTION 'load-{id}'");
        server.execute(&format!("BEGIN; {write}")).await;
    }
    for server in servers {
        server.execute(&format!("COMMIT PREPARED 'load-{id}'")).await;
    }
}

/// Writes so many MiB of WAL that nobody wants.
async fn fill_wal(server: &Postgres, mebibytes: u32) {
    let message = "SELECT pg_logical_emit_message(false, 'x', repeat('x', 1 << 20))";
    server.execute(&format!("{message} FROM generate_series(1, {mebibytes}); SELECT pg_switch_wal()")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_panel_moves_under_the_fault_that_it_is_there_for() {
    let servers = [Postgres::start().await, Postgres::start_with(&["max_slot_wal_keep_size=512MB"]).await];
    let [a, b] = &servers;
    for (server, first) in servers.iter().zip([10_000_000, 20_000_000]) {
        server.execute("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE PUBLICATION untorn FOR ALL TABLES").await;
        let early = format!("INSERT INTO t SELECT i, 'early' FROM generate_series({first}, {}) i", first + 2000);
        server.execute(&early).await;
    }
    // A transaction manager died: its branch keeps the slot of one server from being created.
    b.execute("BEGIN; INSERT INTO t VALUES (7, 'orphan'); PREPARE TRANSACTION 'orphan'").await;
    let (tablet, port) = Daemon::tablets(&["r0"]);
    let (keys, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    put(&keys.path().join("ca.crt"), &authority.pem);
    authority.give(keys.path(), "leader", &["127.0.0.1"], 2999);
    let file = |name: &str| keys.path().join(name);
    let leader = format!(
        "[leader]\nlisten = \"127.0.0.1:{}\"\n[leader.tls]\ncert = {:?}\nkey = {:?}\nclient_ca = {:?}\n\
         [[leader.access]]\nidentity = \"poller\"\nrole = \"admin\"\n",
        free_port(),
        file("leader.crt"),
        file("leader.key"),
        file("ca.crt")
    );
    let replica = format!(
        "memory_budget = \"32MiB\"\n{}[replica]\nkind = \"grpc\"\n\
         [[replica.tablets]]\nname = \"r0\"\nurl = \"http://127.0.0.1:{port}\"\n",
        source_of(&servers)
    );
    let mut daemon = Daemon::new(&format!("{replica}{leader}"));
    let prometheus = Prometheus::start(&[daemon.metrics_port()], &hurried_alerts()).await;
    let begun = SystemTime::now();
    let mut panels = Panels::new(&prometheus);

    let when = "before there is a daemon";
    panels.rest(when, &[("Ownership of the log", 0.0)]).await;
    prometheus.until_fires("UntornAbsent").await;
    daemon.start();

    let when = "before the first safe point";
    panels.show(when, "Ready", |samples| samples.iter().any(|sample| sample.value == 0.0)).await;
    panels.show(when, "State", |samples| of_stream(samples, "shard-b") == Some(3.0)).await;
    b.execute("ROLLBACK PREPARED 'orphan'").await;
    panels.rise("while it copies", &[("Initial copy", 10.0)]).await;
    daemon.until_ready().await;

    let when = "at rest";
    panels.show(when, "Ready", |samples| samples.iter().all(|sample| sample.value == 1.0)).await;
    panels.show(when, "State", |samples| of_stream(samples, "shard-b") == Some(1.0)).await;
    panels.show(when, "Certificates expire in", |samples| samples.iter().any(|sample| sample.value > 1e6)).await;
    panels.show(when, "Opened again", |samples| of_stream(samples, "shard-a") == Some(0.0)).await;
    panels
        .show(when, "WAL left until the slot is lost", |samples| {
            of_stream(samples, "shard-b").is_some_and(|left| left > 490e6)
        })
        .await;
    panels.show(when, "The slot is lost in", |samples| samples.iter().all(|sample| sample.value > 20e3)).await;
    panels
        .rest(
            when,
            &[
                ("Safe time behind", 3.0),
                ("Held by", 1.0),
                ("Streams stopped", 0.0),
                ("Oldest undecided", 0.0),
                ("Safe time and streams, behind", 3.0),
                ("What transactions wait for", 0.0),
                ("Transactions made visible or discarded", 0.0),
                ("Commit to visible", 0.0),
                ("Commit to visible, p99", 0.0),
                ("Commit to visible, distribution", 0.0),
                ("Lag", 3.0),
                ("Records", 0.0),
                ("Bytes", 0.0),
                ("Records in a batch", 0.0),
                ("In work", 0.0),
                ("Initial copy", 0.0),
                ("WAL that the source keeps for us", 60e6),
                ("Oldest prepared transaction at the source", 0.0),
                ("Held, by status", 0.0),
                ("Log appends", 20.0),
                ("Append, with its barrier", 600.0),
                ("Provisional records", 0.0),
                ("Bytes of provisional records", 0.0),
                ("Oldest provisional record", 0.0),
                ("Memory budget in use", 0.0),
            ],
        )
        .await;
    let epoch = highest(&prometheus.query("untorn_owner_epoch"));
    panels.show(when, "Ownership of the log", |samples| highest(samples) == epoch).await;
    assert_eq!(prometheus.firing(), BTreeSet::new(), "an alert fires at rest");

    let when = "when nobody renewed a certificate";
    authority.give(keys.path(), "leader", &["127.0.0.1"], 2020);
    panels.show(when, "Certificates expire in", |samples| samples.iter().any(|sample| sample.value < 0.0)).await;
    prometheus.until_fires("UntornCertificateExpiring").await;
    authority.give(keys.path(), "leader", &["127.0.0.1"], 2999);

    let when = "under load";
    // The rates are of the last seconds: the load goes on until every panel was looked at.
    let done = Cell::new(false);
    let writes = async {
        let mut id = 100_000;
        while !done.get() {
            load(&servers, id).await;
            id += 1;
        }
    };
    let looks = async {
        panels
            .rise(
                when,
                &[
                    ("Transactions made visible or discarded", 0.1),
                    ("Commit to visible", 0.0),
                    ("Commit to visible, p99", 0.0),
                    ("Commit to visible, distribution", 0.0),
                    ("Records", 0.1),
                    ("Bytes", 1.0),
                    ("Records in a batch", 0.1),
                    ("Log appends", 0.1),
                    ("Append, with its barrier", 0.0),
                ],
            )
            .await;
        done.set(true);
    };
    tokio::join!(writes, looks);

    let when = "while a transaction manager is away";
    a.execute("BEGIN; INSERT INTO t VALUES (5000, 'held'); PREPARE TRANSACTION 'held'").await;
    daemon.until_waits_for("held", "commit", Some("shard-a")).await;
    panels.rise(when, &[("Oldest prepared transaction at the source", 3.0)]).await;
    prometheus.until_fires("UntornPreparedOrphan").await;

    let when = "while a server is silent";
    b.signal_walsender("shard_b", "STOP").await;
    b.execute("INSERT INTO t VALUES (5001, 'unheard')").await;
    a.execute("COMMIT PREPARED 'held'").await;
    panels.show(when, "Held by", |samples| of_stream(samples, "shard-b") == Some(1.0)).await;
    fill_wal(b, 80).await;
    panels
        .rise(
            when,
            &[
                ("Safe time behind", 4.0),
                ("Safe time and streams, behind", 4.0),
                ("Lag", 4.0),
                ("Oldest undecided", 4.0),
                ("What transactions wait for", 0.1),
                ("Held, by status", 0.0),
                ("Provisional records", 0.0),
                ("Bytes of provisional records", 0.0),
                ("Oldest provisional record", 3.0),
                ("WAL that the source keeps for us", 80e6),
            ],
        )
        .await;
    panels
        .show(when, "WAL left until the slot is lost", |samples| {
            of_stream(samples, "shard-b").is_some_and(|left| left < 480e6)
        })
        .await;
    panels.show(when, "The slot is lost in", |samples| samples.iter().any(|sample| sample.value < 20e3)).await;
    fill_wal(b, 80).await;
    for alert in
        ["UntornSourceWalRunningOut", "UntornSafeTimeStuck", "UntornLagGrowing", "UntornProvisionalRecordsAgeing"]
    {
        prometheus.until_fires(alert).await;
    }
    b.signal_walsender("shard_b", "CONT").await;
    daemon.until_over("held").await;

    let when = "while a tablet hangs";
    tablet.signal("STOP");
    // Many transactions: a batch ends with one of them, and what it took of the budget is given back when it is durable.
    let insert = "INSERT INTO t SELECT i, string_agg(md5(i::text || j), '') FROM generate_series(1, 300) j";
    a.execute(&format!("DO $$ BEGIN FOR i IN 10000..10600 LOOP {insert}; COMMIT; END LOOP; END $$")).await;
    panels.rise(when, &[("Memory budget in use", 0.01), ("In work", 1e5)]).await;
    tablet.signal("CONT");
    panels.rest("when it goes on", &[("Memory budget in use", 0.0), ("In work", 0.0)]).await;

    let [mut a, b] = servers;
    a.stop();
    a.start_server().await;
    let opened_again = |samples: &[Sample]| of_stream(samples, "shard-a").is_some_and(|times| times > 0.5);
    panels.show("when a server was restarted", "Opened again", opened_again).await;
    b.execute("DROP PUBLICATION untorn; INSERT INTO t VALUES (9000, 'unpublished')").await;
    let when = "when somebody must mend a stream";
    panels.rise(when, &[("Streams stopped", 0.5)]).await;
    panels.show(when, "State", |samples| of_stream(samples, "shard-b") == Some(4.0)).await;
    prometheus.until_fires("UntornStreamStopped").await;

    let deadline = Instant::now() + PATIENCE;
    while !prometheus.firing().contains("UntornLogContended") {
        assert!(Instant::now() < deadline, "UntornLogContended never fires");
        let owner = highest(&prometheus.query("untorn_owner_epoch"));
        daemon.kill();
        daemon.start();
        panels.show("after a crash", "Ownership of the log", |samples| highest(samples) > owner).await;
    }
    panels.all_moved();
    if std::env::var_os("UNTORN_PICTURES").is_some() {
        draw(&prometheus, begun);
    }
}

/// Draws what the panels showed, into the documentation.
fn draw(prometheus: &Prometheus, begun: SystemTime) {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap().as_secs().to_string();
    for (path, _) in dashboards() {
        let picture = root.join("src/docs/pictures").join(path.with_extension("svg").file_name().unwrap());
        let mut draw = Command::new("python3");
        draw.arg(root.join("tests/helm/draw.py")).arg(path).arg(prometheus.url());
        draw.args([seconds(begun), seconds(SystemTime::now())]).arg(picture);
        assert!(draw.status().unwrap().success());
    }
}

#[test]
fn dashboards_and_alerts_name_metrics_that_there_are() {
    let known: BTreeSet<_> = METRICS.iter().map(|metric| metric.name.to_owned()).collect();
    let name = Regex::new(r"\buntorn_[a-z_]+").unwrap();
    let read = |path: PathBuf| (std::fs::read_to_string(&path).unwrap(), path);
    let files = dashboards().into_iter().map(|(path, _)| path).chain([chart().join("alerts.yaml")]).map(read);
    for (text, path) in files {
        for found in name.find_iter(&text) {
            let metric = found.as_str().trim_end_matches("_bucket").to_owned();
            assert!(known.contains(&metric), "{} asks for {metric}, which no code counts", path.display());
        }
    }
}
