//! The real program with a bundle and no fleet: `run --bundle` over its address and its socket, Triton's own client
//! against it, and `infer` over standard input.

#![allow(clippy::unwrap_used)] // a test's unwrap is an assertion, in its helpers too

use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use plimsoll_runtime::testing;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

/// A start with a self-test on a machine that runs other tests too takes seconds; this is only the end of hope.
const PATIENCE: Duration = Duration::from_secs(60);
/// Squares of a product: minutes for [`LONG`] elements, nothing for one.
const SQUARES: usize = 400;
/// Elements whose product takes a second to square.
const LONG: usize = 2_500;

fn agent() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll-agent"));
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// A bundle of the classifier with labels.
fn bundle(dir: &Path, version: &str, gain: f32) -> PathBuf {
    let dir = dir.join(version);
    std::fs::create_dir_all(&dir).unwrap();
    let mut manifest = testing::classifier_manifest(4, 3);
    manifest.version = version.parse().unwrap();
    manifest.outputs[0].labels = ["low", "fine", "high"].map(String::from).into();
    let _ = testing::write_bundle(&dir, &testing::classifier(4, 3, gain), manifest);
    dir
}

/// A server of bundles: where it listens, and all that it said before it was ready.
struct Served {
    addr: SocketAddr,
    said: String,
    process: Child,
}

async fn serve(bundles: &[PathBuf], more: &[&str]) -> Served {
    let mut command = agent();
    command.args(["run", "--listen", "127.0.0.1:0"]).args(more).stdout(Stdio::piped());
    for bundle in bundles {
        command.arg("--bundle").arg(bundle);
    }
    let mut process = command.spawn().unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let mut said = String::new();
    let ready = async {
        // The last line is the example of the last bundle.
        let mut examples = bundles.len();
        while examples > 0 {
            let line = lines.next_line().await.unwrap().expect("it is served");
            examples -= usize::from(line.starts_with("try:"));
            said.push_str(&line);
            said.push('\n');
        }
    };
    tokio::time::timeout(PATIENCE, ready).await.expect("it serves in time");
    let addr = said.lines().find_map(|l| l.strip_prefix("serving on http://")).unwrap().parse().unwrap();
    Served { addr, said, process }
}

