//! From raw scores to the answer of a classifier or regressor: the post-transforms, and the forms a binary answer
//! takes when a model has weights for one class only.

use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use crate::attributes::text;
use crate::values::Real;

/// What happens to the scores of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PostTransform {
    None,
    Softmax,
    Logistic,
    SoftmaxZero,
    Probit,
}

impl PostTransform {
    pub(crate) fn read(node: &NodeProto) -> TractResult<Self> {
        Ok(match &*text(node, "post_transform", "NONE")? {
            "NONE" => Self::None,
            "SOFTMAX" => Self::Softmax,
            "LOGISTIC" => Self::Logistic,
            "SOFTMAX_ZERO" => Self::SoftmaxZero,
            "PROBIT" => Self::Probit,
            other => {
                bail!("post_transform {other:?} is none of NONE, SOFTMAX, LOGISTIC, SOFTMAX_ZERO, PROBIT")
            }
        })
    }

    /// By the number that newer operators write.
    pub(crate) fn of_number(number: i64) -> TractResult<Self> {
        Ok(match number {
            0 => Self::None,
            1 => Self::Softmax,
            2 => Self::Logistic,
            3 => Self::SoftmaxZero,
            4 => Self::Probit,
            other => bail!("post_transform {other} is not between 0 and 4"),
        })
    }

    /// Transforms the scores of one row in place.
    pub(crate) fn apply<T: Real>(self, scores: &mut [T]) {
        match self {
            Self::None => {}
            Self::Softmax => softmax(scores, false),
            Self::SoftmaxZero => softmax(scores, true),
            Self::Logistic => scores.iter_mut().for_each(|s| *s = logistic(*s)),
            Self::Probit => scores.iter_mut().for_each(|s| *s = T::of(f64::from(probit(s.wide() as f32)))),
        }
    }
}

/// How one score becomes the scores of two classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SecondClass {
    /// It is the probability of the second.
    Complement,
    /// It is a margin, positive for the second class.
    Margin,
}

/// The two scores that one score stands for.
pub(crate) fn two_of_one<T: Real>(score: T, how: SecondClass, transform: PostTransform) -> [T; 2] {
    match (how, transform) {
        (_, PostTransform::Logistic) => [logistic(-score), logistic(score)],
        (SecondClass::Complement, _) => [T::of(1.0) - score, score],
        (SecondClass::Margin, _) => [-score, score],
    }
}

/// The first of the largest.
pub(crate) fn arg_max<T: Real>(scores: &[T]) -> usize {
    let mut best = 0;
    for (at, score) in scores.iter().enumerate().skip(1) {
        if *score > scores[best] {
            best = at;
        }
    }
    best
}

/// Never overflows: the exponent is never positive.
pub(crate) fn logistic<T: Real>(x: T) -> T {
    let of_magnitude = 1.0 / (1.0 + (-x.wide().abs()).exp());
    T::of(if x.wide() < 0.0 { 1.0 - of_magnitude } else { of_magnitude })
}

/// Scores this close to zero are "no score" for SOFTMAX_ZERO (the standard says zero; onnxruntime allows for rounding).
const NO_SCORE: f64 = 1e-7;

fn softmax<T: Real>(scores: &mut [T], keep_zeros: bool) {
    let max = scores.iter().fold(f64::MIN, |max, s| if s.wide() > max { s.wide() } else { max });
    let each = |s: T| match keep_zeros && s.wide().abs() <= NO_SCORE {
        true => s.wide() * (-max).exp(),
        false => (s.wide() - max).exp(),
    };
    let exps: TVec<(f64, bool)> =
        scores.iter().map(|s| (each(*s), !(keep_zeros && s.wide().abs() <= NO_SCORE))).collect();
    let sum: f64 = exps.iter().filter(|(_, counted)| *counted).map(|(exp, _)| exp).sum();
    for (score, (exp, _)) in scores.iter_mut().zip(exps) {
        *score = T::of(exp / sum);
    }
}

/// Winitzki's constant `a` of his closed approximation of the error function; onnxruntime inverts with it, so do we.
const WINITZKI: f32 = 0.147;

/// The quantile of the normal distribution, as closely as the reference computes it, in 32 bits as it does. (The
/// approximation is good to 0.004; a model's owner compared his answers with onnxruntime's, not with a table.)
fn probit(p: f32) -> f32 {
    let x = 2.0 * p - 1.0;
    let log = ((1.0 - x) * (1.0 + x)).ln();
    let half = 2.0 / (std::f32::consts::PI * WINITZKI) + 0.5 * log;
    let magnitude = ((half * half - log / WINITZKI).sqrt() - half).sqrt();
    std::f32::consts::SQRT_2 * if x < 0.0 { -magnitude } else { magnitude }
}
