//! From the stored bytes of a block and the old file to bytes of the new one.

use std::io::Read;

use super::planes::undo;
use super::{Block, Op};

/// First bytes of a zstd frame.
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

impl Block {
    /// Makes this block's part of the new file, exactly [`Block::output`] bytes. `old` is the range that
    /// [`Block::source`] names (empty for none), `stored` its bytes in the delta. The error says what does not fit.
    pub fn decode(&self, old: &[u8], stored: &[u8]) -> Result<Vec<u8>, &'static str> {
        if self.source().is_some_and(|(_, length)| old.len() != length as usize) {
            return Err("was given another part of the old file");
        }
        match self.op {
            Op::Copy { .. } => Ok(old.to_vec()),
            Op::Diff { width, .. } => Ok(undo(&inflate(stored, self.output)?, old, width)),
            Op::Data => inflate(stored, self.output),
        }
    }
}

/// Decompresses exactly `size` bytes. Only frames that say this size, and that need no window beyond it, are read: so
/// what a frame can make a device allocate is bounded before anything is decompressed.
fn inflate(stored: &[u8], size: u32) -> Result<Vec<u8>, &'static str> {
    if declared(stored) != Some(u64::from(size)) {
        return Err("is no zstd frame of the size that the index says");
    }
    let broken = "cannot be decompressed";
    let mut frame = ruzstd::decoding::StreamingDecoder::new(stored).map_err(|_| broken)?;
    let mut bytes = Vec::with_capacity(size as usize);
    frame.by_ref().take(u64::from(size) + 1).read_to_end(&mut bytes).map_err(|_| broken)?;
    if bytes.len() != size as usize {
        return Err("decompresses to another size");
    }
    if frame.get_ref().is_empty() { Ok(bytes) } else { Err("has bytes after its frame") }
}

/// The content size of a single-segment frame without a dictionary (RFC 8878, 3.1.1.1), or nothing.
fn declared(frame: &[u8]) -> Option<u64> {
    let (descriptor, rest) = frame.strip_prefix(&ZSTD)?.split_first()?;
    let (single_segment, dictionary, reserved) = (descriptor & 0x20 != 0, descriptor & 3, descriptor & 8);
    if !single_segment || dictionary != 0 || reserved != 0 {
        return None;
    }
    let field = |n: usize| {
        let mut bytes = [0; 8];
        bytes[..n].copy_from_slice(rest.get(..n)?);
        Some(u64::from_le_bytes(bytes))
    };
    match descriptor >> 6 {
        0 => field(1),
        1 => field(2).map(|size| size + 256),
        2 => field(4),
        _ => field(8),
    }
}
