//! A server that lies on request: TLS with client certificates on loopback, documents and blobs from memory, and one
//! fault at a time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use plimsoll_protocol::Digest;
use plimsoll_protocol::delta::{Block, Header, Op, PATH, Plan};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::HttpSource;
use crate::clock::Clock;
use crate::identity::Identity;
use crate::tls;

/// What is wrong with the next answers for blobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Fault {
    #[default]
    None,
    /// The connection ends after so many bytes of a body.
    CutAfter(usize),
    /// A part that begins one byte too late.
    WrongPart,
    /// Parts are not known here: always the whole.
    NoRanges,
    /// A body without an end.
    Endless,
    /// Busy, come back in 7 s.
    Busy,
    /// The first byte of what is sent is another.
    Flipped,
    /// Not ready yet, once.
    BuildingOnce,
}

#[derive(Default)]
struct Shared {
    files: BTreeMap<String, Vec<u8>>,
    fault: Fault,
    delta_fault: Fault,
    asked: Vec<(String, Option<String>)>,
}

/// The server.
pub(crate) struct Server {
    shared: Arc<Mutex<Shared>>,
    pub identity: Identity,
}

impl Server {
    pub async fn start() -> Self {
        tls::install_ring();
        let ca_key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = params.self_signed(&ca_key).unwrap();
        let issuer = rcgen::Issuer::new(params, ca_key);
        let leaf = |name: &str| {
            let key = rcgen::KeyPair::generate().unwrap();
            let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
            (params.signed_by(&key, &issuer).unwrap(), key)
        };
        let ((server, server_key), (device, device_key)) = (leaf("localhost"), leaf("device"));
        let mut roots = rustls::RootCertStore::empty();
        roots.add(ca.der().clone()).unwrap();
        let clients = rustls::server::WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
        let key = rustls_pki_types::PrivateKeyDer::try_from(server_key.serialize_der()).unwrap();
        let config = rustls::ServerConfig::builder()
            .with_client_cert_verifier(clients)
            .with_single_cert(vec![server.der().clone()], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Mutex::new(Shared::default()));
        tokio::spawn(accept(listener, tokio_rustls::TlsAcceptor::from(Arc::new(config)), shared.clone()));
        let identity = Identity {
            who: "acme.cam-1".parse().unwrap(),
            https: format!("https://localhost:{port}"),
            mqtt: format!("localhost:{port}"),
            certificate_pem: device.pem(),
            ca_pem: ca.pem(),
            key_pem: device_key.serialize_pem(),
        };
        Self { shared, identity }
    }

    pub fn source(&self, bandwidth: Option<u64>) -> HttpSource {
        let clock = Clock::start(0, crate::clock::ClockTrust::Trusted);
        let config = tls::mutual(&self.identity, &clock).unwrap();
        HttpSource::new(&self.identity.https, config, bandwidth, clock).unwrap()
    }

    pub fn put(&self, path: &str, bytes: &[u8]) {
        self.shared.lock().unwrap().files.insert(path.to_owned(), bytes.to_vec());
    }

    pub fn put_blob(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        self.put(&format!("/blobs/sha256/{digest}"), bytes);
        digest
    }

    /// Offers the delta between two files; it need not be one.
    pub fn put_delta(&self, old: &[u8], new: &[u8], delta: &[u8]) {
        self.put(&format!("{PATH}/{}/{}", Digest::of(old), Digest::of(new)), delta);
    }

    pub fn remove(&self, path: &str) {
        self.shared.lock().unwrap().files.remove(path);
    }

    pub fn fault(&self, fault: Fault) {
        self.shared.lock().unwrap().fault = fault;
    }

    pub fn delta_fault(&self, fault: Fault) {
        self.shared.lock().unwrap().delta_fault = fault;
    }

    /// The ranges that blobs were asked for with, since the last call.
    pub fn ranges(&self) -> Vec<Option<String>> {
        self.asked("/blobs/").into_iter().map(|(_, range)| range).collect()
    }

    /// What was asked for below a path, with its range, since the last call.
    pub fn asked(&self, below: &str) -> Vec<(String, Option<String>)> {
        let asked = std::mem::take(&mut self.shared.lock().unwrap().asked);
        asked.into_iter().filter(|(path, _)| path.starts_with(below)).collect()
    }
}

async fn accept(listener: TcpListener, tls: tokio_rustls::TlsAcceptor, shared: Arc<Mutex<Shared>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, shared) = (tls.clone(), shared.clone());
        tokio::spawn(async move {
            let _ = answer(stream, tls, shared).await; // the client left or was refused
        });
    }
}

