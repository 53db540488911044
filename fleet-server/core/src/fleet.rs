//! All rollouts together: who owns which device, and the document that each device gets.
//!
//! A device's goal for a model is what the newest rollout that ordered it says. A completed rollout stays the
//! standing goal of its selector: a device that enrols a year later gets its version too, unless a newer rollout
//! of the model has the device. Several models of one device share one document under one generation.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use plimsoll_protocol::wire::v1::{Desired, DesiredModel};
use plimsoll_protocol::{DeviceId, Digest, Generation, ModelName, UnixMillis};

use crate::accuracy;
use crate::evidence::{self, Outputs};
use crate::planner::{self, Plan};
use crate::rollout::{Bundle, Rollout};
use crate::selector::{Attributes, Selector, SelectorError};
use crate::shadow::{self, ShadowView};
use crate::view::{DeviceView, FleetView, JobView, Now, Revoked, Running};

/// Most blocked versions that a desired document lists for one model: the newest; 16 x 64 digits is 1 KiB.
pub const MAX_BLOCKED: usize = 16;

/// What the store knows about a device that may connect.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// What selectors see.
    pub attributes: Attributes,
    /// Its connection stands.
    pub online: bool,
    /// What it runs, by model, from the newest of its births and job reports.
    pub running: BTreeMap<ModelName, Running>,
    /// The newest job report for each model and digest; at least for the last order of each model.
    pub jobs: BTreeMap<ModelName, Vec<JobView>>,
    /// What candidates answered in shadow, by model: the newest report of each digest.
    pub shadows: BTreeMap<ModelName, Vec<ShadowView>>,
    /// What its models answered lately. Shared with who keeps it: facts are gathered at every tick.
    pub outputs: Arc<Outputs>,
}

/// One tick: the plan of every rollout that may still act, newest first, so that a device that matches two goes to
/// the newer. Plans that change nothing ([`Plan::is_quiet`]) are left out.
pub fn tick(
    devices: &BTreeMap<DeviceId, Facts>,
    rollouts: &[Rollout],
    revoked: &Revoked,
    now: impl Into<Now>,
) -> Result<Vec<Plan>, SelectorError> {
    let now = now.into();
    let mut open: Vec<&Rollout> = rollouts.iter().filter(|r| r.state.is_open()).collect();
    open.sort_unstable_by_key(|r| std::cmp::Reverse(r.state.number));
    let mut taken: BTreeSet<(ModelName, DeviceId)> = BTreeSet::new();
    let mut plans = Vec::new();
    for rollout in open {
        let mut view = view(devices, rollouts, revoked, rollout)?;
        for (_, device) in taken.iter().filter(|(model, _)| *model == rollout.state.spec.model) {
            if let Some(seen) = view.devices.get_mut(device) {
                seen.matches = false;
            }
        }
        let plan = planner::plan(&view, rollout, now);
        taken.extend(plan.orders.iter().map(|o| (o.model.clone(), o.device.clone())));
        if !plan.is_quiet() {
            plans.push(plan);
        }
    }
    Ok(plans)
}

/// The fleet as `rollout`, one of `rollouts`, sees it.
pub fn view(
    devices: &BTreeMap<DeviceId, Facts>,
    rollouts: &[Rollout],
    revoked: &Revoked,
    rollout: &Rollout,
) -> Result<FleetView, SelectorError> {
    let selector = Selector::parse(&rollout.state.spec.selector)?;
    let model = &rollout.state.spec.model;
    let others: Vec<&Rollout> =
        of_model(rollouts, model).filter(|r| r.state.id != rollout.state.id).collect();
    let newer = |device: &DeviceId| {
        others.iter().any(|o| o.state.number > rollout.state.number && o.members.contains_key(device))
    };
    let one = |(device, facts): (&DeviceId, &Facts)| {
        let seen = DeviceView {
            matches: selector.matches(&facts.attributes) && !newer(device),
            online: facts.online,
            running: facts.running.get(model).cloned(),
            standing: standing(&others, device, revoked),
            distrusted: facts.running.get(model).is_some_and(|r| {
                revoked.contains(&r.bundle.digest)
                    || others.iter().any(|o| o.state.is_blocked() && o.state.target.digest == r.bundle.digest)
            }),
            job: newest_job(facts, rollout),
            back: knows_of_recall(facts, rollout),
        };
        (device.clone(), seen)
    };
    let seen: BTreeMap<DeviceId, DeviceView> = devices.iter().map(one).collect();
    let outputs = evidence::weigh(rollout, &seen, |device| devices.get(device).map(|f| &*f.outputs));
    let shadow = shadow::weigh(rollout, |device| devices.get(device)?.shadows.get(model).map(Vec::as_slice));
    let accuracy = accuracy::weigh(rollout, |device| devices.get(device).map(|f| &*f.outputs));
    let readings = accuracy.into_iter().collect();
    Ok(FleetView { devices: seen, readings, shadow, outputs, revoked: revoked.clone() })
}

fn of_model<'a>(rollouts: &'a [Rollout], model: &'a ModelName) -> impl Iterator<Item = &'a Rollout> {
    rollouts.iter().filter(move |r| r.state.spec.model == *model)
}

