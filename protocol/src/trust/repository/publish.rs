//! What a server publishes, as a value. A change is proposed, verified as a device would, and only then handed out
//! to be stored; the server's two online keys say what is current and can say nothing else.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::super::schema::{
    Doc, FileMeta, RoleType, Root, Snapshot, Targets, Timestamp, file_name, role_file,
};
use super::super::verify::Unverified;
use super::super::{
    Client, Key, MAX_ROOT_BYTES, MAX_SNAPSHOT_BYTES, MAX_TARGETS_BYTES, MAX_TIMESTAMP_BYTES, Response,
    Schemes, Signer, Step, TrustError, TrustedDocs, VerifiedTarget,
};
use super::listing::immutable;
use super::{Online, SNAPSHOT_LIFETIME_S, TIMESTAMP_LIFETIME_S, sign, to_bytes};
use crate::UnixSeconds;
use crate::api::{TrustState, TrustUpload};

/// Every document that is current, and all roots.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Repository {
    pub(super) roots: BTreeMap<u64, Vec<u8>>,
    pub(super) targets: Option<Vec<u8>>,
    pub(super) roles: BTreeMap<String, Vec<u8>>,
    snapshot: Option<Vec<u8>>,
    timestamp: Option<Vec<u8>>,
}

/// A verified next state. Store `documents` in order (the timestamp, which makes the rest visible, comes last), all
/// of them before serving any; then replace the repository.
#[derive(Debug, Clone)]
pub struct Change {
    /// The repository afterwards.
    pub repository: Repository,
    /// Name on the server and bytes of every document that is new.
    pub documents: Vec<(String, Vec<u8>)>,
    /// Everything that is signed for now.
    pub listed: Vec<VerifiedTarget>,
    /// Paths that were signed for and are no longer: revoked versions.
    pub removed: Vec<String>,
}

impl Repository {
    /// From stored documents by their names on the server. Of each role the newest counts; all roots are kept.
    /// Verifies nothing: they were verified before they were stored, and devices verify again.
    pub fn load(documents: &BTreeMap<String, Vec<u8>>) -> Result<Self, TrustError> {
        let mut newest: BTreeMap<String, (u64, &Vec<u8>)> = BTreeMap::new();
        let mut repository = Self::default();
        for (name, bytes) in documents {
            if name == "timestamp.json" {
                repository.timestamp = Some(bytes.clone());
                continue;
            }
            let parts = name.split_once('.').and_then(|(v, rest)| Some((v.parse::<u64>().ok()?, rest)));
            let (version, file) = parts.ok_or_else(|| TrustError::parse(name, "its name has no version"))?;
            if file == "root.json" {
                repository.roots.insert(version, bytes.clone());
            } else if newest.get(file).is_none_or(|(v, _)| *v < version) {
                newest.insert(file.to_owned(), (version, bytes));
            }
        }
        for (file, (_, bytes)) in newest {
            match file.as_str() {
                "targets.json" => repository.targets = Some(bytes.clone()),
                "snapshot.json" => repository.snapshot = Some(bytes.clone()),
                _ => {
                    // Role names of ours are their file names; others are percent-encoded and found by delegation.
                    let role = file.strip_suffix(".json").unwrap_or(&file).to_owned();
                    repository.roles.insert(role, bytes.clone());
                }
            }
        }
        Ok(repository)
    }

    /// Whether the owner has initialised it.
    pub fn is_initialised(&self) -> bool {
        !self.roots.is_empty()
    }

    /// The newest root, which a device that enrols now starts from.
    pub fn root(&self) -> Option<&[u8]> {
        self.roots.values().next_back().map(Vec::as_slice)
    }

    /// What `plimsoll trust` needs to sign the next documents.
    pub fn state(&self, online: &Online) -> TrustState {
        let value = |bytes: &Vec<u8>| serde_json::from_slice::<Value>(bytes).ok();
        TrustState {
            snapshot_key: online.snapshot.public_hex(),
            timestamp_key: online.timestamp.public_hex(),
            next_snapshot_key: None,
            next_timestamp_key: None,
            root: self.roots.values().next_back().and_then(value),
            roots: self.roots.values().filter_map(value).collect(),
            snapshot: self.snapshot.as_ref().and_then(value),
            timestamp: self.timestamp.as_ref().and_then(value),
            targets: self.targets.as_ref().and_then(value),
            roles: self
                .roles
                .iter()
                .filter_map(|(name, bytes)| Some((name.clone(), value(bytes)?)))
                .collect(),
        }
    }

