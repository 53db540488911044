//! Settings: what people write (flags and a TOML file, flags first), checked into what the server runs by.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use plimsoll_protocol::TenantId;
use plimsoll_protocol::wire::v1::FleetConfig;
use serde::Deserialize;

use crate::ca::{DEVICE_LIFE_S, Source};

/// Settings as written. A flag wins over the file, the file over the default.
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Raw {
    /// Folder of everything the server keeps [default: $STATE_DIRECTORY, or /var/lib/plimsoll-server].
    #[arg(long, env = "PLIMSOLL_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// Operators: API and page [default: 127.0.0.1:8080; elsewhere than on loopback it speaks TLS and wants tokens].
    #[arg(long)]
    pub listen_http: Option<SocketAddr>,
    /// Devices: enrolment, metadata, blobs; always TLS [default: 0.0.0.0:8443].
    #[arg(long)]
    pub listen_https: Option<SocketAddr>,
    /// Devices: MQTT; always TLS with client certificates [default: 0.0.0.0:8883].
    #[arg(long)]
    pub listen_mqtt: Option<SocketAddr>,
    /// Dashboards: MQTT with tokens, read-only [default: 127.0.0.1:8884; elsewhere it speaks TLS].
    #[arg(long)]
    pub listen_dashboard: Option<SocketAddr>,
    /// Host name or address under which devices reach this server; repeat for more, the first is what they are told
    /// [default: this machine's name].
    #[arg(long = "public-host")]
    #[serde(rename = "public_host")]
    pub public_hosts: Vec<String>,
    /// Name of the fleet's owner, part of every certificate; fixed by the first start [default: fleet].
    #[arg(long)]
    pub tenant: Option<String>,
    /// Milliseconds between two looks of the reconciler [default: 1000].
    #[arg(long)]
    pub tick_ms: Option<u64>,
    /// Ask for a token on the page and on /metrics, also on loopback.
    #[arg(long)]
    pub closed_pages: bool,
    /// Life of a device's certificate: 90d, 36h; devices renew at two thirds of it [default: 90d].
    #[arg(long)]
    pub device_certificate: Option<String>,
    /// Authority of your own PKI instead of one that the server makes (file only).
    #[arg(skip)]
    pub ca: Option<RawCa>,
    /// What every device is told when it connects (file only).
    #[arg(skip)]
    pub fleet: FleetConfig,
}

/// `[ca]`: an issuing authority of the operator's own PKI.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawCa {
    /// PEM: the issuing certificate first, then optionally who signed it.
    pub certificate: PathBuf,
    /// PEM, PKCS#8: its key.
    pub key: PathBuf,
}

/// Settings that the server runs by.
#[derive(Debug, Clone)]
pub struct Config {
    /// Folder of everything.
    pub state_dir: PathBuf,
    /// Operators.
    pub http: SocketAddr,
    /// Devices.
    pub https: SocketAddr,
    /// Devices.
    pub mqtt: SocketAddr,
    /// Dashboards.
    pub dashboard: SocketAddr,
    /// Names of this server; never empty.
    pub public_hosts: Vec<String>,
    /// Owner.
    pub tenant: TenantId,
    /// Between two looks of the reconciler.
    pub tick: Duration,
    /// Pages and numbers without a token.
    pub open_pages: bool,
    /// For every device.
    pub fleet: FleetConfig,
    /// Who signs devices, and for how long.
    pub ca: Source,
    /// How to look at a store that was not closed in order.
    pub probe: crate::store::embedded::Probe,
}

/// A setting that is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("configuration {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file does not parse.
    #[error("configuration {path}: {source}")]
    Parse {
        /// Which.
        path: PathBuf,
        /// Key and place.
        source: Box<toml::de::Error>,
    },
    /// A value outside its range.
    #[error("setting {key}: {why}")]
    Value {
        /// Which.
        key: &'static str,
        /// What is allowed.
        why: String,
    },
}

impl Raw {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        toml::from_str(&text)
            .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })
    }

    /// These settings, and where they say nothing, those.
    pub fn over(self, file: Self) -> Self {
        Self {
            state_dir: self.state_dir.or(file.state_dir),
            listen_http: self.listen_http.or(file.listen_http),
            listen_https: self.listen_https.or(file.listen_https),
            listen_mqtt: self.listen_mqtt.or(file.listen_mqtt),
            listen_dashboard: self.listen_dashboard.or(file.listen_dashboard),
            public_hosts: if self.public_hosts.is_empty() { file.public_hosts } else { self.public_hosts },
            tenant: self.tenant.or(file.tenant),
            tick_ms: self.tick_ms.or(file.tick_ms),
            closed_pages: self.closed_pages || file.closed_pages,
            device_certificate: self.device_certificate.or(file.device_certificate),
            ca: self.ca.or(file.ca),
            fleet: file.fleet,
        }
    }

    /// Checks everything; the error names the setting.
    pub fn check(self) -> Result<Config, ConfigError> {
        let value = |key, why: String| ConfigError::Value { key, why };
        let tenant = self.tenant.as_deref().unwrap_or("fleet");
        let tenant = TenantId::new(tenant).map_err(|e| value("tenant", e.to_string()))?;
        let tick_ms = self.tick_ms.unwrap_or(1000);
        if !(50..=60_000).contains(&tick_ms) {
            return Err(value("tick_ms", format!("is {tick_ms}; 50 to 60000 are allowed")));
        }
        let public_hosts = if self.public_hosts.is_empty() { vec![machine()] } else { self.public_hosts };
        if let Some(bad) = public_hosts.iter().find(|h| !is_host(h)) {
            return Err(value(
                "public_host",
                format!("{bad:?} is no host name and no address; give it without port"),
            ));
        }
        let life = self.device_certificate.map_or(Ok(DEVICE_LIFE_S), |text| device_life(&text));
        let ca = Source {
            files: self.ca.map(|ca| (ca.certificate, ca.key)),
            device_life_s: life.map_err(|why| value("device_certificate", why))?,
        };
        let http = self.listen_http.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 8080)));
        Ok(Config {
            state_dir: self.state_dir.unwrap_or_else(default_state_dir),
            http,
            https: self.listen_https.unwrap_or(SocketAddr::from(([0, 0, 0, 0], 8443))),
            mqtt: self.listen_mqtt.unwrap_or(SocketAddr::from(([0, 0, 0, 0], 8883))),
            dashboard: self.listen_dashboard.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 8884))),
            public_hosts,
            tenant,
            tick: Duration::from_millis(tick_ms),
            open_pages: !self.closed_pages && http.ip().is_loopback(),
            fleet: self.fleet,
            ca,
            probe: crate::store::embedded::Probe::Skip,
        })
    }
}

