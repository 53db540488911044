//! What devices call over HTTPS: enrolment (a join token), renewal (a client certificate, expired or not), signed
//! metadata and the fleet's authorities (public), blobs (a client certificate).

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, Response, StatusCode, header};
use axum::routing::{get, post};
use axum::{Extension, Router};
use plimsoll_protocol::Digest;
use plimsoll_protocol::wire::v1::{
    ENROLL_PATH, EnrollRequest, EnrollResponse, FLEET_CA_PATH, RENEW_PATH, Severity,
};

use super::extract::{Json, id};
use super::listener::Peer;
use super::problem::{Answer, Failure, no_such_method, no_such_path};
use super::range::{Wanted, wanted};
use super::renew;
use crate::app::App;
use crate::auth::device::{Known, admit as admit_device};
use crate::ca::{CaError, CheckedRequest};
use crate::metrics::one;
use crate::store::Enrolment;
use crate::{clock, secret};

/// Most labels of a device, and the longest name or value: 32 of 64 characters keep the record inside one value of
/// the store.
const MAX_LABELS: usize = 32;
const MAX_LABEL: usize = 64;
/// Largest enrolment: a certificate request is about 500 bytes, labels at most 4 KiB.
const MAX_ENROL: usize = 16 * 1024;
/// A name that a topic has taken: `plimsoll/1/{tenant}/all/dn/cfg`.
const RESERVED: &str = "all";
/// Blobs never change under their name.
const IMMUTABLE: &str = "public, max-age=31536000, immutable";

/// The routes.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route(ENROLL_PATH, post(enroll))
        .route(RENEW_PATH, post(renew::renew))
        .route(FLEET_CA_PATH, get(renew::fleet_ca))
        .route("/tuf/{name}", get(metadata))
        .route("/blobs/sha256/{digest}", get(blob))
        .route("/targets/{*path}", get(super::targets::target))
        .route(&format!("{}/{{old}}/{{new}}", plimsoll_protocol::delta::PATH), get(super::delta::delta))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(MAX_ENROL))
        .with_state(app)
}

async fn enroll(
    State(app): State<Arc<App>>,
    Extension(peer): Extension<Peer>,
    Json(request): Json<EnrollRequest, MAX_ENROL>,
) -> Answer<axum::Json<EnrollResponse>> {
    let (device, token) = (request.device.clone(), request.token_id.clone());
    match admit(&app, request).await {
        Ok(response) => {
            one(&app.metrics.enrolled);
            let text = format!("{device} enrolled from {} with join token {token}", peer.address);
            app.audit(device.as_str(), "device.enrol", device.to_string(), text.clone()).await?;
            app.event(Some(device), Severity::Info, "device.enrolled", text).await;
            Ok(axum::Json(response))
        }
        Err(failure) => {
            one(&app.metrics.enrol_refused);
            tracing::warn!(%device, peer.address = %peer.address, token.id = %token, ?failure, "enrolment refused");
            Err(failure)
        }
    }
}

async fn admit(app: &App, request: EnrollRequest) -> Answer<EnrollResponse> {
    check(&request)?;
    // Before a use of the token is spent: a device without a root of trust could install nothing.
    let tuf_root = app.trust.root().ok_or_else(|| {
        Failure::conflict(
            "no-trust",
            "the fleet has no trust yet: run `plimsoll trust init`, then enrol again",
        )
    })?;
    let identity = app.identity(&request.device);
    let now = clock::now_ms();
    let refused = |error: CaError| match error {
        CaError::Request { .. } => Failure::bad("bad-request-of-certificate", error.to_string()),
        other => Failure::internal(&other),
    };
    let checked = CheckedRequest::parse(identity.clone(), &request.csr_pem).map_err(refused)?;
    let issued = app.ca.issue(checked.identity(), checked.public_key(), now).map_err(refused)?;
    let record = app
        .store
        .enrol(Enrolment {
            device: request.device,
            key: checked.key(),
            token_id: request.token_id,
            secret: secret::hash(&request.token_secret),
            arch: request.arch,
            labels: request.labels,
            certificate_until_ms: issued.until_ms,
            issuer: issued.issuer,
            now_ms: now,
        })
        .await?;
    app.fleet.register(record);
    app.changed();
    let addresses = app.addresses.get().ok_or(crate::store::StoreError::Stopped)?;
    Ok(EnrollResponse {
        identity,
        certificate_pem: issued.chain_pem,
        ca_pem: app.ca.bundle(),
        tuf_root,
        mqtt: format!("{}:{}", app.public_host, addresses.mqtt.port()),
        https: format!("https://{}:{}", app.public_host, addresses.https.port()),
    })
}

