//! What becomes of the sums of a row.
//!
//! A classifier of two classes may carry weights for one of them only; what its single column means then depends on
//! whether all weights are positive (a probability) or not (a margin). The standard is silent; these are
//! onnxruntime's answers, each held by a case in `tests/models`.

use super::Finish;
use super::forest::Aggregate;
use crate::scores::{PostTransform, SecondClass, arg_max, two_of_one};
use crate::values::Real;

/// How a classifier answers.
#[derive(Debug)]
pub(super) struct Classes {
    /// Added to the scores: none, one, or one a class.
    pub(super) base: Vec<f64>,
    pub(super) transform: PostTransform,
    pub(super) count: usize,
    /// Two classes, and weights for one of them.
    pub(super) one_column: bool,
    pub(super) all_positive: bool,
}

/// Answers of a classifier so far.
pub(super) struct Classified<'a> {
    classes: &'a Classes,
    /// Index of the class, one a row.
    pub(super) chosen: Vec<usize>,
    /// One score a class and row.
    pub(super) scores: Vec<f32>,
}

impl<'a> Classified<'a> {
    pub(super) fn new(classes: &'a Classes) -> Self {
        Self { classes, chosen: Vec::new(), scores: Vec::new() }
    }

    fn finish<T: Real>(&mut self, scores: &mut [T], seen: &[bool]) {
        if self.classes.count == 2 {
            self.two(scores, seen);
        } else {
            self.many(scores, seen);
        }
    }

    fn many<T: Real>(&mut self, scores: &mut [T], seen: &[bool]) {
        for (score, base) in scores.iter_mut().zip(&self.classes.base) {
            *score = *score + T::of(*base);
        }
        // A class that no leaf voted for and no base lifts is not chosen, even if all others are below zero.
        let has = |class: usize| seen[class] || class < self.classes.base.len();
        let best = (0..scores.len())
            .filter(|class| has(*class))
            .reduce(|best, class| if scores[class] > scores[best] { class } else { best });
        self.chosen.push(best.unwrap_or_else(|| arg_max(scores)));
        self.classes.transform.apply(scores);
        self.scores.extend(scores.iter().map(|s| s.wide() as f32));
    }

    fn two<T: Real>(&mut self, scores: &mut [T], seen: &[bool]) {
        match self.classes.base[..] {
            // The base of the first class is not used, nor are the weights of the second.
            [_, base] if seen[1] => {
                scores[1] = scores[0] + T::of(base);
                scores[0] = -scores[1];
            }
            [first, second] => {
                scores[0] = scores[0] + T::of(first);
                scores[1] = scores[1] + T::of(second);
            }
            [base] => scores[0] = scores[0] + T::of(base),
            _ => {}
        }
        let (decisive, limit) = (if seen[1] { scores[1] } else { scores[0] }, self.limit());
        self.chosen.push(usize::from(decisive.wide() > limit));
        let mut both = if seen[1] || self.classes.base.len() == 2 {
            // A class that no leaf voted for has the score 0, whatever its base.
            let mut both = [0, 1].map(|class| if seen[class] { scores[class] } else { T::default() });
            self.classes.transform.apply(&mut both);
            both
        } else {
            let how = match self.classes.one_column && self.classes.all_positive {
                true => SecondClass::Complement,
                false => SecondClass::Margin,
            };
            two_of_one(scores[0], how, self.classes.transform)
        };
        self.scores.extend(both.iter_mut().map(|s| s.wide() as f32));
    }

    /// Above it the second class is chosen.
    fn limit(&self) -> f64 {
        if self.classes.one_column && self.classes.all_positive { 0.5 } else { 0.0 }
    }
}

impl Finish for Classified<'_> {
    fn single(&mut self, scores: &mut [f32], seen: &[bool]) {
        self.finish(scores, seen);
    }
    fn double(&mut self, scores: &mut [f64], seen: &[bool]) {
        self.finish(scores, seen);
    }
}

/// How a regressor answers.
#[derive(Debug)]
pub(super) struct Targets {
    base: Vec<f64>,
    transform: PostTransform,
    pub(super) count: usize,
    /// Trees, where their mean is asked for; otherwise 1.
    divisor: f64,
}

impl Targets {
    pub(super) fn new(
        base: Vec<f64>,
        transform: PostTransform,
        count: usize,
        aggregate: Aggregate,
        trees: usize,
    ) -> Self {
        let divisor = if aggregate == Aggregate::Average { trees as f64 } else { 1.0 };
        Self { base, transform, count, divisor }
    }
}

/// Answers of a regressor so far.
pub(super) struct Summed<'a> {
    targets: &'a Targets,
    /// One a target and row; exact, whatever precision they were summed in.
    pub(super) values: Vec<f64>,
}

impl<'a> Summed<'a> {
    pub(super) fn new(targets: &'a Targets) -> Self {
        Self { targets, values: Vec::new() }
    }

    fn finish<T: Real>(&mut self, scores: &mut [T]) {
        for (at, score) in scores.iter_mut().enumerate() {
            *score = *score / T::of(self.targets.divisor)
                + T::of(self.targets.base.get(at).copied().unwrap_or(0.0));
        }
        // One target alone is transformed by PROBIT only: a reading of the standard that exporters rely on.
        if scores.len() > 1 || self.targets.transform == PostTransform::Probit {
            self.targets.transform.apply(scores);
        }
        self.values.extend(scores.iter().map(|s| s.wide()));
    }
}

impl Finish for Summed<'_> {
    fn single(&mut self, scores: &mut [f32], _: &[bool]) {
        self.finish(scores);
    }
    fn double(&mut self, scores: &mut [f64], _: &[bool]) {
        self.finish(scores);
    }
}
