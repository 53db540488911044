//! Enrolment: the device makes its own key, asks for a certificate with a join token, and stores what it gets.
//!
//! The token carries the fingerprint of the server's CA, so the first connection is as strict as all later ones:
//! no "trust on first use". The private key never leaves the device; the token is neither logged nor stored.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

use plimsoll_protocol::wire::v1::{ENROLL_PATH, EnrollRequest, EnrollResponse, JoinToken};
use plimsoll_protocol::{DeviceId, DeviceIdentity};

use super::{Identity, IdentityError};
use crate::causes;
use crate::files::{self, FileError};
use crate::tls;

/// Longest answer read: certificate, CA and a TUF root of at most 1 MiB.
const MAX_ANSWER: usize = 2 * 1024 * 1024;
/// An enrolment, or a renewal, is one round trip and one signature; a minute is a hundred times that on a slow link.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What `plimsoll-agent enroll` was asked.
#[derive(Debug)]
pub struct EnrollOptions {
    /// `https://host:port`.
    pub server: String,
    /// The join token.
    pub token: JoinToken,
    /// The name to ask for.
    pub device: DeviceId,
    /// Labels to bring along.
    pub labels: BTreeMap<String, String>,
    /// Where to store it.
    pub state: PathBuf,
    /// Replace an existing enrolment.
    pub force: bool,
}

/// An enrolment that failed. Nothing was stored.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// One exists.
    #[error("{0} already holds an enrolment; --force replaces it (the device then counts as a new one)")]
    Exists(PathBuf),
    /// The key or the request could not be made.
    #[error("cannot make the device's key or certificate request")]
    Key(#[from] rcgen::Error),
    /// No TLS configuration.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// The server was not reached, or is not the one that the token names.
    #[error(
        "cannot enrol at {server}: {why}. Check the address, the clock of this device, and that the token was made \
         by this server (it carries the fingerprint of the server's CA)"
    )]
    Unreachable {
        /// Address tried.
        server: String,
        /// The chain of causes.
        why: String,
    },
    /// The server said no.
    #[error("{server} refused the enrolment of {device} (HTTP {status}): {detail}")]
    Refused {
        /// Address.
        server: String,
        /// Name asked for.
        device: DeviceId,
        /// HTTP status.
        status: u16,
        /// The server's words.
        detail: String,
    },
    /// The answer is not what was asked for.
    #[error("the answer of {server} is not acceptable: {why}")]
    Answer {
        /// Address.
        server: String,
        /// What is wrong.
        why: String,
    },
    /// Not stored.
    #[error(transparent)]
    Store(#[from] IdentityError),
    /// The state folder could not be made.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Enrols and stores the identity. On an error nothing is stored.
pub async fn enroll(options: EnrollOptions) -> Result<Identity, EnrollError> {
    if Identity::exists(&options.state) && !options.force {
        return Err(EnrollError::Exists(options.state));
    }
    files::create_private_dir(&options.state)?;
    let key = KeyPair::generate()?;
    let request = EnrollRequest {
        token_id: options.token.id.clone(),
        token_secret: options.token.secret.clone(),
        device: options.device.clone(),
        csr_pem: certificate_request(&key, &options.device)?,
        arch: crate::arch().to_owned(),
        labels: options.labels.clone(),
    };
    let server = options.server.trim_end_matches('/').to_owned();
    let answer = call(&server, &options, &request).await?;
    let refuse = |why: String| EnrollError::Answer { server: server.clone(), why };
    check_answer(&options, &key, &answer).map_err(refuse)?;
    let identity = Identity {
        who: answer.identity,
        https: answer.https.trim_end_matches('/').to_owned(),
        mqtt: answer.mqtt,
        certificate_pem: answer.certificate_pem,
        ca_pem: answer.ca_pem,
        key_pem: key.serialize_pem(),
    };
    identity.mqtt_address().map_err(|e| refuse(e.to_string()))?;
    identity.store(&options.state, &answer.tuf_root)?;
    Ok(identity)
}

fn certificate_request(key: &KeyPair, device: &DeviceId) -> Result<String, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, device.as_str());
    params.serialize_request(key)?.pem()
}

async fn call(
    server: &str,
    options: &EnrollOptions,
    request: &EnrollRequest,
) -> Result<EnrollResponse, EnrollError> {
    let unreachable =
        |e: reqwest::Error| EnrollError::Unreachable { server: server.to_owned(), why: causes(&e) };
    if !server.starts_with("https://") {
        let why = "the address must start with https://".to_owned();
        return Err(EnrollError::Unreachable { server: server.to_owned(), why });
    }
    let client = client(tls::pinned(options.token.ca)?).map_err(unreachable)?;
    let response =
        client.post(format!("{server}{ENROLL_PATH}")).json(request).send().await.map_err(unreachable)?;
    let status = response.status();
    let body =
        read_limited(response).await.map_err(|why| EnrollError::Answer { server: server.to_owned(), why })?;
    if !status.is_success() {
        return Err(EnrollError::Refused {
            server: server.to_owned(),
            device: options.device.clone(),
            status: status.as_u16(),
            detail: problem_detail(&body),
        });
    }
    serde_json::from_slice(&body)
        .map_err(|e| EnrollError::Answer { server: server.to_owned(), why: e.to_string() })
}

/// For the one call of an enrolment or a renewal.
pub(super) fn client(tls: rustls::ClientConfig) -> reqwest::Result<reqwest::Client> {
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .timeout(TIMEOUT)
        .https_only(true)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()
}

