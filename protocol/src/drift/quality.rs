//! Data quality: values that were not as they should be, and requests that were refused for it.
//!
//! Counted beside the cells of a window, because a rule of the manifest (a stated range, a list of categories) is not
//! a cell of the baseline, and because a request that was refused has no answer that could be measured.

use serde::{Deserialize, Serialize};

use crate::bundle::ValueRule;

/// A count for each rule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ByRule {
    /// See [`ValueRule::Missing`].
    #[serde(skip_serializing_if = "is_zero")]
    pub missing: u64,
    /// See [`ValueRule::Infinite`].
    #[serde(skip_serializing_if = "is_zero")]
    pub infinite: u64,
    /// See [`ValueRule::OutOfRange`].
    #[serde(skip_serializing_if = "is_zero")]
    pub out_of_range: u64,
    /// See [`ValueRule::UnknownCategory`].
    #[serde(skip_serializing_if = "is_zero")]
    pub unknown_category: u64,
}

impl ByRule {
    /// The count of a rule.
    pub const fn of(&self, rule: ValueRule) -> u64 {
        match rule {
            ValueRule::Missing => self.missing,
            ValueRule::Infinite => self.infinite,
            ValueRule::OutOfRange => self.out_of_range,
            ValueRule::UnknownCategory => self.unknown_category,
        }
    }

    /// Counts `n` more for a rule.
    pub const fn add(&mut self, rule: ValueRule, n: u64) {
        let count = match rule {
            ValueRule::Missing => &mut self.missing,
            ValueRule::Infinite => &mut self.infinite,
            ValueRule::OutOfRange => &mut self.out_of_range,
            ValueRule::UnknownCategory => &mut self.unknown_category,
        };
        *count = count.saturating_add(n);
    }

    /// Adds another count; saturates, as windows do.
    pub fn merge(&mut self, other: &Self) {
        ValueRule::ALL.into_iter().for_each(|rule| self.add(rule, other.of(rule)));
    }

    fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// `12 missing, 3 out of range`; empty when nothing was counted.
    pub fn words(&self) -> String {
        let counted = ValueRule::ALL.into_iter().filter(|rule| self.of(*rule) > 0);
        counted.map(|rule| format!("{} {}", self.of(rule), rule.words())).collect::<Vec<_>>().join(", ")
    }
}

/// What was wrong with the values and the requests of a window, or of a model since it was loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Quality {
    /// Values that a rule caught, those of refused requests included.
    #[serde(skip_serializing_if = "ByRule::is_none")]
    pub values: ByRule,
    /// Requests that were refused by the input policy, by the rule that refused them.
    #[serde(skip_serializing_if = "ByRule::is_none")]
    pub refused: ByRule,
    /// Requests that were refused for their form: shape, datatype, length, JSON.
    #[serde(skip_serializing_if = "is_zero")]
    pub malformed: u64,
}

impl Quality {
    /// Whether nothing was wrong, which is not written.
    pub fn is_clean(&self) -> bool {
        *self == Self::default()
    }

    /// Adds another.
    pub fn merge(&mut self, other: &Self) {
        self.values.merge(&other.values);
        self.refused.merge(&other.refused);
        self.malformed = self.malformed.saturating_add(other.malformed);
    }

    /// `values: 12 missing; refused requests: 3 out of range, 1 malformed`; empty when nothing was wrong.
    pub fn words(&self) -> String {
        let malformed = (self.malformed > 0).then(|| format!("{} malformed", self.malformed));
        let refused = [self.refused.words(), malformed.unwrap_or_default()];
        let refused: Vec<String> = refused.into_iter().filter(|words| !words.is_empty()).collect();
        let parts = [("values", self.values.words()), ("refused requests", refused.join(", "))];
        let said = parts.into_iter().filter(|(_, words)| !words.is_empty());
        said.map(|(what, words)| format!("{what}: {words}")).collect::<Vec<_>>().join("; ")
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde hands a reference in
const fn is_zero(count: &u64) -> bool {
    *count == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up_and_are_told_in_words_and_only_what_happened_is_written() {
        let mut quality = Quality::default();
        assert_eq!(
            (quality.words().as_str(), serde_json::to_string(&quality).unwrap()),
            ("", "{}".to_owned())
        );
        quality.values.add(ValueRule::Missing, 2);
        quality.refused.add(ValueRule::OutOfRange, 1);
        let mut sum = quality;
        sum.merge(&Quality { malformed: 3, ..quality });
        assert_eq!(sum.words(), "values: 4 missing; refused requests: 2 out of range, 3 malformed");
        let text = serde_json::to_string(&sum).unwrap();
        assert_eq!(text, r#"{"values":{"missing":4},"refused":{"out_of_range":2},"malformed":3}"#);
        assert_eq!(serde_json::from_str::<Quality>(&text).unwrap(), sum);
    }
}