    /// When the document of each role expires: the top-level ones and those that are delegated.
    pub fn expiries(&self) -> BTreeMap<String, UnixSeconds> {
        fn expires<T: RoleType>(bytes: Option<&Vec<u8>>) -> Option<UnixSeconds> {
            let envelope = serde_json::from_slice(bytes?).ok()?;
            Doc::<T>::read_unverified(&envelope).ok().map(|doc| doc.expires)
        }
        let mut found = BTreeMap::new();
        let top = [
            ("root", expires::<Root>(self.roots.values().next_back())),
            ("timestamp", expires::<Timestamp>(self.timestamp.as_ref())),
            ("snapshot", expires::<Snapshot>(self.snapshot.as_ref())),
            ("targets", expires::<Targets>(self.targets.as_ref())),
        ];
        let roles = self.roles.iter().filter(|(name, _)| self.delegates(name));
        let roles = roles.map(|(name, bytes)| (name.as_str(), expires::<Targets>(Some(bytes))));
        for (name, expires) in top.into_iter().chain(roles) {
            found.extend(expires.map(|expires| (name.to_owned(), expires)));
        }
        found
    }

    /// Verifies an upload and signs what becomes current. All of it is taken or none.
    pub fn propose(
        &self,
        upload: &TrustUpload,
        online: &Online,
        now: UnixSeconds,
    ) -> Result<Change, TrustError> {
        let mut next = self.clone();
        let mut documents = Vec::new();
        for (name, envelope) in &upload.roles {
            if role_file(name) != format!("{name}.json") {
                return Err(TrustError::Upload(format!(
                    "role name {name:?}: only A-Z a-z 0-9 _ . - ~ are taken here"
                )));
            }
            let bytes = to_bytes(envelope);
            let version =
                next.newer::<Targets>(name, self.roles.get(name), &bytes, MAX_TARGETS_BYTES, now)?;
            documents.push((file_name(name, version), bytes.clone()));
            next.roles.insert(name.clone(), bytes);
        }
        if let Some(envelope) = &upload.targets {
            let bytes = to_bytes(envelope);
            let version =
                next.newer::<Targets>("targets", self.targets.as_ref(), &bytes, MAX_TARGETS_BYTES, now)?;
            documents.push((file_name("targets", version), bytes.clone()));
            next.targets = Some(bytes);
        }
        if let Some(envelope) = &upload.root {
            let bytes = to_bytes(envelope);
            let version = self.check_root(&bytes, online)?;
            documents.push((file_name("root", version), bytes.clone()));
            next.roots.insert(version, bytes);
        }
        if documents.is_empty() {
            return Err(TrustError::Upload("it carries no document".into()));
        }
        let listed = next.listed()?;
        if let Some(orphan) = upload.roles.keys().find(|name| !next.delegates(name)) {
            let why = format!("role {orphan} is not delegated: run `plimsoll trust delegate {orphan}` first");
            return Err(TrustError::Upload(why));
        }
        // A new root may hand the targets to keys under which the old listing no longer stands; then nothing was
        // listed that devices would still believe.
        let before = self.listed().unwrap_or_default();
        immutable(&before, &listed)?;
        let signed = next.sign_current(online, now, true)?;
        documents.extend(signed);
        self.check_as_a_device(&next, now)?;
        let after: BTreeSet<&str> = listed.iter().map(VerifiedTarget::path).collect();
        let removed =
            before.iter().map(|t| t.path().to_owned()).filter(|p| !after.contains(p.as_str())).collect();
        Ok(Change { repository: next, documents, listed, removed })
    }

    /// Signs a fresh timestamp, and a fresh snapshot at half its life. Due a few times within
    /// [`TIMESTAMP_LIFETIME_S`]; nothing that the owner or a team signed is touched, so an expired role does not
    /// keep the others from being current.
    pub fn refresh(&self, online: &Online, now: UnixSeconds) -> Result<Change, TrustError> {
        let mut next = self.clone();
        self.check_keys(online)?;
        let snapshot = self.open::<Snapshot>("snapshot", self.snapshot.as_ref(), MAX_SNAPSHOT_BYTES)?;
        let old = snapshot.is_none_or(|doc| doc.expires.saturating_sub(now) < SNAPSHOT_LIFETIME_S / 2);
        let documents = next.sign_current(online, now, old)?;
        let listed = next.listed()?;
        Ok(Change { repository: next, documents, listed, removed: Vec::new() })
    }

