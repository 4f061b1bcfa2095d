//! Passwords and the values of rows are in no output: not in a log at the level `trace`, not in an error, not in what a
//! command prints about a daemon.

use crate::support::daemon::source_tablet;
use crate::support::postgres::Postgres;
use crate::support::process::{Process, free_port};
use std::process::Command;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long anything may take before a test gives up: no property, only a bound.
const PATIENCE: Duration = Duration::from_secs(120);
/// What is planted in every secret and in every value.
const PLANTED: &str = "pl4nt3dw0rd";

/// The ways in which a log may show bytes.
fn disguises() -> [String; 4] {
    let bytes = PLANTED.as_bytes();
    let joined = |one: fn(&u8) -> String, between: &str| bytes.iter().map(one).collect::<Vec<_>>().join(between);
    [
        PLANTED.to_owned(),
        joined(u8::to_string, ", "),
        joined(|byte| format!("{byte:02x}"), ""),
        joined(|byte| format!("{byte:02X}"), ""),
    ]
}

fn untorn(arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_untorn"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("UNTORN") || name.starts_with("PG")) {
        command.env_remove(name);
    }
    let output = tokio::task::block_in_place(|| command.args(arguments).output().unwrap());
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_values_and_passwords_are_in_no_output() {
    let mut postgres = Postgres::start().await;
    let rows = format!(
        "CREATE TABLE items (id text PRIMARY KEY, body text, more jsonb);
         INSERT INTO items SELECT '{PLANTED}-key-' || n, '{PLANTED}-body', '{{\"a\": \"{PLANTED}\"}}' FROM generate_series(1, 50) n;
         CREATE ROLE reader LOGIN REPLICATION PASSWORD '{PLANTED}-password'; GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader;
         CREATE PUBLICATION untorn FOR ALL TABLES"
    );
    postgres.execute(&rows).await;
    postgres.require_passwords().await;

    let home = tempfile::tempdir().unwrap();
    let [tablet, admin, metrics] = [(); 3].map(|()| free_port());
    let trace = "[tracing]\nfilter = \"trace\"\n";
    let server = format!("[tablet]\nlisten = \"127.0.0.1:{tablet}\"\nnames = [\"r0\"]\n{trace}");
    let server = Process::new(home.path(), "tablet", "tablet", &server);
    let port = postgres.port();
    let url = |word: &str| format!("postgres://reader:{PLANTED}-{word}@127.0.0.1:{}/postgres?sslmode=disable", port);
    let config = |word: &str| {
        let source = source_tablet("shard-a", &url(word));
        format!(
            "[source]\nkind = \"postgres\"\n{source}[replica]\nkind = \"grpc\"\n[[replica.tablets]]\nname = \"r0\"\n\
             url = \"http://127.0.0.1:{tablet}\"\n[admin]\nlisten = \"127.0.0.1:{admin}\"\n\
             [metrics]\nlisten = \"127.0.0.1:{metrics}\"\n{trace}"
        )
    };
    let daemon = Process::new(home.path(), "daemon", "run", &config("password"));
    let at = format!("http://127.0.0.1:{admin}");
    let scan = || untorn(&["scan", "--table", "public.items", "--admin", &at]);
    let until = async |what: &str, wanted: &dyn Fn(&str) -> bool| {
        let deadline = Instant::now() + PATIENCE;
        while !wanted(&scan()) {
            assert!(Instant::now() < deadline, "never: {what}\n{}{}", daemon.told(), server.told());
            sleep(Duration::from_millis(100)).await;
        }
    };
    let keys = |text: &str, word: &str| text.lines().filter(|line| line.contains(word)).count();
    until("the copy", &|rows| keys(rows, "-key-") == 50).await;

    // Changes, a branch that waits, and a server that goes away and comes back.
    let change = format!(
        "UPDATE items SET body = '{PLANTED}-changed' || repeat('{PLANTED}', 1000);
         DELETE FROM items WHERE id = '{PLANTED}-key-7'"
    );
    postgres.execute(&change).await;
    let branch =
        format!("BEGIN; INSERT INTO items VALUES ('{PLANTED}-key-99', '{PLANTED}'); PREPARE TRANSACTION 'order-1'");
    postgres.execute(&branch).await;
    until("the changes", &|rows| keys(rows, "-changed") == 49).await;
    let mut told = untorn(&["explain", "order-1", "--admin", &at]);
    assert!(told.contains("order-1"), "{told}");
    postgres.restart().await;
    postgres.execute("COMMIT PREPARED 'order-1'").await;
    until("the branch", &|rows| keys(rows, "-key-99") == 1).await;
    told += &untorn(&["status", "--admin", &at]);
    told += &untorn(&["status", "--format", "json", "--admin", &at]);
    told += &untorn(&["verify", "--admin", &at]);
    told += &untorn(&["verify", "--format", "json", "--admin", &at]);
    told += &untorn(&["retry", "--admin", &at]);
    told += &untorn(&["skip", "order-1", "--admin", &at]);
    told += &untorn(&["log-level", "--admin", &at]);

    // Refused with a wrong password; asked with a right one.
    for word in ["wrong", "password"] {
        let file = home.path().join("check.toml");
        std::fs::write(&file, format!("data_dir = \"d\"\n{}", config(word))).unwrap();
        let checked = untorn(&["check", "--connect", "--config", file.to_str().unwrap()]);
        assert_eq!(checked.contains("password authentication failed"), word == "wrong", "{checked}");
        told += &checked;
    }
    told += &daemon.whole();
    told += &server.whole();
    assert!(told.contains("TRACE"), "nothing is logged at the level trace");
    for disguise in disguises() {
        let line = told.lines().find(|line| line.contains(&disguise));
        assert!(
            line.is_none(),
            "a secret or a row's value is in the output, as {disguise}:\n{}",
            line.unwrap_or_default()
        );
    }
}
