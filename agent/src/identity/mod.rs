//! Who this device is: what enrolment left in the state folder.
//!
//! ```text
//! state/identity.json   tenant, device, where the server is      state/device.key   0600
//! state/tuf/root.json   the first trusted root metadata           state/device.crt, state/ca.pem
//! ```
//!
//! `identity.json` is written last, so its presence means that the rest is there. Later only `device.crt` (renewed)
//! and `ca.pem` (a new authority of the fleet) change, each by itself and atomically, by [`Keeper`].

mod authorities;
mod enroll;
mod keeper;
mod renew;
mod validity;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use plimsoll_protocol::DeviceIdentity;

use crate::files::{self, FileError, PUBLIC, SECRET};

pub use enroll::{EnrollError, EnrollOptions, enroll};
pub use keeper::{Keeper, News};
pub use validity::Validity;

/// Largest file of an identity: a PEM chain of a few certificates is under 8 KiB.
const MAX_IDENTITY_FILE: u64 = 64 * 1024;

/// An enrolled device.
#[derive(Clone)]
pub struct Identity {
    /// Tenant and device.
    pub who: DeviceIdentity,
    /// `https://host:port` of enrolment, metadata and blobs.
    pub https: String,
    /// `host:port` of MQTT.
    pub mqtt: String,
    /// The device's certificate, then the CA's.
    pub certificate_pem: String,
    /// The fleet's CA.
    pub ca_pem: String,
    /// The device's private key; made here, never leaves.
    pub key_pem: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({} at {}, key not shown)", self.who, self.https)
    }
}

/// The part of an identity that is JSON.
#[derive(Serialize, Deserialize)]
struct Document {
    identity: DeviceIdentity,
    https: String,
    mqtt: String,
}

/// An identity that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// There is none.
    #[error(
        "no enrolment in {0}: run `plimsoll-agent enroll --server https://HOST:8443 --token TOKEN` first \
         (an operator makes the token with `plimsoll device token`)"
    )]
    Missing(PathBuf),
    /// A file of it is missing or unreadable.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file of it is damaged.
    #[error("{path} is damaged ({why}): enrol again with `plimsoll-agent enroll --force`")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// How.
        why: String,
    },
}

impl Identity {
    /// Whether a state folder holds an enrolment.
    pub fn exists(state: &Path) -> bool {
        state.join("identity.json").exists()
    }

    /// Reads the enrolment of a state folder.
    pub fn load(state: &Path) -> Result<Self, IdentityError> {
        if !Self::exists(state) {
            return Err(IdentityError::Missing(state.to_owned()));
        }
        let path = state.join("identity.json");
        let bytes = files::read_limited(&path, MAX_IDENTITY_FILE)?;
        let document: Document = serde_json::from_slice(&bytes)
            .map_err(|e| IdentityError::Damaged { path, why: e.to_string() })?;
        let text = |name: &str| -> Result<String, IdentityError> {
            let path = state.join(name);
            String::from_utf8(files::read_limited(&path, MAX_IDENTITY_FILE)?)
                .map_err(|e| IdentityError::Damaged { path, why: e.to_string() })
        };
        Ok(Self {
            who: document.identity,
            https: document.https.trim_end_matches('/').to_owned(),
            mqtt: document.mqtt,
            certificate_pem: text("device.crt")?,
            ca_pem: text("ca.pem")?,
            key_pem: text("device.key")?,
        })
    }

