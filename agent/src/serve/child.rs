//! The child's control loop: orders in, answers out. Loads run on threads of their own, so that a slow one delays
//! neither inference nor the next order.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use plimsoll_protocol::{Digest, ModelName, UnixMillis};
use plimsoll_runtime::memory;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::bridge::{self, Bridge};
use super::control::{Answer, Order, cut_reason};
use super::hosted::{Hang, Hosted, OnFault, on_own_thread};
use super::http::{self, Bounds, Endpoint, HoldAsked, Holds};
use super::listen::{Listener, SocketAt};
use super::shadow::Shadow;

/// Niceness of a thread that loads a model: inference of the models that serve goes first (tensorflow/serving#1866:
/// loading B lifted A's 99th percentile from 20 to 100 ms).
const LOAD_NICE: i32 = 10;
/// Bodies before [`Order::Configure`] said how large they may be; nothing listens until then.
const NO_BODY: u64 = 0;
/// Applications that ask to hold updates at once; there is one on most devices. One more is answered 503.
const HOLDS: usize = 8;

/// What came in on the control channel.
#[derive(Debug)]
pub enum Said {
    /// An order.
    Order(Order),
    /// A line that is none, and why.
    Garbage(String),
}

struct Child {
    endpoint: Arc<Endpoint>,
    answers: mpsc::Sender<Answer>,
    listening: Option<Listening>,
    /// Loads under way, and whether one is still wanted when it ends.
    loading: BTreeMap<(ModelName, Digest), bool>,
    /// Finished loads come back here.
    loads: mpsc::Sender<Load>,
    nonce: u32,
    /// Where the endpoint asks for holds.
    holds: Holds,
    /// Holds that wait for the driver's answer, by number.
    asked: BTreeMap<u64, oneshot::Sender<Result<String, String>>>,
    /// Number of the next hold.
    next_hold: u64,
}

struct Listening {
    stop: watch::Sender<bool>,
    /// One for each listener.
    accept: Vec<JoinHandle<()>>,
}

/// Where requests come from.
struct At {
    listen: SocketAddr,
    socket: Option<SocketAt>,
    bridge: Option<Box<Bridge>>,
}

/// A load that has ended.
struct Load {
    model: ModelName,
    digest: Digest,
    started: Instant,
    result: Result<Hosted, String>,
}

/// Serves until the orders end or one says to drain. `nonce` is random for each life of the process.
pub async fn run(mut orders: mpsc::Receiver<Said>, answers: mpsc::Sender<Answer>, nonce: u32) {
    let (loads, mut loaded) = mpsc::channel(1);
    let endpoint = Arc::new(Endpoint::new(String::new(), Bounds::of_body(NO_BODY), nonce));
    let (holds, mut held) = mpsc::channel(HOLDS);
    let mut child = Child {
        endpoint,
        answers,
        listening: None,
        loading: BTreeMap::new(),
        loads,
        nonce,
        holds,
        asked: BTreeMap::new(),
        next_hold: 0,
    };
    loop {
        tokio::select! {
            said = orders.recv() => match said {
                None | Some(Said::Order(Order::Drain)) => break,
                Some(Said::Order(order)) => child.obey(order).await,
                Some(Said::Garbage(why)) => child.fault(None, None, format!("an order was not understood: {why}")).await,
            },
            Some(load) = loaded.recv() => child.finish_load(load).await,
            Some(asked) = held.recv() => child.ask_hold(asked).await,
        }
    }
    if let Some(listening) = child.listening.take() {
        listening.stop.send_replace(true);
        for accept in listening.accept {
            let _ = accept.await; // all stop at once, and end within their own limit
        }
    }
    child.say(Answer::Drained).await;
}

