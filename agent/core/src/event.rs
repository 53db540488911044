//! What can happen to a device, as values.

use std::collections::BTreeSet;

use plimsoll_protocol::hours::LocalTime;
use plimsoll_protocol::wire::v1::{Desired, ShadowTotals};
use plimsoll_protocol::{Digest, ModelName, UnixMillis};

use crate::holds::Rules;

/// Time and randomness of one decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ctx {
    /// Wall clock; shown in texts only, never decides: a device may believe it is 1970.
    pub now_ms: UnixMillis,
    /// Milliseconds since the agent started; all deadlines, holds and trials are measured on it.
    pub mono_ms: u64,
    /// Fresh random bits for this decision: jitter and backoff come from it.
    pub seed: u64,
    /// The device's local time, for maintenance hours only; `None` while its clock cannot be right.
    pub local: Option<LocalTime>,
    /// Memory that one more process could have now, bytes; `None` where the machine does not say.
    pub ram_available_bytes: Option<u64>,
}

/// How the serving child ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Death {
    /// Signal, exit code, missed heartbeat.
    pub reason: String,
    /// The bundle that took it along, when that is known: one whose run did not end.
    pub blamed: Option<(ModelName, Digest)>,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The server's goal state, as received.
    Desired(Desired),
    /// The time that the last [`crate::After::wake_mono_ms`] named has come (an early or extra tick is harmless).
    Tick,
    /// Any message from the server arrived; renews the activation lease.
    ServerHeard,
    /// The fleet's settings.
    Paused(bool),
    /// A person at the device pauses its updates, or lets them go on. Survives restarts.
    PausedHere(bool),
    /// The device's own settings, at the start and when they change.
    Rules(Rules),
    /// The application on the device puts updates off for so many milliseconds from now; 0 ends that.
    NotNow {
        /// See above.
        for_ms: u64,
    },
    /// The serving child is up and holds no model.
    ServeStarted,
    /// The serving child ended without being told to.
    ServeDied(Death),
    /// A refresh of the signed metadata looked up every version that is in a slot: these are no longer signed for.
    /// Replaces what the refresh before said.
    Revoked(BTreeSet<Digest>),
    /// Somebody at the device brought a bundle by hand. It was verified like one from the server and lies in the
    /// staging folder.
    Imported {
        /// Model.
        model: ModelName,
        /// Version.
        version: semver::Version,
        /// Digest of its `bundle.json`.
        digest: Digest,
    },
    /// An operator on the device wants the previous version back.
    RollbackAsked {
        /// Of which model.
        model: ModelName,
    },
    /// Something about one bundle of one model.
    Of {
        /// The model.
        model: ModelName,
        /// The bundle; an event about one that no longer matters is refused by name.
        digest: Digest,
        /// What.
        what: ModelEvent,
    },
}

/// What became of an effect, or of a model that is served.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelEvent {
    /// Trust was refreshed, the manifest admitted, every file hashed: all verified, in the staging folder.
    FetchDone,
    /// The fetch ended otherwise.
    FetchFailed {
        /// Whether trying again can help.
        failure: Failure,
        /// What was tried on which object.
        reason: String,
        /// What the server asked for (`Retry-After`).
        retry_after_ms: Option<u64>,
    },
    /// Preflight says that this device cannot run it; no file was fetched.
    NotApplicable {
        /// Which requirement.
        reason: String,
    },
    /// The bundle is durable in its slot.
    Staged,
    /// It could not be made durable.
    StageFailed {
        /// Whether trying again can help.
        failure: Failure,
        /// What was tried on which object.
        reason: String,
    },
    /// All golden samples agree.
    SelfTestPassed {
        /// Resident memory of the process that ran them, at its peak; 0 where it is not known.
        peak_rss_bytes: u64,
    },
    /// `Permanent`: it answered, and wrongly. `Transient`: the child crashed, timed out or could not start.
    SelfTestFailed {
        /// See above.
        failure: Failure,
        /// Sample, output, element, got, expected; or how the child ended.
        reason: String,
    },
    /// The serving child holds it beside what it serves.
    Loaded,
    /// The serving child could not load it.
    LoadFailed {
        /// Why.
        reason: String,
    },
    /// Requests of the model are answered by it from now on.
    Serving,
    /// The serving child says that it misbehaves (a caught panic, a stuck worker).
    Fault {
        /// What.
        reason: String,
    },
    /// Counters since it was loaded in the present child.
    TrialSample {
        /// Requests answered, well or badly.
        requests: u64,
        /// Of those, failed for the model's or the runtime's fault.
        failed: u64,
    },
    /// What its shadow has compared so far.
    ShadowSample {
        /// Since the shadow began.
        totals: ShadowTotals,
    },
    /// The serving child cannot compare it with what runs.
    ShadowRefused {
        /// Why.
        reason: String,
    },
}

impl ModelEvent {
    /// Its name in refusals and logs.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::FetchDone => "fetch_done",
            Self::FetchFailed { .. } => "fetch_failed",
            Self::NotApplicable { .. } => "not_applicable",
            Self::Staged => "staged",
            Self::StageFailed { .. } => "stage_failed",
            Self::SelfTestPassed { .. } => "self_test_passed",
            Self::SelfTestFailed { .. } => "self_test_failed",
            Self::Loaded => "loaded",
            Self::LoadFailed { .. } => "load_failed",
            Self::Serving => "serving",
            Self::Fault { .. } => "fault",
            Self::TrialSample { .. } => "trial_sample",
            Self::ShadowSample { .. } => "shadow_sample",
            Self::ShadowRefused { .. } => "shadow_refused",
        }
    }
}

/// Whether trying again can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Network, disk pressure, a crash: yes, later.
    Transient,
    /// A wrong signature, a wrong digest, a wrong answer: no.
    Permanent,
}
