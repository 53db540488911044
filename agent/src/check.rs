//! `plimsoll-agent check`: what is wrong with this device, found before the fleet finds it. Changes nothing.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use plimsoll_agent_core::policy;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;

use crate::anchor;
use crate::clock::Clock;
use crate::config::Settings;
use crate::control::{self, Answer, Ask};
use crate::fetch::HttpSource;
use crate::files;
use crate::health::{Sampler, disk_free};
use crate::hours::{self, PLAUSIBLE_S};
use crate::identity::Identity;
use crate::tls;

/// Time for one connection; somebody waits at a terminal.
const REACH: Duration = Duration::from_secs(10);
/// A certificate that ends sooner is worth a word: two weeks are enough to act.
const SOON_S: i64 = 14 * 24 * 3600;

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// Whether it is a problem.
    pub ok: bool,
    /// What was looked at.
    pub what: &'static str,
    /// What was found, and the remedy.
    pub text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}  {:<12} {}", if self.ok { "ok     " } else { "PROBLEM" }, self.what, self.text)
    }
}

fn ok(what: &'static str, text: impl Into<String>) -> Finding {
    Finding { ok: true, what, text: text.into() }
}

fn problem(what: &'static str, text: impl Into<String>) -> Finding {
    Finding { ok: false, what, text: text.into() }
}

/// Looks at everything that this device needs.
pub async fn check(settings: &Settings) -> Vec<Finding> {
    tls::install_ring();
    let clock = Clock::start(0, settings.clock);
    let mut findings = vec![state_dir(&settings.state_dir), disk(settings), time(clock.system_ms() / 1000)];
    findings.extend([hours(settings, &clock), memory(&settings.state_dir), agent(&settings.state_dir).await]);
    match Identity::load(&settings.state_dir) {
        Err(error) => findings.push(problem("enrolment", crate::causes(&error))),
        Ok(identity) => {
            findings.push(ok("enrolment", format!("{} at {}", identity.who, identity.https)));
            findings.push(key(&settings.state_dir));
            findings.push(certificate(&identity, clock.now_s()));
            findings.push(https(&identity, &clock).await);
            findings.push(mqtt(&identity, &clock).await);
        }
    }
    findings
}

fn state_dir(dir: &Path) -> Finding {
    let probe = dir.join(".check");
    let write = std::fs::write(&probe, b"check").and_then(|()| std::fs::remove_file(&probe));
    match (write, files::mode(dir)) {
        (Err(e), _) => problem(
            "state folder",
            format!("{} cannot be written: {e}; run as the agent's user", dir.display()),
        ),
        (_, Ok(mode)) if mode & 0o022 != 0 => {
            problem("state folder", format!("others may write to {} ({mode:o}): chmod 700 it", dir.display()))
        }
        _ => ok("state folder", dir.display().to_string()),
    }
}

fn disk(settings: &Settings) -> Finding {
    let (free, reserve) = (disk_free(&settings.state_dir), settings.reserve_bytes);
    let mib = |bytes: u64| bytes / (1024 * 1024);
    if free < reserve {
        let text = format!(
            "{} MiB are free, {} MiB are kept in reserve: no update would fit",
            mib(free),
            mib(reserve)
        );
        return problem("disk", text);
    }
    ok("disk", format!("{} MiB free", mib(free)))
}

fn time(now_s: i64) -> Finding {
    if now_s < PLAUSIBLE_S {
        return problem(
            "clock",
            format!("it says {now_s} s after 1970: set it, or enable time synchronisation"),
        );
    }
    ok("clock", format!("{now_s} s after 1970"))
}

/// Whether the local hour is known where updates wait for one.
fn hours(settings: &Settings, clock: &Clock) -> Finding {
    let hours = &settings.maintenance_hours;
    match hours::local(clock) {
        _ if hours.is_any_time() => ok("hours", "updates at any time"),
        None => {
            problem("hours", format!("updates wait for {hours}, and the time is not known: set the clock"))
        }
        Some(now) if hours.open(now) => ok("hours", format!("{hours}; it is {now} here, and they are open")),
        Some(now) => ok("hours", format!("{hours}; it is {now} here, and updates wait")),
    }
}

