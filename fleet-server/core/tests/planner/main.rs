//! The planner against a fleet in memory: scripts with golden transcripts, properties over random histories, and
//! how often the gates are wrong.

#![allow(
    clippy::unwrap_used,
    reason = "a test's unwrap is an assertion; clippy.toml covers only test functions"
)]

mod documents;
mod properties;
mod rates;
mod scenarios;
mod world;
