//! Which authority signs now, which one follows it, and which ones were: the one owner of that state.
//!
//! ```text
//! state/ca.key   ca.pem            signs now; files of the operator's own PKI take their place
//! state/ca-next.key  ca-next.pem   made by `plimsoll ca prepare`, signs nothing yet
//! state/ca-known/<fingerprint>.pem every authority that ever signed: its devices are still recognised
//! ```
//!
//! A rotation: *prepare* makes the next authority, from then on both are believed; the owner signs both for the
//! devices (`plimsoll trust publish-ca`); *switch* makes the next one sign. It is refused while the published file
//! does not name the next authority, because then no device could follow. The switch commits with the rename of the
//! key; a start that finds the key of `ca-next.pem` in `ca.key` finishes what a crash cut short.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use plimsoll_protocol::api::{CaCertificate, CaInfo};
use plimsoll_protocol::{DeviceIdentity, Digest, TenantId, UnixMillis};
use rcgen::PublicKeyData;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::{Ca, CaError, Issued, clients};
use crate::secret;

/// Where the issuing authority comes from, and for how long it signs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Certificate and key of the operator's own PKI; `None` for an authority that the server makes.
    pub files: Option<(PathBuf, PathBuf)>,
    /// Life of a device's certificate, seconds.
    pub device_life_s: u64,
}

/// See the top of this file.
pub struct Authorities {
    dir: PathBuf,
    tenant: TenantId,
    source: Source,
    current: RwLock<Arc<Set>>,
    /// One change at a time: each is made from the files that the one before left.
    changing: Mutex<()>,
}

struct Set {
    issuing: Arc<Ca>,
    next: Option<Arc<Ca>>,
    clients: Arc<dyn ClientCertVerifier>,
}

impl Authorities {
    /// Reads the authorities in `dir`, or makes the first one.
    pub fn open(dir: &Path, tenant: &TenantId, source: Source, now: UnixMillis) -> Result<Self, CaError> {
        if source.files.is_none() {
            finish_switch(dir, now)?;
            if !dir.join("ca.pem").exists() {
                write_pair(dir, "ca", tenant, now)?;
            }
        }
        let set = Self::load(dir, &source, now)?;
        Ok(Self {
            dir: dir.to_owned(),
            tenant: tenant.clone(),
            source,
            current: RwLock::new(Arc::new(set)),
            changing: Mutex::default(),
        })
    }

    fn load(dir: &Path, source: &Source, now: UnixMillis) -> Result<Set, CaError> {
        let (certificate, key) =
            source.files.clone().unwrap_or_else(|| (dir.join("ca.pem"), dir.join("ca.key")));
        let issuing = Arc::new(Ca::read(&certificate, &key, now)?);
        let next = match (&source.files, dir.join("ca-next.pem")) {
            (None, next) if next.exists() => Some(Arc::new(Ca::read(&next, &dir.join("ca-next.key"), now)?)),
            _ => None,
        };
        remember(dir, &issuing)?;
        let mut anchors = known(dir)?;
        anchors.extend(next.iter().map(|ca| ca.certificate().clone()));
        let clients = clients::verifier(anchors)?;
        Ok(Set { issuing, next, clients })
    }

    fn now(&self) -> Arc<Set> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The authority that signs now.
    pub fn issuing(&self) -> Arc<Ca> {
        Arc::clone(&self.now().issuing)
    }

    /// What client certificates are checked against now.
    pub(super) fn clients(&self) -> Arc<dyn ClientCertVerifier> {
        Arc::clone(&self.now().clients)
    }

    /// Whether the issuing authority comes from files of the operator's own PKI.
    pub const fn own_files(&self) -> bool {
        self.source.files.is_some()
    }

    /// Life of a device's certificate, seconds.
    pub const fn device_life_s(&self) -> u64 {
        self.source.device_life_s
    }

    /// Signs a device's certificate.
    pub fn issue(
        &self,
        who: &DeviceIdentity,
        key: &impl PublicKeyData,
        now: UnixMillis,
    ) -> Result<Issued, CaError> {
        self.issuing().issue(who, key, self.source.device_life_s, now)
    }

    /// PEM of what devices should trust: the issuing authority, and the next one when there is one.
    pub fn bundle(&self) -> String {
        let set = self.now();
        let next = set.next.as_ref().map(|ca| ca.pem().to_owned()).unwrap_or_default();
        format!("{}{next}", set.issuing.pem())
    }

