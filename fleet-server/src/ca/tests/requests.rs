//! Requests as a stranger might send them, a file for each way to be wrong, made with OpenSSL and then damaged.

use super::*;

fn refusal(pem: &str) -> Option<String> {
    CheckedRequest::parse(identity(), pem).err().map(|e| e.to_string())
}

/// Every file of the folder, with the words of its refusal; `None` for one that is taken.
const CORPUS: [(&str, &str, Option<&str>); 17] = [
    ("good", include_str!("requests/good.pem"), None),
    ("no-name", include_str!("requests/no-name.pem"), None),
    ("wants-to-be-authority", include_str!("requests/wants-to-be-authority.pem"), None),
    ("unknown-extension", include_str!("requests/unknown-extension.pem"), Some("extension")),
    ("rsa", include_str!("requests/rsa.pem"), Some("ECDSA P-256 or Ed25519")),
    ("p384", include_str!("requests/p384.pem"), Some("ECDSA P-256 or Ed25519")),
    ("other-name", include_str!("requests/other-name.pem"), Some("made for \"cam-9\"")),
    ("two-names", include_str!("requests/two-names.pem"), Some("made for \"cam-9\"")),
    (
        "certificate",
        include_str!("requests/certificate.pem"),
        Some("not a PEM text of a CERTIFICATE REQUEST"),
    ),
    ("truncated", include_str!("requests/truncated.pem"), Some("cut short or damaged")),
    ("wrong-signature", include_str!("requests/wrong-signature.pem"), Some("signature does not hold")),
    (
        "renamed-after-signing",
        include_str!("requests/renamed-after-signing.pem"),
        Some("signature does not hold"),
    ),
    ("empty", include_str!("requests/empty.pem"), Some("cut short or damaged")),
    ("not-asn1", include_str!("requests/not-asn1.pem"), Some("cut short or damaged")),
    ("length-lies", include_str!("requests/length-lies.pem"), Some("cut short or damaged")),
    ("nested", include_str!("requests/nested.pem"), Some("cut short or damaged")),
    ("trailing", include_str!("requests/trailing.pem"), Some("cut short or damaged")),
];

#[test]
fn each_wrong_request_is_refused_for_what_is_wrong_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let authorities = open(dir.path());
    for (name, pem, expected) in CORPUS {
        match (refusal(pem), expected) {
            (None, None) => {
                let taken = CheckedRequest::parse(identity(), pem).unwrap();
                let issued = authorities.issue(taken.identity(), taken.public_key(), NOW).unwrap();
                let der = CertificateDer::from_pem_slice(issued.chain_pem.as_bytes()).unwrap();
                let (_, certificate) = x509_parser::parse_x509_certificate(&der).unwrap();
                assert!(!certificate.is_ca(), "{name} was made an authority");
                assert_eq!(certificate.subject().to_string(), "CN=acme.cam-1", "{name}");
            }
            (Some(refused), Some(words)) => {
                assert!(refused.contains("cam-1") && refused.contains(words), "{name}: {refused}");
            }
            (refused, expected) => panic!("{name}: {refused:?}, expected {expected:?}"),
        }
    }
}

#[test]
fn every_file_of_the_corpus_is_checked() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ca/tests/requests");
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), CORPUS.len());
}

#[test]
fn a_huge_request_is_not_parsed() {
    let (_, good) = request("cam-1");
    let refused = refusal(&format!("{good}{}", "A".repeat(4096))).unwrap();
    assert!(refused.contains("4096 are read"), "{refused}");
}

#[test]
fn no_cut_and_no_flipped_character_of_a_good_request_is_taken_for_it() {
    let (key, good) = request("cam-1");
    let own = Digest::of(&key.subject_public_key_info());
    for cut in 0..good.len() - 28 {
        assert!(refusal(&good[..cut]).is_some(), "cut at {cut}");
    }
    for at in 0..good.len() {
        let mut text = good.clone().into_bytes();
        text[at] = if text[at] == b'A' { b'B' } else { b'A' };
        // Padding bits and the lines around the text carry no meaning; whatever is taken is the request as signed.
        if let Ok(taken) = CheckedRequest::parse(identity(), &String::from_utf8(text).unwrap()) {
            assert_eq!(taken.key(), own, "changed at {at}");
        }
    }
}
