//! Operators that change numbers one by one or row by row: Scaler, Imputer, Binarizer, Normalizer, FeatureVectorizer.

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use crate::attributes::{floats, int, ints, text};
use crate::op::{Built, Fact, Kernel, operator};
use crate::values::{numbers, rows_columns, slice, tensor};

/// `(x - offset) * scale`, with one offset and scale a column or one for all.
#[derive(Debug)]
struct Scaler {
    offset: Vec<f32>,
    scale: Vec<f32>,
}

pub(crate) fn scaler(_: &ParsingContext, node: &NodeProto) -> Built {
    let (mut offset, mut scale) = (floats(node, "offset")?, floats(node, "scale")?);
    if offset.is_empty() {
        offset = vec![0.0];
    }
    if scale.is_empty() {
        scale = vec![1.0];
    }
    ensure!(
        offset.len() == scale.len() || offset.len() == 1 || scale.len() == 1,
        "has {} offsets for {} scales",
        offset.len(),
        scale.len()
    );
    operator(node, 1, Scaler { offset, scale })
}

impl Kernel for Scaler {
    fn name(&self) -> &'static str {
        "Scaler"
    }

    fn facts(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        check_columns(&inputs[0], self.offset.len().max(self.scale.len()))?;
        Ok(tvec!(Fact::new(DatumType::F32, inputs[0].shape.clone())))
    }

    fn eval(&self, inputs: &[&Tensor]) -> TractResult<TVec<Tensor>> {
        let width = last(inputs[0].shape());
        check_width(width, self.offset.len().max(self.scale.len()))?;
        let scaled = |(at, x): (usize, &f32)| {
            (x - of_column(&self.offset, at % width)) * of_column(&self.scale, at % width)
        };
        let values = numbers::<f32>(inputs[0])?.iter().enumerate().map(scaled).collect();
        Ok(tvec!(tensor(inputs[0].shape(), values)?))
    }
}

/// Puts a number where a hole is.
#[derive(Debug)]
enum Imputer {
    Floats { holes: f32, values: Vec<f32> },
    Ints { holes: i64, values: Vec<i64> },
}

pub(crate) fn imputer(_: &ParsingContext, node: &NodeProto) -> Built {
    let (reals, whole) = (floats(node, "imputed_value_floats")?, ints(node, "imputed_value_int64s")?);
    let kernel = match (reals.is_empty(), whole.is_empty()) {
        (false, true) => {
            let holes = node.get_attr_opt::<f32>("replaced_value_float")?.unwrap_or(0.0);
            Imputer::Floats { holes, values: reals }
        }
        (true, false) => Imputer::Ints { holes: int(node, "replaced_value_int64", 0)?, values: whole },
        (true, true) => bail!("has neither \"imputed_value_floats\" nor \"imputed_value_int64s\""),
        (false, false) => bail!("imputes floats and integers at once; one is meant"),
    };
    operator(node, 1, kernel)
}

impl Imputer {
    fn len(&self) -> usize {
        match self {
            Self::Floats { values, .. } => values.len(),
            Self::Ints { values, .. } => values.len(),
        }
    }
}

impl Kernel for Imputer {
    fn name(&self) -> &'static str {
        "Imputer"
    }

    fn facts(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        check_columns(&inputs[0], self.len())?;
        let kind = match self {
            Self::Floats { .. } => DatumType::F32,
            Self::Ints { .. } => DatumType::I64,
        };
        Ok(tvec!(Fact::new(kind, inputs[0].shape.clone())))
    }

    fn eval(&self, inputs: &[&Tensor]) -> TractResult<TVec<Tensor>> {
        let shape = inputs[0].shape();
        let width = last(shape);
        check_width(width, self.len())?;
        let filled = match self {
            Self::Floats { holes, values } => {
                let is_hole = |x: f32| if holes.is_nan() { x.is_nan() } else { x == *holes };
                let fill =
                    |(at, x): (usize, &f32)| if is_hole(*x) { of_column(values, at % width) } else { *x };
                tensor(shape, numbers::<f32>(inputs[0])?.iter().enumerate().map(fill).collect())?
            }
            Self::Ints { holes, values } => {
                let whole = inputs[0].cast_to::<i64>()?;
                let fill =
                    |(at, x): (usize, &i64)| if x == holes { of_column(values, at % width) } else { *x };
                tensor(shape, slice::<i64>(&whole)?.iter().enumerate().map(fill).collect())?
            }
        };
        Ok(tvec!(filled))
    }
}

/// 1 above the threshold, 0 below and on it.
#[derive(Debug)]
struct Binarizer {
    threshold: f32,
}

pub(crate) fn binarizer(_: &ParsingContext, node: &NodeProto) -> Built {
    let threshold = node.get_attr_opt::<f32>("threshold")?.unwrap_or(0.0);
    operator(node, 1, Binarizer { threshold })
}

