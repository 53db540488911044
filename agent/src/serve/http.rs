//! The inference endpoint: Open Inference Protocol v2 over HTTP/1.1 on loopback.
//!
//! A handler finds the model, reads the body within its limit, parses, asks, encodes. Whatever is refused is a status
//! and `{"error": "…"}` that names the tensor and the problem.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::hosted::{Hosted, InferError, lock};
use super::oip::{self, BINARY_HEADER, Prediction};
use super::registry::Registry;

/// Connections at once: the callers are programs on this device, a few each; an idle connection costs 10 to 20 KiB.
/// One more waits in the kernel's queue.
const MAX_CONNECTIONS: usize = 64;
/// A caller that sends no complete request head, or no complete body, for so long is gone: loopback delivers the
/// largest body in well under a second.
const SLOW_CALLER: Duration = Duration::from_secs(30);
/// Requests that run when the endpoint closes get so long: the default time limit of a model is 5 s.
pub const DRAIN: Duration = Duration::from_secs(8);
/// Seconds after which a caller that met a full queue should try again: the unit of the header, and many inferences.
const RETRY_SECONDS: u32 = 1;

/// What the handlers share.
pub struct Endpoint {
    registry: Mutex<Registry>,
    agent_version: String,
    max_body: usize,
    /// Random for each life of the process, so that prediction ids do not repeat.
    nonce: u32,
    predictions: AtomicU64,
}

/// A refusal: what is answered instead.
struct Refusal {
    status: StatusCode,
    why: String,
    header: Option<(hyper::header::HeaderName, HeaderValue)>,
}

type Answer = Result<Response<Full<Bytes>>, Refusal>;

fn refuse<T>(status: StatusCode, why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { status, why: why.into(), header: None })
}

impl Endpoint {
    /// Serves nothing yet.
    pub fn new(agent_version: String, max_body: u64, nonce: u32) -> Self {
        let max_body = usize::try_from(max_body).unwrap_or(usize::MAX);
        Self { registry: Mutex::default(), agent_version, max_body, nonce, predictions: AtomicU64::new(0) }
    }

    /// The bundles. Held for map look-ups only, never over an await.
    pub fn registry(&self) -> std::sync::MutexGuard<'_, Registry> {
        lock(&self.registry)
    }

    /// `<first 12 digits of the bundle's digest>-<life of the process>-<counter>`.
    fn prediction_id(&self, hosted: &Hosted) -> String {
        let count = self.predictions.fetch_add(1, Ordering::Relaxed);
        format!("{}-{:08x}-{count:x}", hosted.digest().short(), self.nonce)
    }
}

/// Accepts until told to stop, then lets running requests finish, at most for [`DRAIN`].
pub async fn accept(listener: TcpListener, endpoint: Arc<Endpoint>, mut stop: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = told_to_stop(&mut stop) => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, endpoint.clone(), stop.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection to the inference endpoint was not accepted");
                    // Out of file descriptors: accepting again at once would spin.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN, all).await.is_err() {
        tracing::warn!(
            seconds = DRAIN.as_secs(),
            "inference requests were still running when the endpoint closed"
        );
    }
}

