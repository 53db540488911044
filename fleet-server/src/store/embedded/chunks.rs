//! Rule 5: values of any length as values of at most [`MAX_VALUE`] bytes.
//!
//! A short value is stored behind a marker. A long one is cut: its head holds the number of chunks and the digest of
//! the whole, the chunks lie under keys of their own, and all of it is written in one batch. Whoever reads checks
//! the digest, so that a read between two commits never mixes two values.

use plimsoll_protocol::Digest;

use crate::store::StoreError;

/// Rule 5. Sixteen entries of a leaf page stay far below the 128 KiB beyond which sled writes unsynced files.
pub const MAX_VALUE: usize = 4 * 1024 - 64;
/// Marks a value that is cut: the marker, then the number of chunks and the digest of the whole.
const CHUNKED: u8 = 0x01;
/// Marks a value that is whole.
pub const WHOLE: u8 = 0x00;
/// Before the key of a chunk. Sorts after every ordinary key, so that no scan meets it.
pub const PREFIX: char = '~';

/// Adds a value to a batch, cut when it is long. Answers how many chunks it has.
pub fn insert(batch: &mut sled::Batch, key: &str, bytes: &[u8]) -> usize {
    if bytes.len() < MAX_VALUE {
        let mut value = Vec::with_capacity(bytes.len() + 1);
        value.push(WHOLE);
        value.extend_from_slice(bytes);
        batch.insert(key.as_bytes(), value);
        return 0;
    }
    let mut count = 0;
    for (index, chunk) in bytes.chunks(MAX_VALUE).enumerate() {
        batch.insert(self::key(key, index).as_bytes(), chunk);
        count = index + 1;
    }
    let mut head = vec![CHUNKED];
    head.extend_from_slice(format!("{count} {}", Digest::of(bytes)).as_bytes());
    batch.insert(key.as_bytes(), head);
    count
}

/// The key of one chunk of the value of `of`.
pub fn key(of: &str, index: usize) -> String {
    format!("{PREFIX}{of}/{index:06}")
}

/// The number of chunks and the digest that a head carries; `None` for a value that is whole.
fn head_of(value: &[u8]) -> Option<(usize, Digest)> {
    let [CHUNKED, head @ ..] = value else { return None };
    let (count, digest) = std::str::from_utf8(head).ok()?.split_once(' ')?;
    Some((count.parse().ok()?, digest.parse().ok()?))
}

/// How many chunks a stored value has; none when it is whole or not there.
pub fn count(value: Option<&[u8]>) -> usize {
    value.and_then(head_of).map_or(0, |(count, _)| count)
}

/// Reads of a long value before it is called corrupt. A commit may change head and chunks while they are read, which
/// takes microseconds; a commit takes a millisecond at least, so eight unlucky reads in a row do not happen.
const LOOKS: usize = 8;

/// A value as committed, whole.
pub fn read(tree: &sled::Tree, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
    let failed = |e: sled::Error| StoreError::storage(format!("read of {key}"), e);
    for _ in 0..LOOKS {
        let Some(value) = tree.get(key).map_err(failed)? else { return Ok(None) };
        let (count, digest) = match value.split_first() {
            Some((&WHOLE, bytes)) => return Ok(Some(bytes.to_vec())),
            _ => head_of(&value).ok_or_else(|| StoreError::Corrupt(key.to_owned()))?,
        };
        let mut whole = Vec::with_capacity(count * MAX_VALUE);
        for index in 0..count {
            if let Some(chunk) = tree.get(self::key(key, index)).map_err(failed)? {
                whole.extend_from_slice(&chunk);
            }
        }
        if Digest::of(&whole) == digest {
            return Ok(Some(whole));
        }
    }
    Err(StoreError::Corrupt(key.to_owned()))
}
