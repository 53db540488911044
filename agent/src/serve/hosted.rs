//! One bundle in memory: its model, the thread that runs it, the queue before that thread, and what is counted.
//!
//! A model gets one thread, because tract computes on one. Requests wait in a bounded queue; one more is answered
//! `Busy`. What was asked and answered is folded into the measurement window on the same thread, after the answer has
//! left. The thread ends when the last holder of the [`Hosted`] is gone, so a bundle that was replaced finishes what
//! it has and then frees its memory.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use plimsoll_protocol::bundle::{MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest, RuntimeKind};
use plimsoll_protocol::drift::{Quality, Truth};
use plimsoll_protocol::wire::v1::{DriftReport, ModelHealth};
use plimsoll_protocol::{Digest, ModelName, UnixMillis};
use plimsoll_runtime::features::Featurizer;
use plimsoll_runtime::{
    Model, RuntimeError, STACK, Tensor, TensorError, ValueCheck, ValueRefusal, architecture, check_inputs,
    check_outputs, read_sample,
};
use tokio::sync::oneshot;

use super::drift::{self, Drift, Rows};
use super::latency::Latencies;
use super::shadow::Tap;
use super::truth::{Answers, LabelError, Outcome};

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
pub type OnFault = Box<dyn Fn(String) + Send>;

/// A loaded bundle.
pub struct Hosted {
    /// As it is written in every answer.
    version: String,
    runs: Runs,
    /// Kept for a shadow; `None` where another process runs it.
    model: Option<Arc<Model>>,
    values: Arc<ValueCheck>,
    queue: SyncSender<Job>,
    account: Account,
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
    reply: oneshot::Sender<Result<Arc<Vec<Tensor>>, RuntimeError>>,
}

/// What was counted since a bundle was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// Requests that the model was asked, with or without success.
    pub requests: u64,
    /// Of those, without an answer.
    pub failed: u64,
    /// From the request's tensors to the answer's, of all answered together, in nanoseconds.
    pub success_ns: u64,
    /// The same of all that failed.
    pub fail_ns: u64,
    /// Runs of the model.
    pub runs: u64,
    /// Rows of all runs together.
    pub rows: u64,
    /// Time that runs waited in the queue, together.
    pub queue_ns: u64,
    /// Time in the model and its steps, together.
    pub infer_ns: u64,
    /// When the last run ended, Unix milliseconds; 0 when there was none.
    pub last_ms: u64,
}

/// What is counted of a bundle, whether or not it is still in memory: labels come after a swap too.
#[derive(Clone)]
pub struct Account {
    manifest: Arc<Manifest>,
    digest: Digest,
    ledger: Arc<Ledger>,
}

