//! What Triton's clients ask beyond the protocol's core: statistics, configuration, packing, classes, sockets, versions.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;

use super::support::{Child, PATIENCE, bundle, bundle_with, get, meter, post, send};
use crate::serve::control::{Answer, Order};
use crate::serve::hosted::Hosted;
use crate::serve::http::{self, Bounds, Endpoint};
use crate::serve::listen::{Listener, SocketAt};
use plimsoll_runtime::testing::classifier_manifest;

const INFER: &str = "/v2/models/meter/infer";

fn ask(rows: usize) -> Value {
    json!({ "inputs": [{ "name": "x", "shape": [rows, 4], "datatype": "FP32", "data": vec![0.5; rows * 4] }] })
}

async fn serving() -> (Child, std::net::SocketAddr, tempfile::TempDir) {
    let (dir, _, digest) = bundle(1.0);
    let (mut child, addr) = Child::listening().await;
    child.load(dir.path(), digest).await;
    child.serve(digest, 1_000).await;
    (child, addr, dir)
}

#[tokio::test]
async fn statistics_count_rows_runs_and_failures() {
    let (_child, addr, _dir) = serving().await;
    assert_eq!(post(addr, INFER, &ask(3)).await.status, 200);
    assert_eq!(post(addr, INFER, &ask(1)).await.status, 200);
    assert_eq!(post(addr, INFER, &json!({})).await.status, 400);
    for path in ["/v2/models/stats", "/v2/models/meter/stats", "/v2/models/meter/versions/1.0.0/stats"] {
        let stats = get(addr, path).await.json()["model_stats"][0].clone();
        assert_eq!(
            (stats["name"].as_str(), stats["version"].as_str()),
            (Some("meter"), Some("1.0.0")),
            "{path}"
        );
        assert_eq!(
            (stats["inference_count"].as_u64(), stats["execution_count"].as_u64()),
            (Some(4), Some(2))
        );
        let of = &stats["inference_stats"];
        assert_eq!((of["success"]["count"].as_u64(), of["fail"]["count"].as_u64()), (Some(2), Some(0)));
        assert!(of["success"]["ns"].as_u64() >= of["compute_infer"]["ns"].as_u64(), "{stats}");
        assert!(of["compute_infer"]["ns"].as_u64() > Some(0) && stats["last_inference"].as_u64() > Some(0));
    }
}

#[tokio::test]
async fn the_configuration_is_in_tritons_words() {
    let (_child, addr, _dir) = serving().await;
    let config = get(addr, "/v2/models/meter/config").await.json();
    assert_eq!((config["name"].as_str(), config["max_batch_size"].as_u64()), (Some("meter"), Some(64)));
    assert_eq!(config["input"], json!([{ "name": "x", "data_type": "TYPE_FP32", "dims": [4] }]));
    assert_eq!(config["output"], json!([{ "name": "y", "data_type": "TYPE_FP32", "dims": [3] }]));
}

#[tokio::test]
async fn what_is_not_offered_says_why() {
    let (_child, addr, _dir) = serving().await;
    for (method, path, words) in [
        ("GET", "/v2/systemsharedmemory/status", "shared memory is not offered"),
        ("POST", "/v2/cudasharedmemory/region/x/register", "shared memory is not offered"),
        ("GET", "/v2/trace/setting", "traces are not offered"),
        ("POST", "/v2/models/meter/trace/setting", "traces are not offered"),
        ("POST", "/v2/logging", "`log` in the settings"),
        ("POST", "/v2/repository/models/meter/load", "signed bundles"),
    ] {
        let reply = send(addr, method, path, &[], b"{}").await;
        assert_eq!(reply.status, 403, "{path}: {reply:?}");
        assert!(reply.json()["error"].as_str().unwrap().contains(words), "{path}: {reply:?}");
    }
}

