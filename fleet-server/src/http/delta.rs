//! `GET /deltas/sha256/<old>/<new>`: the way from one file to another, for devices that have the first.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Response, StatusCode, header};

use super::device::{authorise, send};
use super::extract::id;
use super::listener::Peer;
use super::problem::{Answer, Failure};
use crate::app::App;
use crate::delta::{self, Known};
use crate::metrics::one;

/// Seconds after which a device may ask again for a delta that is being built: with the second that a question is kept
/// open, a device that waits ten seconds asks four times.
const RETRY_AFTER_S: u64 = 2;

/// 200 or 206 with the delta as any other blob; 202 while it is built; 404 when there is none. A device fetches the
/// file whole on everything but the first two.
pub(super) async fn delta(
    State(app): State<Arc<App>>,
    Extension(peer): Extension<Peer>,
    Path((old, new)): Path<(String, String)>,
    headers: HeaderMap,
) -> Answer<Response<Body>> {
    authorise(&app, &peer)?;
    let (old, new) = (id(&old)?, id(&new)?);
    let none = |why: &str| Err(Failure::not_found(format!("no delta makes {new} from {old}: {why}")));
    match app.deltas.ask_patiently(old, new).await {
        delta::Answer::Known(Known::Delta { digest, size }) => {
            one(&app.metrics.delta_requests);
            if begins(&headers) {
                let whole = app.blobs.length(&new).await.unwrap_or(0);
                app.metrics.delta_saved_bytes.fetch_add(whole.saturating_sub(size), Relaxed);
            }
            send(&app, digest, &headers).await
        }
        delta::Answer::Known(Known::None(why)) => none(&why),
        delta::Answer::Unknown(why) => none(why),
        delta::Answer::Building => Response::builder()
            .status(StatusCode::ACCEPTED)
            .header(header::RETRY_AFTER, RETRY_AFTER_S)
            .body(Body::empty())
            .map_err(|e| Failure::internal(&e)),
    }
}

/// Whether a request is for a beginning, and so not for the rest of a delta that was counted when it began.
fn begins(headers: &HeaderMap) -> bool {
    let range = headers.get(header::RANGE).and_then(|range| range.to_str().ok());
    range.is_none_or(|range| range.starts_with("bytes=0-"))
}
