//! One authority: a certificate that may sign others, and its key.

use std::path::Path;
use std::time::Duration;

use plimsoll_protocol::{DeviceIdentity, Digest, TenantId, UnixMillis};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SerialNumber,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::certificate::X509Certificate;

use super::{CaError, DAY_S, crypto};
use crate::secret;

/// Life of the server's own certificate, which is remade every six hours.
const SERVER_LIFE_S: u64 = 90 * DAY_S;
/// Life of an authority of our own: longer than the hardware it speaks for.
const OWN_LIFE_S: u64 = 20 * 365 * DAY_S;
/// The server's certificate and our authority begin a day in the past: devices' clocks are wrong by hours more often
/// than by days.
const BACKDATED_S: u64 = DAY_S;
/// A device's certificate is judged by servers only. Theirs differ by minutes, so an hour is plenty; and never more
/// than a hundredth of the life, so that two thirds of it mean what they say.
const DEVICE_BACKDATED_S: u64 = 3600;

/// A certificate for a device.
pub struct Issued {
    /// PEM, the authority's certificate after it.
    pub chain_pem: String,
    /// Its end.
    pub until_ms: UnixMillis,
    /// Fingerprint of the authority.
    pub issuer: Digest,
}

/// The authority.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
    subject: String,
    until_s: i64,
}

impl Ca {
    /// Makes a new one; gives back PEM of its key and of its certificate, for the caller to store.
    pub fn make(tenant: &TenantId, now: UnixMillis) -> Result<(String, String), CaError> {
        let key = KeyPair::generate().map_err(crypto("making its key"))?;
        let pem = own_params(tenant, now)?.self_signed(&key).map_err(crypto("signing itself"))?.pem();
        Ok((key.serialize_pem(), pem))
    }

    /// Reads one from two PEM files and checks that it can sign for a fleet today. Certificates after the first are
    /// its own chain, in order.
    pub fn read(certificate: &Path, key: &Path, now: UnixMillis) -> Result<Self, CaError> {
        let refuse = |path: &Path, why: String| CaError::File { path: path.to_owned(), why };
        let text = |path: &Path| {
            std::fs::read_to_string(path).map_err(|e| refuse(path, format!("it cannot be read: {e}")))
        };
        let own_text = text(certificate)?;
        let chain = CertificateDer::pem_slice_iter(own_text.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| refuse(certificate, format!("it is not PEM: {e}")))?;
        let own = chain.first().ok_or_else(|| refuse(certificate, "it holds no certificate".into()))?.clone();
        let parsed = |der| {
            let (_, parsed) = x509_parser::parse_x509_certificate(der)
                .map_err(|e| refuse(certificate, format!("it holds something else than X.509: {e}")))?;
            Ok::<_, CaError>(parsed)
        };
        let ca = parsed(&own)?;
        may_sign(&ca, now / 1000).map_err(|why| refuse(certificate, why))?;
        for pair in chain.windows(2) {
            let [below, above] = pair else { continue };
            parsed(below)?.verify_signature(Some(parsed(above)?.public_key())).map_err(|_| {
                let why = "a certificate in it is not signed by the one that follows: put the issuing authority \
                           first, then who signed it";
                refuse(certificate, why.into())
            })?;
        }
        let pair = KeyPair::from_pem(&text(key)?).map_err(|e| {
            let why = format!(
                "it is no key in PKCS#8 PEM that can sign here ({e}); `openssl pkcs8 -topk8 -nocrypt` converts"
            );
            refuse(key, why)
        })?;
        if pair.subject_public_key_info() != ca.public_key().raw {
            return Err(refuse(key, format!("it is not the key of {}", certificate.display())));
        }
        let (subject, until_s) = (ca.subject().to_string(), ca.validity().not_after.timestamp());
        let issuer = Issuer::from_ca_cert_der(&own, pair).map_err(crypto("reading its certificate"))?;
        Ok(Self { issuer, certificate: own, pem: first_pem(&own_text), subject, until_s })
    }

    /// PEM of its certificate.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// DER of its certificate.
    pub const fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// What a join token carries: SHA-256 of the certificate's DER.
    pub fn fingerprint(&self) -> Digest {
        Digest::of(&self.certificate)
    }

