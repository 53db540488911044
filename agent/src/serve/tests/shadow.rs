//! A candidate beside the bundle that serves: what it sees, what it cannot do.

use std::sync::Arc;
use std::sync::mpsc::channel;

use plimsoll_protocol::Digest;
use plimsoll_protocol::bundle::Manifest;
use plimsoll_protocol::wire::v1::ShadowTotals;
use plimsoll_runtime::testing::classifier_manifest;
use plimsoll_runtime::{Data, Tensor};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::support::{Child, Run, bundle, bundle_with, gate_model, get, meter, post};
use crate::serve::control::{Answer, Order};
use crate::serve::hosted::Hosted;
use crate::serve::shadow::Shadow;

const INFER: &str = "/v2/models/meter/infer";

fn ask(values: [f32; 4]) -> Value {
    json!({ "inputs": [{ "name": "x", "shape": [1, 4], "datatype": "FP32", "data": values }] })
}

/// Version 1.1.0 of the classifier.
fn candidate(gain: f32) -> (TempDir, Manifest, Digest) {
    bundle_with(gain, Manifest { version: "1.1.0".parse().unwrap(), ..classifier_manifest(4, 3) })
}

fn shadow_order(digest: Digest, with: Digest, sample_percent: u32) -> Order {
    Order::Shadow { model: meter(), digest, with, sample_percent, seed: 11 }
}

