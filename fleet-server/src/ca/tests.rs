//! The authority, seen by x509-parser and by rustls.

use std::os::unix::fs::PermissionsExt;

use super::*;

const NOW: UnixMillis = 1_800_000_000_000;

fn ca(dir: &Path) -> Ca {
    Ca::open(dir, &TenantId::new("acme").unwrap(), NOW).unwrap()
}

fn identity() -> DeviceIdentity {
    "acme.cam-1".parse().unwrap()
}

fn request(name: &str) -> (KeyPair, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    // A device that asks to be an authority for a bank.
    params.subject_alt_names =
        CertificateParams::new(vec!["bank.example".to_owned()]).unwrap().subject_alt_names;
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let pem = params.serialize_request(&key).unwrap().pem().unwrap();
    (key, pem)
}

#[test]
fn a_device_gets_its_name_and_its_key_and_nothing_else_it_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let ca = ca(dir.path());
    let (key, pem) = request("cam-1");
    let checked = CheckedRequest::parse(identity(), &pem).unwrap();
    assert_eq!(checked.key(), Digest::of(&key.subject_public_key_info()));
    let issued = ca.issue(&checked, NOW).unwrap();
    let der = CertificateDer::from_pem_slice(issued.chain_pem.as_bytes()).unwrap();
    let (_, cert) = x509_parser::parse_x509_certificate(&der).unwrap();
    let named = crate::gateway::DeviceCertificate::from_verified(der.clone()).unwrap();
    assert_eq!(named.identity(), &identity());
    assert_eq!(key_of(&der), Some(checked.key()), "the registry compares certificates with requests");
    assert_eq!(cert.public_key().raw, key.subject_public_key_info());
    assert!(cert.subject_alternative_name().unwrap().is_none());
    assert!(!cert.is_ca());
    assert!(!cert.key_usage().unwrap().unwrap().value.key_cert_sign());
    assert_eq!(cert.validity().not_after.timestamp(), NOW / 1000 + 90 * 86_400);
    let (_, root) = x509_parser::parse_x509_certificate(ca.certificate()).unwrap();
    cert.verify_signature(Some(root.public_key())).unwrap();
}

#[test]
fn a_request_with_a_changed_byte_is_refused() {
    let (_, pem) = request("cam-1");
    let der = rustls_pki_types::CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap();
    let mut der = der.to_vec();
    let last = der.len() - 1;
    der[last] ^= 1;
    let broken = CertificateSigningRequestParams::from_der(&der.into());
    assert!(broken.is_err(), "a request whose signature does not hold was accepted");
    let error = CheckedRequest::parse(identity(), "not PEM").err().unwrap().to_string();
    assert!(error.contains("cam-1"), "{error}");
}

#[test]
fn a_request_for_another_name_is_refused() {
    let (_, pem) = request("cam-2");
    let error = CheckedRequest::parse(identity(), &pem).err().unwrap().to_string();
    assert!(error.contains("cam-1") && error.contains("cam-2"), "{error}");
}

#[test]
fn the_authority_survives_a_restart_and_its_key_is_private() {
    let dir = tempfile::tempdir().unwrap();
    let first = ca(dir.path()).fingerprint();
    assert_eq!(ca(dir.path()).fingerprint(), first);
    let mode = std::fs::metadata(dir.path().join("ca.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_start_that_died_between_key_and_certificate_starts_again() {
    let dir = tempfile::tempdir().unwrap();
    ca(dir.path());
    std::fs::remove_file(dir.path().join("ca.pem")).unwrap();
    let second = ca(dir.path());
    let (_, pem) = request("cam-1");
    second.issue(&CheckedRequest::parse(identity(), &pem).unwrap(), NOW).unwrap();
}

#[test]
fn the_server_certificate_carries_names_and_addresses() {
    let dir = tempfile::tempdir().unwrap();
    let hosts = ["fleet.example".to_owned(), "127.0.0.1".to_owned()];
    let (chain, _) = ca(dir.path()).server_certificate(&hosts, NOW).unwrap();
    let (_, cert) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
    let names = format!("{:?}", cert.subject_alternative_name().unwrap().unwrap().value);
    assert!(names.contains("fleet.example") && names.contains("[127, 0, 0, 1]"), "{names}");
}
