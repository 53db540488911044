//! Who may say what a device runs: repositories of The Update Framework (TUF 1.0), verified without doing I/O.
//!
//! *Bytes in, next request out.* [`Client`] is the client workflow as a state machine: it says which document it
//! wants next ([`Client::next`]), is given the bytes or their absence ([`Client::supply`]), and answers with what
//! the caller must persist before going on. It never reads a clock, a file or a socket, so a device, the server
//! that checks an upload, and a test drive the very same code.
//!
//! Top-down: [`Client`] walks root, timestamp, snapshot and targets, then the delegations that may speak for one
//! path; it ends in a [`SignedTarget`], by its SHA-256 a [`VerifiedTarget`], which admits exactly the bytes that were signed and turns them into
//! [`Verified`], a type that nobody else can make. [`repository`] is the signing side.
//!
//! Rules that are implemented once, here:
//! - a threshold counts distinct *public keys*, not key ids (the threshold rule lives in one private function);
//! - signatures are over the canonical form of the value that was received, so unknown fields stay under them;
//!   Ed25519 is verified strictly, and other schemes count only for a caller that names them ([`Schemes`]);
//! - what is refused is never handed out for storing, and a refusal leaves the client as it was;
//! - a document from the store is trusted no more than one from the network: it is verified again, a delegated
//!   role against the delegator of the present look-up.

mod canonical;
mod client;
mod digests;
#[cfg(feature = "ecdsa-rsa")]
mod ecdsa_rsa;
mod error;
mod key;
mod pattern;
pub mod repository;
mod schema;
mod scheme;
mod target;
mod verify;

pub use canonical::canonical;
pub use client::{Client, Fetch, Response, Step, Store, TrustedDocs};
pub use error::TrustError;
pub use key::{Key, KeyId, KeyPair, Signer};
pub use schema::{
    DelegatedRole, Delegations, Doc, FileMeta, RoleKeys, RoleType, Root, Snapshot, TargetMeta, Targets,
    Timestamp, file_name, role_file,
};
pub use scheme::{Scheme, Schemes};
pub use target::{SignedTarget, TargetCheck, Verified, VerifiedTarget};

/// Path of the fleet's certificate authorities (PEM) in the repository; top-level targets sign for it.
pub const FLEET_CA: &str = "fleet/ca.pem";
/// First part of the paths that only the top-level targets may sign for: what is of the fleet and of no model.
pub const FLEET_FILES: &str = "fleet/";
/// Largest file of the fleet: 30 certificates of 2 KiB, of which a rotation needs two.
pub const MAX_FLEET_FILE_BYTES: u64 = 64 * 1024;
/// Largest root document: 1,000 keys of ~200 bytes and their signatures fit five times over.
pub const MAX_ROOT_BYTES: u64 = 1024 * 1024;
/// Largest timestamp document: one line about the snapshot and a few signatures are under 1 KiB; 16 times that.
pub const MAX_TIMESTAMP_BYTES: u64 = 16 * 1024;
/// Largest snapshot document: ~150 bytes a role, so about 7,000 models.
pub const MAX_SNAPSHOT_BYTES: u64 = 1024 * 1024;
/// Largest targets document, delegated ones included: ~300 bytes a bundle, so about 35,000 versions of a model.
pub const MAX_TARGETS_BYTES: u64 = 10 * 1024 * 1024;
/// Most root versions walked in one refresh: a rotation a month for 85 years. Ends an endless chain.
pub const MAX_ROOT_VERSIONS: u32 = 1024;
/// Most delegated roles visited for one path. A bundle's path is delegated once; 32 leaves room for shared trees
/// and bounds a look-up to 32 documents.
pub const MAX_LOOKUP_ROLES: usize = 32;
/// Deepest chain of delegations followed: targets, organisation, team, model are three.
pub const MAX_DELEGATION_DEPTH: usize = 8;

#[cfg(test)]
mod tests;
