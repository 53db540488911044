//! What is kept of a device's answers: a few numbers a window, a few windows a bundle.

use std::collections::BTreeMap;

use plimsoll_protocol::drift::{Baseline, Source};
use plimsoll_protocol::wire::v1::DriftReport;
use plimsoll_protocol::{Digest, UnixMillis};

/// Windows kept of a bundle on a device: 16 hourly ones are 8 before and 8 after an order. At 180 bytes each, 24 more
/// where labels came, and with [`BUNDLES_KEPT`], a device takes 10 KB: 10 MB for a fleet of 1,000.
pub const WINDOWS_KEPT: usize = 16;
/// Bundles of a device whose windows are kept: the one before, the one on trial, and one of another model.
pub const BUNDLES_KEPT: usize = 3;

/// The answers of one closed window.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputWindow {
    /// Index of the window: rises with every window of the bundle on the device.
    pub index: u64,
    /// Server time at which it came.
    pub at_ms: UnixMillis,
    /// Counts of the bins of confidence.
    pub cells: Box<[u32]>,
    /// Sum of the confidence of all readings.
    pub sum: f64,
    /// Independent readings that one reading is worth, 0 to 1.
    pub worth: f64,
}

impl OutputWindow {
    /// Reduces a report to what versions share. `None` when it says nothing about confidence, or says it in a way
    /// that no device of ours would: what a device sends is not believed unseen.
    pub fn of(report: &DriftReport, baseline: &Baseline, at_ms: UnixMillis) -> Option<Self> {
        let features = baseline.features();
        let at = features.iter().position(|f| matches!(f.source, Source::Confidence { .. }))?;
        let feature = features.get(at)?;
        let window = &report.window;
        let counts = window.features.iter().find(|f| f.feature as usize == at)?;
        let total = counts.counts.iter().try_fold(0_u64, |sum, c| sum.checked_add(*c))?;
        let fits = window.schema == baseline.schema() && counts.counts.len() == feature.bins.cells();
        if !fits || total != window.rows_of(feature) {
            return None;
        }
        let cells: Option<Box<[u32]>> =
            counts.values(feature).iter().map(|c| u32::try_from(*c).ok()).collect();
        let cells = cells?;
        let n: u64 = cells.iter().map(|c| u64::from(*c)).sum();
        let mean = counts.mean(feature).unwrap_or(0.0).clamp(0.0, 1.0);
        let worth = feature.n_eff(1).clamp(0.0, 1.0);
        Some(Self { index: report.index, at_ms, cells, sum: mean * n as f64, worth })
    }
}

/// The labels that came in one closed window, whatever answers they are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LabelWindow {
    /// Index of the window: rises with every window of the bundle on the device.
    pub index: u64,
    /// Server time at which it came.
    pub at_ms: UnixMillis,
    /// Answers of classes that got a label.
    pub labelled: u32,
    /// Of those, not the label.
    pub wrong: u32,
}

impl LabelWindow {
    /// Reduces a report to its labels. `None` when it has none, or more right ones than labels.
    pub fn of(report: &DriftReport, at_ms: UnixMillis) -> Option<Self> {
        let truth = &report.window.truth;
        let wrong = truth.labelled.checked_sub(truth.correct)?;
        let [labelled, wrong] = [truth.labelled, wrong].map(u32::try_from);
        let (labelled, wrong) = (labelled.ok()?, wrong.ok()?);
        // The first part of a window carries what is not of a feature.
        (report.part.0 == 0 && labelled > 0).then_some(Self { index: report.index, at_ms, labelled, wrong })
    }
}

/// The newest closed windows of one device, by bundle.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outputs {
    answers: BTreeMap<Digest, Vec<OutputWindow>>,
    labels: BTreeMap<Digest, Vec<LabelWindow>>,
}

impl Outputs {
    /// Takes a window over; the oldest go. One that is known already replaces itself.
    pub fn add(&mut self, digest: Digest, window: OutputWindow) {
        add(&mut self.answers, digest, window);
    }

    /// The same of its labels.
    pub fn add_labels(&mut self, digest: Digest, window: LabelWindow) {
        add(&mut self.labels, digest, window);
    }

    /// The windows of one bundle, oldest first.
    pub fn of(&self, digest: &Digest) -> &[OutputWindow] {
        self.answers.get(digest).map_or(&[], Vec::as_slice)
    }

    /// The labels of one bundle, oldest first.
    pub fn labels_of(&self, digest: &Digest) -> &[LabelWindow] {
        self.labels.get(digest).map_or(&[], Vec::as_slice)
    }
}

/// A window of either kind.
trait Closed {
    fn index(&self) -> u64;
    fn at_ms(&self) -> UnixMillis;
}

impl Closed for OutputWindow {
    fn index(&self) -> u64 {
        self.index
    }
    fn at_ms(&self) -> UnixMillis {
        self.at_ms
    }
}

impl Closed for LabelWindow {
    fn index(&self) -> u64 {
        self.index
    }
    fn at_ms(&self) -> UnixMillis {
        self.at_ms
    }
}

fn add<W: Closed>(all: &mut BTreeMap<Digest, Vec<W>>, digest: Digest, window: W) {
    let windows = all.entry(digest).or_default();
    let at = windows.partition_point(|w| w.index() < window.index());
    match windows.get_mut(at).filter(|w| w.index() == window.index()) {
        Some(known) => *known = window,
        None => windows.insert(at, window),
    }
    let old = windows.len().saturating_sub(WINDOWS_KEPT);
    windows.drain(..old);
    if all.len() > BUNDLES_KEPT {
        let newest = |w: &Vec<W>| w.iter().map(W::at_ms).max();
        let stale = all.iter().min_by_key(|(_, w)| newest(w)).map(|(digest, _)| *digest);
        stale.map(|digest| all.remove(&digest));
    }
}
