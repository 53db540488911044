//! sled 0.34.7 made durable: eight rules, one writer, group commit.
//!
//! Plain sled loses acknowledged data in a power cut, because its `flush` is `sync_file_range` on Linux. With the
//! rules below, 63 of 63 recoveries from simulated power cuts were whole. They live here and nowhere else:
//!
//! 1. before open, `snap.*.generating` is deleted: a torn one makes every later open fail;
//! 2. at creation `conf`, the directory and its parent are fsynced;
//! 3. after every `flush`, `db` is fsynced through a descriptor of our own; sled's timed flushing is off;
//! 4. one tree, keys with prefixes, `apply_batch` only: it is atomic within one tree and nowhere else;
//! 5. a value has at most [`chunks::MAX_VALUE`] bytes: bigger pages would become files that sled never syncs.
//!    Longer ones are cut into chunks under the same batch;
//! 6. the cache is bounded (sled's default is 1 GiB);
//! 7. panics unwind, so that a panic of sled while it opens is an error here; after an unclean stop the caller
//!    opens in a child process first (see [`super::probe`]);
//! 8. what does not open is set aside, never deleted (see [`super::recover`]).
//!
//! A commit is answered after the fsync, never before. Jobs that wait while one fsync runs share the next.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};

use super::chunks;
use crate::store::{Reply, StoreError};

/// Rule 6. 64 MiB hold the working set of about 10,000 devices at ~5 KiB each.
const CACHE_BYTES: u64 = 64 * 1024 * 1024;
/// Jobs that may wait for the writer: two groups. The ingest has one job at a time in it, the rest are people. A full
/// queue makes callers wait, which is the back-pressure that reaches them.
const QUEUE: usize = 256;
/// Jobs of one group commit. One fsync costs 1 to 10 ms: 128 jobs a group are more than 10,000 commits a second.
const GROUP: usize = 128;

/// A file beside sled's that says that the last writer ended in order.
pub const CLEAN_MARKER: &str = "clean";

