//! A plain tensor: a shape and a vector of one type. No engine's type crosses this crate's face, so a second engine
//! can stand behind the same calls.

use plimsoll_protocol::bundle::{DataType, MAX_ELEMENTS};
use tract_onnx::prelude::tract_data::prelude::f16;

/// A dense row-major tensor. Shape and number of elements agree: [`Tensor::new`] is the only way in.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    shape: Vec<usize>,
    data: Data,
}

/// The elements, in row-major order.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // the names are the protocol's own
pub enum Data {
    Bool(Vec<bool>),
    Uint8(Vec<u8>),
    Uint16(Vec<u16>),
    Uint32(Vec<u32>),
    Uint64(Vec<u64>),
    Int8(Vec<i8>),
    Int16(Vec<i16>),
    Int32(Vec<i32>),
    Int64(Vec<i64>),
    /// As bits, so that no caller needs a half-precision type.
    Fp16(Vec<u16>),
    /// As bits: the upper half of an FP32.
    Bf16(Vec<u16>),
    Fp32(Vec<f32>),
    Fp64(Vec<f64>),
    /// Each element a text or any bytes.
    Bytes(Vec<Vec<u8>>),
}

/// Runs `$body` with `$v` bound to the vector inside, whatever its type.
macro_rules! each {
    ($data:expr, $v:ident => $body:expr) => {
        match $data {
            Data::Bool($v) => $body,
            Data::Uint8($v) => $body,
            Data::Uint16($v) => $body,
            Data::Uint32($v) => $body,
            Data::Uint64($v) => $body,
            Data::Int8($v) => $body,
            Data::Int16($v) => $body,
            Data::Int32($v) => $body,
            Data::Int64($v) => $body,
            Data::Fp16($v) => $body,
            Data::Bf16($v) => $body,
            Data::Fp32($v) => $body,
            Data::Fp64($v) => $body,
            Data::Bytes($v) => $body,
        }
    };
}

impl Data {
    /// Number of elements.
    pub fn len(&self) -> usize {
        each!(self, v => v.len())
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Type of the elements.
    pub const fn datatype(&self) -> DataType {
        match self {
            Self::Bool(_) => DataType::Bool,
            Self::Uint8(_) => DataType::Uint8,
            Self::Uint16(_) => DataType::Uint16,
            Self::Uint32(_) => DataType::Uint32,
            Self::Uint64(_) => DataType::Uint64,
            Self::Int8(_) => DataType::Int8,
            Self::Int16(_) => DataType::Int16,
            Self::Int32(_) => DataType::Int32,
            Self::Int64(_) => DataType::Int64,
            Self::Fp16(_) => DataType::Fp16,
            Self::Bf16(_) => DataType::Bf16,
            Self::Fp32(_) => DataType::Fp32,
            Self::Fp64(_) => DataType::Fp64,
            Self::Bytes(_) => DataType::Bytes,
        }
    }
}

/// Elements of a shape, or `None` when they are more than [`MAX_ELEMENTS`].
pub fn element_count(shape: &[usize]) -> Option<usize> {
    // A zero anywhere makes the tensor empty, whatever the other dimensions are.
    if shape.contains(&0) {
        return Some(0);
    }
    let count = shape.iter().try_fold(1u64, |all, dim| all.checked_mul(*dim as u64))?;
    (count <= MAX_ELEMENTS).then_some(count as usize)
}

impl Tensor {
    /// A tensor whose shape and elements agree; otherwise says how they do not.
    pub fn new(shape: Vec<usize>, data: Data) -> Result<Self, String> {
        let Some(expected) = element_count(&shape) else {
            return Err(format!("shape {shape:?} has more than {MAX_ELEMENTS} elements"));
        };
        if expected != data.len() {
            return Err(format!("shape {shape:?} has {expected} elements, but the data has {}", data.len()));
        }
        Ok(Self { shape, data })
    }

    /// A tensor whose parts came out of one that agreed.
    pub(crate) const fn of(shape: Vec<usize>, data: Data) -> Self {
        Self { shape, data }
    }
    /// No element; stands in for a tensor that is being changed.
    pub(crate) const fn empty() -> Self {
        Self { shape: Vec::new(), data: Data::Fp32(Vec::new()) }
    }

