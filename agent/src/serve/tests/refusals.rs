//! Every malformed request is refused with a status and words that name the tensor and the problem.

use std::path::Path;

use plimsoll_runtime::testing::classifier_manifest;
use serde_json::json;

use super::support::{Child, MAX_BODY, bundle, get, meter, post, send};
use crate::serve::control::{Answer, Order};
use crate::serve::oip;

const INFER: &str = "/v2/models/meter/infer";

/// A file of `agent/tests/requests`.
struct Bad {
    name: String,
    expect: String,
    json_length: Option<String>,
    body: Vec<u8>,
}

fn corpus() -> Vec<Bad> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/requests");
    let mut all: Vec<Bad> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name() != "README.md")
        .map(|entry| {
            let bytes = std::fs::read(entry.path()).unwrap();
            let split = bytes.windows(2).position(|w| w == b"\n\n").expect("an empty line");
            let head = std::str::from_utf8(&bytes[..split]).unwrap();
            let field = |name: &str| head.lines().find_map(|l| l.strip_prefix(name)).map(str::to_owned);
            Bad {
                name: entry.file_name().into_string().unwrap(),
                expect: field("expect: ").expect("what to expect"),
                json_length: field("json-length: "),
                body: bytes[split + 2..].to_vec(),
            }
        })
        .collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(all.len() > 60, "the corpus is there");
    all
}

