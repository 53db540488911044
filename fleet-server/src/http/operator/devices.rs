//! Devices: what they are, what they run, what they wait for.

use std::sync::Arc;

use axum::extract::{Path, State};
use plimsoll_protocol::DeviceId;
use plimsoll_protocol::api::{DeviceInfo, Role};
use plimsoll_protocol::wire::v1::Severity;

use super::access::need;
use crate::app::App;
use crate::auth::Caller;
use crate::http::extract::id;
use crate::http::problem::{Answer, Failure};
use crate::{clock, fleet};

/// `GET /devices`.
pub async fn list(State(app): State<Arc<App>>, caller: Caller) -> Answer<axum::Json<Vec<DeviceInfo>>> {
    need(&caller, Role::Viewer)?;
    Ok(axum::Json(infos(&app).await))
}

/// All devices, by name, with what each waits for.
pub async fn infos(app: &App) -> Vec<DeviceInfo> {
    let mut reasons = app.book.lock().await.reasons(app, clock::now_ms());
    let versions = fleet::versions(&app.trust.bundles());
    let infos = app.fleet.read(|devices| {
        devices.values().map(|d| d.info(&versions, reasons.remove(&d.record.device))).collect::<Vec<_>>()
    });
    infos.into_iter().map(|info| with_drift(app, info)).collect()
}

fn with_drift(app: &App, info: DeviceInfo) -> DeviceInfo {
    DeviceInfo { drift: app.drift.alarms(&info.device, &info.running), ..info }
}

/// `GET /devices/{device}`.
pub async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(device): Path<String>,
) -> Answer<axum::Json<DeviceInfo>> {
    need(&caller, Role::Viewer)?;
    let device: DeviceId = id(&device)?;
    let mut reasons = app.book.lock().await.reasons(&app, clock::now_ms());
    let versions = fleet::versions(&app.trust.bundles());
    let found = app.fleet.device(&device).map(|d| d.info(&versions, reasons.remove(&device)));
    let found = found.map(|info| with_drift(&app, info));
    found.map(axum::Json).ok_or_else(|| Failure::not_found(format!("device {device} does not exist")))
}

/// `POST /devices/{device}/revoke`: keeps it out from now on, and ends its connection.
pub async fn revoke(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(device): Path<String>,
) -> Answer<axum::Json<DeviceInfo>> {
    need(&caller, Role::Operator)?;
    let device: DeviceId = id(&device)?;
    let record = app.store.set_revoked(&device, true).await?;
    app.fleet.register(record);
    // After the registry: a connection that comes in between is refused, one that stands is ended.
    if let Some(gateway) = app.gateway() {
        gateway.kick(&app.identity(&device));
    }
    app.audit(&caller.id, "device.revoke", device.to_string(), String::new()).await?;
    let text = format!("{device} was revoked with token {}", caller.id);
    app.event(Some(device.clone()), Severity::Warning, "device.revoked", text).await;
    let versions = fleet::versions(&app.trust.bundles());
    let found = app.fleet.device(&device).map(|d| d.info(&versions, None));
    let found = found.map(|info| with_drift(&app, info));
    found.map(axum::Json).ok_or_else(|| Failure::not_found(format!("device {device} does not exist")))
}
