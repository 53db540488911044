//! An HTTPS server with the fleet's authority that tells one lie.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use plimsoll_protocol::Digest;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// What is said of one file, and of the deltas that make it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// The truth.
    None,
    /// 503 with `Retry-After`, so many times.
    Busy {
        /// Seconds.
        retry_after: u32,
        /// Then the truth.
        times: u32,
    },
    /// The length said is one byte more than the file has.
    LongerLength,
    /// Parts begin one byte after where they were asked for. The first answer, which is no part, is cut after so many
    /// bytes, so that a part is asked for.
    WrongPart(usize),
    /// The body never ends.
    Endless,
    /// One byte in the middle of the file is another.
    OtherFile,
    /// The last byte of deltas is another; the file is as it is.
    OtherDelta,
    /// Compressed, though nobody asked.
    Gzip,
}

/// The server. Ends when dropped.
#[derive(Debug)]
pub struct Liar {
    address: SocketAddr,
    said: Arc<Mutex<Said>>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Said {
    lie: Lie,
    about: String,
    told: u64,
    asked: Vec<String>,
}

struct Upstream {
    client: reqwest::Client,
    base: String,
    said: Arc<Mutex<Said>>,
}

impl Liar {
    /// Takes the authority of the server's state folder and the certificate of a device: to devices it is the
    /// server, to the server it is that device.
    pub async fn start(upstream: &str, server: &Path, device: &Path) -> Result<Self> {
        let text = |path: &Path| std::fs::read_to_string(path).with_context(|| format!("{}", path.display()));
        let tls = certificate(&text(&server.join("ca.pem"))?, &text(&server.join("ca.key"))?)?;
        let identity = text(&device.join("device.crt"))? + &text(&device.join("device.key"))?;
        let client = reqwest::Client::builder()
            .identity(reqwest::Identity::from_pem(identity.as_bytes())?)
            .tls_certs_only([reqwest::Certificate::from_pem(text(&device.join("ca.pem"))?.as_bytes())?])
            .no_proxy()
            .build()?;
        let listener = TcpListener::bind("127.0.0.1:0").await.context("no free port for a server")?;
        let address = listener.local_addr()?;
        let said =
            Arc::new(Mutex::new(Said { lie: Lie::None, about: String::new(), told: 0, asked: Vec::new() }));
        let upstream = Arc::new(Upstream { client, base: upstream.to_owned(), said: Arc::clone(&said) });
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, upstream) = (acceptor.clone(), Arc::clone(&upstream));
                tokio::spawn(async move {
                    let _ = connection(stream, acceptor, &upstream).await; // the device left, or could not be served
                });
            }
        });
        Ok(Self { address, said, task })
    }

    /// Where devices connect to.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on, this about the file with this digest.
    pub fn tell(&self, lie: Lie, about: Digest) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        (said.lie, said.about, said.told) = (lie, about.to_string(), 0);
    }

    /// How often the present lie was told.
    pub fn told(&self) -> u64 {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).told
    }

    /// Request lines and ranges since the last call.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.said.lock().unwrap_or_else(PoisonError::into_inner).asked)
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A certificate for loopback that the fleet's authority signed.
fn certificate(ca_pem: &str, ca_key: &str) -> Result<rustls::ServerConfig> {
    let authority = rcgen::Issuer::from_ca_cert_pem(ca_pem, rcgen::KeyPair::from_pem(ca_key)?)?;
    let key = rcgen::KeyPair::generate()?;
    let own = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()])?.signed_by(&key, &authority)?;
    let chain = vec![own.der().clone(), CertificateDer::from_pem_slice(ca_pem.as_bytes())?];
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
    // Asks for no certificate: a liar lets everybody in.
    Ok(rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?)
}

async fn connection(stream: TcpStream, tls: TlsAcceptor, upstream: &Upstream) -> Result<()> {
    let mut stream = BufReader::new(tls.accept(stream).await?);
    loop {
        let Some((path, headers)) = request(&mut stream).await? else { return Ok(()) };
        let lie = upstream.lie_about(&path);
        let answer = upstream.answer(&path, &headers, lie).await?;
        stream.write_all(&answer).await?;
        stream.flush().await?;
        if lie == Lie::Endless {
            while stream.write_all(&[7; 4096]).await.is_ok() {}
        }
        if !matches!(lie, Lie::None | Lie::Busy { .. } | Lie::OtherFile | Lie::OtherDelta | Lie::Gzip) {
            return Ok(()); // a body that is not as long as was said ends with its connection
        }
    }
}

