//! Which bundles are in memory, which of them answer, and which one answers for each model.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use plimsoll_protocol::wire::v1::{DriftReport, ModelHealth};
use plimsoll_protocol::{Digest, ModelName, UnixMillis};

use super::account::Account;
use super::hosted::{Hang, Hosted, Retired};
use super::shadow::Shadow;

/// Bundles of a model that are out of memory and whose answers may still get a label: the one before, and the one that
/// was tried and went.
const PAST_KEPT: usize = 2;

/// Bundles by model and digest. A swap changes one pointer; whoever holds the old bundle finishes on it.
///
/// A bundle that was told to serve answers requests that name its version until it is taken out, also when another
/// one has become the model's answer to requests that name none. One that is only loaded answers nothing.
#[derive(Default)]
pub struct Registry {
    loaded: BTreeMap<(ModelName, Digest), Arc<Hosted>>,
    served: BTreeMap<(ModelName, semver::Version), Arc<Hosted>>,
    active: BTreeMap<ModelName, Arc<Hosted>>,
    /// Candidates that are compared with what answers for their model.
    shadows: BTreeMap<ModelName, Shadow>,
    /// Models that are to serve; `None` until somebody said which.
    expected: Option<BTreeSet<ModelName>>,
    /// The newest last.
    past: Vec<Account>,
    /// Time of the last order, by the driver's clock: that of windows which a late label opens.
    now: UnixMillis,
}

impl Registry {
    /// Says which models are to serve.
    pub fn expect(&mut self, models: impl IntoIterator<Item = ModelName>) {
        self.expected = Some(models.into_iter().collect());
    }

    /// Whether a model that does not serve may do so soon: an application that asks while the agent starts should
    /// come again and not give up.
    pub fn is_coming(&self, model: &str) -> bool {
        let Some(expected) = &self.expected else { return true };
        ModelName::new(model).is_ok_and(|name| expected.contains(&name))
    }

    /// Adds a loaded bundle; it takes no requests yet.
    pub fn add(&mut self, hosted: Hosted) {
        if let Some(at) = self.past.iter().position(|p| p.digest() == hosted.digest()) {
            hosted.account().inherit(&self.past.remove(at));
        }
        let key = (hosted.manifest().model.clone(), hosted.digest());
        self.loaded.insert(key, Arc::new(hosted));
    }

    /// Whether a bundle is in memory.
    pub fn has(&self, model: &ModelName, digest: Digest) -> bool {
        self.loaded.contains_key(&(model.clone(), digest))
    }

    /// A bundle in memory, whether it answers or not.
    pub fn loaded(&self, model: &ModelName, digest: Digest) -> Option<Arc<Hosted>> {
        self.loaded.get(&(model.clone(), digest)).cloned()
    }

    /// Compares a candidate with what answers for its model, instead of the one before; `None` compares no more. Ends by
    /// itself when either leaves memory or the candidate serves.
    pub fn set_shadow(&mut self, model: &ModelName, shadow: Option<Shadow>) {
        self.shadows.remove(model);
        self.shadows.extend(shadow.map(|shadow| (model.clone(), shadow)));
    }

    /// Candidates that are compared, sorted by model.
    pub fn shadows(&self) -> impl Iterator<Item = (&ModelName, &Shadow)> {
        self.shadows.iter()
    }

    /// Lets a loaded bundle answer for its model; false when it is not loaded. Its measurement window opens.
    pub fn serve(&mut self, model: &ModelName, digest: Digest, now: UnixMillis) -> bool {
        let Some(hosted) = self.loaded.get(&(model.clone(), digest)) else { return false };
        self.shadows.retain(|_, shadow| shadow.candidate() != digest);
        hosted.account().open_window(now);
        self.now = now;
        self.served.insert((model.clone(), hosted.manifest().version.clone()), hosted.clone());
        self.active.insert(model.clone(), hosted.clone());
        true
    }

    /// Takes a bundle out; if it answered for its model, nothing does now.
    pub fn remove(&mut self, model: &ModelName, digest: Digest) -> Option<Retired> {
        self.shadows.retain(|name, shadow| name != model || !shadow.concerns(digest));
        if self.active.get(model).is_some_and(|h| h.digest() == digest) {
            self.active.remove(model);
            self.expected.iter_mut().for_each(|expected| _ = expected.remove(model));
        }
        self.served.retain(|_, h| (&h.manifest().model, h.digest()) != (model, digest));
        let hosted = self.loaded.remove(&(model.clone(), digest))?;
        self.past.push(hosted.account().clone());
        let of_model = self.past.iter().filter(|p| p.model() == model).count();
        if of_model > PAST_KEPT
            && let Some(oldest) = self.past.iter().position(|p| p.model() == model)
        {
            self.past.remove(oldest);
        }
        Some(hosted.retire())
    }

    /// What is counted of the bundle of a model whose digest begins so, in memory or lately so.
    pub fn account(&self, model: &str, short: &str) -> Option<Account> {
        let model = ModelName::new(model).ok()?;
        let loaded = self.loaded.values().map(|h| h.account());
        loaded.chain(&self.past).find(|a| *a.model() == model && a.digest().short() == short).cloned()
    }

    /// Time of the last order.
    pub const fn now(&self) -> UnixMillis {
        self.now
    }

    /// The bundle that answers for a model, by the text of a request's path.
    pub fn active(&self, model: &str) -> Option<Arc<Hosted>> {
        ModelName::new(model).ok().and_then(|name| self.active.get(&name).cloned())
    }

    /// The bundle that answers for one version of a model, by the text of a request's path.
    pub fn of_version(&self, model: &ModelName, version: &str) -> Option<Arc<Hosted>> {
        let version = semver::Version::parse(version).ok()?;
        self.served.get(&(model.clone(), version)).cloned()
    }

    /// Versions of a model that answer, oldest first.
    pub fn versions(&self, model: &ModelName) -> impl Iterator<Item = String> {
        self.served.keys().filter(move |(m, _)| m == model).map(|(_, version)| version.to_string())
    }

    /// All models' answers, sorted by model.
    pub fn all_active(&self) -> impl Iterator<Item = &Arc<Hosted>> {
        self.active.values()
    }

    /// All that answer, sorted by model and version.
    pub fn all_served(&self) -> impl Iterator<Item = &Arc<Hosted>> {
        self.served.values()
    }

    /// Closes every open window; opens the next of those that answer for their model.
    pub fn close_windows(&mut self, now: UnixMillis) -> Vec<DriftReport> {
        self.now = now;
        let close = |hosted: &Arc<Hosted>| {
            let active = self.active.get(&hosted.manifest().model);
            hosted.account().close_window(now, active.is_some_and(|a| a.digest() == hosted.digest()))
        };
        let past = self.past.iter().flat_map(|account| account.close_window(now, false));
        self.loaded.values().flat_map(close).chain(past).collect()
    }

    /// A run that will not end, if one is under way in any bundle.
    pub fn hangs(&self, now: Instant) -> Option<Hang> {
        self.loaded.values().find_map(|hosted| hosted.hangs(now))
    }

    /// Counters of everything in memory, sorted by model and digest.
    pub fn health(&self) -> Vec<ModelHealth> {
        self.loaded.values().map(|h| h.account().health()).collect()
    }
}
