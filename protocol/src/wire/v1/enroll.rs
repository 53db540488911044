//! Enrolment and renewal: how a device gets its certificate, and the next one. Over HTTPS.
//!
//! Enrolment is the one call without a client certificate; renewal is the one call that takes an expired one. A
//! renewal has no body: the TLS handshake proves that the device has the private key, the registry knows that key,
//! and the certificate is issued for it again. The key stays the same on purpose. A new key would have to become the
//! registered one on two machines in one instant, and a power cut between the two would cost a visit; whoever wants
//! another key enrols again (`plimsoll device readmit --new-key`).

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{DeviceId, DeviceIdentity, Digest};

/// Path of the call.
pub const ENROLL_PATH: &str = "/v1/enroll";
/// Path of the renewal, `POST` without a body.
pub const RENEW_PATH: &str = "/v1/renew";
/// Path of the fleet's authorities as a file. Public: the signed metadata name its digest, and a device that does
/// not know the server's authority yet has nothing to show.
pub const FLEET_CA_PATH: &str = "/fleet/ca.pem";

/// A join token: which server to believe (the fingerprint of its CA certificate) and the right to enrol there.
/// Text form: `plj1.<id>.<secret>.<sha256 of the CA certificate's DER>`. The secret is never logged or shown.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Public part, shown in lists and logs.
    pub id: String,
    /// 32 hexadecimal digits.
    pub secret: String,
    /// SHA-256 of the DER of the CA certificate that the server's chain must lead to.
    pub ca: Digest,
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({}, secret not shown)", self.id)
    }
}

impl JoinToken {
    /// The text that an operator carries to the device. Contains the secret.
    pub fn reveal(&self) -> String {
        format!("plj1.{}.{}.{}", self.id, self.secret, self.ca)
    }
}

/// A text that is not a join token. Does not repeat the text, which may hold a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is not a join token: {0}; `plimsoll device token` makes one (plj1.<id>.<secret>.<fingerprint>)"
)]
pub struct TokenError(pub &'static str);

impl FromStr for JoinToken {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let parts: Vec<&str> = text.trim().split('.').collect();
        let [tag, id, secret, ca] = parts.as_slice() else {
            return Err(TokenError("it does not have four parts between dots"));
        };
        if *tag != "plj1" {
            return Err(TokenError("it does not start with plj1"));
        }
        let hex =
            |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase());
        if !hex(id) || id.len() > 32 || !hex(secret) || secret.len() != 32 {
            return Err(TokenError("its id or secret is damaged"));
        }
        let ca = ca.parse().map_err(|_| TokenError("its CA fingerprint is damaged"))?;
        Ok(Self { id: (*id).to_owned(), secret: (*secret).to_owned(), ca })
    }
}

/// `POST /v1/enroll`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrollRequest {
    /// [`JoinToken::id`].
    pub token_id: String,
    /// [`JoinToken::secret`].
    pub token_secret: String,
    /// The name it asks for.
    pub device: DeviceId,
    /// PEM of a certificate request for the key made on the device.
    pub csr_pem: String,
    /// `x86_64`, `aarch64`, `armv7`.
    pub arch: String,
    /// Free labels from its configuration.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// What a device gets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EnrollResponse {
    /// Who it is from now on.
    pub identity: DeviceIdentity,
    /// PEM: its certificate, then the CA's.
    pub certificate_pem: String,
    /// PEM of the fleet's CA.
    pub ca_pem: String,
    /// The trust repository's root metadata, as stored (version 1 or any later one).
    pub tuf_root: serde_json::Value,
    /// `host:port` of MQTT; host is what the certificate of the server carries.
    pub mqtt: String,
    /// `https://host:port` of everything else a device calls.
    pub https: String,
}

/// What a device gets for its renewal. The authorities that it trusts do not come this way: they are signed by the
/// fleet's owner, and a server cannot name others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewResponse {
    /// PEM: its certificate, then the CA's.
    pub certificate_pem: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_round_trips_and_never_shows_its_secret() {
        let secret = "0123456789abcdef0123456789abcdef";
        let token = JoinToken { id: "a1b2".into(), secret: secret.into(), ca: Digest::of(b"ca") };
        assert_eq!(token.reveal().parse::<JoinToken>().unwrap(), token);
        assert!(!format!("{token:?}").contains(secret));
    }

    #[test]
    fn a_damaged_token_is_refused_without_repeating_it() {
        let good = JoinToken { id: "a1".into(), secret: "0".repeat(32), ca: Digest::of(b"ca") }.reveal();
        for bad in
            ["", "plj1", "x", &good.replace("plj1", "plj2"), &good[..good.len() - 1], &format!("{good}.x")]
        {
            let error = bad.parse::<JoinToken>().unwrap_err().to_string();
            assert!(!error.contains(&"0".repeat(32)), "{error}");
        }
    }
}
