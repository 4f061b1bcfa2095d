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
/// Milliseconds that opening a log waits for its owner to go away: a process that was killed a moment ago still holds
/// its locks until the kernel has torn it down. Anyone who lives longer than this is another owner.
pub const LOG_OWNER_WAIT_MS: u64 = 3_000;
/// Bytes of one value in sled. sled puts a page above 128 KiB into a file of its own, which it never syncs; a page holds
/// up to about 20 values.
pub const SLED_VALUE_BYTES: usize = 4_000;
/// Bytes of sled's page cache. The log is read once, at the start; more would only be held twice.
pub const SLED_CACHE_BYTES: u64 = 8 << 20;
/// Bytes of values written to sled between two barriers at most. With the pages that sled rewrites meanwhile (one for
/// every ten changes) that is less than one of its segments (512 KiB), so that no segment is reused before what moved
/// out of it is durable.
pub const SLED_UNSYNCED_BYTES: usize = 64 << 10;
/// Bytes of a snapshot in one row of SQLite, which refuses rows above 1 GB and copies each in memory.
pub const SQLITE_ROW_BYTES: usize = 1 << 20;
/// Bytes that SQLite's write-ahead file keeps after a checkpoint.
pub const SQLITE_WAL_BYTES: i64 = 4 << 20;
/// Bytes of a page of rows.
pub const PAGE_BYTES: usize = 1 << 20;

const _: () = assert!(BATCH_BYTES * 4 < GRPC_MESSAGE_BYTES_MAX, "a batch must fit in a message with room to spare");
