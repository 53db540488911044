//! The fleet server: enrolment, trust, rollouts and telemetry of a fleet, in one process.
//!
//! ```text
//! devices  ── https ──> http::device ─┐                          ┌─> trust (TUF repository) ─> blobs
//!          ── mqtts ──> gateway ──────┼─> ingest ─> store <──────┤
//! people   ── http ───> http::operator┘      │        ^          └─> ca, auth
//!                                            └─> fleet │ (memory)
//!                                     reconciler ─> rollouts (planner) ─> store, then gateway
//! ```
//!
//! [`store`] is the truth; [`fleet`] and [`rollouts`] are its image in memory and change only after it. Decisions
//! come from `plimsoll-fleet-core` and `plimsoll-protocol::trust`, which know no clock and no disk.

pub mod app;
pub mod auth;
pub mod blobs;
pub mod ca;
pub mod clock;
pub mod config;
pub mod delta;
pub mod doctor;
pub mod drift;
pub mod fleet;
pub mod gateway;
pub mod http;
pub mod ingest;
pub mod metrics;
pub mod outputs;
pub mod reconciler;
pub mod rollouts;
pub mod secret;
pub mod server;
pub mod store;
pub mod trust;
pub mod web;
