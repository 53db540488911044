//! Settings: `agent.toml`, overlaid by the environment and the command line, parsed once into [`Settings`].
//!
//! Every setting has a default that suits a device of the field, so a file is optional. An unknown key is an error:
//! a typing mistake in a file that nobody watches must not silently mean the default.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use plimsoll_protocol::hours::MaintenanceHours;
use serde::Deserialize;

use crate::clock::ClockTrust;
use crate::engine::{self, Engines};
use crate::files;
use crate::serve::bridge::Bridge;
use crate::serve::listen::SocketAt;
use crate::slots::Limits;

/// Where a file is read when none is named and it exists.
pub const DEFAULT_FILE: &str = "/etc/plimsoll/agent.toml";
/// Where the state lies unless told otherwise; systemd's `StateDirectory=plimsoll-agent` makes it.
pub const DEFAULT_STATE: &str = "/var/lib/plimsoll-agent";
/// A settings file is a page; this is far beyond any honest one.
const MAX_FILE: u64 = 256 * 1024;

/// The settings of one agent, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Everything the agent keeps.
    pub state_dir: PathBuf,
    /// Inference endpoint.
    pub listen: SocketAddr,
    /// Unix socket of the inference endpoint, beside the address.
    pub socket: Option<SocketAt>,
    /// Sensors' readings on a local broker.
    pub bridge: Option<Bridge>,
    /// Engines that run bundles of the kind `external`.
    pub engines: Engines,
    /// Free labels, told to the server at birth.
    pub labels: BTreeMap<String, String>,
    /// Seconds between health reports; the fleet's configuration may override it.
    pub health_interval_s: u32,
    /// Seconds of a measurement window; the fleet's configuration may override it.
    pub window_s: u32,
    /// Bytes of reports that may wait for the server.
    pub outbox_bytes: u64,
    /// Bytes a second of downloads; `None` for no cap.
    pub bandwidth: Option<u64>,
    /// The first contact after a boot is spread over so many seconds by the device's name.
    pub first_contact_spread_s: u32,
    /// Bytes that must stay free on the state folder's file system.
    pub reserve_bytes: u64,
    /// Largest inference request body in bytes.
    pub max_body_bytes: u64,
    /// Whether the system's clock is believed.
    pub clock: ClockTrust,
    /// Updates start and go on within these hours of the device's local time only.
    pub maintenance_hours: MaintenanceHours,
    /// Longest that the application may put off one update, seconds.
    pub not_now_max_s: u32,
    /// Most bytes of bundles on the disk; `None` for what the disk has.
    pub models_bytes: Option<u64>,
    /// Log filter, as `tracing` reads it: `info`, `plimsoll_agent=debug`.
    pub log: String,
}

impl Settings {
    /// What bundles may take of the disk.
    pub const fn limits(&self) -> Limits {
        Limits { reserve_bytes: self.reserve_bytes, quota_bytes: self.models_bytes }
    }

    /// Names of the settings that differ and cannot change while the agent runs: what they made is open or written.
    pub fn fixed(&self, new: &Self) -> Vec<&'static str> {
        let differs = [
            ("state_dir", self.state_dir != new.state_dir),
            ("listen", self.listen != new.listen),
            ("socket", self.socket != new.socket),
            ("mqtt", self.bridge != new.bridge),
            ("clock", self.clock != new.clock),
            ("outbox_bytes", self.outbox_bytes != new.outbox_bytes),
            ("max_body_bytes", self.max_body_bytes != new.max_body_bytes),
        ];
        differs.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
    }

    /// Takes everything else over.
    pub fn adopt(&mut self, new: Self) {
        *self = Self {
            state_dir: std::mem::take(&mut self.state_dir),
            listen: self.listen,
            socket: self.socket.take(),
            bridge: self.bridge.take(),
            clock: self.clock,
            outbox_bytes: self.outbox_bytes,
            max_body_bytes: self.max_body_bytes,
            ..new
        };
    }
}

