//! Ground truth that came late, held against what was answered.
//!
//! Counted in whole numbers like everything in a window, so that days, devices and versions add up exactly. An error
//! of a regression is counted in steps of the output's reference: 1/65,536 of the range of its edges.

use serde::{Deserialize, Serialize};

use super::baseline::{Baseline, Source};
use super::window::{MAX_STEPS, scale};

/// Labels of one version, and how the answers compare with them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Truth {
    /// Answers of classes that got a label.
    #[serde(skip_serializing_if = "is_zero")]
    pub labelled: u64,
    /// Of those, the class with the largest score was the label.
    #[serde(skip_serializing_if = "is_zero")]
    pub correct: u64,
    /// Numbers that got a true value.
    #[serde(skip_serializing_if = "is_zero")]
    pub numbers: u64,
    /// Sum of their absolute errors, in steps; an error of more than 16 ranges counts as 16.
    #[serde(skip_serializing_if = "is_zero")]
    pub error_steps: u64,
    /// Sum of the squares of the same: 2^24 errors of 16 ranges fit.
    #[serde(skip_serializing_if = "is_zero")]
    pub square_steps: u64,
    /// Labels whose answer is not known any more, or never was.
    #[serde(skip_serializing_if = "is_zero")]
    pub unknown: u64,
}

impl Truth {
    /// Whether no label came, which is not written.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// A class that was, or was not, the label.
    pub const fn of_class(correct: bool) -> Self {
        Self { labelled: 1, correct: correct as u64, numbers: 0, error_steps: 0, square_steps: 0, unknown: 0 }
    }

    /// A number that was off by `error`, in its own unit. Without a reference for the output nothing can be said.
    pub fn of_number(error: f64, baseline: &Baseline) -> Self {
        let Some(step) = step(baseline) else { return Self::default() };
        let steps = (error.abs() / step).clamp(0.0, MAX_STEPS).round_ties_even() as u64;
        Self { numbers: 1, error_steps: steps, square_steps: steps.saturating_mul(steps), ..Self::default() }
    }

    /// Adds another; saturates, as windows do.
    pub fn merge(&mut self, other: &Self) {
        let add = |a: &mut u64, b: u64| *a = a.saturating_add(b);
        add(&mut self.labelled, other.labelled);
        add(&mut self.correct, other.correct);
        add(&mut self.numbers, other.numbers);
        add(&mut self.error_steps, other.error_steps);
        add(&mut self.square_steps, other.square_steps);
        add(&mut self.unknown, other.unknown);
    }

    /// What makes these counts impossible, if anything does.
    pub(super) fn fault(&self) -> Option<&'static str> {
        (self.correct > self.labelled).then_some("it claims more correct answers than labels")
    }

    /// Share of correct answers; `None` without a label.
    pub fn accuracy(&self) -> Option<f64> {
        (self.labelled > 0).then(|| self.correct as f64 / self.labelled as f64)
    }

    /// Mean absolute error and root mean square error, in the output's unit; `None` without a true value.
    pub fn errors(&self, baseline: &Baseline) -> Option<(f64, f64)> {
        let step = step(baseline).filter(|_| self.numbers > 0)?;
        let n = self.numbers as f64;
        Some((step * self.error_steps as f64 / n, step * (self.square_steps as f64 / n).sqrt()))
    }

    /// `accuracy 91.2 % of 340 labelled answers`; empty when nothing is known.
    pub fn words(&self, baseline: Option<&Baseline>) -> String {
        let mut parts = Vec::new();
        if let Some(share) = self.accuracy() {
            parts.push(format!("accuracy {:.1} % of {} labelled answers", share * 100.0, self.labelled));
        }
        if let Some((mean, rms)) = baseline.and_then(|b| self.errors(b)) {
            let n = self.numbers;
            parts.push(format!(
                "mean absolute error {mean:.4}, root mean square {rms:.4}, of {n} labelled answers"
            ));
        }
        if self.unknown > 0 {
            parts.push(format!("{} labels came too late or for nothing", self.unknown));
        }
        parts.join("; ")
    }
}

/// A step of the first number that the model answers.
fn step(baseline: &Baseline) -> Option<f64> {
    let output = baseline.features().iter().find(|f| matches!(f.source, Source::Output { index: 0, .. }))?;
    scale(&output.bins).map(|(_, step)| step).filter(|step| *step > 0.0)
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde hands a reference in
const fn is_zero(count: &u64) -> bool {
    *count == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drift::{Cell, Column, Order};

    fn baseline() -> Baseline {
        let column = Column {
            name: "power".into(),
            source: Source::Output { tensor: "y".into(), index: 0 },
            range: None,
            categorical: false,
            values: (0..=1000).map(|i| Cell::from(i as f32)).collect(),
        };
        Baseline::fit(&[column], Order::Unordered).unwrap()
    }

    #[test]
    fn labels_add_up_to_an_accuracy() {
        let mut truth = Truth::default();
        assert!(truth.is_empty() && truth.accuracy().is_none());
        for correct in [true, true, false, true] {
            truth.merge(&Truth::of_class(correct));
        }
        assert_eq!((truth.labelled, truth.accuracy()), (4, Some(0.75)));
        assert_eq!(truth.words(None), "accuracy 75.0 % of 4 labelled answers");
        let text = serde_json::to_string(&truth).unwrap();
        assert_eq!(text, r#"{"labelled":4,"correct":3}"#);
        assert_eq!(serde_json::from_str::<Truth>(&text).unwrap(), truth);
    }

    #[test]
    fn errors_of_numbers_are_in_the_outputs_unit_and_one_absurd_value_is_bounded() {
        let base = baseline();
        let mut truth = Truth::default();
        for error in [3.0, -4.0] {
            truth.merge(&Truth::of_number(error, &base));
        }
        let (mean, rms) = truth.errors(&base).unwrap();
        assert!((mean - 3.5).abs() < 0.02 && (rms - 12.5_f64.sqrt()).abs() < 0.02, "{mean} {rms}");
        truth.merge(&Truth::of_number(f64::INFINITY, &base));
        let (mean, _) = truth.errors(&base).unwrap();
        assert!(mean.is_finite() && mean < 16.0 * 1000.0 / 3.0 + 10.0, "{mean}");
    }
}
