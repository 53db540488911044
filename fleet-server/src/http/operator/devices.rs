//! Devices: what they are, what they run, what they wait for.

use std::sync::Arc;

use axum::extract::{Path, State};
use plimsoll_protocol::DeviceId;
use plimsoll_protocol::api::{DeviceInfo, Readmit, Role};
use plimsoll_protocol::wire::v1::Severity;

use super::access::need;
use crate::app::App;
use crate::auth::Caller;
use crate::clock;
use crate::http::extract::{Json, id};
use crate::http::problem::{Answer, Failure};

/// `GET /devices`.
pub async fn list(State(app): State<Arc<App>>, caller: Caller) -> Answer<axum::Json<Vec<DeviceInfo>>> {
    need(&caller, Role::Viewer)?;
    Ok(axum::Json(infos(&app).await))
}

/// All devices, by name, with what each waits for.
pub async fn infos(app: &App) -> Vec<DeviceInfo> {
    let mut reasons = app.book.lock().await.reasons(app, clock::now_ms());
    let versions = app.trust.versions();
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
    let versions = app.trust.versions();
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
    put_out(&app, &device);
    app.audit(&caller.id, "device.revoke", device.to_string(), String::new()).await?;
    let text = format!("{device} was revoked with token {}", caller.id);
    app.event(Some(device.clone()), Severity::Warning, "device.revoked", text).await;
    one(&app, &device)
}

/// `POST /devices/{device}/readmit`: lets it in again with its registered key, or lets the next enrolment under its
/// name bring another one.
pub async fn readmit(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(device): Path<String>,
    Json(how): Json<Readmit>,
) -> Answer<axum::Json<DeviceInfo>> {
    need(&caller, Role::Operator)?;
    let device: DeviceId = id(&device)?;
    let (record, what) = if how.new_key {
        (app.store.allow_new_key(&device).await?, "may enrol again with a new key")
    } else {
        (app.store.set_revoked(&device, false).await?, "is let in again with its registered key")
    };
    app.fleet.register(record);
    if how.new_key {
        put_out(&app, &device);
    }
    app.audit(&caller.id, "device.readmit", device.to_string(), what.to_owned()).await?;
    let text = format!("{device} {what}, by token {}", caller.id);
    app.event(Some(device.clone()), Severity::Warning, "device.readmitted", text).await;
    one(&app, &device)
}

/// Ends every connection of a device that is kept out. After the registry: a connection that comes in between is
/// refused, one that stands is ended.
fn put_out(app: &App, device: &DeviceId) {
    if let Some(gateway) = app.gateway() {
        gateway.kick(&app.identity(device));
    }
    app.barred.send_modify(|n| *n += 1);
}

fn one(app: &App, device: &DeviceId) -> Answer<axum::Json<DeviceInfo>> {
    let versions = app.trust.versions();
    let found = app.fleet.device(device).map(|d| with_drift(app, d.info(&versions, None)));
    found.map(axum::Json).ok_or_else(|| Failure::not_found(format!("device {device} does not exist")))
}