fn newest_job(facts: &Facts, rollout: &Rollout) -> Option<JobView> {
    let jobs = facts.jobs.get(&rollout.state.spec.model)?;
    jobs.iter().filter(|j| j.digest == rollout.state.target.digest).max_by_key(|j| j.at_ms).cloned()
}

fn knows_of_recall(facts: &Facts, rollout: &Rollout) -> bool {
    let about_another = |j: &JobView| {
        j.rollout.as_ref() == Some(&rollout.state.id) && j.digest != rollout.state.target.digest
    };
    facts.jobs.get(&rollout.state.spec.model).is_some_and(|jobs| jobs.iter().any(about_another))
}

/// What the newest of `rollouts` that has something to say proved on the device, or left it with. What was revoked
/// is not said: then what the device had before it counts.
fn standing(rollouts: &[&Rollout], device: &DeviceId, revoked: &Revoked) -> Option<Bundle> {
    let mut said: Vec<&&Rollout> = rollouts.iter().filter(|r| r.members.contains_key(device)).collect();
    said.sort_unstable_by_key(|r| std::cmp::Reverse(r.state.number));
    let before = |r: &Rollout| r.members.get(device).and_then(|m| m.previous.clone());
    let proven = said.into_iter().flat_map(|r| [r.proven(device).cloned(), before(r)]);
    proven.flatten().find(|bundle| !revoked.contains(&bundle.digest))
}

/// Where a device goes that runs, or should run, a revoked version of `model`; `None` when it never had another.
pub fn refuge(
    device: &DeviceId,
    model: &ModelName,
    rollouts: &[Rollout],
    revoked: &Revoked,
) -> Option<Bundle> {
    let of_model: Vec<&Rollout> = of_model(rollouts, model).collect();
    standing(&of_model, device, revoked)
}

/// The document that `device` should have, when it is not the one that is stored: `None` means that nothing is to
/// be written or published. `rollouts` are all of the server's, `reported` the generation that the device says it
/// works by. A restored server whose stored generation is behind the device's goes past it, so that it is obeyed.
pub fn desired(
    device: &DeviceId,
    rollouts: &[Rollout],
    revoked: &Revoked,
    stored: Option<&Desired>,
    reported: Generation,
    now_ms: UnixMillis,
) -> Option<Desired> {
    let models = goals(device, rollouts, revoked);
    let generation = stored.map_or(0, |d| d.generation);
    let same = stored.map_or(models.is_empty(), |d| d.models == models);
    if same && (models.is_empty() || reported <= generation) {
        return None;
    }
    Some(Desired { v: 1, generation: generation.max(reported) + 1, models, issued_ms: now_ms })
}

fn goals(device: &DeviceId, rollouts: &[Rollout], revoked: &Revoked) -> Vec<DesiredModel> {
    let mut newest: BTreeMap<&ModelName, &Rollout> = BTreeMap::new();
    for rollout in rollouts.iter().filter(|r| r.goal(device).is_some()) {
        let slot = newest.entry(&rollout.state.spec.model).or_insert(rollout);
        if rollout.state.number > slot.state.number {
            *slot = rollout;
        }
    }
    newest.into_values().filter_map(|rollout| one_goal(device, rollout, rollouts, revoked)).collect()
}

/// `None` when the goal was revoked and there is nowhere to go: absence is not an order, so what runs stays.
fn one_goal(
    device: &DeviceId,
    rollout: &Rollout,
    rollouts: &[Rollout],
    revoked: &Revoked,
) -> Option<DesiredModel> {
    let spec = &rollout.state.spec;
    let goal = rollout.goal(device)?;
    let withdrawn = revoked.contains(&goal.digest);
    let bundle = if withdrawn { refuge(device, &spec.model, rollouts, revoked)? } else { goal.clone() };
    Some(DesiredModel {
        model: spec.model.clone(),
        version: bundle.version.clone(),
        digest: bundle.digest,
        rollout: Some(rollout.state.id.clone()),
        policy: spec.policy.clone(),
        rollback: withdrawn || rollout.members.get(device).is_some_and(|m| m.recalled.is_some()),
        blocked: blocked(device, rollouts, revoked, &spec.model, &bundle.digest),
        attempt: rollout.state.number, // a new rollout of a version lifts the device's own block of it
    })
}

/// Digests that were revoked, or that rollouts of the model rolled back, on this device, newest first, but for the
/// one it should run: who starts a new rollout of a version that was rolled back means it.
fn blocked(
    device: &DeviceId,
    rollouts: &[Rollout],
    revoked: &Revoked,
    model: &ModelName,
    goal: &Digest,
) -> Vec<Digest> {
    let mut bad: Vec<(u64, Digest)> = of_model(rollouts, model)
        .filter(|r| r.state.is_blocked() || revoked.contains(&r.state.target.digest))
        .filter(|r| r.members.contains_key(device))
        .map(|r| (r.state.number, r.state.target.digest))
        .filter(|(_, digest)| digest != goal)
        .collect();
    bad.sort_unstable_by(|a, b| b.cmp(a));
    bad.dedup_by_key(|(_, digest)| *digest);
    bad.truncate(MAX_BLOCKED);
    bad.into_iter().map(|(_, digest)| digest).collect()
}
