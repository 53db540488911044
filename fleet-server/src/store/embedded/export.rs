//! The logical export: every record as one line of JSON, so that a store that no longer opens can be rebuilt, read
//! by people, or moved to another database.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Embedded;
use crate::store::StoreError;

/// Records written back in one commit: 256 of at most 4 KiB are 1 MiB, well inside one segment group.
const RESTORE_BATCH: usize = 256;

#[derive(Serialize, Deserialize)]
struct Line {
    key: String,
    value: serde_json::Value,
}

impl Embedded {
    /// Writes the export beside `to` and renames it over: a reader finds the old one or the new one.
    pub fn export(&self, to: &Path) -> Result<u64, StoreError> {
        let failed = |e: std::io::Error| StoreError::storage(format!("export to {}", to.display()), e);
        let partial = to.with_extension("partial");
        let mut out = BufWriter::new(File::create(&partial).map_err(failed)?);
        let mut count = 0;
        for (key, value) in self.kv.everything::<serde_json::Value>()? {
            serde_json::to_writer(&mut out, &Line { key, value }).map_err(|e| failed(e.into()))?;
            out.write_all(b"\n").map_err(failed)?;
            count += 1;
        }
        let file = out.into_inner().map_err(|e| failed(e.into_error()))?;
        file.sync_all().map_err(failed)?;
        // The one before stays reachable: a store that opened with less than it had must not take its only copy.
        let previous = to.with_extension("previous.jsonl");
        if to.exists() {
            match std::fs::remove_file(&previous) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
                _ => std::fs::hard_link(to, &previous).map_err(failed)?,
            }
        }
        std::fs::rename(&partial, to).map_err(failed)?;
        if let Some(dir) = to.parent() {
            File::open(dir).and_then(|d| d.sync_all()).map_err(failed)?;
        }
        Ok(count)
    }

    /// Reads an export into an empty store. Blocks; no async runtime may be driving the caller.
    pub fn restore(&self, from: &Path) -> Result<u64, StoreError> {
        let failed = |e: std::io::Error| StoreError::storage(format!("restore from {}", from.display()), e);
        let mut lines = BufReader::new(File::open(from).map_err(failed)?).lines();
        let mut count = 0;
        loop {
            let mut batch: Vec<Line> = Vec::new();
            for line in lines.by_ref().take(RESTORE_BATCH) {
                batch.push(serde_json::from_str(&line.map_err(failed)?).map_err(|e| failed(e.into()))?);
            }
            if batch.is_empty() {
                return Ok(count);
            }
            count += batch.len() as u64;
            self.kv.transact_blocking(move |txn| {
                batch.into_iter().try_for_each(|Line { key, value }| txn.put(key, &value))
            })?;
        }
    }
}