pub(super) async fn read_limited(mut response: reqwest::Response) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| causes(&e))? {
        if body.len() + chunk.len() > MAX_ANSWER {
            return Err(format!("it is longer than {MAX_ANSWER} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The `detail` of a problem document, or the first 300 characters of whatever came.
pub(super) fn problem_detail(body: &[u8]) -> String {
    let parsed = serde_json::from_slice::<plimsoll_protocol::api::Problem>(body);
    match parsed {
        Ok(problem) => problem.detail,
        Err(_) => String::from_utf8_lossy(body).chars().take(300).collect(),
    }
}

/// The answer must be for this key, this device, this CA: a confused server is found out here, not in the field.
fn check_answer(options: &EnrollOptions, key: &KeyPair, answer: &EnrollResponse) -> Result<(), String> {
    if answer.identity.device != options.device {
        return Err(format!("it names the device {}, asked was {}", answer.identity.device, options.device));
    }
    let ca = tls::certificates("the CA", answer.ca_pem.as_bytes()).map_err(|e| e.to_string())?;
    if !ca.iter().any(|c| tls::fingerprint(c) == options.token.ca) {
        return Err("its CA is not the one that the token names".into());
    }
    certified(&key.serialize_pem(), &answer.identity, &answer.certificate_pem)?;
    if !answer.tuf_root.is_object() {
        return Err("it carries no trust root; the operator runs `plimsoll trust init` first".into());
    }
    Ok(())
}

/// Whether a certificate is for this key and this device.
pub(super) fn certified(key_pem: &str, who: &DeviceIdentity, certificate_pem: &str) -> Result<(), String> {
    let key = KeyPair::from_pem(key_pem).map_err(|e| format!("device.key: {e}"))?;
    let chain =
        tls::certificates("the certificate", certificate_pem.as_bytes()).map_err(|e| e.to_string())?;
    let leaf = chain.first().ok_or("it holds no certificate")?; // `certificates` gives at least one
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf).map_err(|e| format!("certificate: {e}"))?;
    if parsed.public_key().subject_public_key.data.as_ref() != rcgen::PublicKeyData::der_bytes(&key) {
        return Err("its certificate is for another key".into());
    }
    let name = parsed.subject().iter_common_name().next().and_then(|n| n.as_str().ok()).unwrap_or_default();
    if name != who.to_string() {
        return Err(format!("its certificate is for {name:?}, not for {who}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_protocol::Digest;

    struct Authority {
        certificate: rcgen::Certificate,
        issuer: rcgen::Issuer<'static, KeyPair>,
    }

    fn authority() -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        Authority { certificate, issuer: rcgen::Issuer::new(params, key) }
    }

    fn certify(authority: &Authority, key: &KeyPair, name: &str) -> String {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.signed_by(key, &authority.issuer).unwrap().pem()
    }

    fn options(authority: &Authority, state: PathBuf) -> EnrollOptions {
        let ca = tls::fingerprint(authority.certificate.der());
        EnrollOptions {
            server: "https://127.0.0.1:1".into(),
            token: JoinToken { id: "a1".into(), secret: "0".repeat(32), ca },
            device: DeviceId::new("cam-1").unwrap(),
            labels: BTreeMap::new(),
            state,
            force: false,
        }
    }

    fn answer(authority: &Authority, key: &KeyPair, name: &str) -> EnrollResponse {
        EnrollResponse {
            identity: "acme.cam-1".parse().unwrap(),
            certificate_pem: certify(authority, key, name),
            ca_pem: authority.certificate.pem(),
            tuf_root: serde_json::json!({"signed": {}}),
            mqtt: "server:8883".into(),
            https: "https://server:8443".into(),
        }
    }

    #[test]
    fn an_answer_for_another_key_name_or_ca_is_refused() {
        let (fleet, other) = (authority(), authority());
        let (mine, foreign) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let options = options(&fleet, PathBuf::new());
        assert_eq!(check_answer(&options, &mine, &answer(&fleet, &mine, "acme.cam-1")), Ok(()));
        let check = |a: EnrollResponse| check_answer(&options, &mine, &a).unwrap_err();
        assert!(check(answer(&fleet, &foreign, "acme.cam-1")).contains("another key"));
        assert!(check(answer(&fleet, &mine, "acme.cam-2")).contains("cam-2"));
        assert!(check(answer(&other, &mine, "acme.cam-1")).contains("CA"));
        let mut renamed = answer(&fleet, &mine, "acme.cam-1");
        renamed.identity = "acme.cam-9".parse().unwrap();
        assert!(check(renamed).contains("cam-9"));
        let mut rootless = answer(&fleet, &mine, "acme.cam-1");
        rootless.tuf_root = serde_json::Value::Null;
        assert!(check(rootless).contains("trust root"));
    }

    #[tokio::test]
    async fn an_existing_enrolment_is_kept_unless_forced_and_a_dead_server_is_named_without_the_secret() {
        crate::tls::install_ring();
        let dir = tempfile::tempdir().unwrap();
        let fleet = authority();
        std::fs::write(dir.path().join("identity.json"), "{}").unwrap();
        let first = options(&fleet, dir.path().to_owned());
        assert!(matches!(enroll(first).await, Err(EnrollError::Exists(_))));
        let mut forced = options(&fleet, dir.path().to_owned());
        forced.force = true;
        let error = enroll(forced).await.unwrap_err().to_string();
        assert!(error.contains("https://127.0.0.1:1") && !error.contains(&"0".repeat(32)), "{error}");
        assert_eq!(std::fs::read(dir.path().join("identity.json")).unwrap(), b"{}", "nothing was stored");
        assert_eq!(Digest::of(b"{}"), Digest::of(&std::fs::read(dir.path().join("identity.json")).unwrap()));
    }
}
