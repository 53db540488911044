//! Values held against the manifest's input policy: one pass over the elements, no allocation, and no pass at all when
//! no rule refuses.
//!
//! Shape and datatype are [`crate::Model::check_inputs`]'s business; here every element exists and has its type.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::ControlFlow;

use plimsoll_protocol::bundle::{Feature, InputSpec, Manifest, ValuePolicy, ValueRule};
use plimsoll_protocol::drift::ByRule;

use crate::tensor::{Data, Tensor, bf16_value, f16_value};

/// A request that the input policy refuses, for the first value that it does not let through.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error(
    "tensor {tensor:?}, row {row}, feature {feature:?}: {value} {why}; this model's input policy refuses such values \
     ({}: refuse)",
    rule.as_str()
)]
pub struct ValueRefusal {
    /// The input, cut to 80 characters.
    pub tensor: String,
    /// Counts from 0.
    pub row: usize,
    /// The column's name, or `input[3]`.
    pub feature: String,
    /// The value as text, cut to 40 characters.
    pub value: String,
    /// What is wrong with it.
    pub why: String,
    /// The rule that refused it.
    pub rule: ValueRule,
}

/// The rules of a manifest's inputs, ready to be asked.
#[derive(Debug, Clone)]
pub struct ValueCheck {
    inputs: Vec<InputRules>,
    refuses: bool,
}

#[derive(Debug, Clone)]
struct InputRules {
    tensor: String,
    /// Of elements that belong to no column.
    policy: ValuePolicy,
    /// One an element of a row, or none when nothing is known of them.
    columns: Vec<Column>,
    /// Whether the first dimension counts rows.
    by_row: bool,
    refuses: bool,
}

#[derive(Debug, Clone)]
struct Column {
    name: String,
    range: Option<(f64, f64)>,
    known: Known,
    policy: ValuePolicy,
}

/// What a category may be.
#[derive(Debug, Clone)]
enum Known {
    Any,
    Numbers(Vec<f64>),
    Texts(BTreeSet<Vec<u8>>),
}

/// A value that a rule caught.
struct Found {
    /// Position in its tensor.
    at: usize,
    rule: ValueRule,
}

impl ValueCheck {
    /// Of a validated manifest.
    pub fn of(manifest: &Manifest) -> Self {
        let inputs: Vec<InputRules> = manifest.inputs.iter().map(InputRules::of).collect();
        Self { refuses: inputs.iter().any(|i| i.refuses), inputs }
    }

    /// Refuses the first value that a rule does not let through. Reads no element when none refuses.
    pub fn check(&self, inputs: &[Tensor]) -> Result<(), ValueRefusal> {
        if !self.refuses {
            return Ok(());
        }
        for (rules, tensor) in self.inputs.iter().zip(inputs).filter(|(rules, _)| rules.refuses) {
            let found = rules.scan(tensor, &mut |found: Found| {
                if rules.policy_at(found.at).refuses(found.rule) {
                    ControlFlow::Break(found)
                } else {
                    ControlFlow::Continue(())
                }
            });
            if let ControlFlow::Break(found) = found {
                return Err(rules.refusal(tensor, &found));
            }
        }
        Ok(())
    }

    /// Counts every value that a rule catches, whether it refuses or not.
    pub fn count(&self, inputs: &[Tensor]) -> ByRule {
        let mut counted = ByRule::default();
        for (rules, tensor) in self.inputs.iter().zip(inputs) {
            let _ = rules.scan(tensor, &mut |found: Found| {
                counted.add(found.rule, 1);
                ControlFlow::<Found>::Continue(())
            });
        }
        counted
    }
}

impl InputRules {
    fn of(spec: &InputSpec) -> Self {
        let columns: Vec<Column> = spec.features.iter().map(|f| Column::of(spec, f)).collect();
        let refuses = |policy: &ValuePolicy| ValueRule::ALL.iter().any(|rule| policy.refuses(*rule));
        Self {
            refuses: refuses(&spec.policy) || columns.iter().any(|c| refuses(&c.policy)),
            tensor: spec.name.chars().take(80).collect(),
            policy: spec.policy,
            columns,
            by_row: spec.shape.len() != 1 || spec.shape == [-1],
        }
    }

