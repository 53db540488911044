//! Can this rollout be run at all, and what can its gates not see?
//!
//! [`ValidSpec::check`] refuses what contradicts itself. [`ValidSpec::warnings`] says before the start, for the
//! fleet at hand, which gate cannot fire and how many devices would do: a rollout that looks guarded and is not is
//! worse than one without a guard.

use plimsoll_protocol::api::{RolloutSpec, StageSpec};
use plimsoll_protocol::wire::v1::MAX_SHADOW_S;

use crate::gate;
use crate::selector::{Selector, SelectorError};

/// Most stages: more than anyone waits for, and a stored rollout stays a small value.
pub const MAX_STAGES: usize = 12;
/// Longest stage wait: 30 days.
pub const MAX_SOAK_S: u32 = 30 * 24 * 3600;
/// Largest share that a gate may allow. Above it, "limit" has lost its meaning.
pub const MAX_LIMIT_PERCENT: f64 = 50.0;
/// A regression that a fleet should be able to see before the last stage: 5 percentage points above the limit.
const REGRESSION_POINTS: f64 = 5.0;

/// Why a spec cannot be run.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SpecError {
    /// The selector does not parse.
    #[error(transparent)]
    Selector(#[from] SelectorError),
    /// No stage, or too many.
    #[error("a rollout has 1 to {MAX_STAGES} stages; this one has {0}")]
    StageCount(usize),
    /// A size that is neither a count nor a percentage.
    #[error("stage {stage}: size {size:?} is neither a number of devices (\"2\") nor a percentage (\"10%\")")]
    Size {
        /// From 1.
        stage: usize,
        /// As written.
        size: String,
    },
    /// Smaller than the stage before it.
    #[error(
        "stage {stage}: {size} is less than {before} of the stage before; sizes include all stages before them, so \
         they may only grow"
    )]
    Shrinks {
        /// From 1.
        stage: usize,
        /// As written.
        size: String,
        /// As written.
        before: String,
    },
    /// The last stage leaves devices out.
    #[error("the last stage has size {0}; it must be \"100%\", or some devices would never get the version")]
    LastStage(String),
    /// A number outside its range.
    #[error("{field} is {value}; {allowed}")]
    Range {
        /// `gate.confidence`, …
        field: String,
        /// As written.
        value: String,
        /// In words.
        allowed: &'static str,
    },
}

/// A spec that can be run: it parses, its stages grow to the whole fleet, its numbers are in range.
#[derive(Debug, Clone, PartialEq)]
pub struct ValidSpec {
    spec: RolloutSpec,
    selector: Selector,
}

/// How many devices a stage takes, together with all stages before it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Size {
    Count(u64),
    Percent(f64),
}

impl Size {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        if let Some(number) = text.strip_suffix('%') {
            let percent: f64 = number.trim_end().parse().ok().filter(|_| digits(number.trim_end()))?;
            return (percent > 0.0 && percent <= 100.0).then_some(Self::Percent(percent));
        }
        text.parse().ok().filter(|n| *n > 0 && digits(text)).map(Self::Count)
    }
}

/// Devices that `stage` takes of `fleet`, together with all stages before it: rounded down so that a size is never
/// exceeded, but at least one, at least `min`, and at most all. A size that does not parse takes none.
pub fn reach(stage: &StageSpec, fleet: u64) -> u64 {
    let wanted = match Size::parse(&stage.size) {
        Some(Size::Count(count)) => count,
        // 1e-9: 7 % of 100 is 7.000000000000001, and 29 % of 100 is 28.999999999999996.
        Some(Size::Percent(percent)) => ((fleet as f64 * percent / 100.0 + 1e-9).floor() as u64).max(1),
        None => return 0,
    };
    wanted.max(u64::from(stage.min)).min(fleet)
}

/// Name of a stage for people: its own, or `stage 2`.
pub fn stage_name(spec: &RolloutSpec, stage: usize) -> String {
    match spec.stages.get(stage).and_then(|s| s.name.as_deref()) {
        Some(name) => format!("stage {} ({name})", stage + 1),
        None => format!("stage {}", stage + 1),
    }
}

impl ValidSpec {
    /// Checks a spec; the error names the field and what is allowed.
    pub fn check(spec: RolloutSpec) -> Result<Self, SpecError> {
        let selector = Selector::parse(&spec.selector)?;
        check_stages(&spec.stages)?;
        check_numbers(&spec)?;
        Ok(Self { spec, selector })
    }

    /// The spec as written.
    pub fn spec(&self) -> &RolloutSpec {
        &self.spec
    }

    /// Its selector.
    pub fn selector(&self) -> &Selector {
        &self.selector
    }

    /// The spec as written.
    pub fn into_spec(self) -> RolloutSpec {
        self.spec
    }

