//! Tokens of people and join tokens of devices. A secret is shown once.

use std::sync::Arc;

use axum::extract::{Path, State};
use plimsoll_protocol::DeviceId;
use plimsoll_protocol::api::{JoinTokenInfo, NewJoinToken, NewToken, Role, TokenCreated};
use plimsoll_protocol::wire::v1::JoinToken;

use super::access::need;
use crate::app::App;
use crate::auth::{self, Caller, MAX_TOKEN_DAYS};
use crate::http::extract::Json;
use crate::http::problem::{Answer, Failure};
use crate::store::JoinTokenRecord;
use crate::{clock, secret};

/// Most devices of one join token: a batch of a factory's day.
const MAX_USES: u32 = 100_000;
/// Longest life of a join token: 90 days.
const MAX_MINUTES: u32 = 90 * 24 * 60;

/// `POST /tokens`.
pub async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    Json(new): Json<NewToken>,
) -> Answer<axum::Json<TokenCreated>> {
    need(&caller, Role::Admin)?;
    if !(1..=MAX_TOKEN_DAYS).contains(&new.days) || new.name.is_empty() || new.name.len() > 100 {
        let detail = format!("a token has a name of 1 to 100 characters and 1 to {MAX_TOKEN_DAYS} days");
        return Err(Failure::bad("bad-token", detail));
    }
    let created = app.auth.create(&new, clock::now_ms()).await?;
    let detail = format!("{:?}, role {:?}, {} days", new.name, new.role, new.days);
    app.audit(&caller.id, "token.create", created.id.clone(), detail).await?;
    Ok(axum::Json(created))
}

/// `POST /join-tokens`.
pub async fn create_join(
    State(app): State<Arc<App>>,
    caller: Caller,
    Json(new): Json<NewJoinToken>,
) -> Answer<axum::Json<TokenCreated>> {
    need(&caller, Role::Operator)?;
    if !(1..=MAX_USES).contains(&new.uses) || !(1..=MAX_MINUTES).contains(&new.minutes) {
        let detail = format!("a join token has 1 to {MAX_USES} uses and 1 to {MAX_MINUTES} minutes");
        return Err(Failure::bad("bad-token", detail));
    }
    if let Some(names) = new.names.as_deref().filter(|n| !is_pattern(n)) {
        let detail = format!("{names:?} names no devices: a name, or the start of names and one * (cam-*)");
        return Err(Failure::bad("bad-token", detail));
    }
    let (id, secret) = auth::random_pair().map_err(|e| Failure::internal(&e))?;
    let expires_ms = clock::now_ms() + i64::from(new.minutes) * 60_000;
    app.store
        .add_join_token(JoinTokenRecord {
            id: id.clone(),
            secret: secret::hash(&secret),
            uses_left: new.uses,
            expires_ms,
            labels: new.labels,
            uses: new.uses,
            revoked: false,
            names: new.names,
        })
        .await?;
    let detail = format!("{} uses, {} minutes", new.uses, new.minutes);
    app.audit(&caller.id, "join-token.create", id.clone(), detail).await?;
    let token = JoinToken { id: id.clone(), secret, ca: app.ca.issuing().fingerprint() };
    Ok(axum::Json(TokenCreated { id, token: token.reveal(), expires_ms }))
}

/// `GET /join-tokens`: all that were made, the ones that ended too.
pub async fn list_join(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Answer<axum::Json<Vec<JoinTokenInfo>>> {
    need(&caller, Role::Operator)?;
    let mut tokens: Vec<_> = app.store.join_tokens().await?.into_iter().map(info).collect();
    tokens.sort_by_key(|t| t.expires_ms);
    Ok(axum::Json(tokens))
}

/// `POST /join-tokens/{id}/revoke`: nobody enrols with it any more; those who did stay.
pub async fn revoke_join(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Answer<axum::Json<JoinTokenInfo>> {
    need(&caller, Role::Operator)?;
    let token = info(app.store.revoke_join_token(&id).await?);
    app.audit(&caller.id, "join-token.revoke", id, String::new()).await?;
    Ok(axum::Json(token))
}

fn info(token: JoinTokenRecord) -> JoinTokenInfo {
    let JoinTokenRecord { id, uses_left, expires_ms, labels, uses, revoked, names, secret: _ } = token;
    // Tokens of before did not keep how many uses they had.
    JoinTokenInfo { id, uses: uses.max(uses_left), uses_left, expires_ms, revoked, labels, names }
}

/// A device's name, or the start of one and a star.
fn is_pattern(names: &str) -> bool {
    let start = names.strip_suffix('*').unwrap_or(names);
    DeviceId::new(start).is_ok() || names == "*"
}