async fn answer(
    stream: TcpStream,
    tls: tokio_rustls::TlsAcceptor,
    shared: Arc<Mutex<Shared>>,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(tls.accept(stream).await?);
    let (mut path, mut range, mut line) = (String::new(), None, String::new());
    loop {
        line.clear();
        stream.read_line(&mut line).await?;
        if let Some(rest) = line.strip_prefix("GET ") {
            path = rest.split(' ').next().unwrap_or_default().to_owned();
        }
        if let Some(rest) = line.to_ascii_lowercase().strip_prefix("range:") {
            range = Some(rest.trim().to_owned());
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let (file, fault) = {
        let mut shared = shared.lock().unwrap();
        shared.asked.push((path.clone(), range.clone()));
        let fault = match path.split('/').nth(1) {
            Some("blobs") => shared.fault,
            Some("deltas") => shared.delta_fault,
            _ => Fault::None,
        };
        if fault == Fault::BuildingOnce {
            shared.delta_fault = Fault::None;
        }
        (shared.files.get(&path).cloned(), fault)
    };
    let response = respond(file, range.as_deref(), fault);
    stream.write_all(&response).await?;
    if fault == Fault::Endless {
        while stream.write_all(&[7; 4096]).await.is_ok() {}
    }
    stream.flush().await?;
    if matches!(fault, Fault::CutAfter(_)) {
        return Ok(()); // without the goodbye of TLS: the connection dropped
    }
    stream.shutdown().await
}

fn respond(file: Option<Vec<u8>>, range: Option<&str>, fault: Fault) -> Vec<u8> {
    let head = |status: &str, rest: &str| {
        format!("HTTP/1.1 {status}\r\nconnection: close\r\n{rest}\r\n").into_bytes()
    };
    let Some(mut file) = file else { return head("404 Not Found", "content-length: 0\r\n") };
    if fault == Fault::BuildingOnce {
        return head("202 Accepted", "retry-after: 1\r\ncontent-length: 0\r\n");
    }
    if fault == Fault::Busy {
        return head("503 Busy", "retry-after: 7\r\ncontent-length: 0\r\n");
    }
    let size = file.len();
    let asked = range.and_then(|r| r.strip_prefix("bytes=")?.split_once('-'));
    let last =
        asked.and_then(|(_, last)| last.parse::<usize>().ok()).unwrap_or(size).min(size.saturating_sub(1));
    let from = asked.and_then(|(first, _)| first.parse::<usize>().ok());
    let from = from.filter(|_| fault != Fault::NoRanges);
    let mut response = match from {
        _ if fault == Fault::Endless => head("200 OK", ""),
        Some(from) => {
            let from = from + usize::from(fault == Fault::WrongPart);
            file.truncate(last + 1);
            file.drain(..from);
            let length = file.len();
            head(
                "206 Partial",
                &format!("content-range: bytes {from}-{last}/{size}\r\ncontent-length: {length}\r\n"),
            )
        }
        None => head("200 OK", &format!("content-length: {size}\r\n")),
    };
    match fault {
        Fault::CutAfter(bytes) => file.truncate(bytes),
        Fault::Flipped => file[0] ^= 1,
        _ => {}
    }
    response.extend_from_slice(&file);
    response
}

/// A delta in blocks of `step` bytes, each a copy where the files are equal and stored as it is elsewhere.
pub(crate) fn delta(old: &[u8], new: &[u8], step: usize) -> Vec<u8> {
    let header = Header {
        old: Digest::of(old),
        new: Digest::of(new),
        old_size: old.len() as u64,
        new_size: new.len() as u64,
    };
    let (mut blocks, mut body) = (Vec::new(), Vec::new());
    for (n, part) in new.chunks(step).enumerate() {
        let at = n * step;
        let equal = old.get(at..at + part.len()) == Some(part);
        let stored = if equal { Vec::new() } else { frame(part) };
        let op = if equal { Op::Copy { old: at as u64 } } else { Op::Data };
        blocks.push(Block { op, output: part.len() as u32, stored: stored.len() as u32 });
        body.extend_from_slice(&stored);
    }
    let mut delta = Plan::new(header, blocks).unwrap().encode();
    delta.extend_from_slice(&body);
    delta
}

/// A zstd frame with one raw block of at most 128 KiB (RFC 8878, 3.1.1).
fn frame(bytes: &[u8]) -> Vec<u8> {
    let size = bytes.len() as u32;
    let raw_and_last = size << 3 | 1;
    let head = [&[0x28, 0xb5, 0x2f, 0xfd, 0xa0][..], &size.to_le_bytes(), &raw_and_last.to_le_bytes()[..3]];
    [head.concat(), bytes.to_vec()].concat()
}
