//! How a command fails, so that a script can tell a refusal from an accident.

use plimsoll_protocol::archive::ArchiveError;
use plimsoll_protocol::bundle::ManifestError;
use plimsoll_protocol::trust::TrustError;
use plimsoll_runtime::RuntimeError;

use crate::api::ApiError;

/// Something went wrong.
pub const FAILED: u8 = 1;
/// The command line was wrong.
pub const USAGE: u8 = 2;
/// A gate or a verification said no: bad signature, wrong digest, golden samples that differ, a rollout rolled back.
pub const REFUSED: u8 = 3;

/// A gate or a verification said no.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// The arguments contradict each other or the world.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// A child of this command failed with this exit code, and has told why.
#[derive(Debug, thiserror::Error)]
#[error("")]
pub struct Told(pub u8);

/// The exit code of an error: that of the first cause that has one.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    error.chain().find_map(code_of).unwrap_or(FAILED)
}

fn code_of(cause: &(dyn std::error::Error + 'static)) -> Option<u8> {
    if cause.is::<Usage>() {
        return Some(USAGE);
    }
    if let Some(Told(code)) = cause.downcast_ref() {
        return Some(*code);
    }
    if let Some(api) = cause.downcast_ref::<ApiError>() {
        return Some(if api.is_refusal() { REFUSED } else { FAILED });
    }
    if let Some(runtime) = cause.downcast_ref::<RuntimeError>() {
        return Some(if matches!(runtime, RuntimeError::Io { .. }) { FAILED } else { REFUSED });
    }
    let refused = matches!(cause.downcast_ref(), Some(ArchiveError::Refused(_)))
        || cause.is::<Refused>()
        || cause.is::<TrustError>()
        || cause.is::<ManifestError>();
    refused.then_some(REFUSED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn the_first_cause_with_a_code_decides() {
        let refused = Err::<(), _>(Refused("no".into())).context("while packing").unwrap_err();
        assert_eq!(exit_code(&refused), REFUSED);
        assert_eq!(exit_code(&anyhow::Error::from(TrustError::NoRoot)), REFUSED);
        assert_eq!(exit_code(&Usage("x".into()).into()), USAGE);
        assert_eq!(exit_code(&anyhow::anyhow!("disk")), FAILED);
    }
}
