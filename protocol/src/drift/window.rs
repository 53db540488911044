//! Counting.
//!
//! A [`Window`] is what one device saw of one model version between two instants: a count for every cell of every
//! feature of the baseline. Windows of one schema merge by integer addition, so days, cohorts and fleets are sums
//! of windows, exact in any order. Nothing here reads a clock: opening and closing times are arguments.

use serde::{Deserialize, Serialize};

use super::baseline::{Baseline, FeatureBaseline, Schema};
use super::bins::{Bins, Cell};
use super::quality::Quality;
use super::truth::Truth;
use crate::UnixMillis;

/// A feature's range is divided into so many steps for its mean: 65,536 keep it to 1/65,536 of the range, and
/// whole steps sum exactly.
const STEPS: f64 = 65_536.0;
/// A value further outside than 16 ranges counts as 16 ranges: one absurd reading must not move a mean for ever,
/// and 2^20 steps x 2^43 values still fit an i64.
pub(super) const MAX_STEPS: f64 = 1_048_576.0;
/// Most samples of a window that is believed: 2^20 steps x 2^40 samples leave room for eight merges of the largest in
/// an i64, and no device sees a million million rows in an hour.
const MAX_SAMPLES: u64 = 1 << 40;

/// Counts that cannot be combined or trusted, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    /// Different cells.
    #[error(
        "a drift window of schema {found} cannot be used with schema {expected}: it belongs to another bundle"
    )]
    Schema {
        /// Of the baseline or the first window.
        expected: Schema,
        /// Of the other.
        found: Schema,
    },
    /// A row of another width.
    #[error("a row of {found} values was observed where the baseline has {expected} features")]
    Row {
        /// Features of the baseline.
        expected: usize,
        /// Values of the row.
        found: usize,
    },
    /// Other features, or other parts, than expected.
    #[error("drift window: {0}")]
    Parts(&'static str),
    /// Counts that no device of ours would send.
    #[error("drift window, feature {feature}: {why}")]
    Counts {
        /// Position in the baseline.
        feature: u32,
        /// What is wrong.
        why: &'static str,
    },
}

/// Requests answered while a window was open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// Answered, well or badly.
    pub requests: u64,
    /// Failed for the model's or the runtime's fault.
    pub failed: u64,
}

/// Counts of one feature. On the wire an array `[feature, [counts…], steps]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u32, Box<[u64]>, i64)", into = "(u32, Box<[u64]>, i64)")]
pub struct FeatureCounts {
    /// Position in the baseline.
    pub feature: u32,
    /// One a cell, faults last.
    pub counts: Box<[u64]>,
    /// Sum of the values of a numeric feature, in steps of 1/65,536 of the range of its edges, from the first edge.
    pub steps: i64,
}

impl From<(u32, Box<[u64]>, i64)> for FeatureCounts {
    fn from((feature, counts, steps): (u32, Box<[u64]>, i64)) -> Self {
        Self { feature, counts, steps }
    }
}
impl From<FeatureCounts> for (u32, Box<[u64]>, i64) {
    fn from(f: FeatureCounts) -> Self {
        (f.feature, f.counts, f.steps)
    }
}

impl FeatureCounts {
    /// Counts of the value cells.
    pub fn values(&self, feature: &FeatureBaseline) -> &[u64] {
        self.counts.get(..feature.bins.value_cells()).unwrap_or(&[])
    }

    /// Counts of the fault cells: missing, not finite, wrong type.
    pub fn faults(&self, feature: &FeatureBaseline) -> &[u64] {
        self.counts.get(feature.bins.value_cells()..).unwrap_or(&[])
    }

    /// Mean of a numeric feature's values; `None` for categories and for nothing.
    pub fn mean(&self, feature: &FeatureBaseline) -> Option<f64> {
        let (first, step) = scale(&feature.bins)?;
        let n: u64 = self.values(feature).iter().sum();
        (n > 0).then(|| first + step * self.steps as f64 / n as f64)
    }
}

/// First edge and the size of a step.
#[inline]
pub(super) fn scale(bins: &Bins) -> Option<(f64, f64)> {
    let Bins::Numeric { edges } = bins else { return None };
    let (first, last) = (f64::from(*edges.first()?), f64::from(*edges.last()?));
    Some((first, (last - first) / STEPS))
}

