//! Tensors as the kernels see them: plain slices, and tables of numbers in the precision a kernel computes in.

use std::borrow::Cow;
use std::fmt::Debug;
use std::ops::{Add, Div, Mul, Neg, Sub};

use tract_onnx::prelude::tract_ndarray::ArrayD;
use tract_onnx::tract_hir::internal::*;

use crate::op::DataError;

/// The two precisions in which kernels compute.
pub(crate) trait Real:
    Datum
    + Copy
    + Debug
    + Default
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
{
    fn of(value: f64) -> Self;
    fn wide(self) -> f64;
    fn is_hole(self) -> bool;
}

impl Real for f32 {
    fn of(value: f64) -> Self {
        value as Self
    }
    fn wide(self) -> f64 {
        f64::from(self)
    }
    fn is_hole(self) -> bool {
        self.is_nan()
    }
}

impl Real for f64 {
    fn of(value: f64) -> Self {
        value
    }
    fn wide(self) -> f64 {
        self
    }
    fn is_hole(self) -> bool {
        self.is_nan()
    }
}

/// Elements of a tensor that has this type.
pub(crate) fn slice<T: Datum>(tensor: &Tensor) -> TractResult<&[T]> {
    tensor.try_as_plain_ram()?.as_slice::<T>()
}

/// A tensor of these elements.
pub(crate) fn tensor<T: Datum>(shape: &[usize], values: Vec<T>) -> TractResult<Tensor> {
    Ok(ArrayD::from_shape_vec(shape, values)?.into_tensor())
}

/// Elements of a tensor of numbers, in another precision.
pub(crate) fn numbers<T: Real>(tensor: &Tensor) -> TractResult<Cow<'_, [T]>> {
    ensure!(tensor.datum_type() != DatumType::String, "takes numbers; its input holds texts");
    if tensor.datum_type() == T::datum_type() {
        return Ok(Cow::Borrowed(slice(tensor)?));
    }
    Ok(Cow::Owned(slice::<T>(&*tensor.cast_to::<T>()?)?.to_vec()))
}

/// Rows of numbers.
pub(crate) struct Table<'a, T: Real> {
    values: Cow<'a, [T]>,
    /// How many rows.
    pub(crate) rows: usize,
    /// Numbers in each.
    pub(crate) columns: usize,
}

impl<'a, T: Real> Table<'a, T> {
    /// A tensor `[rows, columns]`, or `[columns]` for one row, that has at least the columns that will be read.
    pub(crate) fn of(tensor: &'a Tensor, needs: usize) -> TractResult<Self> {
        let (rows, columns) = rows_columns(tensor.shape())?;
        if columns < needs {
            bail!(DataError(format!("reads {needs} columns; its input has {columns}")));
        }
        Ok(Self { values: numbers(tensor)?, rows, columns })
    }

    /// One row.
    pub(crate) fn row(&self, at: usize) -> &[T] {
        &self.values[at * self.columns..(at + 1) * self.columns]
    }
}

/// Rows and columns of a shape; a single dimension is one row.
pub(crate) fn rows_columns(shape: &[usize]) -> TractResult<(usize, usize)> {
    match shape {
        [columns] => Ok((1, *columns)),
        [rows, columns] => Ok((*rows, *columns)),
        other => bail!("takes a table [rows, columns]; its input has shape {other:?}"),
    }
}
