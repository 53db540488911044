//! Every malformed request is refused with a status and words that name the tensor and the problem.

use serde_json::{Value, json};

use super::support::{Child, MAX_BODY, bundle, get, post, send};
use crate::serve::control::{Answer, Order};

const INFER: &str = "/v2/models/meter/infer";

fn input(change: impl FnOnce(&mut Value)) -> Value {
    let mut tensor = json!({ "name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0, 0, 0, 0] });
    change(&mut tensor);
    json!({ "inputs": [tensor] })
}

#[tokio::test]
async fn malformed_requests_are_refused_by_name_and_the_next_one_is_answered() {
    let (dir, _, digest) = bundle(1.0);
    let (mut child, addr) = Child::listening().await;
    child.load(dir.path(), digest).await;
    child.serve(digest, 0).await;

    let good = json!({ "name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0, 0, 0, 0] });
    let deep = format!(
        "{{\"inputs\": [{{\"name\": \"x\", \"shape\": [1, 4], \"datatype\": \"FP32\", \"data\": {}0{}}}]}}",
        "[".repeat(5000),
        "]".repeat(5000)
    );
    let deep_elsewhere = format!("{{\"parameters\": {}1", "{\"a\":".repeat(5000));
    let deep_unknown = format!("{{\"x\": {}1", "{\"a\":".repeat(5000));
    let cases: Vec<(String, &str)> = vec![
        (String::new(), "the body is empty"),
        ("not json".into(), "not an inference request"),
        ("[1, 2]".into(), "not an inference request"),
        ("{}".into(), "missing field `inputs`"),
        ("{\"inputs\": 7}".into(), "not an inference request"),
        ("\u{feff}{\"inputs\": []}".into(), "not an inference request"),
        (deep, "recursion limit"),
        (deep_elsewhere, "recursion limit"),
        (deep_unknown, "not an inference request"),
        (json!({ "inputs": [] }).to_string(), "tensor \"x\" is missing"),
        (json!({ "inputs": [good, good] }).to_string(), "tensor \"x\" is given twice"),
        (
            input(|t| t["name"] = json!("z")).to_string(),
            "tensor \"z\" is not an input of this model; it has [\"x\"]",
        ),
        (input(|t| t["shape"] = json!([4])).to_string(), "tensor \"x\": has shape [4]; [-1, 4] is expected"),
        (
            input(|t| t["shape"] = json!([2, 4])).to_string(),
            "shape [2, 4] has 8 elements, but the data has 4",
        ),
        (input(|t| t["shape"] = json!([1, -4])).to_string(), "negative dimension"),
        (input(|t| t["shape"] = json!([0, 4])).to_string(), "has 0 elements, but the data has 4"),
        (input(|t| t["shape"] = json!([i64::MAX, i64::MAX])).to_string(), "more than"),
        (input(|t| t["shape"] = json!("big")).to_string(), "not an inference request"),
        (
            input(|t| {
                t["shape"] = json!([65, 4]);
                t["data"] = json!(vec![0; 260])
            })
            .to_string(),
            "at most 64",
        ),
        (input(|t| t["datatype"] = json!("FP64")).to_string(), "has datatype FP64; FP32 is expected"),
        (input(|t| t["datatype"] = json!("fp32")).to_string(), "datatype \"fp32\" is unknown"),
        (input(|t| t["datatype"] = json!("BF16")).to_string(), "datatype \"BF16\" is unknown"),
        (
            input(|t| t["data"] = json!([0, 0, 0])).to_string(),
            "shape [1, 4] has 4 elements, but the data has 3",
        ),
        (input(|t| t["data"] = json!([0, 0, null, 0])).to_string(), "data[2] is null"),
        (input(|t| t["data"] = json!([0, 0, "1", 0])).to_string(), "mixes numbers and texts"),
        (
            input(|t| t["data"] = json!(["a", "b", "c", "d"])).to_string(),
            "holds texts, but the datatype is FP32",
        ),
        (input(|t| t["data"] = json!({"0": 1})).to_string(), "not an inference request"),
        (
            input(|t| {
                t.as_object_mut().unwrap().remove("data");
            })
            .to_string(),
            "has no `data`",
        ),
        (input(|t| t["parameters"] = json!({ "binary_data_size": 16 })).to_string(), "both `data` and"),
        (
            json!({ "inputs": [good], "outputs": [{ "name": "q" }] }).to_string(),
            "output \"q\" does not exist",
        ),
        (
            json!({ "inputs": [good], "outputs": [{ "name": "y" }, { "name": "y" }] }).to_string(),
            "asked for twice",
        ),
        (json!({ "inputs": [good], "id": "x".repeat(300) }).to_string(), "`id` is longer"),
    ];
    let refused = cases.len() as u64;
    for (body, expect) in cases {
        let reply = send(addr, "POST", INFER, &[], body.as_bytes()).await;
        let start: String = body.chars().take(120).collect();
        assert_eq!(reply.status, 400, "{start}: {reply:?}");
        let error = reply.json()["error"].as_str().unwrap().to_owned();
        assert!(error.contains(expect), "{start}: {error:?} does not say {expect:?}");
    }
    let reply = post(addr, INFER, &json!({ "inputs": [good] })).await;
    assert_eq!(reply.status, 200, "{reply:?}");

    child.order(Order::Stats).await;
    let Answer::Stats { models, .. } = child.answer().await else { panic!("no statistics") };
    assert_eq!((models[0].requests, models[0].failed, models[0].refused), (1, 0, refused));
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
