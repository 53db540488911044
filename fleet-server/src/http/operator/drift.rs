//! A device's measurement windows against the baseline of the bundle that it runs: computed from the stored counts
//! when somebody looks.

use std::sync::Arc;

use axum::extract::{Path, State};
use plimsoll_protocol::DeviceId;
use plimsoll_protocol::api::{DeviceInfo, DriftInfo, FeatureDrift, Role};
use plimsoll_protocol::drift::verdict::histogram;
use plimsoll_protocol::wire::v1::RunningModel;

use super::access::need;
use crate::app::App;
use crate::auth::Caller;
use crate::http::extract::id;
use crate::http::problem::{Answer, Failure};
use crate::web::{Histogram, charts};

/// `GET /devices/{device}/drift`.
pub async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(device): Path<String>,
) -> Answer<axum::Json<Vec<DriftInfo>>> {
    need(&caller, Role::Viewer)?;
    let device: DeviceId = id(&device)?;
    let versions = app.trust.versions();
    let running = app.fleet.device(&device).map(|d| d.running(&versions));
    let running = running.ok_or_else(|| Failure::not_found(format!("device {device} does not exist")))?;
    let mut all = Vec::new();
    for model in running.into_values() {
        all.extend(of_model(&app, &device, &model).await);
    }
    Ok(axum::Json(all))
}

async fn of_model(app: &App, device: &DeviceId, running: &RunningModel) -> Option<DriftInfo> {
    let replay = app.drift.replay(app, device, &running.model, &running.digest).await?;
    let features = replay.baseline.features().iter().zip(&replay.last.features).zip(replay.verdicts);
    let features = features.map(|((feature, counts), verdict)| FeatureDrift {
        text: verdict.to_string(),
        alarm: verdict.is_alarm(),
        bars: histogram(feature, counts),
        verdict,
    });
    let alarms = app.drift.alarms(device, std::slice::from_ref(running));
    Some(DriftInfo {
        model: running.model.clone(),
        version: running.version.clone(),
        digest: running.digest,
        windows: replay.windows,
        opened_ms: replay.last.opened,
        closed_ms: replay.last.closed,
        samples: replay.last.samples,
        quality: replay.quality.words(),
        truth: replay.truth.words(Some(&replay.baseline)),
        labelled: (replay.truth.labelled, replay.truth.correct),
        cause: alarms.into_iter().next().map(|a| a.cause),
        features: features.collect(),
    })
}

/// The last windows of everything the device runs, alarms first.
pub async fn histograms(app: &App, device: &DeviceInfo) -> Vec<Histogram> {
    let mut all = Vec::new();
    for running in &device.running {
        let replay = app.drift.replay(app, &device.device, &running.model, &running.digest).await;
        let charts = replay.and_then(|r| charts(&r.baseline, &r.last, &r.verdicts).ok());
        all.extend(charts.unwrap_or_default().into_iter().filter(|chart| !chart.bars.is_empty()));
    }
    all.sort_by_key(|h| !h.alarm);
    all
}
