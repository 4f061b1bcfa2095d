//! Rules of copies: shown at their turn, hidden when a part leaves.

use super::*;

/// Rows of a copy are seen from the place and time on at which it is shown, and those of an attempt that was cut off never;
/// what was decided above the base stays above them, and what lies below is gone, but no other stream's.
pub async fn shows_a_copy_from_its_turn_on(rig: Rig) {
    let mut rig = rig.announced().await;
    let base = HybridTime::from_u64;
    rig.transaction(S1, 1, 10, 0, vec![put(1, "a", "old"), put(2, "ghost", "old")]).await;
    rig.transaction(S2, 2, 11, 0, vec![put(1, "other", "1")]).await;
    rig.turn(S1, 3, Turn::Begun { base: base(20) }).await;
    rig.copy(S1, 20, false, &[("a", "cut off"), ("cut off", "1")]).await;
    rig.turn(S1, 4, Turn::Begun { base: base(30) }).await;
    // The stream's own changes go on: one of them is in the snapshot, too.
    rig.transaction(S1, 5, 31, 2, vec![put(3, "b", "newer")]).await;
    rig.copy(S1, 30, false, &[("a", "new")]).await;
    rig.copy(S1, 30, true, &[("b", "new"), ("c", "new")]).await;
    let before = pairs(&[("a", "old"), ("b", "newer"), ("ghost", "old"), ("other", "1")]);
    assert_eq!(rig.rows(5, LATEST).await, before);
    rig.turn(S1, 6, Turn::Shown { base: base(30), time: base(40) }).await;
    rig.tablet().sync().await.unwrap();
    rig.restart();
    let after = pairs(&[("a", "new"), ("b", "newer"), ("c", "new"), ("other", "1")]);
    assert_eq!(rig.rows(6, LATEST).await, after);
    assert_eq!(rig.rows(6, 40).await, after);
    assert_eq!(rig.rows(6, 39).await, before, "a time before it was shown");
    assert_eq!(rig.rows(5, LATEST).await, before, "a position before it was shown");
    rig.transaction(S1, 7, 50, 3, vec![delete(4, "c")]).await;
    assert_eq!(rig.rows(7, LATEST).await, pairs(&[("a", "new"), ("b", "newer"), ("other", "1")]));
}

/// A table that is hidden shows nothing of its stream until a copy is shown, and nothing from before then.
pub async fn hides_what_left_and_shows_what_comes_back(rig: Rig) {
    let mut rig = rig.announced().await;
    let base = HybridTime::from_u64;
    rig.transaction(S1, 1, 10, 0, vec![put(1, "a", "1"), put(2, "left", "1")]).await;
    rig.transaction(S2, 2, 11, 0, vec![put(1, "other", "1")]).await;
    rig.turn(S1, 3, Turn::Hidden { time: base(20) }).await;
    rig.transaction(S1, 4, 21, 2, vec![put(3, "late", "1")]).await;
    rig.tablet().sync().await.unwrap();
    rig.restart();
    assert_eq!(rig.rows(4, LATEST).await, pairs(&[("other", "1")]));
    assert_eq!(rig.rows(4, 19).await, pairs(&[("a", "1"), ("left", "1"), ("other", "1")]));
    rig.copied(S1, 5, 30, &[("a", "back")]).await;
    assert_eq!(rig.rows(6, LATEST).await, pairs(&[("a", "back"), ("other", "1")]));
    assert_eq!(rig.rows(6, 30).await, pairs(&[("other", "1")]));
}

/// Cells that a stream leaves out while a copy is on its way are filled from the copy, whether the copied row comes before
/// or after them; one whose row the copy does not have was deleted before the snapshot.
pub async fn fills_cells_from_a_copy_on_its_way(rig: Rig) {
    let mut rig = rig.announced().await;
    let base = HybridTime::from_u64;
    rig.turn(S1, 1, Turn::Hidden { time: base(10) }).await;
    // Before it begins: what it leaves out is nowhere, and nobody will see it.
    rig.turn(S1, 2, Turn::Begun { base: base(20) }).await;
    rig.copy(S1, 20, false, &[("early", "copied")]).await;
    rig.transaction(S1, 3, 21, 0, vec![unchanged(1, "early", None), unchanged(2, "late", None)]).await;
    rig.transaction(S1, 4, 22, 2, vec![unchanged(3, "late", None), unchanged(4, "gone", None)]).await;
    let moved = vec![unchanged(5, "moved", Some("from")), delete(6, "from")];
    rig.transaction(S1, 5, 23, 4, moved).await;
    rig.transaction(S1, 6, 24, 6, vec![delete(7, "gone")]).await;
    rig.tablet().sync().await.unwrap();
    rig.restart();
    rig.copy(S1, 20, true, &[("late", "copied"), ("from", "copied")]).await;
    // After the last row nothing is left to come.
    rig.transaction(S1, 7, 25, 7, vec![unchanged(8, "late", None)]).await;
    rig.turn(S1, 8, Turn::Shown { base: base(20), time: base(30) }).await;
    let expected = pairs(&[("early", "copied"), ("late", "copied"), ("moved", "copied")]);
    assert_eq!(rig.rows(8, LATEST).await, expected);
}

