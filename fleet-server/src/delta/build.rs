//! Making one delta: which parts of the new file lie where in the old one, and what each block is told as.
//!
//! Memory is bounded by a block, not by the model. Every block is decoded again by the code of the devices before
//! the delta counts as made.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use plimsoll_protocol::delta::{Block, Header, MAX_BLOCK, MAX_BLOCKS, MAX_STORED, Op, Plan, diff};
use ring::digest::{Context, SHA256};

use plimsoll_protocol::Digest;

use super::onnx::{self, Tensor};

/// A delta above this share of the file is dropped: applying it costs a device time and gains nothing.
const WORTH: f64 = 0.9;
/// Compression level. On the planes of retrained FP32 weights level 19 gains 1 % over level 9 and takes ten times as
/// long; on plain bytes it gains as little.
const LEVEL: i32 = 9;
/// Level for planes of one or two bytes: on retrained INT8 and BF16 weights it gains 6 to 24 % over level 9, at half a
/// second of a core for a block. That is paid once, and saved with every device.
const LEVEL_NARROW: i32 = 19;
/// Widths tried for a file of the same size whose structure is unknown (weights beside their ONNX file, say).
const GUESSES: &[u8] = &[4, 2, 1];

/// For what has no elements: differences of single bytes are zero wherever nothing changed.
const BYTES: &[u8] = &[1];

/// What came of a build.
#[derive(Debug)]
pub enum Built {
    /// A file with a delta.
    Delta {
        /// Its digest.
        digest: Digest,
        /// Its bytes.
        size: u64,
    },
    /// There is none that is worth anything; why.
    Worthless(String),
}

/// A stretch of the new file that is told in one way.
struct Stretch {
    start: u64,
    length: u64,
    /// Where it lies in the old file, when that is known or likely.
    old: Option<u64>,
    /// Of its elements; several are tried.
    widths: Vec<u8>,
}

/// Builds the delta between two files into `out`, with `body` as a scratch file.
pub fn build(header: Header, old: &File, new: &File, body: &Path, out: &Path) -> io::Result<Built> {
    let worth = (header.new_size as f64 * WORTH) as u64;
    let mut made = Making {
        old,
        new,
        blocks: Vec::new(),
        body: BufWriter::new(File::options().read(true).write(true).create_new(true).open(body)?),
        stored: 0,
    };
    for stretch in stretches(&header, &onnx::tensors(old)?, &onnx::tensors(new)?) {
        let mut at = 0;
        while at < stretch.length {
            let length = (stretch.length - at).min(MAX_BLOCK as u64);
            made.block(&stretch, at, length as usize)?; // at most MAX_BLOCK
            at += length;
            if made.stored > worth {
                return Ok(Built::Worthless(format!(
                    "it would have more than {worth} bytes, {WORTH} of the file"
                )));
            }
            if made.blocks.len() > MAX_BLOCKS as usize {
                return Ok(Built::Worthless(format!("it would have more than {MAX_BLOCKS} blocks")));
            }
        }
    }
    let Making { blocks, body, .. } = made;
    let plan = Plan::new(header, blocks).map_err(io::Error::other)?;
    if plan.delta_bytes() > worth {
        let why = format!("it would have {} bytes, more than {WORTH} of the file", plan.delta_bytes());
        return Ok(Built::Worthless(why));
    }
    let mut body = body.into_inner().map_err(io::IntoInnerError::into_error)?;
    body.rewind()?;
    let mut out = Hashing { file: File::create_new(out)?, hash: Context::new(&SHA256) };
    out.write_all(&plan.encode())?;
    io::copy(&mut body, &mut out)?;
    out.file.sync_all()?;
    let digest = <[u8; 32]>::try_from(out.hash.finish().as_ref()).map_err(io::Error::other)?;
    Ok(Built::Delta { digest: Digest::from_bytes(digest), size: plan.delta_bytes() })
}