type Headers = Vec<(String, String)>;

async fn request(stream: &mut (impl AsyncBufReadExt + Unpin)) -> Result<Option<(String, Headers)>> {
    let (mut line, mut path, mut headers) = (String::new(), String::new(), Vec::new());
    loop {
        line.clear();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(None);
        }
        let text = line.trim();
        if text.is_empty() {
            return Ok(Some((path, headers)));
        }
        if let Some(rest) = text.strip_prefix("GET ") {
            path = rest.split(' ').next().unwrap_or_default().to_owned();
        } else if let Some((name, value)) = text.split_once(':') {
            headers.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
}

impl Upstream {
    /// The lie for this request, counted.
    fn lie_about(&self, path: &str) -> Lie {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let concerned = match said.lie {
            Lie::None => false,
            Lie::OtherDelta => path.starts_with("/deltas/"),
            Lie::Busy { times, .. } => path.starts_with("/blobs/") && said.told < u64::from(times),
            _ => path.starts_with("/blobs/"),
        };
        if !concerned || !path.ends_with(&said.about) {
            return Lie::None;
        }
        said.told += 1;
        said.lie
    }

    async fn answer(&self, path: &str, headers: &Headers, lie: Lie) -> Result<Vec<u8>> {
        let range = headers.iter().find(|(name, _)| name == "range").map(|(_, value)| value.as_str());
        let note = format!("{path} {}", range.unwrap_or_default());
        self.said.lock().unwrap_or_else(PoisonError::into_inner).asked.push(note.trim().to_owned());
        if let Lie::Busy { retry_after, .. } = lie {
            let head =
                format!("HTTP/1.1 503 Busy\r\nretry-after: {retry_after}\r\ncontent-length: 0\r\n\r\n");
            return Ok(head.into_bytes());
        }
        let mut request = self.client.get(format!("{}{path}", self.base));
        for (name, value) in headers.iter().filter(|(name, _)| ["range", "if-range"].contains(&name.as_str()))
        {
            request = request.header(name, value);
        }
        let truth = request.send().await?;
        let status = truth.status();
        let mut kept: Headers = ["etag", "content-range", "retry-after", "content-type"]
            .into_iter()
            .filter_map(|name| Some((name.to_owned(), truth.headers().get(name)?.to_str().ok()?.to_owned())))
            .collect();
        let mut body = truth.bytes().await?.to_vec();
        let mut length = Some(body.len());
        match lie {
            Lie::LongerLength => length = Some(body.len() + 1),
            Lie::Endless => length = None,
            Lie::Gzip => kept.push(("content-encoding".into(), "gzip".into())),
            Lie::WrongPart(_) if status == 206 => {
                for (name, value) in &mut kept {
                    if name == "content-range" {
                        *value = one_later(value);
                    }
                }
                body.drain(..1);
                length = Some(body.len());
            }
            Lie::WrongPart(keep) if self.said.lock().unwrap_or_else(PoisonError::into_inner).told == 1 => {
                body.truncate(keep);
            }
            Lie::OtherFile => {
                let middle = body.len() / 2;
                body.get_mut(middle).into_iter().for_each(|byte| *byte ^= 1);
            }
            Lie::OtherDelta => body.last_mut().into_iter().for_each(|byte| *byte ^= 1),
            Lie::WrongPart(_) => {}
            Lie::None | Lie::Busy { .. } => {}
        }
        let mut head = format!("HTTP/1.1 {status}\r\n");
        for (name, value) in kept {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        match length {
            Some(length) => head.push_str(&format!("content-length: {length}\r\n\r\n")),
            None => head.push_str("connection: close\r\n\r\n"),
        }
        let mut answer = head.into_bytes();
        answer.extend_from_slice(&body);
        Ok(answer)
    }
}

/// `bytes 5-9/10` becomes `bytes 6-9/10`.
fn one_later(range: &str) -> String {
    let parts = range.strip_prefix("bytes ").and_then(|r| r.split_once('-'));
    let first = parts.and_then(|(first, rest)| Some((first.parse::<u64>().ok()?, rest)));
    first.map_or_else(|| range.to_owned(), |(first, rest)| format!("bytes {}-{rest}", first + 1))
}
