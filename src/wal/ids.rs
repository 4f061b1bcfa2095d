//! Names that must not be mixed up, each a type of its own.

use super::OpId;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

number! {
    /// A tablet of the source universe, and the stream it sends. The log gives the number when the stream joins; its
    /// name stands in the configuration. Never a [`ReplicaTabletId`]: the two universes need not be cut the same way.
    SourceTabletId(u32), "s"
}
number! {
    /// A tablet of the replica universe. The log gives the number when the tablet joins the map.
    ReplicaTabletId(u32), "r"
}
number! {
    /// A replicated table. The log gives the number when the table's name is first heard; equal names from several
    /// source tablets are one table.
    TableId(u32), "t"
}
number! {
    /// untorn's own number of a transaction: given by the fold, in the order in which the log hears of transactions.
    TransactionId(u64), "x"
}
number! {
    /// A place in the transaction log; the first entry stands at 1, and 0 is before it.
    LogPosition(u64), "p"
}
number! {
    /// The number of the current owner of a log, or of a stream's puller. A higher one fences the lower one out.
    Epoch(u64), "e"
}

impl LogPosition {
    /// The place after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// What the source calls a transaction: its id and its incarnation. A source may use an id again; then the incarnation
/// differs, and it is another transaction. For PostgreSQL the id is the gid's `txn` group (or
/// [`SourceTransactionId::ordinary`]), its streams always say incarnation 0, and the coordinator tells the uses apart.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SourceTransactionId {
    /// The source's bytes: a uuid, a gid, …
    pub id: Arc<[u8]>,
    /// Which use of the id this is.
    pub incarnation: u32,
}

impl SourceTransactionId {
    /// The first use of an id.
    #[must_use]
    pub fn first(id: &[u8]) -> Self {
        Self { id: Arc::from(id), incarnation: 0 }
    }

    /// A transaction of one source tablet that has no id but its number there. Its bytes are the tablet's name, NUL, and
    /// the number: no gid holds a NUL, so none is ever taken for it, not even one that reads `tablet:number`, which is
    /// how it is shown and asked for.
    #[must_use]
    pub fn ordinary(tablet: &str, number: u32) -> Self {
        Self::first(format!("{tablet}\0{number}").as_bytes())
    }

    /// The tablet and number of an ordinary transaction.
    fn as_ordinary(&self) -> Option<(&str, u32)> {
        let (tablet, number) = std::str::from_utf8(&self.id).ok()?.split_once('\0')?;
        Some((tablet, number.parse().ok()?))
    }
}

impl fmt::Display for SourceTransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.as_ordinary(), std::str::from_utf8(&self.id)) {
            (Some((tablet, number)), _) => write!(f, "{tablet}:{number}")?,
            (None, Ok(text)) if text.chars().all(|c| !c.is_control()) => f.write_str(text)?,
            _ => {
                for byte in self.id.iter() {
                    write!(f, "{byte:02x}")?;
                }
            }
        }
        if self.incarnation > 0 {
            write!(f, "#{}", self.incarnation)?;
        }
        Ok(())
    }
}

impl fmt::Debug for SourceTransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One source tablet's part of a transaction. Replica tablets key provisional records by it, because which transaction
/// a branch belongs to may be found out only later (a gid used again, trace 32). `opened` is the position, in the
/// branch's stream, of its first record; for PostgreSQL the end position of the message that ends it, index 1, also
/// where its writes were staged in chunks. A position is never given twice in a stream, so a branch is one use of an id,
/// for ever.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BranchId {
    /// The stream that carries it.
    pub stream: SourceTabletId,
    /// Where it opened in that stream.
    pub opened: OpId,
}

impl BranchId {
    /// Stands for every undecided branch of a stream that opened before the one that waits: said where the keys of a
    /// branch were stored before a crash and are not compared again (`release = "atomic"`).
    #[must_use]
    pub const fn every_earlier(stream: SourceTabletId) -> Self {
        Self { stream, opened: OpId::ZERO }
    }
}

impl fmt::Display for BranchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.stream, self.opened)
    }
}

impl fmt::Debug for BranchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gid_that_reads_like_an_ordinary_transaction_is_another_one() {
        let ordinary = SourceTransactionId::ordinary("shard-a", 755);
        let gid = SourceTransactionId::first(b"shard-a:755");
        assert_ne!(ordinary, gid);
        assert_eq!((ordinary.to_string(), gid.to_string()), ("shard-a:755".into(), "shard-a:755".into()));
        assert_eq!(&ordinary.id[..], b"shard-a\x00755", "these bytes stand in logs");
        assert_eq!(SourceTransactionId::first(b"gid\0").to_string(), "67696400");
    }
}