/// Settings that were not accepted: file, key, remedy.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the settings: {0}")]
    Read(#[from] files::FileError),
    /// The file is not this format.
    #[error("{file}: {why}")]
    Parse {
        /// Which.
        file: PathBuf,
        /// The parser's words: line, key, what is allowed.
        why: String,
    },
    /// The `[mqtt]` table contradicts itself.
    #[error("settings, table [mqtt]: {0}")]
    Mqtt(String),
    /// An `[engines]` table that cannot work.
    #[error("settings, table {0}")]
    Engines(String),
    /// Hours that are none.
    #[error("setting maintenance_hours: {0}")]
    Hours(#[from] plimsoll_protocol::hours::HoursError),
    /// A log filter that is none.
    #[error("setting log: {0}")]
    Log(#[from] crate::logging::FilterError),
    /// A value is outside what makes sense.
    #[error("setting {key} = {value}: {why}")]
    Value {
        /// Key.
        key: &'static str,
        /// As given.
        value: String,
        /// What is allowed.
        why: &'static str,
    },
}

/// One place of settings: the file, and again the flags. Absent means "as the layer below says".
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Args)]
#[serde(default, deny_unknown_fields)]
pub struct Layer {
    /// Folder for everything the agent keeps [default: /var/lib/plimsoll-agent]
    #[arg(long, env = "PLIMSOLL_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Address of the inference endpoint; port 0 lets the system choose [default: 127.0.0.1:8500]
    #[arg(long, env = "PLIMSOLL_LISTEN", value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// Unix socket of the inference endpoint, beside the address [default: none]
    #[arg(long, env = "PLIMSOLL_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Permissions of the socket, octal: who may write to it may ask [default: 660]
    #[arg(long, env = "PLIMSOLL_SOCKET_MODE", value_name = "MODE")]
    pub socket_mode: Option<String>,
    /// Readings from a local MQTT broker (in the file only): see the `[mqtt]` table of deploy/agent.toml
    #[arg(skip)]
    pub mqtt: Option<Bridge>,
    /// Engines of the owner's, by name (in the file only): see the `[engines]` table of deploy/agent.toml
    #[arg(skip)]
    pub engines: Option<Engines>,
    /// Labels of this device (in the file only): site = "lyon"
    #[arg(skip)]
    pub labels: Option<BTreeMap<String, String>>,
    /// Seconds between health reports [default: 60]
    #[arg(long, env = "PLIMSOLL_HEALTH_INTERVAL_S", value_name = "S")]
    pub health_interval_s: Option<u32>,
    /// Seconds of a measurement window [default: 3600]
    #[arg(long, env = "PLIMSOLL_WINDOW_S", value_name = "S")]
    pub window_s: Option<u32>,
    /// Bytes of reports that may wait for the server [default: 16777216]
    #[arg(long, env = "PLIMSOLL_OUTBOX_BYTES", value_name = "BYTES")]
    pub outbox_bytes: Option<u64>,
    /// Cap on downloads in bytes a second, 0 for none [default: 0]
    #[arg(long, env = "PLIMSOLL_BANDWIDTH", value_name = "BYTES")]
    pub bandwidth: Option<u64>,
    /// Spread of the first contact after a boot, in seconds [default: 30]
    #[arg(long, env = "PLIMSOLL_FIRST_CONTACT_SPREAD_S", value_name = "S")]
    pub first_contact_spread_s: Option<u32>,
    /// Bytes that stay free on the state folder's file system [default: 33554432]
    #[arg(long, env = "PLIMSOLL_RESERVE_BYTES", value_name = "BYTES")]
    pub reserve_bytes: Option<u64>,
    /// Largest inference request body in bytes [default: 33554432]
    #[arg(long, env = "PLIMSOLL_MAX_BODY_BYTES", value_name = "BYTES")]
    pub max_body_bytes: Option<u64>,
    /// Whether signed metadata expires by the system's clock: auto (once systemd-timesyncd has set it), trusted
    /// (another time service keeps it), untrusted [default: auto]
    #[arg(long, env = "PLIMSOLL_CLOCK", value_enum, value_name = "TRUST")]
    pub clock: Option<ClockTrust>,
    /// Updates only within these hours of the device's local time (in the file only): ["Mon-Fri 02:00-04:30"]
    #[arg(skip)]
    pub maintenance_hours: Option<Vec<String>>,
    /// Longest that the application may put off one update, in seconds; 0 means not at all [default: 3600]
    #[arg(long, env = "PLIMSOLL_NOT_NOW_MAX_S", value_name = "S")]
    pub not_now_max_s: Option<u32>,
    /// Most bytes of bundles on the disk, 0 for what the disk has [default: 0]
    #[arg(long, env = "PLIMSOLL_MODELS_BYTES", value_name = "BYTES")]
    pub models_bytes: Option<u64>,
    /// Log filter: error, warn, info, debug, or module=level [default: info]
    #[arg(long, env = "PLIMSOLL_LOG", value_name = "FILTER")]
    pub log: Option<String>,
}

