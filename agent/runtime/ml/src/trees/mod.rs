//! Tree ensembles as operators: TreeEnsembleClassifier and TreeEnsembleRegressor (versions 1 and 3), and TreeEnsemble
//! (version 5), which replaces both. `read` checks the attributes, `forest` packs and walks the trees, `finish` makes
//! answers of sums.

mod finish;
mod forest;
mod read;

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use crate::attributes::{Labels, int, targets, text, wide_floats};
use crate::op::{Built, Fact, Kernel, operator};
use crate::scores::PostTransform;
use crate::values::{Real, Table, tensor};
use finish::{Classes, Targets};
use forest::{Aggregate, Feature, Forest};
use read::Plan;

/// A forest in the precision of its attributes, in which onnxruntime adds too.
#[derive(Debug)]
enum Trees {
    Single(Forest<f32>),
    Double(Forest<f64>),
}

impl Trees {
    fn plant(plan: &Plan, aggregate: Aggregate) -> TractResult<Self> {
        Ok(match plan.is_double {
            false => Self::Single(Forest::plant(plan, aggregate)?),
            true => Self::Double(Forest::plant(plan, aggregate)?),
        })
    }

    /// Columns that some node reads.
    fn features(&self) -> usize {
        match self {
            Self::Single(forest) => forest.features(),
            Self::Double(forest) => forest.features(),
        }
    }

    /// Hands the aggregated weights of each row to `finish`, in order: 32-bit inputs are compared as they are, all
    /// others in 64 bits.
    fn run(&self, input: &Tensor, finish: &mut dyn Finish) -> TractResult<usize> {
        fn walk<T: Real, X: Feature<T>>(
            forest: &Forest<T>,
            input: &Tensor,
            mut each: impl FnMut(&mut [T], &[bool]),
        ) -> TractResult<usize> {
            let table = Table::<X>::of(input, forest.features())?;
            forest.scores(&table, &mut each);
            Ok(table.rows)
        }
        match self {
            Self::Single(forest) if input.datum_type() == DatumType::F32 => {
                walk::<f32, f32>(forest, input, |scores, seen| finish.single(scores, seen))
            }
            Self::Single(forest) => {
                walk::<f32, f64>(forest, input, |scores, seen| finish.single(scores, seen))
            }
            Self::Double(forest) => {
                walk::<f64, f64>(forest, input, |scores, seen| finish.double(scores, seen))
            }
        }
    }
}

/// Takes the sums of one row, in either precision.
trait Finish {
    fn single(&mut self, scores: &mut [f32], seen: &[bool]);
    fn double(&mut self, scores: &mut [f64], seen: &[bool]);
}

#[derive(Debug)]
struct TreeEnsembleClassifier {
    trees: Trees,
    labels: Labels,
    classes: Classes,
}

pub(crate) fn classifier(ctx: &ParsingContext, node: &NodeProto) -> Built {
    let labels = Labels::read(node, "classlabels_int64s", "classlabels_strings")?;
    let count = targets(labels.len() as i64)?;
    let plan = Plan::read(ctx, node, "class", count)?;
    let classes = Classes {
        base: wide_floats(ctx, node, "base_values")?.0,
        transform: PostTransform::read(node)?,
        count,
        one_column: count == 2 && plan.targets_used() == 1,
        all_positive: plan.weights.iter().all(|w| w.value >= 0.0),
    };
    ensure!(classes.base.len() <= count, "has {} \"base_values\" for {count} classes", classes.base.len());
    let trees = Trees::plant(&plan, Aggregate::Sum)?;
    operator(node, 2, TreeEnsembleClassifier { trees, labels, classes })
}

