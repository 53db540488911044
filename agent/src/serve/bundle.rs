//! `plimsoll-agent selftest` and `plimsoll-agent run --bundle`: a folder with a bundle, and no fleet.

use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use plimsoll_protocol::bundle::{FileEntry, MANIFEST_FILE, Manifest};
use plimsoll_protocol::{Digest, UnixMillis};
use plimsoll_runtime::{RuntimeError, SelfTestReport, Tensor, architecture, read_sample, self_test};
use tokio::sync::{oneshot, watch};

use super::control::{SelfTestLine, cut_reason};
use super::hosted::{Hosted, on_own_thread, read_manifest};
use super::http::{self, Bounds, Endpoint};
use super::listen::Listener;

/// Largest request body without a configuration: 16 rows of 3 x 512 x 512 FP32 pixels as JSON take about 100 MB; as
/// binary tensors 50. What one sends by hand is far smaller.
pub const DEFAULT_MAX_BODY: u64 = 64 * 1024 * 1024;
/// Elements that fit an example command line.
const EXAMPLE_ELEMENTS: usize = 256;

/// Runs the golden samples of the bundle in `dir` in this process. For the driver's child, and for people.
pub fn self_test_bundle(dir: &Path) -> Result<SelfTestReport, RuntimeError> {
    let manifest = read_manifest(dir, None)?;
    self_test(dir, &manifest, architecture())
}

/// What `selftest` prints, and its exit status.
pub fn self_test_line(dir: &Path) -> (SelfTestLine, u8) {
    match self_test_bundle(dir) {
        Ok(report) => {
            let status = if report.ok { 0 } else { 3 };
            (SelfTestLine::Report(report), status)
        }
        Err(error) => (SelfTestLine::Broken { error: cut_reason(error.to_string()) }, 4),
    }
}

/// Checks size and digest of every file that the manifest lists. Returns the digest of `bundle.json`.
///
/// Says that the folder is whole, not who made it: without a fleet there is no signature to check.
pub fn verify_files(dir: &Path) -> Result<(Manifest, Digest), RuntimeError> {
    let manifest = read_manifest(dir, None)?;
    manifest.files.iter().try_for_each(|file| verify_file(dir, file))?;
    let path = dir.join(MANIFEST_FILE);
    let bytes = std::fs::read(&path).map_err(|source| RuntimeError::Io { path, source })?;
    Ok((manifest, Digest::of(&bytes)))
}

fn verify_file(dir: &Path, entry: &FileEntry) -> Result<(), RuntimeError> {
    let path = dir.join(entry.path.as_str());
    let io = |source| RuntimeError::Io { path: path.clone(), source };
    let mut file = std::fs::File::open(&path).map_err(io)?;
    let size = file.metadata().map_err(io)?.len();
    if size != entry.size {
        return Err(RuntimeError::Refused(format!(
            "{} has {size} bytes, bundle.json says {}",
            path.display(),
            entry.size
        )));
    }
    let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match file.read(&mut buffer).map_err(io)? {
            0 => break,
            read => hash.update(&buffer[..read]),
        }
    }
    if hash.finish().as_ref() != entry.sha256.as_bytes() {
        return Err(RuntimeError::Refused(format!(
            "{} is not the file that bundle.json lists",
            path.display()
        )));
    }
    Ok(())
}

/// Serves the bundle in `dir` until `stop` resolves. `ready` gets the lines to print: address and an example.
pub async fn serve_bundle(
    dir: &Path,
    listen: SocketAddr,
    now: UnixMillis,
    nonce: u32,
    ready: impl FnOnce(SocketAddr, String),
    stop: impl Future<Output = ()>,
) -> Result<(), RuntimeError> {
    let (manifest, digest) = verify_files(dir)?;
    let (done, loaded) = oneshot::channel();
    let folder = dir.to_owned();
    on_own_thread("load", move || {
        let fault = Box::new(|reason: String| tracing::error!(%reason, "the model crashed"));
        let _ = done.send(Hosted::load(&folder, digest, 0, fault));
    })?;
    let hosted =
        loaded.await.map_err(|_| RuntimeError::Run("the thread that loaded the model panicked".into()))??;
    let example = example_request(dir, &manifest);
    let endpoint =
        Arc::new(Endpoint::new(env!("CARGO_PKG_VERSION").into(), Bounds::of_body(DEFAULT_MAX_BODY), nonce));
    {
        let mut registry = endpoint.registry();
        registry.add(hosted);
        registry.serve(&manifest.model, digest, now);
    }
    let (listener, addr) = Listener::tcp(listen).await.map_err(RuntimeError::Run)?;
    let (stopping, stopped) = watch::channel(false);
    let accept = tokio::spawn(http::accept(listener, endpoint, stopped));
    ready(addr, example_command(addr, &manifest, &example));
    stop.await;
    stopping.send_replace(true);
    let _ = accept.await; // ends within its own limit
    Ok(())
}

/// The first golden sample as a request, when it fits a command line.
fn example_request(dir: &Path, manifest: &Manifest) -> Option<String> {
    let sample = manifest.golden.samples.first()?;
    let (inputs, _) = read_sample(dir, sample).ok()?;
    if inputs.iter().map(Tensor::len).sum::<usize>() > EXAMPLE_ELEMENTS {
        return None;
    }
    let inputs: Option<Vec<serde_json::Value>> = manifest
        .inputs
        .iter()
        .zip(&inputs)
        .map(|(spec, tensor)| {
            spec.datatype.width()?; // texts would need quoting for the shell as well
            let numbers: Vec<f32> = tensor.to_f32();
            Some(serde_json::json!({
                "name": spec.name, "datatype": spec.datatype, "shape": tensor.shape(), "data": numbers,
            }))
        })
        .collect();
    Some(serde_json::json!({ "inputs": inputs? }).to_string())
}

fn example_command(addr: SocketAddr, manifest: &Manifest, example: &Option<String>) -> String {
    let url = format!("http://{addr}/v2/models/{}", manifest.model);
    match example {
        Some(body) => format!("curl -s {url}/infer -d '{body}'"),
        None => {
            format!("curl -s {url}    # its inputs are larger than a command line; POST them to {url}/infer")
        }
    }
}
