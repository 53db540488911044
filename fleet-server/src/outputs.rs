//! What devices' models answered lately, in memory, for the gate that compares versions.
//!
//! Reports are reduced when they come, with the baseline of their bundle; the store keeps them whole. After
//! a restart the newest windows of what each device runs and ran are read back, so that a rollout goes on with the
//! evidence that it had.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use plimsoll_fleet_core::evidence::{LabelWindow, OutputWindow, WINDOWS_KEPT};
use plimsoll_protocol::bundle::{MAX_MANIFEST_BYTES, Manifest};
use plimsoll_protocol::drift::{Baseline, MAX_BASELINE_BYTES};
use plimsoll_protocol::wire::v1::DriftReport;
use plimsoll_protocol::{DeviceId, Digest, ModelName, UnixMillis};

use crate::app::App;
use crate::blobs::Blobs;
use crate::store::StoreError;

/// Baselines in memory: the versions in use of a dozen models; a baseline of an image model has about 10 KB.
const BASELINES_KEPT: usize = 32;
/// Parts of a window that are read back: up to four parts of 3 KiB hold 60 features.
const PARTS: usize = 4;

/// Baselines of published bundles, read once.
#[derive(Default)]
pub struct Baselines(Mutex<BTreeMap<Digest, Arc<Baseline>>>);

impl Baselines {
    /// The baseline of a bundle; `None` when it has none or is not here.
    pub async fn of(&self, blobs: &Blobs, digest: &Digest) -> Option<Arc<Baseline>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(digest).cloned();
        if known.is_some() {
            return known;
        }
        let baseline = Arc::new(read(blobs, digest).await?);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= BASELINES_KEPT {
            all.pop_first();
        }
        all.insert(*digest, Arc::clone(&baseline));
        Some(baseline)
    }
}

async fn read(blobs: &Blobs, digest: &Digest) -> Option<Baseline> {
    let bytes = blobs.read(digest, MAX_MANIFEST_BYTES).await.ok()?;
    let manifest = Manifest::parse(&bytes).ok()?;
    let path = manifest.baseline.as_ref()?;
    let file = manifest.files.iter().find(|f| f.path == *path)?;
    let bytes = blobs.read(&file.sha256, MAX_BASELINE_BYTES as u64).await.ok()?;
    Baseline::parse(&bytes).ok()
}

/// A report as the gate keeps it.
pub async fn reduce(app: &App, report: &DriftReport, at_ms: UnixMillis) -> Option<OutputWindow> {
    let baseline = app.baselines.of(&app.blobs, &report.digest).await?;
    OutputWindow::of(report, &baseline, at_ms)
}

/// Takes a committed window over.
pub fn keep(app: &App, device: &DeviceId, digest: Digest, window: OutputWindow) {
    app.fleet.update(device, |d| Arc::make_mut(&mut d.outputs).add(digest, window));
}

/// Takes the labels of a committed report over. Answers whether there were any.
pub fn keep_labels(app: &App, device: &DeviceId, report: &DriftReport, at_ms: UnixMillis) -> bool {
    let Some(window) = LabelWindow::of(report, at_ms) else { return false };
    app.fleet.update(device, |d| Arc::make_mut(&mut d.outputs).add_labels(report.digest, window));
    true
}

/// Reads back what the gates need: the newest windows of every bundle that a device was ordered or says it runs.
pub async fn load(app: &App) -> Result<(), StoreError> {
    let devices: Vec<(DeviceId, Vec<(ModelName, Digest)>)> = app.fleet.read(|devices| {
        let bundles = |d: &crate::fleet::Device| {
            let born = d.state.iter().flat_map(|s| &s.birth.models).map(|m| (m.model.clone(), m.digest));
            let mut all: Vec<_> = d.jobs.keys().cloned().chain(born).collect();
            all.sort();
            all.dedup();
            all
        };
        devices.iter().map(|(id, device)| (id.clone(), bundles(device))).collect()
    });
    for (device, bundles) in devices {
        for (model, digest) in bundles {
            let newest = app.store.newest_drift(&device, &model, &digest, WINDOWS_KEPT * PARTS).await?;
            for record in newest {
                keep_labels(app, &device, &record.report, record.at_ms);
                if let Some(window) = reduce(app, &record.report, record.at_ms).await {
                    keep(app, &device, digest, window);
                }
            }
        }
    }
    Ok(())
}
