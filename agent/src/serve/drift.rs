//! The measurement window of one bundle in service.

use plimsoll_protocol::bundle::Manifest;
use plimsoll_protocol::drift::{Baseline, Cell, Quality, Truth, Window};
use plimsoll_protocol::wire::v1::{DriftReport, MAX_REPORT_BYTES};
use plimsoll_protocol::{Digest, UnixMillis};
use plimsoll_runtime::features::Featurizer;
use plimsoll_runtime::{RuntimeError, Tensor};

/// Room of a report around its window: model (60 characters), version, digest (64), index and part take under 300
/// bytes, the envelope with incarnation (32) and counters under 250; the rest is for long versions.
const AROUND: usize = 700;

/// Counts what is asked and answered, while a window is open.
pub struct Drift {
    baseline: Baseline,
    window: Option<Window>,
    /// Index of the window that is open, or of the next.
    index: u64,
}

impl Drift {
    /// Nothing is counted before [`Drift::open`].
    pub const fn new(baseline: Baseline, index: u64) -> Self {
        Self { baseline, window: None, index }
    }

    /// Opens a window, unless one is open.
    pub fn open(&mut self, now: UnixMillis) {
        if self.window.is_none() {
            self.window = Some(Window::open(&self.baseline, now));
        }
    }

    /// Counts rows; of those that were not answered the inputs alone.
    pub fn observe<'a>(&mut self, rows: impl Iterator<Item = &'a [Cell]>, answered: bool) {
        let Some(window) = &mut self.window else { return };
        let count = if answered { Window::observe } else { Window::observe_unanswered };
        for row in rows {
            // A row of another width cannot come from a featurizer of this baseline.
            let _ = count(window, &self.baseline, row);
        }
    }

    /// Counts what was wrong with requests and their values.
    pub fn found(&mut self, quality: &Quality) {
        if let Some(window) = &mut self.window {
            window.quality.merge(quality);
        }
    }

    /// Counts a label.
    pub fn labelled(&mut self, truth: &Truth) {
        if let Some(window) = &mut self.window {
            window.truth.merge(truth);
        }
    }

    /// The reference.
    pub const fn baseline(&self) -> &Baseline {
        &self.baseline
    }

    /// Index of the window that is open, or of the next.
    pub const fn index(&self) -> u64 {
        self.index
    }

    /// Whether anything that is observed now is kept.
    pub const fn is_open(&self) -> bool {
        self.window.is_some()
    }

    /// Counts one request that was answered.
    pub const fn answered(&mut self, failed: bool) {
        if let Some(window) = &mut self.window {
            window.served.requests += 1;
            window.served.failed += failed as u64;
        }
    }

    /// Closes the open window and gives it as reports that fit; opens the next one if `reopen`.
    pub fn close(
        &mut self,
        manifest: &Manifest,
        digest: Digest,
        now: UnixMillis,
        reopen: bool,
    ) -> Vec<DriftReport> {
        let Some(mut window) = self.window.take() else { return Vec::new() };
        window.close(now);
        let index = self.index;
        self.index += 1;
        if reopen {
            self.open(now);
        }
        let parts = window.split(MAX_REPORT_BYTES - AROUND);
        let count = parts.len() as u32; // at most one a feature
        (0..count)
            .zip(parts)
            .map(|(part, window)| DriftReport {
                model: manifest.model.clone(),
                version: manifest.version.clone(),
                digest,
                index,
                part: (part, count),
                window,
            })
            .collect()
    }
}

/// All rows of a request, one after the other in one allocation.
pub struct Rows {
    cells: Vec<Cell>,
    width: usize,
}

impl Rows {
    /// Measures a request and its answer.
    pub fn of(featurizer: &Featurizer, inputs: &[Tensor], outputs: &[Tensor]) -> Self {
        let mut rows = Self { cells: Vec::new(), width: 1 };
        featurizer.rows(inputs, outputs, |row| {
            rows.width = row.len().max(1);
            rows.cells.extend_from_slice(row);
        });
        rows
    }

    /// Each row.
    pub fn iter(&self) -> impl Iterator<Item = &[Cell]> {
        self.cells.chunks(self.width)
    }
}

/// The baseline that a bundle carries, with what measures it; `None` when it carries none.
pub fn of_bundle(
    dir: &std::path::Path,
    manifest: &Manifest,
) -> Result<Option<(Baseline, Featurizer)>, RuntimeError> {
    let Some(path) = &manifest.baseline else { return Ok(None) };
    let file = dir.join(path.as_str());
    let bytes = std::fs::read(&file).map_err(|source| RuntimeError::Io { path: file, source })?;
    let baseline = Baseline::parse(&bytes).map_err(|e| RuntimeError::Manifest(e.to_string()))?;
    let featurizer = Featurizer::new(manifest, &baseline)?;
    Ok(Some((baseline, featurizer)))
}
