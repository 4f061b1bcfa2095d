//! Reading a page of rows at a read point.

use super::state::Shared;
use crate::limits::PAGE_BYTES;
use crate::mvcc::{Chain, Event, Offer, Stamp, Truncations, history};
use crate::tablet::format::{StoredVersion, decode, decode_row};
use crate::tablet::keys::{self, VersionKey};
use crate::tablet::store::{Read, Space, Store};
use crate::tablet::{ReadPage, ReadRequest, TabletError, VersionedRow};
use crate::wal::{HybridTime, Key, SourceTabletId};
use bytes::Bytes;

/// Versions of a key that do not matter are stepped over one by one up to this many, then by a new search: a search
/// costs about as much as this many steps. Where keys keep needing searches, fewer steps are tried first.
const STEPS_BEFORE_SEARCH: usize = 16;

/// Reads a page; the tablet has heard the log up to the read point.
pub(super) fn page<S: Store>(shared: &Shared<S>, request: &ReadRequest) -> Result<ReadPage, TabletError> {
    // The view comes first: what was dropped before it was taken lies below the horizon that is asked after it.
    let view = shared.store.view();
    let kept = shared.kept();
    let at = request.at;
    if at.position < kept.position || at.time < kept.time {
        return Err(TabletError::TooOld {
            asked: format!("{} at {}", at.position, at.time),
            kept: format!("{} at {}", kept.position, kept.time),
        });
    }
    let truncations = shared.truncations();
    let mut reader = Reader { view: &view, request, truncations: &truncations, page: ReadPage::default(), bytes: 0 };
    let (mut from, mut below) = keys::table_versions(request.table);
    if let Some(after) = &request.after {
        from = keys::past_row(request.table, &after.0);
    }
    if let Some(key) = &request.key {
        let (first, last) = keys::row_versions(request.table, &key.0, at.time);
        (from, below) = (from.max(first), last);
    }
    if request.history {
        reader.histories(from, &below)?
    } else {
        reader.rows(from, &below)?
    }
    Ok(reader.page)
}

struct Reader<'a, V> {
    view: &'a V,
    request: &'a ReadRequest,
    truncations: &'a Truncations,
    page: ReadPage,
    bytes: usize,
}

fn parsed(key: &[u8]) -> Result<VersionKey<'_>, TabletError> {
    VersionKey::parse(key).ok_or_else(|| TabletError::Poisoned("a version's key is damaged".into()))
}

/// The version that a key shows so far.
struct Best<T> {
    value: T,
    time: HybridTime,
    stream: SourceTabletId,
}

