//! Drift of single devices: which of them have moved away from the reference of the version that they run, and
//! whether that is the world, the version, or the devices themselves.
//!
//! The store keeps the windows; this keeps what follows from them in memory: a judge for each device and model in
//! service, and the features that it holds in alarm. 25 features of about 250 bytes are 6 KB a device, 60 MB for
//! ten thousand. After a start it is rebuilt from the newest stored windows, in the background, because nothing waits
//! for it; until that is done nothing is announced, and what the journal already says is not said again.
//!
//! The verdict of a device is its own as well: it judges the same windows by the same code and reports
//! `drift.alarm`. What only the server can do is compare devices, which is what an operator needs first: a lens is
//! wiped on a ladder, a model is rolled back from a desk. The comparison is shown and told, and decides nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use plimsoll_protocol::api::DriftAlarm;
use plimsoll_protocol::drift::attribution::{Cause, Moved, attribute};
use plimsoll_protocol::drift::{Baseline, Judge, Quality, Source, Standing, Truth, Verdict, Window};
use plimsoll_protocol::wire::v1::{DriftReport, RunningModel, Severity};
use plimsoll_protocol::{DeviceId, Digest, ModelName};

use crate::app::App;

/// Windows that a judge is rebuilt from: two days of hourly ones. A verdict needs two large ones of three and proof,
/// which a change worth an alarm gathers in a few; and 48 x 25 features of 5 us are 6 ms a device, a minute for ten
/// thousand.
const REPLAYED: usize = 48;
/// Events looked through after a start for what was already told.
const JOURNAL: usize = 1000;
/// Longest list of features in words; the page has all of them.
const TOLD: usize = 3;

/// What is known of one device and model.
struct Known {
    version: semver::Version,
    digest: Digest,
    baseline: Arc<Baseline>,
    judge: Judge,
    /// Windows judged.
    windows: u64,
    /// By position in the baseline.
    alarms: BTreeMap<usize, Verdict>,
    /// Parts of the window that is being received, and its index.
    parts: (u64, Vec<Window>),
}

/// All that is known of the fleet's drift.
#[derive(Default)]
pub struct Drift {
    known: Mutex<BTreeMap<(DeviceId, ModelName), Known>>,
    /// What was told of each model last; a model that is missing here is not announced yet.
    told: Mutex<BTreeMap<ModelName, String>>,
    /// What the labels say of each version, by device: 48 bytes each. After a start those of the versions in service;
    /// one that no device runs any more is known again when its next label comes.
    truths: Mutex<BTreeMap<Digest, BTreeMap<DeviceId, Truth>>>,
    rebuilt: Mutex<bool>,
}

