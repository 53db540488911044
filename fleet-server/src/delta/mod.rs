//! Deltas between files, made when the first device asks and kept as blobs.
//!
//! ```text
//!   device: GET /deltas/sha256/<old>/<new> ─> index says: this blob | none that is worth it | (nothing yet)
//!                                                                                              │ 202
//!                                             one thread of low priority builds it <─ queue <──┘
//! ```
//!
//! A build is idempotent and its outcome is remembered, a worthless one for ever: whatever is asked, each pair costs the
//! server one build. Deltas may take so many bytes together; beyond that the ones that were asked for longest ago go,
//! and are built again should a device with such an old version come back. The queue is bounded and a full one answers
//! at once: a device that gets no delta fetches the file whole, so nothing here is ever waited for.

mod build;
mod onnx;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use plimsoll_protocol::Digest;
use plimsoll_protocol::delta::Header;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub use self::build::{Built, build};
use crate::blobs::Blobs;
use crate::secret;

/// Pairs that wait for the builder: a rollout changes a handful of files from one or two older versions.
const QUEUE: usize = 64;
/// Files below this are not worth a second request: the round trip and its headers take about a kilobyte.
const MIN_BYTES: u64 = 4 * 1024;
/// Most bytes of all deltas together: those between ten versions of ten models of 20 MB. Publishing needs room for the
/// files themselves, which nobody can make again.
const MAX_BYTES: u64 = 2 << 30;
/// How long a question is kept open: one to twenty megabytes of weights are compared in this time, and a thousand
/// devices that ask at once hold a thousand connections no longer than a slow download of a small file does.
const PATIENCE: Duration = Duration::from_secs(1);
/// Niceness of the builder, the lowest priority there is: deltas must not slow down ingest.
const NICE: i32 = 19;

/// What the index says of a pair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Known {
    /// Here it is.
    Delta {
        /// Name of its blob.
        digest: Digest,
        /// Its bytes.
        size: u64,
    },
    /// There is none, for this reason.
    None(String),
}

/// What a device is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The outcome of a build.
    Known(Known),
    /// Being built.
    Building,
    /// Neither: one of the files is not on this server, or too much is being built.
    Unknown(&'static str),
}

type Pair = (Digest, Digest);

/// The deltas of this server.
#[derive(Debug)]
pub struct Deltas {
    index: Index,
    blobs: Blobs,
    queue: mpsc::SyncSender<Pair>,
    building: Arc<Mutex<BTreeSet<Pair>>>,
    /// Rises with the end of every build.
    ended: watch::Sender<u64>,
}

impl Deltas {
    /// Opens the index in `dir` and starts the builder, which ends with the last clone of the queue's sender.
    pub fn open(dir: &Path, blobs: Blobs) -> io::Result<Self> {
        Self::bounded(dir, blobs, MAX_BYTES)
    }

    /// The same, with room for so many bytes of deltas.
    fn bounded(dir: &Path, blobs: Blobs, max_bytes: u64) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let index = Index(dir.to_owned());
        let (queue, pairs) = mpsc::sync_channel(QUEUE);
        let building = Arc::<Mutex<BTreeSet<Pair>>>::default();
        let (builder, done) =
            (Builder { index: index.clone(), blobs: blobs.clone(), max_bytes }, Arc::clone(&building));
        let ended = watch::Sender::new(0);
        let end = ended.clone();
        std::thread::Builder::new().name("deltas".into()).spawn(move || {
            if let Err(error) = rustix::process::nice(NICE) {
                tracing::warn!(%error, "deltas are built at normal priority");
            }
            for pair in pairs {
                builder.work(pair);
                if let Err(error) = builder.evict(pair) {
                    tracing::warn!(%error, "old deltas stay");
                }
                lock(&done).remove(&pair);
                end.send_modify(|n| *n += 1);
            }
        })?;
        Ok(Self { index, blobs, queue, building, ended })
    }

    /// As [`Self::ask`], and waits a little for a build: that of a small file ends before a device would have asked
    /// again.
    pub async fn ask_patiently(&self, old: Digest, new: Digest) -> Answer {
        let mut ended = self.ended.subscribe();
        let known = async {
            loop {
                match self.ask(old, new).await {
                    Answer::Building if ended.changed().await.is_ok() => {}
                    answer => return answer,
                }
            }
        };
        tokio::time::timeout(PATIENCE, known).await.unwrap_or(Answer::Building)
    }

    /// What there is to make `new` from `old`. The first question of a pair starts its build.
    pub async fn ask(&self, old: Digest, new: Digest) -> Answer {
        if let Some(known) = self.index.read((old, new)).await {
            self.index.touch((old, new));
            return Answer::Known(known);
        }
        if self.blobs.length(&old).await.is_none() || self.blobs.length(&new).await.is_none() {
            return Answer::Unknown("this server does not have both files");
        }
        let mut building = lock(&self.building);
        if building.contains(&(old, new)) {
            return Answer::Building;
        }
        if self.queue.try_send((old, new)).is_err() {
            return Answer::Unknown("too many deltas are being built");
        }
        building.insert((old, new));
        Answer::Building
    }
}