/// What is counted; outlives the model, so that the last window can be read when the thread has ended.
struct Ledger {
    requests: AtomicU64,
    failed: AtomicU64,
    refused: AtomicU64,
    busy: AtomicU64,
    runs: AtomicU64,
    rows: AtomicU64,
    success_ns: AtomicU64,
    fail_ns: AtomicU64,
    queue_ns: AtomicU64,
    infer_ns: AtomicU64,
    last_ms: AtomicU64,
    quality: Mutex<Quality>,
    truth: Mutex<Truth>,
    answers: Mutex<Answers>,
    /// When the run that is under way began.
    running: Mutex<Option<Instant>>,
    latencies: Mutex<Latencies>,
    drift: Mutex<Option<Drift>>,
    /// Where a shadow takes its sample of what is asked and answered.
    tap: Mutex<Option<Arc<Tap>>>,
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
        let model = Model::load(dir, &manifest, variant)?;
        if let Some(sample) = manifest.golden.samples.first() {
            let (inputs, _) = read_sample(dir, sample)?;
            model.infer(inputs)?;
        }
        let (drift, featurizer) = measured(dir, &manifest, next_window)?;
        Self::start(model, expect, drift, featurizer, on_fault)
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
        let values = Arc::new(ValueCheck::of(&manifest));
        let (manifest, model) = (Arc::new(manifest), model.map(Arc::new));
        let ledger = Arc::new(Ledger::of(&manifest, drift));
        let version = manifest.version.to_string();
        let (queue, jobs) = sync_channel(manifest.limits.queue as usize);
        let (alive, ended) = oneshot::channel();
        let worker = Worker {
            model: model.clone(),
            values: values.clone(),
            featurizer,
            ledger: ledger.clone(),
            on_fault,
            _alive: alive,
        };
        on_own_thread(&format!("infer-{}", manifest.model), move || worker.run(jobs))?;
        let account = Account { manifest, digest, ledger };
        Ok(Self { version, runs, model, values, queue, account, ended: Mutex::new(Some(ended)) })
    }

    /// Of the bundle.
    pub fn manifest(&self) -> &Manifest {
        &self.account.manifest
    }

    /// Of the bundle, as text.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Of its `bundle.json`.
    pub const fn digest(&self) -> Digest {
        self.account.digest
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
    pub const fn account(&self) -> &Account {
        &self.account
    }

    /// Asks the model and waits for its answer, at most as long as the manifest allows.
    pub async fn infer(&self, inputs: Vec<Tensor>) -> Result<Arc<Vec<Tensor>>, InferError> {
        let start = Instant::now();
        self.runs_here()?;
        check_inputs(self.manifest(), &inputs).inspect_err(|_| self.refused())?;
        if let Err(refusal) = self.values.check(&inputs) {
            self.refused_by_policy(&refusal, inputs);
            return Err(refusal.into());
        }
        let (reply, answer) = oneshot::channel();
        match self.queue.try_send(Job::Infer(Asked { inputs, queued: start, reply })) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                self.account.ledger.busy.fetch_add(1, Ordering::Relaxed);
                return Err(InferError::Busy(self.account.manifest.limits.queue));
            }
            Err(TrySendError::Disconnected(_)) => {
                self.answered(start, true);
                return Err(InferError::Failed(
                    "the model's thread has ended; it will be loaded again".into(),
                ));
            }
        }
        let limit = self.account.manifest.limits.timeout_ms;
        let result = match tokio::time::timeout(Duration::from_millis(u64::from(limit)), answer).await {
            Ok(Ok(Ok(outputs))) => Ok(outputs),
            // Checked before; an engine may be pickier than the manifest.
            Ok(Ok(Err(RuntimeError::Input(why)))) => {
                self.refused();
                return Err(why.into());
            }
            Ok(Ok(Err(why))) => Err(InferError::Failed(why.to_string())),
            Ok(Err(_)) => Err(InferError::Failed("the model's thread ended while it worked on this".into())),
            Err(_) => Err(InferError::Timeout(limit)),
        };
        self.answered(start, result.is_err());
        result
    }

    /// Counts what an engine elsewhere was asked and answered, as if it had been asked here. The input policy refuses
    /// nothing afterwards; what it would have caught is counted.
    pub fn observe(&self, observation: Observation) -> Result<(), InferError> {
        let Observation { inputs, outputs, latency } = observation;
        check_inputs(self.manifest(), &inputs).inspect_err(|_| self.refused())?;
        if let Some(outputs) = &outputs {
            check_outputs(self.manifest(), outputs).inspect_err(|_| self.refused())?;
        }
        self.took(latency, outputs.is_none());
        if outputs.is_some() {
            let rows = inputs.first().map_or(1, Tensor::rows);
            self.account.ledger.ran(rows, Duration::ZERO, latency);
        }
        // A queue that is full costs a sample of the window, not the count.
        let _ = self.queue.try_send(Job::Measure(inputs, outputs));
        Ok(())
    }

    /// Counts a request that was refused for its form: shape, datatype, length, JSON.
    pub fn refused(&self) {
        self.account.ledger.refused.fetch_add(1, Ordering::Relaxed);
        self.account.ledger.found(&Quality { malformed: 1, ..Quality::default() });
    }

    /// Counts a request that was refused for a value, and has its inputs measured if the queue has room: what a busy
    /// model leaves out of its window is a sample less, not a request that waits.
    fn refused_by_policy(&self, refusal: &ValueRefusal, inputs: Vec<Tensor>) {
        self.account.ledger.refused.fetch_add(1, Ordering::Relaxed);
        let mut quality = Quality::default();
        quality.refused.add(refusal.rule, 1);
        self.account.ledger.found(&quality);
        if lock(&self.account.ledger.drift).as_ref().is_some_and(Drift::is_open) {
            let _ = self.queue.try_send(Job::Measure(inputs, None));
        }
    }

    fn answered(&self, start: Instant, failed: bool) {
        self.took(start.elapsed(), failed);
    }

    fn took(&self, took: Duration, failed: bool) {
        self.account.ledger.requests.fetch_add(1, Ordering::Relaxed);
        self.account.ledger.failed.fetch_add(u64::from(failed), Ordering::Relaxed);
        let time = if failed { &self.account.ledger.fail_ns } else { &self.account.ledger.success_ns };
        time.fetch_add(nanos(took), Ordering::Relaxed);
        lock(&self.account.ledger.latencies).note(took.as_micros());
        if let Some(drift) = lock(&self.account.ledger.drift).as_mut() {
            drift.answered(failed);
        }
    }

    /// The model itself, for a shadow, which asks it beside the queue; `None` where another process runs it.
    pub fn model(&self) -> Option<Arc<Model>> {
        self.model.clone()
    }

    /// Lets a shadow have a sample of what is asked and answered from now on; or no longer.
    pub fn tap(&self, tap: Option<Arc<Tap>>) {
        *lock(&self.account.ledger.tap) = tap;
    }

    /// Opens its measurement window, unless one is open.
    pub fn open_window(&self, now: UnixMillis) {
        if let Some(drift) = lock(&self.account.ledger.drift).as_mut() {
            drift.open(now);
        }
    }

    /// Closes its measurement window, if one is open; opens the next if `reopen`.
    pub fn close_window(&self, now: UnixMillis, reopen: bool) -> Vec<DriftReport> {
        self.account.close_window(now, reopen)
    }

    /// Counters since it was loaded.
    pub fn health(&self) -> ModelHealth {
        let (p50_us, p99_us) = lock(&self.account.ledger.latencies).p50_p99();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ModelHealth {
            model: self.account.manifest.model.clone(),
            digest: self.account.digest,
            requests: count(&self.account.ledger.requests),
            failed: count(&self.account.ledger.failed),
            refused: count(&self.account.ledger.refused),
            busy: count(&self.account.ledger.busy),
            p50_us,
            p99_us,
            quality: *lock(&self.account.ledger.quality),
            truth: *lock(&self.account.ledger.truth),
        }
    }

    /// Counts and times since it was loaded. Each is read by itself: two of them may be a request apart.
    pub fn counted(&self) -> Counted {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let failed = count(&self.account.ledger.failed);
        Counted {
            requests: count(&self.account.ledger.requests).max(failed),
            failed,
            success_ns: count(&self.account.ledger.success_ns),
            fail_ns: count(&self.account.ledger.fail_ns),
            runs: count(&self.account.ledger.runs),
            rows: count(&self.account.ledger.rows),
            queue_ns: count(&self.account.ledger.queue_ns),
            infer_ns: count(&self.account.ledger.infer_ns),
            last_ms: count(&self.account.ledger.last_ms),
        }
    }

    /// What to say of a run that will not end, if one is under way.
    pub fn hangs(&self, now: Instant) -> Option<String> {
        let since = now.saturating_duration_since((*lock(&self.account.ledger.running))?);
        (since > patience(&self.account.manifest)).then(|| hangs(&self.account.manifest, since))
    }

    /// Lets go of it. Requests that hold it still finish.
    pub fn retire(self: Arc<Self>) -> Retired {
        let ended = lock(&self.ended).take();
        Retired { account: self.account.clone(), ended }
    }
}

