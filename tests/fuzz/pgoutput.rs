//! A PostgreSQL server's stream: any frames, through the decoder and the assembler. What comes out keeps the order that the
//! rest of untorn relies on, and holds no more than what went in.

use super::services::parts;
use bytes::Bytes;
use pg_walstream::protocol::LogicalReplicationMessage as Message;
use std::sync::Arc;
use untorn::source::postgres::GidPattern;
use untorn::source::postgres::assemble::{Assembler, Change};
use untorn::source::postgres::decode::{Decoder, Frame, header};
use untorn::source::postgres::tuple::{Identity, Shape};
use untorn::source::{Resume, StreamEvent};
use untorn::wal::{Column, OpId, SourceTabletId, TableId, TableSchema};

/// The position that the stream resumes after.
const AFTER: u64 = 100;

/// A stream's frames.
pub fn stream(data: &[u8]) {
    let resume = Resume { stream: SourceTabletId(3), after: OpId::end_of_term(AFTER), ..Resume::default() };
    let mut decoder = Decoder::new();
    let mut assembler = Assembler::new("a", GidPattern::parse("").unwrap(), 9, &resume);
    let mut upto = resume.after;
    let mut writes = 0;
    for frame in parts(data) {
        let _ = header(frame);
        // A stream that sends what it must not stops there.
        match decoder.decode(Bytes::copy_from_slice(frame)) {
            Ok(Frame::Keepalive { end, sent_at }) => assembler.keepalive(end, sent_at),
            Ok(Frame::Message { sent_at, wal_at, sub_xid, message }) => {
                if let Message::Relation { relation_id, .. } = *message {
                    assembler.relation(relation_id, Arc::new(shape(*message)));
                } else if assembler.message(Change { wal_at, sub_xid }, sent_at, *message).is_err() {
                    return;
                }
            }
            Err(_) => return,
        }
        while let Some(event) = assembler.poll(true) {
            writes += check(event, &mut upto);
        }
    }
    // A TRUNCATE names many tables in four bytes each, an UPDATE may be two writes.
    assert!(writes <= data.len() / 4, "{writes} writes out of {} bytes", data.len());
}

/// Positions rise; answers how many writes there are.
fn check(event: StreamEvent, upto: &mut OpId) -> usize {
    let batch = match event {
        StreamEvent::Chunk(chunk) => return chunk.writes.len(),
        StreamEvent::Dropped(_) => return 0,
        StreamEvent::Batch(batch) => batch,
    };
    let mut last = *upto;
    for (at, _) in &batch.records {
        assert!(*at >= last && *at <= batch.upto, "{at} follows {last} in a batch up to {}", batch.upto);
        last = *at;
    }
    assert!(batch.upto >= *upto && (batch.head == OpId::ZERO || batch.head >= batch.upto));
    *upto = batch.upto;
    batch.records.len()
}

/// A relation's shape, as it is without asking the server for its key.
fn shape(message: Message) -> Shape {
    let Message::Relation { relation_id, relation_name, replica_identity, columns, .. } = message else {
        unreachable!("only relations have shapes")
    };
    let column = |of: &pg_walstream::protocol::ColumnInfo| Column {
        name: of.name.to_string(),
        type_name: of.type_id.to_string(),
        key: of.is_key(),
    };
    let columns = columns.iter().map(column).collect();
    let identity = match replica_identity {
        b'f' => Identity::Full,
        b'n' => Identity::Nothing,
        _ => Identity::Key,
    };
    let schema = TableSchema { table: TableId(relation_id), name: relation_name.to_string(), version: 1, columns };
    Shape { schema, identity }
}

/// A data frame.
fn data(payload: &[u8]) -> Vec<u8> {
    [&b"w"[..], &[0; 16], &[0, 0, 0, 1, 0, 0, 0, 0], payload].concat()
}

fn relation() -> Vec<u8> {
    let columns = [&b"\x01id\0"[..], &23u32.to_be_bytes(), &[255; 4], b"\0body\0", &25u32.to_be_bytes(), &[255; 4]];
    [b"R", &7u32.to_be_bytes()[..], b"public\0t\0d\0\x02", &columns.concat()].concat()
}

fn tuple(cells: &[(u8, &[u8])]) -> Vec<u8> {
    let cell = |(kind, text): &(u8, &[u8])| match kind {
        b't' => [&[b't'][..], &(text.len() as u32).to_be_bytes(), text].concat(),
        other => vec![*other],
    };
    [&[0, cells.len() as u8][..], &cells.iter().flat_map(cell).collect::<Vec<u8>>()].concat()
}

/// Streams that a server might send.
pub fn streams() -> Vec<Vec<u8>> {
    let number = |number: u64| number.to_be_bytes();
    let xid = |xid: u32| xid.to_be_bytes();
    let begin = [b"B", &number(150)[..], &number(0), &xid(7)].concat();
    let commit = |end| [b"C\0", &number(end - 5)[..], &number(end), &number(0)].concat();
    let table = xid(7);
    let insert = |sub: &[u8]| [b"I", sub, &table, b"N", &tuple(&[(b't', b"1"), (b't', b"body")])].concat();
    let key = tuple(&[(b't', b"1"), (b'n', b"")]);
    let update = [b"U", &table[..], b"K", &key, b"N", &tuple(&[(b't', b"2"), (b'u', b"")])].concat();
    let delete = [b"D", &table[..], b"K", &key].concat();
    let truncate = [b"T", &xid(1)[..], b"\0", &table].concat();
    let prepared =
        |tag: &[u8], end: u64| [tag, &number(end - 5)[..], &number(end), &number(0), &xid(7), b"gid\0"].concat();
    let rolled_back = [b"r\0", &number(290)[..], &number(300), &number(0), &number(0), &xid(7), b"gid\0"].concat();
    let keepalive = [b"k", &number(400)[..], &number(9_000_000), b"\x01"].concat();
    let started = |first: u8| [b"S", &xid(7)[..], &[first]].concat();
    let ended = [b"c", &xid(7)[..], b"\0", &number(210), &number(220), &number(0)].concat();
    let aborted = [b"A", &xid(7)[..], &xid(8)].concat();
    let in_block = [b"R", &xid(7)[..], &relation()[1..]].concat();
    let all = [
        vec![data(&relation()), data(&begin), data(&insert(b"")), data(&update), data(&delete), data(&commit(200))],
        vec![data(&relation()), data(&begin), data(&truncate), data(&commit(200)), keepalive],
        vec![
            data(&relation()),
            data(&prepared(b"b", 210)),
            data(&insert(b"")),
            data(&prepared(b"P\0", 210)),
            data(&prepared(b"K\0", 230)),
        ],
        vec![data(&relation()), data(&prepared(b"b", 210)), data(&prepared(b"P\0", 210)), data(&rolled_back)],
        vec![data(&started(1)), data(&in_block), data(&insert(&xid(8))), data(b"E"), data(&aborted), data(&ended)],
    ];
    all.iter().map(|frames| frames.iter().flat_map(|frame| super::services::part(frame)).collect()).collect()
}
