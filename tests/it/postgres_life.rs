//! The life of an installation, told once from its first copy to its last check: a schema with every type, pgbench and
//! two-phase commits together, columns and tables that change, a primary that dies and a standby that takes its place, a
//! slot whose WAL is recycled, a third server, a slot that is dropped. The daemon is killed in each chapter, `verify` finds
//! the replica equal after each, and at the end the rows that were damaged by hand and no others.

use crate::every_row;
use crate::postgres_e2e::{ACCOUNTS, BALANCE, Tellers, audit, bank};
use crate::support::daemon::{Daemon, json_lines, source_tablet};
use crate::support::postgres::{Postgres, Running};
use crate::support::tables::until_equal;
use crate::verify::damage;
use serde_json::Value;
use std::time::Duration;

/// What lives together: servers, the first one's standby, the daemon, and what loads them.
struct Installation {
    servers: Vec<Postgres>,
    /// The first server's standby, until it takes its place.
    standby: Option<Postgres>,
    /// The hosts of the first server's URL.
    first: String,
    /// How many servers take part.
    takes_part: usize,
    daemon: Daemon,
    tellers: Option<Tellers>,
    pgbench: Option<Running>,
}

impl Installation {
    /// Three servers with accounts; the first has every type, a table without a key and pgbench's tables, too.
    async fn new() -> Self {
        let servers = bank(3, 3_000).await;
        servers[0].execute("ALTER SYSTEM SET wal_keep_size = '2GB'").await;
        servers[0].execute("SELECT pg_reload_conf()").await;
        let name = every_row::create(&servers[0]).await;
        servers[0].execute(&format!("INSERT INTO {name} VALUES {}", every_row::values(1))).await;
        servers[0]
            .execute(
                "CREATE TABLE bag (what text, n int); ALTER TABLE bag REPLICA IDENTITY FULL;
                 INSERT INTO bag SELECT nullif('w' || n % 3, 'w0'), n % 5 FROM generate_series(1, 200) n",
            )
            .await;
        servers[0].pgbench(&["-i", "-q"]).wait();
        let standby = servers[0].standby().await;
        let first = format!(
            "postgres://postgres@127.0.0.1:{},127.0.0.1:{}/postgres?sslmode=disable",
            standby.port(),
            servers[0].port()
        );
        let daemon = Daemon::new("");
        let standby = Some(standby);
        Self { servers, standby, first, takes_part: 2, daemon, tellers: None, pgbench: None }
    }

    fn configure(&self) {
        let tablet = |(server, letter): (&Postgres, char)| match letter {
            'a' => source_tablet("shard-a", &self.first),
            letter => source_tablet(&format!("shard-{letter}"), &server.url("postgres")),
        };
        let tablets = self.taking_part().iter().zip('a'..).map(tablet).collect::<String>();
        self.daemon.reconfigure(&format!("[source]\nkind = \"postgres\"\n{tablets}"));
    }

    fn taking_part(&self) -> &[Postgres] {
        &self.servers[..self.takes_part]
    }

    fn load(&mut self) {
        self.tellers = Some(Tellers::start(self.taking_part(), 2));
        self.pgbench = Some(self.servers[0].pgbench(&["-n", "-c", "1", "-R", "40", "-T", "600"]));
    }

    /// Ends the load; the next tellers count their transfers anew.
    async fn rest(&mut self) {
        self.pgbench.take();
        assert!(self.tellers.take().unwrap().stop().await > 0);
        for server in self.taking_part() {
            server.execute("DELETE FROM legs").await;
        }
    }

    fn restart(&mut self) {
        self.daemon.kill();
        self.daemon.start();
    }

    async fn until_all_run(&self) {
        let run = |status: &Value| {
            let streams = status["streams"].as_array().unwrap();
            let runs = |stream: &Value| stream["state"] == "running" && stream["copy"]["state"] == "done";
            status["ready"] == true && streams.len() == self.takes_part && streams.iter().all(runs)
        };
        self.daemon.until_status("every stream runs", run).await;
    }