/// Counts of one model version on one device, or a sum of such.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Of the baseline's cells.
    pub schema: Schema,
    /// When counting began: the device's clock, shown with its skew, never decided on.
    pub opened: UnixMillis,
    /// When it ended.
    pub closed: UnixMillis,
    /// Rows counted.
    pub samples: u64,
    /// Rows among them that were refused before the model saw them: they are counted in the features of inputs and
    /// in none of an output, so that a refusal hides no fault of a sensor.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unanswered: u64,
    /// Requests answered meanwhile.
    #[serde(default)]
    pub served: Served,
    /// What was wrong with requests and their values.
    #[serde(default, skip_serializing_if = "Quality::is_clean")]
    pub quality: Quality,
    /// Labels that came meanwhile for answers of this version, whenever those were given.
    #[serde(default, skip_serializing_if = "Truth::is_empty")]
    pub truth: Truth,
    /// In the order of the baseline; a part of a window has some of them.
    pub features: Vec<FeatureCounts>,
}

impl Window {
    /// An empty window over a baseline's cells.
    pub fn open(baseline: &Baseline, now: UnixMillis) -> Self {
        let empty = |(at, f): (usize, &FeatureBaseline)| FeatureCounts {
            feature: at as u32, // at most MAX_FEATURES
            counts: vec![0; f.bins.cells()].into_boxed_slice(),
            steps: 0,
        };
        let features = baseline.features().iter().enumerate().map(empty).collect();
        let schema = baseline.schema();
        Self {
            schema,
            opened: now,
            closed: now,
            samples: 0,
            unanswered: 0,
            served: Served::default(),
            quality: Quality::default(),
            truth: Truth::default(),
            features,
        }
    }

    /// Counts one row: a value for each feature, in the baseline's order. Allocates nothing.
    pub fn observe(&mut self, baseline: &Baseline, row: &[Cell]) -> Result<(), WindowError> {
        self.count(baseline, row, true)
    }

    /// Counts one row that got no answer: its inputs alone. What stands in the places of outputs is not looked at.
    pub fn observe_unanswered(&mut self, baseline: &Baseline, row: &[Cell]) -> Result<(), WindowError> {
        self.count(baseline, row, false)?;
        self.unanswered = self.unanswered.saturating_add(1);
        Ok(())
    }

    fn count(&mut self, baseline: &Baseline, row: &[Cell], answered: bool) -> Result<(), WindowError> {
        self.same_schema(baseline.schema())?;
        let features = baseline.features();
        if row.len() != features.len() || self.features.len() != features.len() {
            return Err(WindowError::Row { expected: features.len(), found: row.len() });
        }
        for ((feature, counts), cell) in features.iter().zip(&mut self.features).zip(row) {
            if !answered && feature.source.is_output() {
                continue;
            }
            let at = feature.bins.find(*cell);
            if let Some(count) = counts.counts.get_mut(at) {
                *count = count.saturating_add(1);
            }
            if let (Cell::Number(x), true) = (cell, at < feature.bins.value_cells())
                && let Some((first, step)) = scale(&feature.bins)
            {
                let steps = ((f64::from(*x) - first) / step).clamp(-MAX_STEPS, MAX_STEPS);
                counts.steps = counts.steps.wrapping_add(steps.round_ties_even() as i64);
            }
        }
        self.samples = self.samples.saturating_add(1);
        Ok(())
    }

    /// Notes the end; a clock that went backwards gives an empty span, not a negative one.
    pub fn close(&mut self, now: UnixMillis) {
        self.closed = now.max(self.opened);
    }

    /// Adds another window over the same features. Commutative and associative: counts saturate, which no real
    /// sum reaches, rather than wrap.
    pub fn merge(&mut self, other: &Self) -> Result<(), WindowError> {
        self.same_schema(other.schema)?;
        let same = |(a, b): (&FeatureCounts, &FeatureCounts)| {
            a.feature == b.feature && a.counts.len() == b.counts.len()
        };
        if self.features.len() != other.features.len() || !self.features.iter().zip(&other.features).all(same)
        {
            return Err(WindowError::Parts(
                "only windows over the same features can be added: join the parts first",
            ));
        }
        for (mine, theirs) in self.features.iter_mut().zip(&other.features) {
            for (a, b) in mine.counts.iter_mut().zip(theirs.counts.iter()) {
                *a = a.saturating_add(*b);
            }
            mine.steps = mine.steps.wrapping_add(theirs.steps);
        }
        self.opened = self.opened.min(other.opened);
        self.closed = self.closed.max(other.closed);
        self.samples = self.samples.saturating_add(other.samples);
        self.served.requests = self.served.requests.saturating_add(other.served.requests);
        self.served.failed = self.served.failed.saturating_add(other.served.failed);
        self.unanswered = self.unanswered.saturating_add(other.unanswered);
        self.quality.merge(&other.quality);
        self.truth.merge(&other.truth);
        Ok(())
    }

