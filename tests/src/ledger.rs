//! What the server has committed of what devices reported: its export, which it writes when it stops.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Every record of a server that was stopped, by key.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    /// Key and value.
    pub records: Vec<(String, Value)>,
}

impl Ledger {
    /// Reads the export of a server's state folder.
    pub fn read(state: &Path) -> Result<Self> {
        let path = state.join("export.jsonl");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let record = |line: &str| {
            let line: Value = serde_json::from_str(line)?;
            let key = line["key"].as_str().context("a line without a key")?.to_owned();
            Ok((key, line["value"].clone()))
        };
        let records = text.lines().map(record).collect::<Result<_>>()?;
        Ok(Self { path, records })
    }

    /// Of each boot of each device the numbers from the first to the last are there, without a hole: a report that
    /// was made durable on a device and never came would leave one. Gives the last number of each boot.
    pub fn without_holes(&self) -> Result<BTreeMap<&str, u64>> {
        let mut boots = BTreeMap::new();
        for (key, ranges) in self.records.iter().filter(|(key, _)| key.starts_with("seen/")) {
            let ranges = ranges.as_array().context("no ranges")?;
            ensure!(ranges.len() == 1, "{}: {key} has holes: {ranges:?}", self.path.display());
            let [first, last] = [0, 1].map(|n| ranges[0][n].as_u64());
            ensure!(first.is_some_and(|n| n <= 1), "{key} has lost its first report: {ranges:?}");
            boots.insert(key.as_str(), last.context("no last number")?);
        }
        Ok(boots)
    }
}
