//! The inference endpoint: Open Inference Protocol v2 over HTTP/1.1, on loopback and on a Unix socket.
//!
//! Whatever is refused is a status and `{"error": "…"}` that names the object and the problem. Everything that a
//! caller could make grow has a bound: connections, the time of a head and of a body, the bytes of one body, and the
//! bytes of all bodies together. [`routes`] finds what a path means, [`infer`] asks the model, [`feedback`]
//! takes labels, [`observe`] what an
//! engine elsewhere answered, [`hold`] an application's "not now", [`body`] reads and
//! packs, [`documents`] are the answers that describe.

mod body;
mod documents;
mod feedback;
mod hold;
mod infer;
mod metrics;
mod observe;
mod routes;

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use plimsoll_runtime::Tensor;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::hosted::{Hosted, lock};
pub use hold::{HoldAsked, Holds};

use super::listen::Listener;
use super::registry::Registry;

/// Connections at once: the callers are programs on this device, a few each; an idle connection costs 10 to 20 KiB.
/// One more waits in the kernel's queue.
const MAX_CONNECTIONS: usize = 64;
/// A caller that sends no complete request head, or no complete body, for so long is gone: loopback delivers the
/// largest body in well under a second. A connection may idle so long between two requests.
const SLOW_CALLER: Duration = Duration::from_secs(30);
/// Largest bodies that may be in work at once, in units of the largest single one: two callers with the largest body
/// are served side by side with many small ones; 64 connections with 32 MiB each would be 2 GiB.
const BODIES: usize = 3;
/// Bytes that one permit of the budget stands for: a page, so that a budget of 64 GiB still fits a semaphore.
const BODY_UNIT: usize = 4096;
/// Requests that run when the endpoint closes get so long: the default time limit of a model is 5 s.
pub const DRAIN: Duration = Duration::from_secs(8);
/// Seconds after which a caller that met a full queue should try again: the unit of the header, and many inferences.
const RETRY_SECONDS: u32 = 1;

/// What callers may use up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of one body, packed or unpacked.
    pub max_body: usize,
    /// Time for a request's head, and again for its body.
    pub slow_caller: Duration,
    /// Connections at once.
    pub connections: usize,
}

impl Bounds {
    /// The usual ones, with bodies of at most `max_body` bytes.
    pub fn of_body(max_body: u64) -> Self {
        let max_body = usize::try_from(max_body).unwrap_or(usize::MAX);
        Self { max_body, slow_caller: SLOW_CALLER, connections: MAX_CONNECTIONS }
    }
}

/// What the handlers share.
pub struct Endpoint {
    registry: Mutex<Registry>,
    agent_version: String,
    bounds: Bounds,
    connections: Arc<Semaphore>,
    /// Room for bodies, in [`BODY_UNIT`]s.
    bodies: Semaphore,
    /// Random for each life of the process, so that prediction ids do not repeat.
    nonce: u32,
    predictions: AtomicU64,
    /// Where an application's "not now" goes; `None` when nothing is updated here.
    holds: Option<Holds>,
}

/// A refusal: what is answered instead.
struct Refusal {
    status: StatusCode,
    why: String,
    header: Option<(HeaderName, HeaderValue)>,
}

type Answer = Result<Response<Full<Bytes>>, Refusal>;

fn refuse<T>(status: StatusCode, why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { status, why: why.into(), header: None })
}

/// 503, and when to come back.
fn busy(why: String) -> Refusal {
    let header = Some((RETRY_AFTER, HeaderValue::from(RETRY_SECONDS)));
    Refusal { status: StatusCode::SERVICE_UNAVAILABLE, why, header }
}

impl Endpoint {
    /// Serves nothing yet.
    pub fn new(agent_version: String, bounds: Bounds, nonce: u32) -> Self {
        let units = bounds.max_body.div_ceil(BODY_UNIT).saturating_mul(BODIES);
        Self {
            registry: Mutex::default(),
            agent_version,
            bounds,
            connections: Arc::new(Semaphore::new(bounds.connections)),
            bodies: Semaphore::new(units.clamp(1, Semaphore::MAX_PERMITS)),
            nonce,
            predictions: AtomicU64::new(0),
            holds: None,
        }
    }

    /// The same, and an application may ask to hold updates.
    pub fn with_holds(self, holds: Holds) -> Self {
        Self { holds: Some(holds), ..self }
    }

    /// The bundles. Held for map look-ups only, never over an await.
    pub fn registry(&self) -> std::sync::MutexGuard<'_, Registry> {
        lock(&self.registry)
    }

    /// `<first 12 digits of the bundle's digest>-<life of the process>-<counter>`: unique, and it names the bundle
    /// that answered. The answer is remembered under it, for a label that comes later.
    pub fn prediction_id(&self, hosted: &Hosted, outputs: &[Tensor]) -> String {
        let next = || self.predictions.fetch_add(1, Ordering::Relaxed);
        let count = hosted.account().answered(next, outputs);
        format!("{}-{:08x}-{count:x}", hosted.digest().short(), self.nonce)
    }
}

/// Accepts until told to stop, then lets running requests finish, at most for [`DRAIN`]. Several listeners may accept
/// for one endpoint; they share its bound on connections.
pub async fn accept(mut listener: Listener, endpoint: Arc<Endpoint>, mut stop: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            // Room first: a connection beyond the bound stays in the kernel's queue.
            let room = endpoint.connections.clone().acquire_owned().await;
            (listener.accept().await, room)
        };
        tokio::select! {
            () = told_to_stop(&mut stop) => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            (accepted, room) = next => match accepted {
                Ok(stream) => {
                    let connection = stream.serve(endpoint.clone(), stop.clone());
                    connections.spawn(async move {
                        connection.await;
                        drop(room);
                    });
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
pub async fn told_to_stop(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Speaks HTTP on one connection until the caller leaves or the endpoint stops.
pub async fn connection<S>(stream: S, endpoint: Arc<Endpoint>, mut stop: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let slow_caller = endpoint.bounds.slow_caller;
    let service = service_fn(move |request| {
        let endpoint = endpoint.clone();
        async move { Ok::<_, Infallible>(routes::answer(&endpoint, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(slow_caller)
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

fn refusal_response(refusal: Refusal) -> Response<Full<Bytes>> {
    let mut response = document(refusal.status, &json!({ "error": refusal.why }));
    if let Some((name, value)) = refusal.header {
        response.headers_mut().insert(name, value);
    }
    response
}

fn text(page: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(page)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4"));
    response
}

fn ok(value: &Value) -> Response<Full<Bytes>> {
    document(StatusCode::OK, value)
}

fn document(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(value.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
