//! The authority, seen by x509-parser and by rustls.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use plimsoll_protocol::{DeviceIdentity, TenantId, UnixMillis};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
    PublicKeyData,
};
use rustls_pki_types::UnixTime;
use rustls_pki_types::pem::PemObject;

use super::*;

mod requests;

const NOW: UnixMillis = 1_800_000_000_000;

fn tenant() -> TenantId {
    TenantId::new("acme").unwrap()
}

fn own() -> Source {
    Source { files: None, device_life_s: DEVICE_LIFE_S }
}

fn open(dir: &Path) -> Authorities {
    Authorities::open(dir, &tenant(), own(), NOW).unwrap()
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

fn issued(ca: &Authorities) -> CertificateDer<'static> {
    let (_, pem) = request("cam-1");
    let checked = CheckedRequest::parse(identity(), &pem).unwrap();
    let issued = ca.issue(checked.identity(), checked.public_key(), NOW).unwrap();
    CertificateDer::from_pem_slice(issued.chain_pem.as_bytes()).unwrap()
}

/// Whether a handshake takes a certificate at a time.
fn takes(ca: &Authorities, certificate: &CertificateDer<'_>, now: UnixMillis) -> bool {
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_millis(now as u64));
    ca.clients().verify_client_cert(certificate, &[], now).is_ok()
}

#[test]
fn a_device_gets_its_name_and_its_key_and_nothing_else_it_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let ca = open(dir.path());
    let (key, pem) = request("cam-1");
    let checked = CheckedRequest::parse(identity(), &pem).unwrap();
    assert_eq!(checked.key(), Digest::of(&key.subject_public_key_info()));
    let issued = ca.issue(checked.identity(), checked.public_key(), NOW).unwrap();
    let der = CertificateDer::from_pem_slice(issued.chain_pem.as_bytes()).unwrap();
    let (_, cert) = x509_parser::parse_x509_certificate(&der).unwrap();
    let named = crate::gateway::DeviceCertificate::from_verified(der.clone()).unwrap();
    assert_eq!(named.identity(), &identity());
    assert_eq!(named.until_ms(), issued.until_ms);
    assert_eq!(key_of(&der), Some(checked.key()), "the registry compares certificates with requests");
    assert_eq!(cert.public_key().raw, key.subject_public_key_info());
    assert!(cert.subject_alternative_name().unwrap().is_none());
    assert!(!cert.is_ca());
    assert!(!cert.key_usage().unwrap().unwrap().value.key_cert_sign());
    assert_eq!(cert.validity().not_after.timestamp(), NOW / 1000 + 90 * 86_400);
    let signer = ca.issuing();
    let (_, root) = x509_parser::parse_x509_certificate(signer.certificate()).unwrap();
    cert.verify_signature(Some(root.public_key())).unwrap();
}

#[test]
fn a_short_life_is_not_mostly_over_when_it_begins() {
    let dir = tempfile::tempdir().unwrap();
    let source = Source { files: None, device_life_s: 30 };
    let ca = Authorities::open(dir.path(), &tenant(), source, NOW).unwrap();
    let der = issued(&ca);
    let (_, cert) = x509_parser::parse_x509_certificate(&der).unwrap();
    let life = cert.validity().not_after.timestamp() - cert.validity().not_before.timestamp();
    assert!((30..=31).contains(&life), "{life}");
}

#[test]
fn the_authority_survives_a_restart_and_its_key_is_private() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path()).issuing().fingerprint();
    assert_eq!(open(dir.path()).issuing().fingerprint(), first);
    let mode = std::fs::metadata(dir.path().join("ca.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_start_that_died_between_key_and_certificate_starts_again() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path());
    std::fs::remove_file(dir.path().join("ca.pem")).unwrap();
    issued(&open(dir.path()));
}

#[test]
fn the_server_certificate_carries_names_and_addresses() {
    let dir = tempfile::tempdir().unwrap();
    let hosts = ["fleet.example".to_owned(), "127.0.0.1".to_owned()];
    let (chain, ..) = open(dir.path()).issuing().server_certificate(&hosts, NOW).unwrap();
    let (_, cert) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
    let names = format!("{:?}", cert.subject_alternative_name().unwrap().unwrap().value);
    assert!(names.contains("fleet.example") && names.contains("[127, 0, 0, 1]"), "{names}");
}

#[test]
fn a_rotation_waits_until_devices_can_follow_and_then_both_are_believed() {
    let dir = tempfile::tempdir().unwrap();
    let ca = open(dir.path());
    let (old, before) = (ca.issuing().fingerprint(), issued(&ca));
    let refused = ca.switch(Some(&[old]), NOW).unwrap_err().to_string();
    assert!(refused.contains("plimsoll ca prepare"), "{refused}");
    ca.prepare(NOW).unwrap();
    ca.prepare(NOW).unwrap();
    assert_eq!(ca.issuing().fingerprint(), old, "it is ready and signs nothing yet");
    let bundle = fingerprints(ca.bundle().as_bytes());
    assert_eq!((bundle.len(), bundle[0]), (2, old), "preparing twice makes one");
    for published in [None, Some(&[old][..])] {
        let refused = ca.switch(published, NOW).unwrap_err().to_string();
        assert!(refused.contains("publish-ca"), "{refused}");
    }
    ca.switch(Some(&bundle), NOW).unwrap();
    assert_eq!(ca.issuing().fingerprint(), bundle[1]);
    assert_eq!(fingerprints(ca.bundle().as_bytes()), [bundle[1]]);
    let after = issued(&ca);
    for certificate in [&before, &after] {
        assert!(takes(&ca, certificate, NOW), "of the old authority and of the new one");
        assert!(takes(&open(dir.path()), certificate, NOW), "and after a restart");
    }
    let strange = tempfile::tempdir().unwrap();
    assert!(!takes(&open(strange.path()), &after, NOW));
}

#[test]
fn a_switch_cut_between_its_two_renames_is_finished_by_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let ca = open(dir.path());
    ca.prepare(NOW).unwrap();
    let next = fingerprints(ca.bundle().as_bytes())[1];
    let before = issued(&ca);
    std::fs::rename(dir.path().join("ca-next.key"), dir.path().join("ca.key")).unwrap();
    let restarted = open(dir.path());
    assert_eq!(restarted.issuing().fingerprint(), next);
    assert!(takes(&restarted, &before, NOW));
    assert!(!dir.path().join("ca-next.pem").exists());
}

