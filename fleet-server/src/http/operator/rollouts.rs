//! Rollouts: start, watch, and what a person may do to one.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use plimsoll_fleet_core::act::Action;
use plimsoll_protocol::api::{Role, RolloutAction, RolloutInfo, RolloutSpec};
use plimsoll_protocol::ids::RolloutId;

use super::access::need;
use crate::app::App;
use crate::auth::Caller;
use crate::clock;
use crate::http::extract::{Json, id};
use crate::http::problem::{Answer, Failure};
use crate::rollouts::BookError;

impl From<BookError> for Failure {
    fn from(error: BookError) -> Self {
        match error {
            BookError::Spec(e) => Self::bad("bad-rollout", e.to_string()),
            BookError::NotPublished { .. } => {
                Self::new(StatusCode::NOT_FOUND, "not-published", error.to_string())
            }
            BookError::Start(e) => Self::conflict("rollout-conflict", e.to_string()),
            BookError::Act(e) => Self::conflict("rollout-state", e.to_string()),
            BookError::Unknown(_) => Self::not_found(error.to_string()),
            BookError::Store(e) => e.into(),
            BookError::Selector(_) | BookError::Random(_) => Self::internal(&error),
        }
    }
}

/// `GET /rollouts`, newest first.
pub async fn list(State(app): State<Arc<App>>, caller: Caller) -> Answer<axum::Json<Vec<RolloutInfo>>> {
    need(&caller, Role::Viewer)?;
    Ok(axum::Json(app.book.lock().await.infos(&app)))
}

/// `GET /rollouts/{id}`.
pub async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(rollout): Path<String>,
) -> Answer<axum::Json<RolloutInfo>> {
    need(&caller, Role::Viewer)?;
    let rollout: RolloutId = id(&rollout)?;
    info(&app, &rollout).await.map(axum::Json)
}

/// `POST /rollouts`. What the operator should know stands in the history of the answer.
pub async fn start(
    State(app): State<Arc<App>>,
    caller: Caller,
    Json(spec): Json<RolloutSpec>,
) -> Answer<(StatusCode, axum::Json<RolloutInfo>)> {
    need(&caller, Role::Operator)?;
    let detail = format!("{} {} to {:?}", spec.model, spec.version, spec.selector);
    let started = app.book.lock().await.start(&app, spec, clock::now_ms()).await?;
    app.audit(&caller.id, "rollout.start", started.to_string(), detail).await?;
    Ok((StatusCode::CREATED, axum::Json(info(&app, &started).await?)))
}

/// `POST /rollouts/{id}/{pause|resume|abort|approve}`. The body may be empty.
pub async fn act(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((rollout, action)): Path<(String, String)>,
    body: axum::body::Bytes,
) -> Answer<axum::Json<RolloutInfo>> {
    let rollout: RolloutId = id(&rollout)?;
    let (action, role) = match action.as_str() {
        "pause" => (Action::Pause, Role::Operator),
        "resume" => (Action::Resume, Role::Operator),
        "abort" => (Action::Abort, Role::Operator),
        "approve" => (Action::Approve, Role::Approver),
        other => {
            let detail = format!("{other:?} cannot be done to a rollout: pause, resume, abort, approve");
            return Err(Failure::not_found(detail));
        }
    };
    need(&caller, role)?;
    let RolloutAction { reason } = if body.is_empty() {
        RolloutAction::default()
    } else {
        serde_json::from_slice(&body)
            .map_err(|e| Failure::bad("malformed-json", format!("the reason: {e}")))?
    };
    let who = format!("token {}", caller.id);
    app.book.lock().await.act(&app, &rollout, action, &who, &reason, clock::now_ms()).await?;
    app.changed();
    let name = format!("rollout.{action:?}").to_lowercase();
    app.audit(&caller.id, &name, rollout.to_string(), reason).await?;
    info(&app, &rollout).await.map(axum::Json)
}

async fn info(app: &App, rollout: &RolloutId) -> Answer<RolloutInfo> {
    let none = || Failure::not_found(format!("rollout {rollout} does not exist"));
    app.book.lock().await.info(app, rollout).ok_or_else(none)
}
