//! A row's key as bytes.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The encoded key columns of a row. Equal rows of equal tables have equal bytes, whichever stream carries them; a
/// router hashes or compares these bytes and nothing else.
///
/// Layout: for each key column its text with every 0x00 written as 0x00 0xFF, then 0x00 0x01. So keys sort column by
/// column and no key is a prefix of another. The key of a row that has none of its own begins with 0x00 0x02 (see
/// [`Key::of_content`]).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Key(pub Bytes);

impl Key {
    /// The key made of these column texts, in key order.
    #[must_use]
    pub fn from_columns<'a>(columns: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut out = Vec::with_capacity(24);
        for column in columns {
            for &byte in column {
                out.push(byte);
                if byte == 0 {
                    out.push(0xFF);
                }
            }
            out.extend_from_slice(&[0, 1]);
        }
        Self(out.into())
    }

    /// The column texts that made this key, or `None` if the bytes are no key.
    #[must_use]
    pub fn columns(&self) -> Option<Vec<Vec<u8>>> {
        let mut columns = Vec::new();
        let mut current = Vec::new();
        let mut bytes = Self::unmarked(&self.0).iter();
        while let Some(&byte) = bytes.next() {
            if byte != 0 {
                current.push(byte);
                continue;
            }
            match bytes.next()? {
                0xFF => current.push(0),
                1 => columns.push(std::mem::take(&mut current)),
                _ => return None,
            }
        }
        current.is_empty().then_some(columns)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.columns() {
            Some(columns) => {
                let texts: Vec<_> = columns.iter().map(|c| String::from_utf8_lossy(c)).collect();
                write!(f, "({})", texts.join(","))
            }
            None => write!(f, "{:?}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn columns_come_back_and_order_is_kept(a: Vec<Vec<u8>>, b: Vec<Vec<u8>>) {
            let (ka, kb) = (Key::from_columns(a.iter().map(Vec::as_slice)), Key::from_columns(b.iter().map(Vec::as_slice)));
            prop_assert_eq!(ka.columns(), Some(a.clone()));
            prop_assert_eq!(a == b, ka == kb);
            if a.len() == b.len() {
                prop_assert_eq!(a.cmp(&b), ka.cmp(&kb));
            }
        }
    }
}
