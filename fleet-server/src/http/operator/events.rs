//! What happened: a list, a live stream, and the audit log.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::{Stream, StreamExt, stream};
use plimsoll_protocol::api::{EventInfo, Role};
use serde::Deserialize;

use super::access::{Reader, need};
use crate::app::{App, stopped};
use crate::auth::Caller;
use crate::http::problem::{Answer, Failure};
use crate::store::AuditRecord;

/// Events of one answer, unless the caller says fewer.
const DEFAULT_LIMIT: usize = 100;
/// Most events of one answer: 1,000 of ~500 bytes are half a megabyte.
const MAX_LIMIT: usize = 1000;
/// Least time between two messages of a stream: more is not seen by people, and a burst of reports becomes one.
const BREATH: Duration = Duration::from_millis(250);

/// Query of `GET /events`.
#[derive(Deserialize)]
pub struct Page {
    /// Only events with a larger id.
    after: Option<u64>,
    /// Only events with a smaller id: the next page of older ones.
    before: Option<u64>,
    /// How many.
    limit: Option<usize>,
}

/// `GET /events`, newest first.
pub async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    page: Result<Query<Page>, axum::extract::rejection::QueryRejection>,
) -> Answer<axum::Json<Vec<EventInfo>>> {
    need(&caller, Role::Viewer)?;
    let Query(page) = page.map_err(|e| Failure::bad("bad-query", e.body_text()))?;
    let limit = page.limit.unwrap_or(DEFAULT_LIMIT).min(MAX_LIMIT);
    let mut events = app.store.events(page.before, limit).await?;
    events.retain(|e| page.after.is_none_or(|after| e.id > after));
    Ok(axum::Json(events))
}

/// `GET /events/stream`: server-sent events. `event` carries one event as JSON, oldest first from now on; `change`
/// says that something else changed (a device, a rollout) and that it is worth asking again.
pub async fn stream(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Answer<Sse<impl Stream<Item = Result<Event, Infallible>>>> {
    need(&caller, Role::Viewer)?;
    live(app).await
}

/// `GET /events/stream` of the page: the same for everybody who may read it.
pub async fn page_stream(
    State(app): State<Arc<App>>,
    _: Reader,
) -> Answer<Sse<impl Stream<Item = Result<Event, Infallible>>>> {
    live(app).await
}

async fn live(app: Arc<App>) -> Answer<Sse<impl Stream<Item = Result<Event, Infallible>>>> {
    let last = app.store.events(None, 1).await?.first().map_or(0, |e| e.id);
    let changes = app.changes.subscribe();
    let batches = stream::unfold((app, changes, last), |(app, mut changes, last)| async move {
        let mut stopping = app.stopping.subscribe();
        tokio::select! {
            changed = changes.changed() => changed.ok()?,
            () = stopped(&mut stopping) => return None,
        }
        tokio::time::sleep(BREATH).await;
        let serial = *changes.borrow_and_update();
        let mut new = app.store.events(None, MAX_LIMIT).await.unwrap_or_default();
        new.retain(|e| e.id > last);
        let last = new.first().map_or(last, |e| e.id);
        let mut messages: Vec<Event> = new.iter().rev().filter_map(message).collect();
        messages.push(Event::default().event("change").data(serial.to_string()));
        Some((stream::iter(messages.into_iter().map(Ok)), (app, changes, last)))
    });
    Ok(Sse::new(batches.flatten()).keep_alive(KeepAlive::default()))
}

fn message(event: &EventInfo) -> Option<Event> {
    Event::default().event("event").id(event.id.to_string()).json_data(event).ok()
}

/// `GET /audit` (admin), oldest first.
pub async fn audit(State(app): State<Arc<App>>, caller: Caller) -> Answer<axum::Json<Vec<AuditRecord>>> {
    need(&caller, Role::Admin)?;
    Ok(axum::Json(app.store.audit_log().await?))
}
