//! The envelope of everything that untorn keeps: a version byte, a checksum, then postcard's bytes.
//!
//! Layout: `version: u8`, `crc32: u32` little-endian over version and payload, payload. A reader refuses a version
//! above its own by name and a checksum that does not match as damage. Enums in payloads grow only at their end.

use serde::{Deserialize, Serialize};

/// Bytes before the payload.
const HEADER: usize = 5;

/// Why bytes could not be read back.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum CodecError {
    /// Written by a newer untorn.
    #[error("format version {found} is newer than {known}, the newest this untorn reads; run the newer one")]
    Newer {
        /// The version in the bytes.
        found: u8,
        /// The newest one this build knows.
        known: u8,
    },
    /// Written by an older untorn, in a form that this one does not read.
    #[error(
        "format version {found} is older than {oldest}, the oldest this untorn reads; run the untorn that wrote it, or \
         begin with an empty data_dir and a new copy"
    )]
    Older {
        /// The version in the bytes.
        found: u8,
        /// The oldest one this build reads.
        oldest: u8,
    },
    /// Not what was written: too short, a wrong checksum, or no valid payload.
    #[error("damaged: {0}")]
    Damaged(String),
}

/// Encodes a value under a format version.
///
/// # Errors
/// Only if the value cannot be serialized at all, which for untorn's own types does not happen.
pub fn encode<T: Serialize>(version: u8, value: &T) -> Result<Vec<u8>, CodecError> {
    let mut out = vec![0; HEADER];
    out[0] = version;
    let mut out = postcard::to_extend(value, out).map_err(|e| CodecError::Damaged(e.to_string()))?;
    let sum = checksum(version, &out[HEADER..]);
    out[1..HEADER].copy_from_slice(&sum.to_le_bytes());
    Ok(out)
}

/// Decodes what [`encode`] wrote under `version` or an older one that `T` still reads. What `T` borrows, it borrows from
/// `bytes`.
///
/// # Errors
/// [`CodecError::Newer`] for a version above `version`; [`CodecError::Damaged`] for everything else.
pub fn decode<'a, T: Deserialize<'a>>(version: u8, bytes: &'a [u8]) -> Result<T, CodecError> {
    let (Some(&found), Some(sum), Some(payload)) = (bytes.first(), bytes.get(1..HEADER), bytes.get(HEADER..)) else {
        return Err(CodecError::Damaged(format!("only {} bytes", bytes.len())));
    };
    if found > version {
        return Err(CodecError::Newer { found, known: version });
    }
    if sum != checksum(found, payload).to_le_bytes() {
        return Err(CodecError::Damaged("checksum does not match".into()));
    }
    postcard::from_bytes(payload).map_err(|e| CodecError::Damaged(e.to_string()))
}

/// Refuses bytes of a version below `oldest`, by name.
///
/// # Errors
/// [`CodecError::Older`].
pub fn at_least(oldest: u8, bytes: &[u8]) -> Result<(), CodecError> {
    match bytes.first() {
        Some(&found) if found < oldest => Err(CodecError::Older { found, oldest }),
        _ => Ok(()),
    }
}

fn checksum(version: u8, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[version]);
    hasher.update(payload);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::{HybridTime, OpId};

    #[test]
    fn golden_bytes() {
        let bytes = encode(1, &(OpId::new(3, 300), HybridTime::from_u64(7))).unwrap();
        assert_eq!(bytes, [1, 102, 34, 199, 149, 3, 172, 2, 7], "the envelope's format changed: {bytes:?}");
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let bytes = encode(1, &"a value of some length").unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode::<String>(1, &damaged).is_err(), "bit {bit}");
        }
        assert_eq!(decode::<String>(1, &bytes).unwrap(), "a value of some length");
        assert!(matches!(decode::<String>(0, &bytes), Err(CodecError::Newer { found: 1, known: 0 })));
    }
}
