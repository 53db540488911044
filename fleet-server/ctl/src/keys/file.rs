//! One key file: JSON, so that a person sees whose key it is without opening it.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use age::secrecy::SecretString;
use anyhow::{Context, Result, bail};
use plimsoll_protocol::trust::{Key, KeyPair};
use serde::{Deserialize, Serialize};

/// scrypt with 2^17 rounds: 128 MiB and about half a second a try, the middle of what password managers use.
const WORK_FACTOR: u8 = 17;
/// Key files of a faster machine may have been made harder; 2^20 is 1 GiB, more than that is an attack on memory.
const MAX_WORK_FACTOR: u8 = 20;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KeyFile {
    /// Format of this file.
    plimsoll_key: u32,
    /// For people: what it was made for.
    role: String,
    /// Hexadecimal.
    pub public: String,
    secret: Secret,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Secret {
    /// An `age` file under a passphrase, hexadecimal.
    Age(String),
    /// The bare seed, hexadecimal.
    Unencrypted(String),
}

impl KeyFile {
    pub fn make(role: &str, pair: &KeyPair, passphrase: Option<&SecretString>) -> Result<Self> {
        let secret = match passphrase {
            None => Secret::Unencrypted(hex::encode(pair.seed())),
            Some(passphrase) => {
                let mut recipient = age::scrypt::Recipient::new(passphrase.clone());
                recipient.set_work_factor(WORK_FACTOR);
                let sealed = age::encrypt(&recipient, &pair.seed()).context("cannot encrypt the key")?;
                Secret::Age(hex::encode(sealed))
            }
        };
        Ok(Self { plimsoll_key: 1, role: role.to_owned(), public: pair.public_hex(), secret })
    }

    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let file: Self = serde_json::from_slice(&text)
            .with_context(|| format!("{} is not a key file of plimsoll", path.display()))?;
        if file.plimsoll_key != 1 {
            bail!("{} is of a newer plimsoll (format {})", path.display(), file.plimsoll_key);
        }
        Ok(file)
    }

    /// Writes a new file for its owner only, down to the disk; an existing file is an error.
    pub fn write(&self, path: &Path) -> Result<()> {
        let fail = || format!("cannot write {}", path.display());
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .with_context(fail)?;
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        file.write_all(&text).and_then(|()| file.sync_all()).with_context(fail)
    }

    /// The public half, with what it was made for as its name.
    pub fn key(&self) -> Result<Key> {
        Ok(Key::from_hex(&self.public).map_err(anyhow::Error::msg)?.named(&self.role))
    }

    pub const fn is_encrypted(&self) -> bool {
        matches!(self.secret, Secret::Age(_))
    }

    /// The key pair. Checks that it is the one whose public half stands in the file.
    pub fn open(&self, passphrase: Option<&SecretString>) -> Result<KeyPair> {
        let seed = match (&self.secret, passphrase) {
            (Secret::Unencrypted(seed), _) => hex::decode(seed).context("its secret is damaged")?,
            (Secret::Age(_), None) => bail!("it is encrypted and no passphrase was given"),
            (Secret::Age(sealed), Some(passphrase)) => {
                let sealed = hex::decode(sealed).context("its secret is damaged")?;
                let mut identity = age::scrypt::Identity::new(passphrase.clone());
                identity.set_max_work_factor(MAX_WORK_FACTOR);
                age::decrypt(&identity, &sealed).map_err(|e| match e {
                    age::DecryptError::DecryptionFailed | age::DecryptError::KeyDecryptionFailed => {
                        anyhow::anyhow!("the passphrase is wrong")
                    }
                    other => anyhow::Error::new(other).context("its secret is damaged"),
                })?
            }
        };
        let seed: [u8; 32] = seed.try_into().map_err(|_| anyhow::anyhow!("its secret is not 32 bytes"))?;
        let pair = KeyPair::from_seed(&seed);
        if pair.public_hex() != self.public {
            bail!("its secret is not that of its public key {}: the file was edited", self.public);
        }
        Ok(pair)
    }
}

/// Replaces a file whole: a crash leaves the old one or the new one.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let fail = || format!("cannot write {}", path.display());
    let partial = path.with_extension("partial");
    let mut file = std::fs::File::create(&partial).with_context(fail)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).with_context(fail)?;
    std::fs::rename(&partial, path).with_context(fail)?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::File::open(folder).and_then(|folder| folder.sync_all()).with_context(fail)
}
