//! Header and index: from bytes to a plan in which everything fits, and back.

use super::{DeltaError, ENTRY, HEADER, MAX_BLOCK, MAX_BLOCKS, MAX_STORED};
use crate::Digest;

/// First bytes of every delta; the last of them is the version of the format.
const MAGIC: [u8; 8] = *b"PLDELTA\x01";

/// Which file from which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// SHA-256 of the file that the device has.
    pub old: Digest,
    /// SHA-256 of the file that results.
    pub new: Digest,
    /// Bytes of the old file.
    pub old_size: u64,
    /// Bytes of the new file.
    pub new_size: u64,
}

/// How a block is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Bytes of the old file, as they are.
    Copy {
        /// First byte in the old file.
        old: u64,
    },
    /// Bytes of the old file, plus differences.
    Diff {
        /// First byte in the old file.
        old: u64,
        /// Bytes of an element: 1, 2, 4 or 8.
        width: u8,
    },
    /// Compressed bytes that owe nothing to the old file.
    Data,
}

/// One block of the new file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// How it is made.
    pub op: Op,
    /// Bytes of the new file that it makes.
    pub output: u32,
    /// Bytes that it takes in the delta.
    pub stored: u32,
}

/// Header and index, checked: sizes add up, and no block reads beyond the old file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    header: Header,
    blocks: Vec<Block>,
}

impl Header {
    /// Reads the first [`HEADER`] bytes; also says how many blocks follow.
    pub fn parse(bytes: &[u8; HEADER]) -> Result<(Self, u32), DeltaError> {
        let mut fields = Fields(bytes);
        if fields.take::<8>() != MAGIC {
            return Err(DeltaError::Format);
        }
        let (old, new) = (Digest::from_bytes(fields.take()), Digest::from_bytes(fields.take()));
        let (old_size, new_size) = (fields.u64(), fields.u64());
        let (blocks, reserved) = (fields.u32(), fields.u32());
        if reserved != 0 {
            return Err(DeltaError::Format);
        }
        if blocks > MAX_BLOCKS {
            return Err(DeltaError::TooMany(blocks));
        }
        Ok((Self { old, new, old_size, new_size }, blocks))
    }
}

impl Plan {
    /// Takes blocks that an encoder made. The same checks as for one that arrives.
    pub fn new(header: Header, blocks: Vec<Block>) -> Result<Self, DeltaError> {
        let count = u32::try_from(blocks.len()).unwrap_or(u32::MAX);
        if count > MAX_BLOCKS {
            return Err(DeltaError::TooMany(count));
        }
        let mut made = 0;
        for (number, block) in blocks.iter().enumerate() {
            block.check(header.old_size).map_err(|why| DeltaError::Block { number, why })?;
            made += u64::from(block.output); // 32 Ki blocks of 1 MiB: far from overflow
        }
        if made != header.new_size {
            return Err(DeltaError::Sum { made, expected: header.new_size });
        }
        Ok(Self { header, blocks })
    }

    /// Reads an index.
    pub fn parse(header: Header, index: &[u8]) -> Result<Self, DeltaError> {
        let entries = index.chunks_exact(ENTRY).enumerate();
        let blocks = entries.map(|(number, entry)| {
            Block::parse(entry).ok_or(DeltaError::Block { number, why: "is of no known kind" })
        });
        Self::new(header, blocks.collect::<Result<_, _>>()?)
    }

    /// Which file from which.
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// The blocks, in the order of the new file and of the delta.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Bytes of header and index: where the first stored block begins.
    pub const fn head_bytes(&self) -> u64 {
        (HEADER + ENTRY * self.blocks.len()) as u64
    }

    /// Bytes of the whole delta.
    pub fn delta_bytes(&self) -> u64 {
        self.head_bytes() + self.blocks.iter().map(|b| u64::from(b.stored)).sum::<u64>()
    }

    /// Header and index as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let Header { old, new, old_size, new_size } = &self.header;
        let mut bytes = Vec::with_capacity(HEADER + ENTRY * self.blocks.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(old.as_bytes());
        bytes.extend_from_slice(new.as_bytes());
        bytes.extend_from_slice(&old_size.to_le_bytes());
        bytes.extend_from_slice(&new_size.to_le_bytes());
        bytes.extend_from_slice(&(self.blocks.len() as u32).to_le_bytes()); // at most MAX_BLOCKS, by `new`
        bytes.extend_from_slice(&[0; 4]);
        for block in &self.blocks {
            let (kind, width, old) = match block.op {
                Op::Copy { old } => (0, 0, old),
                Op::Diff { old, width } => (1, width, old),
                Op::Data => (2, 0, 0),
            };
            bytes.extend_from_slice(&[kind, width, 0, 0]);
            bytes.extend_from_slice(&block.output.to_le_bytes());
            bytes.extend_from_slice(&block.stored.to_le_bytes());
            bytes.extend_from_slice(&old.to_le_bytes());
        }
        bytes
    }
}

impl Block {
    fn parse(entry: &[u8]) -> Option<Self> {
        let mut fields = Fields(entry);
        let [kind, width, 0, 0] = fields.take() else { return None };
        let (output, stored, old) = (fields.u32(), fields.u32(), fields.u64());
        let op = match (kind, width, old) {
            (0, 0, old) => Op::Copy { old },
            (1, width, old) => Op::Diff { old, width },
            (2, 0, 0) => Op::Data,
            _ => return None,
        };
        Some(Self { op, output, stored })
    }

    /// Bytes of the old file that it needs: first and how many.
    pub const fn source(&self) -> Option<(u64, u32)> {
        match self.op {
            Op::Copy { old } | Op::Diff { old, .. } => Some((old, self.output)),
            Op::Data => None,
        }
    }

    fn check(&self, old_size: u64) -> Result<(), &'static str> {
        if self.output == 0 || self.output as usize > MAX_BLOCK {
            return Err("makes no byte, or more than a block may");
        }
        let stores = self.stored != 0;
        if self.stored as usize > MAX_STORED || stores == matches!(self.op, Op::Copy { .. }) {
            return Err("stores a number of bytes that it cannot need");
        }
        if let Op::Diff { width, .. } = self.op
            && (!matches!(width, 1 | 2 | 4 | 8) || !self.output.is_multiple_of(u32::from(width)))
        {
            return Err("has elements of a width that does not divide it");
        }
        match self.source() {
            Some((first, length))
                if first.checked_add(u64::from(length)).is_none_or(|end| end > old_size) =>
            {
                Err("reads beyond the old file")
            }
            _ => Ok(()),
        }
    }
}

/// Little-endian fields of bytes whose number was checked; past their end it reads zeros.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let Some((field, rest)) = self.0.split_first_chunk::<N>() else { return [0; N] };
        self.0 = rest;
        *field
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}
