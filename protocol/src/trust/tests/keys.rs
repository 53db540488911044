//! Ed25519 and the threshold.

use super::*;
use crate::trust::key::Key;
use crate::trust::scheme::PublicKey;

/// RFC 8032, section 7.1: secret, public, message, signature.
const RFC_8032: [[&str; 4]; 4] = [
    [
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ],
    [
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ],
    [
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ],
    [
        "833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42",
        "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
        "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704",
    ],
];

fn bytes<const N: usize>(text: &str) -> [u8; N] {
    hex::decode(text).unwrap().try_into().unwrap()
}

fn verifies(key: &Key, message: &[u8], signature: &[u8]) -> bool {
    PublicKey::of(key).is_some_and(|key| key.verifies(message, signature))
}

#[test]
fn the_vectors_of_rfc_8032_hold() {
    for [secret, public, message, signature] in RFC_8032 {
        let pair = KeyPair::from_seed(&bytes(secret));
        let message = hex::decode(message).unwrap();
        assert_eq!(pair.public_hex(), public);
        assert_eq!(hex::encode(pair.sign(&message).unwrap()), signature);
        assert!(verifies(&pair.key(), &message, &bytes::<64>(signature)));
        let mut other = message.clone();
        other.push(0);
        assert!(!verifies(&pair.key(), &other, &bytes::<64>(signature)));
    }
}

#[test]
fn a_key_of_small_order_signs_nothing() {
    // With the neutral point as key and as R, and S = 0, the equation of Ed25519 holds for every message.
    let mut neutral = [0; 32];
    neutral[0] = 1;
    let mut signature = [0; 64];
    signature[0] = 1;
    let lax = ed25519_dalek::VerifyingKey::from_bytes(&neutral).unwrap();
    let parsed = ed25519_dalek::Signature::from_bytes(&signature);
    assert!(ed25519_dalek::Verifier::verify(&lax, b"anything", &parsed).is_ok(), "the premise of this test");
    assert!(!verifies(&Key::ed25519(&neutral), b"anything", &signature));
    // speccheck case 0: small order of both A and R.
    let public = bytes("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa");
    let message = bytes::<32>("8c93255d71dcab10e8f379c26200f3c7bd5f09d9bc3068d3ef4edeb4853022b6");
    let mut signature = [0; 64];
    signature[..32]
        .copy_from_slice(&bytes::<32>("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"));
    assert!(!verifies(&Key::ed25519(&public), &message, &signature));
}

#[test]
fn a_key_id_is_the_digest_of_the_canonical_key() {
    let canonical = format!(
        r#"{{"keytype":"ed25519","keyval":{{"public":"{}"}},"scheme":"ed25519"}}"#,
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    );
    let pair = KeyPair::from_seed(&bytes(RFC_8032[0][0]));
    assert_eq!(pair.id().0, crate::Digest::of(canonical.as_bytes()).to_string());
}

#[test]
fn a_key_of_another_kind_is_kept_but_never_counts() {
    let mut key = key(1).key();
    key.scheme = "ed448".into();
    assert_eq!(key.public(), None);
    assert!(Key::from_hex("00").is_err());
    assert!(Key::from_hex(&"zz".repeat(32)).is_err());
}

/// The root needs two keys; what is tried instead of a second key must not count.
#[track_caller]
fn one_is_not_two(change: impl FnOnce(&mut Value)) -> TrustError {
    let mut files = World::new().serve();
    tamper(&mut files, "1.root.json", change);
    let stored = BTreeMap::from([("root.json".to_owned(), files["1.root.json"].clone())]);
    Client::new(stored, NOW).expect_err("one signature passed for two")
}

#[test]
fn the_threshold_counts_distinct_public_keys() {
    let missing = one_is_not_two(|v| _ = v["signatures"].as_array_mut().unwrap().pop());
    assert!(matches!(missing, TrustError::Signatures { valid: 1, threshold: 2, .. }), "{missing}");
    // The same signature twice under one id.
    let twice = one_is_not_two(|v| v["signatures"][1] = v["signatures"][0].clone());
    assert!(matches!(&twice, TrustError::Parse { why, .. } if why.contains("two signatures")), "{twice}");
    // One id listed twice in the role.
    let listed = one_is_not_two(|v| {
        let ids = &mut v["signed"]["roles"]["root"]["keyids"];
        ids[1] = ids[0].clone();
    });
    assert!(matches!(&listed, TrustError::Parse { why, .. } if why.contains("twice")), "{listed}");
    // Threshold zero.
    let zero = one_is_not_two(|v| v["signed"]["roles"]["targets"]["threshold"] = 0.into());
    assert!(matches!(&zero, TrustError::Parse { why, .. } if why.contains("threshold 0")), "{zero}");
}

#[test]
fn one_key_under_two_ids_counts_once() {
    let mut root = Root::of(&root_keys(&[1], 2, 3, 4, 5));
    // The same public key in capitals, and with a field more: two more descriptions, two more ids.
    let mut capitals = key(1).key();
    capitals.keyval.insert("public".into(), key(1).public_hex().to_uppercase().into());
    let mut extra = key(1).key();
    extra.extra.insert("x-note".into(), 1.into());
    let ids: Vec<KeyId> = [key(1).key(), capitals.clone(), extra.clone()].iter().map(Key::id).collect();
    for k in [capitals, extra] {
        root.keys.insert(k.id(), k);
    }
    root.roles.insert("root".into(), RoleKeys::new(ids.clone(), 2));
    let doc = Doc::new(1, None, NOW + DAY, root);
    let mut envelope = sign(&doc, &[&key(1)]).unwrap();
    let signature = envelope["signatures"][0]["sig"].clone();
    let all = ids.iter().map(|id| serde_json::json!({"keyid": id, "sig": signature}));
    envelope["signatures"] = all.collect();
    let error = Client::new(BTreeMap::from([("root.json".into(), to_bytes(&envelope))]), NOW).unwrap_err();
    assert!(matches!(error, TrustError::Signatures { valid: 1, threshold: 2, .. }), "{error}");
}
