//! One bundle in memory: its model, the thread that runs it, and the queue before that thread. What is counted of it is
//! its [`Account`].
//!
//! A model gets one thread, because tract computes on one. Requests wait in a bounded queue; one more is answered
//! `Busy`. What was asked and answered is folded into the measurement window on the same thread, after the answer has
//! left. A model that is known to be quicker than the way to its thread and back runs where it was asked
//! ([`super::pace`]). The thread ends when the last holder of the [`Hosted`] is gone, so a bundle that was replaced
//! finishes what it has and then frees its memory.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use plimsoll_protocol::bundle::{MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest, RuntimeKind, Variant};
use plimsoll_protocol::drift::Quality;
use plimsoll_protocol::wire::v1::DriftReport;
use plimsoll_protocol::{Digest, ModelName, UnixMillis};
use plimsoll_runtime::features::Featurizer;
use plimsoll_runtime::heap;
use plimsoll_runtime::{
    Model, RuntimeError, STACK, Tensor, TensorError, ValueCheck, ValueRefusal, architecture, check_inputs,
    check_outputs, read_sample,
};
use tokio::sync::oneshot;

use super::account::Account;
use super::drift::{self, Drift};
use super::pace::Pace;
use super::runner::{Outcome, Runner};

/// After so many of its limits a run is taken for one that never ends: with the default of 5 s after 20 s. A run that
/// is merely slow (a processor that throttles to a quarter) has ended by then; its thread cannot be stopped otherwise
/// than with the process.
const HANGS_AFTER: u32 = 4;

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum InferError {
    /// The caller's fault; nothing was run.
    #[error(transparent)]
    Input(#[from] TensorError),
    /// The caller's fault by the model's input policy; nothing was run.
    #[error(transparent)]
    Value(#[from] ValueRefusal),
    /// Somebody else runs this model.
    #[error(
        "{0} is run by the external engine {1:?}: ask the process that calls it, which finds its file in GET /v2/models/{0} and \
         reports what it answered with POST /v2/models/{0}/observe"
    )]
    Elsewhere(ModelName, String),
    /// The queue was full.
    #[error("{0} requests are waiting already; try again")]
    Busy(u32),
    /// It took longer than the manifest allows.
    #[error("no answer within {0} ms")]
    Timeout(u32),
    /// The model's or the runtime's fault.
    #[error("{0}")]
    Failed(String),
}

/// What a bundle tells when something is wrong with it beyond one request.
pub type OnFault = Box<dyn Fn(String) + Send + Sync>;

/// A loaded bundle.
pub struct Hosted {
    /// As it is written in every answer.
    version: String,
    runs: Runs,
    runner: Arc<Runner>,
    queue: SyncSender<Job>,
    /// Resolves when the thread has ended.
    ended: Mutex<Option<oneshot::Receiver<()>>>,
}

/// Who runs a bundle's model.
enum Runs {
    /// This process.
    Here,
    /// A process of the owner's, which says what it answered.
    Elsewhere {
        /// Name of the engine.
        engine: String,
        /// The file that it opens.
        entry: PathBuf,
    },
}

/// What an engine elsewhere was asked and answered.
#[derive(Debug)]
pub struct Observation {
    /// In the manifest's order.
    pub inputs: Vec<Tensor>,
    /// In the manifest's order; `None` when it gave no answer.
    pub outputs: Option<Vec<Tensor>>,
    /// From question to answer.
    pub latency: Duration,
}

enum Job {
    /// Run the model, answer, then measure.
    Infer(Asked),
    /// Measure only: a request that the policy refused, which must not hide what the sensors do, or one that an engine
    /// elsewhere answered.
    Measure(Vec<Tensor>, Option<Vec<Tensor>>),
}

struct Asked {
    inputs: Vec<Tensor>,
    queued: Instant,
    reply: oneshot::Sender<Outcome>,
}

/// A run that will not end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hang {
    /// Of which model.
    pub model: ModelName,
    /// Of which bundle.
    pub digest: Digest,
    /// For people.
    pub reason: String,
}

/// What is left of a bundle that takes no more requests.
pub struct Retired {
    account: Account,
    ended: Option<oneshot::Receiver<()>>,
}

