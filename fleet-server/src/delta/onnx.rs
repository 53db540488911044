//! Where the tensors of an ONNX file lie, by name.
//!
//! A walk over the protobuf wire format, not a parse: of a model of gigabytes only the framing is read, and nothing of
//! the graph is understood but `ModelProto.graph.initializer`. A file that does not walk is not an error, it merely
//! has no tensors that we know of.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Most tensors looked at: the largest public models have some thousands.
const MAX_TENSORS: usize = 100_000;
/// Longest name of a tensor; exporters make paths of module names, far below this.
const MAX_NAME: u64 = 4096;
/// Read at once while walking: a tensor's framing is about 60 bytes, and the walk jumps over its weights.
const READ: usize = 512;

/// The weights of one initialiser.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tensor {
    /// First byte in the file.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// Bytes of an element: 1, 2, 4 or 8.
    pub width: u8,
}

/// The initialisers whose weights lie in the file as fixed-width elements, by name. Empty for what is no ONNX file.
pub(super) fn tensors(file: &File) -> io::Result<BTreeMap<String, Tensor>> {
    let end = file.metadata()?.len();
    let mut walk = Walk { file, buffer: Vec::new(), at: 0 };
    let mut found = BTreeMap::new();
    match walk.model(0, end, &mut found) {
        Ok(()) => Ok(found),
        Err(Stop::NoModel) => Ok(BTreeMap::new()),
        Err(Stop::Io(error)) => Err(error),
    }
}

enum Stop {
    /// The bytes are not what they would be in a model.
    NoModel,
    Io(io::Error),
}

/// A field: its number, and its payload when it has a length, or its value.
struct Field {
    number: u64,
    payload: Option<(u64, u64)>,
    value: u64,
}

/// Reads the file through a small window.
struct Walk<'f> {
    file: &'f File,
    buffer: Vec<u8>,
    /// In the file, of the first byte of the buffer.
    at: u64,
}

impl Walk<'_> {
    fn model(&mut self, start: u64, end: u64, found: &mut BTreeMap<String, Tensor>) -> Result<(), Stop> {
        self.fields(start, end, |walk, field| match (field.number, field.payload) {
            (7, Some((start, end))) => walk.graph(start, end, found),
            _ => Ok(()),
        })
    }

    fn graph(&mut self, start: u64, end: u64, found: &mut BTreeMap<String, Tensor>) -> Result<(), Stop> {
        self.fields(start, end, |walk, field| {
            if let (5, Some((start, end))) = (field.number, field.payload) {
                if found.len() >= MAX_TENSORS {
                    return Err(Stop::NoModel);
                }
                if let Some((name, tensor)) = walk.tensor(start, end)? {
                    found.insert(name, tensor);
                }
            }
            Ok(())
        })
    }

    /// `TensorProto`: its name, and its weights when they lie here in one piece.
    fn tensor(&mut self, start: u64, end: u64) -> Result<Option<(String, Tensor)>, Stop> {
        let (mut name, mut kind, mut weights) = (None, 0, None);
        self.fields(start, end, |walk, field| {
            match (field.number, field.payload) {
                (2, None) => kind = field.value,
                (8, Some((start, end))) if end - start <= MAX_NAME => name = Some(walk.text(start, end)?),
                // float_data and double_data are packed; the other lists are varints, which have no fixed width.
                (4, Some(range)) => weights = Some((range, 4)),
                (10, Some(range)) => weights = Some((range, 8)),
                (9, Some(range)) => weights = Some((range, 0)),
                _ => {}
            }
            Ok(())
        })?;
        let (Some(name), Some(((start, end), width))) = (name, weights) else { return Ok(None) };
        let length = end - start;
        let width = if width == 0 { width_of(kind) } else { width };
        let width = if length.is_multiple_of(u64::from(width)) { width } else { 1 };
        Ok((length > 0).then_some((name, Tensor { start, length, width })))
    }

    fn fields(
        &mut self,
        start: u64,
        end: u64,
        mut each: impl FnMut(&mut Self, Field) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        let mut at = start;
        while at < end {
            let (key, after) = self.varint(at, end)?;
            let (number, wire) = (key >> 3, key & 7);
            let (field, next) = match wire {
                0 => {
                    let (value, next) = self.varint(after, end)?;
                    (Field { number, payload: None, value }, next)
                }
                1 => (Field { number: 0, payload: None, value: 0 }, after + 8),
                2 => {
                    let (length, start) = self.varint(after, end)?;
                    let next = start.checked_add(length).ok_or(Stop::NoModel)?;
                    (Field { number, payload: Some((start, next)), value: 0 }, next)
                }
                5 => (Field { number: 0, payload: None, value: 0 }, after + 4),
                _ => return Err(Stop::NoModel),
            };
            if number == 0 || next > end {
                return Err(Stop::NoModel);
            }
            each(self, field)?;
            at = next;
        }
        Ok(())
    }

    fn varint(&mut self, at: u64, end: u64) -> Result<(u64, u64), Stop> {
        let mut value = 0_u64;
        for n in 0..10_u32 {
            let place = at + u64::from(n);
            if place >= end {
                return Err(Stop::NoModel);
            }
            let byte = self.byte(place)?;
            value |= u64::from(byte & 0x7f).checked_shl(7 * n).unwrap_or(0);
            if byte < 0x80 {
                return Ok((value, place + 1));
            }
        }
        Err(Stop::NoModel)
    }

    fn byte(&mut self, at: u64) -> Result<u8, Stop> {
        let inside = at.checked_sub(self.at).and_then(|n| self.buffer.get(usize::try_from(n).ok()?).copied());
        if let Some(byte) = inside {
            return Ok(byte);
        }
        let mut buffer = vec![0; READ];
        let read = self.file.read_at(&mut buffer, at).map_err(Stop::Io)?;
        buffer.truncate(read);
        (self.buffer, self.at) = (buffer, at);
        self.buffer.first().copied().ok_or(Stop::NoModel)
    }

    fn text(&mut self, start: u64, end: u64) -> Result<String, Stop> {
        // At most MAX_NAME, by the caller.
        let mut bytes = vec![0; usize::try_from(end - start).unwrap_or(0)];
        self.file.read_exact_at(&mut bytes, start).map_err(Stop::Io)?;
        String::from_utf8(bytes).map_err(|_| Stop::NoModel)
    }
}

/// Bytes of an element of a `TensorProto.DataType`; 1 for what is unknown, which is only less tight.
const fn width_of(data_type: u64) -> u8 {
    match data_type {
        4 | 5 | 10 | 16 => 2,  // uint16, int16, float16, bfloat16
        1 | 6 | 12 | 14 => 4,  // float, int32, uint32, complex64 (two floats)
        7 | 11 | 13 | 15 => 8, // int64, double, uint64, complex128 (two doubles)
        _ => 1,
    }
}
