//! The quick start of `src/docs/postgresql.md`, run as it stands there.

use crate::support::daemon::{Daemon, PATIENCE};
use crate::support::postgres::{Postgres, execute};
use std::time::Instant;

const DOCUMENT: &str = include_str!("../../src/docs/postgresql.md");

/// The fenced blocks: what they are, and their text.
fn blocks() -> Vec<(&'static str, String)> {
    let mut blocks = Vec::new();
    let mut lines = DOCUMENT.lines();
    while let Some(line) = lines.next() {
        if let Some(kind) = line.strip_prefix("```") {
            let text: Vec<&str> = lines.by_ref().take_while(|line| !line.starts_with("```")).collect();
            blocks.push((kind, text.join("\n")));
        }
    }
    blocks
}

/// Runs a block of SQL where its first line says, a statement a time.
async fn sql(text: &str, shards: &[Postgres]) {
    let (on, statements) = text.split_once('\n').unwrap();
    let servers = match on {
        "-- on both servers" => shards,
        "-- on shard-a" => &shards[..1],
        "-- on shard-b" => &shards[1..],
        other => panic!("where is {other:?}?"),
    };
    for server in servers {
        let session = server.connect_to("app").await;
        for statement in statements.split_inclusive(';') {
            execute(&session, statement).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_of_the_quick_start_does_what_it_says() {
    // Servers as they come, but for fsync.
    let mut shards = [Postgres::start_plain(&["fsync=off"]).await, Postgres::start_distinct(&["fsync=off"]).await];
    for shard in &shards {
        shard.execute("CREATE DATABASE app").await;
    }
    let mut daemon: Option<Daemon> = None;
    let mut said = String::new();
    let mut commands = 0;
    for (kind, text) in blocks() {
        match kind {
            "sql" => sql(&text, &shards).await,
            "toml" => {
                // The document's ports are the servers' usual ones; its folder is the daemon's own here.
                let text = text.replace("data_dir = \"/var/lib/untorn\"\n", "");
                let text = text.replace(":5432/", &format!(":{}/", shards[0].port()));
                daemon =
                    Some(Daemon::new(&format!("{}\n", text.replace(":5433/", &format!(":{}/", shards[1].port())))));
            }
            // What the command before printed, at last: the replica follows within moments.
            "text" => {
                let daemon = daemon.as_ref().expect("there is a configuration");
                let deadline = Instant::now() + PATIENCE;
                let sorted = |text: &str| {
                    let mut lines: Vec<String> = text.trim_end().lines().map(str::to_owned).collect();
                    lines.sort();
                    lines
                };
                loop {
                    let output = daemon.ask(&said.split(' ').collect::<Vec<_>>());
                    let printed = String::from_utf8(output.stdout).unwrap();
                    if sorted(&printed) == sorted(&text) {
                        break;
                    }
                    assert!(Instant::now() < deadline, "untorn {said} prints {printed}, not {text}");
                }
            }
            "sh" => {
                for line in text.lines() {
                    commands += 1;
                    let words: Vec<&str> = line.split(' ').collect();
                    match words[..] {
                        ["systemctl", "restart", "postgresql"] => {
                            for shard in &mut shards {
                                shard.restart().await;
                            }
                        }
                        ["untorn", "run", "--config", "untorn.toml", "&"] => {
                            let daemon = daemon.as_mut().expect("there is a configuration");
                            daemon.start();
                            daemon.until_ready().await;
                        }
                        ["kill", "%1"] => assert!(daemon.as_mut().expect("it runs").terminate().success()),
                        ["untorn", ref arguments @ ..] => {
                            let daemon = daemon.as_ref().expect("there is a configuration");
                            let named = arguments.iter().position(|word| *word == "--config");
                            let output = match named {
                                Some(at) => daemon.configured(&[&arguments[..at], &arguments[at + 2..]].concat()),
                                None if arguments[0] == "explain" => {
                                    daemon.until_waits_for(arguments[1], "commit", None).await;
                                    daemon.ask(arguments)
                                }
                                None => daemon.ask(arguments),
                            };
                            assert!(output.status.success(), "{line}: {output:?}");
                            assert!(output.stderr.is_empty() || arguments[0] == "source", "{line}: {output:?}");
                            said = arguments.join(" ");
                        }
                        _ => panic!("nobody runs {line:?}"),
                    }
                }
            }
            other => panic!("what is a block of {other:?}?"),
        }
    }
    assert!(commands >= 9, "{commands} commands");
    for shard in &shards {
        assert_eq!(shard.execute("SELECT count(*) FROM pg_replication_slots").await, ["0"], "nothing is left behind");
    }
}
