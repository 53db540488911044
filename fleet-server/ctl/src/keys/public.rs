//! Public keys as people give them: digits, or a file that some program wrote.

use std::path::Path;

use anyhow::{Context, Result, bail};
use ed25519_dalek::VerifyingKey;
use ed25519_dalek::pkcs8::DecodePublicKey;
use plimsoll_protocol::trust::Key;
use serde_json::Value;

use super::file::KeyFile;
use crate::failure::Usage;

/// A key file of 4 KiB holds any key of ours ten times over.
const MAX_FILE: u64 = 4096;

/// Reads a public key: 64 hexadecimal digits, or a file with them, with a TUF key (`NAME.pub`), with a PEM public key,
/// or a key file of ours. Ed25519 only, because devices verify nothing else.
pub fn read(text: &str) -> Result<Key> {
    if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Key::from_hex(&text.to_ascii_lowercase()).map_err(|e| Usage(e).into());
    }
    let path = Path::new(text);
    let length = std::fs::metadata(path).map_err(|e| {
        Usage(format!(
            "{text} is neither a public key (64 hexadecimal digits) nor a file that can be read: {e}"
        ))
    })?;
    if !length.is_file() || length.len() > MAX_FILE {
        bail!(Usage(format!("{text} is not a public key: not a file of at most {MAX_FILE} bytes")));
    }
    let contents = std::fs::read_to_string(path).with_context(|| format!("cannot read {text}"))?;
    let key = parse(path, contents.trim())?;
    if key.public().is_none() {
        bail!(Usage(format!(
            "{text} holds a key of kind {} ({}): only Ed25519 keys can sign here, devices verify no other",
            key.keytype, key.scheme
        )));
    }
    Ok(key)
}

fn parse(path: &Path, text: &str) -> Result<Key> {
    let name = path.display();
    if text.starts_with("-----BEGIN") {
        let key = VerifyingKey::from_public_key_pem(text)
            .map_err(|e| Usage(format!("{name} is not a PEM public key of Ed25519: {e}")))?;
        return Ok(Key::ed25519(key.as_bytes()));
    }
    match serde_json::from_str::<Value>(text) {
        Ok(value) if value.get("plimsoll_key").is_some() => KeyFile::read(path)?.key(),
        Ok(value) if value.get("keyval").is_some() => {
            serde_json::from_value(value).map_err(|e| Usage(format!("{name} is not a TUF key: {e}")).into())
        }
        _ => Key::from_hex(text).map_err(|e| Usage(format!("{name}: {e}")).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Public key of RFC 8032, test 1, as `openssl pkey -pubout` writes it.
    const PEM: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n";
    const HEX: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";

    #[test]
    fn one_key_in_every_form_is_the_same_key() {
        let dir = tempfile::tempdir().unwrap();
        let tuf = serde_json::to_string(&Key::from_hex(HEX).unwrap().named("ann")).unwrap();
        for (name, text) in [("a.pem", PEM), ("a.hex", HEX), ("a.pub", tuf.as_str())] {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            let key = read(path.to_str().unwrap()).unwrap();
            assert_eq!(key.id(), read(HEX).unwrap().id(), "{name}");
        }
        assert_eq!(read(dir.path().join("a.pub").to_str().unwrap()).unwrap().name(), Some("ann"));
    }

    #[test]
    fn what_is_no_ed25519_key_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let rsa = r#"{"keytype":"rsa","scheme":"rsassa-pss-sha256","keyval":{"public":"x"}}"#;
        for (name, text, expect) in [
            ("rsa.pub", rsa, "only Ed25519 keys"),
            (
                "bad.pem",
                "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
                "not a PEM public key",
            ),
            ("text", "hello", "64 hexadecimal digits"),
        ] {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            let error = read(path.to_str().unwrap()).unwrap_err().to_string();
            assert!(error.contains(expect) && error.contains(name), "{error}");
        }
        assert!(read("nowhere.pub").unwrap_err().to_string().contains("nowhere.pub"));
    }
}
