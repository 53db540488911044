//! The outbox: reports wait here, durably, until the server says that it has committed them.
//!
//! One `redb` database (it survived 22 of 22 simulated power cuts). An entry's key sorts by class first, so events
//! leave before what shadows saw, that before progress reports, and those before measurement windows, and within a class the oldest leaves first.
//! The outbox is bounded in bytes: room is made *before* a write, from the least important class, oldest first, and
//! counted; so it works on a full disk as soon as it has reached its size once, and an error is an answer that stops
//! nothing else.
//!
//! A database that does not open never stops a device: it is set aside as `outbox.broken`, a new one is made, and
//! the caller is told so that it can report it.

mod entry;

use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};

use plimsoll_protocol::Incarnation;
use plimsoll_protocol::wire::v1::{Ack, MAX_REPORT_BYTES, Up};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

pub use entry::{Class, Waiting};
use entry::{Key, LAST_CLASS, OVERHEAD};

const REPORTS: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("reports.1");
/// Pages that redb keeps in memory: reports leave in the order they came, so a few leaves are enough.
const CACHE_BYTES: usize = 256 * 1024;
/// Smallest bound that makes sense: 20 reports of the largest size.
pub const MIN_BYTES: u64 = 64 * 1024;

/// A failure of the outbox: what was tried on which file. Nothing is lost that was there before.
#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    /// Another process has it open.
    #[error("another agent works with {}", .0.display())]
    Busy(PathBuf),
    /// The store refused.
    #[error("cannot {what} {}", .path.display())]
    Store {
        /// `open`, `write`, `read`, …
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the store said.
        #[source]
        source: Box<redb::Error>,
    },
    /// Could not be set aside.
    #[error("cannot set {} aside", .path.display())]
    SetAside {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Longer than the protocol allows; the caller splits it.
    #[error("a report of {0} bytes does not fit; the protocol allows {MAX_REPORT_BYTES}")]
    TooBig(usize),
    /// Only events, progress and windows wait; the rest is sent or forgotten.
    #[error("a report of kind {0:?} does not go through the outbox")]
    Kind(Up),
}

/// A report to store. Its envelope carries `seq`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewReport {
    /// Event, job or drift.
    pub kind: Up,
    /// From [`Outbox::next_seq`].
    pub seq: u64,
    /// The envelope as it will be published.
    pub json: Vec<u8>,
}

/// What became of a push.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pushed {
    /// Reports that are durable now.
    pub stored: u64,
    /// Reports, old or new, that had to go.
    pub dropped: u64,
}

/// The open outbox.
#[derive(Debug)]
pub struct Outbox {
    path: PathBuf,
    /// `None` after a failure of the store, which then has to be opened again before it answers.
    db: Option<Database>,
    inc: Incarnation,
    boot: u64,
    max_bytes: u64,
    next_seq: u64,
    entries: u64,
    bytes: u64,
    dropped: u64,
    recreated: u64,
}

impl Outbox {
    /// Opens or creates the outbox for one start of the agent. `inc` and `boot` must be durable in the anchor, so that
    /// no two reports ever carry the same (inc, boot, seq).
    pub fn open(path: &Path, max_bytes: u64, inc: Incarnation, boot: u64) -> Result<Self, OutboxError> {
        let mut this = Self {
            path: path.to_owned(),
            db: None,
            inc,
            boot,
            max_bytes: max_bytes.max(MIN_BYTES),
            next_seq: 0,
            entries: 0,
            bytes: 0,
            dropped: 0,
            recreated: 0,
        };
        this.reopen()?;
        Ok(this)
    }

    /// An outbox that ends with the process, for a device whose disk takes no writes.
    pub fn in_memory(max_bytes: u64, inc: Incarnation, boot: u64) -> Result<Self, OutboxError> {
        Self::open(Path::new(""), max_bytes, inc, boot)
    }

    /// Says under which start new reports are stored, when that is known later than what waits.
    pub const fn begin(&mut self, inc: Incarnation, boot: u64) {
        self.inc = inc;
        self.boot = boot;
        self.next_seq = 0;
    }

    /// The next sequence number of this boot. A number that is drawn and not stored is a gap, which is harmless.
    pub const fn next_seq(&mut self) -> u64 {
        let seq = self.next_seq;
        self.next_seq += 1;
        seq
    }

    /// Stores reports in one durable commit. Makes room first; a report that finds only more important ones waits
    /// for nothing and is dropped. On an error none is stored.
    pub fn push(&mut self, reports: &[NewReport]) -> Result<Pushed, OutboxError> {
        let mut new = Vec::with_capacity(reports.len());
        for report in reports {
            if report.json.len() > MAX_REPORT_BYTES {
                return Err(OutboxError::TooBig(report.json.len()));
            }
            let class = Class::of(report.kind).ok_or(OutboxError::Kind(report.kind))?;
            new.push((
                Key { class, boot: self.boot, seq: report.seq, inc: self.inc },
                report.json.as_slice(),
            ));
        }
        let (entries, bytes, max) = (self.entries, self.bytes, self.max_bytes);
        let done = self.write(move |table| {
            let mut room = Room { entries, bytes, max, pushed: Pushed::default() };
            for (key, json) in &new {
                room.store(table, *key, json)?;
            }
            Ok(room)
        })?;
        (self.entries, self.bytes) = (done.entries, done.bytes);
        self.dropped += done.pushed.dropped;
        Ok(done.pushed)
    }

