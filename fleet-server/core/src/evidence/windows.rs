//! What is kept of a device's answers: a few numbers a window, a few windows a bundle.

use std::collections::BTreeMap;

use plimsoll_protocol::drift::{Baseline, Source};
use plimsoll_protocol::wire::v1::DriftReport;
use plimsoll_protocol::{Digest, UnixMillis};

/// Windows kept of a bundle on a device: 16 hourly ones are 8 before and 8 after an order. At 180 bytes each, and
/// with [`BUNDLES_KEPT`], a device takes 9 KB: 9 MB for a fleet of 1,000.
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

/// The newest closed windows of one device, by bundle.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outputs(BTreeMap<Digest, Vec<OutputWindow>>);

impl Outputs {
    /// Takes a window over; the oldest go. One that is known already replaces itself.
    pub fn add(&mut self, digest: Digest, window: OutputWindow) {
        let windows = self.0.entry(digest).or_default();
        let at = windows.partition_point(|w| w.index < window.index);
        match windows.get_mut(at).filter(|w| w.index == window.index) {
            Some(known) => *known = window,
            None => windows.insert(at, window),
        }
        let old = windows.len().saturating_sub(WINDOWS_KEPT);
        windows.drain(..old);
        if self.0.len() > BUNDLES_KEPT {
            let newest = |w: &Vec<OutputWindow>| w.iter().map(|w| w.at_ms).max();
            let stale = self.0.iter().min_by_key(|(_, w)| newest(w)).map(|(digest, _)| *digest);
            stale.map(|digest| self.0.remove(&digest));
        }
    }

    /// The windows of one bundle, oldest first.
    pub fn of(&self, digest: &Digest) -> &[OutputWindow] {
        self.0.get(digest).map_or(&[], Vec::as_slice)
    }
}
