//! What callers get when all is well, and when the model is slow.

use serde_json::{Value, json};
use std::io::Write;

use super::support::{Child, Gate, Run, bundle, gated, get, post, send};

const INFER: &str = "/v2/models/meter/infer";

async fn serving() -> (Child, std::net::SocketAddr, tempfile::TempDir) {
    let (dir, _, digest) = bundle(1.0);
    let (mut child, addr) = Child::listening().await;
    child.load(dir.path(), digest).await;
    child.serve(digest, 1_000).await;
    (child, addr, dir)
}

fn row() -> Value {
    json!({ "name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0.5, -1, 2.0, 0] })
}

#[tokio::test]
async fn every_path_of_the_protocol_answers() {
    let (_child, addr, _dir) = serving().await;
    let server = get(addr, "/v2").await.json();
    assert_eq!(
        (server["name"].as_str(), server["version"].as_str()),
        (Some("plimsoll-agent"), Some("0.1.0"))
    );
    assert!(server["extensions"].as_array().unwrap().contains(&json!("binary_tensor_data")));
    assert_eq!(get(addr, "/v2/health/live").await.json(), json!({ "live": true }));
    assert_eq!(get(addr, "/v2/health/ready").await.json(), json!({ "ready": true }));
    for path in ["/v2/models/meter", "/v2/models/meter/versions/1.0.0", "/v2/models/meter/"] {
        let meta = get(addr, path).await.json();
        assert_eq!(meta["name"], "meter");
        assert_eq!(meta["versions"], json!(["1.0.0"]));
        assert_eq!(meta["platform"], "onnx_onnxv1");
        assert_eq!(meta["inputs"], json!([{ "name": "x", "datatype": "FP32", "shape": [-1, 4] }]));
        assert_eq!(meta["outputs"], json!([{ "name": "y", "datatype": "FP32", "shape": [-1, 3] }]));
    }
    for path in ["/v2/models/meter/ready", "/v2/models/meter/versions/1.0.0/ready"] {
        assert_eq!(get(addr, path).await.status, 200);
    }
    let index = send(addr, "POST", "/v2/repository/index", &[], b"").await.json();
    assert_eq!(index, json!([{ "name": "meter", "version": "1.0.0", "state": "READY", "reason": "" }]));
}

#[tokio::test]
async fn an_answer_carries_version_id_and_a_prediction_id_of_the_bundle() {
    let (_dir, _, digest) = bundle(1.0);
    let (_child, addr, _dir) = serving().await;
    let reply = post(addr, INFER, &json!({ "id": "call-7", "inputs": [row()] })).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let answer = reply.json();
    assert_eq!(
        (answer["model_name"].as_str(), answer["model_version"].as_str()),
        (Some("meter"), Some("1.0.0"))
    );
    assert_eq!(answer["id"], "call-7");
    let first = answer["parameters"]["prediction_id"].as_str().unwrap().to_owned();
    assert!(first.starts_with(&digest.short()), "{first}");
    let output = &answer["outputs"][0];
    assert_eq!((output["name"].as_str(), &output["shape"]), (Some("y"), &json!([1, 3])));
    let sum: f64 = output["data"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).sum();
    assert!((sum - 1.0).abs() < 1e-5);
    let again =
        post(addr, "/v2/models/meter/versions/1.0.0/infer", &json!({ "inputs": [row()] })).await.json();
    assert_eq!(again["outputs"], answer["outputs"]);
    assert_ne!(again["parameters"]["prediction_id"], first.as_str());
    assert_eq!(again.get("id"), None);
}

#[tokio::test]
async fn nested_data_batches_and_chosen_outputs_work() {
    let (_child, addr, _dir) = serving().await;
    let batch = json!({
        "inputs": [{ "name": "x", "shape": [2, 4], "datatype": "FP32", "data": [[0, 1, 2, 3], [3, 2, 1, 0]] }],
        "outputs": [{ "name": "y" }],
    });
    let answer = post(addr, INFER, &batch).await.json();
    assert_eq!(answer["outputs"][0]["shape"], json!([2, 3]));
    assert_eq!(answer["outputs"][0]["data"].as_array().unwrap().len(), 6);
}

#[tokio::test]
async fn binary_tensors_go_in_and_out() {
    let (_child, addr, _dir) = serving().await;
    let expected = post(addr, INFER, &json!({ "inputs": [row()] })).await.json();
    let head = json!({
        "inputs": [{ "name": "x", "shape": [1, 4], "datatype": "FP32", "parameters": { "binary_data_size": 16 } }],
        "parameters": { "binary_data_output": true },
    })
    .to_string();
    let tensor: Vec<u8> = [0.5f32, -1.0, 2.0, 0.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let body = [head.as_bytes(), &tensor].concat();
    let length = head.len().to_string();
    let reply = send(addr, "POST", INFER, &[("Inference-Header-Content-Length", &length)], &body).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let json_len: usize = reply.header("inference-header-content-length").unwrap().parse().unwrap();
    let answer: Value = serde_json::from_slice(&reply.body[..json_len]).unwrap();
    assert_eq!(answer["outputs"][0]["parameters"]["binary_data_size"], 12);
    let values: Vec<f32> =
        reply.body[json_len..].as_chunks::<4>().0.iter().map(|c| f32::from_le_bytes(*c)).collect();
    let texts: Vec<f32> = expected["outputs"][0]["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_f64().unwrap() as f32)
        .collect();
    assert_eq!(values, texts);
    // One raw tensor and nothing else: the length tells the batch.
    let two = [tensor.clone(), tensor].concat();
    let raw = send(addr, "POST", INFER, &[("Inference-Header-Content-Length", "0")], &two).await;
    assert_eq!(raw.status, 200, "{raw:?}");
    let json_len: usize = raw.header("inference-header-content-length").unwrap().parse().unwrap();
    assert_eq!(raw.body.len() - json_len, 24);
}

#[tokio::test]
async fn packed_bodies_are_unpacked_up_to_the_limit() {
    let (_child, addr, _dir) = serving().await;
    let body = json!({ "inputs": [row()] }).to_string();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(body.as_bytes()).unwrap();
    let reply = send(addr, "POST", INFER, &[("Content-Encoding", "gzip")], &gzip.finish().unwrap()).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let mut bomb = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    bomb.write_all(&vec![b' '; 1024 * 1024]).unwrap();
    let reply = send(addr, "POST", INFER, &[("Content-Encoding", "deflate")], &bomb.finish().unwrap()).await;
    assert_eq!(reply.status, 413, "{reply:?}");
    let reply = send(addr, "POST", INFER, &[("Content-Encoding", "br")], b"x").await;
    assert_eq!(reply.status, 415, "{reply:?}");
}

#[tokio::test]
async fn a_full_queue_is_an_answer_and_not_a_wait() {
    let gated = gated(|m| m.limits.queue = 1).await;
    let ask = || {
        let addr = gated.addr;
        tokio::spawn(async move { post(addr, INFER, &json!({ "inputs": [row()] })).await })
    };
    let running = ask();
    gated.gate.wait_started().await;
    // Of two more, one waits in the queue and the other is refused at once.
    let (a, b) = (ask(), ask());
    let refused = tokio::select! { r = a => r.unwrap(), r = b => r.unwrap() };
    assert_eq!(refused.status, 503, "{refused:?}");
    assert_eq!(refused.header("retry-after").as_deref(), Some("1"));
    assert!(refused.json()["error"].as_str().unwrap().contains("waiting"), "{refused:?}");
    (0..2).for_each(|_| gated.gate.allow.send(Run::Answer).unwrap());
    assert_eq!(running.await.unwrap().status, 200);
    let health = gated.endpoint.registry().health().remove(0);
    assert_eq!((health.busy, health.failed, health.refused), (1, 0, 0));
}

#[tokio::test]
async fn a_model_that_takes_too_long_is_answered_504_and_counted_as_failed() {
    let gated = gated(|m| m.limits.timeout_ms = 50).await;
    let reply = post(gated.addr, INFER, &json!({ "inputs": [row()] })).await;
    assert_eq!(reply.status, 504, "{reply:?}");
    assert!(reply.json()["error"].as_str().unwrap().contains("50 ms"), "{reply:?}");
    let health = gated.endpoint.registry().health().remove(0);
    assert_eq!((health.requests, health.failed), (1, 1));
    assert!(health.p50_us >= 50_000);
    gated.gate.allow.send(Run::Answer).unwrap();
}

#[tokio::test]
async fn a_model_that_panics_is_a_500_and_a_fault_and_the_next_request_is_answered() {
    let gated = gated(|_| {}).await;
    gated.gate.allow.send(Run::Panic).unwrap();
    let reply = post(gated.addr, INFER, &json!({ "inputs": [row()] })).await;
    assert_eq!(reply.status, 500, "{reply:?}");
    assert!(reply.json()["error"].as_str().unwrap().contains("as the test wishes"), "{reply:?}");
    assert!(gated.faults.try_recv().unwrap().contains("crashed while it tried to run the model"));
    gated.gate.allow.send(Run::Answer).unwrap();
    assert_eq!(post(gated.addr, INFER, &json!({ "inputs": [row()] })).await.status, 200);
}

#[tokio::test]
async fn a_run_that_does_not_end_is_told_after_some_of_its_limits_and_one_that_ends_is_not() {
    use std::time::{Duration, Instant};
    let gated = gated(|m| m.limits.timeout_ms = 50).await;
    assert_eq!(post(gated.addr, INFER, &json!({ "inputs": [row()] })).await.status, 504);
    let start = Instant::now();
    let hangs = |at: Instant| gated.endpoint.registry().hangs(at);
    assert_eq!(hangs(start), None, "a slow run may still end");
    let reason = hangs(start + Duration::from_millis(250)).unwrap().reason;
    assert!(reason.contains("meter 1.0.0") && reason.contains("its limit is 50 ms"), "{reason}");
    // Taken out, it is waited for no longer than that either: its thread will never end by itself.
    let (model, digest) = {
        let registry = gated.endpoint.registry();
        let hosted = registry.active("meter").unwrap();
        (hosted.manifest().model.clone(), hosted.digest())
    };
    let retired = gated.endpoint.registry().remove(&model, digest).unwrap();
    assert!(retired.finish(1).await.unwrap_err().reason.contains("does not end"));
    drop(gated.gate.allow); // lets the thread go
}

#[tokio::test]
async fn a_model_that_ended_its_run_does_not_hang() {
    let gated = gated(|_| {}).await;
    gated.gate.allow.send(Run::Answer).unwrap();
    assert_eq!(post(gated.addr, INFER, &json!({ "inputs": [row()] })).await.status, 200);
    let late = std::time::Instant::now() + std::time::Duration::from_secs(3600);
    assert_eq!(gated.endpoint.registry().hangs(late), None);
}

#[tokio::test]
async fn a_model_known_to_be_quick_runs_where_it_was_asked_and_another_shape_on_its_own_thread() {
    let gated = gated(|_| {}).await;
    let Gate { allow, started } = gated.gate;
    drop(allow); // every run goes on at once
    let here = std::thread::current().id();
    let ask = async |body: &Value| {
        let reply = post(gated.addr, INFER, body).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        started.lock().unwrap().try_recv().unwrap()
    };
    let one = json!({ "inputs": [row()] });
    assert_ne!(ask(&one).await, here, "it was not measured yet");
    let mut asked = 1;
    while ask(&one).await != here {
        asked += 1;
        assert!(asked < 10_000, "a product of four by three takes longer than a hand-over");
    }
    let mut two = row();
    two["shape"] = json!([2, 4]);
    two["data"] = json!([0.1, 0.2, 0.3, 0.4, 0.1, 0.2, 0.3, 0.4]);
    assert_ne!(ask(&json!({ "inputs": [two] })).await, here, "two rows were never measured");
    let health = gated.endpoint.registry().health().remove(0);
    assert_eq!((health.requests, health.failed), (asked + 2, 0), "counted alike");
}
