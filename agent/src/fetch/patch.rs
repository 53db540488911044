//! Fetching a file as a delta to one that is here: block by block, from wherever the sink stands.
//!
//! The delta is believed in nothing. What is wrong with it ends the attempt with [`Patched::Useless`], and the caller
//! goes on with the whole file *from the byte where the sink stands*: blocks are written in order, so what is there is
//! a beginning of the file however it came. Whether it is the right one is the digest's to say.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use plimsoll_agent_core::retry::uniform_ms;
use plimsoll_protocol::Digest;
use plimsoll_protocol::delta::{self, Header, Next, Piece, Reader};
use reqwest::header;

use super::FetchError;
use super::http::{BlobSink, HttpSource, reply};
use super::ranged::{DeltaVerdict, judge_delta};
use crate::clock::random_u64;

/// Asked for first when a beginning of the file is there: the index of 3 GiB in blocks of 1 MiB, from which follows
/// which byte is needed next.
const HEAD: u64 = 64 * 1024;
/// Bytes a second of a line that has no cap: what an LTE modem or a shared DSL line brings.
const LINE: u64 = 1_000_000;
/// Shortest time to wait for a delta that is being built: the server compares 1 MB of INT8 or 20 MB of FP32 weights a
/// second, so those of most models of small devices are ready by then.
const LEAST_PATIENCE: Duration = Duration::from_secs(10);
/// Longest: 300 MB of INT8 weights are compared in it, and of the six hours of a fetch it is nothing.
const MOST_PATIENCE: Duration = Duration::from_secs(300);
/// Requests for one delta: head, jump, rest, and once more each when the server changed it meanwhile.
const MAX_REQUESTS: u32 = 6;

/// A file that is here and has an older content under the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OldFile {
    /// Where.
    pub path: PathBuf,
    /// Its digest, by the manifest that it came with.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Patched {
    /// The sink has all bytes.
    Whole,
    /// Another way must be taken, from where the sink stands; why.
    Useless(String),
}

/// One transfer.
struct Transfer<'a, S> {
    source: &'a HttpSource,
    url: String,
    old: &'a OldFile,
    want: Header,
    held: Option<S>,
}

/// How long a delta is worth waiting for: as long as the whole file would take on this line, so that waiting for
/// nothing at most doubles the time of an update.
fn patience(size: u64, bandwidth: Option<u64>) -> Duration {
    let whole = Duration::from_secs(size / bandwidth.unwrap_or(LINE).max(1));
    whole.clamp(LEAST_PATIENCE, MOST_PATIENCE)
}

/// How long until the next question: what the server says, half of what was waited already when that is more, so that
/// a build of minutes is asked for ten times and not a hundred; and up to half as much again, because the whole stage
/// of a rollout asks for the same delta.
fn pause(asked: Duration, waited: Duration, seed: u64) -> Duration {
    let least = asked.clamp(Duration::from_secs(1), LEAST_PATIENCE).max(waited / 2);
    let most_more = u64::try_from(least.as_millis() / 2).unwrap_or(u64::MAX);
    least + Duration::from_millis(uniform_ms(most_more, seed))
}

/// What a body led to.
enum Body {
    Complete,
    /// Other bytes are needed than those that come next.
    Jump,
    /// It ended before they were there.
    Ended,
    Useless(String),
}

impl HttpSource {
    /// Makes the file `new` of `size` bytes from an old one and what the server says about their differences.
    /// Does not check the digest, as [`HttpSource::blob`] does not. An error leaves what is there for the next try.
    pub async fn patch<S: BlobSink>(
        &self,
        old: &OldFile,
        new: Digest,
        size: u64,
        sink: S,
    ) -> (Option<S>, Result<Patched, FetchError>) {
        let url = format!("{}{}/{}/{new}", self.base, delta::PATH, old.digest);
        let want = Header { old: old.digest, new, old_size: old.size, new_size: size };
        let mut transfer = Transfer { source: self, url, old, want, held: Some(sink) };
        let end = transfer.run().await;
        (transfer.held, end)
    }
}