impl Hosted {
    /// Opens the bundle in `dir`, warms it up with its first golden sample and starts its thread. Blocks for as long as
    /// that takes. The driver has verified the files; that it is this very bundle is checked once more here.
    pub fn load(
        dir: &Path,
        expect: Digest,
        next_window: u64,
        on_fault: OnFault,
    ) -> Result<Self, RuntimeError> {
        let manifest = read_manifest(dir, Some(expect))?;
        let variant = manifest.variant_for(architecture()).ok_or_else(|| {
            RuntimeError::Manifest(format!("it has no variant for architecture {:?}", architecture()))
        })?;
        if let RuntimeKind::External { engine } = &variant.runtime {
            let runs = Runs::Elsewhere { engine: engine.clone(), entry: dir.join(variant.entry.as_str()) };
            let (drift, featurizer) = measured(dir, &manifest, next_window)?;
            return Self::spawn(manifest, runs, None, expect, drift, featurizer, on_fault);
        }
        let (model, memory) = heap::taken(|| warmed_up(dir, &manifest, variant));
        let (drift, featurizer) = measured(dir, &manifest, next_window)?;
        let hosted = Self::start(model?, expect, drift, featurizer, on_fault)?;
        if let Err(why) = hosted.account().loaded(memory) {
            (hosted.runner.on_fault)(why);
        }
        Ok(hosted)
    }

    /// Starts the thread of a model that is loaded.
    pub fn start(
        model: Model,
        digest: Digest,
        drift: Option<Drift>,
        featurizer: Option<Featurizer>,
        on_fault: OnFault,
    ) -> Result<Self, RuntimeError> {
        Self::spawn(model.manifest().clone(), Runs::Here, Some(model), digest, drift, featurizer, on_fault)
    }

    fn spawn(
        manifest: Manifest,
        runs: Runs,
        model: Option<Model>,
        digest: Digest,
        drift: Option<Drift>,
        featurizer: Option<Featurizer>,
        on_fault: OnFault,
    ) -> Result<Self, RuntimeError> {
        let version = manifest.version.to_string();
        let (queue, jobs) = sync_channel(manifest.limits.queue as usize);
        let thread = format!("infer-{}", manifest.model);
        let runner = Arc::new(Runner {
            model: model.map(Arc::new),
            values: ValueCheck::of(&manifest),
            featurizer,
            account: Account::new(manifest, digest, drift),
            on_fault,
            pace: Mutex::new(Pace::new(std::thread::available_parallelism().map_or(1, usize::from))),
        });
        let (alive, ended) = oneshot::channel();
        let works = runner.clone();
        on_own_thread(&thread, move || {
            work_off(jobs, &works);
            drop((works, alive)); // in this order: its memory is free when it tells its end
        })?;
        Ok(Self { version, runs, runner, queue, ended: Mutex::new(Some(ended)) })
    }

    /// Of the bundle.
    pub fn manifest(&self) -> &Manifest {
        self.account().manifest()
    }

    /// Of the bundle, as text.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Of its `bundle.json`.
    pub fn digest(&self) -> Digest {
        self.account().digest()
    }

    /// Refuses a question that only an engine elsewhere could answer.
    pub fn runs_here(&self) -> Result<(), InferError> {
        match &self.runs {
            Runs::Here => Ok(()),
            Runs::Elsewhere { engine, .. } => {
                Err(InferError::Elsewhere(self.manifest().model.clone(), engine.clone()))
            }
        }
    }

    /// The engine elsewhere that runs it, and the file that it opens; `None` when this process does.
    pub fn engine(&self) -> Option<(&str, &Path)> {
        match &self.runs {
            Runs::Here => None,
            Runs::Elsewhere { engine, entry } => Some((engine, entry)),
        }
    }

    /// What is counted of it.
    pub fn account(&self) -> &Account {
        &self.runner.account
    }

