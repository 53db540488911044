//! What the server tells a device.

use serde::{Deserialize, Serialize};

use super::ShadowPolicy;
use crate::hours::MaintenanceHours;
use crate::ids::RolloutId;
use crate::{Digest, Generation, Incarnation, ModelName, UnixMillis};

/// Everything a device should run. Goal state, not a queue: the newest generation supersedes all before it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Desired {
    /// 1.
    pub v: u32,
    /// A document with a generation below the device's is refused as stale.
    pub generation: Generation,
    /// All models of the device. A model that is not listed keeps running: absence is not an order.
    pub models: Vec<DesiredModel>,
    /// Server time, for the clock skew only.
    pub issued_ms: UnixMillis,
}

/// One model that a device should run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DesiredModel {
    /// Model.
    pub model: ModelName,
    /// Version; the device looks up its target in the trust repository and believes nothing else.
    pub version: semver::Version,
    /// Digest of its `bundle.json`; must be that of the signed target.
    pub digest: Digest,
    /// Which rollout ordered it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutId>,
    /// How the device takes it over.
    #[serde(default)]
    pub policy: UpdatePolicy,
    /// This is a return to an earlier version: no jitter, no maintenance hours, a blocked newer version stays away.
    #[serde(default)]
    pub rollback: bool,
    /// Bundles this device must not try again until told otherwise (the server's verdict on a bad version).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blocked: Vec<Digest>,
    /// Raised when somebody says "try again" (the number of the rollout does: who starts a new rollout of a version
    /// means it). A version that the device itself blocked under a lower number gets a fresh budget of tries. A
    /// number and not a flag, so that the same order repeated is not one more try.
    #[serde(default)]
    pub attempt: u64,
}

/// How a device takes a version over. Durations in seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UpdatePolicy {
    /// Spread of the start over the devices of a stage.
    pub jitter_s: u32,
    /// How long the new version is on trial.
    pub trial_s: u32,
    /// Requests that the trial should see; fewer at its end is reported, not failed.
    pub trial_requests: u32,
    /// Failed requests, in percent of the trial's, above which the device rolls back by itself.
    pub trial_max_failed_percent: u32,
    /// How often it may be tried before the version is blocked on this device.
    pub tries: u32,
    /// No activation when the server was last heard longer ago than this.
    pub lease_s: u32,
    /// Devices take it over within these hours of their own local time only, and within those of their own settings.
    #[serde(skip_serializing_if = "MaintenanceHours::is_any_time")]
    pub hours: MaintenanceHours,
    /// The version is compared with the one that runs before it takes over; `None`: it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow: Option<ShadowPolicy>,
}

impl Default for UpdatePolicy {
    /// A minute of jitter, ten minutes of trial with at least 20 requests and 5 % failures, three tries, an hour.
    fn default() -> Self {
        Self {
            jitter_s: 60,
            trial_s: 600,
            trial_requests: 20,
            trial_max_failed_percent: 5,
            tries: 3,
            lease_s: 3600,
            hours: MaintenanceHours::default(),
            shadow: None,
        }
    }
}

/// Longest id of a command, bytes: a ULID is 26.
pub const MAX_COMMAND_ID: usize = 64;

/// A one-off command. The broker drops it after [`COMMAND_EXPIRY_S`], so a device that was away does not obey the
/// orders of yesterday. It may come twice, and each kind does no more the second time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Comes back in the answer. At most [`MAX_COMMAND_ID`] bytes.
    pub id: String,
    /// What to do.
    #[serde(flatten)]
    pub what: CommandKind,
}

/// Life of a command in seconds: longer than a reconnect with its backoff after a short cut, shorter than the
/// patience of the person who waits for the answer.
pub const COMMAND_EXPIRY_S: u32 = 300;

/// What a command does. Nothing here can change which model runs: that is the desired state's, with its generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum CommandKind {
    /// Look at the signed metadata now.
    Refresh,
    /// Report state, health and the open measurement windows now.
    Report,
    /// Another log filter for a while.
    Log {
        /// `debug`, `plimsoll_agent=debug`, …
        filter: String,
        /// Seconds; the device bounds it to an hour.
        for_s: u32,
    },
    /// Hold the updates of this device, also after a restart.
    Pause,
    /// Let them go on.
    Resume,
    /// A kind of a newer server.
    #[serde(other)]
    Unknown,
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandAnswer {
    /// Of the command.
    pub id: String,
    /// Whether it was done.
    pub ok: bool,
    /// What was done, or why not.
    pub text: String,
}

/// Reports that this server has committed; only these may leave the outbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// Whose.
    pub inc: Incarnation,
    /// `(boot, first seq, last seq)`, inclusive.
    pub ranges: Vec<(u64, u64, u64)>,
    /// Server time.
    pub server_ms: UnixMillis,
}

/// Settings of the whole fleet. Absent fields leave the device's own configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FleetConfig {
    /// Seconds between health reports.
    pub health_interval_s: Option<u32>,
    /// Seconds of a measurement window.
    pub window_s: Option<u32>,
    /// No device starts an update while this holds.
    pub paused: bool,
}
