//! What the inference endpoint adds to the model: `name value unit`.
//!
//! Without arguments: tract in this process beside the real `plimsoll-agent run --bundle` over one kept connection,
//! for tensors of 4 KB and 1 MB, as JSON and as binary tensors. The model is one small matrix product, so that what is
//! measured is the way there and back.
//!
//! It is also the load generator of `tests/bench/endpoint`, which compares whole servers: N threads, each with one kept
//! connection and one request under way, all sending the same bytes; latency is from the first byte written to the last
//! byte read.
//!
//! ```text
//! endpoint bundle DIR                                   writes a bundle of the digits MLP (64-128-10) to serve
//! endpoint load NAME HOST:PORT PATH BODY CONNS SECONDS  asks, and prints requests per second, p50 and p99
//! ```

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use plimsoll_protocol::bundle::{InputContent, Manifest};
use plimsoll_runtime::testing::{self, classifier, classifier_manifest, write_bundle};
use plimsoll_runtime::{Data, Model, Tensor};

/// Requests before the clock runs: buffers grow and caches fill.
const WARM_UP: usize = 50;
/// Requests that are measured of each kind: p99 rests on ten.
const ROUNDS: usize = 1000;
/// Hidden units of the MLP, as in scikit-learn's `MLPClassifier(hidden_layer_sizes=(128,))`.
const HIDDEN: usize = 128;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => overhead(),
        ["bundle", dir] => mlp(Path::new(dir)),
        ["load", name, address, path, body, connections, seconds] => {
            let body = std::fs::read(body).expect("the body is a file");
            let connections = connections.parse().expect("a number of connections");
            let seconds = Duration::from_secs_f64(seconds.parse().expect("seconds"));
            load(name, address, &request(path, &body, None), connections, seconds);
        }
        _ => panic!("usage: see the head of agent/benches/endpoint.rs"),
    }
}

/// The endpoint beside the model in this process.
fn overhead() {
    for (size, inputs) in [("4kB", 1024), ("1MB", 262_144)] {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut manifest = classifier_manifest(inputs, 2);
        manifest.inputs[0].content = InputContent::Opaque;
        let (manifest, _) = write_bundle(dir.path(), &classifier(inputs, 2, 0.01), manifest);
        let values: Vec<f32> = (0..inputs).map(|i| (i % 97) as f32 / 97.0).collect();
        in_process(size, dir.path(), &manifest, &values);
        let server = Served::start(dir.path());
        let path = "/v2/models/meter/infer";
        let json = json_request(inputs, &values);
        over_http(&format!("endpoint.{size}.json"), &server.address, &request(path, json.as_bytes(), None));
        let (body, length) = binary_request(inputs, &values);
        over_http(&format!("endpoint.{size}.binary"), &server.address, &request(path, &body, Some(length)));
    }
}

fn in_process(size: &str, dir: &Path, manifest: &Manifest, values: &[f32]) {
    let model = Model::load(dir, manifest, &manifest.variants[0]).expect("it loads");
    let ask = || {
        let tensor = Tensor::new(vec![1, values.len()], Data::Fp32(values.to_vec())).expect("it agrees");
        let started = Instant::now();
        assert_eq!(model.infer(vec![tensor]).expect("it runs").len(), 1);
        started.elapsed()
    };
    (0..WARM_UP).for_each(|_| _ = ask());
    report(&format!("in_process.{size}"), (0..ROUNDS).map(|_| ask()).collect());
}

fn over_http(name: &str, address: &str, request: &[u8]) {
    let mut connection = Connection::open(address);
    (0..WARM_UP).for_each(|_| _ = connection.ask(request));
    report(name, (0..ROUNDS).map(|_| connection.ask(request)).collect());
}

fn report(name: &str, mut took: Vec<Duration>) {
    took.sort_unstable();
    let at =
        |percent: usize| took[(took.len() * percent).div_ceil(100).saturating_sub(1)].as_secs_f64() * 1e6;
    println!("{name}.p50 {:.1} us", at(50));
    println!("{name}.p99 {:.1} us", at(99));
}

