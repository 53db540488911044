//! A plan in the making: the rollout as it was, what changed so far, and how the members stand.

use std::collections::BTreeMap;

use plimsoll_protocol::api::Decision;
use plimsoll_protocol::{DeviceId, UnixMillis};

use super::{Order, Plan};
use crate::gate::Tally;
use crate::outcome::{self, Outcome};
use crate::rollout::{Bundle, Member, Recall, Rollout, RolloutState};
use crate::view::{DeviceView, FleetView, Now};

pub(super) struct Work<'a> {
    pub view: &'a FleetView,
    before: &'a Rollout,
    pub next: RolloutState,
    changed: BTreeMap<DeviceId, Member>,
    orders: Vec<Order>,
    decisions: Vec<Decision>,
    reasons: Vec<String>,
    pub now: Now,
    pub now_ms: UnixMillis,
}

/// How all members stand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Census {
    /// One a started stage.
    pub stages: Vec<StageCensus>,
    /// All stages together.
    pub all: Tally,
}

/// How the members of one stage stand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StageCensus {
    /// Counted by outcome.
    pub tally: Tally,
    /// When the last trial passed.
    pub last_active_ms: Option<UnixMillis>,
    /// When the last device was ordered.
    pub last_ordered_ms: Option<UnixMillis>,
}

/// Counts `rollout`'s members by stage and outcome.
pub fn census(view: &FleetView, rollout: &Rollout, now: impl Into<Now>) -> Census {
    count(&rollout.state, view, rollout.members.iter(), now.into())
}

fn count<'m>(
    state: &RolloutState,
    view: &FleetView,
    members: impl Iterator<Item = (&'m DeviceId, &'m Member)>,
    now: Now,
) -> Census {
    let mut stages = vec![StageCensus::default(); state.stages.len()];
    for (device, member) in members {
        let Some(stage) = stages.get_mut(member.stage) else { continue };
        stage.last_ordered_ms = stage.last_ordered_ms.max(Some(member.ordered_ms));
        let accepted = |at_ms: UnixMillis| state.accepted_ms.is_some_and(|until| at_ms <= until);
        let slot = match outcome::outcome(state, member, view.devices.get(device), now) {
            Outcome::Active { at_ms } => {
                stage.last_active_ms = stage.last_active_ms.max(Some(at_ms));
                &mut stage.tally.active
            }
            Outcome::Failed { at_ms, .. } if accepted(at_ms) => &mut stage.tally.accepted_failed,
            Outcome::Silent { since_ms } if accepted(since_ms) => &mut stage.tally.accepted_silent,
            Outcome::Failed { .. } => &mut stage.tally.failed,
            Outcome::Silent { .. } => &mut stage.tally.silent,
            Outcome::UnderWay { .. } => &mut stage.tally.under_way,
            Outcome::NotApplicable => &mut stage.tally.not_applicable,
            Outcome::Away => &mut stage.tally.away,
            Outcome::Gone => &mut stage.tally.gone,
        };
        *slot += 1;
    }
    let mut all = Tally::default();
    stages.iter().for_each(|s| all += s.tally);
    Census { stages, all }
}

impl<'a> Work<'a> {
    pub fn new(view: &'a FleetView, before: &'a Rollout, now: Now) -> Self {
        Self {
            view,
            before,
            next: before.state.clone(),
            changed: BTreeMap::new(),
            orders: Vec::new(),
            decisions: Vec::new(),
            reasons: Vec::new(),
            now,
            now_ms: now.ms,
        }
    }

    /// Writes down what the view shows: first contacts, ends of orders. Also moves times that lie in the future
    /// back to now: they were written before the server's clock was set back, and waiting for them could take for
    /// ever. The price of a clock that jumps back is one wait served again, never one cut short.
    pub fn observe(&mut self) {
        let now = self.now_ms;
        for stage in &mut self.next.stages {
            stage.opened_ms = stage.opened_ms.min(now);
            stage.done_ms = stage.done_ms.map(|t| t.min(now));
        }
        self.next.started_ms = self.next.started_ms.min(now);
        self.next.accepted_ms = self.next.accepted_ms.map(|t| t.min(now));
        for (device, member) in &self.before.members {
            if let Some(seen) = observed(&self.next, member, self.view.devices.get(device), now) {
                self.changed.insert(device.clone(), seen);
            }
        }
    }

    /// Members as they are now.
    pub fn members(&self) -> impl Iterator<Item = (&DeviceId, &Member)> {
        let old = self.before.members.iter().map(|(d, m)| (d, self.changed.get(d).unwrap_or(m)));
        old.chain(self.changed.iter().filter(|(d, _)| !self.before.members.contains_key(*d)))
    }

    pub fn is_member(&self, device: &DeviceId) -> bool {
        self.before.members.contains_key(device) || self.changed.contains_key(device)
    }

    pub fn census(&self) -> Census {
        count(&self.next, self.view, self.members(), self.now)
    }

    pub fn outcome(&self, device: &DeviceId, member: &Member) -> Outcome {
        outcome::outcome(&self.next, member, self.view.devices.get(device), self.now)
    }

    /// Matching devices without an order.
    pub fn candidates(&self) -> impl Iterator<Item = (&'a DeviceId, &'a DeviceView)> {
        self.view.devices.iter().filter(|(device, seen)| seen.matches && !self.is_member(device))
    }

