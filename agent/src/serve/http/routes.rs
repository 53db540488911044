//! What each path and method means.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use super::{
    Answer, Endpoint, Refusal, busy, document, documents, feedback, hold, infer, metrics, observe, ok,
    refusal_response, refuse, text,
};
use crate::serve::hosted::Hosted;

/// Why no model comes in through the API.
const ONLY_SIGNED: &str = "models come only from signed bundles: publish one and roll it out, or serve a folder with \
                           `plimsoll-agent run --bundle`";
/// Why Triton's shared memory is not there.
const NO_SHARED_MEMORY: &str =
    "shared memory is not offered; send tensors in the request (binary tensors cost one copy)";
/// Why tracing is not there.
const NO_TRACE: &str = "traces are not offered; see GET /v2/models/{model}/stats for counts and times";
/// Why the log cannot be set here.
const NO_LOGGING: &str =
    "the log is not set over the endpoint, which has no authentication; see `log` in the settings";

/// Answers one request, whatever it is.
pub async fn answer(endpoint: &Endpoint, request: Request<Incoming>) -> Response<Full<Bytes>> {
    route(endpoint, request).await.unwrap_or_else(refusal_response)
}

async fn route(endpoint: &Endpoint, request: Request<Incoming>) -> Answer {
    let path = request.uri().path().trim_end_matches('/').to_owned();
    if path == "/metrics" {
        allow(&request, Method::GET)?;
        return Ok(text(metrics::render(endpoint)));
    }
    let Some(path_in_v2) = path.strip_prefix("/v2") else { return unknown_path(&path) };
    let parts: Vec<&str> = path_in_v2.split('/').skip(1).collect();
    let get = || allow(&request, Method::GET);
    match parts.as_slice() {
        [] if path_in_v2.is_empty() => get().map(|()| ok(&documents::server(endpoint))),
        ["health", "live"] => get().map(|()| ok(&json!({ "live": true }))),
        ["health", "ready"] => {
            get()?;
            let ready = endpoint.registry().all_active().next().is_some();
            let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            Ok(document(status, &json!({ "ready": ready })))
        }
        ["hold"] => {
            if request.method() != Method::DELETE {
                allow(&request, Method::POST)?;
            }
            hold::hold(endpoint, request).await
        }
        ["repository", "index"] => allow(&request, Method::POST).map(|()| ok(&documents::index(endpoint))),
        ["repository", "models", _, "load" | "unload"] => refuse(StatusCode::FORBIDDEN, ONLY_SIGNED),
        ["systemsharedmemory" | "cudasharedmemory", ..] => refuse(StatusCode::FORBIDDEN, NO_SHARED_MEMORY),
        ["trace", "setting"] | ["models", _, "trace", "setting"] => refuse(StatusCode::FORBIDDEN, NO_TRACE),
        ["logging"] => refuse(StatusCode::FORBIDDEN, NO_LOGGING),
        ["models", "stats"] => get().map(|()| ok(&documents::all_statistics(endpoint))),
        ["models", model, rest @ ..] => {
            let (version, action) = match rest {
                ["versions", version, action @ ..] => (Some(*version), action),
                action => (None, action),
            };
            let describe = |document: fn(&Endpoint, &Hosted) -> Value| {
                get()?;
                find(endpoint, model, version).map(|hosted| ok(&document(endpoint, &hosted)))
            };
            match action {
                [] => describe(documents::metadata),
                ["ready"] => describe(documents::ready),
                ["config"] => describe(documents::config),
                ["stats"] if version.is_some() => describe(documents::version_statistics),
                ["stats"] => describe(documents::statistics),
                ["infer"] => {
                    allow(&request, Method::POST)?;
                    let hosted = find(endpoint, model, version)?;
                    infer::infer(endpoint, &hosted, request).await
                }
                ["observe"] => {
                    allow(&request, Method::POST)?;
                    let hosted = find(endpoint, model, version)?;
                    observe::observe(endpoint, &hosted, request).await
                }
                ["feedback"] => {
                    allow(&request, Method::POST)?;
                    feedback::feedback(endpoint, model, version, request).await
                }
                _ => unknown_path(&path),
            }
        }
        _ => unknown_path(&path),
    }
}

fn unknown_path<T>(path: &str) -> Result<T, Refusal> {
    let path: String = path.chars().take(120).collect();
    refuse(
        StatusCode::NOT_FOUND,
        format!(
            "{path:?} is not a path of the Open Inference Protocol; see GET /v2 and POST /v2/models/{{model}}/infer"
        ),
    )
}

/// GET includes HEAD, whose answer has no body.
fn allow(request: &Request<Incoming>, method: Method) -> Result<(), Refusal> {
    if request.method() == method || (method == Method::GET && request.method() == Method::HEAD) {
        return Ok(());
    }
    let allowed = if method == Method::GET { "GET, HEAD" } else { method.as_str() };
    let header = HeaderValue::from_str(allowed).ok().map(|value| (ALLOW, value));
    let why = format!("{} is not possible here; use {method}", request.method());
    Err(Refusal { status: StatusCode::METHOD_NOT_ALLOWED, why, header })
}

/// The bundle that a path names: the one that answers for the model, or the one of a version.
fn find(endpoint: &Endpoint, model: &str, version: Option<&str>) -> Result<Arc<Hosted>, Refusal> {
    let registry = endpoint.registry();
    let Some(hosted) = registry.active(model) else {
        if registry.is_coming(model) {
            return Err(busy("the model is being loaded; try again".into()));
        }
        let served: Vec<String> = registry.all_active().map(|h| h.manifest().model.to_string()).collect();
        let model: String = model.chars().take(80).collect();
        return refuse(
            StatusCode::NOT_FOUND,
            format!("model {model:?} is not served here; served are {served:?}"),
        );
    };
    let Some(version) = version else { return Ok(hosted) };
    registry.of_version(&hosted.manifest().model, version).map_or_else(
        || {
            let version: String = version.chars().take(80).collect();
            let serves = registry.versions(&hosted.manifest().model).collect::<Vec<_>>().join(", ");
            let why = format!("model {model:?} is served in version {serves}, not {version:?}");
            refuse(StatusCode::NOT_FOUND, why)
        },
        Ok,
    )
}
