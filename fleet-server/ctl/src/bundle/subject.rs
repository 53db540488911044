//! What a command is about, however it is named: a bundle's folder, an export, or `MODEL@VERSION` on the server.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::{Context, Result, bail};
use plimsoll_protocol::api::ModelVersion;
use plimsoll_protocol::archive::Reader;
use plimsoll_protocol::bundle::{MAX_MANIFEST_BYTES, Manifest};
use plimsoll_protocol::{Digest, ModelName};

use super::files::LocalBundle;
use crate::api::Api;
use crate::failure::{Refused, Usage};

/// A manifest and where it came from. Nobody has vouched for it.
#[derive(Debug)]
pub struct Subject {
    /// What it says.
    pub manifest: Manifest,
    /// Of its bytes.
    pub digest: Digest,
}

/// A version on the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// Model.
    pub model: ModelName,
    /// Version.
    pub version: semver::Version,
}

impl std::str::FromStr for Named {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let form = || format!("{text:?} is not of the form MODEL@VERSION, meter-reader@1.2.0 for example");
        let (model, version) = text.split_once('@').ok_or_else(form)?;
        let model = ModelName::new(model).map_err(|e| format!("{}: {e}", form()))?;
        let version = version.parse().map_err(|e| format!("{}: {e}", form()))?;
        Ok(Self { model, version })
    }
}

impl std::fmt::Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.model, self.version)
    }
}

/// Reads the manifest of a folder, an export or a published version.
pub async fn read(text: &str, api: impl Fn() -> Result<Api>) -> Result<Subject> {
    let path = Path::new(text);
    if path.is_dir() {
        let LocalBundle { manifest, digest, .. } = LocalBundle::open(path)?;
        return Ok(Subject { manifest, digest });
    }
    if path.is_file() {
        return exported(path).with_context(|| path.display().to_string());
    }
    let named: Named = text
        .parse()
        .map_err(|e| Usage(format!("{text} is neither a bundle's folder nor an export here, and {e}")))?;
    published(&named, &api()?).await
}

fn exported(path: &Path) -> Result<Subject> {
    let (_, _, mut archive) = Reader::open(BufReader::new(File::open(path)?))?;
    let (digest, bytes) = manifest(&mut archive)?;
    parse(digest, &bytes)
}

/// The first blob of an export, which is the manifest; its bytes are those that its name promises.
pub fn manifest(archive: &mut Reader<impl std::io::Read>) -> Result<(Digest, Vec<u8>)> {
    let Some((digest, size)) = archive.next_blob()? else { bail!(Refused("it holds no bundle".into())) };
    if size > MAX_MANIFEST_BYTES {
        bail!(Refused(format!("its bundle.json has {size} bytes; at most {MAX_MANIFEST_BYTES} are read")));
    }
    let (mut bytes, mut part) = (Vec::new(), [0; 4096]);
    loop {
        match archive.read(&mut part)? {
            0 => break,
            got => bytes.extend_from_slice(part.get(..got).unwrap_or_default()),
        }
    }
    Ok((digest, bytes))
}

async fn published(named: &Named, api: &Api) -> Result<Subject> {
    let versions: Vec<ModelVersion> = api.get("models").await?;
    let found = versions.iter().find(|v| v.model == named.model && v.version == named.version);
    let Some(found) = found else {
        bail!(Usage(format!("{named} is not published; `plimsoll bundle list` shows what is")));
    };
    let bytes = api.bytes(&format!("blobs/sha256/{}", found.digest)).await?;
    parse(found.digest, &bytes).with_context(|| named.to_string())
}

fn parse(digest: Digest, bytes: &[u8]) -> Result<Subject> {
    if Digest::of(bytes) != digest {
        bail!(Refused(format!("its bundle.json has digest {} instead of {digest}", Digest::of(bytes))));
    }
    Ok(Subject { manifest: Manifest::parse(bytes)?, digest })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_on_the_server_is_named_by_model_and_version() {
        let named: Named = "meter-reader@1.2.0".parse().unwrap();
        assert_eq!(named.to_string(), "meter-reader@1.2.0");
        for bad in ["meter", "meter@", "@1.0.0", "meter@1", "../x@1.0.0"] {
            let words = bad.parse::<Named>().unwrap_err();
            assert!(words.contains("MODEL@VERSION"), "{words}");
        }
    }
}