impl Layer {
    /// Reads a file. `None` means the default file, which may be absent.
    pub fn from_file(file: Option<&Path>) -> Result<Self, ConfigError> {
        let path = file.unwrap_or(Path::new(DEFAULT_FILE));
        if file.is_none() && !path.exists() {
            return Ok(Self::default());
        }
        let bytes = files::read_limited(path, MAX_FILE)?;
        let parse = |why: String| ConfigError::Parse { file: path.to_owned(), why };
        let text = String::from_utf8(bytes).map_err(|e| parse(e.to_string()))?;
        toml::from_str(&text).map_err(|e| parse(e.to_string().trim_end().to_owned()))
    }

    /// These settings, and `below` where this layer is silent.
    pub fn over(self, below: Self) -> Self {
        Self {
            state_dir: self.state_dir.or(below.state_dir),
            listen: self.listen.or(below.listen),
            socket: self.socket.or(below.socket),
            socket_mode: self.socket_mode.or(below.socket_mode),
            mqtt: self.mqtt.or(below.mqtt),
            engines: self.engines.or(below.engines),
            labels: self.labels.or(below.labels),
            health_interval_s: self.health_interval_s.or(below.health_interval_s),
            window_s: self.window_s.or(below.window_s),
            outbox_bytes: self.outbox_bytes.or(below.outbox_bytes),
            bandwidth: self.bandwidth.or(below.bandwidth),
            first_contact_spread_s: self.first_contact_spread_s.or(below.first_contact_spread_s),
            reserve_bytes: self.reserve_bytes.or(below.reserve_bytes),
            max_body_bytes: self.max_body_bytes.or(below.max_body_bytes),
            clock: self.clock.or(below.clock),
            maintenance_hours: self.maintenance_hours.or(below.maintenance_hours),
            not_now_max_s: self.not_now_max_s.or(below.not_now_max_s),
            models_bytes: self.models_bytes.or(below.models_bytes),
            log: self.log.or(below.log),
        }
    }

    /// Checks every value and fills in the defaults.
    pub fn resolve(self) -> Result<Settings, ConfigError> {
        let labels = self.labels.unwrap_or_default();
        check_labels(&labels)?;
        let engines = self.engines.unwrap_or_default();
        engine::check(&engines).map_err(ConfigError::Engines)?;
        if let Some(why) = self.mqtt.as_ref().and_then(|bridge| bridge.check().err()) {
            return Err(ConfigError::Mqtt(why));
        }
        Ok(Settings {
            state_dir: self.state_dir.unwrap_or_else(|| PathBuf::from(DEFAULT_STATE)),
            listen: loopback(self.listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 8500))))?,
            socket: socket(self.socket, self.socket_mode.as_deref().unwrap_or("660"))?,
            bridge: self.mqtt,
            engines,
            labels,
            health_interval_s: seconds("health_interval_s", self.health_interval_s.unwrap_or(60))?,
            window_s: seconds("window_s", self.window_s.unwrap_or(3600))?,
            outbox_bytes: outbox(self.outbox_bytes.unwrap_or(16 * 1024 * 1024))?,
            bandwidth: self.bandwidth.filter(|b| *b > 0),
            first_contact_spread_s: self.first_contact_spread_s.unwrap_or(30),
            reserve_bytes: self.reserve_bytes.unwrap_or(32 * 1024 * 1024),
            max_body_bytes: self.max_body_bytes.unwrap_or(32 * 1024 * 1024),
            clock: self.clock.unwrap_or_default(),
            maintenance_hours: MaintenanceHours::parse(&self.maintenance_hours.unwrap_or_default())?,
            not_now_max_s: self.not_now_max_s.unwrap_or(3600).min(7 * 24 * 3600),
            models_bytes: self.models_bytes.filter(|b| *b > 0),
            log: log(self.log.unwrap_or_else(|| "info".to_owned()))?,
        })
    }
}

/// Inference has no authentication of its own, so only this machine may ask.
fn loopback(listen: SocketAddr) -> Result<SocketAddr, ConfigError> {
    if listen.ip().is_loopback() {
        return Ok(listen);
    }
    let why = "inference requests carry no authentication, so only a loopback address (127.0.0.1 or [::1]) is \
               allowed; put a proxy with authentication in front of it";
    Err(ConfigError::Value { key: "listen", value: listen.to_string(), why })
}

/// Permission bits in octal, without those of execution and of other identities: a socket has no use for them.
fn socket(path: Option<PathBuf>, mode: &str) -> Result<Option<SocketAt>, ConfigError> {
    let bits = u32::from_str_radix(mode, 8).ok().filter(|bits| bits & !0o666 == 0);
    let Some(mode) = bits else {
        let why = "octal permissions without execution are allowed: 600, 660, 666";
        return Err(ConfigError::Value { key: "socket_mode", value: mode.to_owned(), why });
    };
    Ok(path.map(|path| SocketAt { path, mode }))
}

