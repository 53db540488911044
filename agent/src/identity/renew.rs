//! The next certificate: asked for with the present one, expired or not.

use std::time::Duration;

use plimsoll_protocol::wire::v1::{RENEW_PATH, RenewResponse};

use super::Identity;
use super::enroll::{certified, client, problem_detail, read_limited};
use crate::clock::Clock;
use crate::tls::{self, Trouble};

/// A renewal that did not happen. The present certificate stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenewError {
    /// What was tried, why it failed, what to do.
    pub text: String,
    /// What the server asked for.
    pub retry_after: Option<Duration>,
    /// When it was TLS.
    pub trouble: Option<Trouble>,
}

/// Asks the server to certify this device's key again. Gives back the identity with the new certificate; does not
/// store it.
pub async fn renew(identity: &Identity, clock: &Clock) -> Result<Identity, RenewError> {
    let url = format!("{}{RENEW_PATH}", identity.https);
    let plain = |why: String| RenewError {
        text: format!("the certificate was not renewed at {url}: {why}"),
        retry_after: None,
        trouble: None,
    };
    let unreachable = |error: reqwest::Error| {
        let trouble = tls::trouble(&error);
        RenewError { trouble, ..plain(crate::causes(&error.without_url())) }
    };
    let tls = tls::mutual(identity, clock).map_err(|e| plain(crate::causes(&e)))?;
    let client = client(tls).map_err(unreachable)?;
    let response = client.post(&url).send().await.map_err(unreachable)?;
    let status = response.status();
    let retry_after = response.headers().get(reqwest::header::RETRY_AFTER);
    let retry_after = retry_after.and_then(|v| v.to_str().ok()?.parse().ok()).map(Duration::from_secs);
    let body = read_limited(response).await.map_err(plain)?;
    if !status.is_success() {
        return Err(RenewError { retry_after, ..plain(format!("{} ({status})", problem_detail(&body))) });
    }
    let answer: RenewResponse = serde_json::from_slice(&body).map_err(|e| plain(e.to_string()))?;
    certified(&identity.key_pem, &identity.who, &answer.certificate_pem).map_err(plain)?;
    Ok(Identity { certificate_pem: answer.certificate_pem, ..identity.clone() })
}
