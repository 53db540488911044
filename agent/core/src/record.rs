//! What survives a crash: the part of the core that the anchor stores.
//!
//! Nothing here is a time: monotonic clocks end with the process and wall clocks lie. Holds and deadlines are
//! volatile and start anew after a crash; what bounds a device that keeps crashing are the tries, which are here.

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_protocol::wire::v1::DesiredModel;
use plimsoll_protocol::{Digest, Generation, ModelName};
use serde::{Deserialize, Serialize};

/// Most models of a device. With [`MAX_BLOCKED`] it bounds the anchor: 8 models of at most 2.2 KB (order, active,
/// previous, reason), 32 blocked of 0.45 KB and 32 tries of 0.2 KB stay under 40 KB.
pub const MAX_MODELS: usize = 8;
/// Most bundles that a device remembers as blocked; the oldest is forgotten first.
pub const MAX_BLOCKED: usize = 32;
/// Most bundles whose tries are counted: three a model and some of the past.
pub const MAX_TRIES: usize = 32;
/// Most blocked bundles of one order that are kept, the first ones: the server lists the newest first.
pub const MAX_ORDER_BLOCKED: usize = 8;
/// Longest version in an order, bytes: `1.2.3-rc.1+build.20261121` is 25.
pub const MAX_VERSION: usize = 64;
/// Longest reason kept, bytes: three lines of a terminal.
pub const MAX_REASON: usize = 240;

/// Everything that the anchor keeps for the core.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Persistent {
    /// Of the newest order accepted. Never falls.
    pub generation: Generation,
    /// The fleet's pause, kept so that a restart does not slip through it.
    #[serde(default)]
    pub paused: bool,
    /// A pause by the person at the device.
    #[serde(default)]
    pub paused_here: bool,
    /// Bundles in slots whose removal this device has seen in the signed metadata: what runs goes on running, and
    /// nothing else of them is ever started. Only of slots: three a model at most.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub revoked: BTreeSet<Digest>,
    /// At most [`MAX_MODELS`].
    #[serde(default)]
    pub models: BTreeMap<ModelName, ModelRecord>,
    /// Risky steps begun, by bundle. At most [`MAX_TRIES`], oldest first.
    #[serde(default)]
    pub tries: Vec<Tries>,
    /// Bundles that this device found bad. At most [`MAX_BLOCKED`], oldest first.
    #[serde(default)]
    pub blocked: Vec<Blocked>,
}

/// One model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelRecord {
    /// Where its order stands.
    pub state: State,
    /// The newest order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
    /// What is served, on trial or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<Installed>,
    /// What a rollback returns to. Its trial has passed, always.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Installed>,
}

/// An order and the generation it came with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// Of the document.
    pub generation: Generation,
    /// The order.
    pub wanted: DesiredModel,
    /// Given by somebody at the device, who brought the bundle: it waits for no sign of life of the server.
    #[serde(default, skip_serializing_if = "is_false")]
    pub local: bool,
}

/// For fields that are rarely true.
#[allow(clippy::trivially_copy_pass_by_ref)] // as serde calls it
const fn is_false(value: &bool) -> bool {
    !*value
}

/// For counts that are rarely more.
#[allow(clippy::trivially_copy_pass_by_ref)] // as serde calls it
const fn is_zero(value: &u32) -> bool {
    *value == 0
}

/// A bundle in a slot that is or was served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installed {
    /// Version.
    pub version: semver::Version,
    /// Digest of its `bundle.json`, which names the slot.
    pub digest: Digest,
    /// Whether its trial has ended well.
    pub trial_passed: bool,
    /// Resident memory that its self-test needed on this device at its peak; 0 where it is not known.
    #[serde(default)]
    pub ram_bytes: u64,
}

/// Where an order stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "at", rename_all = "snake_case")]
pub enum State {
    /// No order.
    #[default]
    Idle,
    /// For jitter, a pause or a retry.
    Waiting,
    /// Metadata, manifest, files.
    Fetching,
    /// All hashed, not yet durable.
    Verified,
    /// Durable in its slot; golden samples run, or wait for another try.
    Staged,
    /// May be activated: waits for the lease, the end of a pause, the serving child.
    SelfTested,
    /// Loaded beside what runs, and compared with it.
    Shadowing,
    /// Being loaded beside what runs.
    Activating,
    /// Runs, on trial.
    Probation,
    /// Runs; the trial passed.
    Active,
    /// Never ran; what ran before was not touched.
    Failed {
        /// Why.
        reason: String,
    },
    /// Ran, was found bad here, and was replaced by what ran before.
    RolledBack {
        /// Why.
        reason: String,
    },
    /// This device cannot run it.
    NotApplicable {
        /// Why.
        reason: String,
    },
}