#[tokio::test]
async fn malformed_requests_are_refused_by_name_and_the_next_one_is_answered() {
    let (dir, _, digest) = bundle(1.0);
    let (mut child, addr) = Child::listening().await;
    child.load(dir.path(), digest).await;
    child.serve(digest, 0).await;
    let corpus = corpus();
    for bad in &corpus {
        let header = bad.json_length.as_deref().map(|length| ("Inference-Header-Content-Length", length));
        let reply = send(addr, "POST", INFER, header.as_slice(), &bad.body).await;
        assert_eq!(reply.status, 400, "{}: {reply:?}", bad.name);
        let error = reply.json()["error"].as_str().unwrap().to_owned();
        assert!(error.contains(&bad.expect), "{}: {error:?} does not say {:?}", bad.name, bad.expect);
        assert!(error.len() < 700, "{}: an error is a line, not the request again: {error}", bad.name);
    }
    let good = json!({ "name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0, 0, 0, 0] });
    let reply = post(addr, INFER, &json!({ "inputs": [good] })).await;
    assert_eq!(reply.status, 200, "{reply:?}");

    child.order(Order::Stats).await;
    let Answer::Stats { models, .. } = child.answer().await else { panic!("no statistics") };
    assert_eq!((models[0].requests, models[0].failed, models[0].refused), (1, 0, corpus.len() as u64));
}

#[test]
fn no_prefix_and_no_flipped_byte_of_a_request_crashes_the_parser() {
    let manifest = classifier_manifest(4, 3);
    for bad in corpus() {
        let length = bad.json_length.and_then(|l| l.parse().ok());
        let short = &bad.body[..bad.body.len().min(400)];
        for at in 0..short.len() {
            let _ = oip::read(&short[..at], length, &manifest);
            let mut flipped = short.to_vec();
            flipped[at] ^= 0x15;
            let _ = oip::read(&flipped, length, &manifest);
        }
    }
}

#[tokio::test]
async fn wrong_paths_methods_sizes_and_headers_have_their_own_status() {
    let (dir, _, digest) = bundle(1.0);
    let (mut child, addr) = Child::listening().await;
    assert_eq!(get(addr, "/v2/health/ready").await.status, 503, "nothing is served yet");
    child.load(dir.path(), digest).await;
    assert_eq!(get(addr, "/v2/models/meter/ready").await.status, 404, "loaded is not served");
    child.serve(digest, 0).await;

    let good =
        json!({ "inputs": [{ "name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0, 0, 0, 0] }] });
    let check = |reply: super::support::Reply, status: u16, expect: &str| {
        assert_eq!(reply.status, status, "{reply:?}");
        let error = reply.json()["error"].as_str().unwrap_or_default().to_owned();
        assert!(error.contains(expect), "{error:?} does not say {expect:?}");
    };
    check(get(addr, "/").await, 404, "not a path");
    check(get(addr, "/v1/models/meter").await, 404, "not a path");
    check(get(addr, "/v2/models/meter/infer/more").await, 404, "not a path");
    check(get(addr, "/v2/models/nobody").await, 404, "\"nobody\" is not served here; served are [\"meter\"]");
    check(get(addr, "/v2/models/..%2f..").await, 404, "is not served");
    check(post(addr, "/v2/models/nobody/infer", &good).await, 404, "nobody");
    check(post(addr, "/v2/models/meter/versions/2.0.0/infer", &good).await, 404, "served in version 1.0.0");
    check(get(addr, INFER).await, 405, "use POST");
    assert_eq!(get(addr, INFER).await.header("allow").as_deref(), Some("POST"));
    check(send(addr, "DELETE", "/v2/models/meter", &[], b"").await, 405, "use GET");
    check(send(addr, "POST", "/v2/repository/models/meter/load", &[], b"").await, 403, "signed bundles");
    check(send(addr, "POST", "/v2/repository/models/meter/unload", &[], b"").await, 403, "signed bundles");

    let large = vec![b' '; MAX_BODY as usize + 1];
    check(send(addr, "POST", INFER, &[], &large).await, 413, "larger than 65536 bytes");
    let claimed = send(addr, "POST", INFER, &[("Content-Length", "99999999999")], b"").await;
    check(claimed, 413, "larger than");
    let mut chunked = format!("{:x}\r\n", large.len()).into_bytes();
    chunked.extend(&large);
    chunked.extend(b"\r\n0\r\n\r\n");
    let chunked = send(addr, "POST", INFER, &[("Transfer-Encoding", "chunked")], &chunked).await;
    check(chunked, 413, "larger than");

    let text = good.to_string();
    let header = |value: &'static str| [("Inference-Header-Content-Length", value)];
    check(send(addr, "POST", INFER, &header("many"), text.as_bytes()).await, 400, "not a number");
    check(send(addr, "POST", INFER, &header("999999"), text.as_bytes()).await, 400, "but the body has");
    check(send(addr, "POST", INFER, &header("0"), b"123").await, 400, "do not fill shape [-1, 4] of FP32");
    let longer = format!("{text}0123");
    let length = text.len().to_string();
    let extra =
        send(addr, "POST", INFER, &[("Inference-Header-Content-Length", &length)], longer.as_bytes()).await;
    check(extra, 400, "4 bytes follow the tensors");
    check(send(addr, "POST", INFER, &[("Content-Encoding", "gzip")], b"not gzip").await, 400, "gzip");
}

#[tokio::test]
async fn a_model_that_is_being_loaded_is_worth_another_try_and_one_that_left_is_not() {
    let (dir, _, digest) = bundle(1.0);
    let (mut child, addr) = Child::listening().await;
    assert_eq!(get(addr, "/v2/models/meter").await.status, 404, "this device runs no model");
    child.order(Order::Expect { models: vec![meter()] }).await;
    child.order(Order::Stats).await;
    child.answer().await; // orders are obeyed in order
    let reply = post(addr, INFER, &json!({})).await;
    assert_eq!((reply.status, reply.header("retry-after").is_some()), (503, true), "{reply:?}");
    assert_eq!(get(addr, "/v2/models/nobody").await.status, 404);
    child.load(dir.path(), digest).await;
    child.serve(digest, 0).await;
    assert_eq!(get(addr, "/v2/models/meter").await.status, 200);
    child.order(Order::Unload { model: meter(), digest, now_ms: 1 }).await;
    while !matches!(child.answer().await, Answer::Unloaded { .. }) {}
    assert_eq!(get(addr, "/v2/models/meter").await.status, 404, "it left");
}
