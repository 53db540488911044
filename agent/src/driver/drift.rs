//! The device's own verdict: have its data moved away from what the model was trained on?
//!
//! The serving child counts; the driver judges, because it outlives the child. A closed window is compared with the
//! signed baseline in the slot, by the same [`Judge`] that the server uses, and an alarm is an event in words, told
//! once when it begins and once when it is over. A device without a network knows of its blurred lens all the same:
//! `plimsoll-agent status` says so.
//!
//! What the judge remembers is written to one small file after every round of windows, after the events went to the
//! outbox: a crash in between tells an alarm twice, never not at all. A file that cannot be read is a judge that
//! knows nothing yet. Another version has another baseline: what was known about the old one is forgotten.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use plimsoll_protocol::bundle::{MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest};
use plimsoll_protocol::drift::{Baseline, Judge, MAX_BASELINE_BYTES, Standing, Verdict, Window};
use plimsoll_protocol::wire::v1::{DriftReport, Event, Severity};
use plimsoll_protocol::{Digest, ModelName};
use serde::{Deserialize, Serialize};

use super::reports::cut;
use crate::control::DriftAlarm;
use crate::files::{self, FileError, PUBLIC};

/// 8 models x 256 features x (20 counts of up to 8 digits and 80 bytes around them) are under 1 MiB.
const MAX_FILE: u64 = 1024 * 1024;
/// Features told in full in one event; a blurred lens moves a dozen at once, and four lines fit its 600 bytes.
const TOLD: usize = 4;

/// What is known about one model in service.
#[derive(Debug, Serialize, Deserialize)]
struct Judged {
    version: semver::Version,
    digest: Digest,
    judge: Judge,
    /// Features in alarm, with the words they were last told in.
    alarms: BTreeMap<String, String>,
}

/// Parts of the window that is being received.
#[derive(Debug)]
struct Parts {
    digest: Digest,
    index: u64,
    windows: Vec<Window>,
}

/// All judges of a device.
#[derive(Debug)]
pub(super) struct Drifts {
    path: PathBuf,
    judged: BTreeMap<ModelName, Judged>,
    /// Read from the slots when the first window comes; `None` for a bundle whose baseline cannot be used.
    baselines: BTreeMap<ModelName, (Digest, Option<Baseline>)>,
    parts: BTreeMap<ModelName, Parts>,
    changed: bool,
}

impl Drifts {
    /// Remembers what was known before the restart.
    pub fn open(state: &Path) -> Self {
        let path = state.join("drift.json");
        let read = files::read_limited(&path, MAX_FILE).ok();
        let judged = read.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        Self { path, judged, baselines: BTreeMap::new(), parts: BTreeMap::new(), changed: false }
    }

    /// Takes a part of a closed window of the version that runs; `slot` is where its bundle lies. Gives what is worth
    /// telling, which is nothing until the last part is there.
    pub fn take(&mut self, report: &DriftReport, slot: &Path) -> Vec<Event> {
        let Some(window) = self.join(report) else { return Vec::new() };
        let mut events = self.begin(report);
        let known = self.baselines.get(&report.model).is_some_and(|(digest, _)| *digest == report.digest);
        if !known {
            let baseline = read_baseline(slot, report.digest);
            if let Err(why) = &baseline {
                tracing::warn!(model.name = %report.model, why, "the drift baseline cannot be used");
            }
            self.baselines.insert(report.model.clone(), (report.digest, baseline.ok()));
        }
        let Some((_, Some(baseline))) = self.baselines.get(&report.model) else { return events };
        let judged = self.judged.entry(report.model.clone()).or_insert_with(|| Judged {
            version: report.version.clone(),
            digest: report.digest,
            judge: Judge::new(baseline),
            alarms: BTreeMap::new(),
        });
        match judged.judge.judge(baseline, &window) {
            Ok(verdicts) => events.extend(judged.compare(&report.model, &verdicts)),
            Err(error) => tracing::warn!(model.name = %report.model, %error, "a window could not be judged"),
        }
        self.changed = true;
        events
    }

    /// Puts parts together. A part of another window ends the one before: its missing parts will not come.
    fn join(&mut self, report: &DriftReport) -> Option<Window> {
        let (digest, index) = (report.digest, report.index);
        let fresh = || Parts { digest, index, windows: Vec::new() };
        let parts = self.parts.entry(report.model.clone()).or_insert_with(fresh);
        if (parts.digest, parts.index) != (digest, index) {
            *parts = fresh();
        }
        parts.windows.push(report.window.clone());
        if parts.windows.len() < report.part.1 as usize {
            return None;
        }
        let parts = self.parts.remove(&report.model)?;
        Window::join(parts.windows)
            .inspect_err(|error| tracing::warn!(%error, "a window could not be joined"))
            .ok()
    }

    /// Forgets the version before; its alarms are over with it.
    fn begin(&mut self, report: &DriftReport) -> Vec<Event> {
        if self.judged.get(&report.model).is_none_or(|judged| judged.digest == report.digest) {
            return Vec::new();
        }
        let old = self.judged.remove(&report.model);
        let old = old.filter(|judged| !judged.alarms.is_empty());
        let told = old.map(|judged| {
            let text = format!(
                "{} {} drifted in {} and runs no more; {} is compared with its own reference",
                report.model,
                judged.version,
                listed(judged.alarms.keys()),
                report.version
            );
            event(Severity::Info, "drift.cleared", text, &report.model, judged.digest)
        });
        told.into_iter().collect()
    }