    /// The reports to send next, most important first, oldest first: at most `limit`, and no more than fit into
    /// `max_bytes`.
    pub fn pending(&mut self, limit: usize, max_bytes: u64) -> Result<Vec<Waiting>, OutboxError> {
        self.read(|table| {
            let (mut waiting, mut bytes) = (Vec::new(), 0_u64);
            for entry in table.range::<&[u8]>(..)?.take(limit) {
                let (key, value) = entry?;
                bytes = bytes.saturating_add(value.value().len() as u64);
                if bytes > max_bytes {
                    break;
                }
                waiting.extend(Key::decode(key.value()).map(|key| key.waiting(value.value().to_vec())));
            }
            Ok(waiting)
        })
    }

    /// Forgets what the server says that it has committed, and nothing else; says how many reports that were.
    pub fn forget(&mut self, ack: &Ack) -> Result<u64, OutboxError> {
        let (removed, freed) = self.write(|table| {
            let mut gone = (0, 0);
            for (boot, low, high) in ack.ranges.iter().filter(|(_, low, high)| low <= high) {
                for class in Class::ALL {
                    let [from, to] = Key::range(class, *boot, *low, *high);
                    let theirs = |key: &[u8]| Key::decode(key).is_some_and(|key| key.inc == ack.inc);
                    for entry in
                        table.extract_from_if::<&[u8], _>(&from[..]..=&to[..], |key, _| theirs(key))?
                    {
                        let (_, value) = entry?;
                        gone = (gone.0 + 1, gone.1 + cost(value.value().len()));
                    }
                }
            }
            Ok(gone)
        })?;
        self.entries = self.entries.saturating_sub(removed);
        self.bytes = self.bytes.saturating_sub(freed);
        Ok(removed)
    }

    /// Reports that wait.
    pub const fn len(&self) -> u64 {
        self.entries
    }

    /// Whether none waits.
    pub const fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Bytes of the reports that wait, their keys included.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Reports dropped for want of room since this start.
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }

    /// How often the database was set aside and made anew since this start; worth an event when it rises.
    pub const fn recreated(&self) -> u64 {
        self.recreated
    }

    /// The highest boot number of a report that waits. A device that lost its anchor counts on from here, so that
    /// the reports of its past stay apart from its new ones.
    pub fn highest_boot(&mut self) -> Result<u64, OutboxError> {
        self.read(|table| {
            let mut highest = 0;
            for entry in table.range::<&[u8]>(..)? {
                let (key, _) = entry?;
                highest = highest.max(Key::decode(key.value()).map_or(0, |key| key.boot));
            }
            Ok(highest)
        })
    }

    /// Opens the database; one that cannot be read is set aside, and the next is a new one.
    fn reopen(&mut self) -> Result<(), OutboxError> {
        self.db = None;
        let (db, entries, bytes) = match self.try_open() {
            Ok(opened) => opened,
            Err(Opening::Fatal(error)) => return Err(error),
            Err(Opening::Broken(why)) => {
                tracing::warn!(outbox.path = %self.path.display(), error = %why, "outbox set aside and made anew");
                let aside = self.path.with_extension("broken");
                std::fs::rename(&self.path, aside)
                    .map_err(|source| OutboxError::SetAside { path: self.path.clone(), source })?;
                self.recreated += 1;
                self.try_open().map_err(|e| match e {
                    Opening::Fatal(error) => error,
                    Opening::Broken(why) => self.store("create")(redb::Error::Corrupted(why)),
                })?
            }
        };
        (self.db, self.entries, self.bytes) = (Some(db), entries, bytes);
        Ok(())
    }

    /// Opens and counts. A damaged file may make the store panic on a page that it takes for its own; that is one
    /// more way to be broken, and must not end the agent.
    fn try_open(&self) -> Result<(Database, u64, u64), Opening> {
        let open = || -> Result<_, redb::Error> {
            let mut builder = Database::builder();
            builder.set_cache_size(CACHE_BYTES);
            let db = if self.path.as_os_str().is_empty() {
                builder.create_with_backend(redb::backends::InMemoryBackend::new())?
            } else {
                open_file(&builder, &self.path)?
            };
            let txn = db.begin_write()?;
            let mut counted = (0, 0);
            for entry in txn.open_table(REPORTS)?.range::<&[u8]>(..)? {
                let (_, value) = entry?;
                counted = (counted.0 + 1, counted.1 + cost(value.value().len()));
            }
            txn.commit()?;
            Ok((db, counted.0, counted.1))
        };
        match std::panic::catch_unwind(AssertUnwindSafe(open)) {
            Ok(Ok(opened)) => Ok(opened),
            Ok(Err(redb::Error::DatabaseAlreadyOpen)) => {
                Err(Opening::Fatal(OutboxError::Busy(self.path.clone())))
            }
            // The disk, not the file: what waits there may be readable tomorrow.
            Ok(Err(error @ redb::Error::Io(_))) if !is_damage(&error) => {
                Err(Opening::Fatal(self.store("open")(error)))
            }
            Ok(Err(error)) => Err(Opening::Broken(error.to_string())),
            Err(_) => Err(Opening::Broken("the store panicked on it".into())),
        }
    }

    fn store(&self, what: &'static str) -> impl FnOnce(redb::Error) -> OutboxError {
        let path = self.path.clone();
        move |source| OutboxError::Store { what, path, source: Box::new(source) }
    }

    /// Runs one durable transaction. After a failure the store is opened again before its next use, because it
    /// refuses everything after an I/O error.
    fn write<T>(
        &mut self,
        work: impl FnOnce(&mut Table<'_>) -> Result<T, redb::Error>,
    ) -> Result<T, OutboxError> {
        self.run("write", |db| {
            let txn = db.begin_write()?;
            let mut table = txn.open_table(REPORTS)?;
            let result = work(&mut table)?;
            drop(table);
            txn.commit()?;
            Ok(result)
        })
    }

    fn read<T>(&mut self, work: impl FnOnce(&ReadTable) -> Result<T, redb::Error>) -> Result<T, OutboxError> {
        self.run("read", |db| work(&db.begin_read()?.open_table(REPORTS)?))
    }

    fn run<T>(
        &mut self,
        what: &'static str,
        work: impl FnOnce(&Database) -> Result<T, redb::Error>,
    ) -> Result<T, OutboxError> {
        if self.db.is_none() {
            self.reopen()?;
        }
        let Some(db) = &self.db else { return Err(self.store(what)(redb::Error::DatabaseClosed)) };
        match std::panic::catch_unwind(AssertUnwindSafe(|| work(db))) {
            Ok(Ok(done)) => Ok(done),
            failed => {
                self.db = None;
                let panicked = || redb::Error::Corrupted("the store panicked".into());
                Err(self.store(what)(
                    failed.map_or_else(|_| panicked(), |r| r.err().unwrap_or_else(panicked)),
                ))
            }
        }
    }
}

