//! Published vectors: Wycheproof, and the edge cases of Ed25519 by "Taming the many EdDSAs" (speccheck).

use serde::Deserialize;

use crate::trust::key::Key;
use crate::trust::scheme::PublicKey;

#[derive(Deserialize)]
struct Wycheproof {
    count: usize,
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    key: String,
    /// Number, message, signature, `valid` or `invalid` or `acceptable`.
    tests: Vec<(u32, String, String, String)>,
}

fn key_of(keytype: &str, scheme: &str, public: &str) -> Key {
    serde_json::from_value(serde_json::json!({
        "keytype": keytype, "scheme": scheme, "keyval": {"public": public}
    }))
    .unwrap()
}

fn verifies(key: &Key, message: &str, signature: &str) -> bool {
    let (message, signature) = (hex::decode(message).unwrap(), hex::decode(signature).unwrap());
    PublicKey::of(key).is_some_and(|key| key.verifies(&message, &signature))
}

/// Every vector must be judged as published; `acceptable` is what a lax verifier may take, and ours is not.
#[track_caller]
fn check(file: &str, keytype: &str, scheme: &str, count: usize) {
    let vectors: Wycheproof = serde_json::from_str(file).unwrap();
    let mut seen = 0;
    for group in &vectors.groups {
        let key = key_of(keytype, scheme, &group.key);
        for (number, message, signature, expect) in &group.tests {
            seen += 1;
            assert_eq!(verifies(&key, message, signature), expect == "valid", "test {number} is {expect}");
        }
    }
    assert_eq!((seen, vectors.count), (count, count));
}

#[test]
fn wycheproof_agrees_on_ed25519() {
    check(include_str!("../../../tests/vectors/wycheproof-ed25519.json"), "ed25519", "ed25519", 151);
}

#[cfg(feature = "ecdsa-rsa")]
#[test]
fn wycheproof_agrees_on_ecdsa() {
    let file = include_str!("../../../tests/vectors/wycheproof-ecdsa-p256.json");
    check(file, "ecdsa", "ecdsa-sha2-nistp256", 484);
    check(file, "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp256", 484);
}

#[cfg(feature = "ecdsa-rsa")]
#[test]
fn wycheproof_agrees_on_rsa() {
    let pkcs1 = include_str!("../../../tests/vectors/wycheproof-rsa-pkcs1.json");
    check(pkcs1, "rsa", "rsa-pkcs1v15-sha256", 259);
    let pss = include_str!("../../../tests/vectors/wycheproof-rsa-pss.json");
    check(pss, "rsa", "rsassa-pss-sha256", 108);
}

#[derive(Deserialize)]
struct Case {
    message: String,
    pub_key: String,
    signature: String,
}

/// `cases.json` of speccheck, whose published table says of strict verification by dalek: case 3 holds, a key and a
/// point that are of mixed order and fulfil the equation without a cofactor. Refused are: a key of small order (0, 1),
/// a point R of small order (2), what holds with a cofactor only (4, 5), scalars that are not reduced (6, 7), an R
/// that is not canonical (8, 9), a key that is not canonical (10, 11).
#[test]
fn of_the_edge_cases_of_ed25519_one_is_accepted() {
    let cases: Vec<Case> =
        serde_json::from_str(include_str!("../../../tests/vectors/speccheck.json")).unwrap();
    let judged: Vec<bool> = cases
        .iter()
        .map(|case| verifies(&key_of("ed25519", "ed25519", &case.pub_key), &case.message, &case.signature))
        .collect();
    let mut published = [false; 12];
    published[3] = true;
    assert_eq!(judged, published);
}

#[cfg(feature = "ecdsa-rsa")]
mod other_schemes {
    use super::super::*;
    use super::*;
    use crate::trust::Schemes;

    /// Public, and signature over an empty message: the first valid test of a file.
    fn first(file: &str) -> (String, String) {
        let vectors: Wycheproof = serde_json::from_str(file).unwrap();
        let group = &vectors.groups[0];
        let test = group.tests.iter().find(|t| t.1.is_empty() && t.3 == "valid").unwrap();
        (group.key.clone(), test.2.clone())
    }

    #[test]
    fn a_key_is_what_its_document_says_or_nothing() {
        let (ecdsa, signature) = first(include_str!("../../../tests/vectors/wycheproof-ecdsa-p256.json"));
        let (rsa, _) = first(include_str!("../../../tests/vectors/wycheproof-rsa-pss.json"));
        assert!(verifies(&key_of("ecdsa", "ecdsa-sha2-nistp256", &ecdsa), "", &signature));
        for (keytype, scheme, public) in [
            ("ecdsa", "ecdsa-sha2-nistp256", rsa.as_str()),
            ("rsa", "rsassa-pss-sha256", &ecdsa),
            ("rsa", "ecdsa-sha2-nistp256", &ecdsa),
            ("ecdsa", "ecdsa-sha2-nistp384", &ecdsa),
            ("ecdsa", "ecdsa-sha2-nistp256", &ecdsa.replace("PUBLIC KEY", "CERTIFICATE")),
            ("ecdsa", "ecdsa-sha2-nistp256", "not a PEM"),
        ] {
            assert!(PublicKey::of(&key_of(keytype, scheme, public)).is_none(), "{keytype} {scheme}");
        }
    }

    #[test]
    fn one_rsa_key_under_two_schemes_is_one_key() {
        let (rsa, _) = first(include_str!("../../../tests/vectors/wycheproof-rsa-pss.json"));
        let [pss, pkcs1] = ["rsassa-pss-sha256", "rsa-pkcs1v15-sha256"]
            .map(|scheme| PublicKey::of(&key_of("rsa", scheme, &rsa)).unwrap());
        assert_eq!(pss.material(), pkcs1.material());
    }

    /// Written by tuf-on-ci 0.11 with keys of a cloud's key management service, ECDSA throughout.
    #[test]
    fn a_root_signed_with_ecdsa_counts_only_for_who_asks_for_it() {
        let root = include_bytes!("../../../tests/vectors/tuf-on-ci-root.json").to_vec();
        let stored = || TrustedDocs::from([("root.json".to_owned(), root.clone())]);
        let client = Client::accepting(stored(), NOW, Schemes::BUILT_IN).unwrap();
        assert_eq!(client.root_version(), 1);
        for refused in [Client::new(stored(), NOW), Client::accepting(stored(), NOW, Schemes::ED25519)] {
            let error = refused.unwrap_err();
            assert!(matches!(error, TrustError::Signatures { valid: 0, threshold: 1, .. }), "{error}");
        }
    }
}