    /// What is in alarm now, of the versions that `runs` says are in service.
    pub fn alarms(&self, runs: impl Fn(&ModelName, Digest) -> bool) -> Vec<DriftAlarm> {
        let in_service = self.judged.iter().filter(|(model, judged)| runs(model, judged.digest));
        let drifting = in_service.filter(|(_, judged)| !judged.alarms.is_empty());
        let alarm = |(model, judged): (&ModelName, &Judged)| DriftAlarm {
            model: model.clone(),
            version: judged.version.clone(),
            features: judged.alarms.values().cloned().collect(),
        };
        drifting.map(alarm).collect()
    }

    /// Writes what is known about models that still run, when something changed.
    pub fn save(&mut self, runs: impl Fn(&ModelName) -> bool) -> Result<(), FileError> {
        if !std::mem::take(&mut self.changed) {
            return Ok(());
        }
        self.judged.retain(|model, _| runs(model));
        self.baselines.retain(|model, _| runs(model));
        let json = serde_json::to_vec(&self.judged).unwrap_or_default(); // keys are texts, numbers finite: cannot fail
        files::write_atomic(&self.path, &json, PUBLIC).inspect_err(|_| self.changed = true)
    }
}

impl Judged {
    /// What began and what is over. A feature that is merely watched, or gathers samples, stays as it was told.
    fn compare(&mut self, model: &ModelName, verdicts: &[Verdict]) -> Vec<Event> {
        let (mut began, mut over): (Vec<&Verdict>, Vec<&Verdict>) = (Vec::new(), Vec::new());
        for verdict in verdicts {
            if verdict.is_alarm() {
                if self.alarms.insert(verdict.feature.clone(), verdict.to_string()).is_none() {
                    began.push(verdict);
                }
            } else if matches!(verdict.standing, Standing::Quiet(_))
                && self.alarms.remove(&verdict.feature).is_some()
            {
                over.push(verdict);
            }
        }
        began.sort_by(|a, b| weight(b).total_cmp(&weight(a)));
        let mut events = Vec::new();
        if !began.is_empty() {
            // A missing or stuck sensor is told as loudly as drift: both mean that the answers are not to be trusted.
            let text = format!("{model} {} on this device: {}", self.version, in_words(&began));
            events.push(event(Severity::Alarm, "drift.alarm", text, model, self.digest));
        }
        if !over.is_empty() {
            let rest = match self.alarms.len() {
                0 => "nothing drifts any more".to_owned(),
                _ => format!("still in alarm: {}", listed(self.alarms.keys())),
            };
            let names = listed(over.iter().map(|v| &v.feature));
            let text =
                format!("{model} {} on this device: {names} as the reference again; {rest}", self.version);
            events.push(event(Severity::Info, "drift.cleared", text, model, self.digest));
        }
        events
    }
}

/// Faults first, then what is told by a name that people know, then by how far it moved: sixteen projections see what
/// one sharpness says better.
fn weight(verdict: &Verdict) -> f64 {
    match &verdict.standing {
        Standing::Fault { .. } => f64::MAX,
        Standing::Drift(shift) if verdict.feature.starts_with("projection ") => shift.psi / 1000.0,
        Standing::Drift(shift) => shift.psi,
        _ => 0.0,
    }
}

fn in_words(began: &[&Verdict]) -> String {
    let (told, rest) = began.split_at(TOLD.min(began.len()));
    let mut words = told.iter().map(|v| v.to_string()).collect::<Vec<_>>().join("; ");
    if !rest.is_empty() {
        words.push_str(&format!("; and {}", listed(rest.iter().map(|v| &v.feature))));
    }
    words
}

fn listed<'a>(names: impl Iterator<Item = &'a String>) -> String {
    names.map(String::as_str).collect::<Vec<_>>().join(", ")
}

fn event(severity: Severity, code: &str, text: String, model: &ModelName, digest: Digest) -> Event {
    Event {
        severity,
        code: code.to_owned(),
        text: cut(text),
        model: Some(model.clone()),
        digest: Some(digest),
    }
}

/// The baseline that the signed manifest names, byte for byte: the slot was verified when it was made, and is checked
/// again because a disk forgets.
fn read_baseline(slot: &Path, digest: Digest) -> Result<Baseline, String> {
    let read = |path: &Path, max| files::read_limited(path, max).map_err(|e| crate::causes(&e));
    let bytes = read(&slot.join(MANIFEST_FILE), MAX_MANIFEST_BYTES)?;
    if Digest::of(&bytes) != digest {
        return Err(format!("{MANIFEST_FILE} of the slot is damaged"));
    }
    let manifest = Manifest::parse(&bytes).map_err(|e| e.to_string())?;
    let path = manifest.baseline.as_ref().ok_or("the bundle has no baseline")?;
    let entry =
        manifest.files.iter().find(|f| f.path == *path).ok_or("the manifest does not list its baseline")?;
    let bytes = read(&slot.join(path.as_str()), MAX_BASELINE_BYTES as u64)?;
    if Digest::of(&bytes) != entry.sha256 {
        return Err(format!("{path} of the slot is damaged"));
    }
    Baseline::parse(&bytes).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests;