    /// Its name.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// Its end.
    pub const fn until_ms(&self) -> UnixMillis {
        self.until_s.saturating_mul(1000)
    }

    /// Signs a device's certificate, which does not outlive this authority.
    pub fn issue(
        &self,
        who: &DeviceIdentity,
        key: &impl PublicKeyData,
        life_s: u64,
        now: UnixMillis,
    ) -> Result<Issued, CaError> {
        let (mut params, until_s) =
            self.params(&who.to_string(), now, DEVICE_BACKDATED_S.min(life_s / 100), life_s)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let signed = params.signed_by(key, &self.issuer).map_err(crypto("signing a device"))?;
        let chain_pem = format!("{}{}", signed.pem(), self.pem);
        Ok(Issued { chain_pem, until_ms: until_s * 1000, issuer: self.fingerprint() })
    }

    /// Makes a key and a certificate for the server under these host names and addresses; and says when it ends.
    pub fn server_certificate(
        &self,
        hosts: &[String],
        now: UnixMillis,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>, UnixMillis), CaError> {
        let (mut params, until_s) = self.params("plimsoll-server", now, BACKDATED_S, SERVER_LIFE_S)?;
        let named = CertificateParams::new(hosts).map_err(crypto("host names of the server"))?;
        params.subject_alt_names = named.subject_alt_names;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().map_err(crypto("making the server's key"))?;
        let signed = params.signed_by(&key, &self.issuer).map_err(crypto("signing the server"))?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Ok((vec![signed.der().clone(), self.certificate.clone()], key, until_s * 1000))
    }

    fn params(
        &self,
        name: &str,
        now: UnixMillis,
        backdated_s: u64,
        life_s: u64,
    ) -> Result<(CertificateParams, i64), CaError> {
        let now_s = u64::try_from(now / 1000).unwrap_or(0);
        let until_s = now_s.saturating_add(life_s).min(u64::try_from(self.until_s).unwrap_or(0));
        let params = leaf_params(name, now_s.saturating_sub(backdated_s), until_s)?;
        Ok((params, i64::try_from(until_s).unwrap_or(i64::MAX)))
    }
}

/// Why a certificate cannot sign for a fleet.
fn may_sign(ca: &X509Certificate<'_>, now_s: i64) -> Result<(), String> {
    if !ca.is_ca() {
        return Err(
            "it may not sign others (no CA in its basic constraints): give an issuing authority, not a \
                    server's or a person's certificate"
                .into(),
        );
    }
    if let Ok(Some(usage)) = ca.key_usage()
        && !usage.value.key_cert_sign()
    {
        return Err("its key usage lacks the signing of certificates (keyCertSign)".into());
    }
    let (from, until) = (ca.validity().not_before.timestamp(), ca.validity().not_after.timestamp());
    if now_s < from {
        let days = (from - now_s).div_euclid(86_400);
        return Err(format!("it is valid in {days} days only: is this machine's clock right?"));
    }
    if now_s >= until {
        let days = (now_s - until).div_euclid(86_400);
        return Err(format!("it ended {days} days ago: put its successor in its place"));
    }
    Ok(())
}

/// The first certificate of a PEM text, without what stands around it: people's notes, the rest of a chain.
fn first_pem(text: &str) -> String {
    const END: &str = "-----END CERTIFICATE-----";
    let from = text.find("-----BEGIN CERTIFICATE-----").unwrap_or(0);
    let until = text.find(END).map_or(text.len(), |at| at + END.len());
    format!("{}\n", text.get(from..until).unwrap_or(text))
}

fn own_params(tenant: &TenantId, now: UnixMillis) -> Result<CertificateParams, CaError> {
    let now_s = u64::try_from(now / 1000).unwrap_or(0);
    let name = format!("Plimsoll fleet CA of {tenant}");
    let mut params = leaf_params(&name, now_s.saturating_sub(BACKDATED_S), now_s + OWN_LIFE_S)?;
    // One level: it signs devices and the server, and nobody may sign in its name.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn leaf_params(name: &str, from_s: u64, until_s: u64) -> Result<CertificateParams, CaError> {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = epoch + Duration::from_secs(from_s);
    params.not_after = epoch + Duration::from_secs(until_s);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    // 127 random bits: positive in DER, unique without a counter.
    let mut serial = secret::random::<16>()?;
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}