    /// The newest root must give the online roles to these keys.
    pub(super) fn check_keys(&self, online: &Online) -> Result<(), TrustError> {
        let Some(bytes) = self.roots.values().next_back() else { return Ok(()) };
        check_online(&Unverified::<Root>::open("root", bytes, MAX_ROOT_BYTES)?.into_unverified(), online)
    }

    fn delegates(&self, name: &str) -> bool {
        let docs = self.targets.iter().chain(self.roles.values());
        let mut docs =
            docs.filter_map(|b| Doc::<Targets>::read_unverified(&serde_json::from_slice(b).ok()?).ok());
        docs.any(|doc| doc.body.delegated(name).is_some())
    }

    /// The version of an uploaded document, which must be newer than the current one and not expired.
    fn newer<T: RoleType>(
        &self,
        name: &str,
        current: Option<&Vec<u8>>,
        bytes: &[u8],
        max: u64,
        now: UnixSeconds,
    ) -> Result<u64, TrustError> {
        let doc = self.parse::<T>(name, bytes, max)?;
        doc.fresh(name, now)?;
        let trusted = self.open::<T>(name, current, max)?.map_or(0, |doc| doc.version);
        if doc.version <= trusted {
            let why = format!(
                "{name}.json version {} is not newer than the published version {trusted}: somebody may have \
                 published meanwhile; run the command again to sign on top of it",
                doc.version
            );
            return Err(TrustError::Upload(why));
        }
        Ok(doc.version)
    }

    fn check_root(&self, bytes: &[u8], online: &Online) -> Result<u64, TrustError> {
        let new = Unverified::<Root>::open("root", bytes, MAX_ROOT_BYTES)?;
        let old = self.roots.values().next_back();
        let old = old
            .map(|b| Unverified::<Root>::open("root", b, MAX_ROOT_BYTES)?.verify_root(None))
            .transpose()?;
        let expected = old.as_ref().map_or(1, |doc| doc.version + 1);
        if new.version() != expected {
            let (role, by) = ("root".to_owned(), "the one after the published root".to_owned());
            return Err(TrustError::Version { role, got: new.version(), expected, by });
        }
        let root = new.verify_root(old.as_ref())?;
        if !root.body.consistent_snapshot {
            return Err(TrustError::Upload("root.json must set consistent_snapshot".into()));
        }
        check_online(&root, online)?;
        Ok(root.version)
    }

    /// Signs snapshot (when `all`) and timestamp for what is in `self`.
    pub(super) fn sign_current(
        &mut self,
        online: &Online,
        now: UnixSeconds,
        all: bool,
    ) -> Result<Vec<(String, Vec<u8>)>, TrustError> {
        self.sign_for(online, now, all, (SNAPSHOT_LIFETIME_S, TIMESTAMP_LIFETIME_S))
    }

