//! Every bound, with its unit and its reason.

use std::time::Duration;

/// Bytes of one gRPC message, either way. tonic's default of 4 MiB is below one batch with a row of a few megabytes.
pub const GRPC_MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Bytes of one gRPC message that carries rows to a tablet, or from one to whoever scans: PostgreSQL's rows go up to
/// 1 GiB, and a row is never cut. What a sender gathers is far smaller ([`BATCH_BYTES`], [`PAGE_BYTES`]).
pub const GRPC_ROWS_BYTES_MAX: usize = (1 << 30) + GRPC_MESSAGE_BYTES_MAX;
/// Bytes that one gRPC stream may have in flight before the receiver has read them, and a connection four times that.
/// HTTP/2's default of 64 KiB would hold a batch to 0.6 MB/s over 100 ms of distance.
pub const GRPC_WINDOW_BYTES: u32 = 4 << 20;
/// Milliseconds until a gRPC connection attempt counts as failed.
pub const GRPC_CONNECT_MS: u64 = 5_000;
/// Milliseconds between a gRPC connection's pings, and until an unanswered one ends the connection: bounds how long a
/// peer that vanished goes unnoticed.
pub const GRPC_KEEPALIVE_MS: u64 = 5_000;
/// Calls in work on one gRPC connection; more wait at the caller. A poller's connection to the leader carries a few reports
/// of each of its streams.
pub const GRPC_STREAMS_MAX: u32 = 4_096;
/// Bytes of one call's headers. gRPC's own take a few hundred.
pub const GRPC_HEADER_BYTES_MAX: u32 = 16 << 10;
/// Milliseconds until a server gives up a call that it has not begun to answer: far above every deadline of untorn's own
/// callers, so that only a caller without one meets it.
pub const GRPC_CALL_MS_MAX: u64 = 120_000;
/// Milliseconds between looks at the authorities for connections that stand: whoever takes an authority away wants its
/// peers gone at once, and three small files a second are read by nobody's notice.
pub const AUTHORITIES_LOOK_MS: u64 = 1_000;
/// Connections that one listener holds; more wait at the kernel. Every stream of a daemon has one of its own.
pub const CONNECTIONS_MAX: usize = 4_096;
/// TLS handshakes in work at one listener: what strangers can make it hold. Each costs a fraction of a millisecond.
pub const HANDSHAKES_MAX: usize = 256;
/// Milliseconds that a caller may take for its TLS handshake: a few round trips over a bad network.
pub const HANDSHAKE_MS: u64 = 5_000;
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
/// Milliseconds that opening a log or tablets' storage waits for its owner to go away: a process that was killed a moment
/// ago still holds its locks until the kernel has torn it down. Anyone who lives longer than this is another owner.
pub const OWNER_WAIT_MS: u64 = 3_000;
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
/// Bytes of the reserve file in a data folder: recovery writes an epoch and flushes a memtable before anything can be freed.
pub const RESERVE_BYTES: usize = 32 << 20;
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

/// How long connecting to a server may take, TLS and login included.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a peer may leave what was sent to it unacknowledged by its kernel before the connection counts as dead.
pub const CONNECTION_DEAD_AFTER: Duration = Duration::from_secs(60);
/// How often a PostgreSQL server is told what it may forget and asked where it is, even while the applier stalls: the age
/// of its last answer is the lag of an idle stream, and its `wal_sender_timeout` (60 s by default) must not pass.
pub const FEEDBACK_INTERVAL: Duration = Duration::from_secs(1);
/// Milliseconds between two checkpoints of a PostgreSQL stream that carries nothing: each is an entry in the log, and
/// between them the server keeps the WAL that it writes for others.
pub const CHECKPOINT_IDLE_MS: u64 = 10_000;
/// How often a PostgreSQL server is asked again for its position while its answer stays short of what somebody waits
/// for (the first time at once: it answers within a millisecond), and how long what it may forget is gathered.
pub const PING_INTERVAL: Duration = Duration::from_millis(50);
/// How long the creation of a slot waits for any one transaction before it is given up and tried again: long enough for
/// ordinary transactions to end, short enough that an orphaned prepared one is soon named.
pub const SLOT_LOCK_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a transaction stays prepared before `check` mentions it: transaction managers end theirs within seconds.
pub const PREPARED_OLD: Duration = Duration::from_secs(60);
/// How often a server is asked what it keeps back for a stream: often enough for a forecast, too seldom to be felt.
pub const RETENTION_EVERY: Duration = Duration::from_secs(10);
/// Contents of rows without a key whose last removed row a tablet remembers: some 200 bytes each, and forgetting one costs a
/// longer search.
pub const REMOVAL_HINTS_MAX: usize = 4_096;
/// Ranges of one table that `verify` keeps checksums of: 20 MiB. Ten million rows make ranges of ten.
pub const VERIFY_RANGES_MAX: usize = 1 << 20;
/// Rows of ranges that differ, both sides together, that `verify` looks into in one pass over a table: about 30 MiB.
pub const VERIFY_SLICE_ROWS: u64 = 200_000;
/// Keys that `verify` settles at once, each with a hash of every column on both sides.
pub const VERIFY_KEYS: usize = 2_000;
/// Differences of one table that `verify` tells; a table that differs more needs a new copy, not a list.
pub const VERIFY_DIFFERENCES_MAX: usize = 1_000;
/// How long `verify` waits for the replica to show what the source showed, within what tablets keep of older versions.
pub const VERIFY_WAIT: Duration = Duration::from_secs(300);
/// How long `verify` waits for open transactions to end before it reads a row that differs: longer than ordinary ones
/// take; after that it says which rows it could not settle.
pub const VERIFY_QUIET: Duration = Duration::from_secs(2);
/// Groups of frames between a server's socket and the assembler. A group is what one read brought, up to 64 KiB unless
/// a row is larger, so this bounds what waits in memory while the applier stalls.
pub const FRAME_GROUPS: usize = 32;

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

