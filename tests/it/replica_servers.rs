//! Several PostgreSQL servers as one replica: what they show changes at all of them or at none, whoever is killed, and
//! nothing stays prepared.

use crate::postgres_e2e::{ACCOUNTS, Tellers, bank};
use crate::replica_postgres::{Auditor, empty_bank, until_equal, until_stream};
use crate::support::daemon::{Daemon, PATIENCE, source_of};
use crate::support::postgres::{Postgres, execute};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// The sections that replicate these servers into two: the legs of transfers to the second, everything else to the first.
fn into_both(first: &Postgres, second: &Postgres, servers: &[Postgres]) -> String {
    format!(
        "{}[replica]\nkind = \"postgres\"\n[[replica.tablets]]\nname = \"first\"\nurl = \"{}\"\n\
         [[replica.tablets]]\nname = \"second\"\nurl = \"{}\"\ntables = [\"public.legs\"]\n",
        source_of(servers),
        first.url("postgres"),
        second.url("postgres")
    )
}

/// Waits until nothing but this is prepared there.
async fn until_prepared(daemon: &Daemon, server: &Postgres, wanted: &[&str]) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let prepared = server.execute("SELECT gid FROM pg_prepared_xacts ORDER BY gid").await;
        if prepared == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "{prepared:?} is prepared, not {wanted:?}\n{}", daemon.log());
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn servers_commit_together_and_nothing_stays_prepared() {
    let (bank, mut first, mut second) =
        (bank(2, 200).await, empty_bank(&[]).await, empty_bank(&["max_prepared_transactions=0"]).await);
    let sections = into_both(&first, &second, &bank);
    let mut daemon = Daemon::new(&sections);
    // A server that cannot prepare is named.
    let checked = daemon.configured(&["check", "--connect"]);
    let said = String::from_utf8_lossy(&checked.stderr).into_owned() + &String::from_utf8_lossy(&checked.stdout);
    assert!(!checked.status.success() && said.contains("max_prepared_transactions is 0"), "{said}");
    daemon.start();
    daemon
        .until("a server that cannot prepare is named", || {
            daemon.log().contains("max_prepared_transactions is 0").then_some(())
        })
        .await;
    second.set("max_prepared_transactions=1");
    second.restart().await;
    first
        .execute("CREATE TABLE theirs (id int); BEGIN; INSERT INTO theirs VALUES (1); PREPARE TRANSACTION 'theirs'")
        .await;
    daemon.until_ready().await;

    let tellers = Tellers::start(&bank, 2);
    let audit = |server: &Postgres| Auditor::start(server.url("postgres"), ACCOUNTS * 2);
    let auditors = (audit(&first), audit(&second));
    let mut rng = SmallRng::seed_from_u64(5);
    for round in 0..9 {
        sleep(Duration::from_millis(rng.random_range(200..1200))).await;
        let server = if round % 2 == 0 { &mut first } else { &mut second };
        match round % 3 {
            0 => {
                server.kill();
                sleep(Duration::from_millis(rng.random_range(0..500))).await;
                server.start_server().await;
            }
            _ => {
                daemon.kill();
                daemon.start();
            }
        }
    }
    // The second server refuses to prepare: the release is rolled back at the first, said, and tried again.
    let holder = second.connect().await;
    let deadline = Instant::now() + PATIENCE;
    let theirs =
        "CREATE TABLE IF NOT EXISTS theirs (id int); BEGIN; INSERT INTO theirs VALUES (1); PREPARE TRANSACTION 'hers'";
    while holder.simple_query(theirs).await.is_err() {
        execute(&holder, "ROLLBACK").await;
        assert!(Instant::now() < deadline, "the one place is never free");
    }
    until_stream(&daemon, "waiting", "maximum number of prepared transactions").await;
    daemon.kill();
    daemon.start();
    until_stream(&daemon, "waiting", "maximum number of prepared transactions").await;
    execute(&holder, "COMMIT PREPARED 'hers'").await;

    let moved = tellers.stop().await;
    until_equal(&daemon, &first, &bank, &["accounts", "filler"]).await;
    until_equal(&daemon, &second, &bank, &["legs"]).await;
    assert_eq!(first.execute("SELECT count(*) FROM legs").await, ["0"]);
    let (seen, _) = (auditors.0.stop().await, auditors.1.stop().await);
    until_prepared(&daemon, &first, &["theirs"]).await;
    until_prepared(&daemon, &second, &[]).await;
    let position = "SELECT position FROM untorn.progress";
    assert_eq!(first.execute(position).await, second.execute(position).await);
    // A scan finds a table where it is.
    assert!(moved > 0 && seen > 0);
    assert_eq!(
        daemon.scan("public.legs", "latest", "csv").expect("a scan").lines().count(),
        second.execute("SELECT FROM legs").await.len()
    );
    assert!(daemon.terminate().success(), "{}", daemon.log());
    // A table that stands on one server is not placed on another.
    daemon.reconfigure(&sections.replace("public.legs", "public.filler"));
    daemon.start();
    bank[0].execute("INSERT INTO legs VALUES ('last', 0, 1)").await;
    until_stream(&daemon, "stopped", "is kept there already").await;
}
