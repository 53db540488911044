//! The harness: a whole fleet of real processes on loopback.
//!
//! The demo and the end-to-end tests share it. It plays the parts that a real site has and Plimsoll does not bring:
//! systemd (a [`Process`] is restarted when it dies), the operator (the `plimsoll` command, run as a command), and
//! the application that asks the model (the [`Feeder`]). It reaches into nothing: what it knows it learns from the
//! same addresses and commands as a user.

mod api;
mod binaries;
pub mod disk;
mod feeder;
mod fleet;
mod ledger;
pub mod network;
mod process;
mod replay;
mod site;
pub mod soak;
mod wait;

pub use api::Api;
pub use binaries::Binaries;
pub use feeder::{Feeder, Tally};
pub use fleet::{Agent, Fleet, Settings};
pub use ledger::Ledger;
pub use process::Process;
pub use replay::{Image, Replay};
pub use site::{MODEL, Order, RETURN, STEP, Site};
pub use wait::until;