/// A row that moves to another tablet while its table is copied: it is asked for again until the copy has brought the old
/// one, waits for no copy that has not begun, and writes of the stream's own count before they are shown.
pub async fn fills_a_row_that_moves_while_its_table_is_copied(rig: Rig) {
    let mut rig = rig.announced().await;
    let base = HybridTime::from_u64;
    rig.turn(S1, 1, Turn::Hidden { time: base(10) }).await;
    assert_eq!(rig.filled("a", 0, &[]).await, Ok("Unchanged".into()), "the copy will have it under its new key");
    rig.turn(S1, 2, Turn::Begun { base: base(20) }).await;
    let not_yet = rig.filled("a", 0, &[]).await;
    assert!(matches!(not_yet, Err(TabletError::Indeterminate(_))), "{not_yet:?}");
    rig.transaction(S1, 3, 21, 0, vec![put(1, "b", "own"), unchanged(2, "a", None)]).await;
    assert_eq!(rig.filled("b", 2, &[]).await, Ok("own".into()));
    assert!(rig.filled("a", 2, &[]).await.is_err());
    rig.tablet().sync().await.unwrap();
    rig.restart();
    rig.copy(S1, 20, true, &[("a", "copied")]).await;
    assert_eq!(rig.filled("a", 2, &[]).await, Ok("copied".into()));
    rig.transaction(S1, 4, 22, 2, vec![unchanged(3, "c", Some("b")), delete(4, "b")]).await;
    rig.turn(S1, 5, Turn::Shown { base: base(20), time: base(30) }).await;
    assert_eq!(rig.rows(5, LATEST).await, pairs(&[("a", "copied"), ("c", "own")]));
}

/// While what is shown is copied again, cells are filled from what is shown, and in the end from the copy.
pub async fn a_copy_mends_cells_that_were_filled_from_what_was_wrong(rig: Rig) {
    let rig = rig.announced().await;
    let base = HybridTime::from_u64;
    rig.transaction(S1, 1, 10, 0, vec![put(1, "a", "wrong")]).await;
    rig.turn(S1, 2, Turn::Begun { base: base(20) }).await;
    rig.transaction(S1, 3, 21, 1, vec![unchanged(2, "a", None)]).await;
    rig.transaction(S1, 4, 22, 2, vec![unchanged(3, "a", None)]).await;
    assert_eq!(rig.rows(4, LATEST).await, pairs(&[("a", "wrong")]));
    rig.copy(S1, 20, true, &[("a", "right")]).await;
    rig.turn(S1, 5, Turn::Shown { base: base(20), time: base(30) }).await;
    assert_eq!(rig.rows(5, LATEST).await, pairs(&[("a", "right")]));
}

