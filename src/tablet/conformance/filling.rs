//! Rules of cells that the source left out.

use super::*;

/// Unchanged cells come from the newest earlier write of the key by the same stream (trace 37).
pub async fn fills_unchanged_cells(rig: Rig) {
    let rig = rig.announced().await;
    rig.copied(S1, 1, 1, &[("a", "copied")]).await;
    rig.transaction(S1, 3, 10, 0, vec![unchanged(1, "a", None)]).await;
    assert_eq!(rig.rows(3, LATEST).await, pairs(&[("a", "copied")]));
    rig.transaction(S1, 4, 20, 1, vec![put(2, "a", "own"), unchanged(3, "a", None)]).await;
    assert_eq!(rig.rows(4, LATEST).await, pairs(&[("a", "own")]));
    // The key changes: the old row's delete comes first, and its value was written in this very transaction.
    let moved = vec![put(4, "a", "last"), delete(5, "a"), unchanged(6, "b", Some("a"))];
    rig.transaction(S1, 5, 30, 3, moved).await;
    assert_eq!(rig.rows(5, LATEST).await, pairs(&[("b", "last")]));
    // A rolled-back write never counts.
    rig.store(batch(S1, 6, vec![(7, vec![put(7, "b", "never")])])).await;
    let discard = Decided { position: LogPosition(6), work: Work::Discard { branches: vec![branch(S1, 7)] } };
    rig.decide(5, vec![discard]).await;
    rig.transaction(S1, 7, 50, 7, vec![unchanged(8, "b", None)]).await;
    assert_eq!(rig.rows(7, LATEST).await, pairs(&[("b", "last")]));
    // Nothing to fill from is damage, never a guess.
    rig.store(batch(S1, 8, vec![(9, vec![unchanged(9, "nowhere", None)])])).await;
    let damage = rig.tablet().apply(decisions(7, 8, vec![commit(8, 60, vec![branch(S1, 9)])])).await;
    assert!(matches!(damage, Err(TabletError::Refused(_))), "{damage:?}");
}

/// A row whose key changed is filled before it is stored from the newest write of its old key *before it*: one that is
/// decided, one that is not, one of its own transaction; never one that was rolled back, or comes later (trace 37).
pub async fn fills_a_row_from_the_key_it_had(rig: Rig) {
    let mut rig = rig.announced().await;
    let value = |value: &str| Ok(value.to_owned());
    rig.copied(S1, 1, 1, &[("a", "copied")]).await;
    rig.copied(S2, 3, 1, &[("b", "another stream's")]).await;
    assert_eq!(rig.filled("a", 0, &[]).await, value("copied"));
    let nowhere = rig.filled("b", 0, &[]).await;
    assert!(matches!(nowhere, Err(TabletError::Refused(_))), "{nowhere:?}");
    rig.transaction(S1, 5, 10, 0, vec![put(1, "a", "decided")]).await;
    assert_eq!(rig.filled("a", 1, &[]).await, value("decided"));

    // One branch writes the row, the next leaves its value as it is; a third, rolled back, is later than the row at 4.
    let branches = vec![(2, vec![put(2, "a", "undecided")]), (3, vec![unchanged(3, "a", None), put(4, "b", "1")])];
    rig.store(batch(S1, 1, branches)).await;
    rig.store(batch(S1, 4, vec![(5, vec![put(5, "a", "rolled back")])])).await;
    assert_eq!(rig.filled("a", 4, &[]).await, value("undecided"));
    assert_eq!(rig.filled("a", 5, &[]).await, value("rolled back"), "nobody has said so");
    let said = ProvisionalBatch { rolled_back: vec![at(5), at(77)], upto: at(6), ..batch(S1, 5, vec![]) };
    rig.store(said).await;
    assert_eq!(rig.filled("a", 6, &[]).await, value("undecided"));
    rig.restart();
    assert_eq!(rig.filled("a", 6, &[]).await, value("undecided"));
    assert_eq!(rig.filled("a", 1, &[]).await, value("decided"), "what comes later does not change the answer");

    // The row's own transaction comes first, as far as it is staged, without what it rolled back.
    rig.chunk(1, 7, 1, vec![put(1, "a", "own"), put(2, "c", "own")]).await.unwrap();
    rig.chunk(1, 8, 2, vec![delete(3, "a"), put(4, "c", "rolled back")]).await.unwrap();
    assert_eq!(rig.filled("a", 6, &[8]).await, value("own"));
    let gone = rig.filled("a", 6, &[]).await;
    assert!(matches!(gone, Err(TabletError::Refused(_))), "{gone:?}");
    rig.chunk(1, 7, 3, vec![unchanged(5, "c", None)]).await.unwrap();
    assert_eq!(rig.filled("c", 6, &[8]).await, value("own"));
    assert_eq!(rig.filled("c", 6, &[]).await, value("rolled back"));
    rig.chunk(1, 9, 4, vec![truncate(6)]).await.unwrap();
    let emptied = rig.filled("c", 6, &[8]).await;
    assert!(matches!(emptied, Err(TabletError::Refused(_))), "{emptied:?}");
    assert_eq!(rig.filled("c", 6, &[8, 9]).await, value("own"));

    // What was discarded leaves no trace.
    let discard = Decided { position: LogPosition(6), work: Work::Discard { branches: vec![branch(S1, 5)] } };
    rig.decide(5, vec![discard, commit(7, 30, vec![branch(S1, 2)]), commit(8, 40, vec![branch(S1, 3)])]).await;
    rig.restart();
    assert_eq!(rig.filled("a", 6, &[8, 9]).await, value("own"));
    assert_eq!(rig.rows(8, LATEST).await, pairs(&[("a", "undecided"), ("b", "1")]));
}