    /// Whether these are counts that [`Window::observe`] could have made over this baseline. What a device sends
    /// is believed only after this.
    pub fn check(&self, baseline: &Baseline) -> Result<(), WindowError> {
        self.same_schema(baseline.schema())?;
        if self.features.len() != baseline.features().len() {
            return Err(WindowError::Parts(
                "it does not cover every feature of its baseline: a part is missing",
            ));
        }
        if self.samples > MAX_SAMPLES {
            return Err(WindowError::Parts("it claims more samples than any device can see"));
        }
        if let Some(why) = self.truth.fault() {
            return Err(WindowError::Parts(why));
        }
        if self.unanswered > self.samples {
            return Err(WindowError::Parts("it claims more refused rows than rows"));
        }
        for ((at, feature), counts) in (0u32..).zip(baseline.features()).zip(&self.features) {
            let refuse = |why| Err(WindowError::Counts { feature: counts.feature, why });
            if counts.feature != at {
                return refuse("it is out of order");
            }
            if counts.counts.len() != feature.bins.cells() {
                return refuse("it has another number of cells than its baseline");
            }
            let total = counts.counts.iter().try_fold(0u64, |sum, c| sum.checked_add(*c));
            if total != Some(self.rows_of(feature)) {
                return refuse("its counts do not add up to the samples");
            }
            let most = (self.samples as f64) * MAX_STEPS;
            if (counts.steps as f64).abs() > most {
                return refuse("its sum is larger than its samples allow");
            }
        }
        Ok(())
    }

    /// Rows that a feature's counts must add up to.
    pub fn rows_of(&self, feature: &FeatureBaseline) -> u64 {
        if feature.source.is_output() { self.samples.saturating_sub(self.unanswered) } else { self.samples }
    }

    /// Parts whose JSON is at most `max_bytes` each, in order; a part has at least one feature. Every part repeats
    /// the header, so that it reads alone.
    pub fn split(&self, max_bytes: usize) -> Vec<Self> {
        let header = Self { features: Vec::new(), ..self.clone() };
        let overhead = json_len(&header);
        let mut parts = Vec::new();
        let mut part = header.clone();
        let mut used = overhead;
        for feature in &self.features {
            let size = json_len(feature) + 1; // its comma
            if !part.features.is_empty() && used + size > max_bytes {
                parts.push(std::mem::replace(&mut part, header.clone()));
                used = overhead;
            }
            used += size;
            part.features.push(feature.clone());
        }
        parts.push(part);
        parts
    }

    /// Undoes [`Window::split`], in any order of the parts. Whether all features are there, [`Window::check`] says.
    pub fn join(parts: impl IntoIterator<Item = Self>) -> Result<Self, WindowError> {
        let mut parts = parts.into_iter();
        let mut whole = parts.next().ok_or(WindowError::Parts("there is no part to join"))?;
        for part in parts {
            whole.same_schema(part.schema)?;
            let header =
                |w: &Self| (w.opened, w.closed, w.samples, w.unanswered, w.served, w.quality, w.truth);
            if header(&whole) != header(&part) {
                return Err(WindowError::Parts("the parts are of different windows"));
            }
            whole.features.extend(part.features);
        }
        whole.features.sort_by_key(|f| f.feature);
        if whole.features.windows(2).any(|w| matches!(w, [a, b] if a.feature == b.feature)) {
            return Err(WindowError::Parts("two parts hold the same feature"));
        }
        Ok(whole)
    }

