//! A fleet in memory that keeps what a server's store would keep, and devices that do as a test says.

use std::collections::BTreeMap;
use std::sync::Arc;

use plimsoll_fleet_core::act::{self, ActError, Action, NewRollout, StartError};
use plimsoll_fleet_core::evidence::{LabelWindow, OutputWindow};
use plimsoll_fleet_core::shadow::ShadowView;
use plimsoll_fleet_core::view::{Now, Revoked, Running};
use plimsoll_fleet_core::{Bundle, Facts, JobView, Plan, Rollout, ValidSpec, fleet};
use plimsoll_protocol::api::{GateSpec, OnBreach, RolloutSpec, StageSpec};
use plimsoll_protocol::drift::Bins;
use plimsoll_protocol::ids::RolloutId;
use plimsoll_protocol::wire::v1::{Desired, JobPhase, ShadowEnd, ShadowReport, ShadowTotals};
use plimsoll_protocol::{DeviceId, Digest, ModelName, UnixMillis};

/// Any time of day will do; it only has to be far from zero so that clocks can jump back.
pub const START_MS: UnixMillis = 1_700_000_000_000;

pub struct World {
    pub now_ms: UnixMillis,
    pub devices: BTreeMap<DeviceId, Facts>,
    pub stored: BTreeMap<DeviceId, Desired>,
    pub reported: BTreeMap<DeviceId, u64>,
    /// What a device ran before the version that is on trial.
    pub kept: BTreeMap<DeviceId, Running>,
    pub listening_since_ms: UnixMillis,
    pub rollouts: Vec<Rollout>,
    pub revoked: Revoked,
}

pub fn model() -> ModelName {
    ModelName::new("meter").unwrap()
}

pub fn bundle(version: &str) -> Bundle {
    Bundle { version: version.parse().unwrap(), digest: Digest::of(version.as_bytes()) }
}

pub fn device(name: &str) -> DeviceId {
    DeviceId::new(name).unwrap()
}

/// A spec with stages like `2 soak=10` or `10% approval`.
pub fn spec(version: &str, stages: &str) -> RolloutSpec {
    RolloutSpec {
        model: model(),
        version: version.parse().unwrap(),
        selector: String::new(),
        stages: stages.split(',').map(stage).collect(),
        gate: GateSpec { silent_after_s: 60, ..GateSpec::default() },
        on_breach: OnBreach::Rollback,
        policy: Default::default(),
        supersede: false,
    }
}

fn stage(text: &str) -> StageSpec {
    let mut words = text.split_whitespace();
    let size = words.next().unwrap_or("").to_owned();
    let mut stage = StageSpec { name: None, size, min: 0, soak_s: 0, approval: false };
    for word in words {
        match word.split_once('=') {
            Some(("soak", s)) => stage.soak_s = s.parse().unwrap(),
            Some(("min", n)) => stage.min = n.parse().unwrap(),
            Some(("name", n)) => stage.name = Some(n.to_owned()),
            None if word == "approval" => stage.approval = true,
            _ => panic!("stage option {word:?}"),
        }
    }
    stage
}

impl World {
    /// `n` connected devices cam-1 … that run 1.0.0.
    pub fn new(n: usize) -> Self {
        let mut world = Self {
            now_ms: START_MS,
            devices: BTreeMap::new(),
            stored: BTreeMap::new(),
            reported: BTreeMap::new(),
            kept: BTreeMap::new(),
            listening_since_ms: START_MS,
            rollouts: Vec::new(),
            revoked: Revoked::new(),
        };
        world.grow(n);
        world
    }

    /// Adds devices until there are `n`.
    pub fn grow(&mut self, n: usize) {
        for i in self.devices.len() + 1..=n {
            self.add(&format!("cam-{i}"), Some("1.0.0"));
        }
    }

    pub fn add(&mut self, name: &str, version: Option<&str>) -> &mut Facts {
        let mut facts = Facts { online: true, ..Facts::default() };
        facts.attributes.device = name.to_owned();
        facts.attributes.arch = "aarch64".to_owned();
        if let Some(version) = version {
            facts.running.insert(model(), Running { bundle: bundle(version), trial_passed: true });
        }
        self.devices.entry(device(name)).or_insert(facts)
    }

    pub fn start(&mut self, id: &str, spec: RolloutSpec, seed: u64) -> Result<Vec<String>, StartError> {
        let digest = bundle(&spec.version.to_string()).digest;
        let spec = ValidSpec::check(spec).unwrap_or_else(|e| panic!("{e}"));
        let matching =
            self.devices.values().filter(|f| spec.selector().matches(&f.attributes)).count() as u64;
        let new = NewRollout { id: RolloutId::new(id).unwrap(), seed, digest, now_ms: self.now_ms, matching };
        let started = act::start(&self.rollouts, spec, new)?;
        for plan in &started.superseded {
            self.apply(plan);
        }
        self.rollouts.push(started.rollout);
        Ok(started.warnings)
    }

    pub fn act(&mut self, id: &str, action: Action, reason: &str) -> Result<Plan, ActError> {
        let plan = act::act(self.rollout(id), action, "ana", reason, self.now_ms)?;
        self.apply(&plan);
        self.publish();
        Ok(plan)
    }

    pub fn rollout(&self, id: &str) -> &Rollout {
        self.rollouts.iter().find(|r| r.state.id.as_str() == id).unwrap_or_else(|| panic!("no rollout {id}"))
    }

