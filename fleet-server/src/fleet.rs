//! The fleet in memory: what listeners, pages and the planner read without asking the store.
//!
//! The store is the truth. This is rebuilt from it at start, and changed only after the store has committed; what
//! is lost with the process (who is connected, the last health) comes back with the next message of each device.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use plimsoll_fleet_core::evidence::Outputs;
use plimsoll_fleet_core::shadow::ShadowView;
use plimsoll_fleet_core::view::Running;
use plimsoll_fleet_core::{Attributes, Bundle, Facts, JobView};
use plimsoll_protocol::api::{DeviceInfo, JobInfo};
use plimsoll_protocol::wire::v1::{Desired, Health, JobPhase, RunningModel};
use plimsoll_protocol::{DeviceId, Digest, Generation, ModelName, UnixMillis};

use crate::store::{DeviceRecord, JobRecord, ShadowRecord, StateRecord, Store, StoreError};

/// All that is known of one device.
#[derive(Debug, Clone)]
pub struct Device {
    /// Registered.
    pub record: DeviceRecord,
    /// Last birth and whether it said goodbye.
    pub state: Option<StateRecord>,
    /// Last report about each bundle it was ordered.
    pub jobs: BTreeMap<(ModelName, Digest), JobRecord>,
    /// Last report about each candidate that it compared in shadow.
    pub shadows: BTreeMap<(ModelName, Digest), ShadowRecord>,
    /// Last health, since this server started.
    pub health: Option<Health>,
    /// Server time of its last message.
    pub last_seen_ms: Option<UnixMillis>,
    /// What it should run.
    pub desired: Option<Desired>,
    /// Its MQTT connection stands.
    pub connected: bool,
    /// What its models answered lately.
    pub outputs: Arc<Outputs>,
}

impl Device {
    fn new(record: DeviceRecord) -> Self {
        Self {
            record,
            state: None,
            jobs: BTreeMap::new(),
            shadows: BTreeMap::new(),
            health: None,
            last_seen_ms: None,
            desired: None,
            connected: false,
            outputs: Arc::default(),
        }
    }

    /// Labels: its own, overlaid by those of its join token.
    pub fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.record.labels.clone();
        labels.extend(self.state.iter().flat_map(|s| s.birth.labels.clone()));
        labels.extend(self.record.granted.clone());
        labels
    }

    /// The generation it says it works by.
    pub fn reported_generation(&self) -> Generation {
        let birth = self.state.as_ref().map_or(0, |s| s.birth.generation);
        self.jobs.values().map(|j| j.report.generation).fold(birth, Generation::max)
    }

    /// What it runs: the last birth, overlaid by every job report that came after it.
    pub fn running(&self, versions: &BTreeMap<Digest, semver::Version>) -> BTreeMap<ModelName, RunningModel> {
        let born_ms = self.state.as_ref().map_or(UnixMillis::MIN, |s| s.at_ms);
        let born = self.state.iter().flat_map(|s| &s.birth.models);
        let mut running: BTreeMap<ModelName, RunningModel> =
            born.map(|m| (m.model.clone(), m.clone())).collect();
        let mut later: Vec<&JobRecord> = self.jobs.values().filter(|j| j.at_ms >= born_ms).collect();
        later.sort_by_key(|j| (j.at_ms, j.order));
        for job in later {
            let report = &job.report;
            let Some(digest) = report.running else { continue };
            let of_order = digest == report.digest;
            let known = running.get(&report.model).filter(|r| r.digest == digest);
            let version = match (of_order, known) {
                (true, _) => report.version.clone(),
                (false, Some(known)) => known.version.clone(),
                (false, None) => match versions.get(&digest) {
                    Some(version) => version.clone(),
                    None => continue,
                },
            };
            // What runs beside an order that is not active is what ran before it, and that had passed its trial.
            let trial_passed = if of_order { report.phase == JobPhase::Active } else { true };
            let model = report.model.clone();
            running.insert(model.clone(), RunningModel { model, version, digest, trial_passed });
        }
        running
    }

    /// As the planner sees it.
    pub fn facts(&self, versions: &BTreeMap<Digest, semver::Version>) -> Facts {
        let birth = self.state.as_ref().map(|s| &s.birth);
        let running = self.running(versions).into_values().map(|r| {
            let bundle = Bundle { version: r.version, digest: r.digest };
            (r.model, Running { bundle, trial_passed: r.trial_passed })
        });
        let mut jobs: BTreeMap<ModelName, Vec<JobView>> = BTreeMap::new();
        for JobRecord { report, at_ms, .. } in self.jobs.values() {
            jobs.entry(report.model.clone()).or_default().push(JobView {
                rollout: report.rollout.clone(),
                digest: report.digest,
                phase: report.phase,
                at_ms: *at_ms,
                reason: report.reason.clone(),
            });
        }
        let mut shadows: BTreeMap<ModelName, Vec<ShadowView>> = BTreeMap::new();
        for ShadowRecord { report, at_ms, .. } in self.shadows.values() {
            let view = ShadowView { report: report.clone(), at_ms: *at_ms };
            shadows.entry(report.model.clone()).or_default().push(view);
        }
        Facts {
            attributes: Attributes {
                device: self.record.device.to_string(),
                arch: birth.map_or_else(|| self.record.arch.clone(), |b| b.arch.clone()),
                agent_version: birth.map(|b| b.agent_version.to_string()).unwrap_or_default(),
                labels: self.labels(),
            },
            online: self.connected,
            running: running.collect(),
            jobs,
            shadows,
            outputs: Arc::clone(&self.outputs),
        }
    }

    /// As the API shows it.
    pub fn info(&self, versions: &BTreeMap<Digest, semver::Version>, waiting: Option<String>) -> DeviceInfo {
        let ordered = self.desired.iter().flat_map(|d| &d.models).map(|order| {
            let job = self.jobs.get(&(order.model.clone(), order.digest));
            JobInfo {
                model: order.model.clone(),
                version: order.version.clone(),
                digest: order.digest,
                phase: job.map(|j| j.report.phase),
                reason: job.and_then(|j| j.report.reason.clone()),
                at_ms: job.map(|j| j.at_ms),
            }
        });
        DeviceInfo {
            device: self.record.device.clone(),
            online: self.connected,
            revoked: self.record.revoked,
            certificate_until_ms: self.record.certificate_until_ms,
            last_seen_ms: self.last_seen_ms,
            labels: self.labels(),
            birth: self.state.as_ref().map(|s| s.birth.clone()),
            health: self.health.clone(),
            running: self.running(versions).into_values().collect(),
            generation: self.desired.as_ref().map_or(0, |d| d.generation),
            jobs: ordered.collect(),
            waiting,
            drift: Vec::new(),
        }
    }
}

