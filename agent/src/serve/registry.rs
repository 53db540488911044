//! Which bundles are in memory, and which one answers for each model.

use std::collections::BTreeMap;
use std::sync::Arc;

use plimsoll_protocol::wire::v1::{DriftReport, ModelHealth};
use plimsoll_protocol::{Digest, ModelName, UnixMillis};

use super::hosted::{Hosted, Retired};

/// Bundles by model and digest. A swap changes one pointer; whoever holds the old bundle finishes on it.
#[derive(Default)]
pub struct Registry {
    loaded: BTreeMap<(ModelName, Digest), Arc<Hosted>>,
    active: BTreeMap<ModelName, Arc<Hosted>>,
}

impl Registry {
    /// Adds a loaded bundle; it takes no requests yet.
    pub fn add(&mut self, hosted: Hosted) {
        let key = (hosted.manifest().model.clone(), hosted.digest());
        self.loaded.insert(key, Arc::new(hosted));
    }

    /// Whether a bundle is in memory.
    pub fn has(&self, model: &ModelName, digest: Digest) -> bool {
        self.loaded.contains_key(&(model.clone(), digest))
    }

    /// Lets a loaded bundle answer for its model; false when it is not loaded. Its measurement window opens.
    pub fn serve(&mut self, model: &ModelName, digest: Digest, now: UnixMillis) -> bool {
        let Some(hosted) = self.loaded.get(&(model.clone(), digest)) else { return false };
        hosted.open_window(now);
        self.active.insert(model.clone(), hosted.clone());
        true
    }

    /// Takes a bundle out; if it answered for its model, nothing does now.
    pub fn remove(&mut self, model: &ModelName, digest: Digest) -> Option<Retired> {
        if self.active.get(model).is_some_and(|active| active.digest() == digest) {
            self.active.remove(model);
        }
        self.loaded.remove(&(model.clone(), digest)).map(Hosted::retire)
    }

    /// The bundle that answers for a model, by the text of a request's path.
    pub fn active(&self, model: &str) -> Option<Arc<Hosted>> {
        ModelName::new(model).ok().and_then(|name| self.active.get(&name).cloned())
    }

    /// All that answer, sorted by model.
    pub fn all_active(&self) -> impl Iterator<Item = &Arc<Hosted>> {
        self.active.values()
    }

    /// Closes every open window; opens the next of those that answer.
    pub fn close_windows(&self, now: UnixMillis) -> Vec<DriftReport> {
        let close = |hosted: &Arc<Hosted>| {
            let active = self.active.get(&hosted.manifest().model);
            hosted.close_window(now, active.is_some_and(|a| a.digest() == hosted.digest()))
        };
        self.loaded.values().flat_map(close).collect()
    }

    /// Counters of everything in memory, sorted by model and digest.
    pub fn health(&self) -> Vec<ModelHealth> {
        self.loaded.values().map(|h| h.health()).collect()
    }
}
