//! Support vector machines: kernels against every support vector, then one vote for each pair of classes.

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use crate::attributes::{Labels, floats, int, ints, same_length, targets, text};
use crate::op::{Built, Fact, Kernel, operator};
use crate::scores::{PostTransform, SecondClass, arg_max, logistic, two_of_one};
use crate::values::{Table, tensor};

/// The kernel function with its parameters.
#[derive(Debug, Clone, Copy)]
enum Function {
    Linear,
    Poly { gamma: f32, coef0: f32, degree: f32 },
    Rbf { gamma: f32 },
    Sigmoid { gamma: f32, coef0: f32 },
}

impl Function {
    fn read(node: &NodeProto) -> TractResult<Self> {
        let parameters = floats(node, "kernel_params")?;
        let parameter = |at: usize, default| parameters.get(at).copied().unwrap_or(default);
        let (gamma, coef0, degree) = (parameter(0, 0.0), parameter(1, 0.0), parameter(2, 0.0));
        Ok(match &*text(node, "kernel_type", "LINEAR")? {
            "LINEAR" => Self::Linear,
            "POLY" => Self::Poly { gamma, coef0, degree },
            "RBF" => Self::Rbf { gamma },
            "SIGMOID" => Self::Sigmoid { gamma, coef0 },
            other => bail!("kernel_type {other:?} is none of LINEAR, POLY, RBF, SIGMOID"),
        })
    }

    /// Sums are made in 64 bits: decisions are small differences of large products.
    fn of(self, a: &[f32], b: &[f32]) -> f32 {
        let pairs = || a.iter().zip(b).map(|(a, b)| (f64::from(*a), f64::from(*b)));
        let dot = || pairs().map(|(a, b)| a * b).sum::<f64>() as f32;
        match self {
            Self::Linear => dot(),
            Self::Poly { gamma, coef0, degree } => (gamma * dot() + coef0).powf(degree),
            Self::Rbf { gamma } => {
                let distance: f64 = pairs().map(|(a, b)| (a - b) * (a - b)).sum();
                (-gamma * distance as f32).exp()
            }
            Self::Sigmoid { gamma, coef0 } => (gamma * dot() + coef0).tanh(),
        }
    }
}

/// Vectors of one length and the function that compares a row with each.
#[derive(Debug)]
struct Supports {
    vectors: Vec<f32>,
    features: usize,
    function: Function,
}

impl Supports {
    fn new(vectors: Vec<f32>, count: usize, function: Function) -> TractResult<Self> {
        let features = vectors.len() / count.max(1);
        ensure!(
            features > 0 && features * count == vectors.len(),
            "has {} numbers for {count} vectors",
            vectors.len()
        );
        Ok(Self { vectors, features, function })
    }

    fn compare(&self, row: &[f32], out: &mut Vec<f32>) {
        let row = &row[..self.features];
        out.clear();
        out.extend(self.vectors.chunks_exact(self.features).map(|vector| self.function.of(row, vector)));
    }
}

#[derive(Debug)]
struct SvmRegressor {
    supports: Supports,
    /// One a support vector; empty when the supports are the coefficients themselves (a linear model).
    coefficients: Vec<f32>,
    rho: f32,
    one_class: bool,
    transform: PostTransform,
}

pub(crate) fn regressor(_: &ParsingContext, node: &NodeProto) -> Built {
    let coefficients = floats(node, "coefficients")?;
    let rho = *floats(node, "rho")?.first().context("has no \"rho\"")?;
    let (supports, coefficients) = match usize::try_from(int(node, "n_supports", 0)?)? {
        0 => (Supports::new(coefficients, 1, Function::Linear)?, Vec::new()),
        count => {
            same_length("coefficients", coefficients.len(), count)?;
            (Supports::new(floats(node, "support_vectors")?, count, Function::read(node)?)?, coefficients)
        }
    };
    let one_class = int(node, "one_class", 0)? != 0;
    let transform = PostTransform::read(node)?;
    operator(node, 1, SvmRegressor { supports, coefficients, rho, one_class, transform })
}

impl Kernel for SvmRegressor {
    fn name(&self) -> &'static str {
        "SVMRegressor"
    }

    fn facts(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        Ok(tvec!(Fact::new(DatumType::F32, [inputs[0].rows(self.supports.features)?, 1.to_dim()])))
    }

    fn eval(&self, inputs: &[&Tensor]) -> TractResult<TVec<Tensor>> {
        let table = Table::<f32>::of(inputs[0], self.supports.features)?;
        let (mut answers, mut similar) = (Vec::with_capacity(table.rows), Vec::new());
        for row in 0..table.rows {
            self.supports.compare(table.row(row), &mut similar);
            let sum = match self.coefficients.is_empty() {
                true => similar[0],
                false => similar.iter().zip(&self.coefficients).map(|(k, c)| k * c).sum(),
            };
            let mut score = [sum + self.rho];
            if self.one_class {
                score[0] = if score[0] > 0.0 { 1.0 } else { -1.0 };
            } else {
                self.transform.apply(&mut score);
            }
            answers.push(score[0]);
        }
        Ok(tvec!(tensor(&[table.rows, 1], answers)?))
    }
}

