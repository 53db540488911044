//! Streams in, streams out, on a real bundle.

use plimsoll_protocol::bundle::{Feature, FeatureKind};
use plimsoll_runtime::testing::{classifier, classifier_manifest, write_bundle};
use serde_json::Value;

use super::*;

/// A bundle whose columns are called flow, temp and door.
fn bundle() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut manifest = classifier_manifest(3, 2);
    manifest.limits.max_batch = 2;
    manifest.inputs[0].features =
        ["flow", "temp", "door"].map(|name| Feature::new(name, FeatureKind::Numeric)).into();
    let _ = write_bundle(dir.path(), &classifier(3, 2, 1.0), manifest);
    dir
}

fn infer(format: Format, on_error: OnError, input: &str) -> (Result<Counts, String>, Vec<Value>) {
    let dir = bundle();
    let options = Options { bundle: dir.path().to_owned(), format, on_error };
    let mut output = Vec::new();
    let counts = run(&options, input.as_bytes(), &mut output).map_err(|e| format!("{e:#}"));
    let lines = String::from_utf8(output).unwrap();
    (counts, lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

fn lines(answers: &[Value]) -> Vec<u64> {
    answers.iter().map(|a| a["line"].as_u64().unwrap()).collect()
}

#[test]
fn rows_are_answered_in_order_whatever_the_form() {
    let csv = "temp,target,flow,door\n1,x,0.5,0\n2,x,-1,1\n\n\"3\",\"a,\nb\",0,0\n";
    let (counts, by_csv) = infer(Format::Auto, OnError::Stop, csv);
    assert_eq!(counts, Ok(Counts { answered: 3, bad: 0 }));
    assert_eq!(lines(&by_csv), [2, 3, 5], "the line where each row begins");
    let sum: f64 = by_csv[0]["outputs"]["y"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).sum();
    assert!((sum - 1.0).abs() < 1e-5);

    let json = "{\"flow\": 0.5, \"temp\": 1, \"door\": 0, \"target\": \"x\"}\n[-1, 2, 1]\n\n{\"inputs\": [{\"name\": \"x\", \
                \"shape\": [1, 3], \"datatype\": \"FP32\", \"data\": [0, 3, 0]}]}";
    let (counts, by_json) = infer(Format::Auto, OnError::Stop, json);
    assert_eq!((counts, lines(&by_json)), (Ok(Counts { answered: 3, bad: 0 }), vec![1, 2, 4]));
    for (a, b) in by_csv.iter().zip(&by_json) {
        assert_eq!(a["outputs"], b["outputs"]);
    }
}

#[test]
fn a_bad_row_ends_the_run_or_is_skipped_and_counted() {
    let csv = "flow,temp,door\n1,2,3\n1,warm,3\n4,5\n7,8,9\n";
    let (ended, answers) = infer(Format::Csv, OnError::Stop, csv);
    let error = ended.unwrap_err();
    assert!(error.contains("line 3: column \"temp\": \"warm\" is not a number"), "{error}");
    assert!(error.contains("1 rows were answered"), "{error}");
    assert_eq!(lines(&answers), [2], "what came before it is answered");
    let (counts, answers) = infer(Format::Csv, OnError::Skip, csv);
    assert_eq!((counts, lines(&answers)), (Ok(Counts { answered: 2, bad: 2 }), vec![2, 5]));

    let json =
        "{\"flow\": 1, \"temp\": null, \"door\": 0}\n{\"flow\": 1}\nnonsense\n[1]\n7\n{\"inputs\": []}\n";
    let (counts, answers) = infer(Format::Jsonl, OnError::Skip, json);
    assert_eq!((counts, lines(&answers)), (Ok(Counts { answered: 1, bad: 5 }), vec![1]));
}

#[test]
fn the_input_policy_holds_here_as_in_service() {
    let dir = tempfile::tempdir().unwrap();
    let mut manifest = classifier_manifest(3, 2);
    manifest.inputs[0].policy.refuse(plimsoll_protocol::bundle::ValueRule::Missing);
    let _ = write_bundle(dir.path(), &classifier(3, 2, 1.0), manifest);
    let options = Options { bundle: dir.path().to_owned(), format: Format::Csv, on_error: OnError::Stop };
    let mut output = Vec::new();
    let ended = run(&options, "a,b,c\n1,2,3\n1,,3\n".as_bytes(), &mut output).map_err(|e| format!("{e:#}"));
    let error = ended.unwrap_err();
    assert!(
        error.contains("line 3: tensor \"x\", row 0, feature \"x[1]\": NaN is a missing value"),
        "{error}"
    );
    assert_eq!(output.iter().filter(|b| **b == b'\n').count(), 1, "the row before is answered");
}

#[test]
fn a_header_without_the_models_columns_and_an_empty_stream_are_told() {
    let (ended, _) = infer(Format::Csv, OnError::Skip, "flow,temperature,door\n1,2,3\n");
    assert!(ended.unwrap_err().contains("columns are missing: temp"));
    let (ended, _) = infer(Format::Csv, OnError::Skip, "");
    assert!(ended.is_err(), "no header");
    let (counts, _) = infer(Format::Jsonl, OnError::Stop, "");
    assert_eq!(counts, Ok(Counts::default()));
}
