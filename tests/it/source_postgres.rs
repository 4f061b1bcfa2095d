//! The PostgreSQL source against real servers.

use crate::support::postgres::{Postgres, execute};
use crate::support::replay::Replay;
use std::sync::Arc;
use std::time::Duration;
use untorn::source::postgres::{GidPattern, Options, Pattern, PostgresSource, Rename, TableRules};
use untorn::source::{Source, SourceError};

fn options(url: String) -> Options {
    Options {
        name: "a".into(),
        url,
        password_file: None,
        publication: "untorn".into(),
        slot: "untorn_a".into(),
        tables: Arc::default(),
        gids: GidPattern::default(),
        slot_lock_timeout: Duration::from_secs(20),
    }
}

/// A server with these tables, published, and its source.
async fn server(tables: &str) -> (Postgres, PostgresSource) {
    let postgres = Postgres::start().await;
    postgres.execute(tables).await;
    postgres.execute("CREATE PUBLICATION untorn FOR ALL TABLES").await;
    let source = PostgresSource::new(options(postgres.url("postgres"))).unwrap();
    (postgres, source)
}

const ACCOUNTS: &str = "CREATE TABLE accounts (id int PRIMARY KEY, balance int)";

#[tokio::test(flavor = "multi_thread")]
async fn ordinary_and_prepared_transactions_come_with_their_ends() {
    let (postgres, source) = server(ACCOUNTS).await;
    postgres.execute("INSERT INTO accounts VALUES (1, 100), (2, 200)").await;
    let mut replay = Replay::new();
    replay.begin(&source).await;
    assert_eq!(replay.table("public.accounts"), ["1|100", "2|200"]);

    postgres
        .execute("BEGIN; UPDATE accounts SET balance = 90 WHERE id = 1; INSERT INTO accounts VALUES (3, 10); COMMIT")
        .await;
    postgres.execute("BEGIN; UPDATE accounts SET balance = 0 WHERE id = 2; PREPARE TRANSACTION 'pay-1'").await;
    postgres.execute("BEGIN; DELETE FROM accounts WHERE id = 3; PREPARE TRANSACTION 'pay-2'").await;
    postgres.execute("COMMIT PREPARED 'pay-1'").await;
    postgres.execute("ROLLBACK PREPARED 'pay-2'").await;
    replay.until("pay-2 aborted").await;
    let expected = [
        "a:# put public.accounts(1) 1|90",
        "a:# put public.accounts(3) 3|10",
        "a:# applying 2",
        "a:# commit OnlyThisStream",
        "pay-1 put public.accounts(2) 2|0",
        "pay-1 applying 1",
        "pay-2 delete public.accounts(3)",
        "pay-2 applying 1",
        "pay-1 commit Discovered",
        "pay-2 aborted",
    ];
    assert_eq!(replay.told, expected);
    assert_eq!(replay.positions.iter().map(|at| at.index).collect::<Vec<_>>(), [1, 2, 3, 4, 1, 2, 1, 2, 1, 1]);
    assert_eq!(replay.table("public.accounts"), ["1|90", "2|0", "3|10"]);
}

