//! `plimsoll-server doctor`: what is wrong with this server's state folder, and what to do about it.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock, statvfs};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::app::Addresses;
use crate::ca::Notes;
use crate::clock;
use crate::store::embedded::probe;
use crate::trust::expiry;

/// Files that hold a secret.
const PRIVATE: [&str; 4] = ["ca.key", "snapshot.key", "timestamp.key", "admin.token"];
/// 1 GiB: a handful of bundles and months of reports.
const DISK_LOW: u64 = 1024 * 1024 * 1024;
/// 2025-01-01: this program is younger.
const EARLIEST_MS: i64 = 1_735_689_600_000;
/// The CA should be replaced in peace.
const CA_SOON_S: i64 = 365 * 24 * 3600;
/// Made for 90 days (shorter under an authority that ends) and remade four times a day: a week says that it is not.
const SERVER_SOON_S: i64 = 7 * 24 * 3600;
/// A listener on this machine answers in microseconds.
const PATIENCE: Duration = Duration::from_secs(2);

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// All is well.
    pub good: bool,
    /// What was found; with the remedy when it is not well.
    pub text: String,
}

fn good(text: impl Into<String>) -> Finding {
    Finding { good: true, text: text.into() }
}
fn bad(text: impl Into<String>) -> Finding {
    Finding { good: false, text: text.into() }
}

/// Looks at everything. Changes nothing, except that a store that no server uses is opened and closed.
pub fn examine(dir: &Path) -> Vec<Finding> {
    if !dir.is_dir() {
        let text =
            format!("{} does not exist: start the server once, or give the right --state-dir", dir.display());
        return vec![bad(text)];
    }
    let own_files = Notes::read(dir).is_some_and(|notes| notes.own_files);
    // The key of the operator's own authority lies where the operator keeps it.
    let names = PRIVATE.iter().filter(|name| !(own_files && **name == "ca.key"));
    let mut findings = names.map(|name| private(&dir.join(name))).collect::<Vec<_>>();
    findings.push(disk(dir));
    findings.push(clock_sane(clock::now_ms()));
    findings.extend(certificates(dir, clock::now_ms() / 1000));
    findings.extend(roles(dir, clock::now_ms() / 1000));
    if in_use(dir) {
        findings.push(good("the server is running"));
        findings.extend(listeners(dir));
    } else {
        findings.push(store(dir));
    }
    findings
}

fn private(path: &Path) -> Finding {
    match std::fs::metadata(path) {
        Ok(meta) if meta.permissions().mode() & 0o077 == 0 => good(format!("{} is private", path.display())),
        Ok(meta) => bad(format!(
            "{} can be read by others (mode {:o}): chmod 600 it, and replace it if others had access",
            path.display(),
            meta.permissions().mode() & 0o777
        )),
        Err(e) => bad(format!("{}: {e}; the server makes it at its first start", path.display())),
    }
}

fn disk(dir: &Path) -> Finding {
    match statvfs(dir) {
        Ok(found) => {
            let free = found.f_bavail.saturating_mul(found.f_frsize);
            let text = format!("{} MiB are free for {}", free / (1024 * 1024), dir.display());
            if free > DISK_LOW {
                good(text)
            } else {
                bad(format!("{text}: make room, or move the state folder"))
            }
        }
        Err(e) => bad(format!("{}: {e}", dir.display())),
    }
}

fn clock_sane(now: i64) -> Finding {
    if now > EARLIEST_MS {
        good("the clock is plausible")
    } else {
        bad("the clock is years behind: certificates and metadata would be refused; set it (timedatectl)")
    }
}

/// The authority's end and the server's own certificate, which a server that runs remakes every six hours.
fn certificates(dir: &Path, now_s: i64) -> Vec<Finding> {
    let notes = Notes::read(dir);
    let own = || -> Option<i64> {
        let der = CertificateDer::from_pem_slice(&std::fs::read(dir.join("ca.pem")).ok()?).ok()?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).ok()?;
        Some(parsed.validity().not_after.timestamp())
    };
    let until_s = match &notes {
        Some(notes) if notes.own_files => Some(notes.authority_until_ms / 1000),
        _ => own(),
    };
    let authority = match until_s {
        Some(until) if until - now_s > CA_SOON_S => {
            good("the certificate authority is valid for more than a year")
        }
        Some(until) => bad(format!(
            "the certificate authority ends in {} days: change it in peace (`plimsoll ca prepare`), while every \
             device can hear of it",
            (until - now_s).div_euclid(86_400)
        )),
        None => bad(format!("{} cannot be read: restore it from a backup", dir.join("ca.pem").display())),
    };
    let server = notes.map(|notes| match notes.server_until_ms / 1000 - now_s {
        left if left > SERVER_SOON_S => {
            good(format!("the server's own certificate is valid for {} days", left / 86_400))
        }
        left => bad(format!(
            "the server's own certificate ends in {} days: a server that runs remakes it every six hours, so start \
             it, or read in its log why it could not",
            left.div_euclid(86_400)
        )),
    });
    std::iter::once(authority).chain(server).collect()
}

