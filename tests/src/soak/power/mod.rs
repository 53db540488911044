//! Power cuts: the disk of a device's agent, or of the server, goes away at a random instant of real work, and comes
//! back with what had reached it.

mod device;
mod server;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use rand::{RngExt, rngs::StdRng};

use crate::disk::Cut;

pub use device::{DeviceCuts, device};
pub use server::{ServerCuts, server};

/// Both kinds, the one that takes most twice as often.
fn some_cut(chance: &mut StdRng) -> Cut {
    if chance.random_ratio(2, 3) { Cut::Everything } else { Cut::Contents }
}

/// A log from a point on, in which these words must not be.
struct Log<'a> {
    path: &'a Path,
    from: u64,
}

impl<'a> Log<'a> {
    fn from_now(path: &'a Path) -> Self {
        Self { path, from: std::fs::metadata(path).map_or(0, |m| m.len()) }
    }

    fn is_free_of(&self, words: &[&str]) -> Result<()> {
        let text = std::fs::read(self.path).with_context(|| self.path.display().to_string())?;
        let new = text.get(usize::try_from(self.from)?..).unwrap_or_default();
        let new = String::from_utf8_lossy(new);
        for line in new.lines() {
            let bad = words.iter().find(|word| line.contains(**word));
            ensure!(bad.is_none(), "after the cut its log says {bad:?}: {line}");
        }
        Ok(())
    }
}