    /// Asks the model and waits for its answer, at most as long as the manifest allows.
    pub async fn infer(&self, inputs: Vec<Tensor>) -> Result<Arc<Vec<Tensor>>, InferError> {
        let start = Instant::now();
        self.runs_here()?;
        check_inputs(self.manifest(), &inputs).inspect_err(|_| self.refused())?;
        if let Err(refusal) = self.runner.values.check(&inputs) {
            self.refused_by_policy(&refusal, inputs);
            return Err(refusal.into());
        }
        let is_for_here = lock(&self.runner.pace).is_for_here(&inputs, start);
        let outcome =
            if is_for_here { Ok(self.run_now(inputs)) } else { self.hand_over(inputs, start).await };
        let result = match outcome {
            Ok(Ok(outputs)) => Ok(outputs),
            // Checked before; an engine may be pickier than the manifest.
            Ok(Err(RuntimeError::Input(why))) => {
                self.refused();
                return Err(why.into());
            }
            Ok(Err(why)) => Err(InferError::Failed(why.to_string())),
            Err(busy @ InferError::Busy(_)) => {
                self.account().busy();
                return Err(busy);
            }
            Err(why) => Err(why),
        };
        let end = Instant::now();
        lock(&self.runner.pace).answered(end);
        self.account().took(end.saturating_duration_since(start), result.is_err());
        result
    }

    /// On this thread: the model is quick, and so is measuring.
    fn run_now(&self, inputs: Vec<Tensor>) -> Outcome {
        let (outcome, seen) = self.runner.run(inputs, Duration::ZERO);
        if let Some(seen) = seen {
            self.runner.measure_run(seen);
        }
        outcome
    }

    /// On the model's thread.
    async fn hand_over(&self, inputs: Vec<Tensor>, queued: Instant) -> Result<Outcome, InferError> {
        let (reply, answer) = oneshot::channel();
        self.queue.try_send(Job::Infer(Asked { inputs, queued, reply })).map_err(|why| match why {
            TrySendError::Full(_) => InferError::Busy(self.manifest().limits.queue),
            TrySendError::Disconnected(_) => {
                InferError::Failed("the model's thread has ended; it will be loaded again".into())
            }
        })?;
        let limit = self.manifest().limits.timeout_ms;
        match tokio::time::timeout(Duration::from_millis(u64::from(limit)), answer).await {
            Ok(Ok(outcome)) => Ok(outcome),
            Ok(Err(_)) => Err(InferError::Failed("the model's thread ended while it worked on this".into())),
            Err(_) => Err(InferError::Timeout(limit)),
        }
    }

    /// Counts what an engine elsewhere was asked and answered, as if it had been asked here. The input policy refuses
    /// nothing afterwards; what it would have caught is counted.
    pub fn observe(&self, observation: Observation) -> Result<(), InferError> {
        let Observation { inputs, outputs, latency } = observation;
        check_inputs(self.manifest(), &inputs).inspect_err(|_| self.refused())?;
        if let Some(outputs) = &outputs {
            check_outputs(self.manifest(), outputs).inspect_err(|_| self.refused())?;
        }
        self.account().took(latency, outputs.is_none());
        if outputs.is_some() {
            let rows = inputs.first().map_or(1, Tensor::rows);
            self.account().ran(rows, Duration::ZERO, latency);
        }
        // A queue that is full costs a sample of the window, not the count.
        let _ = self.queue.try_send(Job::Measure(inputs, outputs));
        Ok(())
    }

    /// Counts a request that was refused for its form: shape, datatype, length, JSON.
    pub fn refused(&self) {
        self.account().refused(&Quality { malformed: 1, ..Quality::default() });
    }

    /// Counts a request that was refused for a value, and has its inputs measured if the queue has room: what a busy
    /// model leaves out of its window is a sample less, not a request that waits.
    fn refused_by_policy(&self, refusal: &ValueRefusal, inputs: Vec<Tensor>) {
        let mut quality = Quality::default();
        quality.refused.add(refusal.rule, 1);
        self.account().refused(&quality);
        if self.account().measures() {
            let _ = self.queue.try_send(Job::Measure(inputs, None));
        }
    }

    /// The model itself, for a shadow, which asks it beside the queue; `None` where another process runs it.
    pub fn model(&self) -> Option<Arc<Model>> {
        self.runner.model.clone()
    }

    /// What to say of a run that will not end, if one is under way.
    pub fn hangs(&self, now: Instant) -> Option<Hang> {
        let since = now.saturating_duration_since(self.account().running_since()?);
        (since > patience(self.manifest())).then(|| Hang::of(self.account(), since))
    }

    /// Lets go of it. Requests that hold it still finish.
    pub fn retire(self: Arc<Self>) -> Retired {
        let ended = lock(&self.ended).take();
        Retired { account: self.account().clone(), ended }
    }
}