    /// Orders the target for a device of `stage`.
    pub fn order(&mut self, device: &DeviceId, stage: usize) {
        let seen = self.view.devices.get(device);
        let member = Member {
            stage,
            ordered_ms: self.now_ms,
            previous: seen.and_then(|s| previous(s, &self.next.target)),
            reached_ms: seen.filter(|s| s.online).map(|_| self.now_ms),
            answer: None,
            recalled: None,
        };
        let member = observed(&self.next, &member, seen, self.now_ms).unwrap_or(member);
        self.changed.insert(device.clone(), member);
        self.tell(device, Some(self.next.target.clone()), false);
    }

    /// Members whose way back leads to a revoked version, or who are called back from one that they ran before this
    /// rollout too, go where other rollouts left them instead.
    pub fn leave_revoked(&mut self) {
        let revoked = &self.view.revoked;
        let from_revoked = revoked.contains(&self.next.target.digest);
        let mut changed = Vec::new();
        for (device, member) in self.members().filter(|(_, m)| m.recalled.is_none()) {
            let astray = member.previous.as_ref().map_or(from_revoked, |b| revoked.contains(&b.digest));
            let standing = self.view.devices.get(device).and_then(|seen| seen.standing.clone());
            if astray && standing != member.previous {
                changed.push((device.clone(), Member { previous: standing, ..member.clone() }));
            }
        }
        self.changed.extend(changed);
    }

    /// Takes the order of a member back.
    pub fn recall(&mut self, device: &DeviceId) {
        let member = self.changed.get(device).or_else(|| self.before.members.get(device)).cloned();
        let Some(mut member) = member.filter(|m| m.recalled.is_none()) else { return };
        let online = self.view.devices.get(device).is_some_and(|s| s.online);
        let reached_ms = online.then_some(self.now_ms);
        member.recalled = Some(Recall { at_ms: self.now_ms, reached_ms, done_ms: None });
        let previous = member.previous.clone();
        self.changed.insert(device.clone(), member);
        self.tell(device, previous, true);
    }

    /// Notes that a recalled device is back.
    pub fn mark_returned(&mut self, device: &DeviceId) {
        let member = self.changed.get(device).or_else(|| self.before.members.get(device)).cloned();
        if let Some(mut member) = member {
            if let Some(recall) = &mut member.recalled {
                recall.done_ms = Some(self.now_ms);
            }
            self.changed.insert(device.clone(), member);
        }
    }

    fn tell(&mut self, device: &DeviceId, bundle: Option<Bundle>, rollback: bool) {
        self.orders.push(Order {
            device: device.clone(),
            rollout: self.next.id.clone(),
            model: self.next.spec.model.clone(),
            bundle,
            rollback,
        });
    }

    /// A decision: it goes to the history and is the rollout's reason until the next.
    pub fn decide(&mut self, text: String) {
        self.next.reason.clone_from(&text);
        self.decisions.push(Decision { at_ms: self.now_ms, text });
    }

    /// Why nothing more happens now.
    pub fn because(&mut self, reason: String) {
        self.reasons.push(reason);
    }

    pub fn finish(mut self) -> Plan {
        let changed = self.next != self.before.state || !self.changed.is_empty();
        if changed {
            self.next.epoch = self.before.state.epoch + 1;
        }
        Plan {
            next: self.next,
            members: self.changed,
            orders: self.orders,
            decisions: self.decisions,
            reasons: self.reasons,
            changed,
        }
    }
}

/// Where a device goes back to: what it runs with a passed trial, else what older rollouts left it with, else what
/// it runs at all. Never to a version that was rolled back, and nowhere when it ran the target before this rollout.
fn previous(seen: &DeviceView, target: &Bundle) -> Option<Bundle> {
    let running = seen.running.as_ref().filter(|_| !seen.distrusted);
    let proven = running.filter(|r| r.trial_passed).map(|r| &r.bundle);
    let any = proven.or(seen.standing.as_ref()).or(running.map(|r| &r.bundle));
    any.filter(|b| b.digest != target.digest).cloned()
}

/// The member with what the view shows; `None` when that is nothing new.
fn observed(
    state: &RolloutState,
    member: &Member,
    seen: Option<&DeviceView>,
    now_ms: UnixMillis,
) -> Option<Member> {
    let mut next = member.clone();
    next.ordered_ms = next.ordered_ms.min(now_ms);
    next.reached_ms = next.reached_ms.map(|t| t.min(now_ms));
    if let Some(answer) = &mut next.answer {
        answer.at_ms = answer.at_ms.min(now_ms);
    }
    if let Some(recall) = &mut next.recalled {
        recall.at_ms = recall.at_ms.min(now_ms);
        recall.reached_ms = recall.reached_ms.map(|t| t.min(now_ms));
        recall.done_ms = recall.done_ms.map(|t| t.min(now_ms));
    }
    if let Some(seen) = seen {
        if seen.online {
            next.reached_ms = next.reached_ms.or(Some(now_ms));
            if let Some(recall) = &mut next.recalled {
                recall.reached_ms = recall.reached_ms.or(Some(now_ms));
            }
        }
        if next.recalled.is_none()
            && let Some(answer) = outcome::answer(state, &next, seen, now_ms)
        {
            next.answer = Some(answer);
        }
    }
    (next != *member).then_some(next)
}
