//! The PostgreSQL source against real servers.

use crate::support::postgres::{Postgres, execute};
use crate::support::replay::Replay;
use std::time::Duration;
use untorn::source::postgres::{GidPattern, Options, PostgresSource};
use untorn::source::{Source, SourceError};

fn options(url: String) -> Options {
    Options {
        name: "a".into(),
        url,
        password_file: None,
        publication: "untorn".into(),
        slot: "untorn_a".into(),
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
