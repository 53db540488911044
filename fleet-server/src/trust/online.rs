//! The server's own keys: one for the snapshot, one for the timestamp. They are made here and never leave.
//!
//! A new key is made beside the old one and takes over with the root that names it, so the owner's signature decides
//! and not the server. Which of the two signs is read from the root each time: a crash between the new root and the
//! renaming of a file changes nothing.

use std::path::{Path, PathBuf};

use plimsoll_protocol::api::TrustState;
use plimsoll_protocol::trust::repository::Online;
use plimsoll_protocol::trust::{Key, KeyPair, Root};

use crate::secret;
use crate::store::StoreError;

/// Both keys, and those that wait to take over.
pub struct OnlineKeys {
    dir: PathBuf,
    snapshot: Pair,
    timestamp: Pair,
}

struct Pair {
    role: &'static str,
    current: KeyPair,
    next: Option<KeyPair>,
}

impl OnlineKeys {
    /// Reads them; makes the first ones.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let pair = |role| -> Result<Pair, StoreError> {
            let (own, next) = (own_path(dir, role), next_path(dir, role));
            let current = if own.exists() { read(&own)? } else { make(&own)? };
            let next = if next.exists() { Some(read(&next)?) } else { None };
            Ok(Pair { role, current, next })
        };
        Ok(Self { dir: dir.to_owned(), snapshot: pair("snapshot")?, timestamp: pair("timestamp")? })
    }

    /// Makes a key that will take over a role, once; `None` when the role is not one of this server's.
    pub fn make_next(&mut self, role: &str) -> Result<Option<()>, StoreError> {
        let pair = match role {
            "snapshot" => &mut self.snapshot,
            "timestamp" => &mut self.timestamp,
            _ => return Ok(None),
        };
        if pair.next.is_none() {
            pair.next = Some(make(&next_path(&self.dir, pair.role))?);
        }
        Ok(Some(()))
    }

    /// The keys that a root gives the roles to; where it names neither, the present ones, which are then refused by
    /// name.
    pub fn for_root(&self, root: Option<&Root>) -> Online {
        Online { snapshot: self.snapshot.named_by(root), timestamp: self.timestamp.named_by(root) }
    }

    /// Puts keys that took over in the place of the old ones, which are gone for good.
    pub fn settle(&mut self, root: &Root) -> Result<(), StoreError> {
        for pair in [&mut self.snapshot, &mut self.timestamp] {
            let Some(next) = pair.next.take_if(|next| names(root, pair.role, next)) else { continue };
            let (from, to) = (next_path(&self.dir, pair.role), own_path(&self.dir, pair.role));
            pair.current = next;
            std::fs::rename(&from, &to)
                .and_then(|()| std::fs::File::open(&self.dir)?.sync_all())
                .map_err(|e| StoreError::storage(format!("online key {}", to.display()), e))?;
        }
        Ok(())
    }

    /// Public halves, for `plimsoll trust`.
    pub fn describe(&self, state: &mut TrustState) {
        state.snapshot_key = self.snapshot.current.public_hex();
        state.timestamp_key = self.timestamp.current.public_hex();
        state.next_snapshot_key = self.snapshot.next.as_ref().map(KeyPair::public_hex);
        state.next_timestamp_key = self.timestamp.next.as_ref().map(KeyPair::public_hex);
    }
}

impl Pair {
    fn named_by(&self, root: Option<&Root>) -> KeyPair {
        let next = self.next.as_ref().filter(|next| root.is_some_and(|root| names(root, self.role, next)));
        KeyPair::from_seed(&next.unwrap_or(&self.current).seed())
    }
}

/// Whether a root gives a role to this key.
fn names(root: &Root, role: &str, pair: &KeyPair) -> bool {
    let keys = root.roles.get(role).into_iter().flat_map(|r| &r.keyids).filter_map(|id| root.keys.get(id));
    keys.filter_map(Key::public).any(|public| public == pair.public())
}

fn own_path(dir: &Path, role: &str) -> PathBuf {
    dir.join(format!("{role}.key"))
}

fn next_path(dir: &Path, role: &str) -> PathBuf {
    dir.join(format!("{role}.next.key"))
}

fn make(path: &Path) -> Result<KeyPair, StoreError> {
    let failed = |e| StoreError::storage(format!("online key {}", path.display()), e);
    let seed = secret::random::<32>().map_err(failed)?;
    secret::write_private(path, hex::encode(seed).as_bytes()).map_err(failed)?;
    read(path)
}

fn read(path: &Path) -> Result<KeyPair, StoreError> {
    let failed = |e: std::io::Error| StoreError::storage(format!("online key {}", path.display()), e);
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let mut seed = [0; 32];
    hex::decode_to_slice(text.trim(), &mut seed).map_err(|e| failed(std::io::Error::other(e.to_string())))?;
    Ok(KeyPair::from_seed(&seed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_protocol::trust::Signer;
    use plimsoll_protocol::trust::repository::RootKeys;

    fn root(online: &Online) -> Root {
        let owner = KeyPair::from_seed(&[1; 32]).key();
        let keys = RootKeys {
            root: (vec![owner.clone()], 1),
            targets: (vec![owner], 1),
            snapshot: online.snapshot.key(),
            timestamp: online.timestamp.key(),
        };
        Root::of(&keys)
    }

    #[test]
    fn a_new_key_takes_over_with_the_root_that_names_it_and_the_old_one_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let mut keys = OnlineKeys::open(dir.path()).unwrap();
        let before = keys.for_root(None);
        let old_root = root(&before);
        assert!(keys.make_next("root").unwrap().is_none(), "that key is not the server's");
        keys.make_next("timestamp").unwrap().unwrap();
        let next = keys.timestamp.next.as_ref().unwrap().public_hex();
        keys.make_next("timestamp").unwrap().unwrap();
        assert_eq!(keys.timestamp.next.as_ref().unwrap().public_hex(), next, "asked twice, made once");
        assert_eq!(keys.for_root(Some(&old_root)).timestamp.public(), before.timestamp.public());

        let mut new_root = old_root.clone();
        new_root.set("timestamp", &[Key::from_hex(&next).unwrap()], 1);
        // A crash before the file is renamed: the root says which key signs.
        let mut keys = OnlineKeys::open(dir.path()).unwrap();
        assert_eq!(keys.for_root(Some(&new_root)).timestamp.public_hex(), next);
        assert_eq!(keys.for_root(Some(&new_root)).snapshot.public(), before.snapshot.public());
        keys.settle(&new_root).unwrap();
        let keys = OnlineKeys::open(dir.path()).unwrap();
        assert_eq!((keys.timestamp.current.public_hex(), keys.timestamp.next.is_none()), (next, true));
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().flatten().map(|e| e.file_name()).collect();
        assert_eq!(left.len(), 2, "{left:?}");
        let text = std::fs::read_to_string(dir.path().join("timestamp.key")).unwrap();
        assert_ne!(text, hex::encode(before.timestamp.seed()));
    }
}
