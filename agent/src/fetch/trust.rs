//! Drives the protocol's TUF client: it says what it wants next, this fetches it and stores what it trusts.
//!
//! Stored documents lie in `state/tuf/`, each written atomically before the next one is asked for, so that a power
//! cut leaves a prefix of a good refresh. What is refused never reaches the disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use plimsoll_protocol::bundle::{MAX_MANIFEST_BYTES, Manifest, target_path};
use plimsoll_protocol::trust::{
    Client, Response, Schemes, Step, Store, TrustError, TrustedDocs, Verified, VerifiedTarget,
};
use plimsoll_protocol::{Digest, ModelName, UnixSeconds};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::{FetchError, HttpSource};
use crate::files::{self, PUBLIC};

/// Most documents in the store: the top four and a role a model; more would be a leak.
const MAX_STORED: usize = 1024;
/// Largest stored document: the largest that the client accepts.
const MAX_STORED_BYTES: u64 = plimsoll_protocol::trust::MAX_TARGETS_BYTES;

/// Whose signatures count on this device: Ed25519, unless the agent itself was built with its feature `ecdsa-rsa`.
/// What was built beside it does not matter.
const SCHEMES: Schemes = if cfg!(feature = "ecdsa-rsa") { Schemes::BUILT_IN } else { Schemes::ED25519 };

/// Gets a document by its name in the repository. The real one is [`HttpSource`]; tests have a folder.
pub trait Documents {
    /// The document, or `None` when there is none.
    fn get(
        &self,
        name: &str,
        max_bytes: u64,
    ) -> impl Future<Output = Result<Option<Vec<u8>>, FetchError>> + Send;
}

impl Documents for HttpSource {
    async fn get(&self, name: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, FetchError> {
        self.document(&format!("/tuf/{name}"), max_bytes).await
    }
}

/// The trusted metadata of this device.
#[derive(Debug, Clone)]
pub struct Trust {
    dir: PathBuf,
    /// Held by the view in use: two at a time could put an older document over a newer one.
    turn: Arc<Mutex<()>>,
}

/// A refreshed view, good for look-ups until the next refresh.
#[derive(Debug)]
pub struct Refresh {
    client: Client,
    dir: PathBuf,
    _turn: OwnedMutexGuard<()>,
}

impl Trust {
    /// `state/tuf`.
    pub fn new(state: &Path) -> Self {
        Self { dir: state.join("tuf"), turn: Arc::default() }
    }

    /// Brings the metadata up to date. Ends with fresh timestamp, snapshot and targets, or with an error that names
    /// the document; what was trusted before stays. Waits until the view before is dropped.
    pub async fn refresh(&self, documents: &impl Documents, now: UnixSeconds) -> Result<Refresh, FetchError> {
        let turn = Arc::clone(&self.turn).lock_owned().await;
        let client = Client::accepting(self.stored()?, now, SCHEMES).map_err(refused)?;
        let mut refresh = Refresh { client, dir: self.dir.clone(), _turn: turn };
        refresh.drive(documents).await?;
        Ok(refresh)
    }

    /// Everything stored. A document that cannot be read counts as absent: it is fetched again.
    fn stored(&self) -> Result<TrustedDocs, FetchError> {
        let list = std::fs::read_dir(&self.dir).map_err(|e| {
            let text =
                format!("cannot read the trusted metadata in {}: {e}; enrol again", self.dir.display());
            FetchError::permanent("trust.lost", text)
        })?;
        let mut docs = TrustedDocs::new();
        for entry in list.flatten().take(MAX_STORED) {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.ends_with(".json") {
                continue;
            }
            match files::read_limited(&entry.path(), MAX_STORED_BYTES) {
                Ok(bytes) => {
                    docs.insert(name, bytes);
                }
                Err(error) => tracing::warn!(trust.document = name, %error, "stored metadata is unreadable"),
            }
        }
        Ok(docs)
    }
}

impl Refresh {
    /// The signed manifest of a model version. Its digest must be the ordered one: the server cannot name another.
    pub async fn manifest(
        &mut self,
        source: &HttpSource,
        model: &ModelName,
        version: &semver::Version,
        ordered: Digest,
    ) -> Result<(Verified<Manifest>, Vec<u8>), FetchError> {
        let target = self.target(source, model, version, ordered).await?;
        let path = format!("/blobs/sha256/{}", target.sha256());
        let limit = target.length().min(MAX_MANIFEST_BYTES);
        let bytes = source.document(&path, limit).await?.ok_or_else(|| {
            FetchError::transient("fetch.unavailable", format!("the server has no {} yet", target.path()))
        })?;
        let manifest = target.admit_manifest(&bytes).map_err(refused)?;
        Ok((manifest, bytes))
    }

