//! What a bundle answered lately, so that a label that comes late finds its answer.
//!
//! Kept in memory by prediction id and row: the class, or the number. A label that comes after a restart, or after so
//! many answers that its own is gone, is told so; it can never be held against another answer, because an id carries
//! the life of the process that gave it and a counter that is not used twice in that life.

use std::collections::VecDeque;

use plimsoll_protocol::bundle::{Manifest, OutputKind};
use plimsoll_runtime::{Tensor, arg_max};
use serde_json::Value;

/// Answers kept of a bundle: at one a second nine hours, at ten a second one; 16 bytes each are 512 KiB, for the two
/// versions of a model that may have answers out 1 MiB.
const KEPT: usize = 32_768;

/// Answers of one bundle that may still get a label.
#[derive(Debug)]
pub struct Answers {
    /// In the order of their ids.
    kept: VecDeque<Given>,
    /// Answers up to this one have been forgotten; `None` when none was.
    forgotten: Option<u64>,
    what: Option<What>,
}

/// One row of an answer.
#[derive(Debug, Clone, Copy)]
struct Given {
    id: u64,
    /// The row, and in the highest bit whether it has its label.
    row: u32,
    answer: f32,
}

/// Set in [`Given::row`] once a label came; no request has 2^31 rows.
const LABELLED: u32 = 1 << 31;

/// Which output a label is compared with.
#[derive(Debug)]
enum What {
    Class { output: usize, labels: Vec<String> },
    Number { output: usize },
}

/// How an answer compares with its label.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Outcome {
    /// Whether the class with the largest score is the label.
    Class(bool),
    /// Answer less true value.
    Error(f64),
}

/// Why a label was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// The model answers neither classes nor numbers.
    #[error("this model has no output of class scores or of a number that a label could be compared with")]
    Nothing,
    /// Its answer was there and is not any more.
    #[error(
        "its answer is forgotten: the latest {KEPT} rows of a version are kept, and none after a restart"
    )]
    Expired,
    /// No answer had this id.
    #[error("no answer was given under this prediction id")]
    Unknown,
    /// The answer has other rows.
    #[error("{0}")]
    Row(String),
    /// It is no label of this model.
    #[error("{0}")]
    Label(String),
    /// It has one already.
    #[error("this answer has its label already; the first one counts")]
    Twice,
}

impl Answers {
    /// Nothing yet, for the bundle of this manifest.
    pub fn of(manifest: &Manifest) -> Self {
        let position = |kind| manifest.outputs.iter().position(|o| o.kind == kind);
        let class = position(OutputKind::ClassScores).map(|output| What::Class {
            output,
            labels: manifest.outputs.get(output).map(|o| o.labels.clone()).unwrap_or_default(),
        });
        let what = class.or_else(|| position(OutputKind::Regression).map(|output| What::Number { output }));
        Self { kept: VecDeque::new(), forgotten: None, what }
    }

    /// Remembers an answer. Ids must rise.
    pub fn note(&mut self, id: u64, outputs: &[Tensor]) {
        let tensor = match &self.what {
            None => return,
            Some(What::Class { output, .. } | What::Number { output }) => outputs.get(*output),
        };
        let Some(tensor) = tensor.filter(|t| !t.is_empty()) else { return };
        let values = tensor.to_f32();
        let rows = if tensor.shape().len() > 1 { tensor.rows().max(1) } else { 1 };
        let is_class = matches!(self.what, Some(What::Class { .. }));
        // A vector of numbers is as many rows; a vector of scores is one.
        let rows = if !is_class && tensor.shape().len() == 1 { values.len() } else { rows };
        for (row, values) in (0u32..).zip(values.chunks((values.len() / rows).max(1))).take(KEPT) {
            if self.kept.len() >= KEPT {
                self.forgotten = self.kept.pop_front().map(|old| old.id);
            }
            let answer =
                if is_class { arg_max(values) as f32 } else { values.first().copied().unwrap_or(f32::NAN) };
            self.kept.push_back(Given { id, row, answer });
        }
    }

    /// Compares a row of an answer with its label, once. Without `row` the answer must have one row.
    pub fn label(&mut self, id: u64, row: Option<u32>, label: &Value) -> Result<Outcome, LabelError> {
        let what = self.what.as_ref().ok_or(LabelError::Nothing)?;
        let first = self.kept.partition_point(|g| g.id < id);
        let rows = self.kept.range(first..).take_while(|g| g.id == id).count();
        if rows == 0 {
            let gone = self.forgotten.is_some_and(|last| id <= last);
            return Err(if gone { LabelError::Expired } else { LabelError::Unknown });
        }
        let wanted = match row {
            Some(row) => row,
            None if rows == 1 => self.kept.get(first).map_or(0, |g| g.row & !LABELLED),
            None => {
                return Err(LabelError::Row(format!(
                    "this answer has {rows} rows: say which one with `row`, from 0"
                )));
            }
        };
        let given = self.kept.range_mut(first..first + rows).find(|g| g.row & !LABELLED == wanted);
        let Some(given) = given else {
            return Err(LabelError::Row(format!("this answer has no row {wanted}; it has {rows}, from 0")));
        };
        let outcome = what.compare(given.answer, label)?;
        if given.row & LABELLED != 0 {
            return Err(LabelError::Twice);
        }
        given.row |= LABELLED;
        Ok(outcome)
    }
}

