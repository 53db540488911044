//! Opening a store that may not open: rules 7 and 8.
//!
//! After an unclean stop a child process opens the store first, with a time limit: sled has been seen to panic, to
//! loop and to take minutes on a damaged file, and none of that may take the server down. A store that does not open
//! is renamed, the last export is read into a new one, and the operator is told; nothing is ever deleted.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use plimsoll_protocol::UnixMillis;

use super::Embedded;
use super::durable::CLEAN_MARKER;
use crate::store::StoreError;

/// How long the child may take. sled reads its whole log at open: 237 s were once seen for 50 GB; a server's store
/// is a few hundred MB, a few seconds.
const PROBE_TIMEOUT: Duration = Duration::from_secs(120);
/// How often the child is looked at: an open of a small store takes about this long.
const PROBE_POLL: Duration = Duration::from_millis(20);

/// How to look at a store from outside.
#[derive(Debug, Clone)]
pub enum Probe {
    /// Run this program as `<program> store-probe <dir>`; exit code 0 means that the store opened and every record
    /// was read.
    Child(PathBuf),
    /// Trust the store: for tests, whose own program is not the server's.
    Skip,
}

/// A store, and what had to be done to open it.
pub struct Opened {
    /// The store.
    pub store: Embedded,
    /// In words, for the log and the events; empty when all was well.
    pub notes: Vec<String>,
}

/// Opens the store in `dir`; when it does not open, sets it aside and restores `export`. Blocks.
pub fn open_or_recover(
    dir: &Path,
    export: &Path,
    probe: &Probe,
    now: UnixMillis,
) -> Result<Opened, StoreError> {
    let marker = dir.join(CLEAN_MARKER);
    let unclean = dir.join("db").exists() && !marker.exists();
    if marker.exists() {
        // Gone for good before anything is written: a mark that a power cut brings back would spare the next start
        // its look.
        std::fs::remove_file(&marker)
            .and_then(|()| std::fs::File::open(dir)?.sync_all())
            .map_err(|e| StoreError::storage(format!("removal of {}", marker.display()), e))?;
    }
    let looked = match probe {
        Probe::Child(program) if unclean => run_probe(program, dir),
        _ => Ok(()),
    };
    let why = match looked
        .map_err(Fault::Probe)
        .and_then(|()| Embedded::open(dir).map_err(|error| Fault::Open { error }))
    {
        Ok(store) => return Ok(Opened { store, notes: Vec::new() }),
        Err(why) => why.to_string(),
    };
    set_aside(dir, export, &why, now)
}

/// What the child does: opens the store and reads every record.
pub fn probe(dir: &Path) -> Result<usize, StoreError> {
    Ok(Embedded::open(dir)?.kv.everything::<serde_json::Value>()?.len())
}

#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("{0}")]
    Probe(String),
    #[error("{error}{}", source_of(.error))]
    Open { error: StoreError },
}

fn source_of(error: &StoreError) -> String {
    std::error::Error::source(error).map(|s| format!(": {s}")).unwrap_or_default()
}

fn run_probe(program: &Path, dir: &Path) -> Result<(), String> {
    let mut child = Command::new(program)
        .arg("store-probe")
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .map_err(|e| format!("{} could not be started to look at the store: {e}", program.display()))?;
    let started = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(format!("the store does not open in a child process ({status})")),
            Ok(None) if started.elapsed() < PROBE_TIMEOUT => std::thread::sleep(PROBE_POLL),
            Ok(None) => {
                // Both fail only when the child has ended by itself in this moment.
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("the store did not open within {} s", PROBE_TIMEOUT.as_secs()));
            }
            Err(e) => return Err(format!("the child that looks at the store was lost: {e}")),
        }
    }
}

fn set_aside(dir: &Path, export: &Path, why: &str, now: UnixMillis) -> Result<Opened, StoreError> {
    let aside = dir.with_extension(format!("damaged-{now}"));
    std::fs::rename(dir, &aside)
        .map_err(|e| StoreError::storage(format!("renaming {} to {}", dir.display(), aside.display()), e))?;
    let store = Embedded::open(dir)?;
    let mut notes = vec![format!("store set aside as {}: {why}", aside.display())];
    if export.exists() {
        let count = store.restore(export)?;
        notes.push(format!("{count} records restored from {}: what came after it is lost", export.display()));
    } else {
        notes.push(format!("no export at {}: the store starts empty", export.display()));
    }
    Ok(Opened { store, notes })
}
