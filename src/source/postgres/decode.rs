//! Frames of the replication protocol, decoded.

use crate::wal::HybridTime;
use bytes::Bytes;
use pg_walstream::protocol::{LogicalReplicationMessage, LogicalReplicationParser, parse_keepalive_message};

/// Microseconds from the Unix epoch to PostgreSQL's, 2000-01-01.
const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

/// The version of pgoutput's protocol that carries prepared transactions (PostgreSQL 15).
pub const PROTOCOL_VERSION: u32 = 3;

/// One frame of the stream.
#[derive(Debug)]
pub enum Frame {
    /// Everything that ends at or below `end` was sent before this.
    Keepalive {
        /// A position; may be zero or lie below an earlier one.
        end: u64,
        /// The server's clock.
        sent_at: HybridTime,
    },
    /// A message of pgoutput.
    Message {
        /// The server's clock.
        sent_at: HybridTime,
        /// Where the change stands in the WAL: no position of the stream, but the same whenever it is sent.
        wal_at: u64,
        /// The (sub-)transaction that a change within a streamed block belongs to; zero outside of one.
        sub_xid: u32,
        /// The message.
        message: Box<LogicalReplicationMessage>,
    },
}

/// Decodes the frames of one connection: whether a message carries its transaction's number depends on the ones before.
pub struct Decoder {
    parser: LogicalReplicationParser,
    in_block: bool,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// For a connection that has just begun to stream.
    #[must_use]
    pub fn new() -> Self {
        Self { parser: LogicalReplicationParser::with_protocol_version(PROTOCOL_VERSION), in_block: false }
    }

    /// Decodes one frame: the payload of a CopyData message.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn decode(&mut self, frame: Bytes) -> Result<Frame, String> {
        match frame.first() {
            Some(b'k') => {
                let keepalive = parse_keepalive_message(&frame).map_err(|e| e.to_string())?;
                Ok(Frame::Keepalive { end: keepalive.wal_end, sent_at: time(keepalive.timestamp) })
            }
            // 'w', start, end and clock (8 bytes each), then pgoutput's message.
            Some(b'w') if frame.len() > 25 => {
                let wal_at = number(&frame, 1);
                let sent_at = time(number(&frame, 17).cast_signed());
                let payload = frame.slice(25..);
                let sub_xid = match payload.first() {
                    Some(b'I' | b'U' | b'D' | b'T' | b'R' | b'Y' | b'M') if self.in_block => {
                        let bytes = payload.get(1..5).and_then(|b| b.try_into().ok());
                        bytes.map(u32::from_be_bytes).ok_or("a change within a streamed block is too short")?
                    }
                    _ => 0,
                };
                let message = self.parser.parse_wal_message_bytes(payload).map_err(|e| e.to_string())?.message;
                let message = Box::new(message);
                match *message {
                    LogicalReplicationMessage::StreamStart { .. } => self.in_block = true,
                    LogicalReplicationMessage::StreamStop => self.in_block = false,
                    _ => {}
                }
                Ok(Frame::Message { sent_at, wal_at, sub_xid, message })
            }
            Some(b'w') => Err(format!("a data frame of {} bytes", frame.len())),
            Some(tag) => Err(format!("a frame of the unknown kind {:?}", char::from(*tag))),
            None => Err("an empty frame".into()),
        }
    }
}

/// Whether a frame asks for an answer at once, and the position in its header; without decoding the rest.
#[must_use]
pub fn header(frame: &[u8]) -> (bool, u64) {
    match frame.first() {
        Some(b'k') => (frame.get(17).is_some_and(|&wanted| wanted != 0), number(frame, 1)),
        Some(b'w') => (false, number(frame, 9)),
        _ => (false, 0),
    }
}

/// The eight bytes from `from` on; zero where the frame ends before.
fn number(frame: &[u8], from: usize) -> u64 {
    frame.get(from..from + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes)
}

/// A WAL position as PostgreSQL writes it.
#[must_use]
pub fn lsn(at: u64) -> String {
    format!("{:X}/{:X}", at >> 32, at & 0xFFFF_FFFF)
}

