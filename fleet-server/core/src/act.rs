//! What a person may do to a rollout: start, pause, resume, approve, abort. Each answer is the value to store.

use std::collections::BTreeMap;

use plimsoll_protocol::api::{Decision, RolloutStatus};
use plimsoll_protocol::ids::RolloutId;
use plimsoll_protocol::{DeviceId, Digest, ModelName, UnixMillis};

use crate::gate::devices;
use crate::planner::{Order, Plan};
use crate::rollout::{Bundle, Member, Recall, Rollout, RolloutState};
use crate::spec::ValidSpec;

/// What a person may do to a rollout that was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nobody else is ordered until [`Action::Resume`]. Orders that are out stay out; the gates keep watching.
    Pause,
    /// Goes on, and accepts every bad answer known until now: the gates judge what comes after.
    Resume,
    /// Lets the stage that waits start.
    Approve,
    /// Ends it: devices that run the version keep it, all other orders are taken back.
    Abort,
}

/// Why an action was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ActError {
    /// The rollout is not in a state for it.
    #[error("rollout {id} is {status} and cannot be {done}: {remedy}")]
    NotNow {
        /// Which rollout.
        id: RolloutId,
        /// In words.
        status: &'static str,
        /// `paused`, …
        done: &'static str,
        /// What to do instead.
        remedy: &'static str,
    },
}

/// Why a rollout was not started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// Another rollout of the model is under way.
    #[error(
        "rollout {other} of {model} {version} is {status}: two rollouts of one model would fight over the same \
         devices; abort it, wait for it, or start this one with `supersede`"
    )]
    Conflict {
        /// The other one.
        other: RolloutId,
        /// Of both.
        model: ModelName,
        /// Of the other one.
        version: semver::Version,
        /// In words.
        status: &'static str,
    },
    /// Another rollout of the model is taking its version back; what devices run is not to be built upon.
    #[error(
        "rollout {other} of {model} {version} is rolling back: start again when it has ended, it cannot be superseded"
    )]
    RollingBack {
        /// The other one.
        other: RolloutId,
        /// Of both.
        model: ModelName,
        /// Of the other one.
        version: semver::Version,
    },
    /// The id is taken.
    #[error("there is already a rollout {0}; choose another id")]
    Taken(RolloutId),
}

/// A rollout that was started, and those that gave way.
#[derive(Debug, Clone, PartialEq)]
pub struct Started {
    /// To be stored; the next tick orders the first stage.
    pub rollout: Rollout,
    /// For its history.
    pub decisions: Vec<Decision>,
    /// To be stored with it: rollouts that it supersedes.
    pub superseded: Vec<Plan>,
    /// What the operator should know, in words.
    pub warnings: Vec<String>,
}

/// What a new rollout is made of besides its spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRollout {
    /// A name that no rollout has had.
    pub id: RolloutId,
    /// A random number that the caller drew: decides the order of the devices.
    pub seed: u64,
    /// Digest of the published version that the spec names.
    pub digest: Digest,
    /// Server time.
    pub now_ms: UnixMillis,
    /// Devices that match the selector now.
    pub matching: u64,
}

/// Starts a rollout beside all that there ever were (`existing`).
pub fn start(existing: &[Rollout], spec: ValidSpec, new: NewRollout) -> Result<Started, StartError> {
    let spec_in = spec.spec();
    if existing.iter().any(|r| r.state.id == new.id) {
        return Err(StartError::Taken(new.id));
    }
    let mut superseded = Vec::new();
    for other in existing.iter().filter(|r| r.state.spec.model == spec_in.model && !r.state.status.is_end()) {
        superseded.push(give_way(other, spec_in.supersede, &new)?);
    }
    let mut warnings = spec.warnings(new.matching);
    let blocked_by = existing.iter().rfind(|r| r.state.is_blocked() && r.state.target.digest == new.digest);
    if let Some(bad) = blocked_by {
        warnings.push(format!(
            "{} {} was rolled back by rollout {}: {}",
            spec_in.model, spec_in.version, bad.state.id, bad.state.reason
        ));
    }
    let text = format!(
        "rollout of {} {} to {} in {} stages",
        spec_in.model,
        spec_in.version,
        whom(&spec_in.selector),
        spec_in.stages.len()
    );
    let spec = spec.into_spec();
    let state = RolloutState {
        id: new.id,
        number: existing.iter().map(|r| r.state.number).max().unwrap_or(0) + 1,
        epoch: 1,
        seed: new.seed,
        target: Bundle { version: spec.version.clone(), digest: new.digest },
        spec,
        started_ms: new.now_ms,
        ended_ms: None,
        status: RolloutStatus::Running,
        reason: text.clone(),
        stages: Vec::new(),
        approved: 0,
        accepted_ms: None,
        stopped_for: None,
        evidence: None,
    };
    Ok(Started {
        rollout: Rollout { state, members: BTreeMap::new() },
        decisions: vec![Decision { at_ms: new.now_ms, text }],
        superseded,
        warnings,
    })
}

