//! What is known about the fleet at one instant, for one rollout. The planner sees nothing else.

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_protocol::ids::RolloutId;
use plimsoll_protocol::wire::v1::JobPhase;
use plimsoll_protocol::{DeviceId, Digest, UnixMillis};

use crate::evidence::Weighed;
use crate::gate::Reading;
use crate::rollout::Bundle;
use crate::shadow;

/// The instant of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Server time.
    pub ms: UnixMillis,
    /// Since when the server has been able to hear devices without a gap. Nobody is called silent for a time in
    /// which the server itself was down. To be derived from a monotonic clock (`ms` minus the time since the
    /// listeners opened), so that a jump of the wall clock does not look like silence.
    pub listening_since_ms: UnixMillis,
}

impl Now {
    /// The later of `ms` and the time at which the server began to listen.
    pub(crate) fn heard_from(&self, ms: UnixMillis) -> UnixMillis {
        ms.max(self.listening_since_ms.min(self.ms))
    }
}

/// A server that has always been listening.
impl From<UnixMillis> for Now {
    fn from(ms: UnixMillis) -> Self {
        Self { ms, listening_since_ms: UnixMillis::MIN }
    }
}

/// All devices, as one rollout sees them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FleetView {
    /// Every device that may connect; a revoked one is not listed.
    pub devices: BTreeMap<DeviceId, DeviceView>,
    /// Judgements of evidence beyond answers (drift, failed requests, accuracy), made outside of the planner and
    /// weighed with its own.
    pub readings: Vec<Reading>,
    /// What the version answered in shadow; `None` when nobody has reported.
    pub shadow: Option<shadow::Weighed>,
    /// What the version answers beside the one before; `None` when the gate is off or nobody has the version yet.
    pub outputs: Option<Weighed>,
    /// Versions whose signatures were withdrawn: no device may be sent to one of them.
    pub revoked: Revoked,
}

/// Digests of versions that were published once and that nobody signs for any more.
pub type Revoked = BTreeSet<Digest>;

/// One device, as one rollout sees it. Cheap to make: the fields are what the planner compares.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DeviceView {
    /// The selector matches, and no newer rollout of the model has this device.
    pub matches: bool,
    /// Its connection stands.
    pub online: bool,
    /// What it runs for the model, from the newest of its reports.
    pub running: Option<Running>,
    /// What other rollouts of the model have proven on it or left it with: where it goes back to when what it runs
    /// cannot be trusted.
    pub standing: Option<Bundle>,
    /// What it runs was revoked, or rolled back by another rollout: nothing to go back to.
    pub distrusted: bool,
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
