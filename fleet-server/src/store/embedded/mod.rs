//! The store inside the server's own process, on sled.
//!
//! Keys are text with the kind in front, so that one scan reads one kind; numbers in keys are zero-padded, so that
//! their order is the order of the numbers:
//!
//! ```text
//! device/<id>                 DeviceRecord       token/<id>, join/<id>          token records
//! desired/<id>                Desired            trust                          TrustIndex
//! state/<id>                  StateRecord        rollout/<id>                   RolloutState
//! job/<id>/<model>/<digest>   JobRecord          member/<rollout>/<id>          Member
//! shadow/<id>/<model>/<digest>  ShadowRecord
//! seen/<id>/<inc>/<boot>      Ranges             decision/<rollout>/<number>    Decision
//! event/<number>              EventRecord        drift/<id>/<model>/<digest>/<window>/<part>  DriftRecord
//! audit/<number>              AuditRecord        next/<kind>                    last number used
//! ```

mod chunks;
mod durable;
mod export;
mod ranges;
mod recover;
mod reports;

use std::collections::BTreeMap;
use std::path::Path;

use futures_util::future::ready;
use plimsoll_fleet_core::{Member, Rollout, RolloutState};
use plimsoll_protocol::api::Decision;
use plimsoll_protocol::ids::RolloutId;
use plimsoll_protocol::wire::v1::Desired;
use plimsoll_protocol::{DeviceId, Digest, ModelName};

pub use recover::{Opened, Probe, open_or_recover, probe};

#[cfg(test)]
mod tests;

use self::durable::{Durable, Txn};
use super::{
    AuditRecord, BundleRecord, DeviceRecord, Devices, DriftRecord, Enrolment, EventRecord, JobRecord,
    JoinTokenRecord, Journal, NewAudit, NewEvent, Outcome, PlanWrite, Renewal, Reply, ReportWrite, Reports,
    Rollouts, ShadowRecord, StateRecord, StoreError, TokenFault, TokenRecord, Tokens, Trust, TrustIndex,
};
use crate::secret;

/// Events kept: at ~300 bytes each 30 MB, about 30 days of a fleet of 1,000 devices with three events a day each.
const EVENTS_KEPT: u64 = 100_000;

/// The embedded store.
pub struct Embedded {
    kv: Durable,
}

impl Embedded {
    /// Opens or creates the store in `dir`, without recovery: see [`open_or_recover`] for what a server does.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        Durable::open(dir).map(|kv| Self { kv })
    }

    /// Values of one kind, without their keys.
    fn all<T: serde::de::DeserializeOwned + Send + 'static>(&self, prefix: &str) -> Reply<'_, Vec<T>> {
        let found =
            self.kv.scan::<T>(prefix).map(|found| found.into_iter().map(|(_, value)| value).collect());
        Box::pin(ready(found))
    }

    /// Values of one kind with the device that their key ends in.
    fn by_device<T: serde::de::DeserializeOwned + Send + 'static>(
        &self,
        prefix: &'static str,
    ) -> Reply<'_, Vec<(DeviceId, T)>> {
        let named = |(key, value): (String, T)| {
            let device = DeviceId::new(&key[prefix.len()..]).map_err(|_| StoreError::Corrupt(key.clone()))?;
            Ok((device, value))
        };
        Box::pin(ready(self.kv.scan::<T>(prefix).and_then(|found| found.into_iter().map(named).collect())))
    }

    fn one<T: serde::de::DeserializeOwned + Send + 'static>(&self, key: &str) -> Reply<'_, Option<T>> {
        Box::pin(ready(self.kv.get(key)))
    }
}

impl Embedded {
    fn change_device(
        &self,
        device: &DeviceId,
        change: impl FnOnce(&mut DeviceRecord) -> Result<(), StoreError> + Send + 'static,
    ) -> Reply<'_, DeviceRecord> {
        let device = device.clone();
        self.kv.transact(move |txn| {
            let key = format!("device/{device}");
            let known: Option<DeviceRecord> = txn.get(&key)?;
            let mut record = known.ok_or_else(|| StoreError::NotFound(format!("device {device}")))?;
            change(&mut record)?;
            txn.put(key, &record)?;
            Ok(record)
        })
    }
}

/// The next number of a kind, from 1.
fn next_number(txn: &mut Txn<'_>, kind: &str) -> Result<u64, StoreError> {
    let key = format!("next/{kind}");
    let number = txn.get::<u64>(&key)?.unwrap_or(0) + 1;
    txn.put(key, &number)?;
    Ok(number)
}

fn put_event(txn: &mut Txn<'_>, new: NewEvent) -> Result<u64, StoreError> {
    let id = next_number(txn, "event")?;
    let NewEvent { at_ms, device, severity, code, text } = new;
    txn.put(format!("event/{id:020}"), &EventRecord { id, at_ms, device, severity, code, text })?;
    if id > EVENTS_KEPT {
        txn.delete(format!("event/{:020}", id - EVENTS_KEPT));
    }
    Ok(id)
}