impl Child {
    async fn obey(&mut self, order: Order) {
        match order {
            Order::Configure { listen, socket, bridge, max_body, agent_version } => {
                let at = At { listen, socket, bridge };
                self.configure(at, Bounds::of_body(max_body), agent_version).await;
            }
            Order::Expect { models } => self.endpoint.registry().expect(models),
            Order::Load { model, version, digest, dir, next_window } => {
                tracing::info!(%model, %version, digest = %digest.short(), "loading");
                self.load(model, digest, dir, next_window).await;
            }
            Order::Serve { model, digest, now_ms } => {
                let serves = self.endpoint.registry().serve(&model, digest, now_ms);
                if serves {
                    tracing::info!(%model, digest = %digest.short(), "serving");
                    self.say(Answer::Serving { model, digest }).await;
                } else {
                    let why = format!(
                        "model {model} cannot be served from bundle {}: it is not loaded",
                        digest.short()
                    );
                    self.fault(Some(model), Some(digest), why).await;
                }
            }
            Order::Shadow { model, digest, with, sample_percent, seed } => {
                if let Err(reason) = self.shadow(&model, digest, with, sample_percent, seed) {
                    let reason = cut_reason(reason);
                    self.say(Answer::ShadowRefused { model, digest, reason }).await;
                }
            }
            Order::EndShadow { model, .. } => {
                self.endpoint.registry().set_shadow(&model, None);
            }
            Order::Unload { model, digest, now_ms } => self.unload(model, digest, now_ms).await,
            Order::CloseWindows { now_ms } => {
                let reports = self.endpoint.registry().close_windows(now_ms);
                for report in reports {
                    self.say(Answer::Window(Box::new(report))).await;
                }
                self.say(Answer::WindowsClosed { now_ms }).await;
            }
            Order::Stats => {
                // Looked at here and not by a timer of its own: a device that has nothing to do sleeps.
                let hangs = self.endpoint.registry().hangs(Instant::now());
                if let Some(hang) = hangs {
                    return self.say(answer_of(hang)).await;
                }
                self.tell_shadows().await;
                let models = self.endpoint.registry().health();
                self.say(Answer::Stats { models, rss_bytes: memory::rss_bytes() }).await;
            }
            Order::HoldAnswered { id, done, text } => {
                if let Some(reply) = self.asked.remove(&id) {
                    let _ = reply.send(if done { Ok(text) } else { Err(text) }); // the caller may have left
                }
            }
            Order::Drain => {} // ends the loop before it gets here
        }
    }

    async fn ask_hold(&mut self, HoldAsked { for_s, reply }: HoldAsked) {
        self.asked.retain(|_, waiting| !waiting.is_closed());
        let id = self.next_hold;
        self.next_hold += 1;
        self.asked.insert(id, reply);
        self.say(Answer::HoldAsked { id, for_s }).await;
    }

    async fn configure(&mut self, At { listen, socket, bridge }: At, bounds: Bounds, agent_version: String) {
        if self.listening.is_some() {
            return self
                .fault(None, None, "the inference endpoint is open already; it is configured once".into())
                .await;
        }
        let opened = match Listener::tcp(listen).await {
            Ok((tcp, addr)) => socket.map(|at| Listener::unix(&at)).transpose().map(|unix| (tcp, unix, addr)),
            Err(reason) => Err(reason),
        };
        let (tcp, unix, addr) = match opened {
            Ok(opened) => opened,
            Err(reason) => {
                return self.say(Answer::ListenFailed { addr: listen, reason: cut_reason(reason) }).await;
            }
        };
        let endpoint = Endpoint::new(agent_version, bounds, self.nonce).with_holds(self.holds.clone());
        self.endpoint = Arc::new(endpoint);
        let (stop, stopped) = watch::channel(false);
        if let Some(bridge) = bridge {
            tokio::spawn(bridge::run(*bridge, self.endpoint.clone(), stopped.clone()));
        }
        let accept = |listener| tokio::spawn(http::accept(listener, self.endpoint.clone(), stopped.clone()));
        self.listening =
            Some(Listening { stop, accept: std::iter::once(tcp).chain(unix).map(accept).collect() });
        self.say(Answer::Listening { addr }).await;
    }

    async fn load(&mut self, model: ModelName, digest: Digest, dir: PathBuf, next_window: u64) {
        if self.listening.is_none() {
            let reason = "the inference endpoint is not configured yet".to_owned();
            return self.say(Answer::LoadFailed { model, digest, reason }).await;
        }
        if self.endpoint.registry().has(&model, digest) {
            return self
                .say(Answer::Loaded { model, digest, rss_bytes: memory::rss_bytes(), load_ms: 0 })
                .await;
        }
        if self.loading.insert((model.clone(), digest), true).is_some() {
            return; // the load that runs will answer
        }
        let started = Instant::now();
        let on_fault = self.on_fault(&model, digest);
        let expected = model.clone();
        let (done, result) = oneshot::channel();
        let work = move || {
            lower_priority();
            let loaded = Hosted::load(&dir, digest, next_window, on_fault).map_err(|e| e.to_string());
            let loaded = loaded.and_then(|hosted| match &hosted.manifest().model {
                name if *name == expected => Ok(hosted),
                name => Err(format!("the bundle is of model {name}, not {expected}")),
            });
            let _ = done.send(loaded);
        };
        if let Err(error) = on_own_thread("load", work) {
            self.loading.remove(&(model.clone(), digest));
            return self
                .say(Answer::LoadFailed { model, digest, reason: cut_reason(error.to_string()) })
                .await;
        }
        let loads = self.loads.clone();
        tokio::spawn(async move {
            let panicked = |_| Err("the thread that loaded it panicked".into());
            let result = result.await.unwrap_or_else(panicked);
            let _ = loads.send(Load { model, digest, started, result }).await; // gone only when the child drains
        });
    }