fn whom(selector: &str) -> String {
    if selector.trim().is_empty() { "all devices".to_owned() } else { format!("devices with {selector}") }
}

fn give_way(other: &Rollout, supersede: bool, new: &NewRollout) -> Result<Plan, StartError> {
    let state = &other.state;
    let (id, model, version) = (state.id.clone(), state.spec.model.clone(), state.target.version.clone());
    if state.status == RolloutStatus::RollingBack {
        return Err(StartError::RollingBack { other: id, model, version });
    }
    if !supersede {
        return Err(StartError::Conflict { other: id, model, version, status: state.status.words() });
    }
    let mut next = state.clone();
    next.status = RolloutStatus::Superseded;
    next.ended_ms = Some(new.now_ms);
    Ok(decided(next, BTreeMap::new(), Vec::new(), format!("superseded by rollout {}", new.id), new.now_ms))
}

/// A person acts. `who` and `reason` go to the history.
pub fn act(
    rollout: &Rollout,
    action: Action,
    who: &str,
    reason: &str,
    now_ms: UnixMillis,
) -> Result<Plan, ActError> {
    use RolloutStatus::{Paused, Running, WaitingForApproval};
    let mut next = rollout.state.clone();
    let because = if reason.trim().is_empty() { String::new() } else { format!(": {}", reason.trim()) };
    let text = match (action, next.status) {
        (Action::Pause, Running | WaitingForApproval) => {
            next.status = Paused;
            format!("paused by {who}{because}")
        }
        (Action::Resume, Paused) => {
            next.status = Running;
            next.accepted_ms = Some(now_ms);
            format!("resumed by {who}{because}; failures until now are accepted")
        }
        (Action::Approve, WaitingForApproval) => {
            next.status = Running;
            next.approved = next.stages.len() + 1;
            format!("{} approved by {who}{because}", crate::spec::stage_name(&next.spec, next.stages.len()))
        }
        (Action::Abort, Running | WaitingForApproval | Paused) => {
            return Ok(abort(rollout, &format!("aborted by {who}{because}"), now_ms));
        }
        (_, status) => return Err(refused(&rollout.state, action, status)),
    };
    Ok(decided(next, BTreeMap::new(), Vec::new(), text, now_ms))
}

/// A device that has not answered "active" may run the version on trial or not at all: its goal goes back.
fn abort(rollout: &Rollout, text: &str, now_ms: UnixMillis) -> Plan {
    use plimsoll_protocol::wire::v1::JobPhase;
    let mut next = rollout.state.clone();
    next.status = RolloutStatus::Aborted;
    next.ended_ms = Some(now_ms);
    let unproven =
        |m: &&Member| m.recalled.is_none() && m.answer.as_ref().is_none_or(|a| a.phase != JobPhase::Active);
    let mut members: BTreeMap<DeviceId, Member> = BTreeMap::new();
    let mut orders = Vec::new();
    for (device, member) in rollout.members.iter().filter(|(_, m)| unproven(m)) {
        let recalled = Some(Recall { at_ms: now_ms, reached_ms: None, done_ms: None });
        members.insert(device.clone(), Member { recalled, ..member.clone() });
        orders.push(Order {
            device: device.clone(),
            rollout: next.id.clone(),
            model: next.spec.model.clone(),
            bundle: member.previous.clone(),
            rollback: true,
        });
    }
    let kept = rollout.members.len() - members.len();
    let text = format!(
        "{text}; {} keep {}, {} orders are taken back",
        devices(kept as u64),
        next.target.version,
        members.len()
    );
    decided(next, members, orders, text, now_ms)
}

fn decided(
    mut next: RolloutState,
    members: BTreeMap<DeviceId, Member>,
    orders: Vec<Order>,
    text: String,
    now_ms: UnixMillis,
) -> Plan {
    next.epoch += 1;
    next.reason.clone_from(&text);
    Plan {
        next,
        members,
        orders,
        decisions: vec![Decision { at_ms: now_ms, text }],
        reasons: Vec::new(),
        changed: true,
    }
}

fn refused(state: &RolloutState, action: Action, status: RolloutStatus) -> ActError {
    let (done, remedy) = match (action, status) {
        (_, RolloutStatus::RollingBack) => {
            (done(action), "it takes its version back already; wait until it has ended")
        }
        (_, s) if s.is_end() => (done(action), "it has ended; start another rollout"),
        (Action::Pause, _) => ("paused", "it is paused already"),
        (Action::Resume, _) => {
            ("resumed", "only a paused rollout is resumed; a stage that waits is approved")
        }
        (Action::Approve, _) => ("approved", "no stage waits for approval"),
        (Action::Abort, _) => ("aborted", "only a rollout that is under way is aborted"),
    };
    ActError::NotNow { id: state.id.clone(), status: status.words(), done, remedy }
}

fn done(action: Action) -> &'static str {
    match action {
        Action::Pause => "paused",
        Action::Resume => "resumed",
        Action::Approve => "approved",
        Action::Abort => "aborted",
    }
}