fn lock(building: &Mutex<BTreeSet<Pair>>) -> MutexGuard<'_, BTreeSet<Pair>> {
    building.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One small file a pair, written when its build has ended.
#[derive(Debug, Clone)]
struct Index(PathBuf);

impl Index {
    fn path(&self, (old, new): Pair) -> PathBuf {
        self.0.join(format!("{old}-{new}.json"))
    }

    /// What is known of a pair. A file that cannot be read means that the pair is built again.
    async fn read(&self, pair: Pair) -> Option<Known> {
        let bytes = tokio::fs::read(self.path(pair)).await.ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Notes that a pair was asked for, in the time of its file. One that is not noted is evicted earlier.
    fn touch(&self, pair: Pair) {
        let now = std::time::SystemTime::now();
        let noted = File::open(self.path(pair)).and_then(|file| file.set_modified(now));
        if let Err(error) = noted {
            tracing::debug!(%error, "use of a delta not noted");
        }
    }

    /// The deltas that there are: when each was last asked for, its file here, its blob and its bytes.
    fn deltas(&self) -> io::Result<Vec<(std::time::SystemTime, PathBuf, Digest, u64)>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.0)? {
            let entry = entry?;
            let known =
                std::fs::read(entry.path()).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
            if let Some(Known::Delta { digest, size }) = known {
                found.push((entry.metadata()?.modified()?, entry.path(), digest, size));
            }
        }
        found.sort();
        Ok(found)
    }

    fn write(&self, pair: Pair, known: &Known) -> io::Result<()> {
        let bytes = serde_json::to_vec(known).map_err(io::Error::other)?;
        secret::write_public(&self.path(pair), &bytes)
    }
}

struct Builder {
    index: Index,
    blobs: Blobs,
    max_bytes: u64,
}

impl Builder {
    fn work(&self, (old, new): Pair) {
        let started = std::time::Instant::now();
        match self.make(old, new) {
            Ok(Known::Delta { size, .. }) => tracing::info!(
                delta.old = %old.short(), delta.new = %new.short(), delta.bytes = size,
                delta.ms = started.elapsed().as_millis(), "delta built"
            ),
            Ok(Known::None(why)) => {
                tracing::info!(delta.old = %old.short(), delta.new = %new.short(), why, "no delta");
            }
            Err(error) => {
                tracing::warn!(delta.old = %old.short(), delta.new = %new.short(), %error, "delta not built");
            }
        }
    }

    /// Removes the deltas that were asked for longest ago until there is room, and never the one of `fresh`, which
    /// somebody waits for. First the word about it, then the bytes: who has begun to read them reads to their end.
    fn evict(&self, fresh: Pair) -> io::Result<()> {
        let (deltas, fresh) = (self.index.deltas()?, self.index.path(fresh));
        let mut bytes: u64 = deltas.iter().map(|(.., size)| size).sum();
        for (_, path, digest, size) in deltas {
            if bytes <= self.max_bytes {
                break;
            }
            if path != fresh {
                std::fs::remove_file(&path)?;
                self.blobs.remove(&digest)?;
                bytes -= size;
                tracing::info!(delta.digest = %digest.short(), delta.bytes = size, "old delta removed");
            }
        }
        Ok(())
    }

    /// Builds, stores the blob, and only then says so in the index.
    fn make(&self, old: Digest, new: Digest) -> io::Result<Known> {
        let (old_file, new_file) = (self.blobs.open_file(&old)?, self.blobs.open_file(&new)?);
        let size = |file: &File| Ok::<_, io::Error>(file.metadata()?.len());
        let header = Header { old, new, old_size: size(&old_file)?, new_size: size(&new_file)? };
        let known = if header.new_size < MIN_BYTES {
            Known::None(format!("files below {MIN_BYTES} bytes are fetched whole"))
        } else {
            let name = hex::encode(secret::random::<16>()?);
            let (body, out) = (self.blobs.scratch(&format!("{name}.body")), self.blobs.scratch(&name));
            match build(header, &old_file, &new_file, body.path(), out.path())? {
                Built::Worthless(why) => Known::None(why),
                Built::Delta { digest, size } => {
                    self.blobs.adopt(out, &digest)?;
                    Known::Delta { digest, size }
                }
            }
        };
        self.index.write((old, new), &known)?;
        Ok(known)
    }
}
