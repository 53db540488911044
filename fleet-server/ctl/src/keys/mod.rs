//! Keys that can sign here: key files, one Ed25519 secret each, encrypted under a passphrase, in a folder that belongs
//! offline; and commands that sign with a key that is kept elsewhere.
//!
//! The folder also keeps `root.json`, the root metadata that its owner knows: whatever a server says later is
//! verified from there. A key file is never overwritten.

mod external;
mod file;
mod passphrase;
mod public;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use plimsoll_protocol::trust::{Key, KeyPair, Signer};

use crate::failure::Usage;
use external::External;
use file::KeyFile;
pub use passphrase::PassphraseArgs;
pub use public::read as read_public;

/// Where the keys are, and how they are opened.
#[derive(Debug, Clone, clap::Args)]
pub struct KeyArgs {
    /// Folder of the key files.
    #[arg(long, env = "PLIMSOLL_KEYS", default_value = "plimsoll-keys", value_name = "DIR")]
    pub keys: PathBuf,
    /// How key files are opened.
    #[command(flatten)]
    pub passphrase: PassphraseArgs,
    /// Keys that are kept elsewhere.
    #[command(flatten)]
    pub external: ExternalArgs,
}

/// Keys that are kept elsewhere: each is a command and the public key that it signs with.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ExternalArgs {
    /// Sign with this shell command too: it gets the bytes on standard input and prints the signature (hexadecimal or
    /// base64). Give its public key with --sign-key; both may be repeated, in the same order.
    #[arg(long, value_name = "COMMAND", requires = "sign_key")]
    pub sign_with: Vec<String>,
    /// Public key of --sign-with: 64 hexadecimal digits, or a file (PEM, NAME.pub).
    #[arg(long, value_name = "KEY", requires = "sign_with")]
    pub sign_key: Vec<String>,
}

impl KeyArgs {
    /// Keys of this folder and no others, opened with what the environment says.
    pub fn at(keys: PathBuf) -> Self {
        Self { keys, passphrase: PassphraseArgs::default(), external: ExternalArgs::default() }
    }
}

/// The keys of a folder. Secrets are opened when they are needed, and the passphrase is asked once.
#[derive(Debug)]
pub struct KeyRing {
    dir: PathBuf,
    files: BTreeMap<String, KeyFile>,
    external: Vec<External>,
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
        let ExternalArgs { sign_with, sign_key } = &args.external;
        if sign_with.len() != sign_key.len() {
            bail!(Usage(format!(
                "{} --sign-with and {} --sign-key: each command needs the public key that it signs with",
                sign_with.len(),
                sign_key.len()
            )));
        }
        let external = sign_with
            .iter()
            .zip(sign_key)
            .map(|(command, key)| Ok(External { command: command.clone(), key: public::read(key)? }));
        let external = external.collect::<Result<_>>()?;
        let (dir, source) = (args.keys.clone(), args.passphrase.clone());
        Ok(Self { dir, files, external, source, passphrase: RefCell::new(None) })
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

    /// The public half of a key file, named after the file.
    pub fn public(&self, name: &str) -> Result<Key> {
        let file = self.files.get(name).ok_or_else(|| {
            Usage(format!("there is no {name}.key in {}: name the folder with --keys", self.dir.display()))
        })?;
        Ok(Key::from_hex(&file.public).map_err(anyhow::Error::msg)?.named(name))
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
        // For whoever names this key in a role: public, and with its name.
        let public = serde_json::to_vec(&file.key()?)?;
        file::write_whole(&self.dir.join(format!("{name}.pub")), &public)?;
        self.files.insert(name.to_owned(), file);
        Ok(true)
    }

    /// Who signs here with this key: a key file, or a command.
    pub fn holder(&self, key: &Key) -> Option<String> {
        let of_file = |file: &KeyFile| Key::from_hex(&file.public).is_ok_and(|own| own.is(key));
        let file = self.files.iter().find(|(_, file)| of_file(file)).map(|(name, _)| format!("{name}.key"));
        let command = || self.external.iter().find(|e| e.key.is(key)).map(|e| format!("`{}`", e.command));
        file.or_else(command)
    }

    /// What signs with this key; opens a key file, which may ask for the passphrase. `None` when nothing here can.
    pub fn signer(&self, key: &Key) -> Result<Option<Box<dyn Signer>>> {
        if let Some(external) = self.external.iter().find(|e| e.key.is(key)) {
            return Ok(Some(Box::new(external.clone())));
        }
        let held = self.files.iter().find(|(_, f)| Key::from_hex(&f.public).is_ok_and(|own| own.is(key)));
        held.map(|(name, _)| Ok(Box::new(self.secret(name)?) as Box<dyn Signer>)).transpose()
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
        let passphrase = PassphraseArgs { passphrase_file: file, ..PassphraseArgs::default() };
        KeyArgs { passphrase, ..KeyArgs::at(dir.to_owned()) }
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
        assert_eq!(ring.holder(&key).as_deref(), Some("b.key"));
        assert!(ring.signer(&key).unwrap().unwrap().key().is(&key));
        let stranger = KeyPair::from_seed(&[9; 32]).key();
        assert!(ring.holder(&stranger).is_none() && ring.signer(&stranger).unwrap().is_none());
        assert_eq!(read_public(home.path().join("b.pub").to_str().unwrap()).unwrap(), key);
    }

    #[test]
    fn a_command_stands_for_its_key() {
        let home = tempfile::tempdir().unwrap();
        let key = KeyPair::from_seed(&[9; 32]).key();
        let public = key.public().map(hex::encode).unwrap();
        let external = ExternalArgs { sign_with: vec!["hsm sign".into()], sign_key: vec![public] };
        let mut args = KeyArgs { external, ..args(home.path(), None) };
        assert_eq!(KeyRing::open(&args).unwrap().holder(&key).as_deref(), Some("`hsm sign`"));
        args.external.sign_key.clear();
        assert!(KeyRing::open(&args).unwrap_err().to_string().contains("1 --sign-with and 0 --sign-key"));
    }

    #[test]
    fn a_damaged_key_file_is_named() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("root.key"), "{").unwrap();
        let error = format!("{:#}", KeyRing::open(&args(home.path(), None)).unwrap_err());
        assert!(error.contains("root.key"), "{error}");
    }
}
