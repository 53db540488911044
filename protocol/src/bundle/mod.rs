//! A model bundle: a directory of files and the `bundle.json` that lists and describes them.
//!
//! The bundle is known by the SHA-256 of its `bundle.json`, which a TUF target signs; every file is known by the
//! digest listed there, so the whole directory hangs on one signature and every size is known before a byte is
//! fetched.

mod manifest;
mod path;

pub use manifest::*;
pub use path::{PathError, SafePath};

/// Name of the manifest inside a bundle.
pub const MANIFEST_FILE: &str = "bundle.json";

/// Path of a bundle's target in the trust repository: `bundles/<model>/<version>/bundle.json`.
pub fn target_path(model: &crate::ModelName, version: &semver::Version) -> String {
    format!("bundles/{model}/{version}/{MANIFEST_FILE}")
}