impl Kernel for TreeEnsembleClassifier {
    fn name(&self) -> &'static str {
        "TreeEnsembleClassifier"
    }

    fn facts(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let rows = inputs[0].rows(self.trees.features())?;
        Ok(tvec!(
            Fact::new(self.labels.kind(), [rows.clone()]),
            Fact::new(DatumType::F32, [rows, self.labels.len().to_dim()])
        ))
    }

    fn eval(&self, inputs: &[&Tensor]) -> TractResult<TVec<Tensor>> {
        let mut answers = finish::Classified::new(&self.classes);
        let rows = self.trees.run(inputs[0], &mut answers)?;
        Ok(tvec!(self.labels.pick(&answers.chosen)?, tensor(&[rows, self.labels.len()], answers.scores)?))
    }
}

/// Both regressors: version 5 answers in the precision of its input.
#[derive(Debug)]
struct TreeEnsembleRegressor {
    name: &'static str,
    trees: Trees,
    targets: Targets,
    keeps_precision: bool,
}

pub(crate) fn regressor(ctx: &ParsingContext, node: &NodeProto) -> Built {
    let count = targets(int(node, "n_targets", 1)?)?;
    let plan = Plan::read(ctx, node, "target", count)?;
    let aggregate = match &*text(node, "aggregate_function", "SUM")? {
        "SUM" => Aggregate::Sum,
        "AVERAGE" => Aggregate::Average,
        "MIN" => Aggregate::Min,
        "MAX" => Aggregate::Max,
        other => bail!("aggregate_function {other:?} is none of SUM, AVERAGE, MIN, MAX"),
    };
    let base = wide_floats(ctx, node, "base_values")?.0;
    ensure!(base.is_empty() || base.len() == count, "has {} \"base_values\" for {count} targets", base.len());
    let targets = Targets::new(base, PostTransform::read(node)?, count, aggregate, plan.roots.len());
    let trees = Trees::plant(&plan, aggregate)?;
    let kernel =
        TreeEnsembleRegressor { name: "TreeEnsembleRegressor", trees, targets, keeps_precision: false };
    operator(node, 1, kernel)
}

pub(crate) fn ensemble(ctx: &ParsingContext, node: &NodeProto) -> Built {
    let count = targets(int(node, "n_targets", 1)?)?;
    let plan = Plan::read_v5(ctx, node, count)?;
    let aggregate = match int(node, "aggregate_function", 1)? {
        0 => Aggregate::Average,
        1 => Aggregate::Sum,
        2 => Aggregate::Min,
        3 => Aggregate::Max,
        other => bail!("aggregate_function {other} is not between 0 and 3"),
    };
    let transform = PostTransform::of_number(int(node, "post_transform", 0)?)?;
    let targets = Targets::new(Vec::new(), transform, count, aggregate, plan.roots.len());
    let trees = Trees::plant(&plan, aggregate)?;
    operator(node, 1, TreeEnsembleRegressor { name: "TreeEnsemble", trees, targets, keeps_precision: true })
}

impl TreeEnsembleRegressor {
    fn kind(&self, input: DatumType) -> DatumType {
        if self.keeps_precision && input == DatumType::F64 { DatumType::F64 } else { DatumType::F32 }
    }
}

impl Kernel for TreeEnsembleRegressor {
    fn name(&self) -> &'static str {
        self.name
    }

    fn facts(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let rows = inputs[0].rows(self.trees.features())?;
        Ok(tvec!(Fact::new(self.kind(inputs[0].kind), [rows, self.targets.count.to_dim()])))
    }

    fn eval(&self, inputs: &[&Tensor]) -> TractResult<TVec<Tensor>> {
        let wide = self.kind(inputs[0].datum_type()) == DatumType::F64;
        let mut answers = finish::Summed::new(&self.targets);
        let rows = self.trees.run(inputs[0], &mut answers)?;
        let answers = match wide {
            true => tensor(&[rows, self.targets.count], answers.values)?,
            false => {
                tensor(&[rows, self.targets.count], answers.values.into_iter().map(|v| v as f32).collect())?
            }
        };
        Ok(tvec!(answers))
    }
}
