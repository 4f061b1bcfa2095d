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
/// The smallest memory budget, in bytes: one batch in work and one prefetched, for 16 streams.
pub const MEMORY_BUDGET_MIN: u64 = 32 << 20;
/// Streams of one daemon. Each is a connection, a few tasks and a label value of about a dozen metrics.
pub const STREAMS_MAX: usize = 1024;
/// Embedded tablets of one daemon. Each is a folder with file handles of its own.
pub const TABLETS_MAX: u32 = 256;
/// Scans that one process serves at the same time. Each holds a page of rows for every tablet.
pub const SCANS_MAX: usize = 16;

/// Discovery rounds kept while a stream lags. Each costs 24 bytes a stream; thinning them only makes a transaction wait for
/// a somewhat later one.
pub const ROUNDS_KEPT: usize = 256;

/// Milliseconds between two nudges of a stream that stays short of what its server has flushed. A ping is answered in
/// 0.1 ms, so whoever is still short by then needs the nudge.
pub const NUDGE_AFTER_MS: u64 = 100;
/// Milliseconds that a transaction is open before its source is asked whether it still knows it, and between two such
/// questions. Age only makes us ask (C8).
pub const ORPHAN_CHECK_AFTER_MS: u64 = 10_000;
/// Transactions asked about at once: what fits in a small message.
pub const ORPHAN_CHECK_MAX: usize = 1000;

const _: () = assert!(BATCH_BYTES * 4 < GRPC_MESSAGE_BYTES_MAX, "a batch must fit in a message with room to spare");
