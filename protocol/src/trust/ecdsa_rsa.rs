//! ECDSA P-256 and RSA, by `ring`: verification only. Keys come as PEM (`SubjectPublicKeyInfo`), as TUF writes them.

use ed25519_dalek::pkcs8::spki::SubjectPublicKeyInfoRef;
use ed25519_dalek::pkcs8::{Document, ObjectIdentifier};
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, RSA_PKCS1_2048_8192_SHA256, RSA_PSS_2048_8192_SHA256, UnparsedPublicKey,
    VerificationAlgorithm,
};

use super::scheme::Scheme;

/// `id-ecPublicKey`, RFC 5480.
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
/// `secp256r1`, its parameter.
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
/// `rsaEncryption`, RFC 8017.
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

/// The key inside a PEM: a point, or modulus and exponent. `None` when it is another kind of key, or none.
pub(super) fn material(scheme: Scheme, pem: &str) -> Option<Vec<u8>> {
    let (label, der) = Document::from_pem(pem.trim()).ok()?;
    let info: SubjectPublicKeyInfoRef<'_> = der.decode_msg().ok()?;
    let algorithm = &info.algorithm;
    let fits = match scheme {
        Scheme::Ed25519 => false,
        Scheme::EcdsaP256 => {
            algorithm.oid == EC
                && algorithm.parameters.and_then(|p| p.decode_as::<ObjectIdentifier>().ok()) == Some(P256)
        }
        Scheme::RsaPss | Scheme::RsaPkcs1 => algorithm.oid == RSA,
    };
    let key = info.subject_public_key.as_bytes()?;
    (label == "PUBLIC KEY" && fits).then(|| key.to_vec())
}

/// Whether `signature` is the key's over `message`.
pub(super) fn verifies(scheme: Scheme, material: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let algorithm: &'static dyn VerificationAlgorithm = match scheme {
        Scheme::Ed25519 => return false,
        Scheme::EcdsaP256 => &ECDSA_P256_SHA256_ASN1,
        Scheme::RsaPss => &RSA_PSS_2048_8192_SHA256,
        Scheme::RsaPkcs1 => &RSA_PKCS1_2048_8192_SHA256,
    };
    UnparsedPublicKey::new(algorithm, material).verify(message, signature).is_ok()
}
