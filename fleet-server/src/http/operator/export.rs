//! Freshness for a bundle that goes to devices without a network.

use std::sync::Arc;

use axum::extract::State;
use plimsoll_protocol::api::{Freshness, NewFreshness, Role};
use plimsoll_protocol::wire::v1::Severity;

use super::access::need;
use super::publish::refused;
use crate::app::App;
use crate::auth::Caller;
use crate::clock;
use crate::http::extract::Json;
use crate::http::problem::Answer;

/// One number.
const MAX_REQUEST: usize = 1024;

/// `POST /trust/freshness`. For admins: a signature that lasts lets its holder keep a device on it for that long.
pub async fn freshness(
    State(app): State<Arc<App>>,
    caller: Caller,
    Json(wanted): Json<NewFreshness, MAX_REQUEST>,
) -> Answer<axum::Json<Freshness>> {
    need(&caller, Role::Admin)?;
    let documents = match app.trust.freshness(wanted.valid_s, clock::now_ms()).await {
        Ok(documents) => documents,
        Err(error) => return Err(refused(&app, &caller, error).await),
    };
    let names: Vec<&str> = documents.keys().map(String::as_str).collect();
    let valid = format!("valid for {} s", wanted.valid_s);
    app.audit(&caller.id, "trust.freshness", names.join(" "), valid.clone()).await?;
    let text = format!("freshness for an export was signed with token {}, {valid}", caller.id);
    app.event(None, Severity::Info, "trust.exported", text).await;
    Ok(axum::Json(Freshness { documents }))
}