/// A delete counts for its own stream's rows for good, also where another stream's row under the key stays shown: that one
/// may be hidden later or not yet be shown, and a copy on its way may bring the own one back below the delete.
pub async fn deletes_beside_copies_bring_nothing_back(rig: Rig) {
    let mut rig = rig.announced().await;
    let base = HybridTime::from_u64;
    let decide = async |rig: &Rig, position: u64, branches: Vec<BranchId>| {
        let decided = vec![commit(position, position * 10, branches)];
        let decided = ApplyBatch { one_writer: true, ..decisions(position - 1, position, decided) };
        rig.tablet().apply(decided).await.unwrap();
    };
    // A row moves to a part of the table that is hidden, and that part's copy has it no more.
    rig.turn(S1, 1, Turn::Hidden { time: base(1) }).await;
    rig.turn(S1, 2, Turn::Begun { base: base(2) }).await;
    rig.store(batch(S2, 0, vec![(1, vec![put(1, "moved", "2"), put(2, "stays", "2")])])).await;
    decide(&rig, 3, vec![branch(S2, 1)]).await;
    rig.store(batch(S1, 0, vec![(1, vec![put(1, "moved", "1")])])).await;
    rig.store(batch(S2, 2, vec![(3, vec![delete(3, "moved")])])).await;
    decide(&rig, 4, vec![branch(S1, 1), branch(S2, 3)]).await;
    let shown = pairs(&[("stays", "2")]);
    assert_eq!(rig.rows(4, LATEST).await, shown, "hidden there, deleted here");
    rig.copy(S1, 2, true, &[]).await;
    rig.turn(S1, 5, Turn::Shown { base: base(2), time: base(41) }).await;
    let both = pairs(&[("moved", "1"), ("stays", "2")]);
    assert_eq!(rig.rows(5, LATEST).await, both, "decided above the base");
    // The part that has it now leaves, and takes its rows with it.
    rig.turn(S1, 6, Turn::Hidden { time: base(60) }).await;
    assert_eq!(rig.rows(6, LATEST).await, shown);
    // What one part's copy has was deleted in the other, whose copy has it still and is shown later.
    rig.turn(S2, 7, Turn::Begun { base: base(70) }).await;
    rig.copied(S1, 8, 80, &[("both", "1")]).await;
    rig.copy(S2, 70, false, &[("both", "2")]).await;
    rig.store(batch(S2, 3, vec![(4, vec![delete(4, "both")])])).await;
    decide(&rig, 10, vec![branch(S2, 4)]).await;
    rig.tablet().sync().await.unwrap();
    rig.restart();
    rig.copy(S2, 70, true, &[]).await;
    assert_eq!(rig.rows(10, LATEST).await, pairs(&[("both", "1"), ("stays", "2")]));
    rig.turn(S2, 11, Turn::Shown { base: base(70), time: base(101) }).await;
    assert_eq!(rig.rows(11, LATEST).await, pairs(&[("both", "1")]));
}

/// A row moved from one server to another, and the other's copy, which is not shown yet, has it already: the delete that the
/// one's stream still carries does not hide it, whether it comes before the copied row or after it.
pub async fn a_copy_keeps_rows_that_moved_here_before_it(rig: Rig) {
    let mut rig = rig.announced().await;
    let base = HybridTime::from_u64;
    let decide = async |rig: &Rig, position: u64, branches: Vec<BranchId>| {
        let decided = vec![commit(position, position * 10, branches)];
        let decided = ApplyBatch { one_writer: true, ..decisions(position - 1, position, decided) };
        rig.tablet().apply(decided).await.unwrap();
    };
    rig.turn(S1, 1, Turn::Hidden { time: base(1) }).await;
    rig.turn(S2, 2, Turn::Hidden { time: base(2) }).await;
    rig.turn(S1, 3, Turn::Begun { base: base(3) }).await;
    rig.turn(S2, 4, Turn::Begun { base: base(4) }).await;
    let rows = ["early", "late", "left", "gone", "last"].map(|key| (key, "2"));
    rig.copy(S2, 4, true, &rows).await;
    let gone = [delete(1, "early"), delete(2, "late"), delete(3, "left"), delete(4, "gone")];
    rig.store(batch(S2, 0, vec![(1, gone.to_vec())])).await;
    decide(&rig, 5, vec![branch(S2, 1)]).await;
    // It moves on before the copy is whole.
    rig.store(batch(S1, 0, vec![(1, vec![delete(1, "left")])])).await;
    decide(&rig, 6, vec![branch(S1, 1)]).await;
    rig.tablet().sync().await.unwrap();
    rig.restart();
    rig.copy(S1, 3, false, &[("early", "1"), ("late", "1"), ("left", "1")]).await;
    rig.copy(S1, 3, true, &[("last", "1")]).await;
    // Nor after the last row.
    rig.store(batch(S2, 4, vec![(5, vec![delete(5, "last")])])).await;
    decide(&rig, 7, vec![branch(S2, 5)]).await;
    rig.turn(S1, 8, Turn::Shown { base: base(3), time: base(81) }).await;
    rig.turn(S2, 9, Turn::Shown { base: base(4), time: base(91) }).await;
    assert_eq!(rig.rows(9, LATEST).await, pairs(&[("early", "1"), ("last", "1"), ("late", "1")]));
    // An attempt that was cut off, whose last rows come once another is shown, brings nothing back.
    rig.copied(S1, 10, 110, &[("late", "1")]).await;
    rig.copy(S1, 3, true, &[]).await;
    rig.store(batch(S2, 5, vec![(6, vec![delete(6, "early")])])).await;
    decide(&rig, 12, vec![branch(S2, 6)]).await;
    assert_eq!(rig.rows(12, LATEST).await, pairs(&[("late", "1")]));
}

