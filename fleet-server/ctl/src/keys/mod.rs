//! Key files: one Ed25519 secret each, encrypted under a passphrase, in a folder that belongs offline.
//!
//! The folder also keeps `root.json`, the root metadata that its owner knows: whatever a server says later is
//! verified from there. A key file is never overwritten.

mod file;
mod passphrase;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use plimsoll_protocol::trust::{Key, KeyId, KeyPair};

use crate::failure::Usage;
use file::KeyFile;
pub use passphrase::PassphraseArgs;

/// Where the keys are, and how they are opened.
#[derive(Debug, Clone, clap::Args)]
pub struct KeyArgs {
    /// Folder of the key files.
    #[arg(long, env = "PLIMSOLL_KEYS", default_value = "plimsoll-keys", value_name = "DIR")]
    pub keys: PathBuf,
    /// How key files are opened.
    #[command(flatten)]
    pub passphrase: PassphraseArgs,
}

/// The keys of a folder. Secrets are opened when they are needed, and the passphrase is asked once.
#[derive(Debug)]
pub struct KeyRing {
    dir: PathBuf,
    files: BTreeMap<String, KeyFile>,
    source: PassphraseArgs,
    passphrase: RefCell<Option<age::secrecy::SecretString>>,
}

impl KeyRing {
    /// Reads the public halves of a folder. A folder that does not exist holds no keys.
    pub fn open(args: &KeyArgs) -> Result<Self> {
        let mut files = BTreeMap::new();
        if args.keys.is_dir() {
            let entries = std::fs::read_dir(&args.keys);
            for entry in entries.with_context(|| format!("cannot read {}", args.keys.display()))? {
                let path = entry?.path();
                let name = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(".key"));
                if let Some(name) = name {
                    files.insert(name.to_owned(), KeyFile::read(&path)?);
                }
            }
        }
        let (dir, source) = (args.keys.clone(), args.passphrase.clone());
        Ok(Self { dir, files, source, passphrase: RefCell::new(None) })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Names of the key files.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.files.keys()
    }

    /// Whether a key file of this name is there.
    pub fn has(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    /// The public half of a key file.
    pub fn public(&self, name: &str) -> Result<Key> {
        let file = self.files.get(name).ok_or_else(|| {
            Usage(format!("there is no {name}.key in {}: name the folder with --keys", self.dir.display()))
        })?;
        Key::from_hex(&file.public).map_err(anyhow::Error::msg)
    }

    /// Makes a key file, encrypted unless `insecure`; an existing one stays as it is. Returns whether it was made.
    pub fn make(&mut self, name: &str, insecure: bool) -> Result<bool> {
        if self.has(name) {
            return Ok(false);
        }
        std::fs::create_dir_all(&self.dir)
            .with_context(|| format!("cannot create {}", self.dir.display()))?;
        let mut seed = [0; 32];
        getrandom::fill(&mut seed)
            .map_err(|e| anyhow::anyhow!("this machine gives no random numbers: {e}"))?;
        let passphrase = if insecure { None } else { Some(self.passphrase(true)?) };
        let file = KeyFile::make(name, &KeyPair::from_seed(&seed), passphrase.as_ref())?;
        file.write(&self.path(name))?;
        self.files.insert(name.to_owned(), file);
        Ok(true)
    }

    /// Opens the first key whose public half is one of these; says its file's name. `None` when the folder has none.
    pub fn unlock_one_of(
        &self,
        allowed: &BTreeMap<KeyId, Key>,
        ids: &[KeyId],
    ) -> Result<Option<(String, KeyPair)>> {
        Ok(self.unlock(allowed, ids, 1)?.into_iter().next())
    }

    /// Opens up to `wanted` keys whose public halves are among these.
    pub fn unlock(
        &self,
        allowed: &BTreeMap<KeyId, Key>,
        ids: &[KeyId],
        wanted: usize,
    ) -> Result<Vec<(String, KeyPair)>> {
        let public: Vec<[u8; 32]> = ids.iter().filter_map(|id| allowed.get(id)?.public()).collect();
        let mut opened = Vec::new();
        for (name, file) in &self.files {
            let ours = Key::from_hex(&file.public).ok().and_then(|key| key.public());
            if opened.len() < wanted && ours.is_some_and(|key| public.contains(&key)) {
                opened.push((name.clone(), self.secret(name)?));
            }
        }
        Ok(opened)
    }

    /// Opens a key file.
    pub fn secret(&self, name: &str) -> Result<KeyPair> {
        let Some(file) = self.files.get(name) else {
            bail!(Usage(format!("there is no {name}.key in {}", self.dir.display())));
        };
        let passphrase = if file.is_encrypted() { Some(self.passphrase(false)?) } else { None };
        file.open(passphrase.as_ref()).with_context(|| format!("cannot open {}", self.path(name).display()))
    }

    /// The root metadata that the owner of this folder knows.
    pub fn pinned_root(&self) -> Result<Option<Vec<u8>>> {
        let path = self.dir.join("root.json");
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Remembers a root that was verified against the one before.
    pub fn pin_root(&self, bytes: &[u8]) -> Result<()> {
        let path = self.dir.join("root.json");
        std::fs::create_dir_all(&self.dir)
            .with_context(|| format!("cannot create {}", self.dir.display()))?;
        file::write_whole(&path, bytes)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.key"))
    }

    fn passphrase(&self, confirm: bool) -> Result<age::secrecy::SecretString> {
        let mut known = self.passphrase.borrow_mut();
        if known.is_none() {
            *known = Some(self.source.get(&self.dir, confirm)?);
        }
        known.clone().context("the passphrase was just read") // unreachable: it is Some after the lines above
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(dir: &Path, passphrase: Option<&str>) -> KeyArgs {
        let file = passphrase.map(|text| {
            let file = dir.with_extension("passphrase");
            std::fs::write(&file, format!("{text}\n")).unwrap();
            file
        });
        let passphrase = PassphraseArgs { passphrase_file: file, passphrase: None };
        KeyArgs { keys: dir.to_owned(), passphrase }
    }

    #[test]
    fn an_encrypted_key_opens_with_its_passphrase_only_and_is_never_overwritten() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("keys");
        let mut ring = KeyRing::open(&args(&dir, Some("correct horse"))).unwrap();
        assert!(ring.make("release", false).unwrap());
        assert!(!ring.make("release", false).unwrap());
        let text = std::fs::read_to_string(dir.join("release.key")).unwrap();
        let seed = hex::encode(ring.secret("release").unwrap().seed());
        assert!(!text.contains(&seed), "the secret stands in the file");

        let ring = KeyRing::open(&args(&dir, Some("correct horse"))).unwrap();
        assert_eq!(hex::encode(ring.secret("release").unwrap().seed()), seed);
        let wrong = KeyRing::open(&args(&dir, Some("wrong"))).unwrap();
        let error = format!("{:#}", wrong.secret("release").unwrap_err());
        assert!(error.contains("passphrase is wrong") && error.contains("release.key"), "{error}");
    }

    #[test]
    fn a_key_file_is_for_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let home = tempfile::tempdir().unwrap();
        let mut ring = KeyRing::open(&args(home.path(), None)).unwrap();
        ring.make("root", true).unwrap();
        let mode = std::fs::metadata(home.path().join("root.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn keys_are_found_by_their_public_half() {
        let home = tempfile::tempdir().unwrap();
        let mut ring = KeyRing::open(&args(home.path(), None)).unwrap();
        for name in ["a", "b"] {
            ring.make(name, true).unwrap();
        }
        let key = ring.public("b").unwrap();
        let allowed = BTreeMap::from([(key.id(), key.clone())]);
        let (name, pair) = ring.unlock_one_of(&allowed, &[key.id()]).unwrap().unwrap();
        assert_eq!((name.as_str(), pair.id()), ("b", key.id()));
        assert!(ring.unlock_one_of(&BTreeMap::new(), &[key.id()]).unwrap().is_none());
    }

    #[test]
    fn a_damaged_key_file_is_named() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("root.key"), "{").unwrap();
        let error = format!("{:#}", KeyRing::open(&args(home.path(), None)).unwrap_err());
        assert!(error.contains("root.key"), "{error}");
    }
}