    /// What an operator should know before starting this on `fleet` matching devices, in words.
    pub fn warnings(&self, fleet: u64) -> Vec<String> {
        let mut warnings = Vec::new();
        if fleet == 0 {
            warnings.push(format!(
                "no device matches the selector {:?} now; the first that does starts stage 1",
                self.spec.selector
            ));
            return warnings;
        }
        if self.spec.stages.len() > 1 {
            warnings.extend(self.blind_gates(fleet));
            warnings.extend(self.shape(fleet));
        } else {
            warnings.push(format!(
                "there is one stage: {} get the version at once, and a bad one is noticed on all of them",
                gate::devices(fleet)
            ));
        }
        if self.spec.gate.min_accuracy_percent.is_some() && self.spec.stages.iter().all(|s| s.soak_s == 0) {
            warnings.push(
                "gate.min_accuracy_percent judges by labels, which come after the answers, and no stage waits for any \
                 (soak_s = 0): a version may be everywhere before the first"
                    .to_owned(),
            );
        }
        warnings
    }

    fn blind_gates(&self, fleet: u64) -> Vec<String> {
        let gate = &self.spec.gate;
        let alpha = gate::budget(gate);
        let Some(before_last) = self.spec.stages.len().checked_sub(2).and_then(|i| self.spec.stages.get(i))
        else {
            return Vec::new();
        };
        let seen = reach(before_last, fleet);
        let mut warnings = Vec::new();
        let limits = if gate.max_failed_percent == gate.max_silent_percent {
            vec![("failed or silent", gate.max_failed_percent)]
        } else {
            vec![("failed", gate.max_failed_percent), ("silent", gate.max_silent_percent)]
        };
        for (what, limit) in limits {
            let bad = limit + REGRESSION_POINTS;
            let needed = devices_to_see(limit, bad, alpha);
            let Some(needed) = needed.filter(|n| *n > seen) else { continue };
            let able = match gate::fewest_to_breach(limit, seen, alpha) {
                Some(k) => format!("stops it at {k} of {seen} {what}"),
                None => "stops it only if none comes through".to_owned(),
            };
            warnings.push(format!(
                "the gate before the last stage, with at most {} there, {able}; to stop a version with {} {what} \
                 there, about {} would do",
                gate::devices(seen), gate::percent(bad), gate::devices(needed),
            ));
        }
        if u64::from(gate.min_sample) > seen {
            warnings.push(format!(
                "gate.min_sample is {}, with at most {} before the last stage: judged when all of them have answered",
                gate.min_sample, gate::devices(seen),
            ));
        }
        warnings
    }

    fn shape(&self, fleet: u64) -> Vec<String> {
        let mut warnings = Vec::new();
        let sizes: Vec<u64> = self.spec.stages.iter().map(|s| reach(s, fleet)).collect();
        if sizes.first().is_some_and(|first| first * 2 > fleet && fleet > 1) {
            warnings.push(format!(
                "stage 1 takes {} of {fleet}: more than half of the fleet is no canary",
                gate::devices(sizes.first().copied().unwrap_or(0))
            ));
        }
        for (i, pair) in sizes.windows(2).enumerate() {
            if let [before, after] = pair
                && after <= before
            {
                warnings.push(format!(
                    "stage {} adds no device to the {before} of the stages before it: with {} it only waits",
                    i + 2,
                    gate::devices(fleet),
                ));
            }
        }
        if self.spec.stages.iter().rev().skip(1).all(|s| s.soak_s == 0) {
            warnings.push("no stage but the last waits (soak_s = 0): only trials on the devices hold the next stage back".to_owned());
        }
        warnings
    }
}

/// About how many devices must answer until a share `bad_percent` breaches the limit: the answers that are expected,
/// not unlucky ones. Doubling finds the range, halving the edge; `None` above a million.
fn devices_to_see(limit_percent: f64, bad_percent: f64, alpha: f64) -> Option<u64> {
    let sees = |n: u64| {
        let bad = (n as f64 * bad_percent / 100.0).floor() as u64;
        gate::fewest_to_breach(limit_percent, n, alpha).is_some_and(|fewest| fewest <= bad)
    };
    let mut high = 1;
    while !sees(high) {
        high *= 2;
        if high > 1_000_000 {
            return None;
        }
    }
    let mut low = high / 2;
    while low + 1 < high {
        let middle = low + (high - low) / 2;
        if sees(middle) { high = middle } else { low = middle }
    }
    Some(high)
}

