//! One report into the store: counted once, newest state wins, old windows go.

use super::durable::Txn;
use super::put_event;
use super::ranges::Ranges;
use crate::store::{
    Change, DriftRecord, JobRecord, NewEvent, Outcome, ReportBody, ReportWrite, ShadowRecord, StateRecord,
    StoreError,
};

/// Windows kept of one bundle on one device: 168 hours are the 7 days of raw windows.
const WINDOWS_KEPT: u64 = 168;
/// Most parts of a window, for the deletion of old ones: 64 parts of 3 KiB are a window of 192 KiB.
const PARTS_MOST: u32 = 64;

/// Commits one report unless its number was seen. Number 0 is of kinds that replace each other: never a duplicate.
pub fn commit(txn: &mut Txn<'_>, report: ReportWrite) -> Result<Outcome, StoreError> {
    if report.seq != 0 {
        let key = format!("seen/{}/{}/{}", report.device, report.inc, report.boot);
        let mut seen: Ranges = txn.get(&key)?.unwrap_or_default();
        if !seen.insert(report.seq) {
            return Ok(Outcome::Duplicate);
        }
        txn.put(key, &seen)?;
    }
    let ReportWrite { device, inc, boot, seq, at_ms, body } = report;
    let change = match body {
        ReportBody::Online(birth, payload) => {
            let session = (birth.boot, birth.conn);
            let old = txn.get::<StateRecord>(&format!("state/{device}"))?;
            if old.is_some_and(|old| old.inc == inc && old.session > session) {
                return Ok(Outcome::Fresh(Change::Nothing));
            }
            put_state(
                txn,
                &device,
                StateRecord { inc, birth: *birth, session, online: true, at_ms, payload },
            )?
        }
        ReportBody::Offline { boot, conn, payload } => {
            match txn.get::<StateRecord>(&format!("state/{device}"))? {
                // The will of a connection that a newer birth has overtaken says nothing about today.
                Some(old) if old.inc == inc && old.session <= (boot, conn) => {
                    let session = (boot, conn);
                    put_state(txn, &device, StateRecord { session, online: false, at_ms, payload, ..old })?
                }
                _ => Change::Nothing,
            }
        }
        ReportBody::Job(job) => {
            let key = format!("job/{device}/{}/{}", job.model, job.digest);
            let old = txn.get::<JobRecord>(&key)?;
            if old.is_some_and(|old| old.inc == inc && old.order > (boot, seq)) {
                return Ok(Outcome::Fresh(Change::Nothing));
            }
            let record = JobRecord { device, report: *job, at_ms, inc, order: (boot, seq) };
            txn.put(key, &record)?;
            Change::Job(Box::new(record))
        }
        ReportBody::Shadow(shadow) => {
            let key = format!("shadow/{device}/{}/{}", shadow.model, shadow.candidate);
            let old = txn.get::<ShadowRecord>(&key)?;
            if old.is_some_and(|old| old.inc == inc && old.order > (boot, seq)) {
                return Ok(Outcome::Fresh(Change::Nothing));
            }
            let record = ShadowRecord { device, report: *shadow, at_ms, inc, order: (boot, seq) };
            txn.put(key, &record)?;
            Change::Shadow(Box::new(record))
        }
        ReportBody::Event(event) => {
            let (severity, code, text) = (event.severity, event.code, event.text);
            Change::Event(put_event(txn, NewEvent { at_ms, device: Some(device), severity, code, text })?)
        }
        ReportBody::Drift(report) => {
            let prefix = format!("drift/{device}/{}/{}", report.model, report.digest);
            if let Some(old) = report.index.checked_sub(WINDOWS_KEPT) {
                for part in 0..report.part.1.min(PARTS_MOST) {
                    txn.delete(format!("{prefix}/{old:012}/{part:03}"));
                }
            }
            let key = format!("{prefix}/{:012}/{:03}", report.index, report.part.0);
            txn.put(key, &DriftRecord { at_ms, report: *report })?;
            Change::Nothing
        }
        ReportBody::Seen => Change::Nothing,
    };
    Ok(Outcome::Fresh(change))
}

fn put_state(
    txn: &mut Txn<'_>,
    device: &plimsoll_protocol::DeviceId,
    record: StateRecord,
) -> Result<Change, StoreError> {
    txn.put(format!("state/{device}"), &record)?;
    Ok(Change::State(Box::new(record)))
}
