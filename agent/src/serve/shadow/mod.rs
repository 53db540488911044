//! A candidate beside the bundle that serves: asked a share of the same requests, off the critical path, answering
//! nobody.
//!
//! The thread of the bundle that serves copies a sampled request's inputs before it runs them, and after its answer has
//! left it puts the copy and the answer into a short queue. When the queue is full the request is skipped and counted:
//! a live request is never delayed by a candidate. A thread of the lowest priority asks the candidate and
//! [`Comparison`] counts. What the candidate does to its process (memory, a crash) no thread can hold off; the driver
//! spends a try before it loads one, and restarts the child with the bundle that served.

mod compare;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use plimsoll_agent_core::retry::mix;
use plimsoll_protocol::Digest;
use plimsoll_protocol::wire::v1::ShadowTotals;
use plimsoll_runtime::{Model, RuntimeError, Tensor, heap};

use self::compare::Comparison;
use super::account::Account;
use super::hosted::{Hosted, OnFault, lock, on_own_thread};
use super::latency::Latencies;

/// Requests that wait for the candidate: a burst of a few, and not so many that their copies matter (4 x 600 KB of a
/// camera's tensors).
const QUEUE: usize = 4;
/// Niceness of the thread that asks the candidate: the scheduler gives it about 1.5 % of a core that others want, and
/// all of one that nobody does.
const NICE: i32 = 19;
/// A candidate that works on one request for so many of its own time limits hangs: at the lowest priority it may well
/// take a few.
const STUCK_LIMITS: u32 = 10;

/// A candidate that is compared. Ends when it is dropped.
pub struct Shadow {
    current: Arc<Hosted>,
    candidate: Account,
    shared: Arc<Shared>,
    stuck_after: Duration,
}

/// Where the bundle that serves leaves what it was asked and answered.
pub struct Tap {
    queue: SyncSender<Sampled>,
    shared: Arc<Shared>,
    sample_percent: u64,
    seed: u64,
}

/// One request that was answered.
struct Sampled {
    inputs: Vec<Tensor>,
    rows: usize,
    answer: Arc<Vec<Tensor>>,
    took: Duration,
}

struct Shared {
    /// Requests that the tap has seen.
    seen: AtomicU64,
    /// Of the sample, in the queue or being worked on.
    waiting: AtomicUsize,
    skipped: AtomicU64,
    /// Since when the candidate works on a request.
    busy_since: Mutex<Option<Instant>>,
    counted: Mutex<Counted>,
}

struct Counted {
    comparison: Comparison,
    current: Latencies,
    candidate: Latencies,
}

impl Shadow {
    /// Begins to compare; says why when the two do not answer the same question.
    pub fn start(
        current: Arc<Hosted>,
        candidate: &Hosted,
        sample_percent: u32,
        seed: u64,
        on_fault: OnFault,
    ) -> Result<Self, String> {
        let comparison = Comparison::of(current.manifest(), candidate.manifest())?;
        let (Some(model), Some(_)) = (candidate.model(), current.model()) else {
            return Err(
                "an engine of the owner runs one of the two, and this process cannot ask it".to_owned()
            );
        };
        let counted = Counted { comparison, current: Latencies::default(), candidate: Latencies::default() };
        let shared = Arc::new(Shared {
            seen: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            skipped: AtomicU64::new(0),
            busy_since: Mutex::new(None),
            counted: Mutex::new(counted),
        });
        let (queue, sampled) = sync_channel(QUEUE);
        let account = candidate.account().clone();
        let asker = Asker { model, account: account.clone(), shared: shared.clone(), on_fault };
        on_own_thread("shadow", move || asker.run(sampled)).map_err(|e| e.to_string())?;
        let sample_percent = u64::from(sample_percent.clamp(1, 100));
        current.account().set_tap(Some(Arc::new(Tap {
            queue,
            shared: shared.clone(),
            sample_percent,
            seed,
        })));
        let limit = Duration::from_millis(u64::from(candidate.manifest().limits.timeout_ms));
        Ok(Self { current, candidate: account, shared, stuck_after: limit * STUCK_LIMITS })
    }

    /// The candidate.
    pub const fn candidate(&self) -> Digest {
        self.candidate.digest()
    }

    /// The candidate's version.
    pub fn version(&self) -> String {
        self.candidate.version()
    }

    /// Whether this bundle is one of the two.
    pub fn concerns(&self, digest: Digest) -> bool {
        self.candidate() == digest || self.current.digest() == digest
    }

    /// What was compared so far.
    pub fn totals(&self) -> ShadowTotals {
        let counted = lock(&self.shared.counted);
        let (current_p50_us, current_p99_us) = counted.current.p50_p99();
        let (candidate_p50_us, candidate_p99_us) = counted.candidate.p50_p99();
        ShadowTotals {
            skipped: self.shared.skipped.load(Ordering::Relaxed),
            current_p50_us,
            current_p99_us,
            candidate_p50_us,
            candidate_p99_us,
            memory_bytes: self.candidate.most_memory(),
            ..counted.comparison.totals()
        }
    }

    /// Says so when the candidate hangs.
    pub fn stuck(&self) -> Option<String> {
        let busy = lock(&self.shared.busy_since).map(|since| since.elapsed())?;
        (busy > self.stuck_after).then(|| format!("it has not answered a request for {} s", busy.as_secs()))
    }
}

impl Drop for Shadow {
    fn drop(&mut self) {
        self.current.account().set_tap(None);
    }
}

impl Tap {
    /// Whether the next request is of the sample and there is room for it; costs a few counters.
    pub fn wants(&self, rows: usize) -> bool {
        let at = self.shared.seen.fetch_add(1, Ordering::Relaxed);
        if mix(self.seed.wrapping_add(at)) % 100 >= self.sample_percent {
            return false;
        }
        let room = self.shared.waiting.load(Ordering::Relaxed) < QUEUE;
        if !room {
            self.shared.skipped.fetch_add(rows as u64, Ordering::Relaxed);
        }
        room
    }

    /// Hands over a request that was answered. Never waits.
    pub fn offer(&self, inputs: Vec<Tensor>, rows: usize, answer: Arc<Vec<Tensor>>, took: Duration) {
        self.shared.waiting.fetch_add(1, Ordering::Relaxed);
        if self.queue.try_send(Sampled { inputs, rows, answer, took }).is_err() {
            self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
            self.shared.skipped.fetch_add(rows as u64, Ordering::Relaxed);
        }
    }
}

/// The thread that asks the candidate.
struct Asker {
    model: Arc<Model>,
    account: Account,
    shared: Arc<Shared>,
    on_fault: OnFault,
}

impl Asker {
    fn run(self, sampled: Receiver<Sampled>) {
        let _ = rustix::process::setpriority_process(None, NICE); // without it the candidate is merely less polite
        for request in sampled {
            let started = Instant::now();
            *lock(&self.shared.busy_since) = Some(started);
            let (answer, memory) = heap::taken(|| self.model.infer(request.inputs));
            *lock(&self.shared.busy_since) = None;
            let mut counted = lock(&self.shared.counted);
            counted.current.note(request.took.as_micros());
            counted.candidate.note(started.elapsed().as_micros());
            match &answer {
                Ok(answer) => counted.comparison.add(&request.answer, answer, request.rows),
                Err(_) => counted.comparison.failed(request.rows),
            }
            drop(counted);
            self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
            if let Err(why) = self.account.run_took(memory) {
                (self.on_fault)(why);
            }
            if let Err(why @ RuntimeError::Panicked { .. }) = answer {
                (self.on_fault)(why.to_string());
            }
        }
    }
}
