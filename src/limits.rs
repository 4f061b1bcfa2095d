//! Every bound, with its unit and its reason.

use std::time::Duration;

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

/// How long connecting to a server may take, TLS and login included.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a peer may leave what was sent to it unacknowledged by its kernel before the connection counts as dead.
pub const CONNECTION_DEAD_AFTER: Duration = Duration::from_secs(60);
/// How often a PostgreSQL server is told what it may forget, even while the applier stalls: well below its
/// `wal_sender_timeout`, 60 s by default.
pub const FEEDBACK_INTERVAL: Duration = Duration::from_secs(10);
/// How often a PostgreSQL server is asked for its position while somebody waits for it. It answers within a millisecond,
/// but its flush position may lie inside a record that is never sent.
pub const PING_INTERVAL: Duration = Duration::from_millis(50);
/// How long the creation of a slot waits for any one transaction before it is given up and tried again: long enough for
/// ordinary transactions to end, short enough that an orphaned prepared one is soon named.
pub const SLOT_LOCK_TIMEOUT: Duration = Duration::from_secs(30);
/// Groups of frames between a server's socket and the assembler. A group is what one read brought, up to 64 KiB unless
/// a row is larger, so this bounds what waits in memory while the applier stalls.
pub const FRAME_GROUPS: usize = 32;

const _: () = assert!(BATCH_BYTES * 4 < GRPC_MESSAGE_BYTES_MAX, "a batch must fit in a message with room to spare");
