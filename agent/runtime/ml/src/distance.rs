//! Pairwise distances: `com.microsoft.CDist`, which nearest-neighbour exports ask for when told to be fast.

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use crate::attributes::text;
use crate::op::{Built, Fact, Kernel, operator};
use crate::values::{Real, Table, tensor};

/// Distance of each row of the first table to each of the second.
#[derive(Debug)]
struct CDist {
    squared: bool,
}

pub(crate) fn cdist(_: &ParsingContext, node: &NodeProto) -> Built {
    let squared = match &*text(node, "metric", "sqeuclidean")? {
        "sqeuclidean" => true,
        "euclidean" => false,
        other => bail!("metric {other:?} is neither euclidean nor sqeuclidean"),
    };
    operator(node, 1, CDist { squared })
}

impl Kernel for CDist {
    fn name(&self) -> &'static str {
        "CDist"
    }

    fn inputs(&self) -> Option<usize> {
        Some(2)
    }

    fn facts(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let ((rows, _), (others, _)) = (inputs[0].table()?, inputs[1].table()?);
        let kind = if inputs[0].kind == DatumType::F64 { DatumType::F64 } else { DatumType::F32 };
        Ok(tvec!(Fact::new(kind, [rows, others])))
    }

    fn eval(&self, inputs: &[&Tensor]) -> TractResult<TVec<Tensor>> {
        let distances = match inputs[0].datum_type() {
            DatumType::F64 => self.distances::<f64>(inputs)?,
            _ => self.distances::<f32>(inputs)?,
        };
        Ok(tvec!(distances))
    }
}

impl CDist {
    fn distances<T: Real>(&self, inputs: &[&Tensor]) -> TractResult<Tensor> {
        let (a, b) = (Table::<T>::of(inputs[0], 0)?, Table::<T>::of(inputs[1], 0)?);
        ensure!(a.columns == b.columns, "compares rows of {} and {} numbers", a.columns, b.columns);
        let mut all = Vec::with_capacity(a.rows * b.rows);
        for row in 0..a.rows {
            for other in 0..b.rows {
                let pairs = a.row(row).iter().zip(b.row(other));
                let sum = pairs.fold(T::default(), |sum, (x, y)| sum + (*x - *y) * (*x - *y));
                all.push(if self.squared { sum } else { T::of(sum.wide().sqrt()) });
            }
        }
        tensor(&[a.rows, b.rows], all)
    }
}