/// All devices.
pub struct Fleet {
    devices: RwLock<BTreeMap<DeviceId, Device>>,
}

impl Fleet {
    /// Reads everything from the store.
    pub async fn load(store: &dyn Store) -> Result<Self, StoreError> {
        let mut devices: BTreeMap<DeviceId, Device> = BTreeMap::new();
        for record in store.devices().await? {
            devices.insert(record.device.clone(), Device::new(record));
        }
        for (id, state) in store.states().await? {
            if let Some(device) = devices.get_mut(&id) {
                device.last_seen_ms = Some(state.at_ms);
                device.state = Some(state);
            }
        }
        for job in store.jobs().await? {
            if let Some(device) = devices.get_mut(&job.device) {
                device.last_seen_ms = device.last_seen_ms.max(Some(job.at_ms));
                device.jobs.insert((job.report.model.clone(), job.report.digest), job);
            }
        }
        for shadow in store.shadows().await? {
            if let Some(device) = devices.get_mut(&shadow.device) {
                device.shadows.insert((shadow.report.model.clone(), shadow.report.candidate), shadow);
            }
        }
        for (id, desired) in store.all_desired().await? {
            if let Some(device) = devices.get_mut(&id) {
                device.desired = Some(desired);
            }
        }
        Ok(Self { devices: RwLock::new(devices) })
    }

    /// Reads, under the lock: be brief.
    pub fn read<T>(&self, look: impl FnOnce(&BTreeMap<DeviceId, Device>) -> T) -> T {
        look(&self.devices.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// One device, copied out.
    pub fn device(&self, id: &DeviceId) -> Option<Device> {
        self.read(|devices| devices.get(id).cloned())
    }

    /// Takes over a registration that the store has committed.
    pub fn register(&self, record: DeviceRecord) {
        let mut devices = self.devices.write().unwrap_or_else(PoisonError::into_inner);
        match devices.get_mut(&record.device) {
            Some(device) => device.record = record,
            None => {
                devices.insert(record.device.clone(), Device::new(record));
            }
        }
    }

    /// Changes one device after the store has committed; nothing happens when it is not registered.
    pub fn update(&self, id: &DeviceId, change: impl FnOnce(&mut Device)) {
        let mut devices = self.devices.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(device) = devices.get_mut(id) {
            change(device);
        }
    }
}