/// Statistics until the shadow has compared so many rows.
async fn compared(child: &mut Child, rows: u64) -> ShadowTotals {
    loop {
        child.order(Order::Stats).await;
        let answer = child.answer().await;
        let Answer::Shadow { totals, .. } = answer else { panic!("no shadow: {answer:?}") };
        assert!(matches!(child.answer().await, Answer::Stats { .. }));
        if totals.rows + totals.skipped >= rows {
            return totals;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_candidate_is_asked_what_the_other_is_asked_and_answers_nobody() {
    for (gain, differ) in [(1.0, false), (-1.0, true)] {
        let ((old_dir, _, old), (new_dir, _, new)) = (bundle(1.0), candidate(gain));
        let (mut child, addr) = Child::listening().await;
        child.load(old_dir.path(), old).await;
        child.serve(old, 0).await;
        child.load(new_dir.path(), new).await;
        child.order(shadow_order(new, old, 100)).await;
        for n in 0..20_u8 {
            let reply = post(addr, INFER, &ask([f32::from(n), -1.0, 2.0, 0.5])).await;
            assert_eq!((reply.status, reply.json()["model_version"].as_str()), (200, Some("1.0.0")));
        }
        let totals = compared(&mut child, 20).await;
        assert!(totals.rows > 0 && totals.failed == 0, "{totals:?}");
        assert_eq!(totals.differ > totals.rows / 2, differ, "gain {gain}: {totals:?}");
        assert_eq!(totals.distance.unwrap().max > 0.01, differ, "{totals:?}");
        assert!(totals.candidate_p99_us >= totals.candidate_p50_us && totals.candidate_p50_us > 0);
        assert!(totals.current_p50_us > 0 && totals.memory_bytes > 0, "{totals:?}");
        let metrics = String::from_utf8(get(addr, "/metrics").await.body).unwrap();
        let line = "plimsoll_shadow_rows_total{model=\"meter\",version=\"1.1.0\"} ";
        assert!(metrics.contains(line), "{metrics}");
        // Nobody can ask it by its name, and nobody sees it in a list.
        assert_eq!(get(addr, "/v2/models/meter/versions/1.1.0").await.status, 404);
        let path = "/v2/models/meter/versions/1.1.0/infer";
        assert_eq!(post(addr, path, &ask([0.0; 4])).await.status, 404);
        assert_eq!(get(addr, "/v2/models/meter").await.json()["versions"], json!(["1.0.0"]));
    }
}

#[tokio::test]
async fn a_sample_is_a_share_of_the_requests_and_the_same_for_the_same_seed() {
    let ((old_dir, _, old), (new_dir, _, new)) = (bundle(1.0), candidate(1.0));
    let mut seen = Vec::new();
    for _ in 0..2 {
        let (mut child, addr) = Child::listening().await;
        child.load(old_dir.path(), old).await;
        child.serve(old, 0).await;
        child.load(new_dir.path(), new).await;
        child.order(shadow_order(new, old, 20)).await;
        for _ in 0..100 {
            assert_eq!(post(addr, INFER, &ask([1.0; 4])).await.status, 200);
        }
        // How many of the hundred are in the sample is known; waiting for that many waits for the last of them.
        let sample =
            (0..100_u64).filter(|n| plimsoll_agent_core::retry::mix(11 + n) % 100 < 20).count() as u64;
        assert!((8..40).contains(&sample), "{sample} of 100 at 20 %");
        let totals = compared(&mut child, sample).await;
        seen.push(totals.rows + totals.skipped);
        assert_eq!(seen.last(), Some(&sample));
    }
    assert_eq!(seen[0], seen[1]);
}

#[tokio::test]
async fn a_shadow_ends_with_either_bundle_and_when_the_candidate_serves() {
    let ((old_dir, _, old), (new_dir, _, new)) = (bundle(1.0), candidate(1.0));
    let (mut child, addr) = Child::listening().await;
    child.load(old_dir.path(), old).await;
    // What does not serve is nothing to be compared with, and what is not loaded cannot be.
    for (digest, why) in [(old, "does not serve"), (new, "not loaded")] {
        child.order(shadow_order(digest, old, 100)).await;
        let answer = child.answer().await;
        assert!(
            matches!(&answer, Answer::ShadowRefused { reason, .. } if reason.contains(why)),
            "{answer:?}"
        );
    }
    child.serve(old, 0).await;
    let unload = |digest| Order::Unload { model: meter(), digest, now_ms: 2 };
    for end in [Order::EndShadow { model: meter(), digest: new }, unload(new)] {
        child.load(new_dir.path(), new).await;
        child.order(shadow_order(new, old, 100)).await;
        assert_eq!(post(addr, INFER, &ask([1.0; 4])).await.status, 200);
        assert_eq!(compared(&mut child, 1).await.rows, 1);
        let leaves = matches!(end, Order::Unload { .. });
        child.order(end).await;
        if leaves {
            while !matches!(child.answer().await, Answer::Unloaded { .. }) {}
        }
        child.order(Order::Stats).await;
        let answer = child.answer().await;
        assert!(matches!(answer, Answer::Stats { .. }), "it goes on: {answer:?}");
        assert_eq!(post(addr, INFER, &ask([1.0; 4])).await.status, 200);
    }
    child.load(new_dir.path(), new).await;
    child.order(shadow_order(new, old, 100)).await;
    child.serve(new, 3).await;
    child.order(Order::Stats).await;
    assert!(matches!(child.answer().await, Answer::Stats { .. }), "it is compared with itself");
    let reply = post(addr, INFER, &ask([1.0; 4])).await;
    assert_eq!(reply.json()["model_version"], "1.1.0");
}

#[tokio::test]
async fn a_slow_candidate_misses_requests_and_delays_none_and_a_panic_is_told() {
    let (old_dir, _, old) = bundle(1.0);
    let current = Arc::new(Hosted::load(old_dir.path(), old, 0, Box::new(|_| ())).unwrap());
    let (model, digest, gate, _dir) = gate_model(|m| m.version = "1.1.0".parse().unwrap());
    let (fault, faults) = channel();
    let candidate = Hosted::start(model, digest, None, None, Box::new(|_| ())).unwrap();
    let on_fault = Box::new(move |why| fault.send(why).unwrap());
    let shadow = Shadow::start(current.clone(), &candidate, 100, 1, on_fault).unwrap();
    let ask = || vec![Tensor::new(vec![1, 4], Data::Fp32(vec![1.0; 4])).unwrap()];
    // It hangs on the first; the bundle that serves answers all the same.
    current.infer(ask()).await.unwrap();
    gate.wait_started().await;
    for _ in 0..20 {
        current.infer(ask()).await.unwrap();
    }
    let totals = shadow.totals();
    assert_eq!(totals.rows, 0);
    assert!(totals.skipped >= 16, "one is worked on, and few wait: {totals:?}");
    assert_eq!(shadow.stuck(), None);
    gate.allow.send(Run::Panic).unwrap();
    gate.wait_started().await;
    assert!(faults.recv().unwrap().contains("wishes"));
    assert_eq!((shadow.totals().rows, shadow.totals().failed, shadow.totals().differ), (1, 1, 1));
    drop(gate.allow); // it runs freely now
    let mut rows = 0;
    while rows < 4 {
        rows = shadow.totals().rows;
        tokio::task::yield_now().await;
    }
    assert_eq!(shadow.totals().differ, 1);
    drop(shadow);
    current.infer(ask()).await.unwrap();
}