/// A classifier: one against one (`SVC`), or one column of weights a class when it has no support vectors.
#[derive(Debug)]
struct SvmClassifier {
    supports: Supports,
    labels: Labels,
    transform: PostTransform,
    rho: Vec<f32>,
    pairs: Option<Pairs>,
}

#[derive(Debug)]
struct Pairs {
    /// `classes - 1` rows of one coefficient a support vector.
    coefficients: Vec<f32>,
    vectors_per_class: Vec<usize>,
    /// Platt's sigmoid of each pair, `(a, b)`; empty without probabilities.
    platt: Vec<(f32, f32)>,
}

pub(crate) fn classifier(_: &ParsingContext, node: &NodeProto) -> Built {
    let labels = Labels::read(node, "classlabels_ints", "classlabels_strings")?;
    let classes = targets(labels.len() as i64)?;
    ensure!(classes > 1, "has one class; a classifier chooses between two or more");
    let (coefficients, rho) = (floats(node, "coefficients")?, floats(node, "rho")?);
    let per_class = ints(node, "vectors_per_class")?;
    let per_class: Vec<usize> = per_class.into_iter().map(usize::try_from).collect::<Result<_, _>>()?;
    let count = per_class.iter().try_fold(0usize, |all, n| all.checked_add(*n)).context("counts overflow")?;
    let transform = PostTransform::read(node)?;
    if count == 0 {
        ensure!(!rho.is_empty(), "has no \"rho\"");
        let supports = Supports::new(coefficients, classes, Function::Linear)?;
        return operator(node, 2, SvmClassifier { supports, labels, transform, rho, pairs: None });
    }
    let pairs = classes * (classes - 1) / 2;
    same_length("vectors_per_class", per_class.len(), classes)?;
    same_length("coefficients", coefficients.len(), (classes - 1) * count)?;
    same_length("rho", rho.len(), pairs)?;
    let (a, b) = (floats(node, "prob_a")?, floats(node, "prob_b")?);
    if !a.is_empty() {
        same_length("prob_a", a.len(), pairs)?;
    }
    same_length("prob_b", b.len(), a.len())?;
    let supports = Supports::new(floats(node, "support_vectors")?, count, Function::read(node)?)?;
    let pairs = Pairs { coefficients, vectors_per_class: per_class, platt: a.into_iter().zip(b).collect() };
    operator(node, 2, SvmClassifier { supports, labels, transform, rho, pairs: Some(pairs) })
}

impl SvmClassifier {
    /// Scores a row has: one a class, or one a pair of classes where nothing turns pairs into probabilities.
    fn width(&self) -> usize {
        let classes = self.labels.len();
        match &self.pairs {
            Some(pairs) if pairs.platt.is_empty() && classes > 2 => classes * (classes - 1) / 2,
            _ => classes,
        }
    }
}

impl Kernel for SvmClassifier {
    fn name(&self) -> &'static str {
        "SVMClassifier"
    }

    fn facts(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let rows = inputs[0].rows(self.supports.features)?;
        Ok(tvec!(
            Fact::new(self.labels.kind(), [rows.clone()]),
            Fact::new(DatumType::F32, [rows, self.width().to_dim()])
        ))
    }

    fn eval(&self, inputs: &[&Tensor]) -> TractResult<TVec<Tensor>> {
        let table = Table::<f32>::of(inputs[0], self.supports.features)?;
        let (mut chosen, mut all, mut similar) = (Vec::new(), Vec::new(), Vec::new());
        for row in 0..table.rows {
            self.supports.compare(table.row(row), &mut similar);
            let (class, scores) = match &self.pairs {
                None => self.linear(&similar),
                Some(pairs) => self.one_against_one(pairs, &similar),
            };
            chosen.push(class);
            all.extend(scores);
        }
        Ok(tvec!(self.labels.pick(&chosen)?, tensor(&[table.rows, self.width()], all)?))
    }
}

