use plimsoll_protocol::bundle::Manifest;

use super::*;

const RESERVE: u64 = 16 * 1024 * 1024;

/// A bundle of 1 MB that needs 32 MB of memory, with this `requires` and these architectures of its only variant.
fn manifest(requires: &str, variant: &str) -> Manifest {
    let zero = "0".repeat(64);
    let text = format!(
        r#"{{"format":1,"model":"meter","version":"1.0.0","created":"2026-01-01T00:00:00Z",
            "files":[{{"path":"m.onnx","size":1000000,"sha256":"{zero}"}}],
            "variants":[{{"name":"v","entry":"m.onnx","runtime":{{"kind":"onnx","opsets":{{"":17}}}}{variant}}}],
            "inputs":[{{"name":"x","datatype":"FP32","shape":[-1,2]}}],
            "outputs":[{{"name":"y","datatype":"FP32","shape":[-1,1]}}],
            "golden":{{"origin":"supplied","tolerance":{{"absolute":0.1,"relative":0.1}},
                "samples":[{{"inputs":["m.onnx"],"outputs":["m.onnx"]}}]}},
            "requires":{{"min_ram_bytes":32000000{requires}}}}}"#
    );
    Manifest::parse(text.as_bytes()).unwrap()
}

fn device() -> Device {
    Device {
        architecture: "aarch64".into(),
        agent_version: semver::Version::new(0, 1, 0),
        ram_bytes: 32_000_000,
        disk_free_bytes: 1_000_000 + RESERVE,
        already_staged_bytes: 0,
        disk_reserve_bytes: RESERVE,
        quota_left_bytes: None,
        max_opset: 17,
        engines: BTreeSet::new(),
        operators: BTreeMap::from([names("", &["Gemm", "Relu"]), names("ai.onnx.ml", &["Scaler"])]),
    }
}

fn names(domain: &str, names: &[&str]) -> (String, BTreeSet<String>) {
    (domain.to_owned(), names.iter().map(|n| (*n).to_owned()).collect())
}

#[test]
fn operators_that_the_runtime_lacks_are_named_with_their_domain() {
    let uses = |lists: &[(String, BTreeSet<String>)]| {
        let mut manifest = manifest("", "");
        if let RuntimeKind::Onnx { operators, .. } = &mut manifest.variants[0].runtime {
            operators.extend(lists.iter().cloned());
        }
        manifest
    };
    let all = [names("", &["Gemm", "Relu"]), names("ai.onnx.ml", &["Scaler"])];
    assert_eq!(preflight(&uses(&all), &device()), Ok(()));
    assert_eq!(preflight(&uses(&[]), &device()), Ok(()), "a bundle that lists none says nothing");
    refused(&uses(&[names("", &["Gemm", "Loop"])]), &device(), "operator Loop of ai.onnx, which");
    // The same name in another domain is another operator.
    refused(&uses(&[names("my.company", &["Gemm"])]), &device(), "Gemm of my.company");
    refused(&uses(&[names("z", &["A", "B", "C", "D", "E"])]), &device(), "A of z, B of z, C of z and 2 more");
    refused(&uses(&[names("", &["Loop"])]), &device(), "update the agent");
}

fn refused(manifest: &Manifest, device: &Device, word: &str) {
    let why = preflight(manifest, device).unwrap_err();
    assert!(why.contains("meter 1.0.0") && why.contains(word), "{why}");
}

#[test]
fn a_device_that_has_just_what_is_needed_can_run_it() {
    assert_eq!(preflight(&manifest("", ""), &device()), Ok(()));
    let both = manifest(
        r#","architectures":["aarch64"],"agent_version":"0.1.0""#,
        r#","architectures":["aarch64"]"#,
    );
    assert_eq!(preflight(&both, &device()), Ok(()));
}

#[test]
fn each_thing_that_is_missing_is_named() {
    let any = manifest("", "");
    refused(
        &manifest(r#","architectures":["x86_64","armv7"]"#, ""),
        &device(),
        "armv7, x86_64; this device is aarch64",
    );
    refused(&manifest("", r#","architectures":["x86_64"]"#), &device(), "no variant for aarch64");
    refused(&manifest(r#","agent_version":"0.2.0""#, ""), &device(), "needs agent 0.2.0");
    refused(&any, &Device { ram_bytes: 31_999_999, ..device() }, "32000000 bytes of memory");
    refused(&any, &Device { max_opset: 16, ..device() }, "operator set 17");
    let mut plan = any.clone();
    plan.variants[0].runtime = RuntimeKind::External { engine: "tensorrt".into() };
    refused(&plan, &device(), "set `selftest` in [engines.tensorrt]");
    let with_engine = Device { engines: ["tensorrt".to_owned()].into(), max_opset: 0, ..device() };
    assert_eq!(preflight(&plan, &with_engine), Ok(()));
    refused(&any, &Device { disk_free_bytes: 1_000_000 + RESERVE - 1, ..device() }, "bytes of disk");
    refused(&any, &Device { quota_left_bytes: Some(999_999), ..device() }, "models_bytes");
    assert_eq!(preflight(&any, &Device { quota_left_bytes: Some(1_000_000), ..device() }), Ok(()));
}

#[test]
fn what_an_interrupted_fetch_has_put_there_is_not_needed_twice() {
    let device = Device { disk_free_bytes: RESERVE, already_staged_bytes: 1_000_000, ..device() };
    assert_eq!(preflight(&manifest("", ""), &device), Ok(()));
    let too_much = Device { already_staged_bytes: u64::MAX, disk_free_bytes: RESERVE, ..device };
    assert_eq!(preflight(&manifest("", ""), &too_much), Ok(()));
}
