//! What is remembered of a rollout: everything the planner needs, so that a server restarted at any instant
//! continues with the plan it would have made.
//!
//! Two kinds of record, because they grow differently. [`RolloutState`] is one small value, however large the
//! fleet. [`Member`] is one small value for each device that was ordered; a tick returns only those that changed.
//! The history of decisions is append-only and belongs to the store: the planner emits it and never reads it.

use std::collections::BTreeMap;

use plimsoll_protocol::api::{OutputEvidence, RolloutSpec, RolloutStatus};
use plimsoll_protocol::ids::RolloutId;
use plimsoll_protocol::wire::v1::JobPhase;
use plimsoll_protocol::{DeviceId, Digest, UnixMillis};
use serde::{Deserialize, Serialize};

/// A version of a model.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Bundle {
    /// For people.
    pub version: semver::Version,
    /// For everything else: the digest of its `bundle.json`.
    pub digest: Digest,
}

/// A rollout in memory: its state and its members.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    /// One value.
    pub state: RolloutState,
    /// One value a device that was ordered.
    pub members: BTreeMap<DeviceId, Member>,
}

/// The part of a rollout that does not grow with the fleet. Never edited: each change is the next `epoch`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RolloutState {
    /// Id.
    pub id: RolloutId,
    /// Rises with every rollout of the server: of two that want the same device, the higher number wins.
    pub number: u64,
    /// Rises by one with every change of this value; a store refuses to write an epoch that it has.
    pub epoch: u64,
    /// Decides the order of the devices, with their ids.
    pub seed: u64,
    /// As the operator wrote it, validated.
    pub spec: RolloutSpec,
    /// What is rolled out.
    pub target: Bundle,
    /// Server time of the start.
    pub started_ms: UnixMillis,
    /// Server time of the end.
    pub ended_ms: Option<UnixMillis>,
    /// Where it stands.
    pub status: RolloutStatus,
    /// The last decision, in words.
    pub reason: String,
    /// Stages that were started, in order.
    pub stages: Vec<StageState>,
    /// How many stages a person has let go: stages with an index below it need no further approval.
    pub approved: usize,
    /// Bad answers up to this server time were seen and accepted by a person who resumed the rollout.
    pub accepted_ms: Option<UnixMillis>,
    /// Why it was stopped, in words, once it was: said again when everybody is back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped_for: Option<String>,
    /// What the answers of the version said when it was last decided on them: when a stage was done, or when it was
    /// stopped. Windows go; the reason stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<OutputEvidence>,
}

/// A stage that was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageState {
    /// Devices it may order, fixed at its start: a fleet that grows later does not widen it. The last stage has no
    /// such limit, it takes whoever matches.
    pub places: u64,
    /// Server time of its start.
    pub opened_ms: UnixMillis,
    /// Server time at which its answers and its wait were complete.
    pub done_ms: Option<UnixMillis>,
}

/// A device that was ordered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Index of its stage. Never changes.
    pub stage: usize,
    /// Server time of the order.
    pub ordered_ms: UnixMillis,
    /// What it goes back to: what it ran, with a passed trial, when it was ordered.
    pub previous: Option<Bundle>,
    /// Server time at which it was first seen connected with the order lying there.
    pub reached_ms: Option<UnixMillis>,
    /// How the order ended, once it did.
    pub answer: Option<Answer>,
    /// The order was taken back.
    pub recalled: Option<Recall>,
}

/// How an order ended on a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// An end.
    pub phase: JobPhase,
    /// Server time.
    pub at_ms: UnixMillis,
    /// The device's words.
    pub reason: Option<String>,
}

/// An order that was taken back: by a breach or by a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recall {
    /// Server time.
    pub at_ms: UnixMillis,
    /// Server time at which the device was first seen connected with the recall lying there.
    pub reached_ms: Option<UnixMillis>,
    /// Server time at which it answered that it runs something else than the target.
    pub done_ms: Option<UnixMillis>,
}

impl RolloutState {
    /// Whether this is the last stage, which is open to every matching device.
    pub fn is_last(&self, stage: usize) -> bool {
        stage + 1 >= self.spec.stages.len()
    }

    /// Whether the version was judged bad: devices that were ordered it must not try it again.
    pub fn is_blocked(&self) -> bool {
        matches!(self.status, RolloutStatus::RollingBack | RolloutStatus::RolledBack)
    }

    /// Whether it may still order devices: running, waiting for a person, or completed and now the standing goal.
    pub fn is_open(&self) -> bool {
        !matches!(self.status, RolloutStatus::RolledBack | RolloutStatus::Aborted | RolloutStatus::Superseded)
    }
}

impl Rollout {
    /// Takes a plan over, as the store does.
    pub fn apply(&mut self, plan: &crate::Plan) {
        self.state = plan.next.clone();
        self.members.extend(plan.members.iter().map(|(device, member)| (device.clone(), member.clone())));
    }

    /// What this rollout proved on `device`, or what the device had before it.
    pub fn proven(&self, device: &DeviceId) -> Option<&Bundle> {
        let member = self.members.get(device)?;
        let active = member.answer.as_ref().is_some_and(|a| a.phase == JobPhase::Active);
        if active && member.recalled.is_none() { Some(&self.state.target) } else { member.previous.as_ref() }
    }

    /// What `device` should run as far as this rollout is concerned; `None` when it has no say.
    pub fn goal(&self, device: &DeviceId) -> Option<&Bundle> {
        let member = self.members.get(device)?;
        if member.recalled.is_some() { member.previous.as_ref() } else { Some(&self.state.target) }
    }
}