    /// Calls `each` with everything that a rule catches, in order, until it breaks off.
    fn scan(
        &self,
        tensor: &Tensor,
        each: &mut impl FnMut(Found) -> ControlFlow<Found>,
    ) -> ControlFlow<Found> {
        macro_rules! integers {
            ($v:ident) => {{
                if self.columns.iter().all(Column::takes_any_number) {
                    return ControlFlow::Continue(()); // an integer is never missing
                }
                self.numbers($v.iter().map(|x| *x as f64), each)
            }};
        }
        match tensor.data() {
            Data::Fp32(v) => self.numbers(v.iter().map(|x| f64::from(*x)), each),
            Data::Fp64(v) => self.numbers(v.iter().copied(), each),
            Data::Fp16(v) => self.numbers(v.iter().map(|x| f64::from(f16_value(*x))), each),
            Data::Bf16(v) => self.numbers(v.iter().map(|x| f64::from(bf16_value(*x))), each),
            Data::Uint8(v) => integers!(v),
            Data::Uint16(v) => integers!(v),
            Data::Uint32(v) => integers!(v),
            Data::Uint64(v) => integers!(v),
            Data::Int8(v) => integers!(v),
            Data::Int16(v) => integers!(v),
            Data::Int32(v) => integers!(v),
            Data::Int64(v) => integers!(v),
            Data::Bool(v) => {
                if self.columns.iter().all(Column::takes_any_number) {
                    return ControlFlow::Continue(());
                }
                self.numbers(v.iter().map(|x| f64::from(u8::from(*x))), each)
            }
            Data::Bytes(v) => self.texts(v, each),
        }
    }

    fn numbers(
        &self,
        values: impl Iterator<Item = f64>,
        each: &mut impl FnMut(Found) -> ControlFlow<Found>,
    ) -> ControlFlow<Found> {
        // Without a column that knows more, only what is not finite can be caught.
        if self.columns.iter().all(Column::takes_any_number) {
            for (at, x) in values.enumerate() {
                if !x.is_finite() {
                    let rule = if x.is_nan() { ValueRule::Missing } else { ValueRule::Infinite };
                    each(Found { at, rule })?;
                }
            }
            return ControlFlow::Continue(());
        }
        let columns = self.columns.iter().cycle();
        for ((at, x), column) in values.enumerate().zip(columns) {
            if let Some(rule) = column.number(x) {
                each(Found { at, rule })?;
            }
        }
        ControlFlow::Continue(())
    }

    fn texts(
        &self,
        values: &[Vec<u8>],
        each: &mut impl FnMut(Found) -> ControlFlow<Found>,
    ) -> ControlFlow<Found> {
        for (at, text) in values.iter().enumerate() {
            let known = || match self.columns.get(at % self.columns.len().max(1)).map(|c| &c.known) {
                Some(Known::Texts(known)) => known.contains(text),
                _ => true,
            };
            let rule = if text.is_empty() {
                Some(ValueRule::Missing)
            } else {
                (!known()).then_some(ValueRule::UnknownCategory)
            };
            if let Some(rule) = rule {
                each(Found { at, rule })?;
            }
        }
        ControlFlow::Continue(())
    }

    fn column_at(&self, at: usize) -> Option<&Column> {
        self.columns.get(at % self.columns.len().max(1))
    }

    fn policy_at(&self, at: usize) -> &ValuePolicy {
        self.column_at(at).map_or(&self.policy, |column| &column.policy)
    }