/// Also when whoever could tell is gone.
async fn told_to_stop(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn connection(stream: TcpStream, endpoint: Arc<Endpoint>, mut stop: watch::Receiver<bool>) {
    let _ = stream.set_nodelay(true); // a slower answer otherwise, nothing worse
    let service = service_fn(move |request| {
        let endpoint = endpoint.clone();
        async move { Ok::<_, Infallible>(answer(&endpoint, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(SLOW_CALLER)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    // An error here is the caller's broken connection; nobody is left to tell.
    tokio::select! {
        _ = connection.as_mut() => {}
        () = told_to_stop(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

async fn answer(endpoint: &Endpoint, request: Request<Incoming>) -> Response<Full<Bytes>> {
    route(endpoint, request).await.unwrap_or_else(|refusal| {
        let mut response = body(refusal.status, &json!({ "error": refusal.why }));
        if let Some((name, value)) = refusal.header {
            response.headers_mut().insert(name, value);
        }
        response
    })
}

async fn route(endpoint: &Endpoint, request: Request<Incoming>) -> Answer {
    let path = request.uri().path().trim_end_matches('/').to_owned();
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    let get = |request: &Request<Incoming>| allow(request, Method::GET);
    match parts.as_slice() {
        ["v2"] => get(&request).map(|()| ok(&server(endpoint))),
        ["v2", "health", "live"] => get(&request).map(|()| ok(&json!({ "live": true }))),
        ["v2", "health", "ready"] => {
            get(&request)?;
            let ready = endpoint.registry().all_active().next().is_some();
            let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            Ok(body(status, &json!({ "ready": ready })))
        }
        ["v2", "repository", "index"] => allow(&request, Method::POST).map(|()| ok(&index(endpoint))),
        ["v2", "repository", "models", _, "load" | "unload"] => refuse(
            StatusCode::FORBIDDEN,
            "models come only from signed bundles: publish one and roll it out, or serve a folder with `plimsoll-agent run --bundle`",
        ),
        ["v2", "models", model, rest @ ..] => {
            let (version, action) = match rest {
                ["versions", version, action @ ..] => (Some(*version), action),
                action => (None, action),
            };
            match action {
                [] => get(&request).and_then(|()| find(endpoint, model, version)).map(|h| ok(&metadata(&h))),
                ["ready"] => {
                    get(&request)?;
                    let hosted = find(endpoint, model, version)?;
                    Ok(ok(&json!({ "name": hosted.manifest().model, "ready": true })))
                }
                ["infer"] => {
                    allow(&request, Method::POST)?;
                    let hosted = find(endpoint, model, version)?;
                    infer(endpoint, &hosted, request).await
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

fn allow(request: &Request<Incoming>, method: Method) -> Result<(), Refusal> {
    if request.method() == method {
        return Ok(());
    }
    let header = HeaderValue::from_str(method.as_str()).ok().map(|value| (ALLOW, value));
    let why = format!("{} is not possible here; use {method}", request.method());
    Err(Refusal { status: StatusCode::METHOD_NOT_ALLOWED, why, header })
}

fn find(endpoint: &Endpoint, model: &str, version: Option<&str>) -> Result<Arc<Hosted>, Refusal> {
    let registry = endpoint.registry();
    let Some(hosted) = registry.active(model) else {
        let served: Vec<String> = registry.all_active().map(|h| h.manifest().model.to_string()).collect();
        let model: String = model.chars().take(80).collect();
        return refuse(
            StatusCode::NOT_FOUND,
            format!("model {model:?} is not served here; served are {served:?}"),
        );
    };
    let serves = hosted.manifest().version.to_string();
    match version {
        Some(version) if version != serves => {
            let version: String = version.chars().take(80).collect();
            let why = format!("model {model:?} is served in version {serves}, not {version:?}");
            refuse(StatusCode::NOT_FOUND, why)
        }
        _ => Ok(hosted),
    }
}

async fn infer(endpoint: &Endpoint, hosted: &Arc<Hosted>, request: Request<Incoming>) -> Answer {
    let json_len = match request.headers().get(BINARY_HEADER) {
        None => None,
        Some(value) => {
            let length = value.to_str().ok().and_then(|v| v.trim().parse::<usize>().ok());
            let Some(length) = length else {
                hosted.refused();
                return refuse(
                    StatusCode::BAD_REQUEST,
                    "header Inference-Header-Content-Length is not a number",
                );
            };
            Some(length)
        }
    };
    let bytes = read_body(request, endpoint.max_body).await.inspect_err(|_| hosted.refused())?;
    let manifest = hosted.manifest();
    let parsed = match json_len {
        Some(0) => oip::parse_raw(&bytes, manifest),
        json_len => oip::parse(&bytes, json_len, manifest),
    };
    drop(bytes); // the tensors are copies
    let ask = match parsed {
        Ok(ask) => ask,
        Err(why) => {
            hosted.refused();
            return refuse(StatusCode::BAD_REQUEST, why.to_string());
        }
    };
    let outputs = hosted.infer(ask.inputs).await?;
    let version = manifest.version.to_string();
    let prediction_id = endpoint.prediction_id(hosted);
    let pick = |(at, binary): &(usize, bool)| Some((manifest.outputs.get(*at)?, outputs.get(*at)?, *binary));
    let prediction = Prediction {
        model: manifest.model.as_str(),
        version: &version,
        id: ask.id.as_deref(),
        prediction_id: &prediction_id,
        outputs: ask.outputs.iter().filter_map(pick).collect(),
    };
    let (bytes, json_len) = oip::encode(&prediction).or_else(|e| {
        refuse(StatusCode::INTERNAL_SERVER_ERROR, format!("the answer could not be written: {e}"))
    })?;
    let mut response = Response::new(Full::new(Bytes::from(bytes)));
    let kind = if json_len.is_some() { "application/octet-stream" } else { "application/json" };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    if let Some(length) = json_len {
        response.headers_mut().insert(BINARY_HEADER, HeaderValue::from(length));
    }
    Ok(response)
}

impl From<InferError> for Refusal {
    fn from(error: InferError) -> Self {
        let status = match &error {
            InferError::Input(_) => StatusCode::BAD_REQUEST,
            InferError::Busy(_) => StatusCode::SERVICE_UNAVAILABLE,
            InferError::Timeout(_) => StatusCode::GATEWAY_TIMEOUT,
            InferError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let busy = matches!(error, InferError::Busy(_));
        let header = busy.then(|| (RETRY_AFTER, HeaderValue::from(RETRY_SECONDS)));
        Self { status, why: error.to_string(), header }
    }
}

async fn read_body(request: Request<Incoming>, max: usize) -> Result<Bytes, Refusal> {
    let too_large = |what: &str| {
        refuse(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the {what} is larger than {max} bytes, the limit of this endpoint"),
        )
    };
    let length = request.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > max as u64) {
        return too_large("body");
    }
    let encoding = request.headers().get(CONTENT_ENCODING).cloned();
    let body = tokio::time::timeout(SLOW_CALLER, Limited::new(request.into_body(), max).collect()).await;
    let bytes = match body {
        Err(_) => return refuse(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time"),
        Ok(Err(error)) if error.is::<LengthLimitError>() => return too_large("body"),
        Ok(Err(error)) => {
            return refuse(StatusCode::BAD_REQUEST, format!("the body could not be read: {error}"));
        }
        Ok(Ok(body)) => body.to_bytes(),
    };
    match encoding.as_ref().map(HeaderValue::as_bytes) {
        None | Some(b"identity") => Ok(bytes),
        Some(b"gzip") => match inflate(flate2::read::GzDecoder::new(&bytes[..]), max) {
            Ok(Some(bytes)) => Ok(bytes),
            Ok(None) => too_large("unpacked body"),
            Err(error) => refuse(StatusCode::BAD_REQUEST, format!("the body is not valid gzip: {error}")),
        },
        // The name says deflate, the format is zlib (RFC 9110).
        Some(b"deflate") => match inflate(flate2::read::ZlibDecoder::new(&bytes[..]), max) {
            Ok(Some(bytes)) => Ok(bytes),
            Ok(None) => too_large("unpacked body"),
            Err(error) => refuse(StatusCode::BAD_REQUEST, format!("the body is not valid zlib: {error}")),
        },
        Some(_) => {
            refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Content-Encoding may be gzip, deflate or identity")
        }
    }
}

/// All of a packed body, or `None` when it unpacks to more than `max` bytes.
fn inflate(reader: impl std::io::Read, max: usize) -> std::io::Result<Option<Bytes>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    reader.take(max as u64 + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() <= max).then(|| Bytes::from(bytes)))
}

fn server(endpoint: &Endpoint) -> Value {
    json!({
        "name": "plimsoll-agent",
        "version": endpoint.agent_version,
        "extensions": ["binary_tensor_data", "model_repository"],
    })
}

fn index(endpoint: &Endpoint) -> Value {
    let entry = |h: &Arc<Hosted>| json!({ "name": h.manifest().model, "version": h.manifest().version, "state": "READY", "reason": "" });
    Value::Array(endpoint.registry().all_active().map(entry).collect())
}

fn metadata(hosted: &Hosted) -> Value {
    let m = hosted.manifest();
    let inputs: Vec<Value> = m
        .inputs
        .iter()
        .map(|i| json!({ "name": i.name, "datatype": i.datatype, "shape": i.shape }))
        .collect();
    let output = |o: &plimsoll_protocol::bundle::OutputSpec| {
        let mut value = json!({ "name": o.name, "datatype": o.datatype, "shape": o.shape });
        if !o.labels.is_empty() {
            value["properties"] = json!({ "labels": o.labels });
        }
        value
    };
    let outputs: Vec<Value> = m.outputs.iter().map(output).collect();
    json!({
        "name": m.model, "versions": [m.version], "platform": "onnx_onnxv1", "inputs": inputs, "outputs": outputs,
        "properties": { "bundle_digest": hosted.digest(), "max_batch": m.limits.max_batch },
    })
}

fn ok(value: &Value) -> Response<Full<Bytes>> {
    body(StatusCode::OK, value)
}

fn body(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(value.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
