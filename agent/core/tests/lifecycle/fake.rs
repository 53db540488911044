//! A shell made of values: a disk that survives, a process and a child that do not, bundles with natures of their
//! own. It does what the core orders, can be made to fail or crash at any point, and checks after every step what
//! must hold whatever happens.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use plimsoll_agent_core::policy::budget;
use plimsoll_agent_core::record::{MAX_BLOCKED, MAX_TRIES};
use plimsoll_agent_core::{
    After, Core, Ctx, Death, Effect, Event, Failure, Installed, ModelEvent, Observed, Persistent, Report,
    SlotFacts,
};
use plimsoll_protocol::hours::LocalTime;
use plimsoll_protocol::wire::v1::{
    Desired, DesiredModel, JobReport, ShadowPolicy, ShadowReport, ShadowTotals, UpdatePolicy,
};
use plimsoll_protocol::{Digest, ModelName};
use serde::{Deserialize, Serialize};

/// Memory that every bundle needs, bytes.
pub const NEEDS: u64 = 50 * 1024 * 1024;

/// What a bundle does when it is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Nature {
    Good,
    /// A file of it does not have the signed digest.
    Tampered,
    /// For other hardware.
    Foreign,
    /// Answers its golden samples wrongly.
    Wrong,
    /// Kills the process that tests it.
    KillsSelfTest,
    /// Kills the serving child that loads it.
    KillsLoad,
    /// Loads, then fails every second request.
    FailsRequests,
    /// Loads, then kills the serving child.
    KillsServe,
    /// Answers its golden samples, and everything else otherwise than the version before.
    Differs,
    /// Kills the serving child as soon as it sees what the application asks.
    KillsShadow,
    /// Panics on what the application asks.
    PanicsInShadow,
}

pub const NATURES: [Nature; 11] = [
    Nature::Good,
    Nature::Tampered,
    Nature::Foreign,
    Nature::Wrong,
    Nature::KillsSelfTest,
    Nature::KillsLoad,
    Nature::FailsRequests,
    Nature::KillsServe,
    Nature::Differs,
    Nature::KillsShadow,
    Nature::PanicsInShadow,
];

/// Where a step is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    Whole,
    /// The disk refuses the record.
    PersistFails,
    /// The process dies before the record is durable.
    DiesBefore,
    /// The process dies when the record is durable and so many effects have been started.
    DiesAfter(usize),
}

pub fn policy() -> UpdatePolicy {
    UpdatePolicy {
        jitter_s: 5,
        trial_s: 10,
        trial_requests: 4,
        trial_max_failed_percent: 25,
        tries: 2,
        lease_s: 60,
        ..UpdatePolicy::default()
    }
}

/// Beside the version that runs for 20 s, for at least ten rows, a twentieth of which may differ.
pub fn with_shadow() -> UpdatePolicy {
    let shadow =
        ShadowPolicy { seconds: 20, sample_percent: 50, min_rows: 10, max_disagree_percent: Some(5) };
    UpdatePolicy { shadow: Some(shadow), ..policy() }
}

#[derive(Debug, Default)]
pub struct Child {
    pub loaded: BTreeSet<Digest>,
    pub serving: BTreeMap<ModelName, Digest>,
    /// The candidate, and what was compared.
    pub shadows: BTreeMap<ModelName, (Digest, ShadowTotals)>,
}

#[derive(Debug, Default)]
pub struct Shell {
    // What survives.
    pub anchor: Persistent,
    pub slots: BTreeMap<Digest, SlotFacts>,
    pub staging: BTreeSet<Digest>,
    // What does not.
    pub core: Core,
    pub mono_ms: u64,
    pub child: Option<Child>,
    /// Fetches, stagings and self-tests under way.
    pub work: Vec<Effect>,
    /// Orders that the child has not read.
    pub orders: VecDeque<Effect>,
    pub wake: Option<u64>,
    /// What the device's clock says; a test moves it by hand.
    pub local: Option<LocalTime>,
    /// Memory of the device that is free.
    pub ram_available: Option<u64>,
    // The world.
    pub natures: BTreeMap<Digest, Nature>,
    pub names: BTreeMap<Digest, (ModelName, semver::Version)>,
    pub jobs: Vec<JobReport>,
    pub shadows: Vec<ShadowReport>,
    pub codes: Vec<String>,
    pub refused: Vec<String>,
    seed: u64,
    // What the invariants need to remember.
    verified: BTreeSet<Digest>,
    self_tested: BTreeSet<Digest>,
    proven: BTreeSet<ModelName>,
    self_tests_begun: BTreeMap<Digest, u32>,
    /// How often a bundle got a fresh budget.
    budgets: BTreeMap<Digest, u32>,
}

