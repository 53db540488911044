//! What happens to a request whose values are not as they should be.
//!
//! Shape and datatype are checked always; a value is only ever refused because the bundle's author says so. By default
//! everything is let through and counted: scikit-learn pipelines impute NaN on purpose, a reading beyond its usual
//! range is what a model is often there for, and a service that suddenly answers 400 is worse than one whose data
//! quality is reported. Whoever knows better says `refuse`, for an input or for one of its features.

use serde::{Deserialize, Serialize};

/// What a value can have against it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ValueRule {
    /// NaN, which is how a float tensor says that nothing was there; `null` in JSON; an empty text.
    Missing,
    /// Plus or minus infinity.
    Infinite,
    /// A number outside its feature's `range`.
    OutOfRange,
    /// A value that is not among its feature's `categories`.
    UnknownCategory,
}

impl ValueRule {
    /// Every rule, in the order in which a value is held against them.
    pub const ALL: [Self; 4] = [Self::Missing, Self::Infinite, Self::OutOfRange, Self::UnknownCategory];

    /// As the manifest writes it: `out_of_range`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Infinite => "infinite",
            Self::OutOfRange => "out_of_range",
            Self::UnknownCategory => "unknown_category",
        }
    }

    /// For people: `out of range`.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Infinite => "infinite",
            Self::OutOfRange => "out of range",
            Self::UnknownCategory => "of an unknown category",
        }
    }
}

impl std::str::FromStr for ValueRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|rule| rule.as_str() == text);
        found.ok_or_else(|| {
            let known: Vec<&str> = Self::ALL.iter().map(|rule| rule.as_str()).collect();
            format!("{text:?} is none of {}", known.join(", "))
        })
    }
}

/// What a rule does with a value that it catches. Both are counted as data quality.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnValue {
    /// The model is asked all the same.
    #[default]
    Count,
    /// The whole request is answered 400, by name of tensor, row, feature and rule.
    Refuse,
}

impl OnValue {
    #[allow(clippy::trivially_copy_pass_by_ref)] // serde hands a reference in
    fn is_count(&self) -> bool {
        *self == Self::Count
    }
}

/// What happens to values, by rule. See the top of this file for why everything is let through by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ValuePolicy {
    /// For [`ValueRule::Missing`].
    #[serde(skip_serializing_if = "OnValue::is_count")]
    pub missing: OnValue,
    /// For [`ValueRule::Infinite`].
    #[serde(skip_serializing_if = "OnValue::is_count")]
    pub infinite: OnValue,
    /// For [`ValueRule::OutOfRange`].
    #[serde(skip_serializing_if = "OnValue::is_count")]
    pub out_of_range: OnValue,
    /// For [`ValueRule::UnknownCategory`].
    #[serde(skip_serializing_if = "OnValue::is_count")]
    pub unknown_category: OnValue,
}

impl ValuePolicy {
    /// Whether it is the default, which is not written.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// What a rule does.
    pub const fn of(&self, rule: ValueRule) -> OnValue {
        match rule {
            ValueRule::Missing => self.missing,
            ValueRule::Infinite => self.infinite,
            ValueRule::OutOfRange => self.out_of_range,
            ValueRule::UnknownCategory => self.unknown_category,
        }
    }

    /// Lets a rule refuse.
    pub const fn refuse(&mut self, rule: ValueRule) {
        let does = match rule {
            ValueRule::Missing => &mut self.missing,
            ValueRule::Infinite => &mut self.infinite,
            ValueRule::OutOfRange => &mut self.out_of_range,
            ValueRule::UnknownCategory => &mut self.unknown_category,
        };
        *does = OnValue::Refuse;
    }

    /// Whether a value that a rule catches ends the request.
    pub fn refuses(&self, rule: ValueRule) -> bool {
        self.of(rule) == OnValue::Refuse
    }

    /// The rules that refuse, in words: `missing, out_of_range`; empty when none does.
    pub fn refusals(&self) -> String {
        let all = ValueRule::ALL.into_iter().filter(|rule| self.refuses(*rule));
        all.map(ValueRule::as_str).collect::<Vec<_>>().join(", ")
    }
}
