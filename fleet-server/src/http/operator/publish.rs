//! Publishing: blobs first, then the signed metadata that lists them.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use plimsoll_protocol::Digest;
use plimsoll_protocol::api::{ModelVersion, Role, TrustState, TrustUpload};
use plimsoll_protocol::bundle::MAX_FILE_BYTES;
use plimsoll_protocol::wire::v1::Severity;

use super::access::need;
use crate::app::App;
use crate::auth::Caller;
use crate::clock;
use crate::fleet;
use crate::http::extract::{Json, id};
use crate::http::problem::{Answer, Failure};
use crate::trust::PublishError;

/// Largest upload of metadata: root and targets of 1 and 10 MiB, and the roles of a few models beside them.
const MAX_UPLOAD: usize = 32 * 1024 * 1024;

/// `GET /trust`.
pub async fn trust(State(app): State<Arc<App>>, caller: Caller) -> Answer<axum::Json<TrustState>> {
    need(&caller, Role::Viewer)?;
    Ok(axum::Json(app.trust.state()))
}

/// `PUT /trust/metadata`.
pub async fn metadata(
    State(app): State<Arc<App>>,
    caller: Caller,
    Json(upload): Json<TrustUpload, MAX_UPLOAD>,
) -> Answer<axum::Json<TrustState>> {
    need(&caller, if upload.root.is_some() { Role::Admin } else { Role::Publisher })?;
    let accepted = match app.trust.upload(&upload, clock::now_ms()).await {
        Ok(accepted) => accepted,
        Err(error) => return Err(refused(&app, &caller, error).await),
    };
    app.audit(&caller.id, "trust.publish", accepted.documents.join(" "), String::new()).await?;
    for version in accepted.added {
        app.event(None, Severity::Info, "bundle.published", format!("{version} is published")).await;
    }
    for path in accepted.removed {
        app.event(None, Severity::Warning, "bundle.revoked", format!("{path} is no longer signed for")).await;
    }
    app.changed();
    Ok(axum::Json(app.trust.state()))
}

async fn refused(app: &App, caller: &Caller, error: PublishError) -> Failure {
    let failure = match error {
        PublishError::Trust(e) => {
            Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "trust-refused", e.to_string())
        }
        PublishError::Bundle { .. } => {
            Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "bundle-incomplete", error.to_string())
        }
        PublishError::NotInitialised => Failure::conflict("no-trust", error.to_string()),
        PublishError::Blob(e) => return e.into(),
        PublishError::Store(e) => return e.into(),
    };
    let text = format!("metadata uploaded with token {} was refused: {failure:?}", caller.id);
    app.event(None, Severity::Warning, "trust.upload-refused", text).await;
    failure
}

/// `PUT /blobs/sha256/{digest}`: 201 when it is new, 200 when it was there.
pub async fn blob(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(digest): Path<String>,
    body: Body,
) -> Answer<StatusCode> {
    need(&caller, Role::Publisher)?;
    let digest: Digest = id(&digest)?;
    let body = body.into_data_stream();
    if app.blobs.length(&digest).await.is_some() {
        app.blobs.skip(digest, MAX_FILE_BYTES, body).await?;
        return Ok(StatusCode::OK);
    }
    app.blobs.put(digest, MAX_FILE_BYTES, body).await?;
    Ok(StatusCode::CREATED)
}

/// `GET /models`.
pub async fn models(State(app): State<Arc<App>>, caller: Caller) -> Answer<axum::Json<Vec<ModelVersion>>> {
    need(&caller, Role::Viewer)?;
    Ok(axum::Json(versions(&app)))
}

/// Published versions, newest of each model first.
pub fn versions(app: &App) -> Vec<ModelVersion> {
    let bundles = app.trust.bundles();
    let known = fleet::versions(&bundles);
    let running = app.fleet.read(|devices| {
        let models = devices.values().flat_map(|d| d.running(&known).into_values());
        models.map(|m| m.digest).collect::<Vec<_>>()
    });
    let mut versions: Vec<ModelVersion> = bundles
        .into_iter()
        .map(|b| ModelVersion {
            devices: running.iter().filter(|d| **d == b.digest).count() as u64,
            model: b.model,
            version: b.version,
            digest: b.digest,
            bytes: b.bytes,
            signed_by: b.signed_by,
            annotations: b.annotations,
        })
        .collect();
    versions.sort_by(|a, b| a.model.cmp(&b.model).then(b.version.cmp(&a.version)));
    versions
}
