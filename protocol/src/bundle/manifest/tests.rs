//! Each case changes one thing in a good manifest and expects the refusal that names it.

use super::*;
use serde_json::{Value, json};

fn good() -> Value {
    json!({
        "format": 1, "model": "meter", "version": "1.0.0", "created": "2026-01-01T00:00:00Z",
        "files": [
            {"path": "model.onnx", "size": 10, "sha256": Digest::of(b"m")},
            {"path": "golden/test_data_set_0/input_0.pb", "size": 3, "sha256": Digest::of(b"i")},
            {"path": "golden/test_data_set_0/output_0.pb", "size": 3, "sha256": Digest::of(b"o")}
        ],
        "variants": [{"name": "default", "entry": "model.onnx", "runtime": {"kind": "onnx", "opsets": {"": 17}}}],
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 64]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 10], "kind": "class_scores"}],
        "golden": {"origin": "supplied", "tolerance": {"absolute": 1e-4, "relative": 1e-3, "top1": true},
            "samples": [{"inputs": ["golden/test_data_set_0/input_0.pb"],
                         "outputs": ["golden/test_data_set_0/output_0.pb"]}]}
    })
}

fn check(change: impl FnOnce(&mut Value), expect: &str) {
    let mut value = good();
    change(&mut value);
    let error = Manifest::parse(value.to_string().as_bytes()).expect_err(expect).to_string();
    assert!(error.contains(expect), "{error:?} does not say {expect:?}");
}

#[test]
fn a_good_manifest_round_trips() {
    let manifest = Manifest::parse(good().to_string().as_bytes()).unwrap();
    assert_eq!(Manifest::parse(&manifest.to_bytes()).unwrap(), manifest);
    assert_eq!(manifest.total_bytes(), 16);
}

#[test]
fn each_way_to_be_bad_is_refused_by_name() {
    check(|v| v["format"] = json!(2), "format 2");
    check(|v| v["surprise"] = json!(1), "surprise");
    check(|v| v["model"] = json!("../x"), "model");
    check(|v| v["version"] = json!("one"), "version");
    check(|v| v["files"] = json!([]), "0 files");
    check(|v| v["files"][0]["path"] = json!("../../etc/passwd"), "starts with a dot");
    check(|v| v["files"][0]["path"] = json!("/etc/passwd"), "absolute");
    check(|v| v["files"][0]["sha256"] = json!("00"), "digest");
    check(|v| v["files"][0]["size"] = json!(u64::MAX), "bytes; at most");
    check(|v| v["files"][0]["path"] = json!("BUNDLE.json"), "cannot list itself");
    check(|v| v["files"][1]["path"] = json!("MODEL.onnx"), "listed twice");
    check(|v| v["files"][1]["path"] = json!("model.onnx/x"), "both a file and a folder");
    check(|v| v["variants"] = json!([]), "0 variants");
    check(|v| v["variants"][0]["entry"] = json!("other.onnx"), "other.onnx is not in `files`");
    check(|v| v["variants"][0]["runtime"] = json!({"kind": "magic"}), "magic");
    let many: Vec<String> = (0..=MAX_OPERATORS).map(|n| format!("Op{n}")).collect();
    check(|v| v["variants"][0]["runtime"]["operators"] = json!({"": many}), "lists 1025 operators");
    let limits = |ram: u64| json!({"timeout_ms": 1, "max_batch": 1, "queue": 1, "ram_bytes": ram});
    check(|v| v["limits"] = limits(0), "limits.ram_bytes");
    check(|v| v["inputs"] = json!([]), "0 inputs");
    check(|v| v["inputs"][0]["shape"] = json!([0]), "neither -1 nor positive");
    check(|v| v["inputs"][0]["shape"] = json!([-2]), "neither -1 nor positive");
    check(|v| v["inputs"][0]["shape"] = json!([i64::MAX, 2]), "elements");
    check(|v| v["inputs"][0]["shape"] = json!([1, 1, 1, 1, 1, 1, 1, 1, 1]), "9 dimensions");
    check(|v| v["inputs"][0]["datatype"] = json!("FP8"), "FP8");
    check(|v| v["golden"]["samples"] = json!([]), "no golden sample");
    check(|v| v["golden"]["samples"][0]["inputs"] = json!([]), "golden sample has 0 inputs");
    check(|v| v["golden"]["tolerance"]["absolute"] = json!(-1.0), "tolerance");
    check(|v| v["baseline"] = json!("baseline.json"), "baseline.json is not in `files`");
    check(|v| v["pre"] = json!([{"op": "sing", "tensor": "x"}]), "sing");
    check(
        |v| v["pre"] = json!([{"op": "normalize", "tensor": "x", "axis": 1, "mean": [0.0], "std": [0.0]}]),
        "std not zero",
    );
    let features = |features: Value| move |v: &mut Value| v["inputs"][0]["features"] = features;
    check(
        features(json!([{"name": "a", "kind": "numeric", "range": [2.0, 1.0]}])),
        "two finite numbers in order",
    );
    check(features(json!([{"name": "a", "kind": "numeric", "categories": ["1"]}])), "is not categorical");
    check(features(json!([{"name": "a", "kind": "categorical", "categories": ["red"]}])), "must be numbers");
    let own = json!([{"name": "a", "kind": "numeric", "policy": {"out_of_range": "refuse"}}]);
    check(features(own), "a states a range");
    check(|v| v["inputs"][0]["policy"] = json!({"out_of_range": "refuse"}), "no feature states a range");
    check(
        |v| v["inputs"][0]["policy"] = json!({"unknown_category": "refuse"}),
        "no feature states its categories",
    );
    check(|v| v["inputs"][0]["policy"] = json!({"missing": "shrug"}), "shrug");
    check(|v| v["inputs"][0]["policy"] = json!({"mising": "refuse"}), "mising");
    check(|v| v["limits"] = json!({"timeout_ms": 0, "max_batch": 1, "queue": 1}), "zero");
}

