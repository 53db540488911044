//! The bytes of an anchor file: magic, generation, length, checksum, payload; integers little-endian.
//!
//! The checksum covers the generation and the length too, so that a header of one write and a payload of another
//! do not pass for a record.

use super::crc::crc32c;
use super::{AnchorError, AnchorState};

/// Size of each file: the largest record of the core is under 40 KB (see `plimsoll_agent_core::record`), twice that
/// in whole erase blocks of small flash.
pub(super) const FILE_BYTES: usize = 64 * 1024;
const MAGIC: &[u8; 8] = b"PLMANC01";
const HEADER: usize = 8 + 8 + 4 + 4;
/// Most bytes of a record.
pub(super) const MAX_PAYLOAD: usize = FILE_BYTES - HEADER;

/// One whole record.
#[derive(Debug)]
pub(super) struct Frame {
    pub generation: u64,
    pub state: AnchorState,
}

pub(super) fn encode(generation: u64, state: &AnchorState) -> Result<Vec<u8>, AnchorError> {
    let payload = serde_json::to_vec(state).map_err(AnchorError::Encode)?;
    let length = u32::try_from(payload.len()).ok().filter(|n| *n as usize <= MAX_PAYLOAD);
    let length = length.ok_or(AnchorError::TooBig(payload.len()))?;
    let checksum = checksum(generation, length, &payload);
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&generation.to_le_bytes());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes.extend_from_slice(&payload);
    Ok(bytes)
}

/// The record, or nothing when the bytes are not exactly one that was encoded.
pub(super) fn decode(bytes: &[u8]) -> Option<Frame> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (generation, rest) = rest.split_first_chunk()?;
    let (length, rest) = rest.split_first_chunk()?;
    let (expected, rest) = rest.split_first_chunk()?;
    let (generation, length) = (u64::from_le_bytes(*generation), u32::from_le_bytes(*length));
    let payload = rest.get(..length as usize)?;
    if checksum(generation, length, payload) != u32::from_le_bytes(*expected) {
        return None;
    }
    let state = serde_json::from_slice(payload).ok()?;
    Some(Frame { generation, state })
}

fn checksum(generation: u64, length: u32, payload: &[u8]) -> u32 {
    let mut covered = Vec::with_capacity(12 + payload.len());
    covered.extend_from_slice(&generation.to_le_bytes());
    covered.extend_from_slice(&length.to_le_bytes());
    covered.extend_from_slice(payload);
    crc32c(&covered)
}
