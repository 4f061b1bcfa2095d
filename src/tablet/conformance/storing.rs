//! Rules of storing: once, without gaps, fenced, and refused where it cannot be.

use super::*;

/// Tablets let whoever comes before their owner's first announcement ask again, and refuse another log.
pub async fn binds_to_one_log(rig: Rig) {
    let early = rig.tablet().write_provisional(batch(S1, 0, vec![])).await;
    assert!(matches!(early, Err(TabletError::Indeterminate(_))), "{early:?}");
    let mut rig = rig.announced().await;
    rig.restart();
    let other = rig.tablet().announce("other", ReplicaTabletId(1), Epoch(9)).await;
    assert!(matches!(other, Err(TabletError::Refused(_))), "{other:?}");
    let other = rig.tablet().announce("log", ReplicaTabletId(2), Epoch(9)).await;
    assert!(matches!(other, Err(TabletError::Refused(_))), "{other:?}");
    let announced = rig.tablet().announce("log", ReplicaTabletId(1), OWNER).await.unwrap();
    assert_eq!((announced.marks.len(), announced.heard), (0, LogPosition(0)));
}

/// A batch is stored once; one that does not follow is answered with what is held (C5, trace 5).
pub async fn stores_once_and_without_gaps(rig: Rig) {
    let mut rig = rig.announced().await;
    let first = batch(S1, 0, vec![(1, vec![put(1, "a", "1")])]);
    assert_eq!(rig.store(first.clone()).await, Stored { mark: at(1), conflicts: vec![] });
    rig.restart();
    let again = rig.tablet().write_provisional(first).await;
    assert_eq!(again, Err(TabletError::OutOfOrder { held: at(1), follows: OpId::ZERO }));
    let gap = rig.tablet().write_provisional(batch(S1, 2, vec![(3, vec![put(3, "c", "1")])])).await;
    assert_eq!(gap, Err(TabletError::OutOfOrder { held: at(1), follows: at(2) }));
    // What lies at or below the mark is dropped from a batch that follows it.
    rig.store(batch(S1, 1, vec![(1, vec![put(1, "a", "again"), put(2, "b", "1")])])).await;
    assert_eq!(rig.tablet().stats().await.unwrap().provisional_records, 2);
    rig.decide(0, vec![commit(1, 10, vec![branch(S1, 1)])]).await;
    assert_eq!(rig.rows(1, LATEST).await, pairs(&[("a", "1"), ("b", "1")]));
    let announced = rig.tablet().announce_puller(S1, OWNER, Epoch(2)).await.unwrap();
    assert_eq!((announced.stored, announced.puller), (at(2), Epoch(2)));
}

/// Lower epochs of owners and pullers are refused, after a restart too (C7).
pub async fn fences_lower_epochs(rig: Rig) {
    let mut rig = rig.announced().await;
    rig.tablet().announce("log", ReplicaTabletId(1), Epoch(3)).await.unwrap();
    rig.restart();
    let owner = rig.tablet().write_provisional(batch(S1, 0, vec![])).await;
    assert_eq!(owner, Err(TabletError::Fenced { held: Epoch(3) }));
    assert_eq!(rig.tablet().apply(decisions(0, 1, vec![])).await, Err(TabletError::Fenced { held: Epoch(3) }));
    let low = rig.tablet().announce("log", ReplicaTabletId(1), Epoch(2)).await;
    assert_eq!(low, Err(TabletError::Fenced { held: Epoch(3) }));
    rig.tablet().announce_puller(S1, Epoch(3), Epoch(5)).await.unwrap();
    rig.restart();
    let low = ProvisionalBatch { owner: Epoch(3), puller: Epoch(4), ..batch(S1, 0, vec![]) };
    assert_eq!(rig.tablet().write_provisional(low.clone()).await, Err(TabletError::Fenced { held: Epoch(5) }));
    let other_stream = ProvisionalBatch { stream: S2, ..low };
    rig.tablet().write_provisional(other_stream).await.unwrap();
}

/// Earlier undecided branches of the same stream that wrote the same keys are named (trace 9).
pub async fn reports_conflicts(rig: Rig) {
    let rig = rig.announced().await;
    rig.store(batch(S1, 0, vec![(1, vec![put(1, "a", "1")]), (2, vec![put(2, "b", "1")])])).await;
    rig.store(batch(S2, 0, vec![(1, vec![put(1, "c", "1")])])).await;
    let asks = |batch| ProvisionalBatch { report_conflicts: true, ..batch };
    let stored = rig.store(asks(batch(S1, 2, vec![(3, vec![put(3, "a", "2"), put(4, "c", "2")])]))).await;
    assert_eq!(stored.conflicts, [(branch(S1, 3), vec![branch(S1, 1)])]);
    rig.decide(0, vec![commit(1, 10, vec![branch(S1, 1)])]).await;
    let stored = rig.store(asks(batch(S1, 4, vec![(5, vec![put(5, "a", "3"), put(6, "b", "3")])]))).await;
    assert_eq!(stored.conflicts, [(branch(S1, 5), vec![branch(S1, 2), branch(S1, 3)])]);
    let stored = rig.store(asks(batch(S1, 6, vec![(7, vec![truncate(7)])]))).await;
    assert_eq!(stored.conflicts, [(branch(S1, 7), vec![branch(S1, 2), branch(S1, 3), branch(S1, 5)])]);
}

/// What no tablet can do is refused, and changes nothing.
pub async fn refuses_malformed_batches(rig: Rig) {
    let rig = rig.announced().await;
    let mut foreign = batch(S1, 0, vec![(1, vec![put(1, "a", "1")])]);
    foreign.branches[0].branch = branch(S2, 1);
    let mut unended = batch(S1, 0, vec![(1, vec![put(1, "a", "1")])]);
    unended.branches[0].writes[0].key = Key(b"a".to_vec().into());
    let mut long = batch(S1, 0, vec![(1, vec![put(1, "a", "1")])]);
    long.branches[0].writes[0].key = Key::from_columns([vec![b'x'; 1 << 16].as_slice()]);
    let mut beyond = batch(S1, 0, vec![(1, vec![put(2, "a", "1")])]);
    beyond.upto = at(1);
    for bad in [foreign, unended, long, beyond] {
        let refused = rig.tablet().write_provisional(bad).await;
        assert!(matches!(refused, Err(TabletError::Refused(_))), "{refused:?}");
    }
    rig.store(batch(S1, 0, vec![(1, vec![put(1, "a", "1")])])).await;
}
