//! What an attacker, or a careless colleague with the real keys, could make.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use plimsoll_protocol::Digest;
use plimsoll_protocol::api::{TrustState, TrustUpload};
use plimsoll_protocol::trust::repository::{ROLE_LIFETIME_S, sign};
use plimsoll_protocol::trust::{Doc, KeyPair, Targets};
use plimsoll_tests::{MODEL, Site};
use serde_json::{Value, json};

/// The model's role as it is published, and the key that may sign it.
pub struct Forge {
    /// What is published.
    pub role: Doc<Targets>,
    /// The release key.
    pub key: KeyPair,
}

impl Forge {
    /// Reads the role from the server and the key from the owner's folder.
    pub async fn new(site: &Site) -> Result<Self> {
        let state: TrustState = site.fleet.api.get("trust").await?;
        let role = state.roles.get(MODEL).context("the role is not published")?;
        let role = Doc::read_unverified(role).map_err(anyhow::Error::msg)?;
        let file = std::fs::read(site.fleet.dir.join("keys/release.key")).context("keys/release.key")?;
        let file: Value = serde_json::from_slice(&file)?;
        let seed = file["secret"]["unencrypted"].as_str().context("the release key is encrypted")?;
        let mut bytes = [0; 32];
        hex::decode_to_slice(seed, &mut bytes)?;
        Ok(Self { role, key: KeyPair::from_seed(&bytes) })
    }

    /// The published role under another version number and key.
    pub fn sign(&self, version: u64, key: &KeyPair) -> Result<Value> {
        sign_role(self.role.body.clone(), version, self.role.expires, key)
    }

    /// Uploads a role, which the server must refuse with this status; gives back its words.
    pub async fn refused(&self, site: &Site, role: &Value, status: u16) -> Result<String> {
        let upload =
            TrustUpload { roles: [(MODEL.to_owned(), role.clone())].into(), ..TrustUpload::default() };
        let (got, words) = site.fleet.api.put("trust/metadata", serde_json::to_vec(&upload)?).await?;
        ensure!(got == status, "the server answered {got}: {words}");
        Ok(words)
    }

    /// Uploads a bundle's files and signs for its manifest with the real key, without any of the tool's checks.
    pub async fn publish_signed(
        &self,
        site: &Site,
        bundle: &Path,
        version: &str,
        status: u16,
    ) -> Result<String> {
        let manifest = std::fs::read(bundle.join("bundle.json"))?;
        for bytes in [manifest.clone(), std::fs::read(bundle.join("model.onnx"))?] {
            let path = format!("blobs/sha256/{}", Digest::of(&bytes));
            let (got, words) = site.fleet.api.put(&path, bytes).await?;
            ensure!((200..300).contains(&got), "{path}: {got}: {words}");
        }
        let mut body = self.role.body.clone();
        body.add_bundle(&MODEL.parse()?, &version.parse()?, &manifest);
        let role = sign_role(body, self.role.version + 1, self.role.expires + ROLE_LIFETIME_S, &self.key)?;
        self.refused(site, &role, status).await
    }
}

fn sign_role(body: Targets, version: u64, expires: i64, key: &KeyPair) -> Result<Value> {
    Ok(sign(&Doc::new(version, None, expires, body), &[key])?)
}

/// Changes one digit of a signature.
pub fn flip_signature(envelope: &mut Value) -> Result<()> {
    let sig = &mut envelope["signatures"][0]["sig"];
    let text = sig.as_str().context("no signature")?;
    let first = if text.starts_with('0') { "1" } else { "0" };
    *sig = json!(format!("{first}{}", text.get(1..).unwrap_or_default()));
    Ok(())
}

/// Changes a bundle's manifest.
pub fn edit(bundle: &Path, change: impl FnOnce(&mut Value)) -> Result<()> {
    let path = bundle.join("bundle.json");
    let mut manifest: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    change(&mut manifest);
    std::fs::write(path, serde_json::to_vec(&manifest)?)?;
    Ok(())
}

/// Makes the manifest agree with the files again.
pub fn redigest(bundle: &Path) -> Result<()> {
    let path = bundle.join("bundle.json");
    let mut manifest: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    for entry in manifest["files"].as_array_mut().context("no files")? {
        let name = entry["path"].as_str().context("a file without a path")?;
        let bytes = std::fs::read(bundle.join(name))?;
        entry["size"] = json!(bytes.len());
        entry["sha256"] = json!(Digest::of(&bytes));
    }
    std::fs::write(path, serde_json::to_vec(&manifest)?)?;
    Ok(())
}

/// Gives two golden samples each other's expected output; the manifest agrees with the files.
pub fn swap_expected_outputs(bundle: &Path) -> Result<()> {
    let output = |n: u32| bundle.join(format!("golden/test_data_set_{n}/output_0.pb"));
    let (first, second) = (std::fs::read(output(0))?, std::fs::read(output(1))?);
    ensure!(first != second, "the two samples expect the same");
    std::fs::write(output(0), second)?;
    std::fs::write(output(1), first)?;
    redigest(bundle)
}

/// Changes one byte of a published file on the server's disk; gives back what mends it.
pub fn tamper_blob(site: &Site, bundle: &Path, file: &str) -> Result<impl FnOnce() -> Result<()> + use<>> {
    let digest = Digest::of(&std::fs::read(bundle.join(file))?).to_string();
    let path = blobs(site).join(digest.get(..2).unwrap_or_default()).join(&digest);
    let good = std::fs::read(&path).with_context(|| path.display().to_string())?;
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    std::fs::write(&path, bad)?;
    Ok(move || Ok(std::fs::write(&path, good)?))
}

/// Changes the signature of the newest timestamp on the server's disk; gives back what mends it.
pub fn tamper_timestamp(site: &Site) -> Result<impl FnOnce() -> Result<()> + use<>> {
    let mut newest: Option<(u64, PathBuf, Vec<u8>)> = None;
    for folder in std::fs::read_dir(blobs(site))? {
        for file in std::fs::read_dir(folder?.path())? {
            let path = file?.path();
            let bytes = std::fs::read(&path)?;
            let Ok(value) = serde_json::from_slice::<Value>(&bytes) else { continue };
            let version = value["signed"]["version"].as_u64().unwrap_or(0);
            if value["signed"]["_type"] == "timestamp" && newest.as_ref().is_none_or(|(v, ..)| *v < version) {
                newest = Some((version, path, bytes));
            }
        }
    }
    let (_, path, good) = newest.context("the server stores no timestamp")?;
    let mut value: Value = serde_json::from_slice(&good)?;
    flip_signature(&mut value)?;
    std::fs::write(&path, serde_json::to_vec(&value)?)?;
    Ok(move || Ok(std::fs::write(&path, good)?))
}

fn blobs(site: &Site) -> PathBuf {
    site.fleet.dir.join("server/blobs/sha256")
}