    async fn until_stopped(&self, stream: usize, says: &str) {
        let stopped = |status: &Value| status["streams"][stream]["state"] == "stopped";
        let status = self.daemon.until_status("a stream stops by name", stopped).await;
        let cause = status["streams"][stream]["cause"].as_str().unwrap();
        assert!(cause.contains(says) && cause.contains("untorn recopy --tablet"), "{cause}");
    }

    /// Nothing is torn, and every row of every table is what its server has.
    async fn check(&self, chapter: &str) {
        self.until_all_run().await;
        self.daemon.until("whole scans", || (audit(&self.daemon, self.takes_part) > 0).then_some(())).await;
        let equal = || {
            let (code, report) = self.verify();
            // It may say that it cannot tell, while a table is being copied; that rows differ it may not.
            assert_eq!(differences(&report), Vec::<String>::new(), "{chapter}");
            (code == 0).then_some(())
        };
        self.daemon.until(&format!("{chapter}: equal"), equal).await;
    }

    fn verify(&self) -> (i32, Value) {
        let output = self.daemon.ask(&["verify", "--format", "json"]);
        (output.status.code().unwrap(), json_lines(&output).pop().unwrap_or_default())
    }

    async fn columns_and_tables_change(&mut self) {
        for server in &self.servers[..2] {
            server.execute("ALTER TABLE filler ADD COLUMN note text NOT NULL DEFAULT 'as ever'").await;
            self.daemon.kill();
            self.daemon.start();
            let id = server.port();
            let sql = format!(
                "BEGIN; CREATE TABLE later (id int PRIMARY KEY, body text); INSERT INTO later VALUES ({id}, 'born');
                 ALTER TABLE later ADD more int; INSERT INTO later VALUES (-{id}, 'grown', 7);
                 ALTER TABLE later DROP body; COMMIT"
            );
            server.execute(&sql).await;
        }
        self.servers[0]
            .execute(
                "ALTER TABLE bag ADD colour text; UPDATE bag SET colour = 'red' WHERE n = 3;
                 DELETE FROM bag WHERE ctid IN (SELECT ctid FROM bag WHERE n = 4 LIMIT 5); INSERT INTO bag VALUES ('w1', 1), ('w1', 1)",
            )
            .await;
        let name = every_row::NAME;
        self.servers[0].execute(&format!("INSERT INTO {name} VALUES {}", every_row::values(4))).await;
        // The publication is looked at every two seconds.
        until_equal(&self.daemon, &self.servers[..2], "public.filler").await;
        until_equal(&self.daemon, &self.servers[..2], "public.later").await;
        until_equal(&self.daemon, &self.servers[..1], "public.bag").await;
    }