#[tokio::test]
async fn head_is_a_get_without_a_body() {
    let (_child, addr, _dir) = serving().await;
    let head = send(addr, "HEAD", "/v2/health/ready", &[], b"").await;
    assert_eq!((head.status, head.body.len()), (200, 0), "{head:?}");
    assert_eq!(send(addr, "HEAD", "/v2/models/nobody", &[], b"").await.status, 404);
    assert_eq!(send(addr, "HEAD", INFER, &[], b"").await.status, 405);
    assert_eq!(
        send(addr, "PUT", "/v2/health/live", &[], b"").await.header("allow").as_deref(),
        Some("GET, HEAD")
    );
}

#[tokio::test]
async fn an_answer_is_packed_for_a_caller_that_asks_for_it() {
    let (_child, addr, _dir) = serving().await;
    let body = ask(40).to_string();
    let plain = send(addr, "POST", INFER, &[], body.as_bytes()).await.json()["outputs"].clone();
    let gzip = send(addr, "POST", INFER, &[("Accept-Encoding", "gzip")], body.as_bytes()).await;
    assert_eq!((gzip.status, gzip.header("content-encoding").as_deref()), (200, Some("gzip")), "{gzip:?}");
    let mut text = String::new();
    flate2::read::GzDecoder::new(&gzip.body[..]).read_to_string(&mut text).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["outputs"], plain);
    let zlib = send(addr, "POST", INFER, &[("Accept-Encoding", "deflate")], body.as_bytes()).await;
    let mut text = String::new();
    flate2::read::ZlibDecoder::new(&zlib.body[..]).read_to_string(&mut text).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["outputs"], plain);
    let any = send(addr, "POST", INFER, &[("Accept-Encoding", "gzip, deflate")], body.as_bytes()).await;
    assert_eq!((any.header("content-encoding"), any.json()["outputs"].clone()), (None, plain));
}

#[tokio::test]
async fn the_best_classes_come_as_texts() {
    let mut manifest = classifier_manifest(4, 3);
    manifest.outputs[0].labels = ["low", "fine", "high"].map(String::from).into();
    let (dir, _, digest) = bundle_with(1.0, manifest);
    let (mut child, addr) = Child::listening().await;
    child.load(dir.path(), digest).await;
    child.serve(digest, 0).await;
    let mut request = ask(2);
    let scores = post(addr, INFER, &request).await.json()["outputs"][0]["data"].clone();
    request["outputs"] = json!([{ "name": "y", "parameters": { "classification": 2 } }]);
    let output = post(addr, INFER, &request).await.json()["outputs"][0].clone();
    assert_eq!((output["datatype"].as_str(), &output["shape"]), (Some("BYTES"), &json!([2, 2])));
    let first = output["data"][0].as_str().unwrap();
    let [score, index, label] = first.splitn(3, ':').collect::<Vec<_>>()[..] else { panic!("{first}") };
    let best =
        (0..3).max_by(|a, b| scores[a].as_f64().unwrap().total_cmp(&scores[b].as_f64().unwrap())).unwrap();
    assert_eq!((index.parse::<usize>().unwrap(), label), (best, ["low", "fine", "high"][best]));
    assert!((score.parse::<f64>().unwrap() - scores[best].as_f64().unwrap()).abs() < 1e-5);
    request["outputs"][0]["parameters"]["classification"] = json!(-1);
    let refused = post(addr, INFER, &request).await;
    assert_eq!(refused.status, 400, "{refused:?}");
}

#[tokio::test]
async fn a_body_is_asked_for_with_100_continue_and_a_refusal_comes_without_it() {
    let (_child, addr, _dir) = serving().await;
    let body = ask(1).to_string();
    for (path, first_line) in [(INFER, "HTTP/1.1 100"), ("/v2/models/nobody/infer", "HTTP/1.1 404")] {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut heard = vec![0; 12];
        tokio::time::timeout(PATIENCE, stream.read_exact(&mut heard)).await.unwrap().unwrap();
        assert_eq!(String::from_utf8(heard).unwrap(), first_line, "{path}");
    }
}