/// Waits until a walsender waits for this transaction to end.
async fn until_slot_waits_for(postgres: &Postgres, transaction: &str) {
    let waits = format!(
        "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
         WHERE NOT l.granted AND l.transactionid = '{transaction}' AND a.backend_type = 'walsender'"
    );
    while postgres.execute(&waits).await != ["1"] {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_prepared_while_the_slot_was_created_comes_at_its_commit() {
    let (postgres, source) = server(ACCOUNTS).await;
    let source = Arc::new(source);
    let mut replay = Replay::new();
    // Creating a slot waits twice: for what runs at first, and for what has begun by then.
    let first = postgres.connect().await;
    let first_id = execute(&first, "BEGIN; INSERT INTO accounts VALUES (1, 1); SELECT txid_current()").await;
    let creating = tokio::spawn({
        let source = source.clone();
        async move { source.create_slot().await }
    });
    until_slot_waits_for(&postgres, &first_id[0]).await;
    let second = postgres.connect().await;
    let second_id = execute(&second, "BEGIN; INSERT INTO accounts VALUES (2, 2); SELECT txid_current()").await;
    execute(&first, "COMMIT").await;
    until_slot_waits_for(&postgres, &second_id[0]).await;
    // Nobody waits for what begins now, and the server sends it only at its COMMIT PREPARED.
    postgres.execute("BEGIN; INSERT INTO accounts VALUES (3, 3); PREPARE TRANSACTION 'late-commit'").await;
    postgres.execute("BEGIN; INSERT INTO accounts VALUES (4, 4); PREPARE TRANSACTION 'late-rollback'").await;
    execute(&second, "COMMIT").await;
    let slot = creating.await.unwrap().unwrap();
    replay.copy(slot).await;
    assert_eq!(replay.table("public.accounts"), ["1|1", "2|2"]);
    let prepared = source.prepared().await.unwrap();
    assert_eq!(prepared.iter().map(|p| p.gid.as_str()).collect::<Vec<_>>(), ["late-commit", "late-rollback"]);

    replay.open(source.as_ref()).await.unwrap();
    postgres.execute("INSERT INTO accounts VALUES (5, 5)").await;
    postgres.execute("ROLLBACK PREPARED 'late-rollback'").await;
    postgres.execute("COMMIT PREPARED 'late-commit'").await;
    replay.until("late-commit commit").await;
    let expected = [
        "a:# put public.accounts(5) 5|5",
        "a:# applying 1",
        "a:# commit OnlyThisStream",
        "late-commit put public.accounts(3) 3|3",
        "late-commit applying 1",
        "late-commit commit Discovered",
    ];
    assert_eq!(replay.told, expected);
    assert_eq!(replay.positions[3].index, 1, "it takes its place at the end");
    assert_eq!(replay.table("public.accounts"), ["1|1", "2|2", "3|3", "5|5"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_transaction_that_changed_nothing_here_ends_nothing() {
    let (postgres, source) = server(ACCOUNTS).await;
    postgres.execute("INSERT INTO accounts VALUES (1, 1)").await;
    let mut replay = Replay::new();
    replay.begin(&source).await;
    // The server sends the end of one that only locked rows, but no PREPARE.
    postgres.execute("BEGIN; SELECT * FROM accounts FOR UPDATE; PREPARE TRANSACTION 'locks'").await;
    postgres.execute("COMMIT PREPARED 'locks'").await;
    postgres.execute("INSERT INTO accounts VALUES (2, 1)").await;
    replay.until("commit OnlyThisStream").await;
    assert_eq!(replay.told, ["a:# put public.accounts(2) 2|1", "a:# applying 1", "a:# commit OnlyThisStream"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction_is_staged_and_leaves_out_its_savepoint() {
    let postgres = Postgres::start_with(&["logical_decoding_work_mem=64kB"]).await;
    postgres.execute("CREATE TABLE t (id int PRIMARY KEY, body text)").await;
    postgres.execute("CREATE PUBLICATION untorn FOR ALL TABLES").await;
    let source = PostgresSource::new(options(postgres.url("postgres"))).unwrap();
    let mut replay = Replay::new();
    replay.begin(&source).await;
    let session = postgres.connect().await;
    let insert =
        |from: i32, to: i32| format!("INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series({from}, {to}) i");
    execute(&session, "BEGIN").await;
    execute(&session, &insert(1, 4000)).await;
    execute(&session, "SAVEPOINT s").await;
    execute(&session, &insert(4001, 8000)).await;
    // Something commits in between, while the large one is being sent.
    postgres.execute("INSERT INTO t VALUES (-1, 'small')").await;
    replay.until("commit OnlyThisStream").await;
    assert!(replay.chunks > 0, "it is sent before its end");
    execute(&session, "ROLLBACK TO s").await;
    execute(&session, &insert(8001, 12000)).await;
    execute(&session, "PREPARE TRANSACTION 'large'").await;
    // One that is rolled back as a whole leaves nothing.
    execute(&session, &format!("BEGIN; {}; ROLLBACK", insert(20000, 24000))).await;
    execute(&session, "COMMIT PREPARED 'large'").await;
    replay.take_told();
    replay.until("large commit").await;
    assert_eq!(replay.told, ["large applying 8000", "large commit Discovered"]);
    assert_eq!(
        replay.table("public.t"),
        postgres.execute("SELECT * FROM t ORDER BY concat_ws('|', id, body) COLLATE \"C\"").await
    );
    assert!(replay.largest < 2 << 20, "an event of {} bytes", replay.largest);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_every_kind_of_change_follow_the_server() {
    let (postgres, source) = server(
        "CREATE TABLE keyed (id int, part text, body text, note int, PRIMARY KEY (part, id));
         CREATE TABLE full_rows (id int PRIMARY KEY, body text); ALTER TABLE full_rows REPLICA IDENTITY FULL;
         CREATE TABLE by_index (id int NOT NULL, code text NOT NULL UNIQUE, body text);
         ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_code_key;
         CREATE TABLE events (at int, what text);
         ALTER TABLE keyed ALTER body SET STORAGE EXTERNAL; ALTER TABLE full_rows ALTER body SET STORAGE EXTERNAL;
         INSERT INTO keyed VALUES (1, 'a', repeat('long', 2000), 0), (2, 'a', 'short', 0);
         INSERT INTO full_rows VALUES (1, repeat('long', 2000));
         INSERT INTO events VALUES (1, 'before'), (1, 'before')",
    )
    .await;
    let mut replay = Replay::new();
    replay.begin(&source).await;
    replay.take_told();
    postgres.execute("UPDATE keyed SET note = 1 WHERE id = 1").await;
    postgres.execute("UPDATE keyed SET part = 'b' WHERE id = 1").await;
    postgres.execute("UPDATE full_rows SET id = 2").await;
    postgres.execute("INSERT INTO by_index VALUES (1, 'x', 'one'), (1, 'y', 'two')").await;
    postgres.execute("UPDATE by_index SET code = 'z' WHERE code = 'x'; DELETE FROM by_index WHERE code = 'y'").await;
    postgres.execute("INSERT INTO events SELECT 2, 'after' FROM generate_series(1, 3)").await;
    postgres.execute("COPY events FROM PROGRAM 'echo 3,copied; echo 3,copied' CSV").await;
    replay.catch_up(&source).await;
    let told: Vec<&String> =
        replay.told.iter().filter(|told| told.contains(" put ") || told.contains("delete")).collect();
    assert_eq!(told[0], "a:# put public.keyed(1,a) 1|a|~|1", "what did not change is not sent");
    assert!(told[1].starts_with("a:# put public.full_rows(2) 2|longlong"), "FULL sends the old row");
    assert_eq!(replay.chunks, 1, "a row to be filled from another key stands at the head of a chunk");
    for table in ["keyed", "full_rows", "by_index", "events"] {
        let rows =
            postgres.execute(&format!("SELECT * FROM {table} t ORDER BY concat_ws('|', t.*) COLLATE \"C\"")).await;
        assert_eq!(replay.table(&format!("public.{table}")), rows);
    }
    postgres.execute("TRUNCATE events, by_index; INSERT INTO events VALUES (9, 'new')").await;
    replay.until("truncate").await;
    assert_eq!(replay.table("public.by_index"), [""; 0]);
    assert_eq!(replay.table("public.events"), ["9|new"]);
    assert!(replay.told.contains(&"a:# truncate public.events".to_owned()));
    assert!(replay.told.contains(&"a:# truncate public.by_index".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_row_and_a_streamed_one_have_the_same_text() {
    let (postgres, source) = server(
        "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TYPE pair AS (a int, b text); CREATE SCHEMA \"Odd\";
         CREATE TABLE \"Odd\".\"Every Type\" (
            id bigint PRIMARY KEY, b bool, i2 int2, f4 float4, f8 float8, n numeric, t text, v varchar(9), c char(4),
            ba bytea, d date, tm time, ts timestamp, tz timestamptz, iv interval, j json, jb jsonb, u uuid, ip inet,
            ia int[], ta text[], m mood, p pair, r int4range, \"drop me\" int, money_ text)",
    )
    .await;
    postgres
        .execute(
            "ALTER DATABASE postgres SET timezone = 'Asia/Tokyo'; ALTER DATABASE postgres SET datestyle = 'SQL, DMY'",
        )
        .await;
    postgres.execute("ALTER TABLE \"Odd\".\"Every Type\" DROP \"drop me\"").await;
    let insert = |id: i32| {
        format!(
            "INSERT INTO \"Odd\".\"Every Type\" VALUES ({id}, true, -5, 0.1, 'NaN', 12345678901234567890.000100,
             E'tab\\t nl\\n back\\\\slash \\\\N ü', '', 'ab', '\\x00ff', '2024-02-29', '12:34:56.789', '2024-02-29 01:02:03',
             '2024-02-29 01:02:03.000001+09', '1 year 2 days -3:00', '{{\"a\": 1}}', '{{\"b\":  [2]}}',
             'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '10.0.0.1/8', '{{1,NULL,3}}', '{{\"a,b\",\"c\\\"d\"}}', 'ok',
             '(1,\"x y\")', '[1,5)', NULL)"
        )
    };
    postgres.execute(&insert(1)).await;
    let mut replay = Replay::new();
    replay.begin(&source).await;
    postgres.execute(&insert(2)).await;
    replay.until("commit").await;
    let rows: Vec<_> = replay.rows.values().map(|cells| cells[1..].to_vec()).collect();
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[0], rows[1]);
    let text = &replay.table("Odd.Every Type")[0];
    for part in [
        "|2024-02-28 16:02:03.000001+00|",
        "|0.1|NaN|12345678901234567890.000100|",
        "|\\x00ff|",
        "tab\t nl\n back\\slash \\N ü||",
    ] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    let schema = replay.catalog.newest(untorn::wal::TableId(1));
    let types: Vec<&str> = schema.columns.iter().map(|column| column.type_name.as_str()).collect();
    assert_eq!(types[..4], ["int8", "bool", "int2", "float4"]);
    assert_eq!(types[19..23], ["_int4", "_text", "mood", "pair"]);
    assert_eq!((schema.version, schema.columns[0].key, schema.columns[1].key), (1, true, false));
    assert_eq!(schema.columns.len(), 25);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_and_the_stream_behind_it_make_the_table_while_it_is_written() {
    let (postgres, source) = server("CREATE TABLE t (id int PRIMARY KEY, n int)").await;
    postgres.execute("INSERT INTO t SELECT i, 0 FROM generate_series(1, 5000) i").await;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writers: Vec<_> = (0..3)
        .map(|writer| {
            let (stop, url) = (stop.clone(), postgres.url("postgres"));
            tokio::spawn(async move {
                let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
                tokio::spawn(connection);
                let mut round = 0;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    round += 1;
                    let (id, fresh) = (1 + round * 7 % 5000, 10_000 + writer * 100_000 + round);
                    let change = format!("UPDATE t SET n = n + 1 WHERE id = {id}; INSERT INTO t VALUES ({fresh}, 1); DELETE FROM t WHERE id = {}", fresh - 2);
                    let end = match round % 4 {
                        0 => format!("PREPARE TRANSACTION 'w{writer}'; COMMIT PREPARED 'w{writer}'"),
                        1 => format!("PREPARE TRANSACTION 'w{writer}'; ROLLBACK PREPARED 'w{writer}'"),
                        _ => "COMMIT".into(),
                    };
                    for statement in format!("BEGIN; {change}; {end}").split("; ") {
                        // Two writers may lock the same rows in two orders.
                        if client.batch_execute(statement).await.is_err() {
                            let _ = client.batch_execute("ROLLBACK").await;
                            break;
                        }
                    }
                }
            })
        })
        .collect();
    let mut replay = Replay::new();
    replay.begin(&source).await;
    for _ in 0..50 {
        replay.step().await.unwrap();
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    replay.catch_up(&source).await;
    assert_eq!(
        replay.table("public.t"),
        postgres.execute("SELECT * FROM t ORDER BY concat_ws('|', id, n) COLLATE \"C\"").await
    );
    assert!(replay.told.len() > 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_on_where_it_was_left_over_a_crash_of_the_server() {
    let (mut postgres, _) = server(ACCOUNTS).await;
    let gids = GidPattern::parse("^(?<txn>.+)@.+$").unwrap();
    let source = PostgresSource::new(Options { gids, ..options(postgres.url("postgres")) }).unwrap();
    let mut replay = Replay::new();
    replay.begin(&source).await;
    postgres.execute("BEGIN; INSERT INTO accounts VALUES (1, 1); PREPARE TRANSACTION 'pay@a'").await;
    postgres.execute("INSERT INTO accounts VALUES (2, 2)").await;
    replay.until("commit OnlyThisStream").await;
    assert_eq!(replay.resume.open_branches[0].label.as_deref(), Some("pay@a"));
    let upto = replay.resume.after;
    replay.stream().acknowledge(upto);
    postgres.kill();
    let error = loop {
        if let Err(error) = replay.step().await {
            break error;
        }
    };
    assert!(matches!(&error, SourceError::Retry(text) if text.starts_with("a (127.0.0.1:")), "{error}");
    assert!(matches!(source.flushed().await, Err(SourceError::Retry(_))));

    postgres.start_server().await;
    postgres.execute("INSERT INTO accounts VALUES (3, 3)").await;
    postgres.execute("COMMIT PREPARED 'pay@a'").await;
    replay.take_told();
    replay.reopen(&source).await;
    replay.until("pay commit").await;
    let expected =
        ["a:# put public.accounts(3) 3|3", "a:# applying 1", "a:# commit OnlyThisStream", "pay commit Discovered"];
    assert_eq!(replay.told, expected);
    assert_eq!(replay.table("public.accounts"), ["1|1", "2|2", "3|3"]);

    // A server that shuts down does not wait for what nobody has acknowledged.
    postgres.stop();
    let error = loop {
        if let Err(error) = replay.step().await {
            break error;
        }
    };
    assert!(matches!(error, SourceError::Retry(_)), "{error}");
    postgres.start_server().await;
    postgres.execute("INSERT INTO accounts VALUES (4, 4)").await;
    replay.reopen(&source).await;
    replay.until("4|4").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_acknowledged_is_forgotten_by_the_server_and_nothing_else() {
    let (postgres, source) = server(ACCOUNTS).await;
    let mut replay = Replay::new();
    replay.begin(&source).await;
    let start = replay.resume.clone();
    postgres.execute("INSERT INTO accounts VALUES (1, 1)").await;
    replay.until("commit").await;
    let first = replay.resume.clone();
    postgres.execute("BEGIN; INSERT INTO accounts VALUES (2, 2); PREPARE TRANSACTION 'pay'").await;
    replay.until("pay applying").await;
    replay.stream().acknowledge(first.after);
    while replay.stream().acknowledged() < first.after {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Not acknowledged: the PREPARE comes again.
    replay.go_back(first);
    replay.reopen(&source).await;
    replay.until("pay applying").await;
    assert_eq!(replay.told, ["pay put public.accounts(2) 2|2", "pay applying 1"]);
    // Acknowledged: it does not, and whoever asks for it is told so.
    let upto = replay.resume.after;
    replay.stream().acknowledge(upto);
    while replay.stream().acknowledged() < upto {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let last = replay.resume.clone();
    replay.go_back(start);
    let refused = loop {
        match replay.open(&source).await {
            Err(SourceError::Retry(_)) => tokio::time::sleep(Duration::from_millis(50)).await,
            refused => break refused.unwrap_err(),
        }
    };
    let text = line(refused, false);
    assert!(text.contains("is older than the slot") && text.contains("untorn recopy --tablet a"), "{text}");
    replay.go_back(last);
    replay.reopen(&source).await;
    postgres.execute("INSERT INTO accounts VALUES (3, 3)").await;
    replay.until("commit OnlyThisStream").await;
    assert_eq!(replay.told[0], "a:# put public.accounts(3) 3|3");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_servers_slot_follows_what_carries_nothing() {
    let (postgres, source) = server(ACCOUNTS).await;
    let mut replay = Replay::new();
    replay.begin(&source).await;
    postgres.execute("CREATE UNLOGGED TABLE other (i int)").await;
    replay.catch_up(&source).await;
    let head = replay.head;
    let passed = format!("SELECT confirmed_flush_lsn >= '0/0'::pg_lsn + {} FROM pg_replication_slots", head.term);
    while postgres.execute(&passed).await != ["t"] {
        // Only what was handed over as a position to resume behind may be forgotten.
        let upto = replay.resume.after;
        replay.stream().acknowledge(upto);
        replay.step().await.unwrap();
    }
    assert!(replay.resume.after >= head);
    assert_eq!(replay.told, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_reader_keeps_its_connection() {
    let postgres = Postgres::start_with(&["wal_sender_timeout=1s"]).await;
    postgres.execute("CREATE TABLE t (id int PRIMARY KEY, body text); CREATE PUBLICATION untorn FOR ALL TABLES").await;
    let source = PostgresSource::new(options(postgres.url("postgres"))).unwrap();
    let mut replay = Replay::new();
    replay.begin(&source).await;
    // Far more than fits between the server and a reader that does not come.
    postgres.execute("INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(1, 30000) i").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    replay.until("applying 30000").await;
    assert_eq!(replay.table("public.t").len(), 30000);
}

/// The one line of an error, which must be one to retry or one to stop at.
fn line(error: SourceError, retry: bool) -> String {
    assert_eq!(matches!(error, SourceError::Retry(_)), retry, "{error}");
    let text = error.to_string();
    assert!(!text.contains('\n') && text.starts_with("a ("), "{text}");
    text
}

async fn refused(source: &PostgresSource) -> SourceError {
    source.create_slot().await.err().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orphaned_prepared_transaction_that_blocks_the_slot_is_named() {
    let (postgres, _) = server(ACCOUNTS).await;
    let hurried = Options { slot_lock_timeout: Duration::from_millis(200), ..options(postgres.url("postgres")) };
    let source = PostgresSource::new(hurried).unwrap();
    postgres.execute("BEGIN; INSERT INTO accounts VALUES (1, 1); PREPARE TRANSACTION 'or''phan'").await;
    let text = line(refused(&source).await, true);
    for part in ["a (127.0.0.1:", "\"or'phan\"", " s old", "ROLLBACK PREPARED 'or''phan';"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    postgres.execute("ROLLBACK PREPARED 'or''phan'").await;
    let running = postgres.connect().await;
    execute(&running, "BEGIN; INSERT INTO accounts VALUES (1, 1)").await;
    assert!(line(refused(&source).await, true).contains("the transaction of process"));
    execute(&running, "ROLLBACK").await;
    Replay::new().begin(&source).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_whose_copy_was_cut_off_is_created_again_and_one_in_use_is_not() {
    let (postgres, source) = server(ACCOUNTS).await;
    drop(source.create_slot().await.unwrap());
    postgres.execute("INSERT INTO accounts VALUES (1, 1)").await;
    let mut replay = Replay::new();
    replay.begin(&source).await;
    assert_eq!(replay.table("public.accounts"), ["1|1"]);
    assert!(line(refused(&source).await, true).contains("is in use by process"));
    let error = replay_open(&source, &replay).await;
    assert!(line(error, true).contains("is in use by process"));
    replay.close();
    while postgres.execute("SELECT active FROM pg_replication_slots").await != ["f"] {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    postgres.execute("SELECT pg_drop_replication_slot('untorn_a')").await;
    assert!(line(replay_open(&source, &replay).await, false).contains("is gone"));
}

async fn replay_open(source: &PostgresSource, replay: &Replay) -> SourceError {
    source.open(replay.resume.clone(), replay.catalog.clone()).await.err().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_lacks_is_named_with_what_mends_it() {
    let (postgres, _) = server(ACCOUNTS).await;
    let source = |change: &dyn Fn(&mut Options)| {
        let mut options = options(postgres.url("postgres"));
        change(&mut options);
        PostgresSource::new(options).unwrap()
    };
    let missing = source(&|options| options.publication = "no \"one".into());
    assert!(line(refused(&missing).await, false).contains("CREATE PUBLICATION \"no \"\"one\" FOR ALL TABLES;"));
    let database = source(&|options| options.url = postgres.url("nowhere"));
    assert!(line(refused(&database).await, false).contains("nowhere"));
    let nobody = source(&|options| options.url = "postgres://postgres@127.0.0.1:1/postgres".into());
    assert!(line(refused(&nobody).await, true).contains("refused"));

    postgres.execute("CREATE ROLE reader LOGIN PASSWORD 'right'").await;
    let port = postgres.port();
    postgres.require_passwords().await;
    let with = |password: &str| format!("postgres://reader:{password}@127.0.0.1:{port}/postgres?sslmode=disable");
    let wrong = source(&|options| options.url = with("wrong"));
    assert!(line(refused(&wrong).await, true).contains("password"));
    let right = source(&|options| options.url = with("right"));
    assert!(line(refused(&right).await, false).contains("needs REPLICATION"));

    // Over a Unix socket, with the password in a file.
    postgres.execute("ALTER ROLE reader REPLICATION; GRANT SELECT ON accounts TO reader").await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "right\n").unwrap();
    let folder = postgres.socket_folder().to_str().unwrap().replace('/', "%2F");
    let reader = source(&|options| {
        options.url = format!("postgres://reader@{folder}:{port}/postgres");
        options.password_file = Some(file.path().to_owned());
    });
    Replay::new().begin(&reader).await;

    let physical = Postgres::start_with(&["wal_level=replica"]).await;
    let source = PostgresSource::new(options(physical.url("postgres"))).unwrap();
    assert!(line(refused(&source).await, false).contains("ALTER SYSTEM SET wal_level = 'logical';"));
    let full = Postgres::start_with(&["max_replication_slots=1"]).await;
    full.execute("CREATE PUBLICATION untorn FOR ALL TABLES").await;
    full.execute("SELECT pg_create_physical_replication_slot('other')").await;
    let source = PostgresSource::new(options(full.url("postgres"))).unwrap();
    assert!(line(refused(&source).await, true).contains("raise max_replication_slots"));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_server_behind_the_address_is_refused() {
    let (_postgres, source) = server(ACCOUNTS).await;
    let mut replay = Replay::new();
    replay.begin(&source).await;
    replay.close();
    replay.resume.identity = "7000000000000000000/postgres".into();
    let error = loop {
        match replay_open(&source, &replay).await {
            SourceError::Retry(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            error => break error,
        }
    };
    assert!(line(error, false).contains("another server answers"));
    replay.resume.identity = String::new();
    replay.resume.after.term = 1 << 60;
    assert!(line(replay_open(&source, &replay).await, false).contains("it has lost transactions"));
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_without_a_key_are_known_by_their_content() {
    let (postgres, source) = server(ACCOUNTS).await;
    let mut replay = Replay::new();
    replay.begin(&source).await;
    postgres.execute("CREATE TABLE twins (a int, b text); ALTER TABLE twins REPLICA IDENTITY FULL").await;
    postgres.execute("INSERT INTO twins VALUES (1), (1)").await;
    postgres.execute("UPDATE twins SET b = 'x' WHERE ctid = (SELECT max(ctid) FROM twins)").await;
    postgres.execute("DELETE FROM twins WHERE b IS NULL").await;
    postgres.execute("INSERT INTO accounts VALUES (1, 1)").await;
    replay.until("put public.accounts(1) 1|1").await;
    let of_twins = |line: &&String| line.contains(" public.twins(");
    let twins: Vec<String> = replay.told.iter().filter(of_twins).cloned().collect();
    let key = |line: &str| line.split_once('(').unwrap().1.split_once(')').unwrap().0.to_owned();
    let content = key(&twins[4]);
    assert_eq!(twins.iter().filter(|line| key(line).starts_with(&content)).count(), 4, "{twins:?}");
    assert_eq!(key(&twins[3]), content, "the update takes one of both: {twins:?}");
    assert!(
        key(&twins[0]) != key(&twins[1]) && twins[2].ends_with(" 1|x") && !twins[2].contains(&content),
        "{twins:?}"
    );
    // Once it has a key, its rows go by that.
    postgres.execute("ALTER TABLE twins ADD PRIMARY KEY (a)").await;
    postgres.execute("UPDATE twins SET b = 'y'").await;
    replay.until("put public.twins(1) 1|y").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_change_come_as_a_new_version() {
    let (postgres, source) = server(ACCOUNTS).await;
    let mut replay = Replay::new();
    replay.begin(&source).await;
    postgres.execute("INSERT INTO accounts VALUES (1, 1)").await;
    postgres
        .execute("BEGIN; ALTER TABLE accounts ADD note text DEFAULT 'x'; INSERT INTO accounts VALUES (2, 2); COMMIT")
        .await;
    replay.until("2|2|x").await;
    let table = untorn::wal::TableId(1);
    assert_eq!(replay.catalog.newest(table).version, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_walsender_is_a_silent_stream_until_it_goes_on() {
    let (postgres, source) = server(ACCOUNTS).await;
    let mut replay = Replay::new();
    replay.begin(&source).await;
    postgres.signal_walsender("untorn_a", "STOP").await;
    postgres.execute("INSERT INTO accounts VALUES (1, 1)").await;
    let position = source.flushed().await.unwrap().unwrap();
    let silent = tokio::time::timeout(Duration::from_millis(300), replay.step()).await;
    assert!(silent.is_err() || replay.head < position);
    postgres.signal_walsender("untorn_a", "CONT").await;
    replay.until("commit").await;
    replay.catch_up(&source).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_verifies_what_its_mode_asks_for() {
    let authority = || {
        let mut parameters = rcgen::CertificateParams::new(vec![]).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = parameters.self_signed(&key).unwrap().pem();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), pem).unwrap();
        (file, rcgen::Issuer::new(parameters, key))
    };
    let ((ours, issuer), (others, _)) = (authority(), authority());
    let (postgres, _) = server(ACCOUNTS).await;
    let with = |host: &str, parameters: &str| {
        let url = format!("postgres://postgres@{host}:{}/postgres?{parameters}", postgres.port());
        PostgresSource::new(options(url)).unwrap()
    };
    let error = with("127.0.0.1", "sslmode=require").check().await.unwrap_err();
    assert!(line(error, true).contains("TLS"), "the server offers none");
    Replay::new().begin(&with("127.0.0.1", "sslmode=prefer")).await;

    let key = rcgen::KeyPair::generate().unwrap();
    let parameters = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap();
    let certificate = parameters.signed_by(&key, &issuer).unwrap();
    postgres.offer_tls(&certificate.pem(), &key.serialize_pem()).await;
    let ours_file = ours.path().to_owned();
    let (ours, others) = (ours_file.display(), others.path().display());
    while with("127.0.0.1", "sslmode=require").check().await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for (host, parameters) in [
        ("localhost", format!("sslmode=verify-full&sslrootcert={ours}")),
        ("127.0.0.1", format!("sslmode=verify-ca&sslrootcert={ours}")),
        ("127.0.0.1", "sslmode=require".into()),
    ] {
        let source = with(host, &parameters);
        let mut replay = Replay::new();
        let created = loop {
            match source.create_slot().await {
                Ok(created) => break created,
                // The session before lets go of the slot when its server process notices.
                Err(SourceError::Retry(text)) if text.contains("in use") => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) => panic!("{parameters}: {error}"),
            }
        };
        replay.copy(created).await;
        replay.open(&source).await.unwrap();
        let encrypted = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_replication USING (pid) WHERE ssl";
        assert_eq!(postgres.execute(encrypted).await, ["1"], "{parameters}");
    }
    for (host, parameters) in [
        ("127.0.0.1", format!("sslmode=verify-full&sslrootcert={ours}")),
        ("localhost", format!("sslmode=verify-full&sslrootcert={others}")),
        ("localhost", format!("sslmode=verify-ca&sslrootcert={others}")),
    ] {
        let error = with(host, &parameters).check().await.unwrap_err();
        assert!(line(error, true).contains("certificate"), "{parameters}");
    }

    // Who has a certificate needs no password, and who has none is not let in.
    postgres
        .execute("CREATE ROLE reader LOGIN REPLICATION; GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader")
        .await;
    postgres.require_certificates(&std::fs::read_to_string(&ours_file).unwrap()).await;
    let mut parameters = rcgen::CertificateParams::new(vec![]).unwrap();
    parameters.distinguished_name.push(rcgen::DnType::CommonName, "reader");
    let key = rcgen::KeyPair::generate().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let [cert, key_file] = ["reader.crt", "reader.key"].map(|name| folder.path().join(name));
    std::fs::write(&cert, parameters.signed_by(&key, &issuer).unwrap().pem()).unwrap();
    std::fs::write(&key_file, key.serialize_pem()).unwrap();
    let as_reader = |shown: &str| {
        let url = format!(
            "postgres://reader@localhost:{}/postgres?sslmode=verify-full&sslrootcert={ours}{shown}",
            postgres.port()
        );
        PostgresSource::new(options(url)).unwrap()
    };
    let shown = format!("&sslcert={}&sslkey={}", cert.display(), key_file.display());
    // The server takes its new rules up in its own time.
    let refused = loop {
        match as_reader("").check().await {
            Ok(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(error) => break line(error, true),
        }
    };
    assert!(refused.contains("certificate"), "{refused}");
    as_reader(&shown).check().await.expect("it has a certificate");
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_left_out_and_renamed_as_the_rules_say() {
    let (postgres, _) = server(
        "CREATE SCHEMA shop; CREATE TABLE shop.kunden (id int PRIMARY KEY, name text, secret text);
         CREATE TABLE kept (id int PRIMARY KEY); CREATE TABLE tmp_1 (id int PRIMARY KEY);
         INSERT INTO shop.kunden VALUES (1, 'copied', 'x'), (-1, 'filtered', 'x'); INSERT INTO tmp_1 VALUES (1)",
    )
    .await;
    let some = "CREATE PUBLICATION untorn FOR TABLE shop.kunden (id, name) WHERE (id > 0), kept, tmp_1";
    postgres.execute(&format!("DROP PUBLICATION untorn; {some}")).await;
    let rules = TableRules {
        include: vec![Pattern::parse("shop.*").unwrap(), Pattern::parse("public.*").unwrap()],
        exclude: vec![Pattern::parse("public.tmp_*").unwrap(), Pattern::parse("public.nowhere").unwrap()],
        rename: vec![Rename::parse("shop.kunden -> public.customers").unwrap()],
    };
    let with =
        |rules| PostgresSource::new(Options { tables: Arc::new(rules), ..options(postgres.url("postgres")) }).unwrap();
    let source = with(rules.clone());
    let findings = source.check().await.unwrap().findings;
    let texts: Vec<_> = findings.iter().map(|finding| finding.text.as_str()).collect();
    assert!(texts.iter().any(|text| text.contains("`exclude` has \"public.nowhere\"")), "{texts:?}");
    let mut replay = Replay::new();
    replay.begin(&source).await;
    postgres
        .execute(
            "BEGIN; INSERT INTO tmp_1 VALUES (2); UPDATE tmp_1 SET id = 3 WHERE id = 2; DELETE FROM tmp_1; TRUNCATE tmp_1, kept;
             INSERT INTO shop.kunden VALUES (2, 'streamed', 'x'), (-2, 'filtered', 'x'); COMMIT;
             INSERT INTO kept VALUES (7)",
        )
        .await;
    replay.catch_up(&source).await;
    assert_eq!(replay.table("public.customers"), ["1|copied", "2|streamed"], "the publication's columns and its WHERE");
    assert_eq!(replay.table("public.kept"), ["7"]);
    assert!(replay.rows.keys().all(|(table, _)| !table.contains("tmp")), "{:?}", replay.rows.keys());
    let clash = TableRules { rename: vec![Rename::parse("*.* -> public.one").unwrap()], ..rules };
    let findings = with(clash).check().await.unwrap().findings;
    assert!(findings.iter().any(|finding| finding.fault && finding.text.contains("both to be called public.one")));
}