type Writes = BTreeMap<String, Option<Vec<u8>>>;
type Finish = Box<dyn FnOnce(Result<(), StoreError>) + Send>;
type Job = Box<dyn FnOnce(&mut Txn<'_>) -> Finish + Send>;

/// An open store. Dropping it finishes what waits and closes sled.
pub struct Durable {
    tree: sled::Tree,
    jobs: Option<mpsc::Sender<Job>>,
    writer: Option<std::thread::JoinHandle<Option<StoreError>>>,
    dir: PathBuf,
}

impl Durable {
    /// Opens or creates the store in `dir`. Blocks; to be called outside of the async workers.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let failed = |what: &str| {
            let what = format!("{what} of the store {}", dir.display());
            move |e: std::io::Error| StoreError::storage(what, e)
        };
        let created = !dir.join("db").exists();
        std::fs::create_dir_all(dir).map_err(failed("creation"))?;
        remove_torn_snapshots(dir).map_err(failed("clean-up"))?;
        let config = sled::Config::new()
            .path(dir)
            .flush_every_ms(None)
            .cache_capacity(CACHE_BYTES)
            .mode(sled::Mode::LowSpace);
        let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || config.open()));
        let db = match opened {
            Ok(Ok(db)) => db,
            Ok(Err(e)) => return Err(StoreError::storage(format!("opening the store {}", dir.display()), e)),
            Err(_) => return Err(StoreError::Corrupt(dir.display().to_string())),
        };
        if created {
            sync_creation(dir).map_err(failed("first fsync"))?;
        }
        let file = File::open(dir.join("db")).map_err(failed("second descriptor"))?;
        let tree: sled::Tree = (*db).clone();
        let (jobs, queue) = mpsc::channel(QUEUE);
        let owned = Writer { _db: db, tree: tree.clone(), file, path: dir.join("db"), broken: None };
        let writer = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || owned.run(queue))
            .map_err(failed("writer thread"))?;
        Ok(Self { tree, jobs: Some(jobs), writer: Some(writer), dir: dir.to_owned() })
    }

    /// Runs `decide` alone among all writers. What it wrote is durable when the reply is `Ok`; when it answers an
    /// error, nothing of it is written.
    pub fn transact<T, F>(&self, decide: F) -> Reply<'_, T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Txn<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let (job, answered) = job(decide);
        let jobs = self.jobs.clone();
        Box::pin(async move {
            let jobs = jobs.ok_or(StoreError::Stopped)?;
            jobs.send(job).await.map_err(|_| StoreError::Stopped)?;
            answered.await.map_err(|_| StoreError::Stopped)?
        })
    }

    /// [`Durable::transact`] for a thread that drives no async runtime.
    pub fn transact_blocking<T, F>(&self, decide: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Txn<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let (job, answered) = job(decide);
        let jobs = self.jobs.as_ref().ok_or(StoreError::Stopped)?;
        jobs.blocking_send(job).map_err(|_| StoreError::Stopped)?;
        answered.blocking_recv().map_err(|_| StoreError::Stopped)?
    }

    /// One value as committed.
    pub fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, StoreError> {
        chunks::read(&self.tree, key)?.map(|bytes| decode(key, &bytes)).transpose()
    }

    /// All values under a prefix, in the order of their keys.
    pub fn scan<T: DeserializeOwned>(&self, prefix: &str) -> Result<Vec<(String, T)>, StoreError> {
        self.tree.scan_prefix(prefix).map(|entry| self.entry(entry)).collect()
    }

    /// Every record there is.
    pub fn everything<T: DeserializeOwned>(&self) -> Result<Vec<(String, T)>, StoreError> {
        self.tree.range(..chunks::PREFIX.to_string()).map(|entry| self.entry(entry)).collect()
    }

    /// The last `limit` values under a prefix whose key is below `before`, newest first.
    pub fn scan_back<T: DeserializeOwned>(
        &self,
        prefix: &str,
        before: &str,
        limit: usize,
    ) -> Result<Vec<(String, T)>, StoreError> {
        self.tree.range(prefix..before).rev().take(limit).map(|entry| self.entry(entry)).collect()
    }

    fn entry<T: DeserializeOwned>(
        &self,
        entry: Result<(sled::IVec, sled::IVec), sled::Error>,
    ) -> Result<(String, T), StoreError> {
        let (key, value) = entry.map_err(|e| StoreError::storage("scan", e))?;
        let key = String::from_utf8_lossy(&key).into_owned();
        let value = match value.split_first() {
            Some((&chunks::WHOLE, bytes)) => decode(&key, bytes)?,
            _ => self.get(&key)?.ok_or_else(|| StoreError::Corrupt(key.clone()))?,
        };
        Ok((key, value))
    }
}

impl Drop for Durable {
    fn drop(&mut self) {
        self.jobs = None;
        // A writer that panicked, or that met an error, leaves no marker: the next start looks twice.
        if let Some(Ok(None)) = self.writer.take().map(std::thread::JoinHandle::join)
            && let Err(error) = File::create(self.dir.join(CLEAN_MARKER))
        {
            tracing::warn!(store.path = %self.dir.display(), %error, "clean stop could not be marked");
        }
    }
}

/// A job and where its answer arrives.
fn job<T, F>(decide: F) -> (Job, oneshot::Receiver<Result<T, StoreError>>)
where
    T: Send + 'static,
    F: FnOnce(&mut Txn<'_>) -> Result<T, StoreError> + Send + 'static,
{
    let (answer, answered) = oneshot::channel();
    let job: Job = Box::new(move |txn| {
        let result = decide(txn);
        if result.is_err() {
            txn.own.clear();
        }
        Box::new(move |committed| {
            // A caller that went away no longer wants the answer; the commit stands.
            let _ = answer.send(committed.and(result));
        })
    });
    (job, answered)
}

/// What a job sees: the committed state, over it what earlier jobs of the same group wrote, over it its own writes.
pub struct Txn<'a> {
    tree: &'a sled::Tree,
    group: &'a Writes,
    own: Writes,
}

