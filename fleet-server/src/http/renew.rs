//! The next certificate of a device, and the authorities of the fleet.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use plimsoll_protocol::UnixMillis;
use plimsoll_protocol::trust::FLEET_CA;
use plimsoll_protocol::wire::v1::{RenewResponse, Severity};
use rcgen::SubjectPublicKeyInfo;

use super::listener::Peer;
use super::problem::{Answer, Failure};
use crate::app::App;
use crate::auth::device::registered;
use crate::clock;
use crate::metrics::one;
use crate::store::Renewal;

/// A device renews four times a year, and repeats after a lost answer. More than one a minute is a defect of it, and
/// each costs a signature and a write; of a short life, a hundredth.
const RENEWAL_PAUSE_MS: UnixMillis = 60_000;

/// `POST /v1/renew`, without a body: signs the key of the client certificate again, expired or not, when that is the
/// registered key of a device that is let in.
pub async fn renew(
    State(app): State<Arc<App>>,
    Extension(peer): Extension<Peer>,
) -> Answer<axum::response::Response> {
    let certificate = peer.certificate.as_ref().ok_or_else(|| {
        let detail =
            "a renewal needs the certificate that is to be renewed, expired or not: `plimsoll-agent enroll`";
        Failure::new(StatusCode::UNAUTHORIZED, "no-certificate", detail)
    })?;
    let known = registered(&app.fleet, &app.tenant, certificate)
        .inspect_err(|_| one(&app.metrics.renewals_refused))
        .map_err(|barred| Failure::new(StatusCode::FORBIDDEN, barred.kind(), barred.to_string()))?;
    let now = clock::now_ms();
    if let Some(wait_s) = too_soon(&app, &known.device, now) {
        let detail = format!("device {} renewed its certificate a moment ago", known.device);
        let mut response = Failure::new(StatusCode::TOO_MANY_REQUESTS, "too-soon", detail).into_response();
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(wait_s));
        return Ok(response);
    }
    let (_, parsed) =
        x509_parser::parse_x509_certificate(certificate.der()).map_err(|e| Failure::internal(&e))?;
    let key = SubjectPublicKeyInfo::from_der(parsed.public_key().raw).map_err(|e| Failure::internal(&e))?;
    let issued = app.ca.issue(certificate.identity(), &key, now).map_err(|e| Failure::internal(&e))?;
    let record = app
        .store
        .renew(Renewal {
            device: known.device.clone(),
            key: known.key,
            certificate_until_ms: issued.until_ms,
            issuer: issued.issuer,
        })
        .await?;
    app.fleet.register(record);
    one(&app.metrics.renewed);
    let late_ms = now - certificate.until_ms();
    if late_ms > 0 {
        let text = format!(
            "{} came back from {} with a certificate that had ended {} hours before, and renewed it with its \
             registered key",
            known.device,
            peer.address,
            late_ms / 3_600_000
        );
        app.event(Some(known.device), Severity::Info, "device.certificate_returned", text).await;
    } else {
        tracing::info!(device = %known.device, peer.address = %peer.address, "device renewed its certificate");
        app.changed();
    }
    Ok(axum::Json(RenewResponse { certificate_pem: issued.chain_pem }).into_response())
}

/// Seconds until a device may renew again; `None` when it may.
fn too_soon(app: &App, device: &plimsoll_protocol::DeviceId, now: UnixMillis) -> Option<i64> {
    let life_ms = i64::try_from(app.ca.device_life_s()).unwrap_or(i64::MAX).saturating_mul(1000);
    let until = app.fleet.read(|devices| devices.get(device).map(|d| d.record.certificate_until_ms))?;
    // A life that was configured anew since makes this time wrong in either direction; then nobody waits.
    let since = now - (until - life_ms);
    let pause = RENEWAL_PAUSE_MS.min(life_ms / 100);
    (0..pause).contains(&since).then(|| (pause - since).div_euclid(1000) + 1)
}

/// `GET /fleet/ca.pem`, for anybody: what the owner signed for. A device checks its digest, not this server.
pub async fn fleet_ca(State(app): State<Arc<App>>) -> Answer<Response<Body>> {
    let none =
        || Failure::not_found("the fleet's owner has published no authorities (`plimsoll trust publish-ca`)");
    let doc = app.trust.fleet_file(FLEET_CA).ok_or_else(none)?;
    let body = app.blobs.stream(&doc.sha256, 0, doc.length).await.map_err(|e| Failure::internal(&e))?;
    let response = Response::builder()
        .header(header::CONTENT_TYPE, "application/x-pem-file")
        .header(header::CONTENT_LENGTH, doc.length)
        .header(header::CACHE_CONTROL, "no-cache")
        .body(Body::from_stream(body));
    response.map_err(|e| Failure::internal(&e))
}
