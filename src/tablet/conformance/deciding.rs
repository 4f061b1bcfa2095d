//! Rules of decisions: applied in order, discarded, resolved, and one writer a key.

use super::*;

/// Decisions are heard in order, and hearing one again changes nothing.
pub async fn applies_in_order_and_again(rig: Rig) {
    let mut rig = rig.announced().await;
    rig.store(batch(S1, 0, vec![(1, vec![put(1, "a", "1")]), (2, vec![put(2, "b", "1")])])).await;
    rig.decide(0, vec![commit(2, 10, vec![branch(S1, 1)])]).await;
    let wrong = rig.tablet().apply(decisions(0, 3, vec![])).await;
    assert_eq!(wrong, Err(TabletError::HeardOther { heard: LogPosition(2), follows: LogPosition(0) }));
    let applied = rig.tablet().sync().await.unwrap();
    assert_eq!((applied.heard, applied.applied), (LogPosition(2), LogPosition(2)));
    // A branch that is gone was applied.
    rig.decide(2, vec![commit(3, 10, vec![branch(S1, 1)]), commit(4, 20, vec![branch(S1, 2)])]).await;
    rig.tablet().sync().await.unwrap();
    rig.restart();
    let announced = rig.tablet().announce("log", ReplicaTabletId(1), OWNER).await.unwrap();
    assert_eq!((announced.heard, announced.applied), (LogPosition(4), LogPosition(4)));
    assert_eq!(rig.rows(4, LATEST).await, pairs(&[("a", "1"), ("b", "1")]));
    assert_eq!(rig.tablet().stats().await.unwrap().provisional_branches, 0);
    let above = rig.tablet().apply(decisions(4, 5, vec![commit(6, 1, vec![])])).await;
    assert!(matches!(above, Err(TabletError::Refused(_))), "{above:?}");
}