impl Kernel for Binarizer {
    fn name(&self) -> &'static str {
        "Binarizer"
    }

    fn facts(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        Ok(tvec!(Fact::new(DatumType::F32, inputs[0].shape.clone())))
    }

    fn eval(&self, inputs: &[&Tensor]) -> TractResult<TVec<Tensor>> {
        let above = |x: &f32| if *x > self.threshold { 1.0 } else { 0.0 };
        let values: Vec<f32> = numbers::<f32>(inputs[0])?.iter().map(above).collect();
        Ok(tvec!(tensor(inputs[0].shape(), values)?))
    }
}

/// Divides each row by its norm; a row of zeros stays as it is.
#[derive(Debug, Clone, Copy)]
enum Normalizer {
    Max,
    L1,
    L2,
}

pub(crate) fn normalizer(_: &ParsingContext, node: &NodeProto) -> Built {
    let kernel = match &*text(node, "norm", "MAX")? {
        "MAX" => Normalizer::Max,
        "L1" => Normalizer::L1,
        "L2" => Normalizer::L2,
        other => bail!("norm {other:?} is none of MAX, L1, L2"),
    };
    operator(node, 1, kernel)
}

impl Kernel for Normalizer {
    fn name(&self) -> &'static str {
        "Normalizer"
    }

    fn facts(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        Ok(tvec!(Fact::new(DatumType::F32, inputs[0].shape.clone())))
    }

    fn eval(&self, inputs: &[&Tensor]) -> TractResult<TVec<Tensor>> {
        let mut values = numbers::<f32>(inputs[0])?.into_owned();
        for row in values.chunks_mut(last(inputs[0].shape())) {
            let norm = match self {
                // The largest value, not the largest magnitude: so does onnxruntime.
                Self::Max => row.iter().copied().fold(f32::MIN, f32::max),
                Self::L1 => row.iter().map(|x| x.abs()).sum(),
                Self::L2 => row.iter().map(|x| x * x).sum::<f32>().sqrt(),
            };
            if norm != 0.0 {
                row.iter_mut().for_each(|x| *x /= norm);
            }
        }
        Ok(tvec!(tensor(inputs[0].shape(), values)?))
    }
}

/// Tables side by side.
#[derive(Debug)]
struct FeatureVectorizer {
    /// Columns that each input gives; wider inputs are cut, narrower ones padded with zeros.
    columns: Vec<usize>,
}

pub(crate) fn feature_vectorizer(_: &ParsingContext, node: &NodeProto) -> Built {
    let columns = ints(node, "inputdimensions")?.into_iter().map(usize::try_from);
    let columns = columns.collect::<Result<Vec<_>, _>>()?;
    ensure!(
        columns.len() == node.input.len(),
        "has {} \"inputdimensions\" for {} inputs",
        columns.len(),
        node.input.len()
    );
    operator(node, 1, FeatureVectorizer { columns })
}

impl Kernel for FeatureVectorizer {
    fn name(&self) -> &'static str {
        "FeatureVectorizer"
    }

    fn inputs(&self) -> Option<usize> {
        None
    }

    fn facts(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let (rows, _) = inputs.first().context("has no input")?.table()?;
        let width = self.columns.iter().try_fold(0usize, |all, n| all.checked_add(*n));
        let width = width.context("its \"inputdimensions\" overflow")?;
        Ok(tvec!(Fact::new(DatumType::F32, [rows, width.to_dim()])))
    }

    fn eval(&self, inputs: &[&Tensor]) -> TractResult<TVec<Tensor>> {
        let (rows, _) = rows_columns(inputs.first().context("has no input")?.shape())?;
        let width: usize = self.columns.iter().sum();
        let mut values = vec![0f32; rows * width];
        let mut start = 0;
        for (input, takes) in inputs.iter().zip(&self.columns) {
            let (its_rows, has) = rows_columns(input.shape())?;
            ensure!(its_rows == rows, "has inputs of {rows} and {its_rows} rows");
            let numbers = numbers::<f32>(input)?;
            let cut = has.min(*takes);
            for row in 0..rows {
                values[row * width + start..][..cut].copy_from_slice(&numbers[row * has..][..cut]);
            }
            start += takes;
        }
        Ok(tvec!(tensor(&[rows, width], values)?))
    }
}

/// The value of a column, or the one for all.
fn of_column<T: Copy>(values: &[T], column: usize) -> T {
    if values.len() == 1 { values[0] } else { values[column] }
}

fn last(shape: &[usize]) -> usize {
    shape.last().copied().unwrap_or(1).max(1)
}

fn check_width(width: usize, values: usize) -> TractResult<()> {
    ensure!(values == 1 || values == width, "has {values} values for {width} columns");
    Ok(())
}

fn check_columns(input: &Fact, values: usize) -> TractResult<()> {
    match input.shape.last().map(TDim::to_i64) {
        Some(Ok(columns)) => check_width(usize::try_from(columns)?, values),
        _ => Ok(()),
    }
}