fn check(request: &EnrollRequest) -> Answer<()> {
    let fits = |text: &str| (1..=MAX_LABEL).contains(&text.len()) && text.chars().all(|c| !c.is_control());
    if request.device.as_str() == RESERVED {
        return Err(Failure::bad(
            "bad-id",
            "a device cannot be called \"all\": that is the address of the whole fleet",
        ));
    }
    if request.labels.len() > MAX_LABELS || !request.labels.iter().all(|(k, v)| fits(k) && fits(v)) {
        let detail =
            format!("labels of {}: at most {MAX_LABELS} of 1 to {MAX_LABEL} characters each", request.device);
        return Err(Failure::bad("bad-labels", detail));
    }
    if !fits(&request.arch) {
        return Err(Failure::bad(
            "bad-arch",
            format!("the architecture of {} has 1 to 64 characters", request.device),
        ));
    }
    Ok(())
}

/// Public: it is signed, and a device whose certificate has expired needs it to learn what is current.
async fn metadata(State(app): State<Arc<App>>, Path(name): Path<String>) -> Answer<Response<Body>> {
    let none = || Failure::not_found(format!("the trust repository has no {name}"));
    let doc = app.trust.document(&name).ok_or_else(none)?;
    let body = app.blobs.stream(&doc.sha256, 0, doc.length).await.map_err(|e| Failure::internal(&e))?;
    let caching = if name == "timestamp.json" { "no-cache" } else { IMMUTABLE };
    let response = Response::builder()
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CONTENT_LENGTH, doc.length)
        .header(header::CACHE_CONTROL, caching)
        .body(Body::from_stream(body));
    response.map_err(|e| Failure::internal(&e))
}

/// A device that is let in.
pub(super) fn authorise(app: &App, peer: &Peer) -> Answer<Known> {
    let certificate = peer.certificate.as_ref().ok_or_else(|| {
        let detail = "blobs are for devices with a client certificate: `plimsoll-agent enroll` first";
        Failure::new(StatusCode::UNAUTHORIZED, "no-certificate", detail)
    })?;
    admit_device(&app.fleet, &app.tenant, certificate, clock::now_ms())
        .map_err(|barred| Failure::new(StatusCode::FORBIDDEN, barred.kind(), barred.to_string()))
}

async fn blob(
    State(app): State<Arc<App>>,
    Extension(peer): Extension<Peer>,
    Path(digest): Path<String>,
    headers: HeaderMap,
) -> Answer<Response<Body>> {
    authorise(&app, &peer)?;
    send(&app, id(&digest)?, &headers).await
}

/// A blob, or the part of it that was asked for.
pub(super) async fn send(app: &App, digest: Digest, headers: &HeaderMap) -> Answer<Response<Body>> {
    let none = || Failure::not_found(format!("there is no blob sha256:{digest} on this server"));
    let total = app.blobs.length(&digest).await.ok_or_else(none)?;
    let etag = format!("\"{digest}\"");
    let text = |name| headers.get(name).and_then(|v: &header::HeaderValue| v.to_str().ok());
    let response = Response::builder()
        .header(header::ETAG, &etag)
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::CACHE_CONTROL, IMMUTABLE)
        .header(header::CONTENT_TYPE, "application/octet-stream");
    one(&app.metrics.blob_requests);
    if text(header::IF_NONE_MATCH).is_some_and(|known| known.split(',').any(|e| e.trim() == etag)) {
        let unchanged = response.status(StatusCode::NOT_MODIFIED).body(Body::empty());
        return unchanged.map_err(|e| Failure::internal(&e));
    }
    let (status, start, length) = match wanted(text(header::RANGE), text(header::IF_RANGE), &etag, total) {
        Wanted::Whole => (StatusCode::OK, 0, total),
        Wanted::Part { start, length } => (StatusCode::PARTIAL_CONTENT, start, length),
        Wanted::Unsatisfiable => {
            let response = response
                .status(StatusCode::RANGE_NOT_SATISFIABLE)
                .header(header::CONTENT_RANGE, format!("bytes */{total}"))
                .body(Body::empty());
            return response.map_err(|e| Failure::internal(&e));
        }
    };
    app.metrics.blob_bytes.fetch_add(length, Relaxed);
    let mut response = response.status(status).header(header::CONTENT_LENGTH, length);
    if status == StatusCode::PARTIAL_CONTENT {
        let last = start + length - 1;
        response = response.header(header::CONTENT_RANGE, format!("bytes {start}-{last}/{total}"));
    }
    let body = app.blobs.stream(&digest, start, length).await.map_err(|e| Failure::internal(&e))?;
    response.body(Body::from_stream(body)).map_err(|e| Failure::internal(&e))
}