pub fn model(name: &str) -> ModelName {
    ModelName::new(name).unwrap()
}

impl Shell {
    pub fn new() -> Self {
        let mut shell = Self::default();
        shell.restart();
        shell
    }

    /// Publishes a bundle; its digest follows from its name.
    pub fn publish(&mut self, name: &str, version: &str, nature: Nature) -> Digest {
        let digest = Digest::of(format!("{name} {version}").as_bytes());
        self.natures.insert(digest, nature);
        self.names.insert(digest, (model(name), version.parse().unwrap()));
        digest
    }

    pub fn wanted(&self, digest: Digest) -> DesiredModel {
        let (model, version) = self.names[&digest].clone();
        let policy = policy();
        DesiredModel {
            model,
            version,
            digest,
            rollout: None,
            policy,
            rollback: false,
            blocked: vec![],
            attempt: 0,
        }
    }

    /// What an import leaves behind: verified, in the staging folder.
    pub fn brought(&mut self, digest: Digest) {
        self.staging.insert(digest);
        self.verified.insert(digest);
    }

    pub fn order(&mut self, generation: u64, models: Vec<DesiredModel>) {
        self.feed(desired(generation, models), Fate::Whole);
    }

    pub fn active(&self, name: &str) -> Option<&Installed> {
        self.core.record().models.get(&model(name))?.active.as_ref()
    }

