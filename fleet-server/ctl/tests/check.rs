//! The real program on models that run, that do not, and that take their process with them.

#![allow(clippy::unwrap_used, reason = "a test's unwrap is an assertion, in its helpers too")]

use std::process::{Command, Output};

use plimsoll_protocol::bundle::DataType;
use plimsoll_runtime::testing::{classifier, graph, node};
use serde_json::Value;

struct Desk(tempfile::TempDir);

impl Desk {
    fn new(onnx: &[u8]) -> Self {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("model.onnx"), onnx).unwrap();
        Self(home)
    }

    fn run(&self, line: &str) -> Output {
        let words = line.split_whitespace();
        Command::new(env!("CARGO_BIN_EXE_plimsoll"))
            .args(words)
            .current_dir(&self.0)
            .env_clear()
            .output()
            .unwrap()
    }

    /// Its exit code, what it printed as JSON (`null` for nothing), and what it said.
    fn json(&self, line: &str) -> (i32, Value, String) {
        let output = self.run(&format!("--output json {line}"));
        let said = String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap(), serde_json::from_slice(&output.stdout).unwrap_or_default(), said)
    }
}

/// Of one node that no runtime has, and one that only another has.
fn foreign() -> Vec<u8> {
    let mut fused = node("FusedMatMul", "fused", &["a", "a"], &["y"]);
    fused.domain = "com.microsoft".into();
    graph(
        &[("x", DataType::Fp32, &[1, 3])],
        &[("y", DataType::Fp32, &[1, 3])],
        vec![],
        vec![node("Frobnicate", "odd", &["x"], &["a"]), fused],
    )
}

#[test]
fn a_model_that_runs_is_measured_in_text_and_json() {
    let desk = Desk::new(&classifier(3, 2, 1.0));
    let (code, report, _) = desk.json("model check model.onnx --shape x=5,3");
    assert_eq!((code, &report["runs"]), (0, &Value::Bool(true)), "{report}");
    assert_eq!(report["measured"]["shapes"], serde_json::json!([[5, 3]]));
    assert_eq!(report["description"]["opsets"][""], 13);
    let peak = report["measured"]["peak_rss_bytes"].as_u64().unwrap();
    assert!(peak > report["measured"]["base_rss_bytes"].as_u64().unwrap(), "{report}");
    let text = String::from_utf8(desk.run("model check model.onnx").stdout).unwrap();
    for words in ["runs on the agent", "Gemm 1, Softmax 1", "input     x: FP32 [-1, 3]", "at its peak"] {
        assert!(text.contains(words), "{words:?} is not in\n{text}");
    }
}

#[test]
fn a_model_that_does_not_run_exits_with_3_and_names_every_node() {
    let desk = Desk::new(&foreign());
    let (code, report, said) = desk.json("model check model.onnx");
    assert_eq!((code, report["problems"].as_array().unwrap().len()), (3, 2), "{report}");
    assert!(said.contains("2 problems"), "{said}");
    let text = String::from_utf8(desk.run("model check model.onnx").stdout).unwrap();
    assert!(
        text.contains("node \"odd\"") && text.contains("node \"fused\"") && text.contains("fusions"),
        "{text}"
    );
    // Packing asks first, says the same and leaves nothing behind.
    let (code, _, said) = desk.json("bundle pack model.onnx --model m --version 1.0.0 --out out");
    assert!(code == 3 && said.contains("odd") && said.contains("fused"), "{code} {said}");
    assert_eq!(std::fs::read_dir(&desk.0).unwrap().count(), 1);
}

#[test]
fn a_model_that_exhausts_its_memory_is_refused_by_a_command_that_lives() {
    // The product of a column and a row, within the 400 MB that a device of 500 MB would give it.
    let greedy = graph(
        &[("x", DataType::Fp32, &[1, -1])],
        &[("y", DataType::Fp32, &[-1, -1])],
        vec![],
        vec![node("Transpose", "column", &["x"], &["c"]), node("MatMul", "product", &["c", "x"], &["y"])],
    );
    let desk = Desk::new(&greedy);
    assert_eq!(desk.json("model check model.onnx").0, 0, "with a small input it runs");
    // 2 GiB in one piece: the runtime sees that it does not get them.
    let (code, report, said) = desk.json("model check model.onnx --shape x=1,23170 --ram 500MB");
    assert!(code == 3 && report.to_string().contains("failed to allocate"), "{report} {said}");
    // 225 MB, and once more as the answer: the process aborts.
    let (code, report, said) = desk.json("model check model.onnx --shape x=1,7500 --ram 500MB");
    assert_eq!((code, report), (3, Value::Null), "{said}");
    let words = ["ended the process that tried it: it aborted", "limited to 400.0 MB"];
    assert!(words.iter().all(|w| said.contains(w)), "{said}");
}

#[test]
fn what_cannot_be_tried_is_told_apart() {
    let desk = Desk::new(&classifier(3, 2, 1.0));
    for (line, code, words) in [
        ("model check nowhere.onnx", 1, "cannot read nowhere.onnx"),
        ("model check model.onnx --shape x=5,4", 2, "the model's is [-1, 3]"),
        ("model check model.onnx --golden .", 2, "test_data_set_0"),
        ("model check model.onnx --ram lots", 2, "MiB"),
        ("model confined", 2, "started by other commands"),
    ] {
        let (got, _, said) = desk.json(line);
        assert!(got == code && said.contains(words), "{line}: {got}: {said}");
    }
}

#[test]
fn memory_that_a_bundle_requires_is_the_models_and_not_the_packers() {
    let desk = Desk::new(&classifier(3, 2, 1.0));
    // Reference data that the packer holds whole, and a device never sees.
    let rows: String = (0..200_000).map(|i| format!("{i},1,2\n")).collect();
    std::fs::write(desk.0.path().join("ref.csv"), format!("a,b,c\n{rows}")).unwrap();
    let line = "bundle pack model.onnx --model m --version 1.0.0";
    let (code, packed, said) = desk.json(&format!("{line} --out small"));
    assert_eq!(code, 0, "{said}");
    assert!(packed["self_test"]["peak_rss_bytes"].as_u64().unwrap() > 0);
    assert_eq!(desk.json(&format!("{line} --out large --reference ref.csv")).0, 0);
    let needs = |dir: &str| -> u64 {
        let text = std::fs::read(desk.0.path().join(dir).join("bundle.json")).unwrap();
        serde_json::from_slice::<Value>(&text).unwrap()["requires"]["min_ram_bytes"].as_u64().unwrap()
    };
    let (small, large) = (needs("small"), needs("large"));
    assert!(large.abs_diff(small) < 4_000_000, "{small} and {large}: the same model");
}