#[tokio::test]
async fn one_connection_carries_many_requests() {
    let (_child, addr, _dir) = serving().await;
    let body = ask(1).to_string();
    let mut stream = TcpStream::connect(addr).await.unwrap();
    for _ in 0..3 {
        let request =
            format!("POST {INFER} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(request.as_bytes()).await.unwrap();
        let heard = read_reply(&mut stream).await;
        assert!(heard.starts_with("HTTP/1.1 200") && heard.contains("prediction_id"), "{heard}");
    }
}

/// One reply with a content length, and not a byte more.
async fn read_reply(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut heard = Vec::new();
    let mut byte = [0];
    while !heard.ends_with(b"\r\n\r\n") {
        tokio::time::timeout(PATIENCE, stream.read_exact(&mut byte)).await.unwrap().unwrap();
        heard.push(byte[0]);
    }
    let head = String::from_utf8(heard).unwrap().to_ascii_lowercase();
    let length =
        head.lines().find_map(|l| l.strip_prefix("content-length: ")).unwrap().trim().parse().unwrap();
    let mut body = vec![0; length];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut body)).await.unwrap().unwrap();
    head.to_ascii_uppercase()[..15].to_owned() + &String::from_utf8(body).unwrap()
}

#[tokio::test]
async fn the_socket_answers_as_the_address_does() {
    let (dir, _, digest) = bundle(1.0);
    let mut child = Child::start();
    let socket = SocketAt { path: dir.path().join("infer.sock"), mode: 0o600 };
    child
        .order(Order::Configure {
            listen: "127.0.0.1:0".parse().unwrap(),
            socket: Some(socket.clone()),
            bridge: None,
            max_body: 10_000,
            agent_version: "0".into(),
        })
        .await;
    assert!(matches!(child.answer().await, Answer::Listening { .. }));
    child.load(dir.path(), digest).await;
    child.serve(digest, 0).await;
    let mut stream = UnixStream::connect(&socket.path).await.unwrap();
    let body = ask(1).to_string();
    let request = format!("POST {INFER} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await.unwrap();
    assert!(read_reply(&mut stream).await.contains("\"model_version\":\"1.0.0\""));
    drop((stream, child.orders));
    while child.answers.recv().await.is_some() {}
    child.task.await.unwrap();
    assert!(!socket.path.exists(), "the socket goes with the child");
}

#[tokio::test]
async fn an_older_version_answers_by_its_name_until_it_is_taken_out() {
    let mut manifest = classifier_manifest(4, 3);
    let (old_dir, _, old) = bundle_with(1.0, manifest.clone());
    manifest.version = "2.0.0-rc.1".parse().unwrap();
    let (new_dir, _, new) = bundle_with(2.0, manifest);
    let (mut child, addr) = Child::listening().await;
    child.load(old_dir.path(), old).await;
    child.serve(old, 0).await;
    child.load(new_dir.path(), new).await;
    assert_eq!(get(addr, "/v2/models/meter/versions/2.0.0-rc.1").await.status, 404, "loaded is not served");
    child.serve(new, 0).await;
    let version = async |path: &str| post(addr, path, &ask(1)).await.json()["model_version"].clone();
    assert_eq!(version(INFER).await, "2.0.0-rc.1");
    assert_eq!(version("/v2/models/meter/versions/1.0.0/infer").await, "1.0.0");
    assert_eq!(get(addr, "/v2/models/meter").await.json()["versions"], json!(["1.0.0", "2.0.0-rc.1"]));
    child.order(Order::Unload { model: meter(), digest: old, now_ms: 1 }).await;
    while !matches!(child.answer().await, Answer::Unloaded { .. }) {}
    let gone = post(addr, "/v2/models/meter/versions/1.0.0/infer", &ask(1)).await;
    assert_eq!(gone.status, 404, "{gone:?}");
    assert!(gone.json()["error"].as_str().unwrap().contains("served in version 2.0.0-rc.1"), "{gone:?}");
}

/// An endpoint with narrow bounds.
async fn narrow(bounds: Bounds) -> (std::net::SocketAddr, watch::Sender<bool>, tempfile::TempDir) {
    let (dir, _, digest) = bundle(1.0);
    let endpoint = Arc::new(Endpoint::new("0".into(), bounds, 7));
    let hosted = Hosted::load(dir.path(), digest, 0, Box::new(|why| panic!("{why}"))).unwrap();
    endpoint.registry().add(hosted);
    assert!(endpoint.registry().serve(&meter(), digest, 0));
    let (listener, addr) = Listener::tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(http::accept(listener, endpoint, stopped));
    (addr, stop, dir)
}

#[tokio::test]
async fn slow_callers_are_let_go_and_those_who_waited_for_their_place_are_answered() {
    let bounds =
        Bounds { slow_caller: Duration::from_millis(300), connections: 3, ..Bounds::of_body(10_000) };
    let (addr, _stop, _dir) = narrow(bounds).await;
    let mut slow = Vec::new();
    // One sends nothing, one half a head, one a head and half a body.
    let half_body = format!("POST {INFER} HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{{");
    for sent in ["", "POST /v2/mod", &half_body] {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        slow.push(stream);
    }
    let reply = post(addr, INFER, &ask(1)).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let mut heard = String::new();
    tokio::time::timeout(PATIENCE, slow[2].read_to_string(&mut heard)).await.unwrap().unwrap();
    assert!(heard.starts_with("HTTP/1.1 408") && heard.contains("did not arrive"), "{heard}");
    for stream in &mut slow[..2] {
        let mut heard = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut heard)).await.expect("it is closed");
    }
}

