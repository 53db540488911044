//! Windows as the serving child sends them, from a lens that blurs and is cleaned.

use plimsoll_protocol::drift::{Cell, Column, Order, Source};
use serde_json::{Value, json};

use super::*;

fn column(name: &str, values: impl Fn(u32) -> f32) -> Column {
    let source = Source::Input { tensor: "x".into(), index: 0 };
    let values = (0..500).map(|i| Cell::from(values(i))).collect();
    Column { name: name.into(), source, range: None, categorical: false, values }
}

fn baseline() -> Baseline {
    let sharpness = column("sharpness", |i| (i * 37 % 500) as f32 / 500.0);
    let brightness = column("brightness", |i| (i * 53 % 500) as f32 / 100.0);
    Baseline::fit(&[sharpness, brightness], Order::Unordered).unwrap()
}

/// A slot with a baseline, and its name.
fn slot(dir: &Path, version: &str) -> (PathBuf, Digest) {
    let bytes = baseline().to_bytes();
    let zero = "00".repeat(32);
    let file = |path: &str| json!({ "path": path, "size": 1, "sha256": zero });
    let manifest = json!({
        "format": 1, "model": "meter", "version": version, "created": "2026-01-01T00:00:00Z",
        "files": [{ "path": "baseline.json", "size": bytes.len(), "sha256": Digest::of(&bytes) },
                  file("model.onnx"), file("golden/input_0.pb"), file("golden/output_0.pb")],
        "variants": [{"name": "default", "entry": "model.onnx", "runtime": {"kind": "onnx", "opsets": {"": 17}}}],
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 10]}],
        "golden": {"origin": "supplied", "tolerance": {"absolute": 1e-4, "relative": 1e-3},
            "samples": [{"inputs": ["golden/input_0.pb"], "outputs": ["golden/output_0.pb"]}]},
        "baseline": "baseline.json",
    });
    let manifest = manifest.to_string().into_bytes();
    let digest = Digest::of(&manifest);
    let slot = dir.join(digest.to_string());
    std::fs::create_dir(&slot).unwrap();
    std::fs::write(slot.join(MANIFEST_FILE), manifest).unwrap();
    std::fs::write(slot.join("baseline.json"), bytes).unwrap();
    (slot, digest)
}

struct Device {
    state: tempfile::TempDir,
    drifts: Drifts,
    index: u64,
    version: &'static str,
    slot: PathBuf,
    digest: Digest,
}

impl Device {
    fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        let (slot, digest) = slot(state.path(), "1.0.0");
        Self { drifts: Drifts::open(state.path()), state, index: 0, version: "1.0.0", slot, digest }
    }

    /// Nothing is said, nothing is flushed but what was saved.
    fn restart(&mut self) {
        self.drifts = Drifts::open(self.state.path());
    }

    fn update(&mut self, version: &'static str) {
        (self.slot, self.digest) = slot(self.state.path(), version);
        self.version = version;
    }

    fn reports(&mut self, blurred: bool) -> Vec<DriftReport> {
        let baseline = baseline();
        let mut window = Window::open(&baseline, 0);
        for i in 0..100u32 {
            let at = (self.index as u32 * 100 + i) % 500;
            let sharpness = if blurred { 0.001 } else { (at * 37 % 500) as f32 / 500.0 };
            window.observe(&baseline, &[sharpness.into(), ((at * 53 % 500) as f32 / 100.0).into()]).unwrap();
        }
        let (digest, index) = (self.digest, self.index);
        self.index += 1;
        let parts = window.split(1);
        let of = parts.len() as u32;
        let report = |(part, window)| DriftReport {
            model: "meter".parse().unwrap(),
            version: self.version.parse().unwrap(),
            digest,
            index,
            part: (part, of),
            window,
        };
        (0..of).zip(parts).map(report).collect()
    }

    /// Closes a window; what was told.
    fn window(&mut self, blurred: bool) -> Vec<Event> {
        let reports = self.reports(blurred);
        assert_eq!(reports.len(), 2, "two parts, of which the first tells nothing");
        assert_eq!(self.drifts.take(&reports[0], &self.slot), []);
        let events = self.drifts.take(&reports[1], &self.slot);
        self.drifts.save(|_| true).unwrap();
        events
    }
}

fn codes(events: &[Event]) -> Vec<&str> {
    events.iter().map(|e| e.code.as_str()).collect()
}

#[test]
fn a_blurred_lens_is_told_once_with_numbers_and_told_again_when_it_is_over() {
    let mut device = Device::new();
    for _ in 0..20 {
        assert_eq!(device.window(false), []);
    }
    let told: Vec<Event> = (0..6).flat_map(|_| device.window(true)).collect();
    let [alarm] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!((alarm.code.as_str(), alarm.severity), ("drift.alarm", Severity::Alarm));
    assert!(
        alarm.text.starts_with("meter 1.0.0 on this device: sharpness fell from 0.499"),
        "{}",
        alarm.text
    );
    assert!(alarm.text.contains("; PSI ") && !alarm.text.contains("brightness"), "{}", alarm.text);
    assert_eq!(device.drifts.alarms(|_, _| true)[0].features.len(), 1);
    let told: Vec<Event> = (0..20).flat_map(|_| device.window(false)).collect();
    assert_eq!(codes(&told), ["drift.cleared"]);
    assert!(told[0].text.contains("sharpness as the reference again; nothing drifts"), "{}", told[0].text);
    assert_eq!(device.drifts.alarms(|_, _| true), []);
}

#[test]
fn what_the_judge_knows_survives_a_restart() {
    let mut device = Device::new();
    let mut told = Vec::new();
    for _ in 0..6 {
        told.extend(device.window(true));
        device.restart();
    }
    assert_eq!(codes(&told), ["drift.alarm"], "a judge that forgot would need two windows again and again");
    assert!(device.drifts.alarms(|_, _| true)[0].features[0].starts_with("sharpness fell"));
    std::fs::write(device.state.path().join("drift.json"), "spoilt").unwrap();
    device.restart();
    let told: Vec<Event> = (0..3).flat_map(|_| device.window(true)).collect();
    assert_eq!(codes(&told), ["drift.alarm"], "what cannot be read is learnt again");
}

#[test]
fn another_version_begins_anew() {
    let mut device = Device::new();
    (0..3).for_each(|_| drop(device.window(true)));
    device.update("1.1.0");
    let runs = |_: &ModelName, digest| digest == device.digest;
    assert_eq!(device.drifts.alarms(runs), [], "what runs no more is not in alarm");
    let told = device.window(true);
    assert_eq!(codes(&told), ["drift.cleared"]);
    assert!(told[0].text.contains("meter 1.0.0 drifted in sharpness and runs no more"), "{}", told[0].text);
    let told: Vec<Event> = (0..2).flat_map(|_| device.window(true)).collect();
    assert!(told[0].text.starts_with("meter 1.1.0"), "{told:?}");
}

#[test]
fn a_baseline_that_is_not_what_was_signed_judges_nothing() {
    let mut device = Device::new();
    let path = device.slot.join("baseline.json");
    let mut forged: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    forged["features"][0]["mean"] = json!(7.0);
    std::fs::write(&path, forged.to_string()).unwrap();
    for _ in 0..5 {
        assert_eq!(device.window(true), []);
    }
    let error = read_baseline(&device.slot, device.digest).unwrap_err();
    assert!(error.contains("baseline.json of the slot is damaged"), "{error}");
}
