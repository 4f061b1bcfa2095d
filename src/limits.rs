//! Every bound, with its unit and its reason.

/// Bytes of one gRPC message, either way. tonic's default of 4 MiB is below one batch with a row of a few megabytes.
pub const GRPC_MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Bytes that one gRPC stream may have in flight before the receiver has read them, and a connection four times that.
/// HTTP/2's default of 64 KiB would hold a batch to 0.6 MB/s over 100 ms of distance.
pub const GRPC_WINDOW_BYTES: u32 = 4 << 20;
/// Milliseconds until a gRPC connection attempt counts as failed.
pub const GRPC_CONNECT_MS: u64 = 5_000;
/// Milliseconds between a gRPC connection's pings, and until an unanswered one ends the connection: bounds how long a
/// peer that vanished goes unnoticed.
pub const GRPC_KEEPALIVE_MS: u64 = 5_000;
/// Milliseconds until a call on a tablet or on the transaction leader counts as not answered: far above a slow
/// durability barrier, short enough that a hung server shows.
pub const CALL_MS: u64 = 30_000;
/// Milliseconds that a server which shuts down waits for calls in work: above a durability barrier, below what an
/// orchestrator allows a process to end (10 s and more).
pub const DRAIN_MS: u64 = 5_000;
/// Milliseconds between polls of a CDC service that answers empty pages without waiting: it must not be asked in a loop.
pub const EMPTY_POLL_PAUSE_MS: u64 = 10;
/// Bytes of a source's transaction id: ids go into log entries.
pub const SOURCE_TRANSACTION_ID_BYTES_MAX: usize = 1_024;
/// Milliseconds that a report which overtook another on the network waits for it at the transaction leader; after that
/// the other is taken for lost, and its stream opens again.
pub const REPORT_ORDER_MS: u64 = 2_000;
/// Bytes of one CDC record. Routed on, it must fit in a message with its batch's schemas; what is larger stops the
/// stream by name.
pub const CDC_RECORD_BYTES_MAX: usize = 32 << 20;
/// Milliseconds that a CDC service lets one poll wait, whatever the reader asks: an abandoned poll is gone after that.
pub const LONG_POLL_MS_MAX: u64 = 30_000;
/// Polls in work at one CDC service. A reader has one a tablet, so this many (tablet, reader) pairs can be served.
pub const CDC_POLLS_MAX: usize = 4_096;
/// Bytes of a reader's name at a CDC service, which keeps a position for each.
pub const CDC_READER_BYTES_MAX: usize = 255;
/// Transactions of one CheckTransactions request.
pub const CHECK_TRANSACTIONS_MAX: usize = 10_000;
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

const _: () = assert!(CDC_RECORD_BYTES_MAX * 2 <= GRPC_MESSAGE_BYTES_MAX, "a record must fit in a batch's message");
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