    pub fn state(&self, name: &str) -> &'static str {
        self.core.record().models.get(&model(name)).map_or("none", |r| r.state.name())
    }

    fn ctx(&mut self) -> Ctx {
        self.seed += 1;
        Ctx {
            now_ms: 0,
            mono_ms: self.mono_ms,
            seed: self.seed,
            local: self.local,
            ram_available_bytes: self.ram_available,
        }
    }

    /// One event through the core, cut off where `fate` says.
    pub fn feed(&mut self, event: Event, fate: Fate) {
        if let Event::Desired(desired) = &event
            && desired.generation > self.anchor.generation
        {
            let record = &self.anchor;
            let under = |m: &DesiredModel| {
                let blocked = record.blocked(&m.model, m.digest).map(|b| b.attempt);
                blocked.max(Some(record.tries(&m.model, m.digest).attempt)).unwrap_or(0)
            };
            let lifted = desired.models.iter().filter(|m| under(m) < m.attempt);
            for digest in lifted.map(|m| m.digest).collect::<Vec<_>>() {
                *self.budgets.entry(digest).or_insert(1) += 1;
            }
        }
        let before = self.core.clone();
        let ctx = self.ctx();
        let outcome = self.core.decide(event, &ctx);
        assert_eq!(self.core, before, "deciding changed the core");
        let anchor = &mut self.anchor;
        let written = outcome.commit(&mut self.core, |record| match fate {
            Fate::PersistFails | Fate::DiesBefore => Err(()),
            _ => {
                *anchor = record.clone();
                Ok(())
            }
        });
        match (written, fate) {
            (_, Fate::DiesBefore) => self.restart(),
            (Err(()), _) => {
                assert_eq!(
                    self.core.record(),
                    before.record(),
                    "a decision that was not written became true"
                );
            }
            (Ok(after), Fate::DiesAfter(started)) => {
                self.start(after, started);
                self.restart();
            }
            (Ok(after), _) => self.start(after, usize::MAX),
        }
        self.check();
    }

    /// The agent starts, after a crash or for the first time.
    pub fn restart(&mut self) {
        self.child = None;
        self.work.clear();
        self.orders.clear();
        self.mono_ms = 0;
        let observed = Observed { slots: self.slots.clone(), damaged: vec![] };
        let ctx = self.ctx();
        let (core, outcome) = Core::resume(self.anchor.clone(), &observed, &ctx);
        self.core = core;
        let anchor = &mut self.anchor;
        let after = outcome.commit(&mut self.core, |record| {
            *anchor = record.clone();
            Ok::<(), ()>(())
        });
        self.start(after.unwrap(), usize::MAX);
        self.check();
    }

    fn start(&mut self, after: After, most: usize) {
        assert_eq!(
            self.core.record(),
            &self.anchor,
            "an effect was handed out before its record was durable"
        );
        self.wake = after.wake_mono_ms;
        self.refused.extend(after.refused.iter().map(ToString::to_string));
        for report in after.reports {
            match report {
                Report::Job(job) => self.jobs.push(job),
                Report::Event(event) => self.codes.push(event.code),
                Report::Shadow(report) => self.shadows.push(*report),
            }
        }
        for effect in after.effects.into_iter().take(most) {
            self.start_one(effect);
        }
    }

    fn start_one(&mut self, effect: Effect) {
        match effect {
            Effect::Fetch { .. } | Effect::Stage { .. } => self.work.push(effect),
            Effect::SelfTest { digest, .. } => {
                *self.self_tests_begun.entry(digest).or_default() += 1;
                self.work.push(effect);
            }
            Effect::Cancel { digest, .. } => self.work.retain(|w| subject(w).1 != digest),
            Effect::Discard { digest } => {
                self.staging.remove(&digest);
            }
            Effect::Load { .. }
            | Effect::Serve { .. }
            | Effect::Unload { .. }
            | Effect::Shadow { .. }
            | Effect::EndShadow { .. } => {
                assert!(self.child.is_some(), "{effect:?} while there is no child");
                self.orders.push_back(effect);
            }
            Effect::MarkProven { digest, generation } => {
                if let Some(slot) = self.slots.get_mut(&digest) {
                    slot.proven = Some(generation);
                }
            }
            Effect::DeleteSlot { digest } => {
                assert!(!self.anchor.slots().contains(&digest), "a slot that is needed was to be deleted");
                self.slots.remove(&digest);
            }
        }
    }

    /// Finishes one piece of work; `fault` says that the world fails it.
    pub fn finish_work(&mut self, index: usize, fault: bool, fate: Fate) {
        if self.work.is_empty() {
            return;
        }
        let work = self.work.remove(index % self.work.len());
        let (name, digest) = subject(&work);
        let nature = self.natures[&digest];
        let (reason, transient) = ("it was so".to_owned(), Failure::Transient);
        let what = match (work, nature) {
            (Effect::Fetch { .. }, _) if fault => {
                ModelEvent::FetchFailed { failure: transient, reason, retry_after_ms: Some(1_000) }
            }
            (Effect::Fetch { .. }, Nature::Tampered) => {
                ModelEvent::FetchFailed { failure: Failure::Permanent, reason, retry_after_ms: None }
            }
            (Effect::Fetch { .. }, Nature::Foreign) => ModelEvent::NotApplicable { reason },
            (Effect::Fetch { .. }, _) => {
                self.staging.insert(digest);
                self.verified.insert(digest);
                ModelEvent::FetchDone
            }
            (Effect::Stage { .. }, _) if fault || !self.staging.remove(&digest) => {
                ModelEvent::StageFailed { failure: transient, reason }
            }
            (Effect::Stage { .. }, _) => {
                let (model, version) = self.names[&digest].clone();
                self.slots.insert(digest, SlotFacts { model, version, proven: None });
                ModelEvent::Staged
            }
            (_, Nature::Wrong) => ModelEvent::SelfTestFailed { failure: Failure::Permanent, reason },
            (_, nature) if fault || nature == Nature::KillsSelfTest => {
                ModelEvent::SelfTestFailed { failure: transient, reason }
            }
            _ => {
                self.self_tested.insert(digest);
                ModelEvent::SelfTestPassed { peak_rss_bytes: NEEDS }
            }
        };
        self.feed(Event::Of { model: name, digest, what }, fate);
    }

    /// The child reads one order.
    pub fn obey(&mut self, fault: bool, fate: Fate) {
        let Some(order) = self.orders.pop_front() else { return };
        let Some(child) = &mut self.child else { return };
        let (name, digest) = subject(&order);
        let nature = self.natures[&digest];
        let what = match order {
            Effect::Load { .. } if nature == Nature::KillsLoad => return self.kill_child(fate),
            // Faults of the world are transient: the same load may succeed later.
            Effect::Load { .. } if fault || !self.slots.contains_key(&digest) => {
                ModelEvent::LoadFailed { reason: "no memory".into() }
            }
            Effect::Load { .. } => {
                child.loaded.insert(digest);
                ModelEvent::Loaded
            }
            Effect::Serve { .. } if nature == Nature::KillsServe => return self.kill_child(fate),
            Effect::Serve { .. } => {
                if !child.loaded.contains(&digest) {
                    return; // a child answers an impossible order with silence
                }
                child.serving.insert(name.clone(), digest);
                ModelEvent::Serving
            }
            Effect::Shadow { .. } if nature == Nature::KillsShadow => return self.kill_child(fate),
            Effect::Shadow { .. } if nature == Nature::PanicsInShadow => {
                ModelEvent::Fault { reason: "index out of bounds".into() }
            }
            Effect::Shadow { with, .. } => {
                if !child.loaded.contains(&digest) || child.serving.get(&name) != Some(&with) {
                    return;
                }
                child.shadows.insert(name, (digest, ShadowTotals::default()));
                return self.check();
            }
            Effect::EndShadow { .. } => {
                child.shadows.remove(&name);
                return self.check();
            }
            _ => {
                child.loaded.remove(&digest);
                child.shadows.retain(|_, (d, _)| *d != digest);
                child.serving.retain(|_, d| *d != digest);
                return self.check();
            }
        };
        self.feed(Event::Of { model: name, digest, what }, fate);
    }

    pub fn start_child(&mut self, fate: Fate) {
        if self.child.is_none() {
            self.child = Some(Child::default());
            self.feed(Event::ServeStarted, fate);
        }
    }

    pub fn kill_child(&mut self, fate: Fate) {
        self.child_dies(None, fate);
    }

    /// The child is killed because a run of a bundle that it serves does not end.
    pub fn hang_child(&mut self, which: usize, fate: Fate) {
        let serving = self.child.iter().flat_map(|c| c.serving.clone()).nth(which);
        if serving.is_some() {
            self.child_dies(serving, fate);
        }
    }

    fn child_dies(&mut self, blamed: Option<(ModelName, Digest)>, fate: Fate) {
        if self.child.take().is_some() {
            self.orders.clear();
            self.feed(Event::ServeDied(Death { reason: "signal 9".into(), blamed }), fate);
        }
    }

    /// What the serving child's counters say.
    pub fn sample(&mut self, requests: u64, fate: Fate) {
        let serving = self.child.iter().flat_map(|c| c.serving.clone()).collect::<Vec<_>>();
        for (model, digest) in serving {
            let failed =
                if self.natures[&digest] == Nature::FailsRequests { requests.div_ceil(2) } else { 0 };
            self.feed(Event::Of { model, digest, what: ModelEvent::TrialSample { requests, failed } }, fate);
        }
    }

    /// What the serving child has compared.
    pub fn compare(&mut self, rows: u64, fate: Fate) {
        let natures = &self.natures;
        let shadows = self.child.iter_mut().flat_map(|c| &mut c.shadows);
        let counted = shadows.map(|(model, (digest, totals))| {
            totals.rows += rows;
            totals.differ += if natures[digest] == Nature::Differs { rows.div_ceil(2) } else { 0 };
            (model.clone(), *digest, *totals)
        });
        for (model, digest, totals) in counted.collect::<Vec<_>>() {
            self.feed(Event::Of { model, digest, what: ModelEvent::ShadowSample { totals } }, fate);
        }
    }

    pub fn advance(&mut self, ms: u64, fate: Fate) {
        self.mono_ms += ms;
        self.feed(Event::Tick, fate);
    }

    /// The world stops failing: everything that is ordered is done, until nothing is left to do.
    pub fn settle(&mut self) {
        for _ in 0..300 {
            self.start_child(Fate::Whole);
            self.feed(Event::ServerHeard, Fate::Whole);
            while !self.work.is_empty() {
                self.finish_work(0, false, Fate::Whole);
            }
            while !self.orders.is_empty() {
                self.obey(false, Fate::Whole);
            }
            self.sample(100, Fate::Whole);
            self.compare(100, Fate::Whole);
            if self.child.is_some() && self.work.is_empty() && self.orders.is_empty() {
                let Some(at) = self.wake else { return };
                self.mono_ms = self.mono_ms.max(at);
                self.feed(Event::Tick, Fate::Whole);
            }
        }
        panic!("still busy after 300 rounds: {:?}", self.core);
    }

    /// What must hold after every step.
    fn check(&mut self) {
        let record = self.core.record();
        assert!(record.blocked.len() <= MAX_BLOCKED && record.tries.len() <= MAX_TRIES);
        for tries in &record.tries {
            let most = budget(&policy());
            let begun = [tries.self_tests, tries.activations, tries.shadows];
            assert!(begun.iter().all(|begun| *begun <= most), "{tries:?}");
        }
        for (digest, begun) in &self.self_tests_begun {
            let most = budget(&policy()) * self.budgets.get(digest).copied().unwrap_or(1);
            assert!(*begun <= most, "{begun} self-tests of {digest:?}; the budget is {most}");
        }
        let at_risk = record.models.values().filter(|r| r.state.name() == "shadowing").count();
        assert!(at_risk <= 1, "two candidates in one serving process: a death would have two suspects");
        for (model, entry) in &record.models {
            if entry.state.name() == "shadowing" {
                let active = entry.active.as_ref().filter(|a| a.trial_passed).map(|a| a.digest);
                assert!(active.is_some() && active != entry.ordered(), "{model} shadows nothing");
                let serves = self.child.as_ref().and_then(|c| c.serving.get(model));
                assert_ne!(serves.copied(), entry.ordered(), "{model} answers from its shadow");
            }
            for installed in entry.active.iter().chain(&entry.previous) {
                let digest = installed.digest;
                assert!(self.slots.contains_key(&digest), "{model} counts on a slot that is not there");
                assert!(self.self_tested.contains(&digest), "{model} may run {digest:?}, never self-tested");
            }
            assert!(
                entry.previous.as_ref().is_none_or(|p| p.trial_passed),
                "{model} would return to the unproven"
            );
            let probation = entry.state.name() == "probation";
            assert!(!probation || entry.active.as_ref().map(|a| a.digest) == entry.ordered());
            if entry.active.as_ref().is_some_and(|a| a.trial_passed) {
                self.proven.insert(model.clone());
            }
            assert!(
                entry.active.is_some() || !self.proven.contains(model),
                "{model} ran well and nothing is left"
            );
        }
        for active in record.models.values().filter_map(|r| r.active.as_ref()).filter(|a| a.trial_passed) {
            // A version that passed was given its tries back.
            let begun = self.self_tests_begun.get(&active.digest).copied().unwrap_or(0);
            self.budgets.insert(active.digest, begun.div_ceil(budget(&policy())) + 1);
        }
        for (model, digest) in self.child.iter().flat_map(|c| &c.serving) {
            let proof = self.verified.contains(digest) && self.self_tested.contains(digest);
            assert!(proof, "{model} serves {digest:?}, which was not verified and self-tested");
        }
    }
}

pub fn desired(generation: u64, models: Vec<DesiredModel>) -> Event {
    Event::Desired(Desired { v: 1, generation, models, issued_ms: 0 })
}

fn subject(effect: &Effect) -> (ModelName, Digest) {
    match effect {
        Effect::Fetch { model, digest, .. }
        | Effect::Cancel { model, digest }
        | Effect::Stage { model, digest }
        | Effect::SelfTest { model, digest }
        | Effect::Load { model, digest, .. }
        | Effect::Serve { model, digest }
        | Effect::Shadow { model, digest, .. }
        | Effect::EndShadow { model, digest }
        | Effect::Unload { model, digest } => (model.clone(), *digest),
        other => panic!("{other:?} is not about a model"),
    }
}