impl State {
    /// Its name in errors and logs.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Waiting => "waiting",
            Self::Fetching => "fetching",
            Self::Verified => "verified",
            Self::Staged => "staged",
            Self::SelfTested => "self_tested",
            Self::Shadowing => "shadowing",
            Self::Activating => "activating",
            Self::Probation => "probation",
            Self::Active => "active",
            Self::Failed { .. } => "failed",
            Self::RolledBack { .. } => "rolled_back",
            Self::NotApplicable { .. } => "not_applicable",
        }
    }

    /// Whether work on the order is under way.
    pub const fn in_flight(&self) -> bool {
        matches!(
            self,
            Self::Waiting
                | Self::Fetching
                | Self::Verified
                | Self::Staged
                | Self::SelfTested
                | Self::Shadowing
                | Self::Activating
                | Self::Probation
        )
    }

    /// Whether the ordered bundle is, or is about to be, in a slot that must be kept.
    pub const fn holds_slot(&self) -> bool {
        matches!(
            self,
            Self::Verified
                | Self::Staged
                | Self::SelfTested
                | Self::Shadowing
                | Self::Activating
                | Self::Probation
        )
    }
}

/// Risky steps begun with one bundle. Counted before the step, so that a crash in it counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tries {
    /// Model.
    pub model: ModelName,
    /// Bundle.
    pub digest: Digest,
    /// Self-tests begun.
    pub self_tests: u32,
    /// Activations begun: loads, and returns to a trial after a restart of the agent.
    pub activations: u32,
    /// Shadows begun.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub shadows: u32,
    /// Its shadow is over: ended, or there was nothing to hold it with.
    #[serde(default, skip_serializing_if = "is_false")]
    pub shadowed: bool,
    /// [`DesiredModel::attempt`] of the order they were spent under; a higher one begins a new count.
    #[serde(default)]
    pub attempt: u64,
    /// Resident memory that its self-test needed at its peak; 0 before one has passed.
    #[serde(default)]
    pub ram_bytes: u64,
}

/// A bundle that this device found bad.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocked {
    /// Model.
    pub model: ModelName,
    /// Bundle.
    pub digest: Digest,
    /// What it did.
    pub reason: String,
    /// [`DesiredModel::attempt`] of the order it failed under; a higher one lifts the block.
    pub attempt: u64,
}

impl ModelRecord {
    /// Whether it holds a version in the serving child that has yet to prove itself.
    pub fn at_risk(&self) -> bool {
        matches!(self.state, State::Shadowing | State::Activating)
            || self.active.as_ref().is_some_and(|a| !a.trial_passed)
    }

    /// Digest of the order, when there is one.
    pub fn ordered(&self) -> Option<Digest> {
        self.order.as_ref().map(|o| o.wanted.digest)
    }

    /// Slots that this model needs now.
    pub fn slots(&self) -> impl Iterator<Item = Digest> {
        let installed = self.active.iter().chain(&self.previous).map(|i| i.digest);
        installed.chain(self.ordered().filter(|_| self.state.holds_slot()))
    }
}

impl Persistent {
    /// Slots that some model needs now; all others may go.
    pub fn slots(&self) -> BTreeSet<Digest> {
        self.models.values().flat_map(ModelRecord::slots).collect()
    }

    /// Why this device will not try a bundle, when it will not.
    pub fn blocked(&self, model: &ModelName, digest: Digest) -> Option<&Blocked> {
        self.blocked.iter().find(|b| b.model == *model && b.digest == digest)
    }

    /// Tries spent on a bundle.
    pub fn tries(&self, model: &ModelName, digest: Digest) -> Tries {
        let found = self.tries.iter().find(|t| t.model == *model && t.digest == digest);
        found.cloned().unwrap_or(Tries {
            model: model.clone(),
            digest,
            self_tests: 0,
            activations: 0,
            shadows: 0,
            shadowed: false,
            attempt: 0,
            ram_bytes: 0,
        })
    }

    /// Takes an order's attempt to heart: what was blocked or spent under a lower one is forgotten.
    pub(crate) fn lift(&mut self, model: &ModelName, digest: Digest, attempt: u64) {
        self.blocked.retain(|b| b.model != *model || b.digest != digest || b.attempt >= attempt);
        self.tries.retain(|t| t.model != *model || t.digest != digest || t.attempt >= attempt);
    }

    pub(crate) fn spend(&mut self, tries: Tries) {
        self.forget_tries(&tries.model, tries.digest);
        self.tries.push(tries);
        let over = self.tries.len().saturating_sub(MAX_TRIES);
        self.tries.drain(..over);
    }

    pub(crate) fn measured(&mut self, model: &ModelName, digest: Digest, ram_bytes: u64) {
        let tries = self.tries.iter_mut().find(|t| t.model == *model && t.digest == digest);
        tries.into_iter().for_each(|t| t.ram_bytes = ram_bytes);
    }

    pub(crate) fn forget_tries(&mut self, model: &ModelName, digest: Digest) {
        self.tries.retain(|t| t.model != *model || t.digest != digest);
    }

    pub(crate) fn block(&mut self, blocked: Blocked) {
        self.blocked.retain(|b| b.model != blocked.model || b.digest != blocked.digest);
        self.blocked.push(blocked);
        let over = self.blocked.len().saturating_sub(MAX_BLOCKED);
        self.blocked.drain(..over);
    }
}

/// A reason as it is kept: at most [`MAX_REASON`] bytes, no control characters (which JSON would blow up sixfold).
pub(crate) fn kept(reason: &str) -> String {
    let mut out = String::new();
    for c in reason.chars() {
        let c = if c.is_control() { ' ' } else { c };
        if out.len() + c.len_utf8() > MAX_REASON {
            break;
        }
        out.push(c);
    }
    out
}