/// The windows of a device and a bundle as they were judged.
pub struct Replay {
    /// The reference.
    pub baseline: Arc<Baseline>,
    /// The last window.
    pub last: Window,
    /// After it.
    pub verdicts: Vec<Verdict>,
    /// How many were judged.
    pub windows: u64,
    /// Of all stored windows, also of those that are too old to judge.
    pub quality: Quality,
    /// The same.
    pub truth: Truth,
    judge: Judge,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drift {
    /// Takes a report that the store has committed. Only what a device runs now is judged: the last window of a
    /// version that was replaced, or a backfill of last week, is history.
    pub async fn heard(&self, app: &App, device: &DeviceId, report: &DriftReport) {
        if report.part.0 == 0 && !report.window.truth.is_empty() {
            self.add_up(app, device, report).await;
        }
        let Some(running) = running(app, device).into_iter().find(|r| r.digest == report.digest) else {
            return;
        };
        let key = (device.clone(), running.model.clone());
        let moved = || locked(&self.known).get(&key).map(|k| k.moved(device));
        let before = moved();
        if self.is_known(device, &running) {
            if let Some(known) = locked(&self.known).get_mut(&key) {
                known.take(report);
            }
        } else {
            // The report is in the store already.
            self.rebuild(app, device, &running).await;
        }
        // All devices of the model are compared only when this one gives a reason: a fleet of ten thousand closes
        // three windows a second.
        if moved() != before {
            self.announce(app, &running.model).await;
        }
    }

    /// Adds the labels of a device and a version up again: rare, and the same whatever was heard twice. A label may be for
    /// a version that the device no longer runs.
    async fn add_up(&self, app: &App, device: &DeviceId, report: &DriftReport) {
        let Some(baseline) = app.baselines.of(&app.blobs, &report.digest).await else { return };
        let mut sum = Truth::default();
        for window in stored(app, device, &report.model, &report.digest).await {
            if window.check(&baseline).is_ok() {
                sum.merge(&window.truth);
            }
        }
        self.note_truth(device, report.digest, sum);
    }

    fn note_truth(&self, device: &DeviceId, digest: Digest, truth: Truth) {
        if !truth.is_empty() {
            locked(&self.truths).entry(digest).or_default().insert(device.clone(), truth);
        }
    }

    /// What the labels of all devices say of a version.
    pub fn truth(&self, digest: &Digest) -> Truth {
        let mut sum = Truth::default();
        let truths = locked(&self.truths);
        truths.get(digest).into_iter().flat_map(BTreeMap::values).for_each(|truth| sum.merge(truth));
        sum
    }

    fn is_known(&self, device: &DeviceId, running: &RunningModel) -> bool {
        let known = locked(&self.known);
        known.get(&(device.clone(), running.model.clone())).is_some_and(|k| k.digest == running.digest)
    }

    async fn rebuild(&self, app: &App, device: &DeviceId, running: &RunningModel) {
        let Some(baseline) = app.baselines.of(&app.blobs, &running.digest).await else { return };
        let replay = self.replay(app, device, &running.model, &running.digest).await;
        let mut fresh = Known {
            version: running.version.clone(),
            digest: running.digest,
            judge: Judge::new(&baseline),
            baseline,
            windows: 0,
            alarms: BTreeMap::new(),
            parts: (0, Vec::new()),
        };
        if let Some(replay) = replay {
            self.note_truth(device, running.digest, replay.truth);
            fresh.judge = replay.judge;
            fresh.windows = replay.windows;
            fresh.note(replay.verdicts);
        }
        locked(&self.known).insert((device.clone(), running.model.clone()), fresh);
    }

    /// Judges the newest stored windows of a device and a bundle, oldest first. `None` when the bundle has no
    /// baseline, is no longer there, or nothing was measured yet.
    pub async fn replay(
        &self,
        app: &App,
        device: &DeviceId,
        model: &ModelName,
        digest: &Digest,
    ) -> Option<Replay> {
        let baseline = app.baselines.of(&app.blobs, digest).await?;
        let mut windows = stored(app, device, model, digest).await;
        let mut judge = Judge::new(&baseline);
        let (mut verdicts, mut judged) = (Vec::new(), 0);
        // A window that does not fit the baseline says nothing about this bundle.
        windows.retain(|window| window.check(&baseline).is_ok());
        let (mut quality, mut truth) = (Quality::default(), Truth::default());
        for window in &windows {
            quality.merge(&window.quality);
            truth.merge(&window.truth);
        }
        windows.drain(..windows.len().saturating_sub(REPLAYED));
        for window in &windows {
            verdicts = judge.judge(&baseline, window).ok()?;
            judged += 1;
        }
        Some(Replay { last: windows.pop()?, baseline, verdicts, windows: judged, quality, truth, judge })
    }

    /// What a device holds in alarm, with where it comes from.
    pub fn alarms(&self, device: &DeviceId, running: &[RunningModel]) -> Vec<DriftAlarm> {
        let known = locked(&self.known);
        let told = locked(&self.told);
        let alarm = |running: &RunningModel| {
            let known = known.get(&(device.clone(), running.model.clone()))?;
            let in_alarm = known.digest == running.digest && !known.alarms.is_empty();
            in_alarm.then(|| DriftAlarm {
                model: running.model.clone(),
                version: running.version.clone(),
                features: known.alarms.values().map(ToString::to_string).collect(),
                cause: told.get(&running.model).cloned().unwrap_or_default(),
            })
        };
        running.iter().filter_map(alarm).collect()
    }

    /// Compares the devices of a model, and tells when the answer is another than before.
    async fn announce(&self, app: &App, model: &ModelName) {
        if !*locked(&self.rebuilt) {
            return;
        }
        let (cause, text) = self.attribution(app, model);
        let now = if cause == Cause::Nothing { String::new() } else { cause_in_words(&cause, &text.hint) };
        let before = locked(&self.told).insert(model.clone(), now.clone()).unwrap_or_default();
        if now == before {
            return;
        }
        if now.is_empty() {
            let text = format!("{model}: no device drifts any more; it was {before}");
            app.event(None, Severity::Info, "drift.over", text).await;
        } else {
            app.event(None, Severity::Alarm, "drift.attributed", format!("{model}: {now}. {}", text.details))
                .await;
        }
    }

    /// The devices of the highest version stand against those of all others while both are in service; a comparison
    /// that is shown may be as simple as that.
    fn attribution(&self, app: &App, model: &ModelName) -> (Cause, Words) {
        let versions = app.trust.versions();
        let runs: BTreeMap<DeviceId, Digest> = app.fleet.read(|devices| {
            let admitted = devices.iter().filter(|(_, d)| !d.record.revoked);
            admitted
                .filter_map(|(id, d)| Some((id.clone(), d.running(&versions).get(model)?.digest)))
                .collect()
        });
        let known = locked(&self.known);
        let devices: Vec<(&DeviceId, &Known)> = known
            .iter()
            .filter(|((device, of), k)| of == model && k.windows > 0 && runs.get(device) == Some(&k.digest))
            .map(|((device, _), k)| (device, k))
            .collect();
        let highest = devices.iter().map(|(_, k)| &k.version).max();
        let mixed = devices.iter().any(|(_, k)| Some(&k.version) != highest);
        let (mut canaries, mut controls) = (Vec::new(), Vec::new());
        for (device, known) in &devices {
            let cohort = if mixed && Some(&known.version) == highest { &mut canaries } else { &mut controls };
            cohort.push(known.moved(device));
        }
        let cause = attribute(&canaries, &controls);
        let moved = || devices.iter().filter(|(_, k)| !k.alarms.is_empty());
        let image = moved().any(|(_, k)| k.has(|s| matches!(s, Source::Image { .. })));
        let hint = match &cause {
            Cause::Devices(_) if image => "look at their lenses and their light",
            Cause::Devices(_) => "look at their sensors and at what feeds them",
            _ => "",
        };
        let details = moved().map(|(device, k)| format!("{device}: {}", k.in_words())).collect::<Vec<_>>();
        (cause, Words { hint: hint.to_owned(), details: details.join(". ") })
    }
}

/// What goes with a cause.
struct Words {
    hint: String,
    details: String,
}

fn cause_in_words(cause: &Cause, hint: &str) -> String {
    if hint.is_empty() { cause.to_string() } else { format!("{cause}; {hint}") }
}

impl Known {
    fn take(&mut self, report: &DriftReport) {
        if self.parts.0 != report.index {
            self.parts = (report.index, Vec::new());
        }
        self.parts.1.push(report.window.clone());
        if self.parts.1.len() < report.part.1 as usize {
            return;
        }
        // A window that cannot be joined or judged says nothing; it stays in the store for whoever looks.
        let Ok(window) = Window::join(std::mem::take(&mut self.parts.1)) else { return };
        if let Ok(verdicts) = self.judge.judge(&self.baseline, &window) {
            self.windows += 1;
            self.note(verdicts);
        }
    }