type Table<'t> = redb::Table<'t, &'static [u8], &'static [u8]>;
type ReadTable = redb::ReadOnlyTable<&'static [u8], &'static [u8]>;

enum Opening {
    /// Leave the file alone.
    Fatal(OutboxError),
    /// Set it aside.
    Broken(String),
}

/// Whether an I/O error speaks of the file's contents: too short, not a database.
fn is_damage(error: &redb::Error) -> bool {
    use std::io::ErrorKind::{InvalidData, UnexpectedEof};
    matches!(error, redb::Error::Io(e) if matches!(e.kind(), InvalidData | UnexpectedEof))
}

const fn cost(json: usize) -> u64 {
    json as u64 + OVERHEAD
}

/// Book-keeping of one push.
struct Room {
    entries: u64,
    bytes: u64,
    max: u64,
    pushed: Pushed,
}

impl Room {
    fn store(&mut self, table: &mut Table<'_>, key: Key, json: &[u8]) -> Result<(), redb::Error> {
        while self.bytes + cost(json.len()) > self.max {
            if !self.evict(table, key.class)? {
                self.pushed.dropped += 1; // only more important ones wait
                return Ok(());
            }
        }
        table.insert(&key.encode()[..], json)?;
        self.entries += 1;
        self.bytes += cost(json.len());
        self.pushed.stored += 1;
        Ok(())
    }

    /// Drops the oldest report of the least important class that is not above `class`.
    fn evict(&mut self, table: &mut Table<'_>, class: Class) -> Result<bool, redb::Error> {
        for candidate in (class.rank()..=LAST_CLASS).rev() {
            let (from, to) = ([candidate], [candidate + 1]);
            let oldest = table.range::<&[u8]>(&from[..]..&to[..])?.next().transpose()?;
            let Some((key, size)) = oldest.map(|(k, v)| (k.value().to_vec(), v.value().len())) else {
                continue;
            };
            table.remove(key.as_slice())?;
            self.entries -= 1;
            self.bytes -= cost(size);
            self.pushed.dropped += 1;
            return Ok(true);
        }
        Ok(false)
    }
}

/// In the tests of power cuts, what the store does to its file is written down.
fn open_file(builder: &redb::Builder, path: &Path) -> Result<Database, redb::Error> {
    #[cfg(test)]
    if crate::files::simulator::watching() {
        let recorded = crate::files::simulator::Recorded::open(path).map_err(redb::Error::Io)?;
        return Ok(builder.create_with_backend(recorded)?);
    }
    Ok(builder.create(path)?)
}

#[cfg(test)]
mod tests;
