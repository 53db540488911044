//! A child under test, a caller, and a model that answers only when the test lets it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;
use std::time::Duration;

use plimsoll_protocol::bundle::Manifest;
use plimsoll_protocol::{Digest, ModelName};
use plimsoll_runtime::testing::{classifier, classifier_manifest, write_bundle};
use plimsoll_runtime::{
    Description, Engine, ExternalData, Model, Runtime, RuntimeError, Tensor, TractRuntime,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::serve::child::{self, Said};
use crate::serve::control::{Answer, Order};
use crate::serve::hosted::Hosted;
use crate::serve::http::{self, Bounds, Endpoint};
use crate::serve::listen::Listener;

/// Longer than anything here takes on a machine under load; reached only when something hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Body limit of the endpoints under test.
pub const MAX_BODY: u64 = 64 * 1024;

pub fn meter() -> ModelName {
    ModelName::new("meter").unwrap()
}

/// A bundle of the classifier with four inputs and three classes.
pub fn bundle(gain: f32) -> (TempDir, Manifest, Digest) {
    bundle_with(gain, classifier_manifest(4, 3))
}

pub fn bundle_with(gain: f32, manifest: Manifest) -> (TempDir, Manifest, Digest) {
    let dir = tempfile::tempdir().unwrap();
    let (manifest, digest) = write_bundle(dir.path(), &classifier(4, 3, gain), manifest);
    (dir, manifest, digest)
}

/// A child and both ends of its control channel.
pub struct Child {
    pub orders: mpsc::Sender<Said>,
    pub answers: mpsc::Receiver<Answer>,
    pub task: JoinHandle<()>,
}

impl Child {
    pub fn start() -> Self {
        let (orders, inbox) = mpsc::channel(16);
        let (outbox, answers) = mpsc::channel(64);
        let task = tokio::spawn(child::run(inbox, outbox, 7));
        Self { orders, answers, task }
    }

    /// A child that listens.
    pub async fn listening() -> (Self, SocketAddr) {
        let mut child = Self::start();
        let listen = "127.0.0.1:0".parse().unwrap();
        child
            .order(Order::Configure {
                listen,
                socket: None,
                bridge: None,
                max_body: MAX_BODY,
                agent_version: "0.1.0".into(),
            })
            .await;
        match child.answer().await {
            Answer::Listening { addr } => {
                child.order(Order::Expect { models: vec![] }).await;
                (child, addr)
            }
            other => panic!("{other:?}"),
        }
    }

    pub async fn order(&self, order: Order) {
        self.orders.send(Said::Order(order)).await.unwrap();
    }

    pub async fn answer(&mut self) -> Answer {
        tokio::time::timeout(PATIENCE, self.answers.recv())
            .await
            .expect("an answer in time")
            .expect("a child")
    }

    pub fn load_order(dir: &Path, digest: Digest) -> Order {
        let version = "1.0.0".parse().unwrap();
        Order::Load { model: meter(), version, digest, dir: PathBuf::from(dir), next_window: 5 }
    }

    pub async fn load(&mut self, dir: &Path, digest: Digest) {
        self.order(Self::load_order(dir, digest)).await;
        let answer = self.answer().await;
        assert!(matches!(answer, Answer::Loaded { digest: d, .. } if d == digest), "{answer:?}");
    }

    pub async fn serve(&mut self, digest: Digest, now_ms: i64) {
        self.order(Order::Serve { model: meter(), digest, now_ms }).await;
        assert_eq!(self.answer().await, Answer::Serving { model: meter(), digest });
    }
}

/// What a caller gets.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
    pub fn header(&self, name: &str) -> Option<String> {
        let line = self.head.lines().find(|l| l.to_ascii_lowercase().starts_with(&format!("{name}:")))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    }
}

pub async fn get(addr: SocketAddr, path: &str) -> Reply {
    send(addr, "GET", path, &[], b"").await
}

pub async fn post(addr: SocketAddr, path: &str, body: &Value) -> Reply {
    send(addr, "POST", path, &[], body.to_string().as_bytes()).await
}