/// Whether what runs here, by its own self-test, fits the memory of this machine, twice where it is to be replaced
/// without a pause.
fn memory(state: &Path) -> Finding {
    let anchor = match anchor::peek(state) {
        Ok(anchor) => anchor,
        Err(error) => return problem("memory", crate::causes(&error)),
    };
    let Some(anchor) = anchor else { return ok("memory", "no model is known here yet") };
    let installed = anchor.core.models.values().filter_map(|m| m.active.as_ref());
    let needs: Vec<u64> = installed.map(|i| i.ram_bytes).collect();
    let (all, largest) = (needs.iter().sum::<u64>(), needs.iter().max().copied().unwrap_or(0));
    let ram = Sampler::new().machine().ram_bytes;
    let mib = |bytes: u64| bytes.div_ceil(1024 * 1024);
    if ram > 0 && all > ram {
        let text =
            format!("the models here need {} MiB at their peak; this machine has {} MiB", mib(all), mib(ram));
        return problem("memory", text);
    }
    let swap = match policy::swap(all + largest, Some(ram).filter(|ram| *ram > 0)) {
        policy::Swap::Overlap => "an update is loaded beside what runs",
        policy::Swap::Exclusive => "an update is loaded after what runs has left memory, and requests wait",
    };
    ok("memory", format!("{} models need {} MiB of {} MiB; {swap}", needs.len(), mib(all), mib(ram)))
}

/// Whether the agent runs, and what it would say first.
async fn agent(state: &Path) -> Finding {
    match control::ask(state, &Ask::Status).await {
        Ok(Answer::Status(status)) => match (status.inference, status.paused_here) {
            (None, _) => {
                problem("agent", "it runs, and its serving process does not: see `plimsoll-agent logs`")
            }
            (_, true) => ok("agent", "it runs; its updates are paused (`plimsoll-agent resume`)"),
            (Some(at), false) => ok("agent", format!("it runs and serves at {at}")),
        },
        Ok(_) => problem("agent", "it answers something else: is another version of it running?"),
        Err(_) => ok("agent", "it does not run"),
    }
}

fn key(state: &Path) -> Finding {
    let path = state.join("device.key");
    match files::mode(&path) {
        Ok(mode) if mode & 0o077 != 0 => problem(
            "device key",
            format!("others may read {} ({mode:o}): chmod 600 it and enrol again", path.display()),
        ),
        Ok(_) => ok("device key", "only the agent may read it"),
        Err(e) => problem("device key", format!("{}: {e}; enrol again with --force", path.display())),
    }
}

fn certificate(identity: &Identity, now_s: i64) -> Finding {
    let parsed =
        tls::certificates("device.crt", identity.certificate_pem.as_bytes()).map_err(|e| e.to_string());
    let validity = parsed.and_then(|chain| {
        let leaf = chain.first().ok_or("empty")?;
        let (_, leaf) = x509_parser::parse_x509_certificate(leaf).map_err(|e| e.to_string())?;
        Ok((leaf.validity().not_before.timestamp(), leaf.validity().not_after.timestamp()))
    });
    match validity {
        Err(why) => {
            problem("certificate", format!("device.crt is unreadable ({why}): enrol again with --force"))
        }
        Ok((from, _)) if now_s < from => {
            problem("certificate", format!("it is valid in {} s only: is the clock right?", from - now_s))
        }
        Ok((_, until)) if now_s >= until => problem(
            "certificate",
            format!(
                "it ended {} days ago: the agent renews it as soon as it reaches the server",
                (now_s - until) / 86_400
            ),
        ),
        Ok((_, until)) if until - now_s < SOON_S => problem(
            "certificate",
            format!(
                "it ends in {} days and was not renewed: does the agent run and reach the server?",
                (until - now_s) / 86_400
            ),
        ),
        Ok((_, until)) => ok("certificate", format!("valid for {} days", (until - now_s) / 86_400)),
    }
}

async fn https(identity: &Identity, clock: &Clock) -> Finding {
    let source = tls::mutual(identity, clock).map_err(|e| crate::causes(&e));
    let source = source.and_then(|config| {
        HttpSource::new(&identity.https, config, None, clock.clone()).map_err(|e| crate::causes(&e))
    });
    let source = match source {
        Ok(source) => source,
        Err(why) => return problem("server", why),
    };
    let max = plimsoll_protocol::trust::MAX_TIMESTAMP_BYTES;
    match tokio::time::timeout(REACH, source.document("/tuf/timestamp.json", max)).await {
        Ok(Ok(Some(_))) => ok("server", format!("{} answers", identity.https)),
        Ok(Ok(None)) => {
            problem("server", "it has no trust metadata yet: the operator runs `plimsoll trust init`")
        }
        Ok(Err(error)) => problem("server", error.text),
        Err(_) => {
            problem("server", format!("{} does not answer within {} s", identity.https, REACH.as_secs()))
        }
    }
}

