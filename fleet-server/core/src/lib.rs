//! What the fleet does next, and why: a pure function of what is known.
//!
//! The server's reconciler reads its store into [`Facts`] about each device, asks [`fleet::tick`] what changes,
//! stores the answer in one batch, and only then publishes the desired state of each device that
//! [`fleet::desired`] derives from it. Nothing here reads a clock, draws a number or keeps a state of its own:
//! the same values give the same plan, on the server that was just restarted too.
//!
//! | module | question |
//! |---|---|
//! | [`selector`] | which devices does an operator mean? |
//! | [`spec`] | can this rollout be run at all, and what can its gates not see? |
//! | [`cohort`] | in which order do devices get it? |
//! | [`rollout`] | what is remembered |
//! | [`view`] | what is known about the devices |
//! | [`outcome`] | what became of an order on one device? |
//! | [`gate`] | is it well with those that have it? |
//! | [`evidence`] | does it answer as surely as the version before did? |
//! | [`shadow`] | does it answer otherwise than the version before, on the same requests? |
//! | [`accuracy`] | is it right, where labels came later? |
//! | [`planner`] | who is next? |
//! | [`act`] | what may a person do to a rollout? |
//! | [`summary`] | where does it stand, in words? |
//! | [`fleet`] | all rollouts together: who owns which device, and the document each device gets |

pub mod accuracy;
pub mod act;
pub mod cohort;
pub mod evidence;
pub mod fleet;
pub mod gate;
pub mod outcome;
pub mod planner;
pub mod rollout;
pub mod selector;
pub mod shadow;
pub mod spec;
pub mod summary;
#[cfg(test)]
mod testing;
pub mod view;

pub use fleet::Facts;
pub use planner::{Order, Plan, plan};
pub use rollout::{Bundle, Member, Rollout, RolloutState};
pub use selector::{Attributes, Selector};
pub use spec::ValidSpec;
pub use view::{DeviceView, FleetView, JobView};
