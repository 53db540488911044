//! What the inference endpoint adds to the model: `name value unit`.
//!
//! Without arguments: tract in this process beside the real `plimsoll-agent run --bundle` over one kept connection,
//! for tensors of 4 KB and 1 MB, as JSON and as binary tensors. The model is a dense layer with two outputs for each 256
//! values and their mean, so that what is measured is the way there and back. (One layer over all 262,144 values would
//! measure the engine instead: its kernels work on 64 outputs at once, and it packs 64 MB of input for two.)
//!
//! It is also the load generator of `tests/bench/endpoint`, which compares whole servers: N threads, each with one kept
//! connection and one request under way, all sending the same bytes; latency is from the first byte written to the last
//! byte read. And it is one side of `tests/bench/engine`, which compares engines in process.
//!
//! ```text
//! endpoint bundle DIR                                   writes a bundle of the digits MLP (64-128-10) to serve
//! endpoint load NAME HOST:PORT PATH BODY CONNS SECONDS  asks, and prints requests per second, p50 and p99
//! endpoint echo NAME REQUEST_BYTES ANSWER_BYTES CONNS SECONDS
//!                                                       the same load on a server that only reads and writes so much
//! endpoint swap SECONDS                                 swaps versions under load: p50, p99 before, during, after
//! endpoint model NAME FILE ROWS SECONDS                 runs a model in this process, on one thread
//! ```

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use plimsoll_agent::serve::control::{Answer, Order};
use plimsoll_protocol::ModelName;
use plimsoll_protocol::bundle::{InputContent, Manifest};
use plimsoll_runtime::testing::{self, COLUMNS, classifier_manifest, write_bundle};
use plimsoll_runtime::{Data, ExternalData, Model, Runtime, Tensor, TractRuntime, memory};

/// Requests before the clock runs: buffers grow and caches fill.
const WARM_UP: usize = 50;
/// Requests that are measured of each kind: p99 rests on ten.
const ROUNDS: usize = 1000;
/// Hidden units of the MLP, as in scikit-learn's `MLPClassifier(hidden_layer_sizes=(128,))`.
const HIDDEN: usize = 128;
/// Hidden units of the model that is swapped: (64 + 10) x 4 bytes each, 8 MB.
const SWAPPED_HIDDEN: usize = 28_000;

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
        ["echo", name, request, answer, connections, seconds] => {
            let number = |text: &str| text.parse().expect("a number");
            let seconds = Duration::from_secs_f64(seconds.parse().expect("seconds"));
            echo(name, (number(request), number(answer)), number(connections), seconds);
        }
        ["swap", seconds] => swap(Duration::from_secs_f64(seconds.parse().expect("seconds"))),
        ["model", name, file, rows, seconds] => {
            let rows = rows.parse().expect("a number of rows");
            engine(name, Path::new(file), rows, Duration::from_secs_f64(seconds.parse().expect("seconds")));
        }
        _ => panic!("usage: see the head of agent/benches/endpoint.rs"),
    }
}

/// The endpoint beside the model in this process.
fn overhead() {
    for (size, rows) in [("4kB", 4), ("1MB", 1024)] {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let shape = [1, rows, COLUMNS];
        let mut manifest = classifier_manifest(rows, 2);
        manifest.inputs[0].shape = vec![-1, rows as i64, COLUMNS as i64];
        manifest.inputs[0].content = InputContent::Opaque;
        let (manifest, _) = write_bundle(dir.path(), &testing::mean_of_rows(rows, 2), manifest);
        let values: Vec<f32> = (0..rows * COLUMNS).map(|i| (i % 97) as f32 / 97.0).collect();
        in_process(size, dir.path(), &manifest, shape, &values);
        let server = Served::start(dir.path());
        let path = "/v2/models/meter/infer";
        let json = json_request(&shape, &values);
        over_http(&format!("endpoint.{size}.json"), &server.address, &request(path, json.as_bytes(), None));
        let (body, length) = binary_request(&shape, &values);
        over_http(&format!("endpoint.{size}.binary"), &server.address, &request(path, &body, Some(length)));
    }
}