impl Devices for Embedded {
    fn enrol(&self, new: Enrolment) -> Reply<'_, DeviceRecord> {
        self.kv.transact(move |txn| {
            let fault = |fault| StoreError::JoinToken { id: new.token_id.clone(), fault };
            let token_key = format!("join/{}", new.token_id);
            let mut token: JoinTokenRecord = txn.get(&token_key)?.ok_or(fault(TokenFault::Unknown))?;
            if !secret::same(&token.secret, &new.secret) {
                return Err(fault(TokenFault::Unknown));
            }
            // Before anything about the device: who holds a token that ended learns nothing of the fleet.
            if token.revoked {
                return Err(fault(TokenFault::Revoked));
            }
            if token.expires_ms <= new.now_ms {
                return Err(fault(TokenFault::Expired));
            }
            if !token.is_for(&new.device) {
                return Err(fault(TokenFault::Names));
            }
            let key = format!("device/{}", new.device);
            let known: Option<DeviceRecord> = txn.get(&key)?;
            let replaced = known.as_ref().is_some_and(|k| k.rekey && k.key != new.key);
            match &known {
                Some(known) if known.revoked && !replaced => {
                    return Err(StoreError::DeviceRevoked(new.device));
                }
                Some(known) if known.key != new.key && !replaced => {
                    return Err(StoreError::DeviceTaken(new.device));
                }
                _ => {}
            }
            if known.is_none() || replaced {
                token.uses_left = token.uses_left.checked_sub(1).ok_or(fault(TokenFault::UsedUp))?;
                txn.put(token_key, &token)?;
            }
            let record = DeviceRecord {
                device: new.device,
                key: new.key,
                enrolled_ms: known.map_or(new.now_ms, |k| k.enrolled_ms),
                certificate_until_ms: new.certificate_until_ms,
                arch: new.arch,
                labels: new.labels,
                granted: token.labels,
                revoked: false,
                rekey: false,
                issuer: Some(new.issuer),
            };
            txn.put(key, &record)?;
            Ok(record)
        })
    }

    fn renew(&self, new: Renewal) -> Reply<'_, DeviceRecord> {
        self.change_device(&new.device.clone(), move |record| {
            if record.revoked {
                return Err(StoreError::DeviceRevoked(new.device));
            }
            if record.key != new.key {
                return Err(StoreError::DeviceTaken(new.device));
            }
            record.certificate_until_ms = new.certificate_until_ms;
            record.issuer = Some(new.issuer);
            Ok(())
        })
    }

    fn allow_new_key(&self, device: &DeviceId) -> Reply<'_, DeviceRecord> {
        self.change_device(device, |record| {
            record.revoked = true;
            record.rekey = true;
            Ok(())
        })
    }

    fn devices(&self) -> Reply<'_, Vec<DeviceRecord>> {
        self.all("device/")
    }

    fn device(&self, device: &DeviceId) -> Reply<'_, Option<DeviceRecord>> {
        self.one(&format!("device/{device}"))
    }

    fn set_revoked(&self, device: &DeviceId, revoked: bool) -> Reply<'_, DeviceRecord> {
        self.change_device(device, move |record| {
            record.revoked = revoked;
            record.rekey = false;
            Ok(())
        })
    }

    fn all_desired(&self) -> Reply<'_, Vec<(DeviceId, Desired)>> {
        self.by_device("desired/")
    }

    fn states(&self) -> Reply<'_, Vec<(DeviceId, StateRecord)>> {
        self.by_device("state/")
    }

    fn jobs(&self) -> Reply<'_, Vec<JobRecord>> {
        self.all("job/")
    }

    fn shadows(&self) -> Reply<'_, Vec<ShadowRecord>> {
        self.all("shadow/")
    }
}

impl Tokens for Embedded {
    fn add_token(&self, token: TokenRecord) -> Reply<'_, ()> {
        self.kv.transact(move |txn| txn.put(format!("token/{}", token.id), &token))
    }

    fn token(&self, id: &str) -> Reply<'_, Option<TokenRecord>> {
        self.one(&format!("token/{id}"))
    }

    fn tokens(&self) -> Reply<'_, Vec<TokenRecord>> {
        self.all("token/")
    }

    fn add_join_token(&self, token: JoinTokenRecord) -> Reply<'_, ()> {
        self.kv.transact(move |txn| txn.put(format!("join/{}", token.id), &token))
    }

    fn join_tokens(&self) -> Reply<'_, Vec<JoinTokenRecord>> {
        self.all("join/")
    }

    fn revoke_join_token(&self, id: &str) -> Reply<'_, JoinTokenRecord> {
        let id = id.to_owned();
        self.kv.transact(move |txn| {
            let key = format!("join/{id}");
            let known: Option<JoinTokenRecord> = txn.get(&key)?;
            let mut token = known.ok_or_else(|| StoreError::NotFound(format!("join token {id}")))?;
            token.revoked = true;
            txn.put(key, &token)?;
            Ok(token)
        })
    }
}