/// `90d`, `36h`, `15m`, `30s`. At least ten seconds, which is for trials: a device needs one of them to renew. At
/// most 825 days, the most that common verifiers take of a leaf.
fn device_life(text: &str) -> Result<u64, String> {
    let unit = match text.chars().last() {
        Some('s') => Some(1),
        Some('m') => Some(60),
        Some('h') => Some(3600),
        Some('d') => Some(24 * 3600),
        _ => None,
    };
    let number = unit.and_then(|_| text.get(..text.len() - 1)?.parse::<u64>().ok());
    let seconds = number.zip(unit).and_then(|(n, unit)| n.checked_mul(unit));
    seconds
        .filter(|s| (10..=825 * 24 * 3600).contains(s))
        .ok_or_else(|| format!("{text:?} is no life of a certificate: 10s to 825d, as 90d, 36h, 15m or 30s"))
}

/// What systemd gives a service, or where one would look.
fn default_state_dir() -> PathBuf {
    std::env::var_os("STATE_DIRECTORY")
        .map_or_else(|| PathBuf::from("/var/lib/plimsoll-server"), PathBuf::from)
}

fn machine() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if is_host(&name) { name } else { "localhost".to_owned() }
}

/// A DNS name or an address, as a certificate can carry it.
fn is_host(text: &str) -> bool {
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !l.starts_with('-')
    };
    text.parse::<std::net::IpAddr>().is_ok() || (text.len() <= 253 && text.split('.').all(label))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let file: Raw =
            toml::from_str("tenant = \"acme\"\ntick_ms = 500\npublic_host = [\"a.example\"]").unwrap();
        let flags = Raw { tick_ms: Some(200), ..Raw::default() };
        let config = flags.over(file).check().unwrap();
        assert_eq!((config.tenant.as_str(), config.tick.as_millis()), ("acme", 200));
        assert_eq!(config.public_hosts, ["a.example"]);
        assert_eq!(config.http.to_string(), "127.0.0.1:8080");
    }

    #[test]
    fn a_certificate_lives_90_days_unless_told_otherwise() {
        let life = |text: Option<&str>| {
            let raw = Raw { device_certificate: text.map(str::to_owned), ..Raw::default() };
            raw.check().unwrap().ca.device_life_s
        };
        assert_eq!([life(None), life(Some("36h")), life(Some("10s"))], [90 * 86_400, 36 * 3600, 10]);
    }

    #[test]
    fn a_page_that_others_can_reach_is_never_open() {
        let listen = |text: &str| Raw { listen_http: Some(text.parse().unwrap()), ..Raw::default() };
        assert!(listen("127.0.0.1:0").check().unwrap().open_pages);
        assert!(!listen("0.0.0.0:8080").check().unwrap().open_pages);
        assert!(!Raw { closed_pages: true, ..listen("127.0.0.1:0") }.check().unwrap().open_pages);
    }

    #[test]
    fn a_wrong_setting_is_named() {
        let unknown = toml::from_str::<Raw>("tik_ms = 5").unwrap_err().to_string();
        assert!(unknown.contains("tik_ms"), "{unknown}");
        for (raw, key) in [
            (Raw { tenant: Some("a b".into()), ..Raw::default() }, "tenant"),
            (Raw { tick_ms: Some(1), ..Raw::default() }, "tick_ms"),
            (Raw { public_hosts: vec!["host:8443".into()], ..Raw::default() }, "public_host"),
            (Raw { public_hosts: vec![String::new()], ..Raw::default() }, "public_host"),
            (Raw { device_certificate: Some("90".into()), ..Raw::default() }, "device_certificate"),
            (Raw { device_certificate: Some("9s".into()), ..Raw::default() }, "device_certificate"),
            (Raw { device_certificate: Some("9é".into()), ..Raw::default() }, "device_certificate"),
            (Raw { device_certificate: Some("826d".into()), ..Raw::default() }, "device_certificate"),
        ] {
            let error = raw.check().unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn addresses_and_names_are_hosts() {
        for good in ["127.0.0.1", "::1", "fleet.example", "pi-4", "x"] {
            assert!(is_host(good), "{good}");
        }
        for bad in ["", "a b", "a..b", "-a", "a:1", "http://a", "é"] {
            assert!(!is_host(bad), "{bad}");
        }
    }
}
