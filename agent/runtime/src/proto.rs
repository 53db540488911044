//! ONNX `TensorProto` files, the form of golden samples: `test_data_set_0/input_0.pb`, as every ONNX tool writes.

use std::path::Path;

use plimsoll_protocol::bundle::DataType;
use prost::Message;
use tract_onnx::pb::TensorProto;
use tract_onnx::pb::tensor_proto::{DataLocation, DataType as OnnxType};

use crate::error::RuntimeError;
use crate::tensor::{Data, Tensor};

/// Largest golden file: a 64-row batch of 3 x 1024 x 1024 FP32 pixels is 768 MiB, and no sample needs that; 256 MiB
/// is held in memory twice while it is compared.
pub const MAX_TENSOR_FILE: u64 = 256 * 1024 * 1024;

/// Reads a `TensorProto` file; returns the tensor and the name inside (often empty).
pub fn read_tensor(path: &Path) -> Result<(String, Tensor), RuntimeError> {
    let io = |source| RuntimeError::Io { path: path.to_owned(), source };
    let size = std::fs::metadata(path).map_err(io)?.len();
    if size > MAX_TENSOR_FILE {
        return Err(RuntimeError::Refused(format!(
            "{} has {size} bytes; a golden tensor has at most {MAX_TENSOR_FILE}",
            path.display()
        )));
    }
    decode_tensor(&std::fs::read(path).map_err(io)?)
        .map_err(|why| RuntimeError::Malformed { what: path.display().to_string(), why })
}

/// The bytes of a `TensorProto` file.
pub fn encode_tensor(name: &str, tensor: &Tensor) -> Vec<u8> {
    let mut proto = TensorProto {
        name: name.to_owned(),
        dims: tensor.shape().iter().map(|d| *d as i64).collect(),
        data_type: onnx_type(tensor.datatype()) as i32,
        ..TensorProto::default()
    };
    match tensor.data() {
        Data::Bytes(texts) => proto.string_data = texts.clone(),
        _ => proto.raw_data = tensor.to_le_bytes(),
    }
    proto.encode_to_vec()
}

/// Reads the bytes of a `TensorProto`; the error says what is wrong.
pub fn decode_tensor(bytes: &[u8]) -> Result<(String, Tensor), String> {
    let proto = TensorProto::decode(bytes).map_err(|e| e.to_string())?;
    if proto.data_location == Some(DataLocation::External as i32) {
        return Err("its data is in another file; a golden tensor carries its own".into());
    }
    let datatype = our_type(proto.data_type)?;
    let shape = proto
        .dims
        .iter()
        .map(|d| usize::try_from(*d).map_err(|_| format!("dimension {d} is negative")))
        .collect::<Result<Vec<_>, _>>()?;
    let tensor = if !proto.raw_data.is_empty() {
        if datatype == DataType::Bytes {
            return Err("strings cannot be in raw_data".into());
        }
        Tensor::from_le_bytes(datatype, shape, &proto.raw_data)?
    } else {
        Tensor::new(shape, typed_fields(datatype, &proto))?
    };
    Ok((proto.name, tensor))
}

/// The field that ONNX prescribes for each type. Narrow integers travel in `int32_data`; what does not fit its
/// type is cut, as every reader of ONNX does.
fn typed_fields(datatype: DataType, p: &TensorProto) -> Data {
    let ints = || p.int32_data.iter();
    match datatype {
        DataType::Bool => Data::Bool(ints().map(|x| *x != 0).collect()),
        DataType::Uint8 => Data::Uint8(ints().map(|x| *x as u8).collect()),
        DataType::Uint16 => Data::Uint16(ints().map(|x| *x as u16).collect()),
        DataType::Uint32 => Data::Uint32(p.uint64_data.iter().map(|x| *x as u32).collect()),
        DataType::Uint64 => Data::Uint64(p.uint64_data.clone()),
        DataType::Int8 => Data::Int8(ints().map(|x| *x as i8).collect()),
        DataType::Int16 => Data::Int16(ints().map(|x| *x as i16).collect()),
        DataType::Int32 => Data::Int32(p.int32_data.clone()),
        DataType::Int64 => Data::Int64(p.int64_data.clone()),
        DataType::Fp16 => Data::Fp16(ints().map(|x| *x as u16).collect()),
        DataType::Bf16 => Data::Bf16(ints().map(|x| *x as u16).collect()),
        DataType::Fp32 => Data::Fp32(p.float_data.clone()),
        DataType::Fp64 => Data::Fp64(p.double_data.clone()),
        DataType::Bytes => Data::Bytes(p.string_data.clone()),
    }
}