/// Covers the new file from its start to its end.
fn stretches(
    header: &Header,
    old: &BTreeMap<String, Tensor>,
    new: &BTreeMap<String, Tensor>,
) -> Vec<Stretch> {
    if new.is_empty() {
        let same = header.old_size == header.new_size;
        let widths = if same { GUESSES.to_vec() } else { BYTES.to_vec() };
        return vec![Stretch { start: 0, length: header.new_size, old: Some(0), widths }];
    }
    let mut pairs: Vec<(&Tensor, &Tensor)> = new
        .iter()
        .filter_map(|(name, new)| Some((new, old.get(name)?)))
        .filter(|(new, old)| new.length == old.length && new.width == old.width)
        .collect();
    pairs.sort_by_key(|(new, _)| new.start);
    let (mut at, mut old_at, mut list) = (0, 0, Vec::new());
    for (new, old) in pairs {
        if new.start < at {
            continue; // lists that contradict each other: the first one counts
        }
        // What stands between two tensors (names, shapes, the graph) is usually what stood there before.
        list.push(Stretch { start: at, length: new.start - at, old: Some(old_at), widths: BYTES.to_vec() });
        let widths = vec![new.width];
        list.push(Stretch { start: new.start, length: new.length, old: Some(old.start), widths });
        (at, old_at) = (new.start + new.length, old.start + old.length);
    }
    list.push(Stretch { start: at, length: header.new_size - at, old: Some(old_at), widths: BYTES.to_vec() });
    list
}

struct Making<'f> {
    old: &'f File,
    new: &'f File,
    blocks: Vec<Block>,
    body: BufWriter<File>,
    stored: u64,
}

impl Making<'_> {
    /// Tells `length` bytes at `at` of a stretch in the way that takes the fewest bytes.
    fn block(&mut self, stretch: &Stretch, at: u64, length: usize) -> io::Result<()> {
        let mut new = vec![0; length];
        self.new.read_exact_at(&mut new, stretch.start + at)?;
        let (mut op, mut stored) = (Op::Data, Vec::new());
        let place = stretch.old.map(|old| old + at);
        if let Some(place) = place
            && let Some(old) = self.old_bytes(place, length)?
        {
            if old == new {
                self.copy(place, length);
                return Ok(());
            }
            for width in stretch.widths.iter().filter(|w| length.is_multiple_of(usize::from(**w))) {
                let level = if *width <= 2 { LEVEL_NARROW } else { LEVEL };
                let planes = zstd::bulk::compress(&diff(&new, &old, *width), level)?;
                if stored.is_empty() || planes.len() < stored.len() {
                    (op, stored) = (Op::Diff { old: place, width: *width }, planes);
                }
            }
            self.check(op, &old, &stored, &new)?;
        }
        let plain = zstd::bulk::compress(&new, LEVEL)?;
        if stored.is_empty() || plain.len() < stored.len() {
            (op, stored) = (Op::Data, plain);
            self.check(op, &[], &stored, &new)?;
        }
        self.blocks.push(Block { op, output: number(length), stored: number(stored.len()) });
        self.stored += stored.len() as u64;
        self.body.write_all(&stored)
    }

    /// Adds a copy, to the one before when it continues it.
    fn copy(&mut self, place: u64, length: usize) {
        let length = number(length);
        if let Some(Block { op: Op::Copy { old }, output, .. }) = self.blocks.last_mut()
            && *old + u64::from(*output) == place
            && (*output + length) as usize <= MAX_BLOCK
        {
            *output += length;
            return;
        }
        self.blocks.push(Block { op: Op::Copy { old: place }, output: length, stored: 0 });
    }

    fn old_bytes(&self, at: u64, length: usize) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = vec![0; length];
        match self.old.read_exact_at(&mut bytes, at) {
            Ok(()) => Ok(Some(bytes)),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None), // the old file is shorter
            Err(e) => Err(e),
        }
    }

    /// Decodes a block as a device will. A delta that devices cannot read is not offered.
    fn check(&self, op: Op, old: &[u8], stored: &[u8], new: &[u8]) -> io::Result<()> {
        if stored.is_empty() {
            return Ok(()); // none was made
        }
        let block = Block { op, output: number(new.len()), stored: number(stored.len()) };
        let made = block.decode(old, stored).map_err(|why| io::Error::other(format!("a block {why}")))?;
        if made != new || stored.len() > MAX_STORED {
            return Err(io::Error::other("a block does not decode to what was encoded"));
        }
        Ok(())
    }
}

/// Sizes of a block are below 2 MiB.
fn number(size: usize) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}

/// A file that is hashed while it is written.
struct Hashing {
    file: File,
    hash: Context,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
