//! The part of the server that signing needs, in memory: `trust`, `trust/metadata`, `blobs`.
//!
//! Plain HTTP/1.1 by hand, one request a connection; uploads are judged by `protocol::trust` as the real server does.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use plimsoll_protocol::Digest;
use plimsoll_protocol::trust::KeyPair;
use plimsoll_protocol::trust::repository::{Online, Repository};
use serde_json::{Value, json};

/// What the server lets in.
pub const TOKEN: &str = "token-of-the-test";

#[derive(Default)]
struct State {
    repository: Repository,
    blobs: BTreeSet<String>,
    forged: BTreeMap<String, Value>,
}

/// See the top of this file. Lives as long as the test's process.
pub struct Server {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

fn online() -> Online {
    Online { snapshot: KeyPair::from_seed(&[4; 32]), timestamp: KeyPair::from_seed(&[5; 32]) }
}

impl Server {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that breaks off is the test's business.
                let _ = serve(stream.unwrap(), &shared);
            }
        });
        Self { address, state }
    }

    pub fn address(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn has_blob(&self, digest: &str) -> bool {
        self.state.lock().unwrap().blobs.contains(digest)
    }

    pub fn blobs(&self) -> usize {
        self.state.lock().unwrap().blobs.len()
    }

    /// From now on the server shows this as the current document of a role.
    pub fn forge_role(&self, name: &str, document: Value) {
        self.state.lock().unwrap().forged.insert(name.into(), document);
    }
}

fn serve(stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next().unwrap_or("").to_owned(), words.next().unwrap_or("").to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let body = read_body(&mut reader, &headers)?;
    let authorised = headers.get("authorization") == Some(&format!("Bearer {TOKEN}"));
    let (status, answer) = if authorised {
        answer(&method, &path, &body, &mut state.lock().unwrap())
    } else {
        (401, json!({ "type": "unauthorised", "status": 401, "detail": "this token is not known" }))
    };
    let text = answer.to_string();
    let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", text.len());
    let mut stream = stream;
    stream.write_all(head.as_bytes())?;
    stream.write_all(text.as_bytes())
}

fn read_body(reader: &mut impl BufRead, headers: &BTreeMap<String, String>) -> std::io::Result<Vec<u8>> {
    let mut body = Vec::new();
    if headers.get("transfer-encoding").is_some_and(|v| v == "chunked") {
        loop {
            let mut size = String::new();
            reader.read_line(&mut size)?;
            let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk)?;
            body.extend_from_slice(&chunk[..size]);
            if size == 0 {
                return Ok(body);
            }
        }
    }
    let length = headers.get("content-length").and_then(|v| v.parse().ok()).unwrap_or(0);
    reader.take(length).read_to_end(&mut body)?;
    Ok(body)
}

fn answer(method: &str, path: &str, body: &[u8], state: &mut State) -> (u16, Value) {
    let problem =
        |status: u16, detail: String| (status, json!({ "type": "test", "status": status, "detail": detail }));
    match (method, path.strip_prefix("/api/v1/").unwrap_or(path)) {
        ("GET", "trust") => {
            let mut trust = state.repository.state(&online());
            trust.roles.extend(state.forged.clone());
            (200, serde_json::to_value(trust).unwrap())
        }
        ("GET", "trust/proposals") => (200, json!([])),
        ("PUT", "trust/metadata") => {
            let upload = serde_json::from_slice(body).unwrap();
            match state.repository.propose(&upload, &online(), jiff::Timestamp::now().as_second()) {
                Ok(change) => {
                    let missing =
                        change.listed.iter().find(|t| !state.blobs.contains(&t.sha256().to_string()));
                    if let Some(target) = missing {
                        return problem(422, format!("{} has no blob", target.path()));
                    }
                    state.repository = change.repository;
                    (200, json!({}))
                }
                Err(error) => problem(422, error.to_string()),
            }
        }
        ("PUT", path) if path.starts_with("blobs/sha256/") => {
            let name = path.trim_start_matches("blobs/sha256/");
            if Digest::of(body).to_string() != name {
                return problem(422, "wrong digest".into());
            }
            state.blobs.insert(name.to_owned());
            (200, json!({}))
        }
        ("GET", "devices") => (200, json!([])),
        _ => problem(404, format!("{method} {path}")),
    }
}
