//! `POST /v2/hold` and `DELETE /v2/hold`: the application says "not now", and that it is over.
//!
//! For an application of another user, who cannot open the agent's control socket. The driver decides, by the setting
//! that bounds the command of the same name; this process only carries the question and the answer.

use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};

use super::{Answer, Endpoint, body, ok, refuse};

/// The driver answers between two events, in milliseconds; a caller who waits longer should hear that something hangs.
const PATIENCE: Duration = Duration::from_secs(10);

/// A question for the driver.
#[derive(Debug)]
pub struct HoldAsked {
    /// Seconds; 0 ends a hold.
    pub for_s: u32,
    /// Whether it was done, in words.
    pub reply: oneshot::Sender<Result<String, String>>,
}

/// Where such questions go.
pub type Holds = mpsc::Sender<HoldAsked>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    for_s: u32,
}

/// Asks the driver.
pub async fn hold(endpoint: &Endpoint, request: Request<Incoming>) -> Answer {
    let for_s = if request.method() == Method::DELETE {
        0
    } else {
        let body = body::read(endpoint, request).await?;
        match serde_json::from_slice::<Wanted>(&body.bytes) {
            Ok(wanted) => wanted.for_s,
            Err(error) => {
                let why = format!(
                    "{error}; {{\"for_s\": 600}} is expected, seconds for which no update takes over"
                );
                return refuse(StatusCode::BAD_REQUEST, why);
            }
        }
    };
    let Some(driver) = &endpoint.holds else {
        let why = "there is no agent here that updates anything: bundles are served from folders";
        return refuse(StatusCode::NOT_IMPLEMENTED, why);
    };
    let (reply, answer) = oneshot::channel();
    if driver.try_send(HoldAsked { for_s, reply }).is_err() {
        return Err(super::busy("too many callers ask to hold updates; try again".into()));
    }
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(Ok(Ok(text))) => Ok(ok(&json!({ "for_s": for_s, "text": text }))),
        Ok(Ok(Err(why))) => refuse(StatusCode::FORBIDDEN, why),
        _ => refuse(StatusCode::GATEWAY_TIMEOUT, "the agent did not answer; nothing is held"),
    }
}