/// A filter that is none would leave the agent mute, or dead at its start.
fn log(filter: String) -> Result<String, ConfigError> {
    crate::logging::check_filter(&filter)?;
    Ok(filter)
}

/// A second is the shortest that makes sense, a week the longest.
fn seconds(key: &'static str, value: u32) -> Result<u32, ConfigError> {
    if (1..=7 * 24 * 3600).contains(&value) {
        return Ok(value);
    }
    Err(ConfigError::Value { key, value: value.to_string(), why: "1 to 604800 seconds (a week) are allowed" })
}

/// 256 KiB hold eighty full reports: less would drop the story of a single update.
fn outbox(value: u64) -> Result<u64, ConfigError> {
    if value >= 256 * 1024 {
        return Ok(value);
    }
    Err(ConfigError::Value {
        key: "outbox_bytes",
        value: value.to_string(),
        why: "at least 262144 are needed",
    })
}

/// A birth is one report of at most 3 KiB: 16 labels of 64 bytes each way take 2 KiB of it.
fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), ConfigError> {
    let refuse = |value: String, why| Err(ConfigError::Value { key: "labels", value, why });
    if labels.len() > 16 {
        return refuse(format!("{} labels", labels.len()), "at most 16 labels are allowed");
    }
    for (key, value) in labels {
        let plain = |t: &str| (1..=64).contains(&t.len()) && !t.chars().any(char::is_control);
        if !plain(key) || !plain(value) {
            return refuse(
                format!("{key:?} = {value:?}"),
                "1 to 64 bytes without control characters are allowed",
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        std::fs::write(&path, text).unwrap();
        Layer::from_file(Some(&path))?.resolve()
    }

    #[test]
    fn an_empty_file_means_the_defaults_and_a_flag_wins_over_the_file() {
        let settings = parse("").unwrap();
        assert_eq!(settings.listen.to_string(), "127.0.0.1:8500");
        assert_eq!(settings.bandwidth, None);
        let file = Layer { window_s: Some(10), health_interval_s: Some(5), ..Layer::default() };
        let flags = Layer { window_s: Some(20), ..Layer::default() };
        let settings = flags.over(file).resolve().unwrap();
        assert_eq!((settings.window_s, settings.health_interval_s), (20, 5));
    }

    #[test]
    fn a_mistake_is_named_with_its_file_and_key() {
        for (text, words) in [
            ("windw_s = 5", &["agent.toml", "windw_s", "window_s"][..]),
            ("window_s = \"x\"", &["agent.toml", "window_s"]),
            ("window_s = 0", &["window_s", "604800"]),
            ("listen = \"0.0.0.0:80\"", &["listen", "loopback"]),
            ("[mqtt]\nbroker = \"here\"", &["[mqtt]", "host:port"]),
            ("socket_mode = \"777\"", &["socket_mode", "660"]),
            ("maintenance_hours = [\"Mon 2-3\"]", &["maintenance_hours", "22:00-06:00"]),
            ("log = \"x=loud\"", &["log", "try info"]),
            ("outbox_bytes = 5", &["outbox_bytes", "262144"]),
            ("[labels]\nsite = \"a\\nb\"", &["labels", "site"]),
        ] {
            let error = parse(text).unwrap_err().to_string();
            for word in words {
                assert!(error.contains(word), "{text:?} gave {error:?}, without {word:?}");
            }
        }
    }

    #[test]
    fn what_can_change_while_the_agent_runs_is_taken_over_and_the_rest_is_named() {
        let mut settings = parse("").unwrap();
        let new = parse("window_s = 7\nbandwidth = 9\nmaintenance_hours = [\"01:00-02:00\"]").unwrap();
        assert_eq!(settings.fixed(&new), [""; 0]);
        settings.adopt(new.clone());
        assert_eq!(settings, new);
        let other = parse("window_s = 8\nlisten = \"127.0.0.1:1\"\noutbox_bytes = 500000").unwrap();
        assert_eq!(settings.fixed(&other), ["listen", "outbox_bytes"]);
        settings.adopt(other);
        assert_eq!((settings.window_s, settings.listen.port()), (8, 8500));
    }

    #[test]
    fn a_named_file_that_is_absent_is_an_error() {
        assert!(Layer::from_file(Some(Path::new("/nonexistent/agent.toml"))).is_err());
    }
}
