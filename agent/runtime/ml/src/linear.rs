//! Linear models: one dot product a class or target.

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use crate::attributes::{Labels, floats, int, same_length, targets};
use crate::op::{Built, Fact, Kernel, operator};
use crate::scores::{PostTransform, SecondClass, arg_max, two_of_one};
use crate::values::{Table, tensor};

/// One row of weights and an intercept a target.
#[derive(Debug)]
struct Weights {
    coefficients: Vec<f32>,
    intercepts: Vec<f32>,
    features: usize,
}

impl Weights {
    fn read(node: &NodeProto, targets: usize) -> TractResult<Self> {
        let (coefficients, mut intercepts) = (floats(node, "coefficients")?, floats(node, "intercepts")?);
        let features = coefficients.len() / targets;
        ensure!(features > 0, "has no \"coefficients\"");
        same_length("coefficients", coefficients.len(), features * targets)?;
        if intercepts.is_empty() {
            intercepts = vec![0.0; targets];
        }
        same_length("intercepts", intercepts.len(), targets)?;
        Ok(Self { coefficients, intercepts, features })
    }

    fn scores_of(&self, row: &[f32], scores: &mut Vec<f32>) {
        let each = self.coefficients.chunks_exact(self.features).zip(&self.intercepts);
        scores.clear();
        scores.extend(each.map(|(weights, intercept)| dot(weights, row) + intercept));
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[derive(Debug)]
struct LinearClassifier {
    weights: Weights,
    labels: Labels,
    transform: PostTransform,
}

pub(crate) fn classifier(_: &ParsingContext, node: &NodeProto) -> Built {
    let labels = Labels::read(node, "classlabels_ints", "classlabels_strings")?;
    // One column of weights for two classes is the margin of the second.
    let columns = match floats(node, "intercepts")?.len() {
        0 => labels.len(),
        given => given,
    };
    let weights = Weights::read(node, targets(columns as i64)?)?;
    ensure!(
        columns == labels.len() || (columns == 1 && labels.len() == 2),
        "has {columns} \"intercepts\" for {} classes",
        labels.len()
    );
    operator(node, 2, LinearClassifier { weights, labels, transform: PostTransform::read(node)? })
}

impl Kernel for LinearClassifier {
    fn name(&self) -> &'static str {
        "LinearClassifier"
    }

    fn facts(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let rows = inputs[0].rows(self.weights.features)?;
        Ok(tvec!(
            Fact::new(self.labels.kind(), [rows.clone()]),
            Fact::new(DatumType::F32, [rows, self.labels.len().to_dim()])
        ))
    }

    fn eval(&self, inputs: &[&Tensor]) -> TractResult<TVec<Tensor>> {
        let table = Table::<f32>::of(inputs[0], self.weights.features)?;
        let (mut classes, mut all, mut scores) = (Vec::new(), Vec::new(), Vec::new());
        for row in 0..table.rows {
            self.weights.scores_of(table.row(row), &mut scores);
            if scores.len() == 1 && self.labels.len() == 2 {
                classes.push(usize::from(scores[0] > 0.0));
                all.extend(two_of_one(scores[0], SecondClass::Complement, self.transform));
            } else {
                classes.push(arg_max(&scores));
                self.transform.apply(&mut scores);
                all.extend_from_slice(&scores);
            }
        }
        Ok(tvec!(self.labels.pick(&classes)?, tensor(&[table.rows, self.labels.len()], all)?))
    }
}

#[derive(Debug)]
struct LinearRegressor {
    weights: Weights,
    transform: PostTransform,
}

pub(crate) fn regressor(_: &ParsingContext, node: &NodeProto) -> Built {
    let weights = Weights::read(node, targets(int(node, "targets", 1)?)?)?;
    operator(node, 1, LinearRegressor { weights, transform: PostTransform::read(node)? })
}

impl Kernel for LinearRegressor {
    fn name(&self) -> &'static str {
        "LinearRegressor"
    }

    fn facts(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let rows = inputs[0].rows(self.weights.features)?;
        Ok(tvec!(Fact::new(DatumType::F32, [rows, self.weights.intercepts.len().to_dim()])))
    }

    fn eval(&self, inputs: &[&Tensor]) -> TractResult<TVec<Tensor>> {
        let table = Table::<f32>::of(inputs[0], self.weights.features)?;
        let (mut all, mut scores) = (Vec::new(), Vec::new());
        for row in 0..table.rows {
            self.weights.scores_of(table.row(row), &mut scores);
            self.transform.apply(&mut scores);
            all.extend_from_slice(&scores);
        }
        Ok(tvec!(tensor(&[table.rows, self.weights.intercepts.len()], all)?))
    }
}