    /// The same for other lifetimes of snapshot and timestamp.
    pub(super) fn sign_for(
        &mut self,
        online: &Online,
        now: UnixSeconds,
        all: bool,
        (snapshot_s, timestamp_s): (i64, i64),
    ) -> Result<Vec<(String, Vec<u8>)>, TrustError> {
        let mut documents = Vec::new();
        let previous = self.open::<Snapshot>("snapshot", self.snapshot.as_ref(), MAX_SNAPSHOT_BYTES)?;
        let mut version = previous.as_ref().map_or(0, |doc| doc.version);
        if all || previous.is_none() {
            version += 1;
            // A role that is no longer delegated stays listed: a snapshot that drops one is refused as a rollback.
            let mut meta = previous.map(|doc| doc.body.meta).unwrap_or_default();
            let targets = self.targets.as_ref().ok_or_else(|| {
                TrustError::Upload("there is no targets.json yet: run `plimsoll trust init`".into())
            })?;
            let roles = self.roles.iter().map(|(name, bytes)| (name.as_str(), bytes));
            for (name, bytes) in roles.chain([("targets", targets)]) {
                let doc = self.parse::<Targets>(name, bytes, MAX_TARGETS_BYTES)?;
                meta.insert(role_file(name), FileMeta::of(doc.version, bytes));
            }
            let body = Snapshot { meta, extra: BTreeMap::new() };
            let doc = Doc::new(version, None, now.saturating_add(snapshot_s), body);
            let bytes = to_bytes(&sign(&doc, &[&online.snapshot as &dyn Signer])?);
            documents.push((file_name("snapshot", version), bytes.clone()));
            self.snapshot = Some(bytes);
        }
        let snapshot = self.snapshot.as_deref().unwrap_or_default();
        let meta = BTreeMap::from([("snapshot.json".to_owned(), FileMeta::of(version, snapshot))]);
        let previous = self.open::<Timestamp>("timestamp", self.timestamp.as_ref(), MAX_TIMESTAMP_BYTES)?;
        let version = previous.map_or(1, |doc| doc.version + 1);
        let body = Timestamp { meta, extra: BTreeMap::new() };
        let doc = Doc::new(version, None, now.saturating_add(timestamp_s), body);
        let bytes = to_bytes(&sign(&doc, &[&online.timestamp as &dyn Signer])?);
        documents.push(("timestamp.json".to_owned(), bytes.clone()));
        self.timestamp = Some(bytes);
        Ok(documents)
    }

    /// A device that trusts the present state must be able to go to the next.
    fn check_as_a_device(&self, next: &Self, now: UnixSeconds) -> Result<(), TrustError> {
        let mut stored = TrustedDocs::new();
        let first = self.roots.values().next_back().or(next.roots.values().next());
        let documents = [
            ("root.json", first),
            ("timestamp.json", self.timestamp.as_ref()),
            ("snapshot.json", self.snapshot.as_ref()),
            ("targets.json", self.targets.as_ref()),
        ];
        for (name, bytes) in documents {
            stored.extend(bytes.map(|b| (name.to_owned(), b.clone())));
        }
        // As generous as the rest of this check: what devices of a fleet accept is theirs to say.
        let mut device = Client::accepting(stored, now, Schemes::BUILT_IN)?;
        while let Step::Fetch(fetch) = device.next() {
            let bytes = next.document(&fetch.path);
            device.supply(bytes.map_or(Response::NotFound, Response::Bytes))?;
        }
        Ok(())
    }

    /// A current document by its name on the server.
    pub fn document(&self, path: &str) -> Option<&[u8]> {
        if path == "timestamp.json" {
            return self.timestamp.as_deref();
        }
        let (version, file) = path.split_once('.')?;
        let version: u64 = version.parse().ok()?;
        let bytes = match file {
            "root.json" => return self.roots.get(&version).map(Vec::as_slice),
            "snapshot.json" => self.snapshot.as_ref(),
            "targets.json" => self.targets.as_ref(),
            _ => self.roles.iter().find(|(name, _)| role_file(name) == file).map(|(_, bytes)| bytes),
        }?;
        let value: Value = serde_json::from_slice(bytes).ok()?;
        let current = value.get("signed")?.get("version")?.as_u64()?;
        (current == version).then_some(bytes.as_slice())
    }

    fn open<T: RoleType>(
        &self,
        name: &str,
        bytes: Option<&Vec<u8>>,
        max: u64,
    ) -> Result<Option<Doc<T>>, TrustError> {
        bytes.map(|bytes| self.parse(name, bytes, max)).transpose()
    }

    fn parse<T: RoleType>(&self, name: &str, bytes: &[u8], max: u64) -> Result<Doc<T>, TrustError> {
        Ok(Unverified::<T>::open(name, bytes, max)?.into_unverified())
    }
}

/// What other keys than the root's sign is refused by every device: better not to publish it.
fn check_online(root: &Doc<Root>, online: &Online) -> Result<(), TrustError> {
    for (role, own) in [("snapshot", &online.snapshot), ("timestamp", &online.timestamp)] {
        let authority = root.authority(role)?;
        let named = |id| authority.keys.get(id).and_then(Key::public) == Some(own.public());
        if authority.threshold != 1 || !authority.keyids.iter().any(named) {
            return Err(TrustError::Upload(format!(
                "root.json does not give role {role} to this server's key {}: run `plimsoll trust rotate snapshot \
                 timestamp`, which lets the root keys name new ones",
                own.public_hex()
            )));
        }
    }
    Ok(())
}
