//! Operators that move values: ArrayFeatureExtractor and ZipMap.

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use crate::op::{Built, DataError, Fact, Kernel, operator};
use crate::values::{slice, tensor};

/// Columns of a tensor by their indices.
#[derive(Debug)]
struct ArrayFeatureExtractor;

pub(crate) fn array_feature_extractor(_: &ParsingContext, node: &NodeProto) -> Built {
    operator(node, 1, ArrayFeatureExtractor)
}

impl Kernel for ArrayFeatureExtractor {
    fn name(&self) -> &'static str {
        "ArrayFeatureExtractor"
    }

    fn inputs(&self) -> Option<usize> {
        Some(2)
    }

    fn facts(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let picked: TDim = inputs[1].shape.iter().cloned().product();
        let shape: TVec<TDim> = match &inputs[0].shape[..] {
            [] => bail!("takes a tensor with columns; its input is a scalar"),
            [_] => tvec!(1.to_dim(), picked),
            [before @ .., _] => before.iter().cloned().chain([picked]).collect(),
        };
        Ok(tvec!(Fact::new(inputs[0].kind, shape)))
    }

    fn eval(&self, inputs: &[&Tensor]) -> TractResult<TVec<Tensor>> {
        fn pick<T: Datum>(input: &Tensor, columns: &[i64], shape: &[usize]) -> TractResult<Tensor> {
            let width = input.shape().last().copied().unwrap_or(1);
            let mut values = Vec::with_capacity(shape.iter().product());
            for row in slice::<T>(input)?.chunks(width.max(1)) {
                for column in columns {
                    let value = usize::try_from(*column).ok().and_then(|at| row.get(at));
                    let outside = || DataError(format!("reads column {column}; its input has {width}"));
                    values.push(value.cloned().ok_or_else(outside)?);
                }
            }
            tensor(shape, values)
        }
        let columns = inputs[1].cast_to::<i64>()?;
        let columns = slice::<i64>(&columns)?;
        let shape: Vec<usize> = match inputs[0].shape() {
            [] => bail!("takes a tensor with columns; its input is a scalar"),
            [_] => vec![1, columns.len()],
            [before @ .., _] => before.iter().copied().chain([columns.len()]).collect(),
        };
        let kind = inputs[0].datum_type();
        let picked = match kind {
            DatumType::F32 => pick::<f32>(inputs[0], columns, &shape)?,
            DatumType::F64 => pick::<f64>(inputs[0], columns, &shape)?,
            DatumType::I64 => pick::<i64>(inputs[0], columns, &shape)?,
            DatumType::I32 => pick::<i32>(inputs[0], columns, &shape)?,
            DatumType::String => pick::<String>(inputs[0], columns, &shape)?,
            // Sizes that depended on the batch, and types that exports do not index, are integers here.
            DatumType::TDim | DatumType::Bool | DatumType::U8 | DatumType::I8 => {
                let whole = inputs[0].cast_to::<i64>()?;
                pick::<i64>(&whole, columns, &shape)?.cast_to_dt(kind)?.into_owned()
            }
            other => bail!("does not take {other:?}"),
        };
        Ok(tvec!(picked))
    }
}

/// The matrix of probabilities itself, in the place of one map a row.
#[derive(Debug)]
struct ZipMap;

pub(crate) fn zip_map(_: &ParsingContext, node: &NodeProto) -> Built {
    operator(node, 1, ZipMap)
}

impl Kernel for ZipMap {
    fn name(&self) -> &'static str {
        "ZipMap"
    }

    fn facts(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        Ok(tvec!(inputs[0].clone()))
    }

    fn eval(&self, inputs: &[&Tensor]) -> TractResult<TVec<Tensor>> {
        Ok(tvec!(inputs[0].clone()))
    }
}
