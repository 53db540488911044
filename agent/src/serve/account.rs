//! What is counted of a bundle: requests and times, data quality, answers that labels may come for, its measurement
//! window. It outlives the bundle's stay in memory, because labels come after a swap too.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use plimsoll_protocol::bundle::Manifest;
use plimsoll_protocol::drift::{Quality, Truth};
use plimsoll_protocol::wire::v1::{DriftReport, ModelHealth};
use plimsoll_protocol::{Digest, ModelName, UnixMillis};
use plimsoll_runtime::Tensor;
use plimsoll_runtime::heap::Taken;

use super::drift::{Drift, Rows};
use super::hosted::lock;
use super::latency::Latencies;
use super::shadow::Tap;
use super::truth::{Answers, LabelError, Outcome};

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
    /// What the bundle keeps of the heap since its load, bytes.
    resident: AtomicU64,
    /// The most that its load or a run needed, with what it keeps, bytes.
    most_memory: AtomicU64,
    /// Whether it was told that this is more than the manifest allows.
    told_memory: AtomicBool,
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

impl Account {
    /// Nothing is counted yet.
    pub(super) fn new(manifest: Manifest, digest: Digest, drift: Option<Drift>) -> Self {
        let ledger = Arc::new(Ledger::of(&manifest, drift));
        Self { manifest: Arc::new(manifest), digest, ledger }
    }

    /// Of the bundle.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

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

    /// Counts a request that was refused for the caller's fault.
    pub(super) fn refused(&self, quality: &Quality) {
        self.ledger.refused.fetch_add(1, Ordering::Relaxed);
        self.found(quality);
    }

    /// Counts a request that found the queue full.
    pub(super) fn busy(&self) {
        self.ledger.busy.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a request that was answered, or failed.
    pub(super) fn took(&self, took: Duration, failed: bool) {
        self.ledger.requests.fetch_add(1, Ordering::Relaxed);
        self.ledger.failed.fetch_add(u64::from(failed), Ordering::Relaxed);
        let time = if failed { &self.ledger.fail_ns } else { &self.ledger.success_ns };
        time.fetch_add(nanos(took), Ordering::Relaxed);
        lock(&self.ledger.latencies).note(took.as_micros());
        if let Some(drift) = lock(&self.ledger.drift).as_mut() {
            drift.answered(failed);
        }
    }

    /// Counts a run of the model.
    pub(super) fn ran(&self, rows: usize, waited: Duration, took: Duration) {
        let add = |counter: &AtomicU64, value| counter.fetch_add(value, Ordering::Relaxed);
        add(&self.ledger.runs, 1);
        add(&self.ledger.rows, rows as u64);
        add(&self.ledger.queue_ns, nanos(waited));
        add(&self.ledger.infer_ns, nanos(took));
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        self.ledger.last_ms.store(now.map_or(0, |since| since.as_millis() as u64), Ordering::Relaxed);
    }

    /// Counts the memory that its load took; the error says that it is more than the manifest allows.
    pub(super) fn loaded(&self, taken: Taken) -> Result<(), String> {
        self.ledger.resident.store(taken.kept, Ordering::Relaxed);
        self.needed(taken.peak)
    }

    /// Counts the memory that a run took, beside what the bundle keeps. The error comes once.
    pub(super) fn run_took(&self, taken: Taken) -> Result<(), String> {
        self.needed(self.ledger.resident.load(Ordering::Relaxed).saturating_add(taken.peak))
    }

    fn needed(&self, bytes: u64) -> Result<(), String> {
        self.ledger.most_memory.fetch_max(bytes, Ordering::Relaxed);
        match self.manifest.limits.ram_bytes.filter(|limit| bytes > *limit) {
            Some(limit) if !self.ledger.told_memory.swap(true, Ordering::Relaxed) => Err(format!(
                "{} {} took {bytes} bytes of memory for its load or a request; limits.ram_bytes of its \
                 bundle.json allows {limit}: ask it with fewer rows, or pack it with a larger --ram-limit",
                self.manifest.model, self.manifest.version
            )),
            _ => Ok(()),
        }
    }

    /// The most memory that its load or a run needed, bytes.
    pub fn most_memory(&self) -> u64 {
        self.ledger.most_memory.load(Ordering::Relaxed)
    }

    /// Says that a run began, or that none is under way.
    pub(super) fn runs_since(&self, since: Option<Instant>) {
        *lock(&self.ledger.running) = since;
    }

    /// When the run that is under way began.
    pub(super) fn running_since(&self) -> Option<Instant> {
        *lock(&self.ledger.running)
    }

    /// Whether a measurement window is open.
    pub(super) fn measures(&self) -> bool {
        lock(&self.ledger.drift).as_ref().is_some_and(Drift::is_open)
    }

    /// Folds rows and what was wrong with their values into the open window.
    pub(super) fn observe(&self, rows: &Rows, answered: bool, quality: &Quality) {
        if let Some(drift) = lock(&self.ledger.drift).as_mut() {
            drift.observe(rows.iter(), answered);
        }
        self.found(quality);
    }

    /// Counts what was wrong with a request, since the load and in the open window.
    fn found(&self, quality: &Quality) {
        if quality.is_clean() {
            return;
        }
        lock(&self.ledger.quality).merge(quality);
        if let Some(drift) = lock(&self.ledger.drift).as_mut() {
            drift.found(quality);
        }
    }

    /// Lets a shadow have a sample of what is asked and answered from now on; or no longer.
    pub fn set_tap(&self, tap: Option<Arc<Tap>>) {
        *lock(&self.ledger.tap) = tap;
    }

    /// Where a shadow takes its sample, if there is one.
    pub(super) fn tap(&self) -> Option<Arc<Tap>> {
        lock(&self.ledger.tap).clone()
    }

    /// Opens its measurement window, unless one is open.
    pub fn open_window(&self, now: UnixMillis) {
        if let Some(drift) = lock(&self.ledger.drift).as_mut() {
            drift.open(now);
        }
    }

    /// Counters since it was loaded.
    pub fn health(&self) -> ModelHealth {
        let (p50_us, p99_us) = lock(&self.ledger.latencies).p50_p99();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ModelHealth {
            model: self.manifest.model.clone(),
            digest: self.digest,
            requests: count(&self.ledger.requests),
            failed: count(&self.ledger.failed),
            refused: count(&self.ledger.refused),
            busy: count(&self.ledger.busy),
            p50_us,
            p99_us,
            quality: *lock(&self.ledger.quality),
            truth: *lock(&self.ledger.truth),
            memory_bytes: self.most_memory(),
        }
    }

    /// Counts and times since it was loaded. Each is read by itself: two of them may be a request apart.
    pub fn counted(&self) -> Counted {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let failed = count(&self.ledger.failed);
        Counted {
            requests: count(&self.ledger.requests).max(failed),
            failed,
            success_ns: count(&self.ledger.success_ns),
            fail_ns: count(&self.ledger.fail_ns),
            runs: count(&self.ledger.runs),
            rows: count(&self.ledger.rows),
            queue_ns: count(&self.ledger.queue_ns),
            infer_ns: count(&self.ledger.infer_ns),
            last_ms: count(&self.ledger.last_ms),
        }
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
            resident: zero(),
            most_memory: zero(),
            told_memory: AtomicBool::new(false),
            running: Mutex::default(),
            quality: Mutex::default(),
            truth: Mutex::default(),
            answers: Mutex::new(Answers::of(manifest)),
            latencies: Mutex::default(),
            tap: Mutex::new(None),
            drift: Mutex::new(drift),
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX) // 584 years
}