    /// Dimensions.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }
    /// Elements.
    pub const fn data(&self) -> &Data {
        &self.data
    }
    /// Type of the elements.
    pub const fn datatype(&self) -> DataType {
        self.data.datatype()
    }
    /// FP32 rounded to BF16; another datatype stays as it is.
    pub fn into_bf16(self) -> Self {
        match self.data {
            Data::Fp32(v) => {
                Self { shape: self.shape, data: Data::Bf16(v.into_iter().map(bf16_bits).collect()) }
            }
            data => Self { shape: self.shape, data },
        }
    }
    /// Takes it apart.
    pub fn into_parts(self) -> (Vec<usize>, Data) {
        (self.shape, self.data)
    }
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.data.len()
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }
    /// Rows: the first dimension, 1 for a scalar.
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Every element as a float, in order. BYTES have no number and become NaN; a 64-bit integer above 2^24 is
    /// rounded, which bins and steps do not mind.
    pub fn to_f32(&self) -> Vec<f32> {
        match &self.data {
            Data::Bool(v) => v.iter().map(|x| f32::from(u8::from(*x))).collect(),
            Data::Uint8(v) => v.iter().map(|x| f32::from(*x)).collect(),
            Data::Uint16(v) => v.iter().map(|x| f32::from(*x)).collect(),
            Data::Uint32(v) => v.iter().map(|x| *x as f32).collect(),
            Data::Uint64(v) => v.iter().map(|x| *x as f32).collect(),
            Data::Int8(v) => v.iter().map(|x| f32::from(*x)).collect(),
            Data::Int16(v) => v.iter().map(|x| f32::from(*x)).collect(),
            Data::Int32(v) => v.iter().map(|x| *x as f32).collect(),
            Data::Int64(v) => v.iter().map(|x| *x as f32).collect(),
            Data::Fp16(v) => v.iter().map(|x| f16::from_bits(*x).to_f32()).collect(),
            Data::Bf16(v) => v.iter().map(|x| bf16_value(*x)).collect(),
            Data::Fp32(v) => v.clone(),
            Data::Fp64(v) => v.iter().map(|x| *x as f32).collect(),
            Data::Bytes(v) => vec![f32::NAN; v.len()],
        }
    }

    /// One element as a float, for comparisons; NaN for BYTES and outside.
    pub fn at(&self, index: usize) -> f64 {
        let value = match &self.data {
            Data::Bool(v) => v.get(index).map(|x| f64::from(u8::from(*x))),
            Data::Uint8(v) => v.get(index).map(|x| f64::from(*x)),
            Data::Uint16(v) => v.get(index).map(|x| f64::from(*x)),
            Data::Uint32(v) => v.get(index).map(|x| f64::from(*x)),
            Data::Uint64(v) => v.get(index).map(|x| *x as f64),
            Data::Int8(v) => v.get(index).map(|x| f64::from(*x)),
            Data::Int16(v) => v.get(index).map(|x| f64::from(*x)),
            Data::Int32(v) => v.get(index).map(|x| f64::from(*x)),
            Data::Int64(v) => v.get(index).map(|x| *x as f64),
            Data::Fp16(v) => v.get(index).map(|x| f16::from_bits(*x).to_f64()),
            Data::Bf16(v) => v.get(index).map(|x| f64::from(bf16_value(*x))),
            Data::Fp32(v) => v.get(index).map(|x| f64::from(*x)),
            Data::Fp64(v) => v.get(index).copied(),
            Data::Bytes(_) => None,
        };
        value.unwrap_or(f64::NAN)
    }