    fn refusal(&self, tensor: &Tensor, found: &Found) -> ValueRefusal {
        let rows = if self.by_row { tensor.rows().max(1) } else { 1 };
        let width = (tensor.len() / rows).max(1);
        let column = self.column_at(found.at);
        let feature = match column {
            Some(column) => column.name.clone(),
            None => format!("{}[{}]", self.tensor, found.at % width),
        };
        let value = match tensor.data() {
            Data::Bytes(v) => v.get(found.at).map_or_else(String::new, |t| {
                format!("{:?}", String::from_utf8_lossy(t).chars().take(40).collect::<String>())
            }),
            _ => tensor.at(found.at).to_string(),
        };
        let why = match (found.rule, column.and_then(|c| c.range)) {
            (ValueRule::Missing, _) => "is a missing value".into(),
            (ValueRule::Infinite, _) => "is infinite".into(),
            (ValueRule::OutOfRange, Some((low, high))) => format!("is outside {low} to {high}"),
            (ValueRule::OutOfRange, None) => "is out of range".into(),
            (ValueRule::UnknownCategory, _) => {
                format!(
                    "is none of its categories ({})",
                    column.map_or(String::new(), |c| c.known.to_string())
                )
            }
        };
        let (tensor, row) = (self.tensor.clone(), found.at / width);
        ValueRefusal { tensor, row, feature, value, why, rule: found.rule }
    }
}

impl Column {
    fn of(spec: &InputSpec, feature: &Feature) -> Self {
        let known = if feature.categories.is_empty() {
            Known::Any
        } else if spec.datatype.width().is_none() {
            Known::Texts(feature.categories.iter().map(|c| c.clone().into_bytes()).collect())
        } else {
            // Validated to be numbers. A model of FP32 sees 0.1 as FP32 does.
            let single = spec.datatype.as_str() != "FP64";
            let as_seen = |x: f64| if single { f64::from(x as f32) } else { x };
            Known::Numbers(feature.categories.iter().filter_map(|c| c.parse().ok()).map(as_seen).collect())
        };
        Self {
            name: feature.name.chars().take(80).collect(),
            range: feature.range,
            known,
            policy: feature.policy.unwrap_or(spec.policy),
        }
    }

    const fn takes_any_number(&self) -> bool {
        self.range.is_none() && !matches!(self.known, Known::Numbers(_))
    }

    fn number(&self, x: f64) -> Option<ValueRule> {
        if x.is_nan() {
            return Some(ValueRule::Missing);
        }
        if x.is_infinite() {
            return Some(ValueRule::Infinite);
        }
        if self.range.is_some_and(|(low, high)| x < low || x > high) {
            return Some(ValueRule::OutOfRange);
        }
        match &self.known {
            Known::Numbers(known) if !known.contains(&x) => Some(ValueRule::UnknownCategory),
            _ => None,
        }
    }
}

