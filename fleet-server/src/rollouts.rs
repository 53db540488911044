//! All rollouts in memory, and the one way in which they change: decide, commit, then apply and publish.
//!
//! The book's lock is held while something is decided and committed, so that ticks and people never plan from the
//! same state; the store refuses a plan from an old epoch anyway.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use plimsoll_fleet_core::act::{self, Action, NewRollout};
use plimsoll_fleet_core::view::{Now, Revoked};
use plimsoll_fleet_core::{Facts, Member, Plan, Rollout, ValidSpec, fleet as fleets, summary};
use plimsoll_protocol::api::{Decision, RolloutInfo, RolloutSpec};
use plimsoll_protocol::ids::RolloutId;
use plimsoll_protocol::wire::v1::{Desired, Down, JobPhase, Severity};
use plimsoll_protocol::{DeviceId, UnixMillis};

use crate::app::App;
use crate::clock::{self, Uptime};
use crate::secret;
use crate::store::{NewEvent, PlanWrite, RevokedRecord, StoreError};

/// Decisions shown with a rollout: the newest. A rollout makes a few a stage; more than this is a quarrel.
const HISTORY_SHOWN: usize = 200;

/// Why a rollout was not started or changed.
#[derive(Debug, thiserror::Error)]
pub enum BookError {
    /// The spec.
    #[error(transparent)]
    Spec(#[from] plimsoll_fleet_core::spec::SpecError),
    /// No such version.
    #[error("{model} {version} is not published: `plimsoll bundle publish` it first")]
    NotPublished {
        /// Model.
        model: plimsoll_protocol::ModelName,
        /// Version.
        version: semver::Version,
    },
    /// Another rollout is in the way.
    #[error(transparent)]
    Start(#[from] act::StartError),
    /// Not in this state.
    #[error(transparent)]
    Act(#[from] act::ActError),
    /// No such rollout.
    #[error("rollout {0} does not exist")]
    Unknown(RolloutId),
    /// A stored selector that no longer parses.
    #[error("planning failed: {0}")]
    Selector(#[from] plimsoll_fleet_core::selector::SelectorError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No random numbers.
    #[error("no id for the rollout: {0}")]
    Random(#[from] std::io::Error),
}

/// All rollouts, in the order of their numbers.
pub struct Book {
    rollouts: Vec<Rollout>,
    history: BTreeMap<RolloutId, Vec<Decision>>,
    up: Uptime,
}

impl Book {
    /// Reads everything from the store.
    pub async fn load(store: &dyn crate::store::Store) -> Result<Self, StoreError> {
        let rollouts = store.rollouts().await?;
        let mut history = BTreeMap::new();
        for rollout in &rollouts {
            history.insert(rollout.state.id.clone(), store.decisions(&rollout.state.id).await?);
        }
        Ok(Self { rollouts, history, up: Uptime::start() })
    }

    /// The instant of a plan: nobody is silent for a time in which this server was not up to hear it.
    fn instant(&self, now: UnixMillis) -> Now {
        Now { ms: now, listening_since_ms: self.up.since(now) }
    }

    /// Plans every open rollout, commits what changed, publishes it. Answers whether anything changed.
    pub async fn tick(&mut self, app: &App, now: UnixMillis) -> Result<bool, BookError> {
        let facts = facts(app);
        let plans = fleets::tick(&facts, &self.rollouts, &revoked(app), self.instant(now))?;
        self.commit(app, plans, now).await
    }

    /// Starts a rollout of a published version. What the operator should know goes to its history.
    pub async fn start(
        &mut self,
        app: &App,
        spec: RolloutSpec,
        now: UnixMillis,
    ) -> Result<RolloutId, BookError> {
        let valid = ValidSpec::check(spec)?;
        let (model, version) = (valid.spec().model.clone(), valid.spec().version.clone());
        let bundles = app.trust.bundles();
        let bundle = bundles.iter().find(|b| b.model == model && b.version == version);
        let digest = bundle.ok_or(BookError::NotPublished { model: model.clone(), version })?.digest;
        let matching = facts(app).values().filter(|f| valid.selector().matches(&f.attributes)).count() as u64;
        let number = self.rollouts.last().map_or(0, |r| r.state.number) + 1;
        // The number tells rollouts apart, the random part keeps names of a restored server from coming back.
        let name = format!("r{number}-{}", hex::encode(secret::random::<3>()?));
        let id = RolloutId::new(&name).map_err(std::io::Error::other)?;
        let seed = u64::from_le_bytes(secret::random::<8>()?);
        let new = NewRollout { id: id.clone(), seed, digest, now_ms: now, matching };
        let started = act::start(&self.rollouts, valid, new)?;
        let mut decisions = started.decisions;
        decisions.extend(
            started.warnings.into_iter().map(|text| Decision { at_ms: now, text: format!("note: {text}") }),
        );
        let write = PlanWrite {
            rollouts: vec![started.rollout.state.clone()],
            decisions: decisions.iter().map(|d| (id.clone(), d.clone())).collect(),
            ..PlanWrite::default()
        };
        // Those that give way go first: a crash in between leaves no two rollouts that want the same devices.
        self.commit(app, started.superseded, now).await?;
        app.store.commit_plan(write).await?;
        self.history.insert(id.clone(), decisions);
        self.rollouts.push(started.rollout);
        app.changed();
        Ok(id)
    }

    /// A person acts on a rollout.
    pub async fn act(
        &mut self,
        app: &App,
        id: &RolloutId,
        action: Action,
        who: &str,
        reason: &str,
        now: UnixMillis,
    ) -> Result<(), BookError> {
        let rollout =
            self.rollouts.iter().find(|r| r.state.id == *id).ok_or_else(|| BookError::Unknown(id.clone()))?;
        let plan = act::act(rollout, action, who, reason, now)?;
        self.commit(app, vec![plan], now).await?;
        Ok(())
    }

    /// Persist, then act: the plans and every desired document that follows from them in one write, then memory,
    /// then the devices.
    async fn commit(&mut self, app: &App, plans: Vec<Plan>, now: UnixMillis) -> Result<bool, BookError> {
        // Copied only when something changes: a quiet tick must not cost what a large fleet's members weigh.
        let mut next = Cow::Borrowed(self.rollouts.as_slice());
        let mut write = PlanWrite::default();
        for plan in &plans {
            let id = &plan.next.id;
            let Some(rollout) = next.to_mut().iter_mut().find(|r| r.state.id == *id) else { continue };
            if plan.next != rollout.state {
                write.rollouts.push(plan.next.clone());
            }
            rollout.apply(plan);
            write.members.extend(plan.members.iter().map(|(d, m)| (id.clone(), d.clone(), m.clone())));
            for decision in &plan.decisions {
                write.decisions.push((id.clone(), decision.clone()));
                write.events.push(event(plan, decision));
            }
        }
        write.desired = desired(app, &next, now);
        // Devices that run a bad version are told first.
        write.desired.sort_by_key(|(_, desired)| !desired.models.iter().any(|m| m.rollback));
        if plans.is_empty() && write.desired.is_empty() {
            return Ok(false);
        }
        let next = match next {
            Cow::Owned(next) => Some(next),
            Cow::Borrowed(_) => None,
        };
        let (orders, decisions) = (write.desired.clone(), write.decisions.clone());
        app.store.commit_plan(write).await?;
        if let Some(next) = next {
            self.rollouts = next;
        }
        for (id, decision) in decisions {
            self.history.entry(id).or_default().push(decision);
        }
        for (device, desired) in orders {
            app.fleet.update(&device, |d| d.desired = Some(desired.clone()));
            publish(app, &device, &desired);
        }
        app.changes.send_modify(|n| *n += 1);
        Ok(true)
    }

    /// One rollout, as the API shows it.
    pub fn info(&self, app: &App, id: &RolloutId) -> Option<RolloutInfo> {
        let rollout = self.rollouts.iter().find(|r| r.state.id == *id)?;
        Some(with_accuracy(app, self.render(&facts(app), &revoked(app), rollout)))
    }

    /// All rollouts, newest first.
    pub fn infos(&self, app: &App) -> Vec<RolloutInfo> {
        let (facts, revoked) = (facts(app), revoked(app));
        let shown = |r| with_accuracy(app, self.render(&facts, &revoked, r));
        self.rollouts.iter().rev().map(shown).collect()
    }

    /// Devices that a rollout has ordered.
    pub fn members(&self, id: &RolloutId) -> BTreeSet<DeviceId> {
        let rollout = self.rollouts.iter().find(|r| r.state.id == *id);
        rollout.map(|r| r.members.keys().cloned().collect()).unwrap_or_default()
    }

    fn render(&self, facts: &BTreeMap<DeviceId, Facts>, revoked: &Revoked, rollout: &Rollout) -> RolloutInfo {
        let state = &rollout.state;
        let now = self.instant(clock::now_ms());
        let view = fleets::view(facts, &self.rollouts, revoked, rollout).ok();
        let stages = view.as_ref().map(|v| summary::stage_infos(v, rollout, now)).unwrap_or_default();
        let shadow = view.as_ref().and_then(|v| v.shadow.as_ref()).map(|s| s.evidence.clone());
        let live = view.and_then(|v| v.outputs).map(|o| o.evidence);
        let history = self.history.get(&state.id).map_or(&[][..], Vec::as_slice);
        RolloutInfo {
            id: state.id.clone(),
            spec: state.spec.clone(),
            digest: state.target.digest,
            status: state.status,
            reason: state.reason.clone(),
            started_ms: state.started_ms,
            ended_ms: state.ended_ms,
            stages,
            history: history[history.len().saturating_sub(HISTORY_SHOWN)..].to_vec(),
            evidence: live.or_else(|| state.evidence.clone()),
            accuracy: String::new(),
            shadow,
        }
    }

    /// What each device waits for, by the newest rollout that has a say; devices that run what they should wait for
    /// nothing and are not listed.
    pub fn reasons(&self, app: &App, now: UnixMillis) -> BTreeMap<DeviceId, String> {
        let (facts, revoked) = (facts(app), revoked(app));
        let mut reasons = BTreeMap::new();
        for rollout in &self.rollouts {
            let Ok(view) = fleets::view(&facts, &self.rollouts, &revoked, rollout) else { continue };
            for device in facts.keys() {
                let why = summary::why(&view, rollout, device, self.instant(now));
                match why.filter(|_| !rollout.members.get(device).is_some_and(is_settled)) {
                    Some(why) => reasons.insert(device.clone(), why),
                    None if rollout.members.contains_key(device) => reasons.remove(device),
                    None => None,
                };
            }
        }
        for (device, facts) in &facts {
            let runs = facts.running.iter().filter(|(_, r)| revoked.contains(&r.bundle.digest));
            for (model, running) in runs {
                let version = &running.bundle.version;
                let text = match fleets::refuge(device, model, &self.rollouts, &revoked) {
                    Some(back) => {
                        format!("runs {model} {version}, which was revoked: ordered back to {}", back.version)
                    }
                    None => format!(
                        "runs {model} {version}, which was revoked, and never had another version: publish one and roll it out"
                    ),
                };
                reasons.insert(device.clone(), text);
            }
        }
        reasons
    }

    /// What a revocation means for the devices that run the version.
    pub fn fallout(&self, app: &App, version: &RevokedRecord) -> Fallout {
        let revoked = revoked(app);
        let mut fallout = Fallout::default();
        for (device, facts) in facts(app) {
            if facts.running.get(&version.model).is_none_or(|r| r.bundle.digest != version.digest) {
                continue;
            }
            match fleets::refuge(&device, &version.model, &self.rollouts, &revoked) {
                Some(back) => *fallout.back.entry(back.version).or_default() += 1,
                None => fallout.stuck.push(device),
            }
        }
        fallout
    }
}

/// What becomes of the devices that run a revoked version.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fallout {
    /// Devices by the version that they are ordered back to.
    pub back: BTreeMap<semver::Version, u64>,
    /// Devices that never had another version; they keep running it.
    pub stuck: Vec<DeviceId>,
}

impl std::fmt::Display for Fallout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.back.is_empty() && self.stuck.is_empty() {
            return f.write_str("no device runs it");
        }
        let back = self.back.iter().map(|(version, n)| format!("{n} of its devices go back to {version}"));
        let stuck = self.stuck.len();
        let stuck =
            (stuck > 0).then(|| format!("{stuck} of its devices never had another version and keep it"));
        f.write_str(&back.chain(stuck).collect::<Vec<_>>().join(", "))
    }
}

/// Digests that nobody signs for any more.
fn revoked(app: &App) -> Revoked {
    app.trust.revoked().into_iter().map(|r| r.digest).collect()
}

/// The order was carried out, or was taken back and that is done.
fn is_settled(member: &Member) -> bool {
    match &member.recalled {
        Some(recall) => recall.done_ms.is_some(),
        None => member.answer.as_ref().is_some_and(|a| a.phase == JobPhase::Active),
    }
}

/// What the planner knows: every device that may connect.
fn facts(app: &App) -> BTreeMap<DeviceId, Facts> {
    let versions = app.trust.versions();
    app.fleet.read(|devices| {
        let admitted = devices.values().filter(|d| !d.record.revoked);
        admitted.map(|d| (d.record.device.clone(), d.facts(&versions))).collect()
    })
}

fn desired(app: &App, rollouts: &[Rollout], now: UnixMillis) -> Vec<(DeviceId, Desired)> {
    let revoked = revoked(app);
    app.fleet.read(|devices| {
        let admitted = devices.values().filter(|d| !d.record.revoked);
        let changed = admitted.filter_map(|device| {
            let id = &device.record.device;
            let (stored, reported) = (device.desired.as_ref(), device.reported_generation());
            fleets::desired(id, rollouts, &revoked, stored, reported, now)
                .map(|desired| (id.clone(), desired))
        });
        changed.collect()
    })
}

/// A stopped rollout is an alarm, every other decision is for information.
fn event(plan: &Plan, decision: &Decision) -> NewEvent {
    let severity = if plan.next.is_blocked() { Severity::Alarm } else { Severity::Info };
    let text = format!("{} {}: {}", plan.next.spec.model, plan.next.target.version, decision.text);
    NewEvent { at_ms: decision.at_ms, device: None, severity, code: "rollout.decision".into(), text }
}

/// Sends a desired document that the store has committed. A device that is not connected finds it when it
/// subscribes.
fn publish(app: &App, device: &DeviceId, desired: &Desired) {
    let Some(gateway) = app.gateway() else { return };
    match serde_json::to_vec(desired) {
        Ok(payload) => {
            if let Err(error) = gateway.send(&app.identity(device), Down::Desired, Bytes::from(payload), true)
            {
                tracing::debug!(%device, %error, "desired state waits for the device to subscribe");
            }
        }
        Err(error) => tracing::error!(%device, %error, "desired state does not encode"),
    }
}

/// Adds what late labels say of a rollout's version, beside the newest other version that has any.
fn with_accuracy(app: &App, mut info: RolloutInfo) -> RolloutInfo {
    let labelled = |digest| Some(app.drift.truth(digest)).filter(|truth| truth.labelled > 0);
    let Some(own) = labelled(&info.digest) else { return info };
    let mut others: Vec<_> = app.trust.bundles();
    others.retain(|b| b.model == info.spec.model && b.digest != info.digest);
    others.sort_by(|a, b| b.version.cmp(&a.version));
    let other = others.iter().find_map(|b| Some((&b.version, labelled(&b.digest)?)));
    info.accuracy = format!("{}: {}", info.spec.version, own.words(None));
    if let Some((version, truth)) = other {
        info.accuracy.push_str(&format!("; {version}: {}", truth.words(None)));
    }
    info
}
