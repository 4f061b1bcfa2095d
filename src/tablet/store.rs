//! What a tablet needs of its storage: ordered bytes, atomic batches, one durability barrier. The rules of a tablet are
//! written once above this; [`super::memory`] and [`super::embedded`] are its two implementations.

use super::TabletError;

/// The parts of a tablet's storage, which differ in how their data lives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Space {
    /// Marks, epochs, provisional records, chunks: written once, deleted soon.
    Undecided,
    /// Versions of rows: they stay.
    Versions,
    /// The tablet's own WAL: written in order, trimmed from its start.
    Wal,
}

/// Changes that happen all or not at all.
#[derive(Clone, Default, Debug)]
pub struct StoreBatch {
    /// Key and new value, in order; `None` deletes.
    pub changes: Vec<(Space, Vec<u8>, Option<Vec<u8>>)>,
    /// Bytes of keys and values.
    pub bytes: usize,
}

impl StoreBatch {
    /// Sets a key.
    pub fn put(&mut self, space: Space, key: Vec<u8>, value: Vec<u8>) {
        self.bytes += key.len() + value.len();
        self.changes.push((space, key, Some(value)));
    }

    /// Deletes a key; deleting what is not there changes nothing.
    pub fn delete(&mut self, space: Space, key: Vec<u8>) {
        self.bytes += key.len();
        self.changes.push((space, key, None));
    }
}

/// The storage failed: what, and where. Final for the process (C11).
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct StoreFailed(pub String);

impl From<StoreFailed> for TabletError {
    fn from(failed: StoreFailed) -> Self {
        Self::Poisoned(failed.0)
    }
}

/// A key and its value.
pub type Entry<T> = (<T as Read>::Slice, <T as Read>::Slice);
/// Entries in key order.
pub type Scan<'a, T> = Box<dyn Iterator<Item = Result<Entry<T>, StoreFailed>> + 'a>;

/// Reading, of the newest state or of a frozen one.
pub trait Read {
    /// Bytes as the store hands them out.
    type Slice: AsRef<[u8]>;

    /// The value of a key.
    ///
    /// # Errors
    /// When the storage failed; so everywhere here.
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Self::Slice>, StoreFailed>;

    /// Entries at or above `from` and below `below`, in key order.
    fn scan(&self, space: Space, from: &[u8], below: &[u8]) -> Scan<'_, Self>;
}

/// The storage of one tablet. A clone is the same storage.
pub trait Store: Read + Clone + Send + Sync + 'static {
    /// A frozen state.
    type View: Read;

    /// What is stored now, whatever is written later.
    fn view(&self) -> Self::View;

    /// Writes a batch: atomic, seen by every read that starts later, durable only after the next [`Store::sync`].
    ///
    /// # Errors
    /// When the storage failed. Then nothing may be relied on until it is opened again.
    fn write(&self, batch: StoreBatch) -> Result<(), StoreFailed>;

    /// Makes everything written so far durable.
    ///
    /// # Errors
    /// As [`Store::write`].
    fn sync(&self) -> Result<(), StoreFailed>;

    /// Bytes that it takes.
    fn bytes(&self) -> u64;
}