/// The last row of a copy may come before the tablet hears that its table is hidden and the copy begins: it stays whole.
pub async fn a_copy_may_be_whole_before_its_table_is_hidden(rig: Rig) {
    let mut rig = rig.announced().await;
    let base = HybridTime::from_u64;
    let decide = async |rig: &Rig, position: u64, branches: Vec<BranchId>| {
        let decided = vec![commit(position, position * 10, branches)];
        let decided = ApplyBatch { one_writer: true, ..decisions(position - 1, position, decided) };
        rig.tablet().apply(decided).await.unwrap();
    };
    rig.copy(S1, 3, true, &[("moved", "1"), ("stays", "1")]).await;
    rig.turn(S1, 1, Turn::Hidden { time: base(2) }).await;
    rig.turn(S1, 2, Turn::Begun { base: base(3) }).await;
    rig.tablet().sync().await.unwrap();
    rig.restart();
    // It moved from there to here before the copy was taken.
    rig.store(batch(S2, 0, vec![(1, vec![put(1, "moved", "2")])])).await;
    decide(&rig, 3, vec![branch(S2, 1)]).await;
    rig.store(batch(S2, 1, vec![(2, vec![delete(2, "moved")])])).await;
    decide(&rig, 4, vec![branch(S2, 2)]).await;
    rig.turn(S1, 5, Turn::Shown { base: base(3), time: base(41) }).await;
    assert_eq!(rig.rows(5, LATEST).await, pairs(&[("moved", "1"), ("stays", "1")]));
}

/// A tablet that lags may have every row of the next copy before it hears that it begins. What it hears until then belongs to
/// the copy before, and readers of either see it right.
pub async fn the_next_copy_may_be_whole_before_its_beginning_is_heard(rig: Rig) {
    let mut rig = rig.announced().await;
    let base = HybridTime::from_u64;
    rig.turn(S1, 1, Turn::Hidden { time: base(10) }).await;
    rig.turn(S1, 2, Turn::Begun { base: base(20) }).await;
    rig.copy(S1, 20, true, &[("a", "first"), ("b", "first")]).await;
    rig.copy(S1, 40, true, &[("a", "second"), ("b", "second")]).await;
    rig.tablet().sync().await.unwrap();
    rig.restart();
    rig.transaction(S1, 3, 21, 0, vec![unchanged(1, "a", None)]).await;
    rig.turn(S1, 4, Turn::Shown { base: base(20), time: base(30) }).await;
    assert_eq!(rig.rows(4, LATEST).await, pairs(&[("a", "first"), ("b", "first")]));
    rig.turn(S1, 5, Turn::Begun { base: base(40) }).await;
    rig.transaction(S1, 6, 41, 1, vec![unchanged(2, "b", None)]).await;
    rig.turn(S1, 7, Turn::Shown { base: base(40), time: base(50) }).await;
    assert_eq!(rig.rows(7, LATEST).await, pairs(&[("a", "second"), ("b", "second")]));
    assert_eq!(rig.rows(4, LATEST).await, pairs(&[("a", "first"), ("b", "first")]));
}

/// What is decided late of a stream whose part is hidden takes no key from another stream, in the same step either.
pub async fn what_is_hidden_takes_no_key(rig: Rig) {
    let rig = rig.announced().await;
    rig.transaction(S1, 1, 10, 0, vec![put(1, "a", "left")]).await;
    rig.turn(S1, 2, Turn::Hidden { time: HybridTime::from_u64(20) }).await;
    rig.store(batch(S1, 1, vec![(2, vec![put(2, "a", "late")])])).await;
    rig.store(batch(S2, 0, vec![(1, vec![put(1, "a", "other")])])).await;
    let decided = vec![commit(3, 30, vec![branch(S1, 2)]), commit(4, 40, vec![branch(S2, 1)])];
    rig.tablet().apply(ApplyBatch { one_writer: true, ..decisions(2, 4, decided) }).await.unwrap();
    rig.store(batch(S2, 1, vec![(2, vec![put(2, "a", "goes on")])])).await;
    assert_eq!(rig.rows(4, LATEST).await, pairs(&[("a", "other")]));
}