    /// An alarm stays until its feature is as the reference again; gathering and watching say neither.
    fn note(&mut self, verdicts: Vec<Verdict>) {
        for (at, verdict) in verdicts.into_iter().enumerate() {
            if verdict.is_alarm() {
                self.alarms.insert(at, verdict);
            } else if matches!(verdict.standing, Standing::Quiet(_)) {
                self.alarms.remove(&at);
            }
        }
    }

    fn has(&self, which: impl Fn(&Source) -> bool) -> bool {
        let sources = self.alarms.keys().filter_map(|at| self.baseline.features().get(*at));
        sources.map(|f| &f.source).any(which)
    }

    fn moved(&self, device: &DeviceId) -> Moved {
        let fault = self.alarms.values().any(|v| matches!(v.standing, Standing::Fault { .. }));
        Moved {
            device: device.clone(),
            inputs: self.has(|source| !source.is_output()),
            outputs: self.has(Source::is_output),
            fault,
        }
    }

    /// The named features first; projections only see what they say better.
    fn in_words(&self) -> String {
        let mut features: Vec<&Verdict> = self.alarms.values().collect();
        features.sort_by_key(|v| (v.feature.starts_with("projection "), v.feature != "sharpness"));
        let told: Vec<String> = features.iter().take(TOLD).map(|v| v.to_string()).collect();
        match features.len().saturating_sub(TOLD) {
            0 => told.join(", "),
            more => format!("{}, and {more} more", told.join(", ")),
        }
    }
}

/// Rebuilds everything after a start, then says what is not in the journal yet.
pub async fn rebuild(app: Arc<App>) {
    let devices: Vec<DeviceId> = app.fleet.read(|devices| devices.keys().cloned().collect());
    for device in &devices {
        for running in running(&app, device) {
            if !app.drift.is_known(device, &running) {
                app.drift.rebuild(&app, device, &running).await;
            }
        }
        tokio::task::yield_now().await;
    }
    let journal = app.store.events(None, JOURNAL).await.unwrap_or_default();
    let models: std::collections::BTreeSet<ModelName> =
        locked(&app.drift.known).keys().map(|(_, model)| model.clone()).collect();
    for model in &models {
        let (cause, words) = app.drift.attribution(&app, model);
        let now = cause_in_words(&cause, &words.hint);
        let last = journal.iter().find(|e| {
            e.code.starts_with("drift.") && e.device.is_none() && e.text.starts_with(&format!("{model}: "))
        });
        if last.is_some_and(|e| e.text.starts_with(&format!("{model}: {now}"))) {
            locked(&app.drift.told).insert(model.clone(), now);
        }
    }
    *locked(&app.drift.rebuilt) = true;
    for model in &models {
        app.drift.announce(&app, model).await;
    }
}

fn running(app: &App, device: &DeviceId) -> Vec<RunningModel> {
    let versions = app.trust.versions();
    let running = app.fleet.read(|devices| devices.get(device).map(|d| d.running(&versions)));
    running.unwrap_or_default().into_values().collect()
}

/// Whole windows, oldest first; one whose parts are not all there is left out.
async fn stored(app: &App, device: &DeviceId, model: &ModelName, digest: &Digest) -> Vec<Window> {
    let mut parts: BTreeMap<u64, Vec<(u32, Window)>> = BTreeMap::new();
    for record in app.store.drift(device, model, digest).await.unwrap_or_default() {
        let report = record.report;
        parts.entry(report.index).or_default().push((report.part.1, report.window));
    }
    let whole = parts.into_values().filter_map(|parts| {
        let complete = parts.iter().all(|(of, _)| *of as usize == parts.len());
        complete.then(|| Window::join(parts.into_iter().map(|(_, window)| window)).ok()).flatten()
    });
    whole.collect()
}
