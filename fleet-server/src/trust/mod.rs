//! The fleet's trust repository as this server publishes it.
//!
//! What is signed for is decided offline; this service checks an upload with the code that devices run, makes sure
//! that everything it lists can be fetched, signs what is current with its two online keys, stores all of it, and
//! only then serves it. The keys are made at the first start (mode 0600) and can say what is current, nothing else.

pub mod expiry;
mod export;
mod online;
mod proposals;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use plimsoll_protocol::api::{TrustState, TrustUpload};
use plimsoll_protocol::bundle::{MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest, target_path};
use plimsoll_protocol::trust::repository::{Change, Current, Repository};
use plimsoll_protocol::trust::{Doc, FLEET_FILES, MAX_TARGETS_BYTES, Root, TrustError, VerifiedTarget};
use plimsoll_protocol::{Digest, UnixMillis, UnixSeconds};
use tokio::sync::Mutex;

use self::online::OnlineKeys;
use crate::blobs::{BlobError, Blobs};
use crate::secret;
use crate::store::{BundleRecord, RevokedRecord, Store, StoreError, TrustDoc, TrustIndex};

/// Old versions of each document that stay fetchable: a device that read the timestamp before a change still finds
/// the snapshot it names. Roots stay for ever.
const OLD_VERSIONS: usize = 4;

/// Why an upload was refused. Nothing of it was kept.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// Signatures, versions, expiry, delegations.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// A listed bundle cannot be fetched or read.
    #[error("{path} cannot be published: {why}")]
    Bundle {
        /// Its target.
        path: String,
        /// What is missing or wrong.
        why: String,
    },
    /// The first upload must carry a root.
    #[error("the trust repository is empty: run `plimsoll trust init` first")]
    NotInitialised,
    /// Blobs.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What is served now.
struct Published {
    index: TrustIndex,
    repository: Repository,
}

/// What an accepted upload changed, for the audit log and the reconciler.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accepted {
    /// Names of the new documents.
    pub documents: Vec<String>,
    /// Versions that can now be rolled out: `meter-reader 1.1.0`.
    pub added: Vec<String>,
    /// Versions that are revoked.
    pub revoked: Vec<RevokedRecord>,
    /// Files of the fleet that are no longer listed.
    pub removed: Vec<String>,
}

/// The repository and its keys.
pub struct TrustService {
    store: Arc<dyn Store>,
    blobs: Blobs,
    dir: PathBuf,
    online: std::sync::Mutex<OnlineKeys>,
    published: RwLock<Arc<Published>>,
    /// One change at a time: each is made from the one before.
    changing: Mutex<()>,
}

impl TrustService {
    /// Reads what was published, and the online keys in `dir` (makes them the first time).
    pub async fn open(dir: &Path, store: Arc<dyn Store>, blobs: Blobs) -> Result<Self, PublishError> {
        let mut online = OnlineKeys::open(dir)?;
        let index = store.trust().await?;
        let mut documents = BTreeMap::new();
        for (name, doc) in &index.files {
            documents.insert(name.clone(), blobs.read(&doc.sha256, MAX_TARGETS_BYTES).await?);
        }
        let repository = Repository::load(&documents)?;
        if let Some(root) = newest_root(&repository) {
            online.settle(&root)?;
        }
        let online = std::sync::Mutex::new(online);
        let published = RwLock::new(Arc::new(Published { index, repository }));
        let dir = dir.to_owned();
        let service = Self { store, blobs, dir, online, published, changing: Mutex::new(()) };
        service.note_expiries();
        Ok(service)
    }

