//! Extractors whose refusals are problems that name the object.

use std::str::FromStr;

use axum::extract::{FromRequest, Request};
use serde::de::DeserializeOwned;

use super::problem::{Answer, Failure};

/// Largest JSON body but for signed metadata: the largest call is a rollout's spec, a few KiB.
const MAX_JSON: usize = 256 * 1024;

/// A JSON body; `N` is its limit in bytes.
pub struct Json<T, const N: usize = MAX_JSON>(pub T);

impl<S: Send + Sync, T: DeserializeOwned, const N: usize> FromRequest<S> for Json<T, N> {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &S) -> Result<Self, Failure> {
        let path = request.uri().path().to_owned();
        let bytes = axum::body::to_bytes(request.into_body(), N).await.map_err(|e| {
            let detail = format!("the body of {path} was not read: {e}; at most {N} bytes are");
            Failure::new(axum::http::StatusCode::PAYLOAD_TOO_LARGE, "body", detail)
        })?;
        let value = serde_json::from_slice(&bytes).map_err(|e| {
            Failure::bad("malformed-json", format!("the body of {path} is not what it takes: {e}"))
        })?;
        Ok(Self(value))
    }
}

/// Parses an id out of a path; the refusal says what is allowed.
pub fn id<T: FromStr>(text: &str) -> Answer<T>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|e: T::Err| Failure::bad("bad-id", e.to_string()))
}