/// Asks over several connections at once for a while.
fn load(name: &str, address: &str, request: &[u8], connections: usize, time: Duration) {
    let mut warm = Connection::open(address);
    (0..WARM_UP).for_each(|_| _ = warm.ask(request));
    drop(warm);
    let started = Instant::now();
    let took: Vec<Duration> = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..connections)
            .map(|_| {
                scope.spawn(|| {
                    let mut connection = Connection::open(address);
                    let mut took = Vec::new();
                    while started.elapsed() < time {
                        took.push(connection.ask(request));
                    }
                    took
                })
            })
            .collect();
        callers.into_iter().flat_map(|caller| caller.join().expect("every request is answered")).collect()
    });
    println!("{name}.requests {:.0} 1/s", took.len() as f64 / started.elapsed().as_secs_f64());
    report(name, took);
}

/// A kept connection of HTTP/1.1, as little as measures a server: any answer but 200 ends the measurement.
struct Connection(BufReader<TcpStream>);

impl Connection {
    fn open(address: &str) -> Self {
        let stream = TcpStream::connect(address).expect("somebody listens");
        stream.set_nodelay(true).expect("a socket");
        Self(BufReader::with_capacity(64 * 1024, stream))
    }

    fn ask(&mut self, request: &[u8]) -> Duration {
        let started = Instant::now();
        self.0.get_mut().write_all(request).expect("the server reads");
        let mut length = None;
        let mut line = String::new();
        let mut first = true;
        loop {
            line.clear();
            self.0.read_line(&mut line).expect("the server answers");
            assert!(!first || line.contains(" 200 "), "the server refused: {line}");
            first = false;
            if line == "\r\n" {
                break;
            }
            let header = line.to_ascii_lowercase();
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse::<u64>().ok();
            }
        }
        let length = length.expect("an answer with a length");
        let read = std::io::copy(&mut self.0.by_ref().take(length), &mut std::io::sink());
        assert_eq!(read.expect("the server answers"), length);
        started.elapsed()
    }
}

fn request(path: &str, body: &[u8], json_length: Option<usize>) -> Vec<u8> {
    let more = json_length.map_or_else(
        || "Content-Type: application/json\r\n".to_owned(),
        |length| format!("Inference-Header-Content-Length: {length}\r\n"),
    );
    let head =
        format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n{more}Content-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn json_request(inputs: usize, values: &[f32]) -> String {
    let input = serde_json::json!({ "name": "x", "shape": [1, inputs], "datatype": "FP32", "data": values });
    serde_json::json!({ "inputs": [input] }).to_string()
}

fn binary_request(inputs: usize, values: &[f32]) -> (Vec<u8>, usize) {
    let parameters = serde_json::json!({ "binary_data_size": size_of_val(values) });
    let input = serde_json::json!({ "name": "x", "shape": [1, inputs], "datatype": "FP32", "parameters": parameters });
    let json =
        serde_json::json!({ "inputs": [input], "parameters": { "binary_data_output": true } }).to_string();
    let tensor = values.iter().flat_map(|v| v.to_le_bytes());
    (json.bytes().chain(tensor).collect(), json.len())
}

/// The real program.
struct Served {
    process: Child,
    address: String,
}

impl Served {
    fn start(bundle: &Path) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_plimsoll-agent"))
            .args(["run", "--listen", "127.0.0.1:0", "--bundle"])
            .arg(bundle)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the agent starts");
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("a pipe")).read_line(&mut line).expect("it says where");
        let address = line.trim().strip_prefix("serving on http://").expect("it says where").to_owned();
        Self { process, address }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A bundle of an MLP as scikit-learn trains it on its digits: 64 inputs, one hidden layer, 10 classes.
fn mlp(dir: &Path) {
    std::fs::create_dir_all(dir).expect("the folder can be made");
    let mut manifest = classifier_manifest(64, 10);
    manifest.model = "digits".parse().expect("a valid name");
    let _ = write_bundle(dir, &testing::mlp(64, HIDDEN, 10), manifest);
}
