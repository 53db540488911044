//! The fleet's certificate authorities: what signs, what follows, and the switch.

use std::sync::Arc;

use axum::extract::State;
use plimsoll_protocol::Digest;
use plimsoll_protocol::api::{CaInfo, Role};
use plimsoll_protocol::trust::{FLEET_CA, MAX_FLEET_FILE_BYTES};
use plimsoll_protocol::wire::v1::Severity;

use super::access::need;
use crate::app::App;
use crate::auth::Caller;
use crate::ca::{CaError, Notes, fingerprints};
use crate::clock;
use crate::http::problem::{Answer, Failure};

/// `GET /ca`.
pub async fn show(State(app): State<Arc<App>>, caller: Caller) -> Answer<axum::Json<CaInfo>> {
    need(&caller, Role::Viewer)?;
    info(&app).await.map(axum::Json)
}

/// `POST /ca/prepare`: makes the next authority; from now on it is believed, and signs nothing yet.
pub async fn prepare(State(app): State<Arc<App>>, caller: Caller) -> Answer<axum::Json<CaInfo>> {
    need(&caller, Role::Admin)?;
    app.ca.prepare(clock::now_ms()).map_err(refused)?;
    let info = info(&app).await?;
    let next = info.next.as_ref().map(|n| n.fingerprint.to_string()).unwrap_or_default();
    app.audit(&caller.id, "ca.prepare", next, String::new()).await?;
    Ok(axum::Json(info))
}

/// `POST /ca/switch`: the next authority signs from now on, the server's own certificate first.
pub async fn switch(State(app): State<Arc<App>>, caller: Caller) -> Answer<axum::Json<CaInfo>> {
    need(&caller, Role::Admin)?;
    let (before, now) = (app.ca.issuing().fingerprint(), clock::now_ms());
    app.ca.switch(published(&app).await?.as_deref(), now).map_err(refused)?;
    app.certificate.renew(&app.ca.issuing(), now).map_err(refused)?;
    Notes::write(&app.state_dir, &app.ca, &app.certificate);
    let info = info(&app).await?;
    let text = format!(
        "the fleet's authority is {} now, after {}; devices renew with it when their time comes",
        info.issuing.fingerprint.short(),
        before.short()
    );
    app.audit(&caller.id, "ca.switch", info.issuing.fingerprint.to_string(), text.clone()).await?;
    app.event(None, Severity::Warning, "ca.switched", text).await;
    Ok(axum::Json(info))
}

async fn info(app: &App) -> Answer<CaInfo> {
    let published = published(app).await?;
    let count = |issuer: &Digest| {
        let signed = |d: &&crate::fleet::Device| !d.record.revoked && d.record.issuer == Some(*issuer);
        app.fleet.read(|devices| devices.values().filter(signed).count() as u64)
    };
    Ok(CaInfo { server_until_ms: app.certificate.until_ms(), ..app.ca.info(published, count) })
}

/// What the fleet's signed file names.
async fn published(app: &App) -> Answer<Option<Vec<Digest>>> {
    let Some(doc) = app.trust.fleet_file(FLEET_CA) else { return Ok(None) };
    Ok(Some(fingerprints(&app.blobs.read(&doc.sha256, MAX_FLEET_FILE_BYTES).await?)))
}

fn refused(error: CaError) -> Failure {
    match error {
        CaError::Refused(why) => Failure::conflict("ca", why),
        other => Failure::internal(&other),
    }
}