impl Trust for Embedded {
    fn trust(&self) -> Reply<'_, TrustIndex> {
        Box::pin(ready(self.kv.get("trust").map(Option::unwrap_or_default)))
    }

    fn set_trust(&self, from: u64, index: TrustIndex) -> Reply<'_, ()> {
        self.kv.transact(move |txn| {
            let stored = txn.get::<TrustIndex>("trust")?.unwrap_or_default().serial;
            if stored != from {
                return Err(StoreError::Conflict("the trust repository".into()));
            }
            txn.put("trust".into(), &index)
        })
    }

    fn bundles(&self) -> Reply<'_, Vec<BundleRecord>> {
        Box::pin(ready(self.kv.get::<TrustIndex>("trust").map(|t| t.unwrap_or_default().bundles)))
    }
}

impl Embedded {
    fn load_rollouts(&self) -> Result<Vec<Rollout>, StoreError> {
        let mut members: BTreeMap<String, BTreeMap<DeviceId, Member>> = BTreeMap::new();
        for (key, member) in self.kv.scan::<Member>("member/")? {
            let mut parts = key.split('/').skip(1);
            let (Some(rollout), Some(Ok(device))) = (parts.next(), parts.next().map(DeviceId::new)) else {
                return Err(StoreError::Corrupt(key));
            };
            members.entry(rollout.to_owned()).or_default().insert(device, member);
        }
        let states = self.kv.scan::<RolloutState>("rollout/")?.into_iter();
        let mut rollouts: Vec<Rollout> = states
            .map(|(_, state)| Rollout {
                members: members.remove(state.id.as_str()).unwrap_or_default(),
                state,
            })
            .collect();
        rollouts.sort_by_key(|r| r.state.number);
        Ok(rollouts)
    }
}

impl Rollouts for Embedded {
    fn rollouts(&self) -> Reply<'_, Vec<Rollout>> {
        Box::pin(ready(self.load_rollouts()))
    }

    fn decisions(&self, id: &RolloutId) -> Reply<'_, Vec<Decision>> {
        self.all(&format!("decision/{id}/"))
    }

    fn commit_plan(&self, plan: PlanWrite) -> Reply<'_, ()> {
        self.kv.transact(move |txn| {
            for state in plan.rollouts {
                let key = format!("rollout/{}", state.id);
                if txn.get::<RolloutState>(&key)?.is_some_and(|stored| stored.epoch + 1 != state.epoch) {
                    return Err(StoreError::Conflict(format!("rollout {}", state.id)));
                }
                txn.put(key, &state)?;
            }
            for (rollout, device, member) in plan.members {
                txn.put(format!("member/{rollout}/{device}"), &member)?;
            }
            for (rollout, decision) in plan.decisions {
                let number = next_number(txn, &format!("decision-{rollout}"))?;
                txn.put(format!("decision/{rollout}/{number:08}"), &decision)?;
            }
            for (device, desired) in plan.desired {
                txn.put(format!("desired/{device}"), &desired)?;
            }
            for event in plan.events {
                put_event(txn, event)?;
            }
            Ok(())
        })
    }
}

impl Reports for Embedded {
    fn commit_reports(&self, reports: Vec<ReportWrite>) -> Reply<'_, Vec<Outcome>> {
        self.kv.transact(move |txn| reports.into_iter().map(|report| reports::commit(txn, report)).collect())
    }

    fn drift(&self, device: &DeviceId, model: &ModelName, digest: &Digest) -> Reply<'_, Vec<DriftRecord>> {
        self.all(&format!("drift/{device}/{model}/{digest}/"))
    }

    fn newest_drift(
        &self,
        device: &DeviceId,
        model: &ModelName,
        digest: &Digest,
        limit: usize,
    ) -> Reply<'_, Vec<DriftRecord>> {
        let prefix = format!("drift/{device}/{model}/{digest}/");
        let found = self.kv.scan_back::<DriftRecord>(&prefix, &format!("{prefix}~"), limit);
        Box::pin(ready(found.map(|found| found.into_iter().map(|(_, record)| record).collect())))
    }
}

impl Journal for Embedded {
    fn add_event(&self, event: NewEvent) -> Reply<'_, u64> {
        self.kv.transact(move |txn| put_event(txn, event))
    }

    fn events(&self, before: Option<u64>, limit: usize) -> Reply<'_, Vec<EventRecord>> {
        let end = before.map_or_else(|| "event/~".into(), |id| format!("event/{id:020}"));
        let found = self.kv.scan_back::<EventRecord>("event/", &end, limit);
        Box::pin(ready(found.map(|found| found.into_iter().map(|(_, event)| event).collect())))
    }

    fn audit(&self, entry: NewAudit) -> Reply<'_, ()> {
        self.kv.transact(move |txn| {
            let number = next_number(txn, "audit")?;
            let last = txn.get::<AuditRecord>(&format!("audit/{:020}", number - 1))?;
            let previous = last.map_or_else(|| Digest::of(b""), |l| l.hash);
            txn.put(format!("audit/{number:020}"), &AuditRecord::link(number, previous, entry))
        })
    }

    fn audit_log(&self) -> Reply<'_, Vec<AuditRecord>> {
        self.all("audit/")
    }
}