    fn online(&self) -> std::sync::MutexGuard<'_, OnlineKeys> {
        self.online.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Arc<Published> {
        Arc::clone(&self.published.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What `plimsoll trust` needs to sign the next documents.
    pub fn state(&self) -> TrustState {
        let keys = self.online();
        let mut state = self.now().repository.state(&keys.for_root(None));
        keys.describe(&mut state);
        state
    }

    /// Makes the keys that will take over these roles, with the next root that names them.
    pub async fn make_online_keys(&self, roles: &[String]) -> Result<TrustState, PublishError> {
        let _one = self.changing.lock().await;
        for role in roles {
            if self.online().make_next(role)?.is_none() {
                let why = format!("this server holds no {role} key: only snapshot and timestamp are online");
                return Err(TrustError::Upload(why).into());
            }
        }
        Ok(self.state())
    }

    /// When each role's document expires.
    pub fn expiries(&self) -> BTreeMap<String, UnixSeconds> {
        self.now().repository.expiries()
    }

    /// The newest root, for devices that enrol; `None` before `trust init`.
    pub fn root(&self) -> Option<serde_json::Value> {
        serde_json::from_slice(self.now().repository.root()?).ok()
    }

    /// A document by the name it is fetched under.
    pub fn document(&self, name: &str) -> Option<TrustDoc> {
        self.now().index.files.get(name).cloned()
    }

    /// A file of the fleet, `fleet/ca.pem` for example: signed for by the owner, public, small, a blob.
    pub fn fleet_file(&self, path: &str) -> Option<TrustDoc> {
        self.now().index.fleet_files.get(path).cloned()
    }

    /// What can be rolled out.
    pub fn bundles(&self) -> Vec<BundleRecord> {
        self.now().index.bundles.clone()
    }

    /// What was published and no longer is.
    pub fn revoked(&self) -> Vec<RevokedRecord> {
        self.now().index.revoked.clone()
    }

    /// Versions by digest: of what is published, and of what was revoked and may still run somewhere.
    pub fn versions(&self) -> BTreeMap<Digest, semver::Version> {
        let now = self.now();
        let revoked = now.index.revoked.iter().map(|r| (r.digest, r.version.clone()));
        revoked.chain(now.index.bundles.iter().map(|b| (b.digest, b.version.clone()))).collect()
    }

    /// Takes an upload, or refuses it whole.
    pub async fn upload(&self, upload: &TrustUpload, now: UnixMillis) -> Result<Accepted, PublishError> {
        let _one = self.changing.lock().await;
        let published = self.now();
        if upload.root.is_none() && !published.repository.is_initialised() {
            return Err(PublishError::NotInitialised);
        }
        let root = match &upload.root {
            Some(envelope) => Doc::<Root>::read_unverified(envelope).ok().map(|doc| doc.body),
            None => newest_root(&published.repository),
        };
        let online = self.online().for_root(root.as_ref());
        let change = published.repository.propose(upload, &online, now / 1000)?;
        let accepted = self.take(&published, change, now).await?;
        // After the root that names them is stored: until then the old keys are needed.
        if let Some(root) = root.filter(|_| upload.root.is_some()) {
            self.online().settle(&root)?;
        }
        Ok(accepted)
    }

    /// Signs freshness again when it is due.
    pub async fn refresh(&self, now: UnixMillis) -> Result<(), PublishError> {
        let _one = self.changing.lock().await;
        let published = self.now();
        if published.repository.is_initialised() {
            let online = self.online().for_root(newest_root(&published.repository).as_ref());
            let change = published.repository.refresh(&online, now / 1000)?;
            self.take(&published, change, now).await?;
        }
        Ok(())
    }

    async fn take(
        &self,
        published: &Published,
        change: Change,
        now: UnixMillis,
    ) -> Result<Accepted, PublishError> {
        let known: BTreeMap<Digest, &BundleRecord> =
            published.index.bundles.iter().map(|b| (b.digest, b)).collect();
        let mut bundles = Vec::new();
        let mut added = Vec::new();
        for target in change.listed.iter().filter(|t| t.path().ends_with(MANIFEST_FILE)) {
            let record = match known.get(&target.sha256()) {
                Some(record) => (*record).clone(),
                None => {
                    let record = self.check_bundle(target).await?;
                    added.push(format!("{} {}", record.model, record.version));
                    record
                }
            };
            bundles.push(BundleRecord { signed_by: target.role().to_owned(), ..record });
        }
        let mut fleet_files = BTreeMap::new();
        for target in change.listed.iter().filter(|t| t.path().starts_with(FLEET_FILES)) {
            let doc = TrustDoc { sha256: target.sha256(), length: target.length() };
            if self.blobs.length(&doc.sha256).await != Some(doc.length) {
                let why =
                    format!("sha256:{} is not on the server: upload it before the metadata", doc.sha256);
                return Err(PublishError::Bundle { path: target.path().to_owned(), why });
            }
            fleet_files.insert(target.path().to_owned(), doc);
        }
        let mut files = published.index.files.clone();
        for (name, bytes) in &change.documents {
            let sha256 = self.blobs.put_bytes(bytes).await?;
            files.insert(name.clone(), TrustDoc { sha256, length: bytes.len() as u64 });
        }
        prune(&mut files);
        let gone = |b: &&BundleRecord| change.removed.contains(&target_path(&b.model, &b.version));
        let revoked: Vec<RevokedRecord> =
            published.index.bundles.iter().filter(gone).map(|b| RevokedRecord::of(b, now)).collect();
        let mut all_revoked = published.index.revoked.clone();
        all_revoked.extend(revoked.iter().cloned());
        // Who signs for a version again means it.
        all_revoked.retain(|r| !bundles.iter().any(|b| b.digest == r.digest));
        let current = Current::read(&change.repository.state(&self.online().for_root(None)), None)?;
        let proposals = self.still_open(&published.index, current.as_ref()).await;
        let removed = change.removed.into_iter().filter(|p| !p.ends_with(MANIFEST_FILE)).collect();
        let documents = change.documents.into_iter().map(|(name, _)| name).collect();
        let index = TrustIndex { serial: 0, files, bundles, fleet_files, revoked: all_revoked, proposals };
        self.set(published, index, change.repository).await?;
        Ok(Accepted { documents, added, revoked, removed })
    }

    async fn set_index(&self, published: &Published, index: TrustIndex) -> Result<(), PublishError> {
        self.set(published, index, published.repository.clone()).await
    }

    /// Stores the next state, then serves it.
    async fn set(
        &self,
        published: &Published,
        mut index: TrustIndex,
        repository: Repository,
    ) -> Result<(), PublishError> {
        index.serial = published.index.serial + 1;
        self.store.set_trust(published.index.serial, index.clone()).await?;
        *self.published.write().unwrap_or_else(PoisonError::into_inner) =
            Arc::new(Published { index, repository });
        self.note_expiries();
        Ok(())
    }

    /// For `doctor`, which must not open the store of a running server. Only a note: what counts is in the store.
    fn note_expiries(&self) {
        let text = serde_json::to_vec_pretty(&self.expiries()).unwrap_or_default(); // text keys: cannot fail
        if let Err(error) = secret::write_public(&self.dir.join(expiry::FILE), &text) {
            tracing::warn!(%error, "expiries of roles were not noted for doctor");
        }
    }

    /// A bundle is published only when every device could fetch and read all of it.
    async fn check_bundle(&self, target: &VerifiedTarget) -> Result<BundleRecord, PublishError> {
        let refuse = |why: String| PublishError::Bundle { path: target.path().to_owned(), why };
        let missing = |what: &str, digest: &Digest| {
            refuse(format!("{what} (sha256:{digest}) is not on the server: upload it before the metadata"))
        };
        if self.blobs.length(&target.sha256()).await.is_none() {
            return Err(missing(MANIFEST_FILE, &target.sha256()));
        }
        let bytes = self.blobs.read(&target.sha256(), MAX_MANIFEST_BYTES).await?;
        let manifest: Manifest = target.admit_manifest(&bytes)?.into_inner();
        for file in &manifest.files {
            match self.blobs.length(&file.sha256).await {
                Some(length) if length == file.size => {}
                Some(length) => {
                    let (path, size) = (&file.path, file.size);
                    return Err(refuse(format!(
                        "{path} has {length} bytes on the server, {size} in bundle.json"
                    )));
                }
                None => return Err(missing(file.path.as_str(), &file.sha256)),
            }
        }
        Ok(BundleRecord {
            model: manifest.model,
            version: manifest.version,
            digest: target.sha256(),
            bytes: bytes.len() as u64 + manifest.files.iter().map(|f| f.size).sum::<u64>(),
            signed_by: target.role().to_owned(),
            annotations: manifest.annotations,
        })
    }
}

/// Forgets old versions of everything but roots.
fn prune(files: &mut BTreeMap<String, TrustDoc>) {
    let mut versions: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for name in files.keys() {
        if let Some((version, file)) = name.split_once('.')
            && let Ok(version) = version.parse()
            && file != "root.json"
        {
            versions.entry(file.to_owned()).or_default().push(version);
        }
    }
    for (file, mut of_file) in versions {
        of_file.sort_unstable();
        let old = of_file.len().saturating_sub(OLD_VERSIONS + 1);
        for version in of_file.into_iter().take(old) {
            files.remove(&format!("{version}.{file}"));
        }
    }
}

fn newest_root(repository: &Repository) -> Option<Root> {
    let envelope = serde_json::from_slice(repository.root()?).ok()?;
    Doc::<Root>::read_unverified(&envelope).ok().map(|doc| doc.body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_stay_and_of_others_the_newest_five() {
        let doc = TrustDoc { sha256: Digest::of(b""), length: 0 };
        let mut files: BTreeMap<String, TrustDoc> =
            BTreeMap::from([("timestamp.json".to_owned(), doc.clone())]);
        for version in 1..=12 {
            for role in ["root", "snapshot", "m"] {
                files.insert(format!("{version}.{role}.json"), doc.clone());
            }
        }
        prune(&mut files);
        assert_eq!(files.len(), 1 + 12 + 5 + 5);
        assert!(files.contains_key("12.snapshot.json") && files.contains_key("8.m.json"));
        assert!(!files.contains_key("7.snapshot.json"));
    }
}
