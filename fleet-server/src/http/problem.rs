//! Errors of the HTTP listeners: `application/problem+json` that says what was tried on which object.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use plimsoll_protocol::api::Problem;

use crate::blobs::BlobError;
use crate::store::StoreError;

/// A refused or failed request.
#[derive(Debug)]
pub struct Failure {
    status: StatusCode,
    kind: &'static str,
    detail: String,
}

/// What handlers answer.
pub type Answer<T> = Result<T, Failure>;

impl Failure {
    /// Of any status.
    pub fn new(status: StatusCode, kind: &'static str, detail: impl Into<String>) -> Self {
        Self { status, kind, detail: detail.into() }
    }
    /// The request itself is wrong.
    pub fn bad(kind: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, kind, detail)
    }
    /// No such object.
    pub fn not_found(what: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", what)
    }
    /// It contradicts what is there.
    pub fn conflict(kind: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, kind, detail)
    }
    /// The caller may not.
    pub fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", detail)
    }
    /// The server's own fault. Logged here, once; the caller learns what failed but not the insides.
    pub fn internal(error: &dyn std::error::Error) -> Self {
        let causes = std::iter::successors(error.source(), |e| e.source());
        let why: Vec<String> = causes.map(|e| format!(": {e}")).collect();
        tracing::error!(error = %error, cause = %why.concat(), "request failed");
        let detail = format!("{error}; the server's log says why");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let problem =
            Problem { kind: self.kind.to_owned(), status: self.status.as_u16(), detail: self.detail };
        let mut response = (self.status, axum::Json(problem)).into_response();
        let json = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::JoinToken { .. } => Self::forbidden(error.to_string()),
            StoreError::DeviceRevoked(_) => Self::forbidden(error.to_string()),
            StoreError::DeviceTaken(_) => Self::conflict("device-taken", error.to_string()),
            StoreError::Conflict(_) => Self::conflict("conflict", error.to_string()),
            StoreError::NotFound(_) => Self::not_found(error.to_string()),
            StoreError::Stopped => Self::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", error.to_string()),
            StoreError::Storage { .. } | StoreError::Corrupt(_) => Self::internal(&error),
        }
    }
}

impl From<BlobError> for Failure {
    fn from(error: BlobError) -> Self {
        match &error {
            BlobError::Mismatch { .. } => Self::bad("wrong-digest", error.to_string()),
            BlobError::Interrupted { .. } => Self::bad("interrupted", error.to_string()),
            BlobError::TooBig { .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too-big", error.to_string())
            }
            BlobError::DiskFull(_) => {
                Self::new(StatusCode::INSUFFICIENT_STORAGE, "disk-full", error.to_string())
            }
            BlobError::Io { .. } => Self::internal(&error),
        }
    }
}

/// Answer to a path that does not exist.
pub async fn no_such_path(uri: axum::http::Uri) -> Failure {
    Failure::not_found(format!("there is nothing at {}", uri.path()))
}

/// Answer to a path that exists with another method.
pub async fn no_such_method(method: axum::http::Method, uri: axum::http::Uri) -> Failure {
    let detail = format!("{} cannot be called with {method}", uri.path());
    Failure::new(StatusCode::METHOD_NOT_ALLOWED, "method", detail)
}
