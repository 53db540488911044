//! Our tensors to tract's and back.

use plimsoll_protocol::bundle::DataType;
use tract_onnx::prelude::tract_data::prelude::f16;
use tract_onnx::prelude::{Datum, DatumType, IntoTValue, TValue, Tensor as TractTensor, tract_ndarray};

use crate::tensor::{Data, Tensor, bf16_value};

/// tract's tensor of ours; no copy for the types both share.
pub(crate) fn to_tract(tensor: Tensor) -> Result<TValue, String> {
    fn array<T: Datum>(shape: Vec<usize>, data: Vec<T>) -> Result<TValue, String> {
        let array = tract_ndarray::ArrayD::from_shape_vec(shape, data).map_err(|e| e.to_string())?;
        Ok(TractTensor::from(array).into_tvalue())
    }
    let (shape, data) = tensor.into_parts();
    match data {
        Data::Bool(v) => array(shape, v),
        Data::Uint8(v) => array(shape, v),
        Data::Uint16(v) => array(shape, v),
        Data::Uint32(v) => array(shape, v),
        Data::Uint64(v) => array(shape, v),
        Data::Int8(v) => array(shape, v),
        Data::Int16(v) => array(shape, v),
        Data::Int32(v) => array(shape, v),
        Data::Int64(v) => array(shape, v),
        Data::Fp16(v) => array(shape, v.into_iter().map(f16::from_bits).collect()),
        // tract has no bfloat16; every one of them is an FP32.
        Data::Bf16(v) => array(shape, v.into_iter().map(bf16_value).collect()),
        Data::Fp32(v) => array(shape, v),
        Data::Fp64(v) => array(shape, v),
        Data::Bytes(v) => {
            let texts: Result<Vec<String>, _> = v.into_iter().map(String::from_utf8).collect();
            array(shape, texts.map_err(|_| "an element is not UTF-8 text, the only BYTES this model takes")?)
        }
    }
}

/// Our tensor of tract's.
pub(crate) fn from_tract(value: TValue) -> Result<Tensor, String> {
    fn items<T: Datum>(tensor: &TractTensor) -> Result<Vec<T>, String> {
        let view = tensor.to_plain_array_view::<T>().map_err(|e| e.to_string())?;
        Ok(view.as_slice().map_or_else(|| view.iter().cloned().collect(), <[T]>::to_vec))
    }
    let tensor: &TractTensor = &value;
    let shape = tensor.shape().to_vec();
    let data = match tensor.datum_type() {
        DatumType::Bool => Data::Bool(items(tensor)?),
        DatumType::U8 => Data::Uint8(items(tensor)?),
        DatumType::U16 => Data::Uint16(items(tensor)?),
        DatumType::U32 => Data::Uint32(items(tensor)?),
        DatumType::U64 => Data::Uint64(items(tensor)?),
        DatumType::I8 => Data::Int8(items(tensor)?),
        DatumType::I16 => Data::Int16(items(tensor)?),
        DatumType::I32 => Data::Int32(items(tensor)?),
        DatumType::I64 => Data::Int64(items(tensor)?),
        DatumType::F16 => Data::Fp16(items::<f16>(tensor)?.into_iter().map(f16::to_bits).collect()),
        DatumType::F32 => Data::Fp32(items(tensor)?),
        DatumType::F64 => Data::Fp64(items(tensor)?),
        DatumType::String => {
            Data::Bytes(items::<String>(tensor)?.into_iter().map(String::into_bytes).collect())
        }
        // Sizes that depended on the batch: integers by now.
        DatumType::TDim => {
            let sizes = tensor.cast_to::<i64>().map_err(|e| e.to_string())?;
            Data::Int64(items(&sizes)?)
        }
        other => return Err(format!("datatype {other:?} cannot be answered")),
    };
    Tensor::new(shape, data)
}

/// The protocol's name of a tract type.
pub(crate) fn our_datum_type(kind: DatumType) -> Result<DataType, String> {
    Ok(match kind {
        DatumType::Bool => DataType::Bool,
        DatumType::U8 => DataType::Uint8,
        DatumType::U16 => DataType::Uint16,
        DatumType::U32 => DataType::Uint32,
        DatumType::U64 => DataType::Uint64,
        DatumType::I8 => DataType::Int8,
        DatumType::I16 => DataType::Int16,
        DatumType::I32 => DataType::Int32,
        DatumType::I64 | DatumType::TDim => DataType::Int64,
        DatumType::F16 => DataType::Fp16,
        DatumType::F32 => DataType::Fp32,
        DatumType::F64 => DataType::Fp64,
        DatumType::String => DataType::Bytes,
        other => return Err(format!("datatype {other:?} is not supported")),
    })
}