impl<V: Read> Reader<'_, V> {
    /// The row that each key shows.
    fn rows(&mut self, mut from: Vec<u8>, below: &[u8]) -> Result<(), TabletError> {
        let (view, table, at, truncations) = (self.view, self.request.table, self.request.at, self.truncations);
        let mut row: Vec<u8> = Vec::new();
        let mut chain: Option<Chain<'_>> = None;
        let mut best: Option<Best<V::Slice>> = None;
        let (mut patience, mut searched) = (STEPS_BEFORE_SEARCH, false);
        'search: loop {
            let mut steps = 0;
            for entry in view.scan(Space::Versions, &from, below) {
                let (key, value) = entry?;
                let VersionKey { row: of, time, stream, .. } = parsed(key.as_ref())?;
                if chain.is_none() || of != row {
                    if self.settle(&row, chain.take(), best.take())? {
                        return Ok(());
                    }
                    if !std::mem::take(&mut searched) {
                        patience = (patience * 2).min(STEPS_BEFORE_SEARCH);
                    }
                    row.clear();
                    row.extend_from_slice(of);
                    chain = Some(Chain::new(table, at, truncations));
                    steps = 0;
                }
                let Some(chain) = &mut chain else { continue };
                steps += 1;
                if time > at.time {
                    if steps > patience {
                        (patience, searched) = ((patience / 2).max(1), true);
                        from = keys::version(table, &row, at.time, SourceTabletId(0));
                        continue 'search;
                    }
                    continue;
                }
                let version: StoredVersion<'_> = decode("a version", value.as_ref())?;
                let stamp = Stamp { time, position: version.position, stream, deleted: version.row.is_none() };
                match chain.offer(&stamp) {
                    Offer::Best => best = Some(Best { value, time, stream }),
                    Offer::Settled if steps > patience => {
                        (patience, searched) = ((patience / 2).max(1), true);
                        from = keys::past_row(table, &row);
                        continue 'search;
                    }
                    Offer::Passed | Offer::Settled => {}
                }
            }
            self.settle(&row, chain.take(), best.take())?;
            return Ok(());
        }
    }

    /// Adds what a key shows to the page; whether the page is full.
    fn settle(
        &mut self,
        row: &[u8],
        chain: Option<Chain<'_>>,
        best: Option<Best<V::Slice>>,
    ) -> Result<bool, TabletError> {
        let Some(Best { value, time, stream }) = best.filter(|_| chain.is_some_and(|chain| chain.shows_row())) else {
            return Ok(false);
        };
        let version: StoredVersion<'_> = decode("a version", value.as_ref())?;
        let key = Key(Bytes::copy_from_slice(row));
        self.bytes += value.as_ref().len() + row.len();
        let row = version.row.map(|row| decode_row(row.0)).transpose()?;
        self.page.rows.push(VersionedRow { key, row, time, position: version.position, stream });
        Ok(self.is_full())
    }

    fn is_full(&mut self) -> bool {
        let full = self.bytes >= self.request.max_bytes.min(PAGE_BYTES);
        if full {
            self.page.more_after = self.page.rows.last().map(|row| row.key.clone());
        }
        full
    }

    /// Everything that happened to each key.
    fn histories(&mut self, from: Vec<u8>, below: &[u8]) -> Result<(), TabletError> {
        let mut row: Vec<u8> = Vec::new();
        let mut versions: Vec<(Stamp, V::Slice)> = Vec::new();
        let mut held = 0;
        let view = self.view;
        for entry in view.scan(Space::Versions, &from, below) {
            let (key, value) = entry?;
            let VersionKey { row: of, time, stream, .. } = parsed(key.as_ref())?;
            if of != row {
                if self.settle_history(&row, &mut versions)? {
                    return Ok(());
                }
                row.clear();
                row.extend_from_slice(of);
            }
            let version: StoredVersion<'_> = decode("a version", value.as_ref())?;
            // A row that is written all the time has more versions than anyone wants to hold at once.
            if self.request.key.is_some() {
                if version.position > self.request.at.position {
                    continue;
                }
                if held >= self.request.max_bytes.min(PAGE_BYTES) {
                    self.page.more_after = Some(Key(Bytes::copy_from_slice(&row)));
                    break;
                }
                held += key.as_ref().len() + value.as_ref().len();
            }
            let stamp = Stamp { time, position: version.position, stream, deleted: version.row.is_none() };
            versions.push((stamp, value));
        }
        let cut = self.page.more_after.take();
        self.settle_history(&row, &mut versions)?;
        self.page.more_after = cut.or(self.page.more_after.take());
        Ok(())
    }

    fn settle_history(&mut self, row: &[u8], versions: &mut Vec<(Stamp, V::Slice)>) -> Result<bool, TabletError> {
        let (chain, values): (Vec<_>, Vec<_>) = versions.drain(..).unzip();
        let key = Key(Bytes::copy_from_slice(row));
        let mut removed_from = None;
        for event in history(self.request.table, &chain, self.request.at, self.truncations) {
            match event {
                Event::Removed(by) => removed_from = Some(by),
                Event::Version(index) => {
                    let (Some(stamp), Some(value)) = (chain.get(index), values.get(index)) else { continue };
                    let of = |row, time, position| VersionedRow {
                        key: key.clone(),
                        row,
                        time,
                        position,
                        stream: stamp.stream,
                    };
                    if let Some(by) = removed_from.take() {
                        self.page.rows.push(of(None, by.time, by.position));
                    }
                    let version: StoredVersion<'_> = decode("a version", value.as_ref())?;
                    let cells = version.row.map(|row| decode_row(row.0)).transpose()?;
                    self.page.rows.push(of(cells, stamp.time, stamp.position));
                    self.bytes += value.as_ref().len() + row.len();
                }
            }
        }
        Ok(self.is_full())
    }
}