fn in_process(size: &str, dir: &Path, manifest: &Manifest, shape: [usize; 3], values: &[f32]) {
    let model = Model::load(dir, manifest, &manifest.variants[0]).expect("it loads");
    let ask = || {
        let tensor = Tensor::new(shape.to_vec(), Data::Fp32(values.to_vec())).expect("it agrees");
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

/// A model file on this thread, with the numbers that `tests/bench/engine` gives to its peer: FP32, from -3 to 3.
fn engine(name: &str, file: &Path, rows: usize, time: Duration) {
    let started = Instant::now();
    let model = TractRuntime.open(file, &ExternalData::None).expect("the model loads");
    let ask = || {
        let inputs = model.description().inputs.iter().map(|input| {
            let dimension = |d: &i64| usize::try_from(*d).unwrap_or(rows);
            let shape: Vec<usize> = input.shape.iter().map(dimension).collect();
            let value = |at: usize| ((at * 7919) % 6007) as f32 / 1001.0 - 3.0;
            Tensor::new(shape.clone(), Data::Fp32((0..shape.iter().product()).map(value).collect()))
        });
        let inputs: Vec<Tensor> = inputs.collect::<Result<_, _>>().expect("a tensor of its shape");
        let started = Instant::now();
        model.run(inputs).expect("it runs");
        started.elapsed()
    };
    ask();
    println!("{name}.load_and_first {:.1} ms", started.elapsed().as_secs_f64() * 1e3);
    (0..WARM_UP).for_each(|_| _ = ask());
    let started = Instant::now();
    let mut took = Vec::new();
    while started.elapsed() < time {
        took.push(ask());
    }
    report(name, took);
    println!("{name}.peak_memory {:.1} MB", memory::peak_rss_bytes() as f64 / 1e6);
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

/// What this machine's loopback allows: a server that reads a request to its end and writes an answer of so many bytes
/// that are there already, on a thread for each connection. Nothing that answers over a connection is faster.
fn echo(name: &str, (request, answer): (usize, usize), connections: usize, time: Duration) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("a port").to_string();
    let head = |body: usize| format!("HTTP/1.1 200 OK\r\nContent-Length: {body}\r\n\r\n");
    let body = answer.saturating_sub(head(answer).len());
    let answer = [head(body).as_bytes(), &vec![b'x'; body]].concat();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, answer) = (stream.expect("a connection"), answer.clone());
            stream.set_nodelay(true).expect("a socket");
            std::thread::spawn(move || {
                let mut asked = vec![0; request];
                while stream.read_exact(&mut asked).is_ok() && stream.write_all(&answer).is_ok() {}
            });
        }
    });
    load(name, &address, &vec![b'x'; request], connections, time);
}

