//! Root, timestamp, snapshot, targets: each step accepts one document or refuses it whole.

use super::super::schema::{
    Doc, FileMeta, Root, Snapshot, Targets, Timestamp, file_name, meta_name, role_file,
};
use super::super::verify::{Authority, Unverified};
use super::super::{
    MAX_ROOT_BYTES, MAX_ROOT_VERSIONS, MAX_SNAPSHOT_BYTES, MAX_TARGETS_BYTES, MAX_TIMESTAMP_BYTES, TrustError,
};
use super::{Client, Fetch, State, Store};

/// What was trusted before of the two online roles.
type Floors = (Option<Doc<Timestamp>>, Option<Doc<Snapshot>>);

impl Client {
    /// The top-level document that the state waits for.
    pub(super) fn wanted(&self) -> Fetch {
        let fetch =
            |role: &str, path: String, max_bytes: u64| Fetch { path, max_bytes, role: role.to_owned() };
        match self.state {
            State::Root => {
                fetch("root", file_name("root", self.root.version.saturating_add(1)), MAX_ROOT_BYTES)
            }
            State::Timestamp => fetch("timestamp", role_file("timestamp"), MAX_TIMESTAMP_BYTES),
            State::Snapshot => {
                let meta = self.timestamp.as_ref().map(Doc::snapshot).unwrap_or_default();
                fetch("snapshot", self.path("snapshot", &meta), bound(&meta, MAX_SNAPSHOT_BYTES))
            }
            _ => {
                let meta = self.meta("targets").cloned().unwrap_or_default();
                fetch("targets", self.path("targets", &meta), bound(&meta, MAX_TARGETS_BYTES))
            }
        }
    }

    /// Name on the server: with its version when the repository keeps consistent snapshots.
    pub(super) fn path(&self, role: &str, meta: &FileMeta) -> String {
        if self.root.body.consistent_snapshot { file_name(role, meta.version) } else { role_file(role) }
    }

