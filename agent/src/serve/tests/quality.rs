//! What a request may hold, and what becomes of its answer: the input policy, and labels that come late.

use plimsoll_protocol::bundle::{Feature, FeatureKind, ValueRule};
use plimsoll_protocol::drift::{Baseline, Window};
use plimsoll_protocol::wire::v1::{DriftReport, ModelHealth};
use plimsoll_protocol::{Digest, UnixMillis};
use plimsoll_runtime::testing::classifier_manifest;
use serde_json::{Value, json};

use super::support::{Child, Reply, bundle_with, get, meter, post};
use crate::serve::control::{Answer, Order};

const INFER: &str = "/v2/models/meter/infer";
const FEEDBACK: &str = "/v2/models/meter/feedback";

fn ask(data: Value) -> Value {
    json!({ "inputs": [{ "name": "x", "shape": [1, 4], "datatype": "FP32", "data": data }] })
}

async fn health(child: &mut Child) -> Vec<ModelHealth> {
    child.order(Order::Stats).await;
    match child.answer().await {
        Answer::Stats { models, .. } => models,
        other => panic!("{other:?}"),
    }
}

/// The windows that an order closes, whole, by bundle.
async fn windows(child: &mut Child, order: Order) -> Vec<(Digest, Window)> {
    child.order(order).await;
    let mut parts: Vec<DriftReport> = Vec::new();
    loop {
        match child.answer().await {
            Answer::Window(report) => parts.push(*report),
            Answer::WindowsClosed { .. } | Answer::Unloaded { .. } => break,
            other => panic!("{other:?}"),
        }
    }
    let mut whole: Vec<(Digest, Window)> = Vec::new();
    while let Some(digest) = parts.first().map(|p| p.digest) {
        let (mine, rest): (Vec<_>, Vec<_>) = parts.into_iter().partition(|p| p.digest == digest);
        whole.push((digest, Window::join(mine.into_iter().map(|p| p.window)).unwrap()));
        parts = rest;
    }
    whole
}

fn unload(digest: Digest, now_ms: UnixMillis) -> Order {
    Order::Unload { model: meter(), digest, now_ms }
}

#[tokio::test]
async fn a_refused_value_is_named_and_counted_and_its_row_is_measured_all_the_same() {
    let mut manifest = classifier_manifest(4, 3);
    let names = ["flow", "temp", "level", "door"];
    manifest.inputs[0].features = names.map(|name| Feature::new(name, FeatureKind::Numeric)).into();
    manifest.inputs[0].features[0].range = Some((-10.0, 10.0));
    manifest.inputs[0].policy.refuse(ValueRule::Missing);
    let (dir, manifest, digest) = bundle_with(1.0, manifest);
    let path = dir.path().join(manifest.baseline.as_ref().unwrap().as_str());
    let baseline = Baseline::parse(&std::fs::read(path).unwrap()).unwrap();
    let (mut child, addr) = Child::listening().await;
    child.load(dir.path(), digest).await;
    child.serve(digest, 1_000).await;

    let refused = post(addr, INFER, &ask(json!([0.5, null, 0, 0]))).await;
    assert_eq!(refused.status, 400, "{refused:?}");
    let words = refused.json()["error"].as_str().unwrap().to_owned();
    assert!(words.contains("tensor \"x\", row 0, feature \"temp\": NaN is a missing value"), "{words}");
    assert!(words.contains("(missing: refuse)"), "{words}");
    assert_eq!(
        post(addr, INFER, &ask(json!([99, 0, 0, 0]))).await.status,
        200,
        "out of range is let through"
    );
    assert_eq!(post(addr, INFER, &ask(json!([0.5, 0, 0]))).await.status, 400, "malformed");

    let models = health(&mut child).await;
    assert_eq!((models[0].requests, models[0].refused), (1, 2));
    let page = String::from_utf8(get(addr, "/metrics").await.body).unwrap();
    let line = "plimsoll_inference_refused_total{model=\"meter\",version=\"1.0.0\",reason=\"missing\"} 1";
    assert!(page.contains(line), "{page}");

    let closed = windows(&mut child, unload(digest, 2_000)).await;
    let window = &closed[0].1;
    window.check(&baseline).unwrap();
    assert_eq!((window.samples, window.unanswered, window.served.requests), (2, 1, 1));
    let quality = window.quality;
    assert_eq!((quality.values.missing, quality.values.out_of_range), (1, 1));
    assert_eq!((quality.refused.missing, quality.refused.out_of_range, quality.malformed), (1, 0, 1));
    let temp = baseline.features().iter().position(|f| f.name == "temp").unwrap();
    assert_eq!(
        window.features[temp].faults(&baseline.features()[temp]),
        [0, 1, 0],
        "the sensor's fault shows"
    );
}

async fn predict(addr: std::net::SocketAddr, path: &str) -> (String, usize) {
    let answer = post(addr, path, &ask(json!([1, 2, 3, 4]))).await.json();
    let id = answer["parameters"]["prediction_id"].as_str().unwrap().to_owned();
    let scores = answer["outputs"][0]["data"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap());
    let best = scores.enumerate().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0;
    (id, best)
}

