//! One HTTPS client with the device's certificate.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{self, HeaderMap};

use plimsoll_protocol::Digest;

use super::FetchError;
use super::pace::Pace;
use super::ranged::{Reply, Verdict, judge};
use crate::causes;
use crate::clock::Clock;
use crate::tls::{self, Trouble};

/// TCP and TLS: two round trips and an ECDSA signature, 2 s on a slow device over a bad link; ten times that.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// A transfer that brings nothing for so long is dead: TCP retries for about that long on a link that dropped.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes collected before they go to the disk: one blocking hand-over for 16 TLS records, and what a fetch holds.
const BATCH: usize = 256 * 1024;

/// Where a blob goes. Both calls block on the disk; they are made off the driver's thread.
pub trait BlobSink: Send + 'static {
    /// Bytes that are there already.
    fn have(&self) -> u64;
    /// More.
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()>;
    /// Drops what is there.
    fn restart(&mut self) -> std::io::Result<()>;
}

/// The server's HTTPS side. Clones share connections.
#[derive(Debug, Clone)]
pub struct HttpSource {
    pub(super) client: reqwest::Client,
    pub(super) base: String,
    /// One for all transfers of the device: two models that are fetched at once share the cap.
    pace: Option<Arc<Mutex<Pace>>>,
    received: Arc<AtomicU64>,
    /// The cap, bytes a second.
    pub(super) bandwidth: Option<u64>,
    clock: Clock,
}

impl HttpSource {
    /// Does not connect yet.
    pub fn new(
        base: &str,
        tls: rustls::ClientConfig,
        bandwidth: Option<u64>,
        clock: Clock,
    ) -> Result<Self, reqwest::Error> {
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .https_only(true)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(STALL_TIMEOUT)
            .pool_max_idle_per_host(1)
            .user_agent(concat!("plimsoll-agent/", env!("CARGO_PKG_VERSION")))
            .build()?;
        let pace = bandwidth.map(|b| Arc::new(Mutex::new(Pace::new(b, clock.mono_ms()))));
        let base = base.trim_end_matches('/').to_owned();
        Ok(Self { client, base, pace, received: Arc::default(), bandwidth, clock })
    }

    /// Bytes of files and deltas that came over the network since the start.
    pub fn bytes_received(&self) -> u64 {
        self.received.load(Relaxed)
    }