impl Served {
    async fn ask(&self, path: &str) -> Value {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let row = json!({"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]});
        let sent = client.post(format!("http://{}/v2/{path}", self.addr)).json(&json!({ "inputs": [row] }));
        sent.send().await.unwrap().json().await.unwrap()
    }
}

#[tokio::test]
async fn tritons_own_client_works_unchanged() {
    let Some(python) = std::env::var_os("PLIMSOLL_PYTHON") else {
        assert!(std::env::var_os("PLIMSOLL_REQUIRE_TOOLS").is_none(), "PLIMSOLL_PYTHON is not set");
        eprintln!("left out: set PLIMSOLL_PYTHON=$(tests/python/venv) to run Triton's client");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let served = serve(&[bundle(dir.path(), "1.0.0", 1.0)], &[]).await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/python/triton_client.py");
    let client = Command::new(python).arg(script).arg(served.addr.to_string()).kill_on_drop(true).output();
    let output = tokio::time::timeout(PATIENCE, client).await.expect("in time").unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    assert!(text(&output.stdout).contains("nothing to complain of"));
}

#[tokio::test]
async fn tritons_own_client_carries_bfloat16() {
    let Some(python) = std::env::var_os("PLIMSOLL_PYTHON") else {
        assert!(std::env::var_os("PLIMSOLL_REQUIRE_TOOLS").is_none(), "PLIMSOLL_PYTHON is not set");
        eprintln!("left out: set PLIMSOLL_PYTHON=$(tests/python/venv) to run Triton's client");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let mut manifest = testing::classifier_manifest(4, 3);
    manifest.inputs[0].datatype = plimsoll_protocol::bundle::DataType::Bf16;
    manifest.outputs[0].datatype = plimsoll_protocol::bundle::DataType::Bf16;
    let _ = testing::write_bundle(dir.path(), &testing::classifier(4, 3, 1.0), manifest);
    let served = serve(&[dir.path().to_owned()], &[]).await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/python/triton_bf16.py");
    let client = Command::new(python).arg(script).arg(served.addr.to_string()).kill_on_drop(true).output();
    let output = tokio::time::timeout(PATIENCE, client).await.expect("in time").unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    assert!(text(&output.stdout).contains("goes in and comes out"));
}

#[tokio::test]
async fn two_versions_are_served_from_folders_on_an_address_and_a_socket() {
    plimsoll_agent::tls::install_ring();
    let dir = tempfile::tempdir().unwrap();
    let bundles = [bundle(dir.path(), "2.0.0", 2.0), bundle(dir.path(), "1.0.0", 1.0)];
    let socket = dir.path().join("infer.sock");
    let mode = ["--socket", socket.to_str().unwrap(), "--socket-mode", "600"];
    let mut served = serve(&bundles, &mode).await;
    assert_eq!(served.said.matches("nobody's signature was checked").count(), 2, "{}", served.said);
    assert!(served.said.contains("curl -s"), "{}", served.said);
    assert_eq!(served.ask("models/meter/infer").await["model_version"], "2.0.0", "the first one named");
    assert_eq!(served.ask("models/meter/versions/1.0.0/infer").await["model_version"], "1.0.0");

    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let mut stream = UnixStream::connect(&socket).await.unwrap();
    stream.write_all(b"GET /v2/models/meter HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"1.0.0\",\"2.0.0\""), "{answer}");

    // A second one cannot have the socket; it says so and leaves it alone.
    let second =
        agent().args(["run", "--listen", "127.0.0.1:0"]).args(mode).arg("--bundle").arg(&bundles[0]).output();
    let second = tokio::time::timeout(PATIENCE, second).await.unwrap().unwrap();
    let words = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(second.status.code() == Some(1) && words.contains("another program answers"), "{words}");

    let pid = rustix::process::Pid::from_raw(served.process.id().unwrap().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let ended = tokio::time::timeout(PATIENCE, served.process.wait()).await.unwrap().unwrap();
    assert_eq!(ended.code(), Some(0));
    assert!(!socket.exists());
}

#[tokio::test]
async fn a_model_that_computes_without_end_has_its_process_replaced_by_itself() {
    plimsoll_agent::tls::install_ring();
    let dir = tempfile::tempdir().unwrap();
    let mut manifest = testing::squares_manifest();
    manifest.limits.timeout_ms = 100;
    let _ = testing::write_bundle(dir.path(), &testing::squares(SQUARES), manifest);
    let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap(); // free a moment ago
    let mut command = agent();
    command.args(["run", "--listen", &listen.to_string(), "--bundle"]).arg(dir.path()).stderr(Stdio::piped());
    let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(process.stdout.take().unwrap()).lines();
    let mut complaints = BufReader::new(process.stderr.take().unwrap()).lines();
    let mut until = async |words: &str, complaint: bool| {
        let line = async {
            loop {
                let lines =
                    async { if complaint { complaints.next_line().await } else { said.next_line().await } };
                let line = lines.await.unwrap().expect("it is said before the end");
                if line.contains(words) {
                    break;
                }
            }
        };
        tokio::time::timeout(PATIENCE, line).await.unwrap_or_else(|_| panic!("nobody said {words:?}"));
    };
    let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
    let ask = async |elements: usize| {
        let data = vec![1; elements];
        let x = json!({"name": "x", "datatype": "FP32", "shape": [1, elements], "data": data});
        let sent =
            client.post(format!("http://{listen}/v2/models/meter/infer")).json(&json!({ "inputs": [x] }));
        sent.send().await.unwrap().status().as_u16()
    };
    until("try:", false).await;
    let pid = process.id();
    assert_eq!(ask(1).await, 200);
    assert_eq!(ask(LONG).await, 504);
    until("does not end", true).await;
    until("try:", false).await;
    assert_eq!((ask(1).await, process.id()), (200, pid));
    assert_eq!(process.try_wait().unwrap(), None);
}

#[tokio::test]
async fn a_bundle_whose_golden_samples_differ_is_not_served() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = dir.path().join("wrong");
    std::fs::create_dir_all(&bundle).unwrap();
    // Golden samples of one model, listed with the weights of another.
    let _ =
        testing::write_bundle(&bundle, &testing::classifier(4, 3, 1.0), testing::classifier_manifest(4, 3));
    let other = testing::classifier(4, 3, 2.0);
    std::fs::write(bundle.join("model.onnx"), &other).unwrap();
    let path = bundle.join("bundle.json");
    let mut manifest: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for file in manifest["files"].as_array_mut().unwrap() {
        if file["path"] == "model.onnx" {
            file["size"] = json!(other.len());
            file["sha256"] = json!(plimsoll_protocol::Digest::of(&other));
        }
    }
    std::fs::write(&path, manifest.to_string()).unwrap();
    let run = agent().args(["run", "--listen", "127.0.0.1:0", "--bundle"]).arg(&bundle).output();
    let output = tokio::time::timeout(PATIENCE, run).await.unwrap().unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.code() == Some(3) && words.contains("golden samples are answered wrongly"),
        "{words}"
    );
}

#[tokio::test]
async fn infer_answers_rows_of_standard_input_and_its_status_says_how_it_went() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = bundle(dir.path(), "1.0.0", 1.0);
    let infer = async |more: &[&str], rows: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll-agent"));
        command.args(["infer", "--bundle"]).arg(&bundle).args(more).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut input = process.stdin.take().unwrap();
        let _ = input.write_all(rows.as_bytes()).await; // it may have ended at a bad row
        drop(input);
        let output = tokio::time::timeout(PATIENCE, process.wait_with_output()).await.unwrap().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let rows = "a,b,c,d\n1,2,3,4\n1,2,x,4\n5,6,7,8\n";
    let (code, out, err) = infer(&["--on-error", "skip"], rows).await;
    assert_eq!((code, out.lines().count()), (Some(4), 2), "{err}");
    assert!(err.contains("line 3: column \"x[2]\": \"x\" is not a number"), "{err}");
    assert!(err.contains("2 rows answered, 1 bad"), "{err}");
    let last: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    assert_eq!((last["line"].as_u64(), last["outputs"]["y"].as_array().unwrap().len()), (Some(4), 3));
    let (code, out, err) = infer(&[], rows).await;
    assert_eq!((code, out.lines().count()), (Some(1), 1), "{err}");
    assert!(err.contains("line 3") && err.contains("--on-error skip"), "{err}");
    let (code, out, _) = infer(&[], "a,b,c,d\n1,2,3,4\n").await;
    assert_eq!((code, out.lines().count()), (Some(0), 1));
    std::fs::remove_file(bundle.join("baseline.json")).unwrap();
    let (_, _, err) = infer(&[], rows).await;
    assert!(err.contains("baseline.json"), "{err}");
}
