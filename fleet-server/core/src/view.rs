//! What is known about the fleet at one instant, for one rollout. The planner sees nothing else.

use std::collections::BTreeMap;

use plimsoll_protocol::ids::RolloutId;
use plimsoll_protocol::wire::v1::JobPhase;
use plimsoll_protocol::{DeviceId, Digest, UnixMillis};

use crate::gate::Reading;
use crate::rollout::Bundle;

/// All devices, as one rollout sees them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FleetView {
    /// Every device that may connect; a revoked one is not listed.
    pub devices: BTreeMap<DeviceId, DeviceView>,
    /// Judgements of evidence beyond answers (drift, failed requests, accuracy), made outside of the planner and
    /// weighed with its own.
    pub readings: Vec<Reading>,
}

/// One device, as one rollout sees it. Cheap to make: the fields are what the planner compares.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DeviceView {
    /// The selector matches, and no newer rollout of the model has this device.
    pub matches: bool,
    /// Its connection stands.
    pub online: bool,
    /// What it runs for the model, from the newest of its reports.
    pub running: Option<Running>,
    /// What it should run for the model by the goals of all other rollouts: where it goes back to when it runs
    /// nothing proven.
    pub standing: Option<Bundle>,
    /// The newest report about an order of this rollout's digest.
    pub job: Option<JobView>,
    /// It has reported about another digest under this rollout: it knows of a recall.
    pub back: bool,
}

/// What a device runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// Which version.
    pub bundle: Bundle,
    /// Its trial ended well.
    pub trial_passed: bool,
}

/// The newest report of a device about one digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobView {
    /// The rollout that it answers, when the report says so.
    pub rollout: Option<RolloutId>,
    /// What was ordered.
    pub digest: Digest,
    /// Where it stands.
    pub phase: JobPhase,
    /// Server time at which the report came.
    pub at_ms: UnixMillis,
    /// The device's words.
    pub reason: Option<String>,
}

impl DeviceView {
    /// Whether it runs this digest, on trial or not.
    pub fn runs(&self, digest: &Digest) -> bool {
        self.running.as_ref().is_some_and(|r| r.bundle.digest == *digest)
    }
}
