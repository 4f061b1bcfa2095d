//! A tablet whose versions live elsewhere: provisional records are staged here by the same rules, read when their
//! transactions are decided, and forgotten once the other place has them durably.

use super::Engine;
use super::apply::Step;
use super::state::State;
use super::worker::Answered;
use crate::coordinator::{Applied, Decided, Turn, Work};
use crate::limits::APPLY_BYTES;
use crate::tablet::TabletError;
use crate::tablet::format::{AppliedThrough, Chunk, ProvisionalRecord, StoredWrite, decode, encode};
use crate::tablet::keys::{self, Kind};
use crate::tablet::store::{Entry, Read, Scan, Space, Store};
use crate::wal::{BranchId, Epoch, LogPosition, SourceTabletId, TableId, TableSchema};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where reading goes on within a run of decisions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Cursor {
    /// The decision.
    pub decision: usize,
    branch: usize,
    record: u32,
    chunk: usize,
}

impl Cursor {
    /// The beginning of a decision.
    #[must_use]
    pub fn at(decision: usize) -> Self {
        Self { decision, ..Self::default() }
    }
}

/// Writes that were staged together, in stream order.
pub struct StagedWrites<'a> {
    /// The decision that they belong to.
    pub decision: usize,
    /// The stream that brought them.
    pub stream: SourceTabletId,
    /// The writes.
    pub writes: Vec<StoredWrite<'a>>,
}

/// A piece as it is stored.
struct Piece<T> {
    decision: usize,
    stream: SourceTabletId,
    value: T,
    is_chunk: bool,
}

fn gone() -> TabletError {
    TabletError::Poisoned("a staged chunk is gone".into())
}

/// What the other place needs of the staging part.
impl<S: Store> Engine<S> {
    /// Hands the writes of the decisions from a cursor up to (not including) decision `end` to `with`, at least one piece
    /// and not many more than `max_bytes`, and says where to go on: at `end` when all were handed over. Discarded
    /// branches have none.
    ///
    /// # Errors
    /// [`TabletError::Poisoned`], and what `with` answers.
    pub async fn staged<T: Send + 'static>(
        &self,
        work: Arc<[Decided]>,
        from: Cursor,
        end: usize,
        max_bytes: usize,
        with: impl FnOnce(&[StagedWrites<'_>]) -> Result<T, TabletError> + Send + 'static,
    ) -> Result<(T, Cursor), TabletError> {
        let store = self.shared.store.clone();
        self.queue
            .read(move || {
                let (pieces, next) = pieces(&store.view(), &work, from, end, max_bytes)?;
                let mut staged = Vec::with_capacity(pieces.len());
                for piece in &pieces {
                    let writes = if piece.is_chunk {
                        decode::<Chunk<'_>>("a chunk", piece.value.as_ref())?.writes
                    } else {
                        match decode("a provisional record", piece.value.as_ref())? {
                            ProvisionalRecord::Writes(writes) => writes,
                            ProvisionalRecord::Adopted { .. } => continue,
                        }
                    };
                    staged.push(StagedWrites { decision: piece.decision, stream: piece.stream, writes });
                }
                Ok((with(&staged)?, next))
            })
            .await
    }

    /// The other place has applied these decisions durably, and the log up to `through`; the newest decision that it has
    /// applied stands at `elsewhere`.
    ///
    /// # Errors
    /// [`TabletError::Fenced`] and [`TabletError::Poisoned`].
    pub async fn applied_elsewhere(
        &self,
        owner: Epoch,
        through: LogPosition,
        elsewhere: LogPosition,
        work: Vec<Decided>,
    ) -> Result<Applied, TabletError> {
        self.call(Answered::Now, move |state| state.applied_elsewhere(owner, through, elsewhere, &work)).await
    }

    /// How far the log is applied here durably.
    ///
    /// # Errors
    /// [`TabletError::Poisoned`].
    pub async fn applied(&self) -> Result<LogPosition, TabletError> {
        self.call(Answered::Now, |state| Ok(state.applied().applied)).await
    }

    /// The newest decision that the other place has applied as far as was told here: it can never hold less.
    ///
    /// # Errors
    /// [`TabletError::Poisoned`].
    pub async fn elsewhere(&self) -> Result<LogPosition, TabletError> {
        let kept = |state: &mut State<S>| match state.store.get(Space::Undecided, &Kind::Elsewhere.only())? {
            Some(value) => decode("the position applied elsewhere", value.as_ref()),
            None => Ok(LogPosition::default()),
        };
        self.call(Answered::Now, kept).await
    }

    /// Readers of the copied rows see this from now on: whoever reads them here asks for no place or time.
    ///
    /// # Errors
    /// [`TabletError::Poisoned`].
    pub async fn turned(&self, table: TableId, stream: SourceTabletId, turn: Turn) -> Result<(), TabletError> {
        let turned = move |state: &mut State<S>| {
            let mut step = Step::default();
            state.turn(&mut step, LogPosition(0), (table, stream), turn)?;
            state.finish(&mut step)
        };
        self.call(Answered::Now, turned).await
    }

    /// Every shape of a table that was learned here.
    ///
    /// # Errors
    /// [`TabletError::Poisoned`].
    pub async fn learned(&self) -> Result<Vec<TableSchema>, TabletError> {
        self.call(Answered::Now, |state| Ok(state.schemas.values().cloned().collect())).await
    }
}

type Pieces<V> = (Vec<Piece<<V as Read>::Slice>>, Cursor);

fn pieces<V: Read>(
    view: &V,
    work: &[Decided],
    from: Cursor,
    end: usize,
    max_bytes: usize,
) -> Result<Pieces<V>, TabletError> {
    let (mut pieces, mut bytes) = (Vec::new(), 0);
    let mut walks: BTreeMap<SourceTabletId, Walk<'_, V>> = BTreeMap::new();
    let mut at = from;
    while at.decision < end {
        let branches: &[BranchId] = match work.get(at.decision).map(|decided| &decided.work) {
            Some(Work::Commit { branches, .. }) => branches,
            Some(Work::Discard { .. } | Work::Turn { .. }) | None => &[],
        };
        while let Some(&branch) = branches.get(at.branch) {
            let (decision, stream) = (at.decision, branch.stream);
            let past = keys::provisional(branch, u32::MAX);
            let records = walks.entry(stream).or_default();
            while let Some(value) = records.next(view, &keys::provisional(branch, at.record), &past)? {
                if let ProvisionalRecord::Adopted { connection, xid, chunks } =
                    decode("a provisional record", value.as_ref())?
                {
                    while let Some(&number) = chunks.get(at.chunk) {
                        let key = keys::chunk(stream, connection, xid, number);
                        let value = view.get(Space::Undecided, &key)?.ok_or_else(gone)?;
                        bytes += value.as_ref().len();
                        pieces.push(Piece { decision, stream, value, is_chunk: true });
                        at.chunk += 1;
                        if bytes >= max_bytes {
                            return Ok((pieces, at));
                        }
                    }
                } else {
                    bytes += value.as_ref().len();
                    pieces.push(Piece { decision, stream, value, is_chunk: false });
                }
                (at.record, at.chunk) = (at.record + 1, 0);
                if bytes >= max_bytes {
                    return Ok((pieces, at));
                }
            }
            (at.branch, at.record) = (at.branch + 1, 0);
        }
        at = Cursor::at(at.decision + 1);
    }
    Ok((pieces, at))
}

/// Provisional records that a walk passes over before it looks for the next one anew: a look costs about as much.
const PASSED_OVER_MAX: usize = 4;

/// A walk over one stream's provisional records. Its transactions are decided in about the order in which they stand there,
/// so that one scan reads those of many.
struct Walk<'a, V: Read> {
    scan: Option<Scan<'a, V>>,
    /// It finds nothing below this.
    begun_at: Vec<u8>,
    /// The last record that was taken or passed over: it finds nothing up to there either.
    passed: Option<V::Slice>,
    /// The one after it.
    ahead: Option<Entry<V>>,
}

