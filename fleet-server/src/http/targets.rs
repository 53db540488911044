//! Targets under the names by which other clients of TUF ask: `bundles/<model>/<version>/<sha256>.bundle.json`.
//!
//! Our devices ask for blobs by digest alone. The reference client puts the digest before the last part of the path;
//! behind both names lies the same blob, for the same devices, but here only while the repository lists it.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Response};
use plimsoll_protocol::Digest;
use plimsoll_protocol::bundle::target_path;

use super::device::{authorise, send};
use super::listener::Peer;
use super::problem::{Answer, Failure};
use crate::app::App;

pub(super) async fn target(
    State(app): State<Arc<App>>,
    Extension(peer): Extension<Peer>,
    Path(path): Path<String>,
    headers: HeaderMap,
) -> Answer<Response<Body>> {
    authorise(&app, &peer)?;
    let asked = split(&path).filter(|(digest, name)| is_listed(&app, digest, name));
    let (digest, _) = asked.ok_or_else(|| {
        Failure::not_found(format!("the repository lists no {path}: <folder>/<sha256>.<file> is the form"))
    })?;
    send(&app, digest, &headers).await
}

fn is_listed(app: &App, digest: &Digest, name: &str) -> bool {
    let file = app.trust.fleet_file(name).is_some_and(|doc| doc.sha256 == *digest);
    let of =
        |b: &crate::store::BundleRecord| b.digest == *digest && target_path(&b.model, &b.version) == name;
    file || app.trust.bundles().iter().any(of)
}

/// `a/b/<sha256>.c` is `a/b/c` by this digest.
fn split(path: &str) -> Option<(Digest, String)> {
    let (folder, file) = path.rsplit_once('/').map_or(("", path), |(folder, file)| (folder, file));
    let (digest, file) = file.split_once('.')?;
    let name = if folder.is_empty() { file.to_owned() } else { format!("{folder}/{file}") };
    Some((digest.parse().ok()?, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_stands_before_the_last_part() {
        let hex = "ab".repeat(32);
        let digest: Digest = hex.parse().unwrap();
        for (path, name) in [
            (format!("bundles/m/1.0.0/{hex}.bundle.json"), Some("bundles/m/1.0.0/bundle.json")),
            (format!("{hex}.a"), Some("a")),
            ("bundles/m/1.0.0/bundle.json".into(), None),
            (format!("{hex}/a"), None),
            (String::new(), None),
        ] {
            assert_eq!(split(&path), name.map(|name| (digest, name.to_owned())), "{path}");
        }
    }
}