/// What a server has noted of the roles that it publishes; nothing before the first start.
fn roles(dir: &Path, now_s: i64) -> Vec<Finding> {
    let Ok(bytes) = std::fs::read(dir.join(expiry::FILE)) else { return Vec::new() };
    let Ok(expiries) = serde_json::from_slice::<BTreeMap<String, i64>>(&bytes) else {
        return vec![bad(format!("{} cannot be read: restart the server", expiry::FILE))];
    };
    let warnings = expiry::warnings(&expiries, now_s);
    match (expiries.is_empty(), warnings.is_empty()) {
        (true, _) => Vec::new(),
        (_, true) => vec![good("no role of the trust repository expires within a month")],
        _ => warnings.into_iter().map(|w| bad(w.text)).collect(),
    }
}

fn in_use(dir: &Path) -> bool {
    let Ok(file) = std::fs::File::open(dir.join("lock")) else { return false };
    flock(&file, FlockOperation::NonBlockingLockExclusive).is_err()
}

fn store(dir: &Path) -> Finding {
    match probe(&dir.join("store")) {
        Ok(records) => good(format!("the store opens and holds {records} records")),
        Err(e) => bad(format!(
            "the store does not open: {e}; the next start sets it aside and restores export.jsonl"
        )),
    }
}

fn listeners(dir: &Path) -> Vec<Finding> {
    let read = std::fs::read(dir.join("addresses.json")).ok().and_then(|b| serde_json::from_slice(&b).ok());
    let Some(addresses): Option<Addresses> = read else {
        return vec![bad("addresses.json cannot be read: restart the server")];
    };
    let all = [
        ("operators (http)", addresses.http),
        ("devices (https)", addresses.https),
        ("devices (mqtt)", addresses.mqtt),
        ("dashboards (mqtt)", addresses.dashboard),
    ];
    all.into_iter().map(|(whom, address)| listener(whom, address)).collect()
}

fn listener(whom: &str, mut address: SocketAddr) -> Finding {
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    match TcpStream::connect_timeout(&address, PATIENCE) {
        Ok(_) => good(format!("{address} for {whom} answers")),
        Err(e) => bad(format!("{address} for {whom} does not answer: {e}; look into the server's log")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_others_can_read_is_found_and_a_folder_that_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        for name in PRIVATE {
            crate::secret::write_private(&dir.path().join(name), b"x").unwrap();
        }
        crate::secret::write_public(&dir.path().join("ca.key"), b"x").unwrap();
        let wrong: Vec<String> =
            examine(dir.path()).into_iter().filter(|f| !f.good).map(|f| f.text).collect();
        assert!(
            wrong.iter().any(|t| t.contains("ca.key can be read by others") || t.contains("ca.key")),
            "{wrong:?}"
        );
        assert!(wrong.iter().any(|t| t.contains("chmod 600")), "{wrong:?}");
        assert!(!examine(&dir.path().join("nowhere"))[0].good);
    }

    #[test]
    fn a_role_that_expires_is_found() {
        let dir = tempfile::tempdir().unwrap();
        assert!(roles(dir.path(), 0).is_empty(), "nothing was noted yet");
        crate::secret::write_public(
            &dir.path().join(expiry::FILE),
            br#"{"root": 864000, "targets": 31536000}"#,
        )
        .unwrap();
        let found = roles(dir.path(), 0);
        assert!(
            found.len() == 1 && !found[0].good && found[0].text.contains("trust renew root"),
            "{found:?}"
        );
        crate::secret::write_public(&dir.path().join(expiry::FILE), br#"{"root": 31536000}"#).unwrap();
        assert!(roles(dir.path(), 0)[0].good);
    }

    #[test]
    fn certificates_that_are_not_remade_and_an_authority_that_ends_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let note = |server_days: i64, authority_days: i64| {
            let notes = Notes {
                server_until_ms: server_days * 86_400_000,
                authority_until_ms: authority_days * 86_400_000,
                own_files: true,
            };
            std::fs::write(dir.path().join("certificates.json"), serde_json::to_vec(&notes).unwrap())
                .unwrap();
            certificates(dir.path(), 0).into_iter().map(|f| (f.good, f.text)).collect::<Vec<_>>()
        };
        assert!(note(90, 400).iter().all(|(good, _)| *good));
        let found = note(2, 30);
        let words = ["authority ends in 30 days", "own certificate ends in 2 days"];
        for ((good, text), words) in found.iter().zip(words) {
            assert!(!good && text.contains(words), "{text}");
        }
    }
}
