//! The agent's decisions. Pure: no files, no clock, no randomness, no tasks; a test holds that.
//!
//! [`Core`] owns the lifecycle of every model of a device. The shell feeds it [`Event`]s together with the time
//! and a random seed ([`Ctx`]), gets an [`Outcome`], and must write the outcome's [`Persistent`] record before it
//! can see the effects:
//!
//! ```ignore
//! let after = core.decide(event, &ctx).commit(&mut core, |record| anchor.commit(record))?;
//! for effect in after.effects { /* start it; its result comes back as an event */ }
//! for report in after.reports { /* into the outbox */ }
//! ```
//!
//! When the record cannot be written nothing is started and the record stays as it was; the core keeps the event and
//! decides it again before the next one. Every effect is idempotent, because a crash
//! between the write and the effect makes [`Core::resume`] order it again.
//!
//! | module | what |
//! |---|---|
//! | [`event`] | what can happen |
//! | [`record`] | what survives a crash |
//! | [`holds`] | who may make an update wait |
//! | [`outcome`] | what the shell has to do, and the order it has to do it in |
//! | `lifecycle` | the one match over (state, event) |
//! | `candidate`, `running` | what its edges do |
//! | `shadow` | a version beside the one that runs, before it takes over |
//! | `trust` | what follows when the owner no longer signs for a version |
//! | `resume` | what a device does first after any crash |
//! | [`policy`] | deadlines, budgets, trial verdicts: numbers with their arithmetic |
//! | [`mod@preflight`] | can this device run that bundle at all |
//! | [`retry`] | full-jitter backoff |

pub mod event;
pub mod holds;
pub mod outcome;
pub mod policy;
pub mod preflight;
pub mod record;
pub mod retry;

mod candidate;
mod core;
mod lifecycle;
mod orders;
mod resume;
mod running;
mod shadow;
mod trust;
mod turn;

pub use crate::core::Core;
pub use event::{Ctx, Death, Event, Failure, ModelEvent};
pub use holds::Rules;
pub use outcome::{After, Effect, Outcome, Refused, Report};
pub use preflight::{Device, preflight};
pub use record::{Blocked, Installed, ModelRecord, Order, Persistent, State, Tries};
pub use resume::{Observed, SlotFacts};
