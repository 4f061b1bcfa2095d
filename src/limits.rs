//! Every bound, with its unit and its reason.

/// Bytes of one gRPC message, either way. tonic's default of 4 MiB is below one batch with a row of a few megabytes.
pub const GRPC_MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Bytes of records that a poller asks for at once: large enough that a batch costs little, small enough that the
/// prefetched one and the one in work stay within a stream's share of the memory budget.
pub const BATCH_BYTES: usize = 1 << 20;
/// Bytes of a PostgreSQL transaction that are held in memory before it is staged in chunks: below this a transaction is
/// stored with its position at once; above, memory would grow with the transaction.
pub const CHUNK_BYTES: usize = 1 << 20;
/// Milliseconds that a source may wait before it answers that nothing came. Bounds how late a stop is noticed.
pub const LONG_POLL_MS: u64 = 500;
/// Bytes of log entries after which a snapshot is due, unless the last snapshot was larger: then that many. Writing
/// snapshots costs at most as much as writing the log.
pub const SNAPSHOT_AFTER_BYTES: usize = 8 << 20;
/// Bytes of one log entry before the next one is begun. etcd refuses requests above 1.5 MiB.
pub const ENTRY_BYTES: usize = 1 << 20;
/// Bytes of a page of rows.
pub const PAGE_BYTES: usize = 1 << 20;

const _: () = assert!(BATCH_BYTES * 4 < GRPC_MESSAGE_BYTES_MAX, "a batch must fit in a message with room to spare");
/// Bytes of a key. The embedded store writes a key's length in 16 bits; PostgreSQL's own index keys end below 3 KiB.
pub const KEY_BYTES_MAX: usize = 60 << 10;
/// Calls that wait for a tablet's worker before callers wait for a place. Each holds at most about one batch.
pub const TABLET_QUEUE: usize = 64;
/// Calls that one durability barrier of a tablet's storage covers at most: bounds how long the first of them waits.
pub const TABLET_GROUP: usize = 256;
/// Bytes of versions that are written in one atomic step when decisions are applied: a huge transaction takes several.
pub const APPLY_BYTES: usize = 1 << 20;
/// Milliseconds that a read waits for a tablet to hear the log before it says that it did not.
pub const READ_WAIT_MS: u64 = 5_000;
/// Keys of one undecided branch that are remembered to find conflicts; a branch with more conflicts with every other.
pub const CONFLICT_KEYS_MAX: usize = 1 << 16;
/// Bytes of a tablet's newest writes of one kind that are held in memory before they go to a table file.
pub const STORE_MEMTABLE_BYTES: u64 = 16 << 20;
/// Bytes of blocks of table files that the tablets of one folder hold in memory.
pub const STORE_CACHE_BYTES: u64 = 32 << 20;
/// Bytes of journals of the tablets of one folder; above, the oldest writes in memory go to table files.
pub const STORE_JOURNAL_BYTES: u64 = 256 << 20;
