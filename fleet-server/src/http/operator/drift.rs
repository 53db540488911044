//! A device's measurement windows against the baseline of the bundle that it runs: computed from the stored counts
//! when somebody looks, so that there is one truth and nothing to keep in step.

use std::collections::BTreeMap;

use plimsoll_protocol::api::DeviceInfo;
use plimsoll_protocol::bundle::{MAX_MANIFEST_BYTES, Manifest};
use plimsoll_protocol::drift::verdict::histogram;
use plimsoll_protocol::drift::{Baseline, Judge, MAX_BASELINE_BYTES, Window};
use plimsoll_protocol::{DeviceId, Digest, ModelName};

use crate::app::App;
use crate::web::Histogram;

/// The last windows of everything the device runs, alarms first.
pub async fn histograms(app: &App, device: &DeviceInfo) -> Vec<Histogram> {
    let mut all = Vec::new();
    for running in &device.running {
        all.extend(of_model(app, &device.device, &running.model, &running.digest).await.unwrap_or_default());
    }
    all.sort_by_key(|h| !h.alarm);
    all
}

/// `None` when the bundle has no baseline, is no longer there, or nothing was measured yet.
async fn of_model(
    app: &App,
    device: &DeviceId,
    model: &ModelName,
    digest: &Digest,
) -> Option<Vec<Histogram>> {
    let windows = windows(app, device, model, digest).await;
    let last = windows.last()?;
    let baseline = baseline(app, digest).await?;
    let mut judge = Judge::new(&baseline);
    let mut verdicts = Vec::new();
    for window in &windows {
        // A window that does not fit the baseline says nothing about this bundle.
        if let Ok(judged) = judge.judge(&baseline, window) {
            verdicts = judged;
        }
    }
    let features = baseline.features().iter().zip(&last.features).zip(verdicts);
    let charts = features.map(|((feature, counts), verdict)| Histogram {
        feature: feature.name.clone(),
        text: verdict.to_string(),
        alarm: verdict.is_alarm(),
        bars: histogram(feature, counts),
    });
    Some(charts.filter(|chart| !chart.bars.is_empty()).collect())
}

/// Whole windows, oldest first; one whose parts are not all there is left out.
async fn windows(app: &App, device: &DeviceId, model: &ModelName, digest: &Digest) -> Vec<Window> {
    let mut parts: BTreeMap<u64, Vec<(u32, Window)>> = BTreeMap::new();
    for record in app.store.drift(device, model, digest).await.unwrap_or_default() {
        let report = record.report;
        parts.entry(report.index).or_default().push((report.part.1, report.window));
    }
    let whole = parts.into_values().filter_map(|parts| {
        let complete = parts.iter().all(|(of, _)| *of as usize == parts.len());
        complete.then(|| Window::join(parts.into_iter().map(|(_, window)| window)).ok()).flatten()
    });
    whole.collect()
}

async fn baseline(app: &App, digest: &Digest) -> Option<Baseline> {
    let bytes = app.blobs.read(digest, MAX_MANIFEST_BYTES).await.ok()?;
    let manifest = Manifest::parse(&bytes).ok()?;
    let path = manifest.baseline.as_ref()?;
    let file = manifest.files.iter().find(|f| f.path == *path)?;
    let bytes = app.blobs.read(&file.sha256, MAX_BASELINE_BYTES as u64).await.ok()?;
    Baseline::parse(&bytes).ok()
}