    /// Makes the next authority, or gives back the one that is ready.
    pub fn prepare(&self, now: UnixMillis) -> Result<(), CaError> {
        let _one = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.only_own(
            "another authority is prepared by your PKI: publish both certificates with `plimsoll trust \
                       publish-ca`, then exchange the files of [ca] and restart",
        )?;
        if self.now().next.is_none() {
            write_pair(&self.dir, "ca-next", &self.tenant, now)?;
            self.reload(now)?;
        }
        Ok(())
    }

    /// Makes the next authority the one that signs. `published` is what the fleet's signed file names.
    pub fn switch(&self, published: Option<&[Digest]>, now: UnixMillis) -> Result<(), CaError> {
        let _one = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.only_own("the authority comes from files of your own PKI: exchange them and restart")?;
        let set = self.now();
        let Some(next) = &set.next else {
            return Err(CaError::Refused(
                "no next authority is prepared: run `plimsoll ca prepare` first".into(),
            ));
        };
        if !published.is_some_and(|listed| listed.contains(&next.fingerprint())) {
            return Err(CaError::Refused(format!(
                "the next authority ({}) is not in the published fleet/ca.pem, so no device could follow: publish \
                 the file that `plimsoll ca prepare --out FILE` writes with `plimsoll trust publish-ca FILE`",
                next.fingerprint().short()
            )));
        }
        std::fs::rename(self.dir.join("ca-next.key"), self.dir.join("ca.key"))?;
        finish_switch(&self.dir, now)?;
        self.reload(now)
    }

    /// What there is, for people. `published` is what the fleet's signed file names.
    pub fn info(&self, published: Option<Vec<Digest>>, devices: impl Fn(&Digest) -> u64) -> CaInfo {
        let set = self.now();
        let show = |ca: &Ca| CaCertificate {
            fingerprint: ca.fingerprint(),
            subject: ca.subject().to_owned(),
            until_ms: ca.until_ms(),
            devices: Some(devices(&ca.fingerprint())),
        };
        CaInfo {
            issuing: show(&set.issuing),
            next: set.next.as_deref().map(show),
            own_files: self.own_files(),
            published,
            bundle_pem: self.bundle(),
            server_until_ms: 0,
        }
    }

    fn only_own(&self, otherwise: &str) -> Result<(), CaError> {
        match self.source.files {
            None => Ok(()),
            Some(_) => Err(CaError::Refused(otherwise.to_owned())),
        }
    }

    fn reload(&self, now: UnixMillis) -> Result<(), CaError> {
        let set = Self::load(&self.dir, &self.source, now)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(set);
        Ok(())
    }
}

/// Fingerprints of the certificates of a PEM text; what is no certificate is left out.
pub fn fingerprints(pem: &[u8]) -> Vec<Digest> {
    CertificateDer::pem_slice_iter(pem).filter_map(Result::ok).map(|der| Digest::of(&der)).collect()
}

/// The key first: a certificate without its key would be found and could never sign.
fn write_pair(dir: &Path, name: &str, tenant: &TenantId, now: UnixMillis) -> Result<(), CaError> {
    let (key, certificate) = Ca::make(tenant, now)?;
    secret::write_private(&dir.join(format!("{name}.key")), key.as_bytes())?;
    Ok(secret::write_public(&dir.join(format!("{name}.pem")), certificate.as_bytes())?)
}

/// When `ca.key` belongs to `ca-next.pem`, the switch was committed: the certificate follows its key.
fn finish_switch(dir: &Path, now: UnixMillis) -> Result<(), CaError> {
    let (key, own, next) = (dir.join("ca.key"), dir.join("ca.pem"), dir.join("ca-next.pem"));
    if next.exists() && !dir.join("ca-next.key").exists() && Ca::read(&next, &key, now).is_ok() {
        std::fs::rename(&next, &own)?;
    }
    Ok(std::fs::File::open(dir)?.sync_all()?)
}

/// Keeps the certificate of an authority that signs, so that its devices are recognised when it no longer does.
fn remember(dir: &Path, ca: &Ca) -> Result<(), CaError> {
    let known = dir.join("ca-known");
    std::fs::create_dir_all(&known)?;
    let path = known.join(format!("{}.pem", ca.fingerprint()));
    if !path.exists() {
        secret::write_public(&path, ca.pem().as_bytes())?;
    }
    Ok(())
}

fn known(dir: &Path) -> Result<Vec<CertificateDer<'static>>, CaError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir.join("ca-known"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "pem") {
            let der = CertificateDer::from_pem_slice(&std::fs::read(&path)?);
            found.push(der.map_err(|e| CaError::File { path, why: format!("it is not PEM: {e}") })?);
        }
    }
    Ok(found)
}