    async fn finish_load(&mut self, load: Load) {
        let Load { model, digest, started, result } = load;
        if self.loading.remove(&(model.clone(), digest)) == Some(false) {
            return; // it was taken out before it was in
        }
        let answer = match result {
            Ok(hosted) => {
                self.endpoint.registry().add(hosted);
                let load_ms = started.elapsed().as_millis() as u64;
                Answer::Loaded { model, digest, rss_bytes: memory::rss_bytes(), load_ms }
            }
            Err(reason) => Answer::LoadFailed { model, digest, reason: cut_reason(reason) },
        };
        self.say(answer).await;
    }

    /// A bundle's way to tell that it is broken beyond one request.
    fn on_fault(&self, model: &ModelName, digest: Digest) -> OnFault {
        let (answers, model) = (self.answers.clone(), model.clone());
        Box::new(move |reason: String| {
            let fault = Answer::Fault {
                model: Some(model.clone()),
                digest: Some(digest),
                reason: cut_reason(reason),
            };
            // A driver that does not read loses this line, not its model; the failed request is counted anyway.
            let _ = answers.try_send(fault);
        })
    }

    /// Begins to compare a loaded candidate with what serves its model.
    fn shadow(
        &mut self,
        model: &ModelName,
        digest: Digest,
        with: Digest,
        sample_percent: u32,
        seed: u64,
    ) -> Result<(), String> {
        let mut registry = self.endpoint.registry();
        registry.set_shadow(model, None);
        let candidate = registry.loaded(model, digest);
        let candidate = candidate.ok_or_else(|| format!("the candidate {} is not loaded", digest.short()))?;
        let current = registry.active(model.as_str()).filter(|current| current.digest() == with);
        let current = current.ok_or_else(|| format!("{} does not serve {model}", with.short()))?;
        drop(registry);
        let fault = self.on_fault(model, digest);
        let shadow = Shadow::start(current, &candidate, sample_percent, seed, fault)?;
        tracing::info!(%model, digest = %digest.short(), with = %with.short(), sample_percent, "shadow begins");
        self.endpoint.registry().set_shadow(model, Some(shadow));
        Ok(())
    }

    async fn tell_shadows(&self) {
        let told = |(model, shadow): (&ModelName, &Shadow)| {
            (model.clone(), shadow.candidate(), shadow.stuck(), shadow.totals())
        };
        let shadows: Vec<_> = self.endpoint.registry().shadows().map(told).collect();
        for (model, digest, stuck, totals) in shadows {
            match stuck {
                Some(why) => self.fault(Some(model), Some(digest), why).await,
                None => self.say(Answer::Shadow { model, digest, totals }).await,
            }
        }
    }

    async fn unload(&mut self, model: ModelName, digest: Digest, now: UnixMillis) {
        if let Some(wanted) = self.loading.get_mut(&(model.clone(), digest)) {
            *wanted = false;
        }
        let retired = self.endpoint.registry().remove(&model, digest);
        let answers = self.answers.clone();
        // Beside the loop: its running requests may take as long as their limit.
        tokio::spawn(async move {
            if let Some(retired) = retired {
                match retired.finish(now).await {
                    Ok(reports) => {
                        for report in reports {
                            let _ = answers.send(Answer::Window(Box::new(report))).await;
                        }
                    }
                    Err(hang) => {
                        let _ = answers.send(answer_of(hang)).await;
                        return;
                    }
                }
            }
            let _ = answers.send(Answer::Unloaded { model, digest }).await;
        });
    }

    async fn fault(&self, model: Option<ModelName>, digest: Option<Digest>, reason: String) {
        tracing::warn!(%reason, "fault");
        self.say(Answer::Fault { model, digest, reason: cut_reason(reason) }).await;
    }

    /// Waits while the driver does not read: it asked.
    async fn say(&self, answer: Answer) {
        let _ = self.answers.send(answer).await; // nobody listens only when the driver is gone, which ends the orders
    }
}

fn answer_of(Hang { model, digest, reason }: Hang) -> Answer {
    Answer::Hangs { model, digest, reason: cut_reason(reason) }
}

/// Lets this thread run after the others. Best effort: without it loading is merely less polite.
fn lower_priority() {
    let _ = rustix::process::setpriority_process(None, LOAD_NICE);
}