    fn apply(&mut self, plan: &Plan) {
        let rollout = self.rollouts.iter_mut().find(|r| r.state.id == plan.next.id).unwrap();
        assert!(plan.next.epoch > rollout.state.epoch, "a change must carry a newer epoch");
        rollout.apply(plan);
    }

    pub fn now(&self) -> Now {
        Now { ms: self.now_ms, listening_since_ms: self.listening_since_ms }
    }

    /// One reconcile tick: plan, store, publish.
    pub fn tick(&mut self) -> Vec<Plan> {
        let plans = fleet::tick(&self.devices, &self.rollouts, &self.revoked, self.now()).unwrap();
        plans.iter().for_each(|plan| self.apply(plan));
        self.publish();
        plans
    }

    fn publish(&mut self) {
        for device in self.devices.keys() {
            let stored = self.stored.get(device);
            let reported = self.reported.get(device).copied().unwrap_or(0);
            let doc = fleet::desired(device, &self.rollouts, &self.revoked, stored, reported, self.now_ms);
            if let Some(doc) = doc {
                assert!(doc.generation > stored.map_or(0, |d| d.generation));
                self.stored.insert(device.clone(), doc);
            }
        }
    }

    /// What the device was told to run, and whether it runs something else.
    pub fn wanted(&self, name: &DeviceId) -> Option<Bundle> {
        let wanted = self.stored.get(name)?.models.first()?;
        let bundle = Bundle { version: wanted.version.clone(), digest: wanted.digest };
        let runs = self.devices.get(name)?.running.get(&model()).is_some_and(|r| r.bundle == bundle);
        (!runs).then_some(bundle)
    }

    /// The device takes its desired state up and gets as far as `phase`.
    pub fn report(&mut self, name: &DeviceId, phase: JobPhase, reason: Option<&str>) {
        let Some(doc) = self.stored.get(name) else { return };
        let Some(wanted) = doc.models.first() else { return };
        let bundle = Bundle { version: wanted.version.clone(), digest: wanted.digest };
        let job = JobView {
            rollout: wanted.rollout.clone(),
            digest: wanted.digest,
            phase,
            at_ms: self.now_ms,
            reason: reason.map(str::to_owned),
        };
        self.reported.insert(name.clone(), doc.generation);
        let facts = self.devices.get_mut(name).unwrap();
        facts.jobs.insert(model(), vec![job]);
        match phase {
            JobPhase::Probation => {
                let kept = facts.running.insert(model(), Running { bundle, trial_passed: false });
                self.kept.extend(kept.map(|k| (name.clone(), k)));
            }
            JobPhase::Active => {
                facts.running.insert(model(), Running { bundle, trial_passed: true });
                self.kept.remove(name);
            }
            JobPhase::Failed | JobPhase::RolledBack => {
                facts.running.extend(self.kept.remove(name).map(|k| (model(), k)));
            }
            _ => {}
        }
    }

    /// The device closes a window of `n` readings with what it runs, their confidence within 0.01 of `mean`.
    pub fn window(&mut self, name: &DeviceId, mean: f64, n: u32) {
        let facts = self.devices.get_mut(name).unwrap();
        let digest = facts.running.get(&model()).unwrap().bundle.digest;
        let bins = Bins::unit();
        let mut cells = vec![0; bins.value_cells()];
        for i in 0..n {
            let reading = mean + 0.01 * (f64::from(i % 3) - 1.0);
            cells[bins.find((reading as f32).into())] += 1;
        }
        let index = facts.outputs.of(&digest).last().map_or(0, |w| w.index + 1);
        let sum = mean * f64::from(n);
        let window = OutputWindow { index, at_ms: self.now_ms, cells: cells.into(), sum, worth: 1.0 };
        Arc::make_mut(&mut facts.outputs).add(digest, window);
    }

    /// Labels came for so many answers of what the device runs.
    pub fn labelled(&mut self, name: &DeviceId, wrong: u32, labelled: u32) {
        let facts = self.devices.get_mut(name).unwrap();
        let digest = facts.running.get(&model()).unwrap().bundle.digest;
        let index = facts.outputs.labels_of(&digest).last().map_or(0, |w| w.index + 1);
        let window = LabelWindow { index, at_ms: self.now_ms, labelled, wrong };
        Arc::make_mut(&mut facts.outputs).add_labels(digest, window);
    }

    /// The device, which was told to run another version, has compared so many rows of it with what it runs.
    pub fn shadowed(&mut self, name: &DeviceId, differ: u32, rows: u32) {
        let Some(wanted) = self.stored.get(name).and_then(|doc| doc.models.first()).cloned() else { return };
        let at_ms = self.now_ms;
        let facts = self.devices.get_mut(name).unwrap();
        let current = facts.running.get(&model()).map(|r| r.bundle.clone());
        let report = ShadowReport {
            generation: 1,
            rollout: wanted.rollout,
            model: model(),
            version: wanted.version,
            candidate: wanted.digest,
            current_version: current.as_ref().map(|b| b.version.clone()),
            current: current.map(|b| b.digest),
            end: ShadowEnd::Open,
            reason: None,
            totals: ShadowTotals { rows: rows.into(), differ: differ.into(), ..ShadowTotals::default() },
        };
        facts.shadows.insert(model(), vec![ShadowView { report, at_ms }]);
    }

    /// A stop and a start of the server: only what is stored survives.
    pub fn restart(&mut self) {
        let text = serde_json::to_string(&self.rollouts).unwrap();
        self.rollouts = serde_json::from_str(&text).unwrap();
        self.listening_since_ms = self.now_ms;
    }
}