impl Txn<'_> {
    /// One value.
    pub fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, StoreError> {
        self.raw(key)?.map(|bytes| decode(key, &bytes)).transpose()
    }

    /// Writes a value when the job succeeds.
    pub fn put<T: Serialize>(&mut self, key: String, value: &T) -> Result<(), StoreError> {
        let bytes =
            serde_json::to_vec(value).map_err(|e| StoreError::storage(format!("encoding {key}"), e))?;
        self.own.insert(key, Some(bytes));
        Ok(())
    }

    /// Removes a value when the job succeeds. Nothing happens when there is none.
    pub fn delete(&mut self, key: String) {
        self.own.insert(key, None);
    }

    fn raw(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        match self.own.get(key).or_else(|| self.group.get(key)) {
            Some(written) => Ok(written.clone()),
            None => chunks::read(self.tree, key),
        }
    }
}

/// The thread that owns all writes.
struct Writer {
    _db: sled::Db,
    tree: sled::Tree,
    file: File,
    path: PathBuf,
    /// Set by the first commit that failed. An fsync that failed may have dropped pages, and a second one that
    /// succeeds proves nothing about them: nothing is written any more until a restart has read what is there.
    broken: Option<StoreError>,
}

impl Writer {
    /// Until every handle is gone; answers the error that stopped the writes, if one did.
    fn run(mut self, mut queue: mpsc::Receiver<Job>) -> Option<StoreError> {
        while let Some(first) = queue.blocking_recv() {
            let mut group = Writes::new();
            let mut waiting = Vec::new();
            let mut next = Some(first);
            while let Some(job) = next {
                let mut txn = Txn { tree: &self.tree, group: &group, own: Writes::new() };
                waiting.push(job(&mut txn));
                let own = txn.own;
                group.extend(own);
                next = if waiting.len() < GROUP { queue.try_recv().ok() } else { None };
            }
            let result = self.commit(group);
            for finish in waiting {
                finish(result.clone());
            }
        }
        self.broken
    }

    fn commit(&mut self, group: Writes) -> Result<(), StoreError> {
        if let Some(broken) = &self.broken {
            return Err(broken.clone());
        }
        if group.is_empty() {
            return Ok(());
        }
        let result = self.write(group);
        if let Err(error) = &result {
            tracing::error!(store.path = %self.path.display(), error = %error, "commit failed; store refuses writes");
            self.broken = Some(error.clone());
        }
        result
    }

    fn write(&self, group: Writes) -> Result<(), StoreError> {
        let failed = |e: sled::Error| StoreError::storage(format!("commit to {}", self.path.display()), e);
        let mut batch = sled::Batch::default();
        for (key, value) in group {
            let before = chunks::count(self.tree.get(&key).map_err(failed)?.as_deref());
            let after = match value {
                Some(bytes) => chunks::insert(&mut batch, &key, &bytes),
                None => {
                    batch.remove(key.as_bytes());
                    0
                }
            };
            for index in after..before {
                batch.remove(chunks::key(&key, index).as_bytes());
            }
        }
        self.tree.apply_batch(batch).map_err(failed)?;
        self.tree.flush().map_err(failed)?;
        self.file.sync_all().map_err(|e| StoreError::storage(format!("fsync of {}", self.path.display()), e))
    }
}

fn decode<T: DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(bytes).map_err(|e| StoreError::storage(format!("decoding {key}"), e))
}

/// Rule 1.
fn remove_torn_snapshots(dir: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            tracing::warn!(store.file = %entry.path().display(), "torn snapshot of an interrupted run removed");
            std::fs::remove_file(entry.path())?;
        }
    }
    File::open(dir)?.sync_all()
}

/// Rule 2.
fn sync_creation(dir: &Path) -> std::io::Result<()> {
    for name in ["conf", "db"] {
        File::open(dir.join(name))?.sync_all()?;
    }
    File::open(dir)?.sync_all()?;
    match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}
