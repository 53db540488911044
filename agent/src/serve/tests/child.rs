//! The control channel: loads, swaps, windows, the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use plimsoll_protocol::Digest;
use plimsoll_protocol::drift::{Baseline, Window};
use plimsoll_protocol::wire::v1::MAX_REPORT_BYTES;
use serde_json::json;

use super::support::{Child, bundle, get, meter, post};
use crate::serve::bundle::{self_test_line, verify_files};
use crate::serve::child::Said;
use crate::serve::control::{Answer, Order, SelfTestLine};

const INFER: &str = "/v2/models/meter/infer";

fn ask(value: f32) -> serde_json::Value {
    json!({ "inputs": [{ "name": "x", "shape": [1, 4], "datatype": "FP32", "data": [value, 0, 0, 0] }] })
}

#[tokio::test]
async fn a_swap_under_load_loses_no_request_and_ends_on_the_new_bundle() {
    let ((old_dir, _, old), (new_dir, _, new)) = (bundle(1.0), bundle(2.0));
    let (mut child, addr) = Child::listening().await;
    child.load(old_dir.path(), old).await;
    child.serve(old, 0).await;

    let stop = Arc::new(AtomicBool::new(false));
    let (answered, lost) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let (stop, answered, lost) = (stop.clone(), answered.clone(), lost.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let reply = post(addr, INFER, &ask(1.0)).await;
                    let count = if reply.status == 200 { &answered } else { &lost };
                    count.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let more = async |n: u64| {
        let goal = answered.load(Ordering::Relaxed) + n;
        while answered.load(Ordering::Relaxed) < goal && lost.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
    };
    // Back and forth, each time from a bundle that is busy to one that is loaded anew.
    for (dir, from, to) in [(&new_dir, old, new), (&old_dir, new, old), (&new_dir, old, new)] {
        more(20).await;
        child.load(dir.path(), to).await;
        child.serve(to, 1).await;
        child.order(Order::Unload { model: meter(), digest: from, now_ms: 2 }).await;
        loop {
            match child.answer().await {
                Answer::Window(_) => {}
                Answer::Unloaded { digest, .. } => break assert_eq!(digest, from),
                other => panic!("{other:?}"),
            }
        }
    }
    more(20).await;
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
    assert_eq!(lost.load(Ordering::Relaxed), 0);
    let answer = post(addr, INFER, &ask(1.0)).await.json();
    assert!(answer["parameters"]["prediction_id"].as_str().unwrap().starts_with(&new.short()));
    child.order(Order::Stats).await;
    let Answer::Stats { models, rss_bytes } = child.answer().await else { panic!("no statistics") };
    assert_eq!(models.len(), 1, "the old bundle is out of memory: {models:?}");
    assert!(rss_bytes > 0 && models[0].p99_us >= models[0].p50_us && models[0].p50_us > 0);
}

#[tokio::test]
async fn a_bundle_that_cannot_be_loaded_leaves_the_one_that_serves() {
    let (dir, _, digest) = bundle(1.0);
    let (mut child, addr) = Child::listening().await;
    child.load(dir.path(), digest).await;
    child.serve(digest, 0).await;
    let (bad_dir, _, bad) = bundle(3.0);
    let model = bad_dir.path().join("model.onnx");
    let whole = std::fs::read(&model).unwrap();
    std::fs::write(&model, &whole[..whole.len() / 2]).unwrap();
    let nowhere = bad_dir.path().join("nowhere");
    let other = Digest::of(b"another bundle");
    for (dir, digest, expect) in [
        (bad_dir.path(), bad, "model.onnx"),
        (bad_dir.path(), other, "has digest"),
        (&nowhere, bad, "cannot read"),
    ] {
        child.order(Child::load_order(dir, digest)).await;
        match child.answer().await {
            Answer::LoadFailed { digest: d, reason, .. } => {
                assert_eq!(d, digest);
                assert!(reason.contains(expect), "{reason:?} does not say {expect:?}");
            }
            other => panic!("{other:?}"),
        }
    }
    // Neither can it be served, nor does anything of this reach the caller.
    child.order(Order::Serve { model: meter(), digest: bad, now_ms: 0 }).await;
    assert!(matches!(child.answer().await, Answer::Fault { digest: Some(d), .. } if d == bad));
    assert_eq!(post(addr, INFER, &ask(0.0)).await.status, 200);
}

#[tokio::test]
async fn a_window_counts_what_was_asked_and_the_next_one_starts_empty() {
    let (dir, manifest, digest) = bundle(1.0);
    let path = dir.path().join(manifest.baseline.as_ref().unwrap().as_str());
    let baseline = Baseline::parse(&std::fs::read(path).unwrap()).unwrap();
    let (mut child, addr) = Child::listening().await;
    child.load(dir.path(), digest).await;
    child.serve(digest, 1_000).await;
    for n in 0..5 {
        assert_eq!(post(addr, INFER, &ask(n as f32)).await.status, 200);
    }
    let (first, index) = close(&mut child, &baseline, Order::CloseWindows { now_ms: 2_000 }).await;
    assert_eq!((first.opened, first.closed, index), (1_000, 2_000, 5), "counted on from the driver's number");
    assert_eq!((first.served.requests, first.served.failed), (5, 0));
    // A row is counted just after its answer has left, so the last may have missed the first window; what is left
    // when the bundle is out of memory has missed none.
    let unload = Order::Unload { model: meter(), digest, now_ms: 3_000 };
    let (second, index) = close(&mut child, &baseline, unload).await;
    assert_eq!((second.opened, second.closed, index), (2_000, 3_000, 6));
    assert_eq!(first.samples + second.samples, 5);
    assert_eq!(second.served.requests, 0);
}

#[tokio::test]
async fn an_idle_window_is_reported_too_and_an_idle_bundle_has_none() {
    let ((dir, manifest, digest), (other, _, candidate)) = (bundle(1.0), bundle(2.0));
    let path = dir.path().join(manifest.baseline.as_ref().unwrap().as_str());
    let baseline = Baseline::parse(&std::fs::read(path).unwrap()).unwrap();
    let (mut child, _) = Child::listening().await;
    child.load(dir.path(), digest).await;
    child.load(other.path(), candidate).await;
    child.serve(digest, 1_000).await;
    for now_ms in [2_000, 3_000] {
        let (window, _) = close(&mut child, &baseline, Order::CloseWindows { now_ms }).await;
        assert_eq!((window.samples, window.served.requests, window.closed), (0, 0, now_ms));
    }
}

/// Gives an order that closes one window, joins its parts and checks it against its baseline.
async fn close(child: &mut Child, baseline: &Baseline, order: Order) -> (Window, u64) {
    child.order(order).await;
    let mut parts = Vec::new();
    let mut index = 0;
    loop {
        match child.answer().await {
            Answer::Window(report) => {
                assert!(
                    serde_json::to_vec(&report).unwrap().len() < MAX_REPORT_BYTES - 250,
                    "room for the envelope"
                );
                index = report.index;
                parts.push(report.window);
            }
            Answer::WindowsClosed { .. } | Answer::Unloaded { .. } => break,
            other => panic!("{other:?}"),
        }
    }
    let window = Window::join(parts).unwrap();
    window.check(baseline).unwrap();
    (window, index)
}

#[tokio::test]
async fn orders_out_of_turn_are_faults_and_not_the_end() {
    let mut child = Child::start();
    let (dir, _, digest) = bundle(1.0);
    child.order(Child::load_order(dir.path(), digest)).await;
    assert!(
        matches!(child.answer().await, Answer::LoadFailed { reason, .. } if reason.contains("not configured"))
    );
    child.orders.send(Said::Garbage("expected value".into())).await.unwrap();
    assert!(
        matches!(child.answer().await, Answer::Fault { reason, .. } if reason.contains("expected value"))
    );
    child.order(Order::Unload { model: meter(), digest, now_ms: 0 }).await;
    assert_eq!(child.answer().await, Answer::Unloaded { model: meter(), digest });
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap();
    child
        .order(Order::Configure {
            listen,
            socket: None,
            bridge: None,
            max_body: 1,
            agent_version: "0".into(),
        })
        .await;
    assert!(matches!(child.answer().await, Answer::ListenFailed { addr, .. } if addr == listen));
}

#[tokio::test]
async fn the_end_of_the_orders_is_the_end_of_the_child() {
    let (dir, _, digest) = bundle(1.0);
    let (mut child, addr) = Child::listening().await;
    child.load(dir.path(), digest).await;
    child.serve(digest, 0).await;
    assert_eq!(get(addr, "/v2/health/live").await.status, 200);
    drop(child.orders);
    assert_eq!(child.answers.recv().await, Some(Answer::Drained));
    child.task.await.unwrap();
    assert!(tokio::net::TcpStream::connect(addr).await.is_err(), "nothing listens any more");
}

#[test]
fn a_self_test_prints_a_report_or_the_reason_and_exits_by_it() {
    let (dir, manifest, _) = bundle(1.0);
    let (line, status) = self_test_line(dir.path());
    assert!(matches!(&line, SelfTestLine::Report(r) if r.ok && r.samples == 2) && status == 0, "{line:?}");
    let json = serde_json::to_string(&line).unwrap();
    assert_eq!(serde_json::from_str::<SelfTestLine>(&json).unwrap(), line);

    let golden = dir.path().join(manifest.golden.samples[0].outputs[0].as_str());
    let other = dir.path().join(manifest.golden.samples[1].outputs[0].as_str());
    std::fs::copy(other, golden).unwrap();
    let (line, status) = self_test_line(dir.path());
    assert!(matches!(&line, SelfTestLine::Report(r) if r.mismatch.is_some()) && status == 3, "{line:?}");

    std::fs::write(dir.path().join("model.onnx"), b"\x08").unwrap();
    let (line, status) = self_test_line(dir.path());
    assert!(matches!(&line, SelfTestLine::Broken { .. }) && status == 4, "{line:?}");
}

#[test]
fn a_folder_is_served_only_when_every_file_is_the_listed_one() {
    let (dir, _, digest) = bundle(1.0);
    assert_eq!(verify_files(dir.path()).unwrap().1, digest);
    let path = dir.path().join("baseline.json");
    let good = std::fs::read(&path).unwrap();
    let mut tampered = good.clone();
    tampered[10] ^= 1;
    std::fs::write(&path, &tampered).unwrap();
    assert!(verify_files(dir.path()).unwrap_err().to_string().contains("baseline.json is not the file"));
    std::fs::write(&path, &good[1..]).unwrap();
    assert!(verify_files(dir.path()).unwrap_err().to_string().contains("bundle.json says"));
    std::fs::remove_file(&path).unwrap();
    assert!(verify_files(dir.path()).unwrap_err().to_string().contains("baseline.json"));
}