    /// The elements as little-endian bytes; BYTES as u32 length and bytes each.
    pub fn to_le_bytes(&self) -> Vec<u8> {
        fn flat<const N: usize, T: Copy>(v: &[T], f: impl Fn(T) -> [u8; N]) -> Vec<u8> {
            let mut out = Vec::with_capacity(v.len() * N);
            v.iter().for_each(|x| out.extend_from_slice(&f(*x)));
            out
        }
        match &self.data {
            Data::Bool(v) => v.iter().map(|x| u8::from(*x)).collect(),
            Data::Uint8(v) => v.clone(),
            Data::Uint16(v) | Data::Fp16(v) | Data::Bf16(v) => flat(v, u16::to_le_bytes),
            Data::Uint32(v) => flat(v, u32::to_le_bytes),
            Data::Uint64(v) => flat(v, u64::to_le_bytes),
            Data::Int8(v) => flat(v, i8::to_le_bytes),
            Data::Int16(v) => flat(v, i16::to_le_bytes),
            Data::Int32(v) => flat(v, i32::to_le_bytes),
            Data::Int64(v) => flat(v, i64::to_le_bytes),
            Data::Fp32(v) => flat(v, f32::to_le_bytes),
            Data::Fp64(v) => flat(v, f64::to_le_bytes),
            Data::Bytes(v) => {
                let mut out = Vec::with_capacity(v.iter().map(|x| x.len() + 4).sum());
                for x in v {
                    out.extend_from_slice(&(x.len() as u32).to_le_bytes());
                    out.extend_from_slice(x);
                }
                out
            }
        }
    }

    /// Reads what [`Tensor::to_le_bytes`] writes; the error says how length and shape disagree.
    pub fn from_le_bytes(datatype: DataType, shape: Vec<usize>, bytes: &[u8]) -> Result<Self, String> {
        let count = element_count(&shape)
            .ok_or_else(|| format!("shape {shape:?} has more than {MAX_ELEMENTS} elements"))?;
        if let Some(width) = datatype.width()
            && bytes.len() != count * width
        {
            return Err(format!(
                "shape {shape:?} of {} needs {} bytes, but there are {}",
                datatype.as_str(),
                count * width,
                bytes.len()
            ));
        }
        fn flat<const N: usize, T>(bytes: &[u8], f: impl Fn([u8; N]) -> T) -> Vec<T> {
            bytes.as_chunks::<N>().0.iter().map(|chunk| f(*chunk)).collect()
        }
        let data = match datatype {
            DataType::Bool => Data::Bool(bytes.iter().map(|b| *b != 0).collect()),
            DataType::Uint8 => Data::Uint8(bytes.to_vec()),
            DataType::Uint16 => Data::Uint16(flat(bytes, u16::from_le_bytes)),
            DataType::Uint32 => Data::Uint32(flat(bytes, u32::from_le_bytes)),
            DataType::Uint64 => Data::Uint64(flat(bytes, u64::from_le_bytes)),
            DataType::Int8 => Data::Int8(flat(bytes, i8::from_le_bytes)),
            DataType::Int16 => Data::Int16(flat(bytes, i16::from_le_bytes)),
            DataType::Int32 => Data::Int32(flat(bytes, i32::from_le_bytes)),
            DataType::Int64 => Data::Int64(flat(bytes, i64::from_le_bytes)),
            DataType::Fp16 => Data::Fp16(flat(bytes, u16::from_le_bytes)),
            DataType::Bf16 => Data::Bf16(flat(bytes, u16::from_le_bytes)),
            DataType::Fp32 => Data::Fp32(flat(bytes, f32::from_le_bytes)),
            DataType::Fp64 => Data::Fp64(flat(bytes, f64::from_le_bytes)),
            DataType::Bytes => Data::Bytes(split_lengths(bytes)?),
        };
        Self::new(shape, data)
    }

    /// Rows `from .. to` along the first axis.
    pub fn slice_rows(&self, from: usize, to: usize) -> Result<Self, String> {
        if self.shape.is_empty() || from > to || to > self.rows() {
            return Err(format!("rows {from}..{to} are not in shape {:?}", self.shape));
        }
        let row = self.len() / self.rows().max(1);
        let mut shape = self.shape.clone();
        shape[0] = to - from;
        let (a, b) = (from * row, to * row);
        macro_rules! cut {
            ($($kind:ident),*) => {
                match &self.data { $(Data::$kind(v) => Data::$kind(v[a..b].to_vec()),)* }
            };
        }
        let data = cut!(
            Bool, Uint8, Uint16, Uint32, Uint64, Int8, Int16, Int32, Int64, Fp16, Bf16, Fp32, Fp64, Bytes
        );
        Self::new(shape, data)
    }
}

/// Half-precision bits of a number.
pub fn f16_bits(value: f32) -> u16 {
    f16::from_f32(value).to_bits()
}

/// The number that half-precision bits stand for.
pub fn f16_value(bits: u16) -> f32 {
    f16::from_bits(bits).to_f32()
}

