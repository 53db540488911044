//! The planner against a fleet in memory: scripts with golden transcripts, properties over random histories, and
//! how often the gates are wrong.

mod properties;
mod rates;
mod scenarios;
mod world;
