//! The fleet's trust repository as this server publishes it.
//!
//! What is signed for is decided offline; this service checks an upload with the code that devices run, makes sure
//! that everything it lists can be fetched, signs what is current with its two online keys, stores all of it, and
//! only then serves it. The keys are made at the first start (mode 0600) and can say what is current, nothing else.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use plimsoll_protocol::api::{TrustState, TrustUpload};
use plimsoll_protocol::bundle::{MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest};
use plimsoll_protocol::trust::repository::{Change, Online, Repository};
use plimsoll_protocol::trust::{FLEET_FILES, KeyPair, MAX_TARGETS_BYTES, TrustError, VerifiedTarget};
use plimsoll_protocol::{Digest, UnixMillis};
use tokio::sync::Mutex;

use crate::blobs::{BlobError, Blobs};
use crate::secret;
use crate::store::{BundleRecord, Store, StoreError, TrustDoc, TrustIndex};

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
    pub removed: Vec<String>,
}

/// The repository and its keys.
pub struct TrustService {
    store: Arc<dyn Store>,
    blobs: Blobs,
    online: Online,
    published: RwLock<Arc<Published>>,
    /// One change at a time: each is made from the one before.
    changing: Mutex<()>,
}

impl TrustService {
    /// Reads what was published, and the online keys in `dir` (makes them the first time).
    pub async fn open(dir: &Path, store: Arc<dyn Store>, blobs: Blobs) -> Result<Self, PublishError> {
        let online =
            Online { snapshot: key(&dir.join("snapshot.key"))?, timestamp: key(&dir.join("timestamp.key"))? };
        let index = store.trust().await?;
        let mut documents = BTreeMap::new();
        for (name, doc) in &index.files {
            documents.insert(name.clone(), blobs.read(&doc.sha256, MAX_TARGETS_BYTES).await?);
        }
        let repository = Repository::load(&documents)?;
        let published = RwLock::new(Arc::new(Published { index, repository }));
        Ok(Self { store, blobs, online, published, changing: Mutex::new(()) })
    }

    fn now(&self) -> Arc<Published> {
        Arc::clone(&self.published.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What `plimsoll trust` needs to sign the next documents.
    pub fn state(&self) -> TrustState {
        self.now().repository.state(&self.online)
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

    /// Takes an upload, or refuses it whole.
    pub async fn upload(&self, upload: &TrustUpload, now: UnixMillis) -> Result<Accepted, PublishError> {
        let _one = self.changing.lock().await;
        let published = self.now();
        if upload.root.is_none() && !published.repository.is_initialised() {
            return Err(PublishError::NotInitialised);
        }
        let change = published.repository.propose(upload, &self.online, now / 1000)?;
        self.take(&published, change).await
    }

    /// Signs freshness again when it is due.
    pub async fn refresh(&self, now: UnixMillis) -> Result<(), PublishError> {
        let _one = self.changing.lock().await;
        let published = self.now();
        if published.repository.is_initialised() {
            let change = published.repository.refresh(&self.online, now / 1000)?;
            self.take(&published, change).await?;
        }
        Ok(())
    }

    async fn take(&self, published: &Published, change: Change) -> Result<Accepted, PublishError> {
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
                let why = format!(
                    "sha256:{} is not on the server: upload it before the metadata",
                    doc.sha256
                );
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
        let serial = published.index.serial + 1;
        let index = TrustIndex { serial, files, bundles, fleet_files };
        self.store.set_trust(published.index.serial, index.clone()).await?;
        let next = Arc::new(Published { index, repository: change.repository });
        *self.published.write().unwrap_or_else(PoisonError::into_inner) = next;
        let documents = change.documents.into_iter().map(|(name, _)| name).collect();
        Ok(Accepted { documents, added, removed: change.removed })
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

fn key(path: &Path) -> Result<KeyPair, StoreError> {
    let failed = |e: std::io::Error| StoreError::storage(format!("online key {}", path.display()), e);
    if !path.exists() {
        let seed = secret::random::<32>().map_err(failed)?;
        secret::write_private(path, hex::encode(seed).as_bytes()).map_err(failed)?;
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let mut seed = [0; 32];
    hex::decode_to_slice(text.trim(), &mut seed).map_err(|e| failed(std::io::Error::other(e.to_string())))?;
    Ok(KeyPair::from_seed(&seed))
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
