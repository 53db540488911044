//! Which devices are let in: one rule, for every listener and every request.
//!
//! TLS has proven by now that the peer has the private key of its certificate and that an authority of the fleet
//! signed it. Whether the device is still the fleet's, and by which key, only the registry knows.

use plimsoll_protocol::{DeviceId, DeviceIdentity, Digest, TenantId, UnixMillis};

use crate::ca;
use crate::fleet::Fleet;
use crate::gateway::DeviceCertificate;

/// A device that is let in, and the key that its certificates carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Who.
    pub device: DeviceId,
    /// SHA-256 of its public key.
    pub key: Digest,
}

/// Why a device is not let in, in words for its operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Barred {
    /// Cannot be read.
    #[error("the client certificate of {0} cannot be read: enrol again with `plimsoll-agent enroll --force`")]
    Unreadable(DeviceIdentity),
    /// Another owner's.
    #[error("device {0} is of another fleet than {1}")]
    Tenant(DeviceIdentity, TenantId),
    /// Never enrolled here, or forgotten.
    #[error("device {0} is not registered with this server: `plimsoll-agent enroll` first")]
    Unknown(DeviceIdentity),
    /// Registered with another key.
    #[error("device {0} is registered with another key: enrol again with `plimsoll-agent enroll --force`")]
    Key(DeviceIdentity),
    /// Kept out.
    #[error("device {0} is revoked: an operator lets it in again with `plimsoll device readmit`")]
    Revoked(DeviceIdentity),
    /// Its time is over. The device renews it by itself.
    #[error("the certificate of device {0} has expired: it opens the renewal at /v1/renew and nothing else")]
    Expired(DeviceIdentity),
}

impl Barred {
    /// For programs: the kind of the problem document.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Unreadable(_) | Self::Tenant(..) | Self::Unknown(_) | Self::Key(_) => "not-registered",
            Self::Revoked(_) => "revoked",
            Self::Expired(_) => "certificate-expired",
        }
    }
}

/// A registered device that is not revoked, whether or not its certificate has expired. For the renewal only.
pub fn registered(
    fleet: &Fleet,
    tenant: &TenantId,
    certificate: &DeviceCertificate,
) -> Result<Known, Barred> {
    let who = certificate.identity();
    let key = ca::key_of(certificate.der()).ok_or_else(|| Barred::Unreadable(who.clone()))?;
    if who.tenant != *tenant {
        return Err(Barred::Tenant(who.clone(), tenant.clone()));
    }
    let found = fleet.read(|devices| devices.get(&who.device).map(|d| (d.record.key, d.record.revoked)));
    match found {
        None => Err(Barred::Unknown(who.clone())),
        Some((_, true)) => Err(Barred::Revoked(who.clone())),
        Some((registered, _)) if registered != key => Err(Barred::Key(who.clone())),
        Some(_) => Ok(Known { device: who.device.clone(), key }),
    }
}

/// A registered device that is not revoked and whose certificate is in its time. For everything else.
pub fn admit(
    fleet: &Fleet,
    tenant: &TenantId,
    certificate: &DeviceCertificate,
    now: UnixMillis,
) -> Result<Known, Barred> {
    let known = registered(fleet, tenant, certificate)?;
    if certificate.until_ms() <= now {
        return Err(Barred::Expired(certificate.identity().clone()));
    }
    Ok(known)
}