/// ONNX's name of a datatype.
pub(crate) const fn onnx_type(datatype: DataType) -> OnnxType {
    match datatype {
        DataType::Bool => OnnxType::Bool,
        DataType::Uint8 => OnnxType::Uint8,
        DataType::Uint16 => OnnxType::Uint16,
        DataType::Uint32 => OnnxType::Uint32,
        DataType::Uint64 => OnnxType::Uint64,
        DataType::Int8 => OnnxType::Int8,
        DataType::Int16 => OnnxType::Int16,
        DataType::Int32 => OnnxType::Int32,
        DataType::Int64 => OnnxType::Int64,
        DataType::Fp16 => OnnxType::Float16,
        DataType::Bf16 => OnnxType::Bfloat16,
        DataType::Fp32 => OnnxType::Float,
        DataType::Fp64 => OnnxType::Double,
        DataType::Bytes => OnnxType::String,
    }
}

/// The protocol's name of an ONNX type.
pub(crate) fn our_type(onnx: i32) -> Result<DataType, String> {
    let kind = OnnxType::try_from(onnx).map_err(|_| format!("datatype {onnx} is unknown"))?;
    Ok(match kind {
        OnnxType::Bool => DataType::Bool,
        OnnxType::Uint8 => DataType::Uint8,
        OnnxType::Uint16 => DataType::Uint16,
        OnnxType::Uint32 => DataType::Uint32,
        OnnxType::Uint64 => DataType::Uint64,
        OnnxType::Int8 => DataType::Int8,
        OnnxType::Int16 => DataType::Int16,
        OnnxType::Int32 => DataType::Int32,
        OnnxType::Int64 => DataType::Int64,
        OnnxType::Float16 => DataType::Fp16,
        OnnxType::Bfloat16 => DataType::Bf16,
        OnnxType::Float => DataType::Fp32,
        OnnxType::Double => DataType::Fp64,
        OnnxType::String => DataType::Bytes,
        other => return Err(format!("datatype {other:?} is not supported")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_data_round_trips_with_its_name() {
        for data in
            [Data::Fp32(vec![1.0, -2.0]), Data::Int64(vec![3, 4]), Data::Bytes(vec![b"x".to_vec(), vec![]])]
        {
            let tensor = Tensor::new(vec![1, 2], data).unwrap();
            assert_eq!(decode_tensor(&encode_tensor("t", &tensor)), Ok(("t".into(), tensor)));
        }
    }

    #[test]
    fn typed_fields_are_read_for_each_datatype() {
        let base =
            |kind: OnnxType| TensorProto { dims: vec![2], data_type: kind as i32, ..Default::default() };
        let check = |proto: TensorProto, expect: Data| {
            assert_eq!(decode_tensor(&proto.encode_to_vec()).unwrap().1.data(), &expect);
        };
        let small = |kind| TensorProto { int32_data: vec![1, 200], ..base(kind) };
        check(small(OnnxType::Bool), Data::Bool(vec![true, true]));
        check(small(OnnxType::Uint8), Data::Uint8(vec![1, 200]));
        check(small(OnnxType::Int16), Data::Int16(vec![1, 200]));
        check(small(OnnxType::Int32), Data::Int32(vec![1, 200]));
        check(
            TensorProto { int32_data: vec![0x3c00, 0xc000], ..base(OnnxType::Float16) },
            Data::Fp16(vec![0x3c00, 0xc000]),
        );
        check(
            TensorProto { int32_data: vec![0x3f80, 0xc000], ..base(OnnxType::Bfloat16) },
            Data::Bf16(vec![0x3f80, 0xc000]),
        );
        check(
            TensorProto { float_data: vec![1.0, 2.0], ..base(OnnxType::Float) },
            Data::Fp32(vec![1.0, 2.0]),
        );
        check(
            TensorProto { double_data: vec![1.0, 2.0], ..base(OnnxType::Double) },
            Data::Fp64(vec![1.0, 2.0]),
        );
        check(TensorProto { int64_data: vec![1, 2], ..base(OnnxType::Int64) }, Data::Int64(vec![1, 2]));
        check(TensorProto { uint64_data: vec![1, 2], ..base(OnnxType::Uint32) }, Data::Uint32(vec![1, 2]));
    }

    #[test]
    fn a_tensor_file_that_lies_is_refused_by_name() {
        let float = OnnxType::Float as i32;
        let check = |proto: TensorProto, expect: &str| {
            let error = decode_tensor(&proto.encode_to_vec()).expect_err(expect);
            assert!(error.contains(expect), "{error:?} does not say {expect:?}");
        };
        check(TensorProto { dims: vec![-1], data_type: float, ..Default::default() }, "negative");
        check(TensorProto { dims: vec![i64::MAX, 2], data_type: float, ..Default::default() }, "more than");
        check(
            TensorProto { dims: vec![3], data_type: float, raw_data: vec![0; 8], ..Default::default() },
            "12 bytes",
        );
        check(TensorProto { dims: vec![1], data_type: 99, ..Default::default() }, "99");
        check(
            TensorProto { dims: vec![1], data_type: OnnxType::Complex64 as i32, ..Default::default() },
            "Complex64",
        );
        let external = Some(DataLocation::External as i32);
        check(
            TensorProto { data_type: float, data_location: external, ..Default::default() },
            "another file",
        );
        assert!(decode_tensor(b"\xff\xff\xff").is_err());
    }
}