impl What {
    fn compare(&self, answer: f32, label: &Value) -> Result<Outcome, LabelError> {
        match self {
            Self::Number { .. } => {
                let truth = label.as_f64().filter(|x| x.is_finite());
                let truth = truth.ok_or_else(|| LabelError::Label(format!("{label} is not a number")))?;
                Ok(Outcome::Error(f64::from(answer) - truth))
            }
            Self::Class { labels, .. } => {
                let class = match label {
                    Value::String(name) => {
                        let named = labels.iter().position(|l| l == name);
                        named.or_else(|| name.parse().ok().filter(|_| labels.is_empty()))
                    }
                    Value::Number(_) => label.as_u64().and_then(|n| usize::try_from(n).ok()),
                    _ => None,
                };
                let class = class.filter(|c| labels.is_empty() || *c < labels.len());
                let class = class.ok_or_else(|| {
                    let known = if labels.is_empty() {
                        "the index of a class is expected".to_owned()
                    } else {
                        let shown: Vec<&str> = labels.iter().take(8).map(String::as_str).collect();
                        let more = if labels.len() > shown.len() { ", …" } else { "" };
                        format!("there are {}{more}", shown.join(", "))
                    };
                    let text: String = label.to_string().chars().take(80).collect();
                    LabelError::Label(format!("{text} is no class of this model; {known}"))
                })?;
                Ok(Outcome::Class(answer as usize == class))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use plimsoll_runtime::Data;
    use plimsoll_runtime::testing::classifier_manifest;
    use serde_json::json;

    use super::*;

    fn scores(rows: &[[f32; 2]]) -> Vec<Tensor> {
        vec![Tensor::new(vec![rows.len(), 2], Data::Fp32(rows.concat())).unwrap()]
    }

    #[test]
    fn a_label_finds_its_row_once_and_by_name_or_index() {
        let mut manifest = classifier_manifest(2, 2);
        manifest.outputs[0].labels = vec!["ok".into(), "bad".into()];
        let mut answers = Answers::of(&manifest);
        answers.note(3, &scores(&[[0.9, 0.1]]));
        answers.note(7, &scores(&[[0.2, 0.8], [0.6, 0.4]]));
        assert_eq!(answers.label(3, None, &json!("ok")), Ok(Outcome::Class(true)));
        assert_eq!(answers.label(3, None, &json!(1)), Err(LabelError::Twice));
        assert_eq!(answers.label(7, Some(0), &json!("ok")), Ok(Outcome::Class(false)));
        assert_eq!(answers.label(7, Some(1), &json!(0)), Ok(Outcome::Class(true)));
        for (id, row, label, words) in [
            (7, None, json!(0), "has 2 rows"),
            (7, Some(2), json!(0), "no row 2"),
            (7, Some(0), json!("worse"), "\"worse\" is no class of this model; there are ok, bad"),
            (7, Some(0), json!(2), "no class"),
            (7, Some(0), json!(null), "no class"),
            (5, None, json!(0), "no answer was given"),
            (8, None, json!(0), "no answer was given"),
        ] {
            let error = answers.label(id, row, &label).unwrap_err().to_string();
            assert!(error.contains(words), "{error:?} does not say {words:?}");
        }
    }

    #[test]
    fn a_number_is_off_by_a_number() {
        let mut manifest = classifier_manifest(2, 1);
        manifest.outputs[0].kind = OutputKind::Regression;
        let mut answers = Answers::of(&manifest);
        answers.note(0, &[Tensor::new(vec![2, 1], Data::Fp32(vec![5.0, 7.5])).unwrap()]);
        assert_eq!(answers.label(0, Some(1), &json!(8)), Ok(Outcome::Error(-0.5)));
        assert!(answers.label(0, Some(0), &json!("8")).unwrap_err().to_string().contains("not a number"));
        manifest.outputs[0].kind = OutputKind::Raw;
        assert_eq!(Answers::of(&manifest).label(0, None, &json!(1)), Err(LabelError::Nothing));
    }

    #[test]
    fn what_is_forgotten_is_told_from_what_never_was() {
        let mut answers = Answers::of(&classifier_manifest(2, 2));
        for id in 0..(KEPT as u64 + 2) {
            answers.note(2 * id, &scores(&[[0.9, 0.1]]));
        }
        assert_eq!(answers.kept.len(), KEPT);
        assert_eq!(answers.label(0, None, &json!(0)), Err(LabelError::Expired));
        assert_eq!(answers.label(4, None, &json!(0)), Ok(Outcome::Class(true)));
        assert_eq!(answers.label(5, None, &json!(0)), Err(LabelError::Unknown));
    }
}
