//! `untorn verify`: no false alarm while money moves, and every damaged row by its name.

use crate::support::daemon::{Daemon, json_lines, source_of};
use crate::support::postgres::{Postgres, execute};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const ROWS: i64 = 3000;

async fn shop() -> Vec<Postgres> {
    let mut shop = Vec::new();
    for server in 0..2_i64 {
        let postgres = Postgres::start().await;
        let first = server * 100_000;
        postgres
            .execute(&format!(
                "CREATE TABLE accounts (id int PRIMARY KEY, balance int8 NOT NULL, note text);
                 INSERT INTO accounts SELECT {first} + n, 1000 FROM generate_series(1, {ROWS}) n;
                 CREATE TABLE \"Odd names\" (\"it's\" text, n numeric, at timestamptz, PRIMARY KEY (\"it's\", n));
                 INSERT INTO \"Odd names\" SELECT 'k\\' || {server} || n, n / 4.0, now() FROM generate_series(1, 50) n;
                 CREATE TABLE events (what text, n int); INSERT INTO events SELECT 'copied', n % 7 FROM generate_series(1, 50) n;
                 CREATE TABLE bag (what text, n int, note text); ALTER TABLE bag REPLICA IDENTITY FULL;
                 ALTER TABLE bag ALTER note SET STORAGE EXTERNAL;
                 INSERT INTO bag SELECT nullif(n % 3, 0), n % 5, CASE n % 5 WHEN 4 THEN repeat('x', 4000) END
                     FROM generate_series(1, 300) n;
                 CREATE TABLE nothing (id int PRIMARY KEY);
                 ANALYZE; CREATE PUBLICATION untorn FOR ALL TABLES"
            ))
            .await;
        shop.push(postgres);
    }
    shop
}

/// Moves money between the servers until told to stop, hot rows among them; adds, deletes and updates on the way.
async fn trade(urls: Vec<String>, stop: Arc<AtomicBool>) {
    let mut sessions = Vec::new();
    for url in urls {
        let (session, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        sessions.push(session);
    }
    for n in 0_u32.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        for (server, session) in sessions.iter().enumerate() {
            let first = server * 100_000;
            let cold = first + (n as usize * 7) % 2000 + 1;
            let sql = format!(
                "BEGIN; UPDATE accounts SET balance = balance + 1 WHERE id IN ({}, {cold});
                 INSERT INTO accounts VALUES ({}, 0); DELETE FROM accounts WHERE id = {};
                 INSERT INTO events VALUES ('traded', {n});
                 UPDATE bag SET n = (n + 1) % 5 WHERE ctid IN (SELECT ctid FROM bag ORDER BY n DESC, what LIMIT 7);
                 DELETE FROM bag WHERE ctid = (SELECT ctid FROM bag WHERE n = {n} % 5 LIMIT 1);
                 INSERT INTO bag VALUES ('{server}', ({n} + 1) % 5), (NULL, {n} % 5); PREPARE TRANSACTION 'trade-{n}'",
                first + 1,
                first + 10_000 + n as usize,
                first + 10_000 + n as usize / 2,
            );
            execute(session, &sql).await;
        }
        for session in &sessions {
            execute(session, &format!("COMMIT PREPARED 'trade-{n}'")).await;
            execute(session, "UPDATE accounts SET note = 'hot ' || balance WHERE id % 100000 = 1").await;
        }
    }
}

/// The exit code and the report.
fn verify(daemon: &Daemon, arguments: &[&str]) -> (i32, Value) {
    let output = daemon.ask(&[&["verify", "--format", "json"], arguments].concat());
    let report = json_lines(&output).pop();
    (output.status.code().unwrap(), report.unwrap_or_else(|| panic!("{output:?}")))
}

/// Every difference as `kind column=value,…`, by table.
fn differences(report: &Value) -> BTreeMap<String, Vec<String>> {
    let mut all = BTreeMap::new();
    for table in report["tables"].as_array().unwrap() {
        let told = table["differences"].as_array().unwrap().iter().map(|difference| {
            let key = difference["key"].as_array().unwrap().iter();
            let key: Vec<_> =
                key.map(|key| format!("{}={}", key[0].as_str().unwrap(), key[1].as_str().unwrap())).collect();
            format!("{} {}", difference["kind"].as_str().unwrap(), key.join(","))
        });
        let told: Vec<_> = told.collect();
        if !told.is_empty() {
            all.insert(table["table"].as_str().unwrap().to_owned(), told);
        }
    }
    all
}