/// Reads what [`lsn`] writes.
#[must_use]
pub fn parse_lsn(text: &str) -> Option<u64> {
    let (high, low) = text.trim().split_once('/')?;
    Some(u64::from(u32::from_str_radix(high, 16).ok()?) << 32 | u64::from(u32::from_str_radix(low, 16).ok()?))
}

/// A status update: everything at or below `flushed` may be forgotten by the server.
#[must_use]
pub fn status_update(received: u64, flushed: u64, now: HybridTime, reply_wanted: bool) -> [u8; 34] {
    let mut out = [0; 34];
    out[0] = b'r';
    out[1..9].copy_from_slice(&received.to_be_bytes());
    out[9..17].copy_from_slice(&flushed.to_be_bytes());
    out[17..25].copy_from_slice(&flushed.to_be_bytes());
    let micros = i64::try_from(now.micros()).unwrap_or(i64::MAX) - POSTGRES_EPOCH_MICROS;
    out[25..33].copy_from_slice(&micros.to_be_bytes());
    out[33] = u8::from(reply_wanted);
    out
}

/// PostgreSQL's timestamp as a hybrid time; times before 1970 are its first.
#[must_use]
pub fn time(timestamp: i64) -> HybridTime {
    HybridTime::from_micros(u64::try_from(timestamp.saturating_add(POSTGRES_EPOCH_MICROS)).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn data(payload: &[u8]) -> Bytes {
        let mut frame = vec![b'w'];
        frame.extend([0; 24]);
        frame.extend(payload);
        frame.into()
    }

    #[test]
    fn a_change_within_a_block_carries_its_sub_transaction() {
        let mut decoder = Decoder::new();
        decoder.decode(data(&[b'S', 0, 0, 0, 9, 1])).unwrap();
        let insert = [b'I', 0, 0, 0, 11, 0, 0, 0, 5, b'N', 0, 1, b't', 0, 0, 0, 1, b'x'];
        let Frame::Message { sub_xid, message, .. } = decoder.decode(data(&insert)).unwrap() else { panic!() };
        assert_eq!(sub_xid, 11);
        assert!(matches!(*message, LogicalReplicationMessage::Insert { relation_id: 5, .. }));
        decoder.decode(data(b"E")).unwrap();
        let insert = [b'I', 0, 0, 0, 5, b'N', 0, 1, b'n'];
        let Frame::Message { sub_xid, .. } = decoder.decode(data(&insert)).unwrap() else { panic!() };
        assert_eq!(sub_xid, 0);
    }

    #[test]
    fn a_keepalive_gives_its_position_and_whether_it_wants_an_answer() {
        let mut frame = vec![b'k'];
        frame.extend(77u64.to_be_bytes());
        frame.extend(0i64.to_be_bytes());
        frame.push(1);
        assert_eq!(header(&frame), (true, 77));
        let Frame::Keepalive { end, sent_at } = Decoder::new().decode(frame.into()).unwrap() else { panic!() };
        assert_eq!((end, sent_at.micros()), (77, 946_684_800_000_000));
    }

    #[test]
    fn a_status_update_has_the_protocols_layout() {
        let out = status_update(3, 2, HybridTime::from_micros(946_684_800_000_005), true);
        assert_eq!((out[0], out[8], out[16], out[24], out[32], out[33]), (b'r', 3, 2, 2, 5, 1));
    }

    #[test]
    fn positions_are_read_as_postgresql_writes_them() {
        assert_eq!(lsn(0x16_B374_D848), "16/B374D848");
        assert_eq!(parse_lsn("16/B374D848"), Some(0x16_B374_D848));
        assert_eq!(parse_lsn("16B374D848"), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(frames: Vec<Vec<u8>>) {
            let mut decoder = Decoder::new();
            for frame in frames {
                let _ = header(&frame);
                let _ = decoder.decode(data(&frame));
                let _ = decoder.decode(frame.into());
            }
        }
    }
}