impl Retired {
    /// Waits until its thread has ended and its memory is free, then closes its last window. The error says that the
    /// thread is in a run that will not end.
    pub async fn finish(mut self, now: UnixMillis) -> Result<Vec<DriftReport>, String> {
        if let Some(ended) = self.ended.take() {
            let limit = patience(&self.account.manifest);
            // Otherwise the thread has dropped its end.
            if tokio::time::timeout(limit, ended).await.is_err() {
                return Err(hangs(&self.account.manifest, limit));
            }
        }
        Ok(self.account.close_window(now, false))
    }
}

impl Account {
    /// Which model.
    pub fn model(&self) -> &ModelName {
        &self.manifest.model
    }

    /// Which version, as text.
    pub fn version(&self) -> String {
        self.manifest.version.to_string()
    }

    /// Of its `bundle.json`.
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// Remembers an answer under the id that `next` gives; ids rise within a bundle, because it is asked for under the
    /// lock.
    pub fn answered(&self, next: impl FnOnce() -> u64, outputs: &[Tensor]) -> u64 {
        let mut answers = lock(&self.ledger.answers);
        let id = next();
        answers.note(id, outputs);
        id
    }

    /// Holds an answer against its label. One for a version that no longer answers opens a window of its own.
    pub fn label(
        &self,
        id: u64,
        row: Option<u32>,
        label: &serde_json::Value,
        now: UnixMillis,
    ) -> Result<Outcome, LabelError> {
        let outcome = lock(&self.ledger.answers).label(id, row, label);
        let mut drift = lock(&self.ledger.drift);
        let truth = match (&outcome, drift.as_ref()) {
            (Ok(Outcome::Class(correct)), _) => Truth::of_class(*correct),
            (Ok(Outcome::Error(error)), Some(drift)) => Truth::of_number(*error, drift.baseline()),
            (Ok(Outcome::Error(_)), None) => Truth { numbers: 1, ..Truth::default() },
            (Err(LabelError::Expired | LabelError::Unknown), _) => Truth { unknown: 1, ..Truth::default() },
            (Err(_), _) => return outcome,
        };
        lock(&self.ledger.truth).merge(&truth);
        if let Some(drift) = drift.as_mut() {
            // A wrong id alone must not open a window of a version that does not answer.
            if outcome.is_ok() {
                drift.open(now);
            }
            drift.labelled(&truth);
        }
        outcome
    }