    /// Writes the enrolment with its trust root. `identity.json` comes last: without it nothing was enrolled.
    pub(crate) fn store(&self, state: &Path, tuf_root: &serde_json::Value) -> Result<(), IdentityError> {
        let tuf = state.join("tuf");
        files::create_private_dir(&tuf)?;
        // From here until the end there is no enrolment: a key of one and a certificate of another would be worse.
        let document = state.join("identity.json");
        match std::fs::remove_file(&document) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(FileError::new("remove", &document, e).into());
            }
            _ => files::sync_parent(&document).map_err(|e| FileError::new("remove", &document, e))?,
        }
        // Metadata of an earlier enrolment belongs to another repository: it must not meet the new root.
        for name in std::fs::read_dir(&tuf).map_err(|e| FileError::new("read directory", &tuf, e))?.flatten()
        {
            std::fs::remove_file(name.path()).map_err(|e| FileError::new("remove", &name.path(), e))?;
        }
        files::write_atomic(&state.join("device.key"), self.key_pem.as_bytes(), SECRET)?;
        files::write_atomic(&state.join("device.crt"), self.certificate_pem.as_bytes(), PUBLIC)?;
        files::write_atomic(&state.join("ca.pem"), self.ca_pem.as_bytes(), PUBLIC)?;
        files::write_atomic(&tuf.join("root.json"), tuf_root.to_string().as_bytes(), PUBLIC)?;
        let document =
            Document { identity: self.who.clone(), https: self.https.clone(), mqtt: self.mqtt.clone() };
        let json = serde_json::to_vec_pretty(&document).unwrap_or_default(); // text keys only: cannot fail
        files::write_atomic(&state.join("identity.json"), &json, PUBLIC)?;
        Ok(())
    }

    /// Writes the renewed certificate. The key is the same, so either certificate fits it.
    pub(super) fn store_certificate(&self, state: &Path) -> Result<(), FileError> {
        files::write_atomic(&state.join("device.crt"), self.certificate_pem.as_bytes(), PUBLIC)
    }

    /// Writes the fleet's authorities.
    pub(super) fn store_authorities(&self, state: &Path) -> Result<(), FileError> {
        files::write_atomic(&state.join("ca.pem"), self.ca_pem.as_bytes(), PUBLIC)
    }

    /// Host and port of MQTT.
    pub fn mqtt_address(&self) -> Result<(String, u16), IdentityError> {
        split_address(&self.mqtt).ok_or_else(|| IdentityError::Damaged {
            path: PathBuf::from("identity.json"),
            why: format!("mqtt address {:?} is not host:port", self.mqtt),
        })
    }
}

/// `host:port`, `[v6]:port` -> host without brackets, port.
fn split_address(text: &str) -> Option<(String, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() {
        return None;
    }
    Some((host.to_owned(), port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            who: "acme.cam-1".parse().unwrap(),
            https: "https://server:8443".into(),
            mqtt: "server:8883".into(),
            certificate_pem: "crt".into(),
            ca_pem: "ca".into(),
            key_pem: "key".into(),
        }
    }

    #[test]
    fn an_enrolment_is_read_back_and_its_key_is_private() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Identity::load(dir.path()), Err(IdentityError::Missing(_))));
        std::fs::create_dir(dir.path().join("tuf")).unwrap();
        std::fs::write(dir.path().join("tuf/timestamp.json"), "of another repository").unwrap();
        identity().store(dir.path(), &serde_json::json!({"signed": 1})).unwrap();
        let read = Identity::load(dir.path()).unwrap();
        assert_eq!((read.who.to_string().as_str(), read.key_pem.as_str()), ("acme.cam-1", "key"));
        assert_eq!(files::mode(&dir.path().join("device.key")).unwrap(), 0o600);
        assert!(!dir.path().join("tuf/timestamp.json").exists());
        assert!(!format!("{read:?}").contains("\"key\""));
    }

    #[test]
    fn an_enrolment_cut_before_its_last_file_is_no_enrolment() {
        let dir = tempfile::tempdir().unwrap();
        identity().store(dir.path(), &serde_json::json!({})).unwrap();
        std::fs::remove_file(dir.path().join("identity.json")).unwrap();
        assert!(matches!(Identity::load(dir.path()), Err(IdentityError::Missing(_))));
    }

    #[test]
    fn addresses_split_at_the_last_colon() {
        assert_eq!(split_address("a.b:1"), Some(("a.b".into(), 1)));
        assert_eq!(split_address("[::1]:8883"), Some(("::1".into(), 8883)));
        for bad in ["", "a", ":1", "a:", "a:x", "a:70000"] {
            assert_eq!(split_address(bad), None, "{bad:?}");
        }
    }
}