#[test]
fn a_policy_is_written_only_where_it_refuses_and_a_feature_may_have_its_own() {
    let plain = Manifest::parse(good().to_string().as_bytes()).unwrap();
    assert!(!String::from_utf8(plain.to_bytes()).unwrap().contains("policy"));
    let mut value = good();
    value["inputs"][0]["policy"] = json!({"missing": "refuse", "infinite": "count"});
    value["inputs"][0]["features"] = json!([
        {"name": "a", "kind": "numeric", "range": [0.0, 9.0], "policy": {"out_of_range": "refuse"}},
        {"name": "b", "kind": "categorical", "categories": ["1", "2.5"]},
    ]);
    let manifest = Manifest::parse(value.to_string().as_bytes()).unwrap();
    assert_eq!(Manifest::parse(&manifest.to_bytes()).unwrap(), manifest);
    let input = &manifest.inputs[0];
    assert_eq!(input.policy.refusals(), "missing");
    assert_eq!(input.features[0].policy.unwrap().refusals(), "out_of_range");
    assert!(ValueRule::ALL.iter().all(|rule| rule.as_str().parse() == Ok(*rule)));
}

#[test]
fn an_oversized_manifest_is_refused_before_it_is_parsed() {
    let bytes = vec![b' '; MAX_MANIFEST_BYTES as usize + 1];
    assert_eq!(Manifest::parse(&bytes), Err(ManifestError::TooBig(MAX_MANIFEST_BYTES + 1)));
}

#[test]
fn no_prefix_of_a_good_manifest_parses_or_panics() {
    let bytes = good().to_string().into_bytes();
    for end in 0..bytes.len() {
        assert!(Manifest::parse(&bytes[..end]).is_err(), "a prefix of {end} bytes was accepted");
    }
}
