//! Each model's memory is told apart, and one that takes more than it may is told once.

use plimsoll_runtime::testing::{squares, squares_manifest, write_bundle};
use serde_json::json;

use super::support::{Child, get, meter, post};
use crate::serve::control::{Answer, Order};

/// Bytes that the model may take: a hundred times what it needs for two elements.
const LIMIT: u64 = 20_000_000;
/// Elements whose product with themselves has 9 million: 36 MB.
const MANY: usize = 3_000;

#[tokio::test]
async fn a_request_that_takes_more_than_the_manifest_allows_is_answered_and_told_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut manifest = squares_manifest();
    manifest.limits.ram_bytes = Some(LIMIT);
    let (_, digest) = write_bundle(dir.path(), &squares(0), manifest);
    let (mut child, addr) = Child::listening().await;
    child.load(dir.path(), digest).await;
    child.serve(digest, 1_000).await;

    let ask = async |elements: usize| {
        let x = json!({ "name": "x", "datatype": "FP32", "shape": [1, elements], "data": vec![1; elements] });
        let reply = post(addr, "/v2/models/meter/infer", &json!({ "inputs": [x] })).await;
        assert_eq!(reply.status, 200, "{reply:?}");
    };
    let memory = async |child: &mut Child| {
        child.order(Order::Stats).await;
        loop {
            match child.answer().await {
                Answer::Stats { models, .. } => break models[0].memory_bytes,
                Answer::Fault { .. } => panic!("a fault that nobody expected"),
                _ => {}
            }
        }
    };
    ask(2).await;
    let little = memory(&mut child).await;
    assert!((1_000..LIMIT).contains(&little), "{little}");

    ask(MANY).await;
    let Answer::Fault { model, digest: of, reason } = child.answer().await else { panic!("it is not told") };
    assert_eq!((model, of), (Some(meter()), Some(digest)));
    assert!(reason.contains("meter 1.0.0 took") && reason.contains("limits.ram_bytes"), "{reason}");
    ask(MANY).await;
    let most = memory(&mut child).await;
    assert!(most > 36_000_000, "{most}");
    let page = String::from_utf8(get(addr, "/metrics").await.body).unwrap();
    assert!(
        page.contains(&format!("plimsoll_model_memory_bytes{{model=\"meter\",version=\"1.0.0\"}} {most}"))
    );
}

#[tokio::test]
async fn a_candidate_that_takes_more_than_its_manifest_allows_is_told_in_its_shadow() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (_, old) = write_bundle(dirs[0].path(), &squares(0), squares_manifest());
    let mut manifest = squares_manifest();
    manifest.version = "1.1.0".parse().unwrap();
    manifest.limits.ram_bytes = Some(LIMIT);
    let (_, new) = write_bundle(dirs[1].path(), &squares(0), manifest);
    let (mut child, addr) = Child::listening().await;
    child.load(dirs[0].path(), old).await;
    child.serve(old, 1_000).await;
    child.load(dirs[1].path(), new).await;
    child.order(Order::Shadow { model: meter(), digest: new, with: old, sample_percent: 100, seed: 1 }).await;

    let x = json!({ "name": "x", "datatype": "FP32", "shape": [1, MANY], "data": vec![1; MANY] });
    assert_eq!(post(addr, "/v2/models/meter/infer", &json!({ "inputs": [x] })).await.status, 200);
    let Answer::Fault { digest, reason, .. } = child.answer().await else { panic!("it is not told") };
    assert!(digest == Some(new) && reason.contains("meter 1.1.0 took"), "{reason}");
    child.order(Order::Stats).await;
    let Answer::Shadow { totals, .. } = child.answer().await else { panic!("no shadow") };
    assert!(totals.memory_bytes > 36_000_000, "{totals:?}");
}