#[tokio::test]
async fn a_label_goes_to_the_version_that_answered_also_after_it_is_gone() {
    let (dir, _, digest) = bundle_with(1.0, classifier_manifest(4, 3));
    let mut newer = classifier_manifest(4, 3);
    newer.version = "2.0.0".parse().unwrap();
    newer.outputs[0].labels = ["low", "fine", "high"].map(String::from).into();
    let (dir_2, _, digest_2) = bundle_with(-1.0, newer);
    let (mut child, addr) = Child::listening().await;
    child.load(dir.path(), digest).await;
    child.serve(digest, 1_000).await;
    let (old, class) = predict(addr, INFER).await;
    let (wrong, _) = predict(addr, INFER).await;
    let said = |reply: &Reply| reply.json()["error"].as_str().unwrap_or_default().to_owned();

    let taken = post(addr, FEEDBACK, &json!({ "prediction_id": wrong, "label": (class + 1) % 3 })).await;
    assert_eq!((taken.status, taken.json()["correct"].as_u64()), (200, Some(0)), "{taken:?}");
    let twice = post(addr, FEEDBACK, &json!({ "prediction_id": wrong, "label": class })).await;
    assert!(twice.status == 409 && said(&twice).contains("the first one counts"), "{twice:?}");

    // Another version takes over, and the first leaves the memory with its window.
    child.load(dir_2.path(), digest_2).await;
    child.serve(digest_2, 2_000).await;
    let (new, class_2) = predict(addr, INFER).await;
    let first = windows(&mut child, unload(digest, 3_000)).await;
    assert_eq!((first[0].1.truth.labelled, first[0].1.truth.correct), (1, 0));

    let labels = ["low", "fine", "high"];
    let list = json!([
        { "prediction_id": old, "label": class },
        { "prediction_id": new, "label": labels[class_2] },
        { "prediction_id": new.clone() + "0", "label": 0 },
    ]);
    let taken = post(addr, FEEDBACK, &list).await;
    let answer = taken.json();
    assert_eq!(
        (taken.status, &answer["taken"], &answer["correct"]),
        (200, &json!(2), &json!(2)),
        "{taken:?}"
    );
    assert_eq!(answer["versions"], json!(["1.0.0", "2.0.0"]));
    assert_eq!((&answer["refused"]["count"], &answer["refused"]["first"][0]["at"]), (&json!(1), &json!(2)));
    let closed = windows(&mut child, Order::CloseWindows { now_ms: 4_000 }).await;
    let of = |digest| closed.iter().find(|(d, _)| *d == digest).map(|(_, w)| (w.samples, w.truth)).unwrap();
    assert_eq!((of(digest).0, of(digest).1.correct), (0, 1), "a window with the label and nothing else");
    assert_eq!((of(digest_2).1.labelled, of(digest_2).1.unknown), (1, 1));

    // The first one comes back into memory: its next window counts on, and its answers are still known.
    let (late, _) = {
        child.load(dir.path(), digest).await;
        child.serve(digest, 5_000).await;
        predict(addr, INFER).await
    };
    assert_eq!(post(addr, FEEDBACK, &json!({ "prediction_id": late, "label": 0 })).await.status, 200);
    let again = post(addr, FEEDBACK, &json!({ "prediction_id": old, "label": class })).await;
    assert_eq!(again.status, 409, "{again:?}");

    let other_life = format!("{}-00000008-0", digest.short());
    for (body, status, words) in [
        (json!({ "prediction_id": other_life, "label": 0 }), 410, "none after a restart"),
        (
            json!({ "prediction_id": format!("{}-00000007-ffff", digest.short()), "label": 0 }),
            404,
            "no answer was given",
        ),
        (
            json!({ "prediction_id": "0123456789ab-00000007-0", "label": 0 }),
            404,
            "no version of model \"meter\"",
        ),
        (json!({ "prediction_id": "last one", "label": 0 }), 400, "no prediction id"),
        (json!({ "prediction_id": new }), 400, "exactly one of"),
        (json!({ "prediction_id": new, "label": "huge" }), 400, "there are low, fine, high"),
        (json!({ "prediction_id": new, "lable": 0 }), 400, "lable"),
        (json!([]), 400, "no label"),
    ] {
        let reply = post(addr, FEEDBACK, &body).await;
        assert!(reply.status == status && said(&reply).contains(words), "{body}: {reply:?}");
    }
    let versioned = "/v2/models/meter/versions/1.0.0/feedback";
    let reply = post(addr, versioned, &json!({ "prediction_id": new, "label": 0 })).await;
    assert!(reply.status == 400 && said(&reply).contains("version 2.0.0 gave it, not 1.0.0"), "{reply:?}");
    assert_eq!(get(addr, FEEDBACK).await.status, 405);
}