impl<V: Read> Default for Walk<'_, V> {
    fn default() -> Self {
        Self { scan: None, begun_at: Vec::new(), passed: None, ahead: None }
    }
}

impl<'a, V: Read> Walk<'a, V> {
    /// Takes the first record at or above `from`, if that is below `past`.
    fn next(&mut self, view: &'a V, from: &[u8], past: &[u8]) -> Result<Option<V::Slice>, TabletError> {
        let behind = from < &self.begun_at[..] || self.passed.as_ref().is_some_and(|passed| from <= passed.as_ref());
        if self.scan.is_none() || behind {
            self.begin(view, from)?;
        }
        for _ in 0..PASSED_OVER_MAX {
            if !self.is_before(from) {
                break;
            }
            self.step()?;
        }
        if self.is_before(from) {
            self.begin(view, from)?;
        }
        if self.is_before(past) { self.step() } else { Ok(None) }
    }

    fn is_before(&self, key: &[u8]) -> bool {
        self.ahead.as_ref().is_some_and(|(ahead, _)| ahead.as_ref() < key)
    }

    fn begin(&mut self, view: &'a V, from: &[u8]) -> Result<(), TabletError> {
        let mut scan = view.scan(Space::Undecided, from, &Kind::Provisional.all().1);
        (self.ahead, self.passed) = (scan.next().transpose()?, None);
        (self.scan, self.begun_at) = (Some(scan), from.to_vec());
        Ok(())
    }

    /// The value of the record ahead; the next one is ahead then.
    fn step(&mut self) -> Result<Option<V::Slice>, TabletError> {
        let next = self.scan.as_mut().and_then(Iterator::next).transpose()?;
        let Some((key, value)) = std::mem::replace(&mut self.ahead, next) else { return Ok(None) };
        self.passed = Some(key);
        Ok(Some(value))
    }
}

impl<S: Store> State<S> {
    fn applied_elsewhere(
        &mut self,
        owner: Epoch,
        through: LogPosition,
        elsewhere: LogPosition,
        work: &[Decided],
    ) -> Result<Applied, TabletError> {
        self.admit_owner(owner)?;
        let mut step = Step::default();
        for Decided { work, .. } in work {
            for &branch in work.branches() {
                if let Some(records) = self.branches.get(&branch).map(|branch| branch.records) {
                    self.forget(&mut step, branch, records)?;
                }
            }
            if step.batch.bytes >= APPLY_BYTES {
                self.finish(&mut step)?;
            }
        }
        let heard = AppliedThrough { position: through.max(self.heard.position), ..self.heard };
        step.batch.put(Space::Undecided, Kind::Applied.only(), encode(&heard)?);
        if !work.is_empty() {
            step.batch.put(Space::Undecided, Kind::Elsewhere.only(), encode(&elsewhere)?);
        }
        self.finish(&mut step)?;
        self.heard = heard;
        self.shared.heard.send_replace(heard.position);
        Ok(self.applied())
    }
}