    /// Counts what came, and waits as the bandwidth cap demands.
    pub(super) async fn received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Relaxed);
        let wait = self.pace.as_ref().map_or(0, |pace| {
            pace.lock().unwrap_or_else(PoisonError::into_inner).read(bytes, self.clock.mono_ms())
        });
        if wait > 0 {
            tokio::time::sleep(Duration::from_millis(wait)).await;
        }
    }

    /// A failure of the transport.
    pub(super) fn network(&self, url: &str, error: reqwest::Error) -> FetchError {
        // A server of an unknown authority has a code of its own: the owner may have signed for it by now.
        let code = match tls::trouble(&error) {
            Some(Trouble::ServerUnknown) => tls::SERVER_UNKNOWN,
            _ => "fetch.network",
        };
        FetchError::transient(code, format!("{url}: {}", causes(&error.without_url())))
    }

    /// A small document whole, or `None` for "there is none".
    pub async fn document(&self, path: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, FetchError> {
        let url = format!("{}{path}", self.base);
        let network = |e: reqwest::Error| self.network(&url, e);
        let mut response = self.client.get(&url).send().await.map_err(network)?;
        match response.status().as_u16() {
            200 => {}
            404 => return Ok(None),
            _ => return Err(self.refusal(&url, &response, 0, 0)),
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(network)? {
            if body.len() as u64 + chunk.len() as u64 > max_bytes {
                let text =
                    format!("{url} is longer than the {max_bytes} bytes allowed: refused as endless data");
                return Err(FetchError::permanent("fetch.oversized", text));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Some(body))
    }

    /// Fetches a blob of exactly `size` bytes into a sink, continuing what the sink has. Does not check the digest:
    /// the sink hashes what it stores, and what was there before.
    pub async fn blob<S: BlobSink>(
        &self,
        digest: Digest,
        size: u64,
        sink: S,
    ) -> (Option<S>, Result<(), FetchError>) {
        let mut held = Some(sink);
        // Twice: a wrong part is answered by starting over, once.
        for _ in 0..2 {
            match self.attempt(digest, size, &mut held).await {
                Ok(true) => return (held, Ok(())),
                Ok(false) => {}
                Err(error) => return (held, Err(error)),
            }
        }
        let text = format!("{}: the server's parts do not fit, twice", self.blob_url(digest));
        (held, Err(FetchError::transient("fetch.range", text)))
    }

    fn blob_url(&self, digest: Digest) -> String {
        format!("{}/blobs/sha256/{digest}", self.base)
    }

    /// One request. `Ok(false)` means that the sink was emptied and the request is to be made again.
    async fn attempt<S: BlobSink>(
        &self,
        digest: Digest,
        size: u64,
        held: &mut Option<S>,
    ) -> Result<bool, FetchError> {
        let url = self.blob_url(digest);
        let have = held.as_ref().map_or(0, S::have);
        if have == size {
            return Ok(true);
        }
        if have > size {
            self.disk(&url, held, |sink| sink.restart()).await?;
            return Ok(false);
        }
        let mut request = self.client.get(&url);
        if have > 0 {
            let etag = format!("\"{digest}\"");
            request = request.header(header::RANGE, format!("bytes={have}-")).header(header::IF_RANGE, etag);
        }
        let network = |e: reqwest::Error| self.network(&url, e);
        let mut response = request.send().await.map_err(network)?;
        let from = match judge(reply(&response), have, size) {
            Verdict::Append => have,
            Verdict::Restart => {
                if have > 0 {
                    self.disk(&url, held, |sink| sink.restart()).await?;
                }
                0
            }
            Verdict::StartOver(why) => {
                tracing::warn!(fetch.url = url, fetch.why = why, "download starts over");
                self.disk(&url, held, |sink| sink.restart()).await?;
                return Ok(false);
            }
            Verdict::Later { .. } | Verdict::Never(_) => {
                return Err(self.refusal(&url, &response, have, size));
            }
        };
        let (mut got, mut batch) = (from, Vec::new());
        loop {
            let chunk = match response.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(error) => {
                    // What came before the cut need not come again.
                    self.store(&url, held, batch).await?;
                    return Err(network(error));
                }
            };
            got += chunk.len() as u64;
            if got > size {
                let text = format!("{url} sends more than the {size} bytes signed: refused as endless data");
                return Err(FetchError::permanent("fetch.oversized", text));
            }
            batch.push(chunk.clone());
            if batch.iter().map(Bytes::len).sum::<usize>() >= BATCH {
                self.store(&url, held, std::mem::take(&mut batch)).await?;
            }
            self.received(chunk.len() as u64).await;
        }
        self.store(&url, held, batch).await?;
        if got < size {
            let text = format!("{url} ended after {got} of {size} bytes");
            return Err(FetchError::transient("fetch.network", text));
        }
        Ok(true)
    }

    pub(super) async fn store<S: BlobSink>(
        &self,
        url: &str,
        held: &mut Option<S>,
        chunks: Vec<Bytes>,
    ) -> Result<(), FetchError> {
        self.disk(url, held, move |sink| chunks.iter().try_for_each(|c| sink.write(c))).await
    }

    /// Runs one blocking disk operation off this thread. The sink travels there and back.
    async fn disk<S: BlobSink>(
        &self,
        url: &str,
        held: &mut Option<S>,
        work: impl FnOnce(&mut S) -> std::io::Result<()> + Send + 'static,
    ) -> Result<(), FetchError> {
        let lost = || FetchError::transient("fetch.disk", format!("{url}: the disk task was lost"));
        let mut sink = held.take().ok_or_else(lost)?;
        let done = tokio::task::spawn_blocking(move || {
            let result = work(&mut sink);
            (sink, result)
        });
        let (sink, result) = done.await.map_err(|_| lost())?;
        *held = Some(sink);
        result.map_err(|e| {
            FetchError::transient("fetch.disk", format!("cannot store {url}: {e}; is the disk full?"))
        })
    }

    fn refusal(&self, url: &str, response: &reqwest::Response, have: u64, size: u64) -> FetchError {
        match judge(reply(response), have, size) {
            Verdict::Later { why, after_s } => FetchError {
                retry_after: after_s.map(Duration::from_secs),
                ..FetchError::transient("fetch.unavailable", format!("{url}: {why}"))
            },
            Verdict::Never(why) | Verdict::StartOver(why) => {
                FetchError::permanent("fetch.refused", format!("{url}: {why}"))
            }
            // Not reached for a blob; a document with a part or a whole of another kind.
            Verdict::Append | Verdict::Restart => {
                FetchError::transient("fetch.unavailable", format!("{url} answered {}", response.status()))
            }
        }
    }
}

pub(super) fn reply(response: &reqwest::Response) -> Reply<'_> {
    let headers: &HeaderMap = response.headers();
    let text = |name: header::HeaderName| headers.get(name).and_then(|v| v.to_str().ok());
    Reply {
        status: response.status().as_u16(),
        content_range: text(header::CONTENT_RANGE),
        content_length: text(header::CONTENT_LENGTH).and_then(|t| t.parse().ok()),
        content_encoding: text(header::CONTENT_ENCODING),
        retry_after: text(header::RETRY_AFTER),
        date: text(header::DATE),
    }
}