/// Four callers while versions are swapped as the driver swaps them: loaded beside, served, the old one unloaded. Each
/// has 8 MB of weights, so that a load takes a while. Any answer but 200 ends the measurement.
fn swap(time: Duration) {
    let temporary = tempfile::tempdir().expect("a temporary folder");
    let bundles: Vec<_> = ["1.0.0", "2.0.0"]
        .into_iter()
        .map(|version| {
            let dir = temporary.path().join(version);
            std::fs::create_dir(&dir).expect("a folder");
            let mut manifest = classifier_manifest(64, 10);
            manifest.version = version.parse().expect("a version");
            let (manifest, digest) = write_bundle(&dir, &testing::mlp(64, SWAPPED_HIDDEN, 10), manifest);
            Order::Load { model: manifest.model, version: manifest.version, digest, dir, next_window: 0 }
        })
        .collect();
    let mut child = Serving::start();
    let (address, model) = (child.listen(), "meter".parse::<ModelName>().expect("a name"));
    child.put_into_service(&bundles[0], None);
    let values: Vec<f32> = (0..64).map(|i| i as f32 / 64.0).collect();
    let request =
        request(&format!("/v2/models/{model}/infer"), json_request(&[1, 64], &values).as_bytes(), None);
    let (phase, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let took: Vec<(usize, Duration)> = std::thread::scope(|scope| {
        let caller = || {
            let mut connection = Connection::open(&address);
            let mut took = Vec::new();
            while !over.load(Ordering::Relaxed) {
                took.push((phase.load(Ordering::Relaxed), connection.ask(&request)));
            }
            took
        };
        let callers: Vec<_> = (0..4).map(|_| scope.spawn(caller)).collect();
        std::thread::sleep(time);
        phase.store(1, Ordering::Relaxed);
        let mut swaps = 0;
        let started = Instant::now();
        while started.elapsed() < time {
            child.put_into_service(&bundles[(swaps + 1) % 2], Some(&bundles[swaps % 2]));
            swaps += 1;
        }
        println!("swap.swaps {swaps} swaps");
        phase.store(2, Ordering::Relaxed);
        std::thread::sleep(time);
        over.store(true, Ordering::Relaxed);
        callers.into_iter().flat_map(|caller| caller.join().expect("every request is answered")).collect()
    });
    for (index, name) in ["before", "during", "after"].into_iter().enumerate() {
        let of_phase: Vec<Duration> = took.iter().filter(|(p, _)| *p == index).map(|(_, t)| *t).collect();
        println!("swap.{name}.requests {} requests", of_phase.len());
        report(&format!("swap.{name}"), of_phase);
    }
    println!("swap.failed 0 requests"); // one that fails has ended the measurement
}

/// The serving child of the real program, obeying orders as it does its driver's.
struct Serving {
    process: Child,
    answers: BufReader<ChildStdout>,
}

impl Serving {
    fn start() -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_plimsoll-agent"))
            .arg("serve")
            .env("PLIMSOLL_LOG", "error")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the agent starts");
        let answers = BufReader::new(process.stdout.take().expect("a pipe"));
        Self { process, answers }
    }

    fn order(&mut self, order: &Order) {
        let line = serde_json::to_string(order).expect("an order is JSON");
        writeln!(self.process.stdin.as_mut().expect("a pipe"), "{line}").expect("the child reads");
    }

    fn answer(&mut self) -> Answer {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("the child answers");
        serde_json::from_str(&line).expect("an answer is JSON")
    }

    fn listen(&mut self) -> String {
        let listen = "127.0.0.1:0".parse().expect("an address");
        let agent_version = env!("CARGO_PKG_VERSION").to_owned();
        self.order(&Order::Configure {
            listen,
            socket: None,
            bridge: None,
            max_body: 1 << 20,
            agent_version,
        });
        let Answer::Listening { addr } = self.answer() else { panic!("it does not listen") };
        addr.to_string()
    }

    /// Loads, serves, and unloads the one before.
    fn put_into_service(&mut self, new: &Order, old: Option<&Order>) {
        let Order::Load { model, digest, .. } = new else { panic!("not a load") };
        self.order(new);
        while !matches!(self.answer(), Answer::Loaded { digest: d, .. } if d == *digest) {}
        self.order(&Order::Serve { model: model.clone(), digest: *digest, now_ms: 0 });
        while !matches!(self.answer(), Answer::Serving { .. }) {}
        let Some(Order::Load { model, digest, .. }) = old else { return };
        self.order(&Order::Unload { model: model.clone(), digest: *digest, now_ms: 1 });
        while !matches!(self.answer(), Answer::Unloaded { .. }) {}
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
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

fn json_request(shape: &[usize], values: &[f32]) -> String {
    let input = serde_json::json!({ "name": "x", "shape": shape, "datatype": "FP32", "data": values });
    serde_json::json!({ "inputs": [input] }).to_string()
}

fn binary_request(shape: &[usize], values: &[f32]) -> (Vec<u8>, usize) {
    let parameters = serde_json::json!({ "binary_data_size": size_of_val(values) });
    let input =
        serde_json::json!({ "name": "x", "shape": shape, "datatype": "FP32", "parameters": parameters });
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