/// One request on a connection of its own, written by hand: what a strict client library would not let through is
/// what these tests are about.
pub async fn send(
    addr: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Reply {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let framed =
        |name: &str| ["content-length", "transfer-encoding"].iter().any(|f| f.eq_ignore_ascii_case(name));
    if !headers.iter().any(|(name, _)| framed(name)) {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    let talk = async {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        // A refusal may come before the body is read.
        let _ = stream.write_all(body).await;
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes).await;
        bytes
    };
    let bytes = tokio::time::timeout(PATIENCE, talk).await.expect("a reply in time");
    let split = bytes.windows(4).position(|w| w == b"\r\n\r\n").expect("a reply has a head");
    let head = String::from_utf8(bytes[..split].to_vec()).unwrap();
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
    Reply { status, head, body: bytes[split + 4..].to_vec() }
}

/// How a gated run goes on.
#[derive(Debug, PartialEq)]
pub enum Run {
    Answer,
    Panic,
}

/// An engine that runs the real model only when the test allows one more run.
struct Gated {
    inner: Box<dyn Engine>,
    allowed: Mutex<Receiver<Run>>,
    started: Sender<ThreadId>,
}

struct GatedRuntime(Mutex<Option<(Receiver<Run>, Sender<ThreadId>)>>);

/// Lets runs of a gated model through, and hears when one has started.
pub struct Gate {
    pub allow: Sender<Run>,
    /// And on which thread.
    pub started: Arc<Mutex<Receiver<ThreadId>>>,
}

impl Gate {
    /// Waits until a run has started.
    pub async fn wait_started(&self) -> ThreadId {
        let started = self.started.clone();
        let wait = move || started.lock().unwrap().recv_timeout(PATIENCE).expect("a run starts");
        tokio::task::spawn_blocking(wait).await.unwrap()
    }
}

impl Runtime for GatedRuntime {
    fn name(&self) -> &'static str {
        "gated"
    }
    fn open(&self, path: &Path, external: &ExternalData) -> Result<Box<dyn Engine>, RuntimeError> {
        let inner = TractRuntime.open(path, external)?;
        let (allowed, started) = self.0.lock().unwrap().take().unwrap();
        Ok(Box::new(Gated { inner, allowed: Mutex::new(allowed), started }))
    }
}

impl Engine for Gated {
    fn description(&self) -> &Description {
        self.inner.description()
    }
    fn run(&self, inputs: Vec<Tensor>) -> Result<Vec<Tensor>, RuntimeError> {
        let _ = self.started.send(std::thread::current().id());
        // The test dropped its end: run freely. The lock is let go before a panic that the test asks for.
        let allowed = self.allowed.lock().unwrap().recv();
        assert_ne!(allowed, Ok(Run::Panic), "as the test wishes");
        self.inner.run(inputs)
    }
}

/// An endpoint that serves one gated model.
pub struct GatedEndpoint {
    pub addr: SocketAddr,
    pub gate: Gate,
    pub endpoint: Arc<Endpoint>,
    /// What the model reported as broken.
    pub faults: Receiver<String>,
    _stop: watch::Sender<bool>,
    _dir: TempDir,
}

/// A gated model, and the folder of its bundle.
pub fn gate_model(change: impl FnOnce(&mut Manifest)) -> (Model, Digest, Gate, TempDir) {
    let mut manifest = classifier_manifest(4, 3);
    change(&mut manifest);
    let (dir, manifest, digest) = bundle_with(1.0, manifest);
    let (allow, allowed) = channel();
    let (started_tx, started) = channel();
    let runtime = GatedRuntime(Mutex::new(Some((allowed, started_tx))));
    let model = Model::load_with(&runtime, dir.path(), &manifest, &manifest.variants[0]).unwrap();
    let gate = Gate { allow, started: Arc::new(Mutex::new(started)) };
    (model, digest, gate, dir)
}

pub async fn gated(change: impl FnOnce(&mut Manifest)) -> GatedEndpoint {
    let (model, digest, gate, dir) = gate_model(change);
    let (fault, faults) = channel();
    let on_fault = Box::new(move |why| fault.send(why).unwrap());
    let hosted = Hosted::start(model, digest, None, None, on_fault).unwrap();
    let endpoint = Arc::new(Endpoint::new("0.1.0".into(), Bounds::of_body(MAX_BODY), 7));
    endpoint.registry().add(hosted);
    assert!(endpoint.registry().serve(&meter(), digest, 0));
    let (listener, addr) = Listener::tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(http::accept(listener, endpoint.clone(), stopped));
    GatedEndpoint { addr, gate, endpoint, faults, _stop: stop, _dir: dir }
}