#[tokio::test]
async fn bodies_have_a_budget_together_and_one_beyond_it_is_told_to_come_back() {
    let bounds = Bounds::of_body(40_960);
    let (addr, _stop, _dir) = narrow(bounds).await;
    // Three callers claim the largest body and have not sent it yet.
    let mut claims = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let head = format!(
            "POST {INFER} HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 40960\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut heard = [0; 25];
        tokio::time::timeout(PATIENCE, stream.read_exact(&mut heard)).await.unwrap().unwrap();
        assert!(heard.starts_with(b"HTTP/1.1 100"));
        claims.push(stream);
    }
    let reply = post(addr, INFER, &ask(1)).await;
    assert_eq!((reply.status, reply.header("retry-after").as_deref()), (503, Some("1")), "{reply:?}");
    assert!(reply.json()["error"].as_str().unwrap().contains("memory for bodies"), "{reply:?}");
    // The callers leave, and with them their claims.
    drop(claims);
    let answered = async {
        while post(addr, INFER, &ask(1)).await.status != 200 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, answered).await.expect("room again");
}

#[tokio::test]
async fn large_bodies_go_the_way_beside_and_come_back_the_same() {
    let (dir, _, digest) = {
        let mut manifest = classifier_manifest(4, 3);
        manifest.limits.max_batch = 20_000;
        bundle_with(1.0, manifest)
    };
    let endpoint = Arc::new(Endpoint::new("0".into(), Bounds::of_body(4_000_000), 7));
    let hosted = Hosted::load(dir.path(), digest, 0, Box::new(|why| panic!("{why}"))).unwrap();
    endpoint.registry().add(hosted);
    assert!(endpoint.registry().serve(&meter(), digest, 0));
    let (listener, addr) = Listener::tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let (_stop, stopped) = watch::channel(false);
    tokio::spawn(http::accept(listener, endpoint, stopped));
    let one = post(addr, INFER, &ask(1)).await.json()["outputs"][0]["data"].clone();
    let all = post(addr, INFER, &ask(20_000)).await.json()["outputs"][0].clone();
    assert_eq!(all["shape"], json!([20_000, 3]));
    let data = all["data"].as_array().unwrap();
    // Kernels for one row and for many may sum in another order.
    let near = |(a, b): (&Value, &Value)| (a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < 1e-5;
    assert!(data.chunks(3).all(|row| row.iter().zip(one.as_array().unwrap()).all(near)));
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&vec![b'['; 100_000]).unwrap();
    let bad = send(addr, "POST", INFER, &[("Content-Encoding", "gzip")], &gzip.finish().unwrap()).await;
    assert_eq!(bad.status, 400, "{bad:?}");
}
