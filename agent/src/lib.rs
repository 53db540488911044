//! The agent: the shell around the lifecycle of `plimsoll-agent-core`.

pub mod serve;