/// Files of an owner's PKI: an issuing authority below a root.
fn pki(change: impl FnOnce(&mut CertificateParams)) -> (tempfile::TempDir, Source, KeyPair) {
    let dir = tempfile::tempdir().unwrap();
    let day = |n: i64| {
        rcgen::date_time_ymd(1970, 1, 1) + std::time::Duration::from_secs((NOW / 1000 + n * 86_400) as u64)
    };
    let params = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        (params.not_before, params.not_after) = (day(-5), day(20));
        params
    };
    let root_key = KeyPair::generate().unwrap();
    let root = params("root of the house");
    let root_pem = root.self_signed(&root_key).unwrap().pem();
    let root = rcgen::Issuer::new(root, root_key);
    let key = KeyPair::generate().unwrap();
    let mut own = params("devices of the house");
    change(&mut own);
    let pem = own.signed_by(&key, &root).unwrap().pem();
    std::fs::write(dir.path().join("issuing.pem"), format!("For the fleet.\n{pem}{root_pem}")).unwrap();
    std::fs::write(dir.path().join("issuing.key"), key.serialize_pem()).unwrap();
    let files = Some((dir.path().join("issuing.pem"), dir.path().join("issuing.key")));
    (dir, Source { files, device_life_s: DEVICE_LIFE_S }, key)
}

#[test]
fn an_authority_of_the_owners_pki_signs_and_no_certificate_outlives_it() {
    let (dir, source, _) = pki(|_| {});
    let ca = Authorities::open(dir.path(), &tenant(), source, NOW).unwrap();
    let der = issued(&ca);
    let (_, cert) = x509_parser::parse_x509_certificate(&der).unwrap();
    assert_eq!(cert.validity().not_after.timestamp(), NOW / 1000 + 20 * 86_400);
    assert!(takes(&ca, &der, NOW) && !takes(&ca, &der, NOW + 21 * 86_400_000));
    assert_eq!(
        fingerprints(ca.bundle().as_bytes()),
        [ca.issuing().fingerprint()],
        "devices get the issuing one"
    );
    assert!(!ca.bundle().contains("For the fleet"));
    for refused in [ca.prepare(NOW), ca.switch(None, NOW)] {
        assert!(refused.unwrap_err().to_string().contains("your"), "its PKI makes the next one");
    }
    assert!(!dir.path().join("ca.key").exists(), "no authority of our own beside it");
}

#[test]
fn files_that_cannot_sign_for_a_fleet_are_refused_with_the_reason() {
    let check = |change: fn(&mut CertificateParams), after: fn(&Path), at: UnixMillis, words: &str| {
        let (dir, source, _) = pki(change);
        after(dir.path());
        let refused = Authorities::open(dir.path(), &tenant(), source, at).err().map(|e| e.to_string());
        let refused = refused.unwrap_or_else(|| panic!("nothing was refused, {words:?} was expected"));
        assert!(refused.contains("issuing.") && refused.contains(words), "{refused}");
    };
    let day = 86_400_000;
    let no = |_: &Path| {};
    check(|p| p.is_ca = IsCa::ExplicitNoCa, no, NOW, "may not sign others");
    check(|p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature], no, NOW, "keyCertSign");
    check(|_| {}, no, NOW + 25 * day, "ended 5 days ago");
    check(|_| {}, no, NOW - 9 * day, "valid in 4 days");
    let other = |dir: &Path| {
        std::fs::write(dir.join("issuing.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    };
    check(|_| {}, other, NOW, "not the key of");
    check(|_| {}, |dir| std::fs::write(dir.join("issuing.key"), "secret").unwrap(), NOW, "PKCS#8");
    check(|_| {}, |dir| std::fs::write(dir.join("issuing.pem"), "none").unwrap(), NOW, "no certificate");
    check(|_| {}, |dir| std::fs::remove_file(dir.join("issuing.key")).unwrap(), NOW, "cannot be read");
    let shuffled = |dir: &Path| {
        let strange = Ca::make(&tenant(), NOW).unwrap().1;
        let own = std::fs::read_to_string(dir.join("issuing.pem")).unwrap();
        let own = own.split_inclusive("-----END CERTIFICATE-----").next().unwrap().to_owned();
        std::fs::write(dir.join("issuing.pem"), format!("{own}\n{strange}")).unwrap();
    };
    check(|_| {}, shuffled, NOW, "not signed by the one that follows");
}