impl SvmClassifier {
    fn linear(&self, similar: &[f32]) -> (usize, Vec<f32>) {
        let mut scores: Vec<f32> = similar.iter().map(|s| s + self.rho[0]).collect();
        let mut class = arg_max(&scores);
        if scores.len() == 2 {
            // The reference asks for a sure answer of the larger score, whichever class has it.
            let sure = if self.all_positive() { scores[class] >= 0.5 } else { scores[class] > 0.0 };
            class = if sure { 1 } else { class };
        }
        self.transform.apply(&mut scores);
        (class, scores)
    }

    fn all_positive(&self) -> bool {
        self.supports.vectors.iter().all(|weight| *weight >= 0.0)
    }

    fn one_against_one(&self, pairs: &Pairs, similar: &[f32]) -> (usize, Vec<f32>) {
        let classes = self.labels.len();
        let mut starts = Vec::with_capacity(classes);
        let mut start = 0;
        for count in &pairs.vectors_per_class {
            starts.push(start..start + count);
            start += count;
        }
        let weighted = |row: usize, of: &std::ops::Range<usize>| -> f64 {
            let coefficients = &pairs.coefficients[row * similar.len()..][of.clone()];
            coefficients.iter().zip(&similar[of.clone()]).map(|(c, k)| f64::from(*c) * f64::from(*k)).sum()
        };
        let (mut votes, mut decisions) = (vec![0u32; classes], Vec::with_capacity(self.rho.len()));
        for i in 0..classes {
            for j in i + 1..classes {
                let sum = weighted(j - 1, &starts[i])
                    + weighted(i, &starts[j])
                    + f64::from(self.rho[decisions.len()]);
                votes[if sum > 0.0 { i } else { j }] += 1;
                decisions.push(sum as f32);
            }
        }
        let most = votes.iter().copied().max().unwrap_or(0);
        let class = votes.iter().position(|v| *v == most).unwrap_or(0);
        if !pairs.platt.is_empty() {
            let mut probabilities = couple(classes, &decisions, &pairs.platt);
            self.transform.apply(&mut probabilities);
            return (class, probabilities);
        }
        if classes == 2 {
            // A decision above zero is the first class of the pair, as LIBSVM counts.
            let scores = match self.transform {
                PostTransform::None => two_of_one(decisions[0], SecondClass::Margin, self.transform),
                _ => two_of_one(decisions[0], SecondClass::Complement, self.transform),
            };
            return (class, scores.to_vec());
        }
        self.transform.apply(&mut decisions);
        (class, decisions)
    }
}

/// Pairwise probabilities this close to 0 or 1 are cut: the coupling divides by both.
const CERTAIN: f32 = 1e-7;
/// Rounds of the coupling; LIBSVM's number.
const ROUNDS: usize = 100;

/// Probabilities of classes from the decisions of pairs, by the second method of Wu, Lin and Weng (2004).
fn couple(classes: usize, decisions: &[f32], platt: &[(f32, f32)]) -> Vec<f32> {
    let mut pair = vec![0f32; classes * classes];
    let mut decided = decisions.iter().zip(platt);
    for i in 0..classes {
        for j in i + 1..classes {
            if let Some((decision, (a, b))) = decided.next() {
                let p = (1.0 - logistic(decision * a + b)).clamp(CERTAIN, 1.0 - CERTAIN);
                pair[i * classes + j] = p;
                pair[j * classes + i] = 1.0 - p;
            }
        }
    }
    // Q of the quadratic form that the probabilities minimise.
    let mut q = vec![0f32; classes * classes];
    for i in 0..classes {
        for j in (0..classes).filter(|j| *j != i) {
            q[i * classes + i] += pair[j * classes + i] * pair[j * classes + i];
            q[i * classes + j] = -pair[j * classes + i] * pair[i * classes + j];
        }
    }
    let close_enough = 0.005 / classes as f32;
    let mut p = vec![1.0 / classes as f32; classes];
    for _ in 0..ROUNDS {
        let row = |p: &[f32], i: usize| -> f32 { (0..classes).map(|j| q[i * classes + j] * p[j]).sum() };
        let mut qp: Vec<f32> = (0..classes).map(|i| row(&p, i)).collect();
        let mut pqp: f32 = p.iter().zip(&qp).map(|(p, q)| p * q).sum();
        if qp.iter().all(|each| (each - pqp).abs() < close_enough) {
            break;
        }
        for i in 0..classes {
            let step = (pqp - qp[i]) / q[i * classes + i];
            p[i] += step;
            pqp = (pqp + step * (step * q[i * classes + i] + 2.0 * qp[i])) / (1.0 + step) / (1.0 + step);
            for j in 0..classes {
                qp[j] = (qp[j] + step * q[i * classes + j]) / (1.0 + step);
                p[j] /= 1.0 + step;
            }
        }
    }
    p
}