/// Changes rows of a server behind the replica's back: in this transaction the publication says nothing of them.
async fn damage(server: &Postgres, sql: &str) {
    let publish = |what: &str| format!("ALTER PUBLICATION untorn SET (publish = '{what}');");
    let all = publish("insert, update, delete, truncate");
    server.execute(&format!("BEGIN; {} {sql}; {all} COMMIT", publish(""))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_names_damaged_rows_and_nothing_else_while_money_moves() {
    let shop = shop().await;
    let mut daemon = Daemon::new(&source_of(&shop));
    daemon.start();
    daemon.until_ready().await;
    let stop = Arc::new(AtomicBool::new(false));
    let urls: Vec<String> = shop.iter().map(|server| server.url("postgres")).collect();
    let trading = tokio::spawn(trade(urls, Arc::clone(&stop)));

    // Under load there is no difference, again and again.
    for _ in 0..3 {
        let (code, report) = verify(&daemon, &[]);
        assert_eq!((code, &report["equal"]), (0, &true.into()), "{report}");
        assert_eq!(report["tables"].as_array().unwrap().len(), 5);
        let accounts = &report["tables"].as_array().unwrap()[1];
        assert_eq!(accounts["table"], "public.accounts");
        assert!(accounts["source_rows"].as_u64().unwrap() >= 2 * ROWS as u64, "{report}");
    }

    damage(
        &shop[0],
        "UPDATE accounts SET note = 'damaged' WHERE id = 2500; DELETE FROM accounts WHERE id = 2600;
         INSERT INTO accounts VALUES (99999, 0);
         UPDATE accounts SET balance = CASE id WHEN 2701 THEN -2702 ELSE -2701 END WHERE id IN (2701, 2702);
         UPDATE \"Odd names\" SET at = NULL WHERE n = 2.5; DELETE FROM events WHERE n = 3 AND what = 'copied';
         INSERT INTO bag SELECT 'a row that', -1 FROM generate_series(1, 2)",
    )
    .await;
    damage(&shop[1], "DELETE FROM accounts WHERE id = 102700").await;
    let (code, report) = verify(&daemon, &[]);
    assert_eq!((code, &report["equal"]), (1, &false.into()), "{report}");
    let expected = BTreeMap::from([
        ("public.Odd names".to_owned(), vec!["changed it's=k\\010,n=2.5000000000000000".to_owned()]),
        (
            "public.accounts".to_owned(),
            [
                "extra id=102700",
                "changed id=2500",
                "extra id=2600",
                "changed id=2701",
                "changed id=2702",
                "missing id=99999",
            ]
            .map(str::to_owned)
            .to_vec(),
        ),
        ("public.bag".to_owned(), vec!["missing what=a row that,n=-1,note=".to_owned(); 2]),
        ("public.events".to_owned(), vec!["extra what=copied,n=3".to_owned(); 7]),
    ]);
    assert_eq!(differences(&report), expected, "{report}");
    let changed = &report["tables"][1]["differences"][1];
    assert_eq!((&changed["columns"], &changed["servers"]), (&vec!["note"].into(), &vec!["shard-a"].into()));

    // A run that was cut off goes on with the tables that were not found equal.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("verified");
    let resume = ["--resume", file.to_str().unwrap()];
    let (code, first) = verify(&daemon, &[&resume[..], &["--table", "public.nothing"]].concat());
    assert_eq!(code, 0, "{first}");
    assert_eq!(verify(&daemon, &resume).0, 1);
    shop[0].execute("UPDATE accounts SET note = 'mended' WHERE id IN (2500, 2701, 2702, 99999)").await;
    shop[0].execute("INSERT INTO accounts VALUES (2600, 7)").await;
    shop[1].execute("INSERT INTO accounts VALUES (102700, 7)").await;
    let (_, report) = verify(&daemon, &resume);
    assert!(!differences(&report).contains_key("public.accounts"), "{report}");
    assert_eq!(report["tables"][4]["at"], first["tables"][0]["at"], "a table that was equal is not compared again");

    stop.store(true, Ordering::Relaxed);
    trading.await.unwrap();
    // Two servers, one transaction, and only one of them has committed it: the replica shows all of it.
    for server in &shop {
        let sql = "BEGIN; UPDATE accounts SET balance = 5 WHERE id IN (700, 100700); PREPARE TRANSACTION 'half'";
        server.execute(sql).await;
    }
    shop[0].execute("COMMIT PREPARED 'half'").await;
    let (code, report) = verify(&daemon, &["--table", "public.accounts"]);
    assert_eq!((code, differences(&report).len()), (1, 0), "{report}");
    let unsettled = report["tables"][0]["unsettled"][0].as_str().unwrap();
    assert_eq!(unsettled, "id 100700: prepared transactions have not ended: \"half\" on shard-b");
    shop[1].execute("COMMIT PREPARED 'half'").await;
    let output = daemon.ask(&["verify", "--table", "public.accounts"]);
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && told.ends_with("rows\nequal: 1 tables\n"), "{output:?}");
    let output = daemon.ask(&["verify", "--table", "public.none"]);
    assert_eq!(output.status.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_reads_replica_tablets_of_other_processes() {
    let shop = [Postgres::start().await];
    let tables = "CREATE TABLE t (id int PRIMARY KEY, body text);
        INSERT INTO t SELECT n, repeat(n::text, 50) FROM generate_series(1, 20000) n;
        CREATE PUBLICATION untorn FOR ALL TABLES";
    shop[0].execute(tables).await;
    let (_tablets, port) = Daemon::tablets(&["r0", "r1"]);
    let replica =
        ["r0", "r1"].map(|name| format!("[[replica.tablets]]\nname = \"{name}\"\nurl = \"http://127.0.0.1:{port}\"\n"));
    let mut daemon = Daemon::new(&format!("{}[replica]\nkind = \"grpc\"\n{}", source_of(&shop), replica.concat()));
    daemon.start();
    daemon.until_ready().await;
    // Nothing has happened since the copy, and nothing does.
    let (code, report) = verify(&daemon, &[]);
    assert_eq!((code, &report["tables"][0]["replica_rows"]), (0, &20000.into()), "{report}");
    damage(&shop[0], "DELETE FROM t WHERE id = 777; INSERT INTO t VALUES (0, NULL);").await;
    let (code, report) = verify(&daemon, &[]);
    let expected =
        BTreeMap::from([("public.t".to_owned(), vec!["missing id=0".to_owned(), "extra id=777".to_owned()])]);
    assert_eq!((code, differences(&report)), (1, expected), "{report}");
}