/// A transaction that takes several steps to apply is applied whole.
pub async fn applies_a_large_transaction(rig: Rig) {
    let mut rig = rig.announced().await;
    let value = "x".repeat(64 << 10);
    let mut follows = 0;
    for run in 0..4 {
        let writes = (1..=16).map(|n| put(run * 16 + n, &format!("{:03}", run * 16 + n), &value)).collect();
        rig.store(batch(S1, follows, vec![(1, writes)])).await;
        follows = (run + 1) * 16;
    }
    assert_eq!(rig.tablet().stats().await.unwrap().provisional_records, 64);
    rig.restart();
    assert_eq!(rig.tablet().stats().await.unwrap().provisional_records, 64);
    rig.decide(0, vec![commit(1, 10, vec![branch(S1, 1)])]).await;
    let (mut seen, mut after) = (0, None);
    loop {
        let page = rig.tablet().read(ReadRequest { after, ..request(1, LATEST) }).await.unwrap();
        seen += page.rows.len();
        assert!(page.rows.len() < 32, "a page holds about {PAGE_BYTES} bytes");
        after = page.more_after;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(seen, 64);
    let stats = rig.tablet().stats().await.unwrap();
    assert_eq!((stats.provisional_branches, stats.provisional_records, stats.provisional_bytes), (0, 0, 0));
}

/// Aborted branches leave nothing.
pub async fn discards_aborted_branches(rig: Rig) {
    let rig = rig.announced().await;
    rig.store(batch(S1, 0, vec![(1, vec![put(1, "a", "1")]), (2, vec![put(2, "a", "2")])])).await;
    let discard = Decided { position: LogPosition(1), work: Work::Discard { branches: vec![branch(S1, 2)] } };
    rig.decide(0, vec![discard, commit(2, 10, vec![branch(S1, 1)])]).await;
    assert_eq!(rig.rows(2, LATEST).await, pairs(&[("a", "1")]));
    assert_eq!(rig.tablet().stats().await.unwrap().provisional_branches, 0);
}

/// A version older than a newer committed one does not win, and stays in the history.
pub async fn keeps_older_commits_as_history(rig: Rig) {
    let rig = rig.announced().await;
    rig.transaction(S1, 1, 20, 0, vec![put(1, "a", "new")]).await;
    rig.transaction(S2, 2, 10, 0, vec![put(1, "a", "old")]).await;
    rig.transaction(S1, 3, 30, 1, vec![delete(2, "a"), put(3, "b", "1")]).await;
    assert_eq!(rig.rows(2, LATEST).await, pairs(&[("a", "new")]));
    assert_eq!(rig.rows(2, 15).await, pairs(&[("a", "old")]));
    assert_eq!(rig.rows(1, 15).await, pairs(&[]));
    assert_eq!(rig.rows(3, LATEST).await, pairs(&[("b", "1")]));
    let told = |history: &[(u64, &str)]| history.iter().map(|(t, v)| (*t, (*v).to_owned())).collect::<Vec<_>>();
    assert_eq!(rig.history(3).await, told(&[(30, "gone"), (20, "new"), (10, "old"), (30, "1")]));
    assert_eq!(rig.history(1).await, told(&[(20, "new")]));
}

/// Within one transaction later writes of a branch win, and a write beats another stream's delete (trace 13).
pub async fn resolves_writes_of_one_transaction(rig: Rig) {
    let rig = rig.announced().await;
    let writes = vec![put(1, "moved", "there"), put(2, "twice", "1"), put(3, "twice", "2")];
    rig.store(batch(S1, 0, vec![(1, writes)])).await;
    rig.store(batch(S2, 0, vec![(1, vec![delete(1, "moved"), put(2, "gone", "1"), delete(3, "gone")])])).await;
    rig.decide(0, vec![commit(1, 10, vec![branch(S1, 1), branch(S2, 1)])]).await;
    assert_eq!(rig.rows(1, LATEST).await, pairs(&[("moved", "there"), ("twice", "2")]));
    assert_eq!(rig.history(1).await.len(), 3, "one version a key and transaction");
}

/// TRUNCATE removes what its stream wrote, for readers above it (trace 30).
pub async fn truncates_one_streams_rows(rig: Rig) {
    let mut rig = rig.announced().await;
    rig.copied(S1, 1, 1, &[("copied", "1")]).await;
    rig.transaction(S1, 3, 10, 0, vec![put(1, "a", "1")]).await;
    rig.transaction(S2, 4, 20, 0, vec![put(1, "b", "1")]).await;
    rig.transaction(S1, 5, 30, 1, vec![put(2, "before", "1"), truncate(3), put(4, "after", "1")]).await;
    rig.tablet().sync().await.unwrap();
    rig.restart();
    assert_eq!(rig.rows(5, LATEST).await, pairs(&[("after", "1"), ("b", "1")]));
    assert_eq!(rig.rows(4, LATEST).await, pairs(&[("a", "1"), ("b", "1"), ("copied", "1")]));
    assert_eq!(rig.rows(5, 29).await, pairs(&[("a", "1"), ("b", "1"), ("copied", "1")]));
}

/// Without a common clock, whoever puts a row under a key where another stream's is, is refused until that one is gone;
/// a row that moves from one to the other is not (trace 13).
pub async fn lets_a_key_have_one_writer(rig: Rig) {
    let mut rig = rig.announced().await;
    let next = |stream, follows| batch(stream, follows, vec![(follows + 1, vec![put(follows + 1, "next", "1")])]);
    let refused =
        |key: &str, first| Err(TabletError::WrittenTwice { table: "public.t".into(), key: format!("({key})"), first });
    let commit = async |rig: &Rig, position: u64, branches: Vec<BranchId>| {
        let decided = vec![commit(position, position * 10, branches)];
        let decided = ApplyBatch { one_writer: true, ..decisions(position - 1, position, decided) };
        rig.tablet().apply(decided).await.unwrap();
    };
    // Moved within one transaction, whichever branch comes first, and by one after the other.
    rig.store(batch(S1, 0, vec![(1, vec![put(1, "m", "1"), put(2, "n", "1"), put(3, "a", "first")])])).await;
    commit(&rig, 1, vec![branch(S1, 1)]).await;
    rig.store(batch(S1, 3, vec![(4, vec![delete(4, "m")])])).await;
    rig.store(batch(S2, 0, vec![(1, vec![put(1, "m", "2")])])).await;
    commit(&rig, 2, vec![branch(S2, 1), branch(S1, 4)]).await;
    rig.store(batch(S1, 4, vec![(5, vec![delete(5, "n")])])).await;
    commit(&rig, 3, vec![branch(S1, 5)]).await;
    rig.store(batch(S2, 1, vec![(2, vec![put(2, "n", "2"), put(3, "own", "2")])])).await;
    commit(&rig, 4, vec![branch(S2, 2)]).await;

    rig.store(batch(S2, 3, vec![(4, vec![put(4, "a", "second")])])).await;
    commit(&rig, 5, vec![branch(S2, 4)]).await;
    assert_eq!(rig.tablet().write_provisional(next(S2, 4)).await.map(drop), refused("a", S1));
    rig.restart();
    assert_eq!(rig.tablet().announce_puller(S2, OWNER, PULLER).await.map(drop), refused("a", S1));
    let shown = pairs(&[("a", "second"), ("m", "2"), ("n", "2"), ("own", "2")]);
    assert_eq!(rig.rows(5, LATEST).await, shown, "what was decided is shown whole");
    // The first one's row goes, and takes the second one's not with it.
    rig.store(batch(S1, 5, vec![(6, vec![delete(6, "a")])])).await;
    commit(&rig, 6, vec![branch(S1, 6)]).await;
    assert_eq!(rig.rows(6, LATEST).await, shown);
    rig.store(next(S2, 4)).await;

    // Two rows of one key in one transaction; then the first one's goes, and its others.
    let both = |stream, follows, value| {
        batch(stream, follows, vec![(follows + 1, vec![put(follows + 1, "b", value), put(follows + 2, "c", value)])])
    };
    rig.store(both(S1, 6, "first")).await;
    rig.store(both(S2, 5, "second")).await;
    commit(&rig, 7, vec![branch(S1, 7), branch(S2, 6)]).await;
    assert_eq!(rig.tablet().write_provisional(next(S2, 7)).await.map(drop), refused("b", S1));
    rig.store(batch(S1, 8, vec![(9, vec![delete(9, "b")])])).await;
    commit(&rig, 8, vec![branch(S1, 9)]).await;
    assert_eq!(rig.tablet().write_provisional(next(S2, 7)).await.map(drop), refused("c", S1));
    rig.store(batch(S1, 9, vec![(10, vec![truncate(10)])])).await;
    commit(&rig, 9, vec![branch(S1, 10)]).await;
    rig.store(next(S2, 7)).await;
    let shown = [("a", "second"), ("b", "second"), ("c", "second"), ("m", "2"), ("n", "2"), ("own", "2")];
    assert_eq!(rig.rows(9, LATEST).await, pairs(&shown));
}