impl fmt::Display for Known {
    /// The first eight; a caller who is refused needs an example, not a dictionary.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        let (all, shown): (usize, Vec<String>) = match self {
            Self::Any => (0, Vec::new()),
            Self::Numbers(v) => (v.len(), v.iter().take(SHOWN).map(f64::to_string).collect()),
            Self::Texts(v) => {
                (v.len(), v.iter().take(SHOWN).map(|t| String::from_utf8_lossy(t).into_owned()).collect())
            }
        };
        write!(f, "{}{}", shown.join(", "), if all > SHOWN { ", …" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use plimsoll_protocol::bundle::{DataType, FeatureKind, OnValue};

    use super::*;
    use crate::testing::classifier_manifest;

    /// Two columns, flow (0 to 100) and mode (1 or 2).
    fn manifest(change: impl FnOnce(&mut InputSpec)) -> Manifest {
        let mut manifest = classifier_manifest(2, 2);
        let input = &mut manifest.inputs[0];
        let mut mode = Feature::new("mode", FeatureKind::Categorical);
        mode.categories = vec!["1".into(), "2".into()];
        let mut flow = Feature::new("flow", FeatureKind::Numeric);
        flow.range = Some((0.0, 100.0));
        input.features = vec![flow, mode];
        change(input);
        manifest
    }

    fn rows(values: &[f32]) -> Vec<Tensor> {
        vec![Tensor::new(vec![values.len() / 2, 2], Data::Fp32(values.to_vec())).unwrap()]
    }

    #[test]
    fn each_rule_refuses_only_when_it_should_and_names_tensor_row_feature_and_value() {
        for (rule, values, expect) in [
            (
                ValueRule::Missing,
                [1.0, 1.0, f32::NAN, 1.0],
                "tensor \"x\", row 1, feature \"flow\": NaN is a missing value",
            ),
            (
                ValueRule::Infinite,
                [1.0, f32::NEG_INFINITY, 1.0, 1.0],
                "row 0, feature \"mode\": -inf is infinite",
            ),
            (
                ValueRule::OutOfRange,
                [1.0, 1.0, 100.5, 2.0],
                "row 1, feature \"flow\": 100.5 is outside 0 to 100",
            ),
            (
                ValueRule::UnknownCategory,
                [1.0, 3.0, 1.0, 1.0],
                "feature \"mode\": 3 is none of its categories (1, 2)",
            ),
        ] {
            let inputs = rows(&values);
            for other in ValueRule::ALL {
                let check = ValueCheck::of(&manifest(|input| input.policy.refuse(other)));
                let got = check.check(&inputs).map_err(|refusal| refusal.to_string());
                if other == rule {
                    let words = got.unwrap_err();
                    assert!(
                        words.contains(expect) && words.contains(rule.as_str()),
                        "{words:?}, not {expect:?}"
                    );
                } else {
                    assert_eq!(got, Ok(()), "{} is not {}", rule.as_str(), other.as_str());
                }
                assert_eq!(check.count(&inputs).of(rule), 1, "counted whether refused or not");
            }
        }
    }

    #[test]
    fn a_feature_may_be_stricter_or_milder_than_its_input() {
        let mild = ValuePolicy::default();
        let strict = ValuePolicy { missing: OnValue::Refuse, ..mild };
        let check = ValueCheck::of(&manifest(|input| {
            input.policy = strict;
            input.features[0].policy = Some(mild);
        }));
        assert_eq!(check.check(&rows(&[f32::NAN, 1.0])), Ok(()));
        assert_eq!(check.check(&rows(&[f32::NAN, f32::NAN])).unwrap_err().feature, "mode");
        let check = ValueCheck::of(&manifest(|input| input.features[1].policy = Some(strict)));
        assert!(
            check.check(&rows(&[f32::NAN, 1.0])).is_ok() && check.check(&rows(&[1.0, f32::NAN])).is_err()
        );
    }

    #[test]
    fn texts_are_missing_when_empty_and_unknown_when_not_listed() {
        let spec = |input: &mut InputSpec| {
            input.datatype = DataType::Bytes;
            input.features = vec![
                Feature::new("colour", FeatureKind::Categorical),
                Feature::new("note", FeatureKind::Categorical),
            ];
            input.features[0].categories = vec!["red".into(), "blue".into()];
            input.policy.refuse(ValueRule::UnknownCategory);
        };
        let check = ValueCheck::of(&manifest(spec));
        let texts = |texts: [&str; 4]| {
            let bytes = texts.iter().map(|t| t.as_bytes().to_vec()).collect();
            [Tensor::new(vec![2, 2], Data::Bytes(bytes)).unwrap()]
        };
        assert_eq!(check.check(&texts(["red", "anything", "blue", ""])), Ok(()));
        assert_eq!(check.count(&texts(["red", "anything", "", ""])).missing, 2);
        let refusal = check.check(&texts(["red", "x", "green", "x"])).unwrap_err().to_string();
        assert!(
            refusal.contains("row 1, feature \"colour\": \"green\" is none of its categories (blue, red)"),
            "{refusal}"
        );
    }

    #[test]
    fn without_columns_only_what_is_not_finite_is_caught() {
        let check = ValueCheck::of(&manifest(|input| {
            input.features.clear();
            input.policy.refuse(ValueRule::Missing);
        }));
        let refusal = check.check(&rows(&[1.0, 2.0, 3.0, f32::NAN])).unwrap_err();
        assert_eq!((refusal.row, refusal.feature.as_str()), (1, "x[1]"));
        let counted = check.count(&rows(&[f32::INFINITY, f32::NAN, 1e30, 0.0]));
        assert_eq!((counted.missing, counted.infinite, counted.out_of_range), (1, 1, 0));
        let whole = Tensor::new(vec![1, 2], Data::Int64(vec![1, 2])).unwrap();
        assert_eq!(check.count(&[whole]), ByRule::default());
    }
}
