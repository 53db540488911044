//! What the story relies on, with the story's own images, reference, model and pace.

use std::path::{Path, PathBuf};

use plimsoll_protocol::bundle::Manifest;
use plimsoll_protocol::drift::{Baseline, Judge, Order, Standing, Verdict, Window};
use plimsoll_runtime::features::{Featurizer, fit_baseline};
use plimsoll_runtime::{Data, Model, Tensor};
use plimsoll_tests::Replay;
use serde_json::json;

use super::*;

/// 20 requests a second for 5 s.
const SAMPLES: usize = 100;
/// A camera that is slowed down by a loaded machine.
const SLOW_SAMPLES: usize = 70;

struct Camera {
    baseline: Baseline,
    featurizer: Featurizer,
    model: Model,
    replay: Replay,
    lens: Lens,
    judge: Judge,
    next: usize,
}

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// As `plimsoll bundle pack` sees the model.
fn manifest() -> Manifest {
    let zero = "00".repeat(32);
    let paths = ["model.onnx", "golden/input_0.pb", "golden/output_0.pb"];
    let files: Vec<_> = paths.iter().map(|path| json!({ "path": path, "size": 1, "sha256": zero })).collect();
    let manifest = json!({
        "format": 1, "model": "meter-reader", "version": "1.1.0", "created": "2026-01-01T00:00:00Z", "files": files,
        "variants": [{ "name": "default", "entry": "model.onnx",
                       "runtime": { "kind": "onnx", "opsets": { "": 17 } } }],
        "inputs": [{ "name": "pixels", "datatype": "FP32", "shape": [-1, 1, 8, 8], "content": "image" }],
        "outputs": [{ "name": "scores", "datatype": "FP32", "shape": [-1, 10], "kind": "class_scores" }],
        "golden": { "origin": "supplied", "tolerance": { "absolute": 1e-4, "relative": 1e-3 },
                    "samples": [{ "inputs": [paths[1]], "outputs": [paths[2]] }] },
    });
    Manifest::parse(manifest.to_string().as_bytes()).unwrap()
}

fn tensors(pixels: Vec<f32>) -> Vec<Tensor> {
    vec![Tensor::new(vec![1, 1, SIDE, SIDE], Data::Fp32(pixels)).unwrap()]
}

impl Camera {
    /// Begins at another image of the replay set, like each camera of the story.
    fn new(first: usize) -> Self {
        let manifest = manifest();
        let model = Model::load(&here("models/1.1.0"), &manifest, &manifest.variants[0]).unwrap();
        let reference = std::fs::read_to_string(here("data/reference.csv")).unwrap();
        let rows =
            reference.lines().skip(1).map(|line| line.split(',').map(|p| p.parse().unwrap()).collect());
        let answered: Vec<_> = rows
            .map(|pixels| {
                let inputs = tensors(pixels);
                let outputs = model.infer(inputs.clone()).unwrap();
                (inputs, outputs)
            })
            .collect();
        let baseline = fit_baseline(&manifest, &answered, Order::Unordered).unwrap().unwrap();
        Self {
            featurizer: Featurizer::new(&manifest, &baseline).unwrap(),
            judge: Judge::new(&baseline),
            replay: Replay::read(&here("data/replay.csv")).unwrap(),
            lens: Lens::default(),
            next: first,
            baseline,
            model,
        }
    }

    /// Reads meters for one window and judges it.
    fn window(&mut self, samples: usize) -> Vec<Verdict> {
        let mut window = Window::open(&self.baseline, 0);
        for _ in 0..samples {
            let image = &self.replay.images[self.next % self.replay.images.len()];
            self.next += 1;
            let inputs = tensors(self.lens.see(image));
            let outputs = self.model.infer(inputs.clone()).unwrap();
            self.featurizer.rows(&inputs, &outputs, |row| window.observe(&self.baseline, row).unwrap());
        }
        self.judge.judge(&self.baseline, &window).unwrap()
    }

    fn alarms(&mut self, samples: usize) -> Vec<String> {
        let verdicts = self.window(samples).into_iter();
        verdicts.filter(|v| v.is_alarm()).map(|v| v.to_string()).collect()
    }
}

#[test]
fn sharp_cameras_raise_nothing_over_a_hundred_windows() {
    for (camera, samples) in
        [SAMPLES, SLOW_SAMPLES, SAMPLES, SLOW_SAMPLES, SAMPLES, 93].into_iter().enumerate()
    {
        let mut sharp = Camera::new(camera * 497 / 6);
        for window in 0..100 {
            let alarms = sharp.alarms(samples);
            assert!(alarms.is_empty(), "camera {camera}, window {window}: {alarms:?}");
        }
    }
}

#[test]
fn a_blurred_camera_is_in_verdict_within_three_windows_whenever_it_begins() {
    for (camera, sharp_windows) in [(0, 0), (1, 1), (4, 2), (4, 3), (5, 50)] {
        for samples in [SAMPLES, SLOW_SAMPLES] {
            let mut blurred = Camera::new(camera * 497 / 6);
            (0..sharp_windows).for_each(|_| drop(blurred.window(samples)));
            blurred.lens.blur();
            let alarms: Vec<_> = (0..3).map(|_| blurred.alarms(samples)).collect();
            let last = &alarms[2];
            assert!(
                last.iter().any(|text| text.starts_with("sharpness fell from ")),
                "after {sharp_windows} sharp windows of {samples}: {alarms:?}"
            );
        }
    }
}

#[test]
fn a_blurred_lens_keeps_its_pixels_in_range_and_takes_the_sharpness() {
    let mut camera = Camera::new(0);
    let sharp = camera.replay.images[0].clone();
    camera.lens.blur();
    let seen = camera.lens.see(&sharp);
    assert_eq!(seen.len(), sharp.pixels.len());
    assert!(seen.iter().all(|p| (0.0..=1.0).contains(p)));
    let verdicts = camera.window(400);
    let sharpness = verdicts.iter().find(|v| v.feature == "sharpness").unwrap();
    let Standing::Watch(shift) = &sharpness.standing else { panic!("{sharpness}") };
    let (before, now) = shift.means.unwrap();
    assert!(now < before / 5.0, "{before} to {now}");
}