impl Retired {
    /// Waits until its thread has ended and its memory is free, then closes its last window. The error says that the
    /// thread is in a run that will not end.
    pub async fn finish(mut self, now: UnixMillis) -> Result<Vec<DriftReport>, Hang> {
        if let Some(ended) = self.ended.take() {
            let limit = patience(self.account.manifest());
            // Otherwise the thread has dropped its end.
            if tokio::time::timeout(limit, ended).await.is_err() {
                return Err(Hang::of(&self.account, limit));
            }
        }
        Ok(self.account.close_window(now, false))
    }
}

/// A model that has answered its first golden sample once.
fn warmed_up(dir: &Path, manifest: &Manifest, variant: &Variant) -> Result<Model, RuntimeError> {
    let model = Model::load(dir, manifest, variant)?;
    if let Some(sample) = manifest.golden.samples.first() {
        let (inputs, _) = read_sample(dir, sample)?;
        model.infer(inputs)?;
    }
    Ok(model)
}

/// What a bundle's baseline measures with, when it carries one.
fn measured(
    dir: &Path,
    manifest: &Manifest,
    next_window: u64,
) -> Result<(Option<Drift>, Option<Featurizer>), RuntimeError> {
    Ok(match drift::of_bundle(dir, manifest)? {
        Some((baseline, featurizer)) => (Some(Drift::new(baseline, next_window)), Some(featurizer)),
        None => (None, None),
    })
}

/// Runs what waits, until nobody can ask any more.
fn work_off(jobs: Receiver<Job>, runner: &Runner) {
    for job in jobs {
        let Asked { inputs, queued, reply } = match job {
            Job::Infer(asked) => asked,
            Job::Measure(inputs, outputs) => {
                runner.measure(&inputs, outputs.as_deref());
                continue;
            }
        };
        if reply.is_closed() {
            continue; // the caller gave up while this waited
        }
        let started = Instant::now();
        runner.account.runs_since(Some(started));
        let (outcome, seen) = runner.run(inputs, started.saturating_duration_since(queued));
        runner.account.runs_since(None);
        let _ = reply.send(outcome); // nobody waits any more: the timeout is counted by whoever did
        if let Some(seen) = seen {
            runner.measure_run(seen);
        }
    }
}

fn patience(manifest: &Manifest) -> Duration {
    Duration::from_millis(u64::from(manifest.limits.timeout_ms)) * HANGS_AFTER
}

impl Hang {
    fn of(account: &Account, since: Duration) -> Self {
        let Manifest { model, version, limits, .. } = account.manifest();
        let reason = format!(
            "{model} {version} has computed for {} ms on one request and does not end; its limit is {} ms \
             (limits.timeout_ms)",
            since.as_millis(),
            limits.timeout_ms
        );
        Self { model: model.clone(), digest: account.digest(), reason }
    }
}

/// Starts a named thread with room for a model's recursion.
pub fn on_own_thread(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), RuntimeError> {
    // Linux shows 15 characters of a thread's name.
    let name: String = name.chars().take(15).collect();
    let thread = std::thread::Builder::new().name(name).stack_size(STACK).spawn(work);
    thread.map(drop).map_err(|e| RuntimeError::Run(format!("no thread for the model: {e}")))
}

/// Reads and parses `bundle.json`; with `expect`, only if it has that digest.
pub fn read_manifest(dir: &Path, expect: Option<Digest>) -> Result<Manifest, RuntimeError> {
    let path = dir.join(MANIFEST_FILE);
    let io = |source| RuntimeError::Io { path: path.clone(), source };
    let size = std::fs::metadata(&path).map_err(io)?.len();
    if size > MAX_MANIFEST_BYTES {
        return Err(RuntimeError::Refused(format!(
            "{} has {size} bytes; at most {MAX_MANIFEST_BYTES}",
            path.display()
        )));
    }
    let bytes = std::fs::read(&path).map_err(io)?;
    let digest = Digest::of(&bytes);
    if let Some(expect) = expect
        && digest != expect
    {
        return Err(RuntimeError::Refused(format!("{} has digest {digest}, not {expect}", path.display())));
    }
    Manifest::parse(&bytes).map_err(|e| RuntimeError::Manifest(e.to_string()))
}

/// No code panics while it holds one of these locks; if it did, counters are still counters.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