    /// Counts a label for an answer of an earlier life of this process.
    pub fn late(&self) {
        let truth = Truth { unknown: 1, ..Truth::default() };
        lock(&self.ledger.truth).merge(&truth);
        if let Some(drift) = lock(&self.ledger.drift).as_mut() {
            drift.labelled(&truth);
        }
    }

    /// Takes over what an earlier stay in memory of the same bundle left: its answers, and its window with the index.
    pub fn inherit(&self, before: &Self) {
        std::mem::swap(&mut *lock(&self.ledger.answers), &mut *lock(&before.ledger.answers));
        let old = lock(&before.ledger.drift).take();
        let mut mine = lock(&self.ledger.drift);
        if old.as_ref().map(Drift::index) >= mine.as_ref().map(Drift::index) {
            *mine = old;
        }
    }

    /// Closes its window, if one is open; opens the next if `reopen`.
    pub fn close_window(&self, now: UnixMillis, reopen: bool) -> Vec<DriftReport> {
        let mut drift = lock(&self.ledger.drift);
        let close = |drift: &mut Drift| drift.close(&self.manifest, self.digest, now, reopen);
        drift.as_mut().map_or_else(Vec::new, close)
    }
}

impl Ledger {
    fn of(manifest: &Manifest, drift: Option<Drift>) -> Self {
        let zero = AtomicU64::default;
        Self {
            requests: zero(),
            failed: zero(),
            refused: zero(),
            busy: zero(),
            runs: zero(),
            rows: zero(),
            success_ns: zero(),
            fail_ns: zero(),
            queue_ns: zero(),
            infer_ns: zero(),
            last_ms: zero(),
            running: Mutex::default(),
            quality: Mutex::default(),
            truth: Mutex::default(),
            answers: Mutex::new(Answers::of(manifest)),
            latencies: Mutex::default(),
            tap: Mutex::new(None),
            drift: Mutex::new(drift),
        }
    }

