//! Rules of chunks: adopted, or dropped.

use super::*;

/// Chunks count once adopted, without those of rolled-back sub-transactions.
pub async fn adopts_chunks(rig: Rig) {
    let mut rig = rig.announced().await;
    rig.chunk(1, 7, 1, vec![put(1, "a", "1")]).await.unwrap();
    rig.chunk(1, 8, 2, vec![put(2, "rolled-back", "1")]).await.unwrap();
    rig.chunk(1, 7, 3, vec![put(3, "a", "2"), put(4, "b", "1")]).await.unwrap();
    let gap = rig.chunk(1, 7, 5, vec![]).await;
    assert!(matches!(gap, Err(TabletError::ChunksLost(_))), "{gap:?}");
    let lost = rig.tablet().write_provisional(adopting(0, 9, 1, vec![8], 2)).await;
    assert!(matches!(lost, Err(TabletError::ChunksLost(_))), "{lost:?}");
    let mut end = adopting(0, 9, 1, vec![8], 3);
    end.branches[0].writes = vec![put(9, "c", "1")];
    rig.store(end).await;
    rig.restart();
    assert_eq!(rig.tablet().stats().await.unwrap().provisional_records, 4);
    rig.decide(0, vec![commit(1, 10, vec![branch(S1, 9)])]).await;
    assert_eq!(rig.rows(1, LATEST).await, pairs(&[("a", "2"), ("b", "1"), ("c", "1")]));
    assert_eq!(rig.tablet().stats().await.unwrap().provisional_bytes, 0);
}

/// A new connection throws away what earlier ones staged; what was adopted stays.
pub async fn drops_chunks_of_earlier_connections(rig: Rig) {
    let rig = rig.announced().await;
    rig.chunk(1, 7, 1, vec![put(1, "adopted", "1")]).await.unwrap();
    rig.store(adopting(0, 9, 1, vec![], 1)).await;
    let taken = rig.chunk(1, 7, 1, vec![put(1, "again", "1")]).await;
    assert!(matches!(taken, Err(TabletError::ChunksLost(_))), "{taken:?}");
    rig.chunk(3, 7, 1, vec![put(1, "lost", "1")]).await.unwrap();
    rig.chunk(2, 7, 1, vec![put(1, "again", "1")]).await.unwrap();
    let lost = rig.tablet().write_provisional(adopting(9, 12, 3, vec![], 1)).await;
    assert!(matches!(lost, Err(TabletError::ChunksLost(_))), "{lost:?}");
    rig.store(adopting(9, 12, 2, vec![], 1)).await;
    rig.decide(0, vec![commit(1, 10, vec![branch(S1, 9)]), commit(2, 20, vec![branch(S1, 12)])]).await;
    assert_eq!(rig.rows(2, LATEST).await, pairs(&[("adopted", "1"), ("again", "1")]));
}

/// Chunks that nothing will adopt go: a whole transaction's, or one sub-transaction's while the others go on; what
/// was adopted stays.
pub async fn drops_chunks_that_go_nowhere(rig: Rig) {
    let mut rig = rig.announced().await;
    let held = async |rig: &Rig| rig.tablet().stats().await.unwrap().provisional_records;
    rig.chunk(1, 7, 1, vec![put(1, "a", "1")]).await.unwrap();
    rig.chunk(1, 8, 2, vec![put(2, "rolled-back", "1"), put(3, "rolled-back", "2")]).await.unwrap();
    assert_eq!(held(&rig).await, 3);
    rig.drop_chunks(Some(8)).await;
    rig.drop_chunks(Some(8)).await;
    assert_eq!(held(&rig).await, 1);
    rig.chunk(1, 7, 3, vec![put(4, "b", "1")]).await.unwrap();
    rig.store(adopting(0, 9, 1, vec![8], 3)).await;
    rig.drop_chunks(None).await;
    assert_eq!(held(&rig).await, 2, "what was adopted stays");
    rig.decide(0, vec![commit(1, 10, vec![branch(S1, 9)])]).await;
    assert_eq!(rig.rows(1, LATEST).await, pairs(&[("a", "1"), ("b", "1")]));

    rig.chunk(1, 7, 1, vec![put(1, "c", "1")]).await.unwrap();
    rig.chunk(1, 7, 2, vec![put(2, "c", "2")]).await.unwrap();
    rig.drop_chunks(None).await;
    let stats = rig.tablet().stats().await.unwrap();
    assert_eq!((stats.provisional_records, stats.provisional_bytes), (0, 0));
    let fenced = rig.tablet().drop_chunks(DropChunks { owner: Epoch(0), ..rig.dropping(None) }).await;
    assert_eq!(fenced, Err(TabletError::Fenced { held: OWNER }));

    // A transaction may use the number again, and a puller that begins anew finds nothing of it, after a crash neither.
    rig.chunk(1, 7, 1, vec![put(1, "c", "3")]).await.unwrap();
    rig.tablet().sync().await.unwrap();
    rig.restart();
    assert_eq!(held(&rig).await, 1);
    rig.tablet().announce_puller(S2, OWNER, PULLER).await.unwrap();
    assert_eq!(held(&rig).await, 1);
    rig.tablet().announce_puller(S1, OWNER, PULLER).await.unwrap();
    assert_eq!(held(&rig).await, 0);
}