/// Branches of a stream whose Applying record was taken and is recognised when it comes again. A source repeats what it
/// sent a moment ago, not what it sent long ago.
pub const APPLIED_BRANCHES_REMEMBERED: usize = 1 << 14;
/// Reports of one stream that are on their way to the log at once: enough that tablets store while the log appends.
pub const REPORTS_IN_FLIGHT: usize = 4;
/// Inputs that wait for the transaction leader. Each stream has few on their way, so this bounds a burst, not work.
pub const LEADER_INPUTS: usize = 256;
/// Decisions on their way to one replica tablet: handed out, and not durably applied. A decision takes about 200 bytes
/// there; what waits behind it is held once, in the log's fold. More than a tablet applies between two barriers.
pub const APPLY_WINDOW: usize = 1 << 16;
/// Transactions held in memory beyond which streams that run ahead pause: a record takes about 400 bytes.
pub const TRANSACTIONS_HELD: usize = 1 << 20;
/// Decisions in one batch for a replica tablet: bounds how long one call keeps a tablet from others.
pub const APPLY_BATCH_DECISIONS: usize = 4096;
/// Decisions before a replica tablet that takes them beyond which streams pull slowly: two calls' worth, so that the next
/// one is there when one ends.
pub const DECISIONS_AHEAD: usize = 2 * APPLY_BATCH_DECISIONS;
/// Bytes a second that a stream pulls then. Not nothing: what is being applied may wait for a lock on the replica, and the
/// source keeps its WAL meanwhile.
pub const AHEAD_BYTES_PER_SECOND: u64 = 8 << 20;
/// Transactions that become one transaction of a PostgreSQL replica's, at most (more where one entry of the log decides
/// more): enough that its commit costs little for each, few enough that a reader is not far behind.
pub const REPLICA_GROUP_DECISIONS: usize = 2048;
/// Bytes of writes that are prepared for a PostgreSQL replica at once; two of these are in memory, each in two forms.
pub const REPLICA_RUN_BYTES: usize = 4 << 20;
/// Milliseconds without new decisions after which a tablet is asked to make durable what it applied, so that
/// transactions are forgotten although nothing follows them.
pub const SYNC_AFTER_MS: u64 = 50;
/// Milliseconds that a busy tablet may go on without making durable what it applied.
pub const SYNC_AT_LEAST_EVERY_MS: u64 = 1_000;
/// Milliseconds of the first wait after a failure, and of the longest: a restarted server is met quickly, a dead one is
/// not pestered.
pub const RETRY_FIRST_MS: u64 = 50;
/// See [`RETRY_FIRST_MS`].
pub const RETRY_LAST_MS: u64 = 5_000;
/// Milliseconds after which a stopped stream is tried again, so that a mended cause lets it go on by itself.
pub const STOPPED_RETRY_MS: u64 = 30_000;
/// Milliseconds between two words of a puller to the transaction leader: a leader that started again hears of it although
/// its source is silent.
pub const PULLER_SAYS_EVERY_MS: u64 = 1_000;
/// Milliseconds that a replica tablet with nothing to do is left alone before its owner announces itself again: an owner
/// that slept through a takeover hears of it, and a tablet that forgot what it had only heard hears it again.
pub const ANNOUNCE_AGAIN_MS: u64 = 5_000;
/// Milliseconds between two looks at a source's publication: how late a table that changes nothing is noticed. One whose
/// rows change is noticed at the first change.
pub const COPY_LOOK_EVERY_MS: u64 = 2_000;
/// Milliseconds between two lines of the log about how far a server's copies are.
pub const COPY_SAID_EVERY_MS: u64 = 10_000;
/// Tables of one server that are copied at once, unless the configuration says otherwise: one can be read while another
/// is stored, and a source has other things to do.
pub const COPY_PARALLEL: usize = 2;
/// The most tables of one server that are copied at once: each takes a connection there and a page of rows here.
pub const COPY_PARALLEL_MAX: usize = 32;
/// Milliseconds that a source has to answer a probe before it counts as silent.
pub const PROBE_DEADLINE_MS: u64 = 5_000;
/// Milliseconds without a word after which a stream counts as pulled by nobody: several words, and a slow network.
pub const PULLER_SILENT_MS: u64 = 5_000;
/// Milliseconds after which a batch that no tablet has stored shows as back-pressure.
pub const STALL_SHOWS_AFTER_MS: u64 = 1_000;
/// Transactions held beyond which the leader no longer counts, once a second, what each waits for: a look at so many takes
/// it a few milliseconds.
pub const COUNTED_TRANSACTIONS: usize = 50_000;
/// Waiting transactions that one answer lists, the oldest first: more than a screen shows. What waits behind each is counted,
/// so above [`COUNTED_TRANSACTIONS`] only the oldest is listed.
pub const WAITING_LISTED: usize = 20;
/// Milliseconds between the leader's ticks. No decision waits for one.
pub const TICK_MS: u64 = 100;
/// Milliseconds of silence after which a stream reports what was acknowledged, so that forgetting goes on.
pub const REPORT_IDLE_MS: u64 = 1_000;
/// Milliseconds that a drain may take before the process ends without it. What was not drained is resumed later.
pub const APPLIER_DRAIN_MS: u64 = 20_000;
/// Bytes of records that the demo's source keeps for readers that have not acknowledged them. Above it the source's
/// users wait, as they would for a disk that is full.
pub const DEMO_WAL_BYTES: usize = 32 << 20;
/// Bytes of version history that the demo's oracle keeps; its users stop when it is full, after about a quarter of an
/// hour. The comparison at the end needs every version.
pub const DEMO_HISTORY_BYTES: usize = 256 << 20;
/// Versions that the demo's books can undo to say what they held at an older time: several seconds of the workload, at
/// 48 bytes each. Times before that are audited by their sum alone.
pub const DEMO_UNDO_VERSIONS: usize = 1 << 18;

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
/// Milliseconds for which a page is asked for again while its tablet is behind or away: a transaction of a gigabyte takes
/// a tablet many seconds to apply, and who reads then rather waits than starts his scan again.
pub const READ_PATIENCE_MS: u64 = 120_000;
/// Keys of one undecided branch that are remembered to find conflicts; a branch with more conflicts with every other.
pub const CONFLICT_KEYS_MAX: usize = 1 << 16;
/// Keys that two streams wrote, remembered by a tablet. One is enough to stop a stream; the others are there so that it
/// does not go on when the first is mended.
pub const TWICE_WRITTEN_KEYS: usize = 1_024;
/// Keys of one staged transaction that are remembered while it asks for rows to fill others from (about 40 bytes each);
/// one with more has its chunks read through at each question.
pub const STAGED_KEYS_MAX: usize = 1 << 18;
/// Bytes of newest writes that the tablets of one folder gather in memory, together, before they go to table files.
pub const STORE_MEMTABLES_BYTES: u64 = 24 << 20;
/// Bytes of newest writes that the tablets of one folder hold in memory at most, written to table files or on their way
/// there. The store itself has no bound while its worker merges files: it once held 700 MiB of a transaction of 1 GiB,
/// and the daemon is to stay below 256 MiB then.
pub const STORE_UNWRITTEN_BYTES_MAX: u64 = 40 << 20;
/// The least and the most that one tablet gathers of one kind: below, table files become many; above, nothing gets better.
pub const STORE_MEMTABLE_BYTES_MIN: u64 = 1 << 20;
/// See [`STORE_MEMTABLE_BYTES_MIN`].
pub const STORE_MEMTABLE_BYTES_MAX: u64 = 16 << 20;
/// Bytes of blocks of table files that the tablets of one folder hold in memory.
pub const STORE_CACHE_BYTES: u64 = 32 << 20;
/// Bytes of journals of the tablets of one folder; above, the oldest writes in memory go to table files.
pub const STORE_JOURNAL_BYTES: u64 = 256 << 20;
/// Bytes of records of a tablet's own WAL that are kept for readers that lag; a reader that needs more must copy again.
pub const TABLET_WAL_BYTES: u64 = 4 << 30;
