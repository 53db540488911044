//! Who is next: one rollout, one instant, one [`Plan`].
//!
//! A plan is a value: the next state, the members that changed, the orders that follow, and the decisions in words.
//! The shell stores the first two together, in one batch, before it acts on the third. Planning the same view
//! again, from the stored state, gives the same orders or none: they are recorded in the members.
//!
//! Each tick does three things, in this order: **observe** (write down what devices answered and when they were
//! first reached), **judge** (the gates, on everyone who was ordered so far), **advance** (stop and take back, or
//! fill the open stage, or finish it, or start the next). A stage starts only when all before it are done.

mod advance;
mod recall;
mod work;

use std::collections::BTreeMap;

use plimsoll_protocol::api::{Decision, RolloutStatus};
use plimsoll_protocol::ids::RolloutId;
use plimsoll_protocol::{DeviceId, ModelName};

use crate::rollout::{Bundle, Member, Rollout, RolloutState};
use crate::view::{FleetView, Now};

pub(crate) use advance::{duration, holding};
pub use work::{Census, StageCensus, census};

/// What changes.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The next state; its epoch is one higher than the last when anything changed, and the same otherwise.
    pub next: RolloutState,
    /// Members that are new or changed.
    pub members: BTreeMap<DeviceId, Member>,
    /// What devices are told now, in the order in which to tell them.
    pub orders: Vec<Order>,
    /// For the history.
    pub decisions: Vec<Decision>,
    /// Why nothing more happens now, in words. Not stored; it may change with every tick.
    pub reasons: Vec<String>,
    /// Whether `next` or `members` differ from what is stored.
    pub changed: bool,
}

/// One device is told to run one version. The document it gets is [`crate::fleet::desired`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Which device.
    pub device: DeviceId,
    /// By which rollout.
    pub rollout: RolloutId,
    /// Which model.
    pub model: ModelName,
    /// Which version; `None`: the order is taken back, and there is nothing to go back to.
    pub bundle: Option<Bundle>,
    /// This takes an order back.
    pub rollback: bool,
}

impl Plan {
    /// Whether there is nothing to store and nobody to tell.
    pub fn is_quiet(&self) -> bool {
        !self.changed && self.orders.is_empty() && self.decisions.is_empty()
    }
}

/// The plan of one rollout at one instant.
pub fn plan(view: &FleetView, rollout: &Rollout, now: impl Into<Now>) -> Plan {
    let mut work = work::Work::new(view, rollout, now.into());
    match rollout.state.status {
        status
            if rollout.state.is_open()
                && status != RolloutStatus::RollingBack
                && view.revoked.contains(&rollout.state.target.digest) =>
        {
            work.observe();
            recall::withdraw(&mut work);
        }
        RolloutStatus::RolledBack | RolloutStatus::Aborted | RolloutStatus::Superseded => {}
        RolloutStatus::RollingBack => {
            work.observe();
            recall::follow(&mut work);
        }
        RolloutStatus::Completed => {
            work.observe();
            advance::serve_newcomers(&mut work);
        }
        RolloutStatus::Running | RolloutStatus::WaitingForApproval | RolloutStatus::Paused => {
            work.observe();
            advance::advance(&mut work);
        }
    }
    work.finish()
}
