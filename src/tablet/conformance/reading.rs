//! Rules of reads: what is seen at which point, and for how long.

use super::*;

/// Undecided writes are invisible; decided ones are seen from their position on, whole.
pub async fn shows_what_is_decided_at_its_position(rig: Rig) {
    let rig = rig.announced().await;
    rig.store(batch(S1, 0, vec![(1, vec![put(2, "a", "1"), put(3, "b", "1")])])).await;
    assert_eq!(rig.rows(0, LATEST).await, pairs(&[]));
    rig.decide(0, vec![commit(4, 100, vec![branch(S1, 1)])]).await;
    assert_eq!(rig.rows(3, LATEST).await, pairs(&[]));
    assert_eq!(rig.rows(4, LATEST).await, pairs(&[("a", "1"), ("b", "1")]));
    assert_eq!(rig.rows(4, 99).await, pairs(&[]));
    assert_eq!(rig.rows(4, 100).await, pairs(&[("a", "1"), ("b", "1")]));
}

/// A read waits until the tablet has heard the log up to its point.
pub async fn reads_wait_for_the_log(rig: Rig) {
    let rig = rig.announced().await;
    rig.store(batch(S1, 0, vec![(1, vec![put(1, "a", "1")])])).await;
    let reader = rig.rows(1, LATEST);
    let applier = rig.decide(0, vec![commit(1, 10, vec![branch(S1, 1)])]);
    let (rows, ()) = tokio::join!(reader, applier);
    assert_eq!(rows, pairs(&[("a", "1")]));
}

/// A key with many versions is read at every time.
pub async fn reads_long_chains(rig: Rig) {
    let rig = rig.announced().await;
    for n in 1..=100 {
        let value = n.to_string();
        rig.transaction(S1, n, n * 10, (n - 1) * 2, vec![put(n * 2 - 1, "a", &value), put(n * 2, "b", &value)]).await;
    }
    for (time, value) in [(9, None), (10, Some("1")), (505, Some("50")), (LATEST, Some("100"))] {
        let expected = value.map(|value| vec![("a", value), ("b", value)]).unwrap_or_default();
        assert_eq!(rig.rows(100, time).await, pairs(&expected), "{time}");
    }
    let newest = ReadRequest { key: Some(key("b")), history: true, max_bytes: 1, ..request(70, LATEST) };
    let page = rig.tablet().read(newest.clone()).await.unwrap();
    assert_eq!(page.rows.len(), 1, "of one key, the newest versions that fit");
    let all = rig.tablet().read(ReadRequest { max_bytes: 1 << 20, ..newest }).await.unwrap();
    assert_eq!((page.more_after.is_some(), all.more_after), (all.rows.len() > 1, None));
    let one = ReadRequest { key: Some(key("b")), ..request(70, LATEST) };
    assert_eq!(rig.tablet().read(one).await.unwrap().rows[0].time, HybridTime::from_u64(700));
}

fn safe(position: u64, time: u64) -> Option<ReadPoint> {
    Some(ReadPoint { position: LogPosition(position), time: HybridTime::from_u64(time) })
}

/// The safe point can be read however far the log goes on beyond it, also where it was heard of long after the one before:
/// a source that is idle brings no other.
pub async fn reads_the_safe_point_for_as_long_as_it_is_the_newest(rig: Rig) {
    let mut rig = rig.announced().await;
    let second = |n: u64| HybridTime::from_micros(n * 1_000_000).to_u64();
    rig.store(batch(S1, 0, vec![(1, vec![put(1, "a", "1")]), (2, vec![put(2, "a", "2")])])).await;
    let first = decisions(0, 1, vec![commit(1, second(60), vec![branch(S1, 1)])]);
    rig.tablet().apply(ApplyBatch { safe: safe(1, second(60)), ..first }).await.unwrap();
    rig.tablet().sync().await.unwrap();
    rig.restart();
    // An hour is missed. It comes in two parts, and what the first part rests on is in the second one.
    let hour = second(3_660);
    rig.tablet().apply(decisions(1, 8, vec![commit(2, hour, vec![branch(S1, 2)])])).await.unwrap();
    for through in [9, 10] {
        let rest = ApplyBatch { safe: safe(2, hour), ..decisions(through - 1, through, vec![]) };
        rig.tablet().apply(rest).await.unwrap();
        assert_eq!(rig.rows(2, hour).await, pairs(&[("a", "2")]), "after {through}");
    }
}

/// Versions that no reader can see go; reads below what is kept are refused, after a restart too.
pub async fn collects_old_versions(rig: Rig) {
    let mut rig = rig.announced().await;
    let second = |n: u64| HybridTime::from_micros(n * 1_000_000).to_u64();
    for n in 1..=40 {
        let index = (n - 1) * 2;
        let mut writes = vec![put(index + 1, "a", &n.to_string())];
        writes.push(if n == 1 { put(index + 2, "gone", "1") } else { delete(index + 2, "gone") });
        rig.store(batch(S1, index, vec![(index + 1, writes)])).await;
        let mut decided = decisions(n - 1, n, vec![commit(n, second(n * 60), vec![branch(S1, index + 1)])]);
        decided.safe = safe(n, second(n * 60));
        rig.tablet().apply(decided).await.unwrap();
    }
    rig.tablet().sync().await.unwrap();
    rig.restart();
    // Ten minutes are kept.
    assert_eq!(rig.rows(40, LATEST).await, pairs(&[("a", "40")]));
    assert_eq!(rig.rows(40, second(31 * 60)).await, pairs(&[("a", "31")]));
    let old = rig.tablet().read(request(40, second(28 * 60))).await;
    assert!(matches!(old, Err(TabletError::TooOld { .. })), "{old:?}");
    let old = rig.tablet().read(request(28, LATEST)).await;
    assert!(matches!(old, Err(TabletError::TooOld { .. })), "{old:?}");
    let left = rig.history(40).await.len();
    assert!(left < 40, "{left} of 80 versions are left");
}

/// A truncation is forgotten once nothing is left of what it removed: rows that are shown at lower times again would
/// tell. Other streams' rows stay.
pub async fn forgets_truncations(rig: Rig) {
    let mut rig = rig.announced().await;
    let second = |n: u64| HybridTime::from_micros(n * 1_000_000).to_u64();
    rig.copied(S1, 1, 1, &[("copied", "1")]).await;
    rig.copied(S2, 3, 1, &[("other", "1")]).await;
    rig.transaction(S1, 5, second(1), 0, vec![put(1, "a", "1")]).await;
    rig.transaction(S1, 6, second(2), 1, vec![truncate(2)]).await;
    for n in 3..=40 {
        rig.store(batch(S1, n - 1, vec![(n, vec![put(n, "b", &n.to_string())])])).await;
        let mut decided = decisions(n + 3, n + 4, vec![commit(n + 4, second(n * 60), vec![branch(S1, n)])]);
        decided.safe = safe(n + 4, second(n * 60));
        rig.tablet().apply(decided).await.unwrap();
        assert_eq!(rig.rows(n + 4, LATEST).await, pairs(&[("b", &n.to_string()), ("other", "1")]));
    }
    rig.tablet().sync().await.unwrap();
    rig.restart();
    rig.copy(S1, 1, true, &[("copied", "again")]).await;
    assert_eq!(rig.rows(44, LATEST).await, pairs(&[("b", "40"), ("copied", "again"), ("other", "1")]));
}