/// bfloat16 bits of a number: the upper half of its FP32, rounded to the nearest, ties to even.
pub const fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40; // quiet, so that cutting its low half does not make an infinity of it
    }
    let rounding = 0x7fff + ((bits >> 16) & 1);
    ((bits + rounding) >> 16) as u16 // the largest finite FP32 rounds to infinity, and the sum stays in 32 bits
}

/// The number that bfloat16 bits stand for.
pub const fn bf16_value(bits: u16) -> f32 {
    f32::from_bits((bits as u32) << 16)
}

fn split_lengths(mut bytes: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_first_chunk::<4>().ok_or("a BYTES element has no length")?;
        let length = u32::from_le_bytes(*length) as usize;
        let (element, rest) = rest
            .split_at_checked(length)
            .ok_or_else(|| format!("a BYTES element says {length} bytes, {} are left", rest.len()))?;
        out.push(element.to_vec());
        bytes = rest;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_datatype_survives_its_bytes() {
        for data in [
            Data::Bool(vec![true, false]),
            Data::Uint8(vec![0, 255]),
            Data::Uint16(vec![0, 65_535]),
            Data::Uint32(vec![1, u32::MAX]),
            Data::Uint64(vec![1, u64::MAX]),
            Data::Int8(vec![-128, 127]),
            Data::Int16(vec![-2, 3]),
            Data::Int32(vec![i32::MIN, 7]),
            Data::Int64(vec![i64::MIN, 7]),
            Data::Fp16(vec![f16_bits(1.5), f16_bits(-2.0)]),
            Data::Bf16(vec![bf16_bits(1.5), bf16_bits(-2.0)]),
            Data::Fp32(vec![1.5, f32::INFINITY]),
            Data::Fp64(vec![-0.0, 1e300]),
            Data::Bytes(vec![b"a".to_vec(), vec![]]),
        ] {
            let tensor = Tensor::new(vec![2, 1], data).unwrap();
            let back = Tensor::from_le_bytes(tensor.datatype(), vec![2, 1], &tensor.to_le_bytes()).unwrap();
            assert_eq!(back, tensor);
            assert_eq!(tensor.slice_rows(1, 2).unwrap().shape(), [1, 1]);
        }
    }

    #[test]
    fn bfloat16_rounds_to_the_nearest_and_keeps_what_is_no_number() {
        // Bits as IEEE 754's round-to-nearest-even gives them.
        for (value, bits) in [
            (1.0_f32, 0x3f80),
            (-2.0, 0xc000),
            (3.140_625, 0x4049),
            (f32::from_bits(0x3f80_8000), 0x3f80), // a tie goes to the even one below
            (f32::from_bits(0x3f81_8000), 0x3f82), // and to the even one above
            (f32::from_bits(0x3f80_8001), 0x3f81),
            (f32::MAX, 0x7f80),
            (f32::NEG_INFINITY, 0xff80),
            (0.0, 0x0000),
            (-0.0, 0x8000),
        ] {
            assert_eq!(bf16_bits(value), bits, "{value:?}");
        }
        assert_eq!(bf16_value(0x4049), 3.140_625);
        assert!(bf16_value(bf16_bits(f32::NAN)).is_nan());
        assert!(
            bf16_value(bf16_bits(f32::from_bits(0x7f80_0001))).is_nan(),
            "NaN whose bits are all in its low half"
        );
    }

    #[test]
    fn a_shape_that_lies_is_refused() {
        assert!(Tensor::new(vec![3], Data::Fp32(vec![1.0])).is_err());
        assert!(Tensor::new(vec![usize::MAX, usize::MAX], Data::Fp32(vec![])).is_err());
        assert!(Tensor::new(vec![usize::MAX, 0], Data::Fp32(vec![])).is_ok());
        assert!(Tensor::from_le_bytes(DataType::Fp32, vec![2], &[0; 7]).is_err());
        assert!(Tensor::from_le_bytes(DataType::Bytes, vec![1], &[255, 255, 255, 255, 0]).is_err());
        assert!(Tensor::from_le_bytes(DataType::Bytes, vec![1], &[1, 0]).is_err());
        assert!(Tensor::from_le_bytes(DataType::Bytes, vec![2], &[1, 0, 0, 0, 65]).is_err());
    }
}