fn check_stages(stages: &[StageSpec]) -> Result<(), SpecError> {
    if stages.is_empty() || stages.len() > MAX_STAGES {
        return Err(SpecError::StageCount(stages.len()));
    }
    let mut before: Option<(Size, &str)> = None;
    for (i, stage) in stages.iter().enumerate() {
        let Some(size) = Size::parse(&stage.size) else {
            return Err(SpecError::Size { stage: i + 1, size: stage.size.clone() });
        };
        let shrinks = match (before.map(|(b, _)| b), size) {
            (Some(Size::Count(b)), Size::Count(a)) => a < b,
            (Some(Size::Percent(b)), Size::Percent(a)) => a < b,
            _ => false, // a count and a percentage compare only for a given fleet: a warning
        };
        if let Some((_, text)) = before.filter(|_| shrinks) {
            return Err(SpecError::Shrinks {
                stage: i + 1,
                size: stage.size.clone(),
                before: text.to_owned(),
            });
        }
        if stage.soak_s > MAX_SOAK_S {
            return Err(range(
                &format!("stage {}: soak_s", i + 1),
                stage.soak_s,
                "at most 30 days (2592000)",
            ));
        }
        before = Some((size, &stage.size));
    }
    match before {
        Some((Size::Percent(percent), _)) if percent >= 100.0 => Ok(()),
        last => Err(SpecError::LastStage(last.map_or_else(String::new, |(_, text)| text.to_owned()))),
    }
}

fn check_numbers(spec: &RolloutSpec) -> Result<(), SpecError> {
    let gate = &spec.gate;
    for (field, value) in [
        ("gate.max_failed_percent", gate.max_failed_percent),
        ("gate.max_silent_percent", gate.max_silent_percent),
    ] {
        if !(0.0..=MAX_LIMIT_PERCENT).contains(&value) {
            return Err(range(field, value, "0 to 50 percent are allowed"));
        }
    }
    check_shadow(spec)?;
    if let Some(least) = gate.min_accuracy_percent
        && !(1.0..=99.99).contains(&least)
    {
        return Err(range("gate.min_accuracy_percent", least, "1 to 99.99 percent are allowed"));
    }
    if !(0.5..=0.999_999).contains(&gate.confidence) {
        return Err(range("gate.confidence", gate.confidence, "0.5 to 0.999999 are allowed; 0.99 is usual"));
    }
    let outputs = &gate.outputs;
    if !(0.01..=1.0).contains(&outputs.max_confidence_drop) {
        let allowed = "0.01 to 1 are allowed; 1 switches the gate off";
        return Err(range("gate.outputs.max_confidence_drop", outputs.max_confidence_drop, allowed));
    }
    if !(0.5..=0.999_999).contains(&outputs.confidence) {
        let allowed = "0.5 to 0.999999 are allowed; 0.999 is usual";
        return Err(range("gate.outputs.confidence", outputs.confidence, allowed));
    }
    if outputs.min_readings == 0 {
        return Err(range(
            "gate.outputs.min_readings",
            0,
            "at least one reading, or there is nothing to compare",
        ));
    }
    if outputs.max_wait_s > MAX_SOAK_S {
        return Err(range("gate.outputs.max_wait_s", outputs.max_wait_s, "at most 30 days (2592000)"));
    }
    if gate.silent_after_s == 0 {
        return Err(range("gate.silent_after_s", 0, "at least a second, or every device is silent at once"));
    }
    if spec.policy.tries == 0 {
        return Err(range("policy.tries", 0, "at least one try, or no device ever takes the version"));
    }
    Ok(())
}

fn check_shadow(spec: &RolloutSpec) -> Result<(), SpecError> {
    let limit = spec.gate.max_shadow_disagree_percent;
    let Some(shadow) = &spec.policy.shadow else {
        let allowed = "it needs a shadow (policy.shadow, or --shadow 20m): without one nothing is compared";
        return limit.map_or(Ok(()), |l| Err(range("gate.max_shadow_disagree_percent", l, allowed)));
    };
    if limit.is_some_and(|limit| !(0.0..=MAX_LIMIT_PERCENT).contains(&limit)) {
        let allowed = "0 to 50 percent are allowed";
        return Err(range("gate.max_shadow_disagree_percent", limit.unwrap_or_default(), allowed));
    }
    if shadow.max_disagree_percent.is_some_and(|limit| f64::from(limit) > MAX_LIMIT_PERCENT) {
        let limit = shadow.max_disagree_percent.unwrap_or_default();
        return Err(range("policy.shadow.max_disagree_percent", limit, "0 to 50 percent are allowed"));
    }
    if !(1..=MAX_SHADOW_S).contains(&shadow.seconds) {
        return Err(range(
            "policy.shadow.seconds",
            shadow.seconds,
            "a second to 7 days (604800) are allowed",
        ));
    }
    if !(1..=100).contains(&shadow.sample_percent) {
        let allowed = "1 to 100 percent of the requests are allowed";
        return Err(range("policy.shadow.sample_percent", shadow.sample_percent, allowed));
    }
    if shadow.min_rows == 0 {
        return Err(range("policy.shadow.min_rows", 0, "at least one row, or there is nothing to compare"));
    }
    Ok(())
}

fn range(field: &str, value: impl ToString, allowed: &'static str) -> SpecError {
    SpecError::Range { field: field.to_owned(), value: value.to_string(), allowed }
}

#[cfg(test)]
mod tests;
