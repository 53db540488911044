//! Self-tests of whole bundles.

use plimsoll_protocol::bundle::Manifest;

use super::{f32s, says};
use crate::testing::{classifier, classifier_manifest, write_bundle};
use crate::{Difference, Model, architecture, encode_tensor, read_sample, record_golden, self_test};

fn bundle() -> (tempfile::TempDir, Manifest) {
    let dir = tempfile::tempdir().unwrap();
    let (manifest, _) = write_bundle(dir.path(), &classifier(4, 3, 2.0), classifier_manifest(4, 3));
    (dir, manifest)
}

#[test]
fn a_recorded_bundle_passes_its_own_self_test() {
    let (dir, manifest) = bundle();
    let report = self_test(dir.path(), &manifest, architecture()).unwrap();
    assert!(report.ok, "{report:?}");
    assert_eq!((report.samples, report.max_abs_error, report.mismatch), (2, 0.0, None));
    assert!(report.peak_rss_bytes > 0);
    assert!(manifest.baseline.is_some());
}

#[test]
fn a_golden_sample_that_differs_is_named_by_sample_output_and_element() {
    let (dir, manifest) = bundle();
    let path = dir.path().join(manifest.golden.samples[1].outputs[0].as_str());
    let (_, expected) = read_sample(dir.path(), &manifest.golden.samples[1]).unwrap();
    let mut values = expected[0].to_f32();
    values[2] += 0.05;
    std::fs::write(&path, encode_tensor("", &f32s(&[1, 3], values))).unwrap();
    let report = self_test(dir.path(), &manifest, architecture()).unwrap();
    assert!(!report.ok);
    assert!((report.max_abs_error - 0.05).abs() < 1e-3, "{}", report.max_abs_error);
    let mismatch = report.mismatch.unwrap();
    assert_eq!((mismatch.sample, mismatch.output.as_str()), (1, "y"));
    assert!(matches!(mismatch.difference, Difference::Value { element: 2, .. }), "{mismatch:?}");
    assert!(mismatch.to_string().starts_with("golden sample 1, output \"y\": element 2 is 0."), "{mismatch}");
    // The report crosses a pipe as JSON.
    let line = serde_json::to_string(&mismatch).unwrap();
    assert_eq!(serde_json::from_str::<crate::Mismatch>(&line).unwrap(), mismatch);
}

#[test]
fn another_model_under_the_same_golden_samples_fails() {
    let (dir, manifest) = bundle();
    std::fs::write(dir.path().join("model.onnx"), classifier(4, 3, -2.0)).unwrap();
    assert!(!self_test(dir.path(), &manifest, architecture()).unwrap().ok);
}

#[test]
fn a_wide_tolerance_still_wants_the_same_class_to_win() {
    let (dir, mut manifest) = bundle();
    manifest.golden.tolerance.absolute = 10.0;
    std::fs::write(dir.path().join("model.onnx"), classifier(4, 3, -2.0)).unwrap();
    let report = self_test(dir.path(), &manifest, architecture()).unwrap();
    assert!(matches!(report.mismatch.unwrap().difference, Difference::Top1 { .. }));
    manifest.golden.tolerance.top1 = false;
    assert!(self_test(dir.path(), &manifest, architecture()).unwrap().ok);
}

#[test]
fn nan_is_never_within_tolerance_and_another_shape_is_told() {
    let (dir, mut manifest) = bundle();
    manifest.golden.tolerance.absolute = 1e9;
    let path = dir.path().join(manifest.golden.samples[0].outputs[0].as_str());
    std::fs::write(&path, encode_tensor("", &f32s(&[1, 3], vec![f32::NAN; 3]))).unwrap();
    let mismatch = self_test(dir.path(), &manifest, architecture()).unwrap().mismatch.unwrap();
    assert!(matches!(mismatch.difference, Difference::Value { expected: None, .. }), "{mismatch:?}");
    std::fs::write(&path, encode_tensor("", &f32s(&[3, 1], vec![0.3; 3]))).unwrap();
    let mismatch = self_test(dir.path(), &manifest, architecture()).unwrap().mismatch.unwrap();
    assert!(mismatch.to_string().contains("expected FP32 [3, 1]"), "{mismatch}");
}

#[test]
fn a_bundle_that_does_not_load_is_an_error_not_a_report() {
    let (dir, manifest) = bundle();
    let model = dir.path().join("model.onnx");
    let whole = std::fs::read(&model).unwrap();
    std::fs::write(&model, &whole[..whole.len() / 2]).unwrap();
    says(self_test(dir.path(), &manifest, architecture()), "model.onnx");
    std::fs::write(&model, whole).unwrap();
    std::fs::write(dir.path().join(manifest.golden.samples[0].inputs[0].as_str()), b"\xff").unwrap();
    says(self_test(dir.path(), &manifest, architecture()), "input_0.pb");
}

#[test]
fn recording_is_the_same_for_a_seed_and_other_for_another() {
    let (dir, manifest) = bundle();
    let model = Model::load(dir.path(), &manifest, &manifest.variants[0]).unwrap();
    assert_eq!(record_golden(&model, 3, 1).unwrap(), record_golden(&model, 3, 1).unwrap());
    assert_ne!(record_golden(&model, 3, 1).unwrap(), record_golden(&model, 3, 2).unwrap());
}

#[test]
fn a_model_that_takes_more_memory_than_its_manifest_allows_is_refused_with_both_numbers() {
    let (dir, mut manifest) = bundle();
    // Resident memory only grows here: what a test of this process took before is not counted.
    manifest.limits.ram_bytes = Some(1 << 40);
    assert!(self_test(dir.path(), &manifest, architecture()).unwrap().ok);
    let home = tempfile::tempdir().unwrap();
    let large = classifier(4_000, 2_000, 1.0);
    let mut manifest = classifier_manifest(4_000, 2_000);
    crate::testing::add_file(home.path(), &mut manifest, "model.onnx", &large);
    manifest.limits.ram_bytes = Some(1_000_000);
    says(
        self_test(home.path(), &manifest, architecture()),
        "limits.ram_bytes of its bundle.json allows 1000000",
    );
}