    fn same_schema(&self, found: Schema) -> Result<(), WindowError> {
        if self.schema == found { Ok(()) } else { Err(WindowError::Schema { expected: self.schema, found }) }
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde hands a reference in
const fn is_zero(count: &u64) -> bool {
    *count == 0
}

fn json_len<T: Serialize>(value: &T) -> usize {
    serde_json::to_vec(value).map_or(usize::MAX / 2, |bytes| bytes.len())
}

/// When a window closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowPolicy {
    /// At the latest after so many milliseconds.
    pub period_ms: u64,
    /// Earlier after so many samples …
    pub early_samples: u64,
    /// … but not before so many milliseconds: readings close together are worth little.
    pub early_ms: u64,
}

impl Default for WindowPolicy {
    /// Hourly, or 1,000 samples and 15 minutes: at 1,000 independent samples chance stays below PSI 0.03, so that
    /// waiting longer gains nothing that the 0.1 limit would use.
    fn default() -> Self {
        Self { period_ms: 3_600_000, early_samples: 1000, early_ms: 900_000 }
    }
}

impl WindowPolicy {
    /// Whether a window that has been open for so long (a monotonic span) with so many samples should close. An
    /// empty window closes too: silence is a report.
    pub const fn is_due(&self, open_ms: u64, samples: u64) -> bool {
        open_ms >= self.period_ms || (samples >= self.early_samples && open_ms >= self.early_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drift::{Column, Order, Source};
    use proptest::prelude::*;

    fn baseline(features: usize) -> Baseline {
        let columns: Vec<Column> = (0..features)
            .map(|f| Column {
                name: format!("f{f}"),
                source: Source::Input { tensor: "x".into(), index: f as u32 },
                range: None,
                categorical: f % 3 == 2,
                values: (0..500).map(|i| Cell::from((i * (f + 3) % 97) as f32 / 3.0)).collect(),
            })
            .collect();
        Baseline::fit(&columns, Order::Unordered).unwrap()
    }

    fn window(baseline: &Baseline, rows: &[Vec<Cell>], at: UnixMillis) -> Window {
        let mut window = Window::open(baseline, at);
        for row in rows {
            window.observe(baseline, row).unwrap();
        }
        window.close(at + 1000);
        window
    }

    fn cell() -> impl Strategy<Value = Cell> {
        prop_oneof![
            8 => (-10.0f32..50.0).prop_map(Cell::from),
            1 => any::<f32>().prop_map(Cell::from),
            1 => Just(Cell::Missing),
            1 => Just(Cell::WrongType),
        ]
    }

    fn rows() -> impl Strategy<Value = Vec<Vec<Cell>>> {
        proptest::collection::vec(proptest::collection::vec(cell(), 4), 0..40)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn merging_is_commutative_associative_and_the_same_as_counting_together(a in rows(), b in rows(), c in rows()) {
            let base = baseline(4);
            let [x, y, z] = [&a, &b, &c].map(|r| window(&base, r, 5));
            let sum = |parts: [&Window; 3]| {
                let mut sum = parts[0].clone();
                sum.merge(parts[1]).unwrap();
                sum.merge(parts[2]).unwrap();
                sum
            };
            let mut tail = y.clone();
            tail.merge(&z).unwrap();
            let mut right = x.clone();
            right.merge(&tail).unwrap();
            let all: Vec<_> = a.iter().chain(&b).chain(&c).cloned().collect();
            let together = window(&base, &all, 5);
            prop_assert_eq!(&sum([&x, &y, &z]), &together);
            prop_assert_eq!(&sum([&z, &x, &y]), &together);
            prop_assert_eq!(&right, &together);
            prop_assert!(together.check(&base).is_ok());
        }

        #[test]
        fn parts_fit_and_join_back_in_any_order(rows in proptest::collection::vec(proptest::collection::vec(cell(), 70), 1..3), max in 300usize..3072) {
            let base = baseline(70);
            let whole = window(&base, &rows, 1_700_000_000_000);
            let mut parts = whole.split(max);
            for part in &parts {
                let len = serde_json::to_vec(part).unwrap().len();
                prop_assert!(len <= max || part.features.len() == 1, "{} bytes of {}", len, max);
            }
            parts.reverse();
            let joined = Window::join(parts).unwrap();
            prop_assert!(joined.check(&base).is_ok());
            prop_assert_eq!(joined, whole);
        }

        #[test]
        fn a_window_survives_json(rows in rows()) {
            let base = baseline(4);
            let whole = window(&base, &rows, -3);
            let text = serde_json::to_string(&whole).unwrap();
            prop_assert_eq!(serde_json::from_str::<Window>(&text).unwrap(), whole);
        }
    }

    #[test]
    fn the_mean_is_that_of_the_values() {
        let base = baseline(1);
        let rows: Vec<Vec<Cell>> = [1.0f32, 2.0, 6.0, 40.0].iter().map(|x| vec![Cell::from(*x)]).collect();
        let w = window(&base, &rows, 0);
        let mean = w.features[0].mean(&base.features()[0]).unwrap();
        assert!((mean - 12.25).abs() < 0.001, "{mean}");
    }

    #[test]
    fn a_window_of_another_bundle_or_width_is_refused() {
        let (one, two) = (baseline(1), baseline(2));
        let mut w = Window::open(&one, 0);
        assert!(matches!(w.observe(&two, &[Cell::Missing, Cell::Missing]), Err(WindowError::Schema { .. })));
        assert_eq!(w.observe(&one, &[]), Err(WindowError::Row { expected: 1, found: 0 }));
        assert!(matches!(w.merge(&Window::open(&two, 0)), Err(WindowError::Schema { .. })));
        assert_eq!(w, Window::open(&one, 0), "a refused row or window leaves no trace");
    }

    #[test]
    fn a_refused_row_counts_in_its_inputs_and_in_no_output() {
        let values: Vec<Cell> = (0..300).map(|i| Cell::from(i as f32 / 300.0)).collect();
        let column = |name: &str, source| Column {
            name: name.into(),
            source,
            range: None,
            categorical: false,
            values: values.clone(),
        };
        let input = column("flow", Source::Input { tensor: "x".into(), index: 0 });
        let output = column("confidence", Source::Confidence { tensor: "y".into() });
        let base = Baseline::fit(&[input, output], Order::Unordered).unwrap();
        let mut w = Window::open(&base, 0);
        w.observe(&base, &[0.5.into(), 0.9.into()]).unwrap();
        for _ in 0..3 {
            w.observe_unanswered(&base, &[f32::NAN.into(), Cell::Missing]).unwrap();
        }
        w.check(&base).unwrap();
        assert_eq!((w.samples, w.unanswered), (4, 3));
        assert_eq!(w.features[0].faults(&base.features()[0]), [0, 3, 0]);
        assert_eq!(
            w.features[1].counts.iter().sum::<u64>(),
            1,
            "an answer that was never given is not missing"
        );
        let mut sum = w.clone();
        sum.merge(&w).unwrap();
        sum.check(&base).unwrap();
        assert_eq!(sum.unanswered, 6);
        let joined = Window::join(w.split(1)).unwrap();
        assert_eq!(joined, w);
        w.unanswered = 5;
        assert!(w.check(&base).unwrap_err().to_string().contains("more refused rows"));
    }

    #[test]
    fn counts_that_no_device_would_send_are_refused() {
        let base = baseline(2);
        let good = window(&base, &[vec![Cell::Missing, 1.0.into()]], 0);
        let check = |change: fn(&mut Window), expect: &str| {
            let mut bad = good.clone();
            change(&mut bad);
            let error = bad.check(&base).unwrap_err().to_string();
            assert!(error.contains(expect), "{error:?} does not say {expect:?}");
        };
        check(|w| w.features[0].counts[0] = 9, "add up");
        check(|w| w.features[0].counts[0] = u64::MAX, "add up");
        check(|w| w.features[1].counts = vec![1].into(), "number of cells");
        check(|w| w.features[1].steps = i64::MIN, "sum is larger");
        check(|w| w.samples = u64::MAX, "more samples");
        check(|w| w.features.swap(0, 1), "out of order");
        check(|w| w.features.truncate(1), "part is missing");
        let parts = good.split(1);
        assert_eq!(parts.len(), 2);
        let twice = Window::join(vec![parts[0].clone(), parts[0].clone()]);
        assert_eq!(twice, Err(WindowError::Parts("two parts hold the same feature")));
    }

    #[test]
    fn a_busy_window_closes_early_and_a_quiet_one_hourly() {
        let p = WindowPolicy::default();
        assert!(!p.is_due(899_999, 5000) && p.is_due(900_000, 1000));
        assert!(!p.is_due(3_599_999, 999) && p.is_due(3_600_000, 0));
    }
}