    async fn the_primary_dies(&mut self) {
        self.rest().await;
        for server in &self.servers[..2] {
            let first = if std::ptr::eq(server, &self.servers[0]) { 0 } else { 1000 };
            let amount = if first == 0 { -5 } else { 5 };
            let sql = format!(
                "BEGIN; UPDATE accounts SET balance = balance + {amount} WHERE id = {}; PREPARE TRANSACTION 'over'",
                first + 1
            );
            server.execute(&sql).await;
        }
        let mut standby = self.standby.take().unwrap();
        let flushed = self.servers[0].execute("SELECT pg_current_wal_flush_lsn()").await;
        let received = format!("SELECT pg_last_wal_replay_lsn() >= '{}'", flushed[0]);
        while standby.execute(&received).await != ["t"] {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.servers[0].kill();
        self.daemon.kill();
        standby.stop();
        standby.take_over_slot(&self.servers[0], "shard_a");
        standby.start_server().await;
        assert_eq!(standby.execute("SELECT pg_promote()").await, ["t"]);
        self.daemon.start();
        self.servers[0] = standby;
        self.servers[1].execute("COMMIT PREPARED 'over'").await;
        self.servers[0].execute("COMMIT PREPARED 'over'").await;
        self.load();
    }

    async fn wal_is_recycled(&mut self) {
        self.daemon.kill();
        let server = &self.servers[1];
        server.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'").await;
        server.execute("SELECT pg_reload_conf()").await;
        while server.execute("SELECT wal_status FROM pg_replication_slots").await != ["lost"] {
            for statement in
                ["DELETE FROM filler WHERE id = (SELECT min(id) FROM filler)", "SELECT pg_switch_wal()", "CHECKPOINT"]
            {
                server.execute(statement).await;
            }
        }
        server.execute("ALTER SYSTEM RESET max_slot_wal_keep_size").await;
        server.execute("SELECT pg_reload_conf()").await;
        self.daemon.start();
        self.until_stopped(1, "is lost").await;
        assert!(self.daemon.ask(&["recopy", "--tablet", "shard-b"]).status.success());
        self.restart();
    }

    async fn a_third_server_joins(&mut self) {
        let change = "ALTER TABLE filler ADD COLUMN note text NOT NULL DEFAULT 'as ever';
            CREATE TABLE later (id int PRIMARY KEY, more int)";
        self.servers[2].execute(change).await;
        self.rest().await;
        self.takes_part = 3;
        self.configure();
        self.load();
        for _ in 0..3 {
            self.restart();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    async fn a_slot_is_dropped(&mut self) {
        self.daemon.kill();
        let drop = "SELECT pg_drop_replication_slot('shard_c') FROM pg_replication_slots WHERE NOT active";
        while self.servers[2].execute("SELECT count(*) FROM pg_replication_slots").await != ["0"] {
            self.servers[2].execute(drop).await;
        }
        self.daemon.start();
        self.until_stopped(2, "is gone").await;
        assert!(self.daemon.ask(&["recopy", "--tablet", "shard-c"]).status.success());
        self.restart();
    }

    /// Rows are damaged behind the replica's back: they are found, and no others.
    async fn damage_is_found(&mut self) {
        damage(&self.servers[0], "UPDATE bag SET n = -1 WHERE ctid = (SELECT ctid FROM bag WHERE n = 2 LIMIT 1)").await;
        damage(&self.servers[1], "UPDATE filler SET note = 'damaged' WHERE id = 1000100").await;
        damage(&self.servers[2], "DELETE FROM filler WHERE id = 2000200").await;
        let (code, report) = self.verify();
        let found = differences(&report);
        let of_bag = |found: &&String| !found.contains("000");
        assert_eq!(code, 1, "{found:?}");
        assert_eq!(found.iter().filter(of_bag).count(), 2, "{found:?}");
        assert_eq!(found.iter().filter(|f| !of_bag(f)).collect::<Vec<_>>(), ["changed 1000100", "extra 2000200"]);
    }
}

/// Each row that differs: how, and the first column of its key.
fn differences(report: &Value) -> Vec<String> {
    let tables = report["tables"].as_array().cloned().unwrap_or_default();
    let of_table = |table: &Value| table["differences"].as_array().cloned().unwrap_or_default();
    let told = |found: Value| format!("{} {}", found["kind"].as_str().unwrap(), found["key"][0][1].as_str().unwrap());
    tables.iter().flat_map(of_table).map(told).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_installation_lives_through_everything() {
    let mut life = Installation::new().await;
    life.configure();
    life.load();
    life.daemon.start();
    life.check("copied under load").await;
    life.columns_and_tables_change().await;
    life.check("after changes of columns and tables").await;
    life.the_primary_dies().await;
    life.check("after the primary's death").await;
    life.wal_is_recycled().await;
    life.check("after the WAL was recycled").await;
    life.a_third_server_joins().await;
    life.check("with a third server").await;
    life.a_slot_is_dropped().await;
    life.check("after a slot was dropped").await;
    life.rest().await;
    life.damage_is_found().await;
    let accounts = life.daemon.scan("public.accounts", "safe", "csv").unwrap();
    let sum: i64 = accounts.lines().map(|line| line.split(',').nth(1).unwrap().parse::<i64>().unwrap()).sum();
    assert_eq!(sum, 3 * ACCOUNTS * BALANCE);
    assert!(life.daemon.terminate().success(), "{}", life.daemon.log());
}