    /// The signed target of a model version, when its digest is the ordered one.
    pub async fn target(
        &mut self,
        documents: &impl Documents,
        model: &ModelName,
        version: &semver::Version,
        ordered: Digest,
    ) -> Result<VerifiedTarget, FetchError> {
        let target = self.signed(documents, model, version).await?;
        if target.sha256() != ordered {
            let text = format!(
                "the order names {model} {version} with digest {}, but {} signed digest {}: the signed one counts and \
                 the order is refused",
                ordered.short(),
                target.role(),
                target.sha256().short()
            );
            return Err(FetchError::permanent("order.wrong_bundle", text));
        }
        Ok(target)
    }

    /// The signed target of a model version.
    pub async fn signed(
        &mut self,
        documents: &impl Documents,
        model: &ModelName,
        version: &semver::Version,
    ) -> Result<VerifiedTarget, FetchError> {
        match self.look_up(documents, model, version).await? {
            Some(target) => Ok(target),
            None => {
                let text = format!(
                    "{model} {version} is not signed by any role that may sign for it: it was never published, or \
                     it was revoked; nothing was installed"
                );
                Err(FetchError::permanent("trust.not_listed", text))
            }
        }
    }

    /// Whether some role that may still signs for exactly this bundle.
    pub async fn is_listed(
        &mut self,
        documents: &impl Documents,
        model: &ModelName,
        version: &semver::Version,
        digest: Digest,
    ) -> Result<bool, FetchError> {
        Ok(self.look_up(documents, model, version).await?.is_some_and(|target| target.sha256() == digest))
    }

    /// A file of the fleet, `fleet/ca.pem`, when its owner signs for one.
    pub async fn file(
        &mut self,
        documents: &impl Documents,
        path: &str,
    ) -> Result<Option<VerifiedTarget>, FetchError> {
        self.client.find(path).map_err(refused)?;
        match self.drive(documents).await? {
            Step::Found(target) => target.by_sha256().map(Some).map_err(refused),
            _ => Ok(None),
        }
    }

    async fn look_up(
        &mut self,
        documents: &impl Documents,
        model: &ModelName,
        version: &semver::Version,
    ) -> Result<Option<VerifiedTarget>, FetchError> {
        self.file(documents, &target_path(model, version)).await
    }

    /// The version of the trusted root.
    pub const fn root_version(&self) -> u64 {
        self.client.root_version()
    }

    /// Newest time that offline-signed metadata proves, for the time floor.
    pub fn issued(&self) -> Option<UnixSeconds> {
        self.client.max_issued()
    }

    /// Fetches what the client wants until it wants nothing more.
    async fn drive(&mut self, documents: &impl Documents) -> Result<Step, FetchError> {
        loop {
            let fetch = match self.client.next() {
                Step::Fetch(fetch) => fetch,
                end => return Ok(end),
            };
            let got = documents.get(&fetch.path, fetch.max_bytes).await?;
            let response = got.as_deref().map_or(Response::NotFound, Response::Bytes);
            let trusted = self.client.supply(response).map_err(refused)?;
            for change in trusted {
                self.keep(change)?;
            }
        }
    }
}

impl Refresh {
    fn keep(&self, change: Store) -> Result<(), FetchError> {
        match change {
            Store::Write { name, bytes } => files::write_atomic(&self.dir.join(name), &bytes, PUBLIC)
                .map_err(|e| {
                    FetchError::transient(
                        "fetch.disk",
                        format!(
                            "{e}: {}",
                            std::error::Error::source(&e).map_or_else(String::new, ToString::to_string)
                        ),
                    )
                }),
            // It counts for nothing under the present root: should a power cut bring it back, it is deleted again.
            Store::Delete { name } => {
                let _ = std::fs::remove_file(self.dir.join(name));
                Ok(())
            }
        }
    }
}

/// A refusal by the trust rules. Expired metadata may be signed again any moment, so it is worth another try; an
/// incomplete repository too (it is being published). All else stays wrong.
fn refused(error: TrustError) -> FetchError {
    match &error {
        e if e.is_expired() => FetchError::transient("trust.expired", error.to_string()),
        TrustError::Missing { .. } => FetchError::transient("trust.incomplete", error.to_string()),
        _ => FetchError::permanent("trust.refused", error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nothing;

    impl Documents for Nothing {
        async fn get(&self, name: &str, _: u64) -> Result<Option<Vec<u8>>, FetchError> {
            panic!("{name} was asked for under a root that does not count")
        }
    }

    /// Holds also where cargo built the protocol with `ecdsa-rsa` for the server beside the agent.
    #[cfg(not(feature = "ecdsa-rsa"))]
    #[tokio::test]
    async fn a_signature_that_is_not_of_ed25519_counts_for_nothing() {
        let state = tempfile::tempdir().unwrap();
        let trust = Trust::new(state.path());
        std::fs::create_dir(&trust.dir).unwrap();
        let root = include_bytes!("../../../protocol/tests/vectors/tuf-on-ci-root.json");
        std::fs::write(trust.dir.join("root.json"), root).unwrap();
        let error = trust.refresh(&Nothing, 1_800_000_000).await.unwrap_err();
        assert!(error.to_string().contains("0 valid signatures of distinct keys"), "{error}");
    }
}