    fn ran(&self, rows: usize, waited: Duration, took: Duration) {
        let add = |counter: &AtomicU64, value| counter.fetch_add(value, Ordering::Relaxed);
        add(&self.runs, 1);
        add(&self.rows, rows as u64);
        add(&self.queue_ns, nanos(waited));
        add(&self.infer_ns, nanos(took));
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        self.last_ms.store(now.map_or(0, |since| since.as_millis() as u64), Ordering::Relaxed);
    }

    /// Counts what was wrong with a request, since the load and in the open window.
    fn found(&self, quality: &Quality) {
        if quality.is_clean() {
            return;
        }
        lock(&self.quality).merge(quality);
        if let Some(drift) = lock(&self.drift).as_mut() {
            drift.found(quality);
        }
    }
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

struct Worker {
    /// `None` when an engine elsewhere runs it: then there is only something to measure.
    model: Option<Arc<Model>>,
    values: Arc<ValueCheck>,
    featurizer: Option<Featurizer>,
    ledger: Arc<Ledger>,
    on_fault: OnFault,
    _alive: oneshot::Sender<()>,
}

impl Worker {
    fn run(self, jobs: Receiver<Job>) {
        for job in jobs {
            let job = match job {
                Job::Infer(asked) => asked,
                Job::Measure(inputs, outputs) => {
                    self.measure(&inputs, outputs.as_deref());
                    continue;
                }
            };
            if job.reply.is_closed() {
                continue; // the caller gave up while this waited
            }
            let rows = job.inputs.first().map_or(1, Tensor::rows);
            let tap = lock(&self.ledger.tap).clone().filter(|tap| tap.wants(rows));
            let asked = (self.featurizer.is_some() || tap.is_some()).then(|| job.inputs.clone());
            let started = Instant::now();
            let lost = || RuntimeError::Run("this process holds no model of it".into()); // never asked: see `infer`
            *lock(&self.ledger.running) = Some(started);
            let result =
                self.model.as_ref().ok_or_else(lost).and_then(|model| model.infer(job.inputs)).map(Arc::new);
            *lock(&self.ledger.running) = None;
            let took = started.elapsed();
            self.ledger.ran(rows, started.saturating_duration_since(job.queued), took);
            if let Err(RuntimeError::Panicked { .. }) = &result {
                let why = result.as_ref().err().map(ToString::to_string).unwrap_or_default();
                (self.on_fault)(why);
            }
            let answered = result.as_ref().ok().cloned();
            let _ = job.reply.send(result); // nobody waits any more: the timeout is counted by whoever did
            let (Some(inputs), Some(outputs)) = (asked, answered) else { continue };
            self.measure(&inputs, Some(&outputs));
            if let Some(tap) = tap {
                tap.offer(inputs, rows, outputs, took);
            }
        }
    }

    /// Folds a request into the open window, with its answer or without one. Without a window nothing is read.
    fn measure(&self, inputs: &[Tensor], outputs: Option<&[Tensor]>) {
        let Some(featurizer) = &self.featurizer else { return };
        if !lock(&self.ledger.drift).as_ref().is_some_and(Drift::is_open) {
            return;
        }
        let rows = Rows::of(featurizer, inputs, outputs.unwrap_or_default());
        let values = self.values.count(inputs);
        if let Some(drift) = lock(&self.ledger.drift).as_mut() {
            drift.observe(rows.iter(), outputs.is_some());
        }
        self.ledger.found(&Quality { values, ..Quality::default() });
    }
}

fn patience(manifest: &Manifest) -> Duration {
    Duration::from_millis(u64::from(manifest.limits.timeout_ms)) * HANGS_AFTER
}

fn hangs(manifest: &Manifest, since: Duration) -> String {
    format!(
        "{} {} has computed for {} ms on one request and does not end; its limit is {} ms (limits.timeout_ms)",
        manifest.model,
        manifest.version,
        since.as_millis(),
        manifest.limits.timeout_ms
    )
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX) // 584 years
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
