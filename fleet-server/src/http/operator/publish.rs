//! Publishing: blobs first, then the signed metadata that lists them.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{Response, StatusCode, header};
use plimsoll_protocol::api::{ModelVersion, NewOnlineKeys, Proposal, Role, TrustState, TrustUpload};
use plimsoll_protocol::bundle::MAX_FILE_BYTES;
use plimsoll_protocol::wire::v1::Severity;
use plimsoll_protocol::{DeviceId, Digest};

use super::access::need;
use crate::app::App;
use crate::auth::Caller;
use crate::clock;
use crate::http::extract::{Json, id};
use crate::http::problem::{Answer, Failure};
use crate::trust::PublishError;

/// Largest upload of metadata: root and targets of 1 and 10 MiB, and the roles of a few models beside them.
const MAX_UPLOAD: usize = 32 * 1024 * 1024;

/// Devices named in an event; the others are counted.
const NAMED: usize = 5;

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
        app.event(None, Severity::Warning, "trust.file-removed", format!("{path} is no longer signed for"))
            .await;
    }
    for version in accepted.revoked {
        let what = format!("{} {}", version.model, version.version);
        app.audit(&caller.id, "bundle.revoke", what.clone(), format!("sha256:{}", version.digest)).await?;
        let fallout = app.book.lock().await.fallout(&app, &version);
        app.event(None, Severity::Warning, "bundle.revoked", format!("{what} is revoked: {fallout}")).await;
        if !fallout.stuck.is_empty() {
            let names: Vec<&str> = fallout.stuck.iter().take(NAMED).map(DeviceId::as_str).collect();
            let text = format!(
                "{what} is revoked and still runs on {} device(s) that never had another version ({}): publish a \
                 good version and roll it out to them",
                fallout.stuck.len(),
                names.join(", ")
            );
            app.event(None, Severity::Alarm, "bundle.revoked-runs", text).await;
        }
    }
    app.changed();
    Ok(axum::Json(app.trust.state()))
}

/// `POST /trust/online-keys`.
pub async fn online_keys(
    State(app): State<Arc<App>>,
    caller: Caller,
    Json(wanted): Json<NewOnlineKeys>,
) -> Answer<axum::Json<TrustState>> {
    need(&caller, Role::Admin)?;
    let state = match app.trust.make_online_keys(&wanted.roles).await {
        Ok(state) => state,
        Err(error) => return Err(refused(&app, &caller, error).await),
    };
    let made = [&state.next_snapshot_key, &state.next_timestamp_key].map(|k| k.clone().unwrap_or_default());
    app.audit(&caller.id, "trust.online-keys", wanted.roles.join(" "), made.join(" ")).await?;
    Ok(axum::Json(state))
}

/// `GET /trust/proposals`.
pub async fn proposals(State(app): State<Arc<App>>, caller: Caller) -> Answer<axum::Json<Vec<Proposal>>> {
    need(&caller, Role::Viewer)?;
    Ok(axum::Json(app.trust.proposals().await))
}

/// `PUT /trust/proposals/{id}`: a new one, or one more copy with other signatures.
pub async fn propose(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Json(proposal): Json<Proposal, MAX_UPLOAD>,
) -> Answer<axum::Json<Proposal>> {
    need(&caller, if proposal.upload.root.is_some() { Role::Admin } else { Role::Publisher })?;
    if id != proposal.id {
        return Err(Failure::bad(
            "bad-id",
            format!("proposal {} was sent to the place of {id}", proposal.id),
        ));
    }
    let kept = match app.trust.keep_proposal(proposal, clock::now_ms() / 1000).await {
        Ok(kept) => kept,
        Err(error) => return Err(refused(&app, &caller, error).await),
    };
    app.audit(&caller.id, "trust.propose", kept.id.clone(), kept.why.clone()).await?;
    let text = format!("change {} waits for signatures: {}", kept.id, kept.why);
    app.event(None, Severity::Info, "trust.proposed", text).await;
    Ok(axum::Json(kept))
}

/// `DELETE /trust/proposals/{id}`.
pub async fn drop_proposal(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Answer<StatusCode> {
    need(&caller, Role::Publisher)?;
    match app.trust.drop_proposal(&id).await {
        Ok(true) => {
            app.audit(&caller.id, "trust.drop-proposal", id, String::new()).await?;
            Ok(StatusCode::NO_CONTENT)
        }
        Ok(false) => Err(Failure::not_found(format!("no change {id} waits for signatures"))),
        Err(error) => Err(refused(&app, &caller, error).await),
    }
}

/// `GET /trust/documents/{name}`: a document as it is served to devices, to the byte.
pub async fn document(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Answer<Response<Body>> {
    need(&caller, Role::Viewer)?;
    let none = || Failure::not_found(format!("the trust repository has no {name}"));
    let doc = app.trust.document(&name).ok_or_else(none)?;
    whole(&app, &doc.sha256, doc.length).await
}

/// `GET /blobs/sha256/{digest}`: a file of a bundle, whole.
pub async fn read_blob(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(digest): Path<String>,
) -> Answer<Response<Body>> {
    need(&caller, Role::Viewer)?;
    let digest: Digest = id(&digest)?;
    let none = || Failure::not_found(format!("there is no blob sha256:{digest} on this server"));
    let length = app.blobs.length(&digest).await.ok_or_else(none)?;
    whole(&app, &digest, length).await
}

async fn whole(app: &App, digest: &Digest, length: u64) -> Answer<Response<Body>> {
    let body = app.blobs.stream(digest, 0, length).await.map_err(|e| Failure::internal(&e))?;
    let response = Response::builder()
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::CONTENT_LENGTH, length)
        .body(Body::from_stream(body));
    response.map_err(|e| Failure::internal(&e))
}

/// The answer to an upload that was refused, told as an event.
pub async fn refused(app: &App, caller: &Caller, error: PublishError) -> Failure {
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
    let known = app.trust.versions();
    let running = app.fleet.read(|devices| {
        let models = devices.values().flat_map(|d| d.running(&known).into_values());
        models.map(|m| m.digest).collect::<Vec<_>>()
    });
    let mut versions: Vec<ModelVersion> = bundles
        .into_iter()
        .map(|b| {
            let truth = app.drift.truth(&b.digest);
            ModelVersion {
                devices: running.iter().filter(|d| **d == b.digest).count() as u64,
                model: b.model,
                version: b.version,
                digest: b.digest,
                bytes: b.bytes,
                signed_by: b.signed_by,
                annotations: b.annotations,
                labelled: truth.labelled,
                correct: truth.correct,
            }
        })
        .collect();
    versions.sort_by(|a, b| a.model.cmp(&b.model).then(b.version.cmp(&a.version)));
    versions
}