async fn mqtt(identity: &Identity, clock: &Clock) -> Finding {
    let shake = async {
        let (host, port) = identity.mqtt_address().map_err(|e| e.to_string())?;
        let config = tls::mutual(identity, clock).map_err(|e| crate::causes(&e))?;
        let name = ServerName::try_from(host.clone()).map_err(|e| e.to_string())?;
        let stream = TcpStream::connect((host.as_str(), port)).await.map_err(|e| e.to_string())?;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        connector.connect(name, stream).await.map(|_| ()).map_err(|e| e.to_string())
    };
    match tokio::time::timeout(REACH, shake).await {
        Ok(Ok(())) => ok("mqtt", format!("{} accepts TLS", identity.mqtt)),
        Ok(Err(why)) => {
            let text = format!(
                "{}: {why}; is the port open, and is the server's name in its certificate?",
                identity.mqtt
            );
            problem("mqtt", text)
        }
        Err(_) => problem("mqtt", format!("{} does not answer within {} s", identity.mqtt, REACH.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Layer;

    #[tokio::test]
    async fn a_device_that_never_enrolled_is_told_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let layer = Layer { state_dir: Some(dir.path().to_owned()), ..Layer::default() };
        let findings = check(&layer.resolve().unwrap()).await;
        let bad: Vec<String> = findings.iter().filter(|f| !f.ok).map(ToString::to_string).collect();
        assert_eq!(bad.len(), 1, "{bad:?}");
        assert!(bad[0].contains("plimsoll-agent enroll"), "{bad:?}");
    }

    #[test]
    fn a_wrong_clock_an_open_key_and_a_full_disk_are_problems() {
        assert!(!time(1000).ok && time(PLAUSIBLE_S + 1).ok);
        let dir = tempfile::tempdir().unwrap();
        assert!(!key(dir.path()).ok, "no key");
        files::write_atomic(&dir.path().join("device.key"), b"x", 0o644).unwrap();
        assert!(key(dir.path()).text.contains("chmod 600"));
        files::write_atomic(&dir.path().join("device.key"), b"x", 0o600).unwrap();
        assert!(key(dir.path()).ok);
        let layer = |reserve| Layer {
            state_dir: Some(dir.path().to_owned()),
            reserve_bytes: Some(reserve),
            ..Layer::default()
        };
        assert!(disk(&layer(1).resolve().unwrap()).ok && !disk(&layer(u64::MAX).resolve().unwrap()).ok);
    }

    #[tokio::test]
    async fn memory_hours_and_the_agent_are_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let layer = Layer {
            state_dir: Some(dir.path().to_owned()),
            maintenance_hours: Some(vec!["02:00-04:00".into()]),
            ..Layer::default()
        };
        let settings = layer.resolve().unwrap();
        let clock = Clock::start(0, settings.clock);
        assert!(hours(&settings, &clock).ok && hours(&settings, &clock).text.contains("02:00-04:00"));
        clock.raise_floor(clock.system_ms() / 1000 + 3600);
        assert!(!hours(&settings, &clock).ok, "its clock is behind what is proven");
        assert!(agent(dir.path()).await.text.contains("does not run"));

        assert!(memory(dir.path()).ok);
        let (mut anchor, _) = crate::anchor::Anchor::open(dir.path()).unwrap();
        let mut core = plimsoll_agent_core::Persistent::default();
        let active = plimsoll_agent_core::Installed {
            version: "1.0.0".parse().unwrap(),
            digest: plimsoll_protocol::Digest::of(b"x"),
            trial_passed: true,
            ram_bytes: 1 << 60,
        };
        let record = plimsoll_agent_core::ModelRecord { active: Some(active), ..Default::default() };
        core.models.insert(plimsoll_protocol::ModelName::new("meter").unwrap(), record);
        let incarnation = plimsoll_protocol::Incarnation::from_bytes([1; 16]);
        anchor.commit(&crate::anchor::AnchorState { incarnation, boot: 1, time_floor: 0, core }).unwrap();
        let finding = memory(dir.path());
        assert!(!finding.ok && finding.text.contains("this machine has"), "{finding}");
    }

    #[test]
    fn the_dates_of_the_certificate_are_read() {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2026, 4, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        let identity = Identity {
            who: "acme.cam-1".parse().unwrap(),
            https: String::new(),
            mqtt: String::new(),
            certificate_pem: params.self_signed(&key).unwrap().pem(),
            ca_pem: String::new(),
            key_pem: String::new(),
        };
        let day = |n: i64| 1_767_225_600 + n * 86_400; // 2026-01-01
        for (now, good, words) in [
            (day(-1), false, "clock"),
            (day(1), true, "89 days"),
            (day(80), false, "ends in 10"),
            (day(95), false, "ended 5"),
        ] {
            let finding = certificate(&identity, now);
            assert!(finding.ok == good && finding.text.contains(words), "{finding}");
        }
    }
}