    fn authority(&self, role: &str) -> Result<Authority<'_>, TrustError> {
        Ok(self.root.authority(role)?.accepting(self.schemes))
    }

    /// What the trusted snapshot says of a role.
    pub(super) fn meta(&self, role: &str) -> Option<&FileMeta> {
        self.snapshot.as_ref()?.body.meta.get(&meta_name(role))
    }

    pub(super) fn take_root(&mut self, bytes: &[u8]) -> Result<Vec<Store>, TrustError> {
        if self.roots_walked >= MAX_ROOT_VERSIONS {
            return Err(TrustError::Endless {
                what: "root versions in one refresh",
                max: MAX_ROOT_VERSIONS as usize,
            });
        }
        let next = Unverified::<Root>::open("root", bytes, MAX_ROOT_BYTES)?;
        exact("root", next.version(), self.root.version.saturating_add(1), "the one after the trusted root")?;
        self.root = next.verify_root_by(Some(&self.root), self.schemes)?;
        self.roots_walked += 1;
        Ok(vec![self.keep("root.json".into(), bytes)])
    }

    /// The server has no newer root: the one at hand must be fresh, and says which stored documents still count.
    pub(super) fn end_of_roots(&mut self) -> Result<Vec<Store>, TrustError> {
        self.root.fresh("root", self.now)?;
        let mut stores = Vec::new();
        match self.floors() {
            Some(floors) => (self.timestamp, self.snapshot) = floors,
            None => {
                for name in ["timestamp.json", "snapshot.json"] {
                    if self.stored.remove(name).is_some() {
                        stores.push(Store::Delete { name: name.to_owned() });
                    }
                }
            }
        }
        self.state = State::Timestamp;
        Ok(stores)
    }

    /// The stored timestamp and snapshot, as floors: verified under the present root, expiry aside. When either is
    /// well-formed but signed by keys that the root no longer names, those keys were rotated, perhaps because they
    /// were stolen and used to push versions up: both floors go (fast-forward recovery), which `None` says. A file
    /// that is merely spoilt takes only itself away.
    fn floors(&self) -> Option<Floors> {
        let mut rotated = false;
        let timestamp = self.stored.get("timestamp.json");
        let timestamp = timestamp.and_then(|b| Unverified::open("timestamp", b, MAX_TIMESTAMP_BYTES).ok());
        let timestamp = timestamp.and_then(|doc| self.by_root(doc, "timestamp", &mut rotated));
        let snapshot = self.stored.get("snapshot.json");
        let snapshot = snapshot.and_then(|b| Unverified::open("snapshot", b, MAX_SNAPSHOT_BYTES).ok());
        let snapshot = snapshot.and_then(|doc| self.by_root(doc, "snapshot", &mut rotated));
        (!rotated).then_some((timestamp, snapshot))
    }

    fn by_root<T: super::super::RoleType>(
        &self,
        doc: Unverified<T>,
        role: &str,
        rotated: &mut bool,
    ) -> Option<Doc<T>> {
        let verified = self.authority(role).and_then(|authority| doc.verify(&authority));
        *rotated |= verified.is_err();
        verified.ok()
    }

    pub(super) fn take_timestamp(&mut self, bytes: &[u8]) -> Result<Vec<Store>, TrustError> {
        let new = Unverified::<Timestamp>::open("timestamp", bytes, MAX_TIMESTAMP_BYTES)?;
        let new = new.verify(&self.authority("timestamp")?)?;
        let mut same = false;
        if let Some(old) = &self.timestamp {
            not_older("timestamp", new.version, old.version, "timestamp.json")?;
            not_older("snapshot", new.snapshot().version, old.snapshot().version, "timestamp.json")?;
            same = new.version == old.version;
        }
        if let Some(old) = self.snapshot.as_ref() {
            not_older("snapshot", new.snapshot().version, old.version, "timestamp.json")?;
        }
        // Of one version there is one document: the first that was trusted stays, whatever this one says.
        let current = self.timestamp.as_ref().filter(|_| same).unwrap_or(&new);
        current.fresh("timestamp", self.now)?;
        check_bound("snapshot", &current.snapshot(), MAX_SNAPSHOT_BYTES)?;
        let mut stores = Vec::new();
        if !same {
            self.timestamp = Some(new);
            stores.push(self.keep("timestamp.json".into(), bytes));
        }
        self.state = State::Snapshot;
        self.use_stored("snapshot.json", Self::accept_snapshot);
        Ok(stores)
    }

    pub(super) fn take_snapshot(&mut self, bytes: &[u8]) -> Result<Vec<Store>, TrustError> {
        self.accept_snapshot(bytes)?;
        Ok(vec![self.keep("snapshot.json".into(), bytes)])
    }

    fn accept_snapshot(&mut self, bytes: &[u8]) -> Result<(), TrustError> {
        let timestamp = self.timestamp.as_ref().ok_or(TrustError::OutOfTurn("no timestamp yet"))?;
        let meta = timestamp.snapshot();
        meta.check_bytes("snapshot", bytes, "timestamp.json")?;
        let new = Unverified::<Snapshot>::open("snapshot", bytes, MAX_SNAPSHOT_BYTES)?;
        let new = new.verify(&self.authority("snapshot")?)?;
        exact("snapshot", new.version, meta.version, "timestamp.json")?;
        for (file, old) in self.snapshot.iter().flat_map(|old| &old.body.meta) {
            let role = file.strip_suffix(".json").unwrap_or(file);
            let Some(now) = new.body.meta.get(file) else {
                return Err(TrustError::Dropped { role: role.to_owned(), version: new.version });
            };
            not_older(role, now.version, old.version, "snapshot.json")?;
        }
        new.fresh("snapshot", self.now)?;
        for (file, meta) in &new.body.meta {
            check_bound(file.strip_suffix(".json").unwrap_or(file), meta, MAX_TARGETS_BYTES)?;
        }
        self.snapshot = Some(new);
        self.state = State::Targets;
        self.use_stored("targets.json", Self::accept_targets);
        Ok(())
    }

    pub(super) fn take_targets(&mut self, bytes: &[u8]) -> Result<Vec<Store>, TrustError> {
        self.accept_targets(bytes)?;
        Ok(vec![self.keep("targets.json".into(), bytes)])
    }

    fn accept_targets(&mut self, bytes: &[u8]) -> Result<(), TrustError> {
        let meta =
            self.meta("targets").ok_or_else(|| TrustError::NotInSnapshot { role: "targets".into() })?;
        meta.check_bytes("targets", bytes, "snapshot.json")?;
        let new = Unverified::<Targets>::open("targets", bytes, MAX_TARGETS_BYTES)?;
        let new = new.verify(&self.authority("targets")?)?;
        exact("targets", new.version, meta.version, "snapshot.json")?;
        new.fresh("targets", self.now)?;
        self.targets = Some(new);
        self.state = State::Refreshed;
        Ok(())
    }

    /// Takes a stored document if it is exactly what is wanted; otherwise it is fetched, and judged then.
    fn use_stored(&mut self, name: &str, accept: fn(&mut Self, &[u8]) -> Result<(), TrustError>) {
        if let Some(bytes) = self.stored.get(name).cloned() {
            // A refusal changes nothing: `accept` moves the state only at its end.
            let _ = accept(self, &bytes);
        }
    }
}

/// How much may be fetched of a document.
pub(super) fn bound(meta: &FileMeta, max: u64) -> u64 {
    meta.length.map_or(max, |length| length.min(max))
}

/// Refuses a length above the limit where it is named, before anything is fetched.
fn check_bound(role: &str, meta: &FileMeta, max: u64) -> Result<(), TrustError> {
    match meta.length {
        Some(got) if got > max => Err(TrustError::TooBig { role: role.to_owned(), got, max }),
        _ => Ok(()),
    }
}

pub(super) fn exact(role: &str, got: u64, expected: u64, by: &str) -> Result<(), TrustError> {
    if got == expected {
        return Ok(());
    }
    Err(TrustError::Version { role: role.to_owned(), got, expected, by: by.to_owned() })
}

fn not_older(role: &str, got: u64, trusted: u64, document: &str) -> Result<(), TrustError> {
    if got >= trusted {
        return Ok(());
    }
    Err(TrustError::Rollback { role: role.to_owned(), got, trusted, document: document.to_owned() })
}
