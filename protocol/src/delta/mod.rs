//! The block delta: a file of a new version, told as differences to a file that the device has.
//!
//! A retrained model shares no byte sequence with its predecessor, so tools that look for equal bytes save nothing.
//! But its tensors have the same names and sizes, and each weight has moved only a little: aligned by name,
//! subtracted and sorted by significance of the bytes, the differences are mostly zeros.
//!
//! ```text
//!   96 bytes       20 bytes a block          stored bytes of the blocks, in order
//! ┌────────┬───────────────────────────┬──────────────────────────────────────────────┐
//! │ header │ index: COPY, DIFF or DATA │ DIFF: zstd of byte planes    DATA: zstd      │
//! └────────┴───────────────────────────┴──────────────────────────────────────────────┘
//! ```
//!
//! Each block makes at most [`MAX_BLOCK`] bytes of the new file and depends on no other block, so memory is bounded
//! and a transfer goes on at any block. The index comes first and says everything about sizes: a [`Plan`] exists
//! only when all of it fits together, so nothing that follows can ask for more memory, read beyond the old file, or
//! write beyond the new one.
//!
//! A delta is transport and is believed in nothing: the signed digest of the result decides. What happens on
//! malice or damage is a [`DeltaError`], after which the file is fetched whole.
//!
//! | part | does |
//! |---|---|
//! | [`Plan`] | header and index, parsed and checked |
//! | [`diff`], [`Block::decode`] | the transformation and its inverse |
//! | [`Reader`] | from bytes as they arrive to blocks, from the start or from the middle (sans-I/O) |

mod block;
mod plan;
mod planes;
mod reader;
#[cfg(test)]
mod tests;

use crate::Digest;

pub use plan::{Block, Header, Op, Plan};
pub use planes::diff;
pub use reader::{Next, Piece, Reader};

/// Where a device asks the server for a delta: followed by `<digest of the old file>/<digest of the new file>`.
pub const PATH: &str = "/deltas/sha256";
/// Most bytes of the new file that one block makes. Old bytes, stored bytes, planes and result of one block are
/// held together: 4 MiB, which leaves half of the 8 MiB that a device has for an update.
pub const MAX_BLOCK: usize = 1024 * 1024;
/// Most bytes of a stored block: zstd adds 3 bytes to each 128 KiB that do not shrink and up to 18 for its frame, 42
/// in all; a hundred times that.
pub const MAX_STORED: usize = MAX_BLOCK + 4096;
/// Most blocks: the 4 GiB of the largest file make 4,096, eight times as many leave room for small tensors. The
/// index then has 640 KiB.
pub const MAX_BLOCKS: u32 = 32 * 1024;
/// Bytes of the header.
pub const HEADER: usize = 96;
/// Bytes of the index for a block.
pub const ENTRY: usize = 20;

/// What is wrong with a delta. The remedy is always the same: fetch the file whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeltaError {
    /// Not this format, or a later one.
    #[error("it is not a block delta of format 1")]
    Format,
    /// Made for other files.
    #[error("it makes {new} from {old}, which is not what was asked for", new = .new.short(), old = .old.short())]
    Foreign {
        /// From.
        old: Digest,
        /// To.
        new: Digest,
    },
    /// The sizes in it contradict the signed ones.
    #[error("it speaks of {got} bytes of the {which} file, which has {expected}")]
    Size {
        /// `old` or `new`.
        which: &'static str,
        /// In the delta.
        got: u64,
        /// Known.
        expected: u64,
    },
    /// More than [`MAX_BLOCKS`].
    #[error("it has {0} blocks; at most {MAX_BLOCKS} are allowed")]
    TooMany(u32),
    /// A block that cannot be.
    #[error("its block {number} {why}")]
    Block {
        /// From 0.
        number: usize,
        /// What is wrong.
        why: &'static str,
    },
    /// The blocks make another number of bytes than the header says.
    #[error("its blocks make {made} bytes of a file of {expected}")]
    Sum {
        /// By the blocks.
        made: u64,
        /// By the header.
        expected: u64,
    },
}
