//! Each model's memory is told apart, and one that takes more than it may is told once.

use plimsoll_runtime::testing::{classifier_manifest, squares, write_bundle};
use serde_json::json;

use super::support::{Child, get, meter, post};
use crate::serve::control::{Answer, Order};

/// Bytes that the model may take: a hundred times what it needs for two rows.
const LIMIT: u64 = 20_000_000;
/// Rows whose product with themselves has 9 million elements: 36 MB.
const MANY: usize = 3_000;

#[tokio::test]
async fn a_request_that_takes_more_than_the_manifest_allows_is_answered_and_told_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut manifest = classifier_manifest(4, 4);
    manifest.limits.ram_bytes = Some(LIMIT);
    manifest.limits.max_batch = 2 * MANY as u32;
    let (_, digest) = write_bundle(dir.path(), &squares(0), manifest);
    let (mut child, addr) = Child::listening().await;
    child.load(dir.path(), digest).await;
    child.serve(digest, 1_000).await;

    let ask = async |rows: usize| {
        let x = json!({ "name": "x", "datatype": "FP32", "shape": [rows, 4], "data": vec![1; rows * 4] });
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