impl<S: BlobSink> Transfer<'_, S> {
    fn have(&self) -> u64 {
        self.held.as_ref().map_or(0, S::have)
    }

    async fn run(&mut self) -> Result<Patched, FetchError> {
        let mut reader = Reader::new(self.want, self.have());
        let (mut etag, mut waited) = (None::<String>, Duration::ZERO);
        let mut requests = 0;
        while requests < MAX_REQUESTS {
            let from = reader.position();
            let response = self.ask(from, etag.as_deref()).await?;
            match judge_delta(reply(&response), from) {
                DeltaVerdict::None(why) => return Ok(Patched::Useless(why)),
                DeltaVerdict::Building(after) => {
                    let pause = pause(after, waited, random_u64());
                    if waited + pause > patience(self.want.new_size, self.source.bandwidth) {
                        return Ok(Patched::Useless("it is still being built".into()));
                    }
                    waited += pause;
                    tokio::time::sleep(pause).await;
                    continue;
                }
                DeltaVerdict::Whole if from > 0 => reader = Reader::new(self.want, self.have()),
                DeltaVerdict::Whole | DeltaVerdict::Part => {}
            }
            requests += 1;
            let tag = response.headers().get(header::ETAG).and_then(|v| v.to_str().ok());
            etag = tag.map(str::to_owned);
            match self.read(&mut reader, response).await? {
                Body::Complete => return Ok(Patched::Whole),
                Body::Useless(why) => return Ok(Patched::Useless(why)),
                Body::Jump => {}
                Body::Ended if reader.position() > from => {}
                Body::Ended => {
                    let text = format!("{} ended early", self.url);
                    return Err(FetchError::transient("fetch.network", text));
                }
            }
        }
        Ok(Patched::Useless("the server's parts of it do not fit".into()))
    }

    async fn ask(&self, from: u64, etag: Option<&str>) -> Result<reqwest::Response, FetchError> {
        let mut request = self.source.client.get(&self.url);
        if from > 0 {
            request = request.header(header::RANGE, format!("bytes={from}-"));
            if let Some(etag) = etag {
                request = request.header(header::IF_RANGE, etag);
            }
        } else if self.have() > 0 {
            request = request.header(header::RANGE, format!("bytes=0-{}", HEAD - 1));
        }
        request.send().await.map_err(|e| self.source.network(&self.url, e))
    }

    /// Reads a body that begins at the reader's position.
    async fn read(
        &mut self,
        reader: &mut Reader,
        mut response: reqwest::Response,
    ) -> Result<Body, FetchError> {
        let mut at = reader.position();
        let mut chunk = Bytes::new();
        loop {
            // What is ready, before more is waited for: copies need no bytes at all.
            if let Some(end) = self.ready(reader).await? {
                return Ok(end);
            }
            if reader.plan().is_some_and(|plan| plan.delta_bytes() > self.want.new_size) {
                return Ok(Body::Useless("it is larger than the file".into()));
            }
            if reader.position() != at {
                return Ok(Body::Jump);
            }
            if chunk.is_empty() {
                let next = response.chunk().await.map_err(|e| self.source.network(&self.url, e))?;
                let Some(next) = next else { return Ok(Body::Ended) };
                self.source.received(next.len() as u64).await;
                chunk = next;
            }
            let taken = reader.push(&chunk);
            at += taken as u64;
            let _taken = chunk.split_to(taken);
        }
    }

    /// Works off all blocks that are ready; `Some` when that was the end.
    async fn ready(&mut self, reader: &mut Reader) -> Result<Option<Body>, FetchError> {
        loop {
            match reader.next() {
                Err(error) => return Ok(Some(Body::Useless(error.to_string()))),
                Ok(Next::Done) => return Ok(Some(Body::Complete)),
                Ok(Next::Bytes) => return Ok(None),
                Ok(Next::Block(piece)) => {
                    if let Some(why) = self.block(piece).await? {
                        return Ok(Some(Body::Useless(why)));
                    }
                }
            }
        }
    }

    /// Makes one block and stores it. `Some` is what is wrong with it.
    async fn block(&mut self, piece: Piece) -> Result<Option<String>, FetchError> {
        let (path, number, skip) = (self.old.path.clone(), piece.number, piece.skip as usize);
        // A decoder that panics on a block is one more way for the block to be wrong; it has nothing of the sink.
        let made = tokio::task::spawn_blocking(move || make(&path, &piece)).await;
        let made = match made {
            Ok(Ok(made)) => made,
            Ok(Err(why)) => return Ok(Some(format!("block {number} {why}"))),
            Err(_) => return Ok(Some(format!("block {number} cannot be decoded"))),
        };
        let rest = Bytes::from(made).slice(skip..);
        self.source.store(&self.url, &mut self.held, vec![rest]).await?;
        Ok(None)
    }
}

fn make(path: &std::path::Path, piece: &Piece) -> Result<Vec<u8>, String> {
    let mut old = Vec::new();
    if let Some((first, length)) = piece.block.source() {
        old = vec![0; length as usize]; // at most 1 MiB, by the plan
        let read = File::open(path).and_then(|file| file.read_exact_at(&mut old, first));
        read.map_err(|e| format!("needs {}, which cannot be read: {e}", path.display()))?;
    }
    piece.block.decode(&old, &piece.stored).map_err(str::to_owned)
}

#[cfg(test)]
mod tests;
