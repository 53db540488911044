//! Does the version answer otherwise than the one before, on the same requests, before it answers anybody?
//!
//! Each device that shadows reports how many rows differ. The gate pools them over all devices of the rollout and asks
//! for the same proof as the other gates, with its share of their error budget: more than the limit differ, whatever
//! the number of looks. Two things keep an odd device from being taken for the version: at least half of the devices
//! that compared enough must lie above the limit by themselves, and a person who resumes a rollout accepts what was
//! reported until then. A device that compared nothing (it had no version before, or no room) says nothing.

use std::collections::BTreeMap;

use plimsoll_protocol::api::{DeviceShadow, ShadowEvidence};
use plimsoll_protocol::wire::v1::ShadowReport;
use plimsoll_protocol::{DeviceId, UnixMillis};

use crate::gate::{self, Reading, Verdict, devices};
use crate::rollout::Rollout;

/// Name of the gate.
pub const GATE: &str = "shadow";
/// Devices listed; the others are counted.
const LISTED: usize = 20;

/// The newest report of a device about one digest.
#[derive(Debug, Clone, PartialEq)]
pub struct ShadowView {
    /// As received.
    pub report: ShadowReport,
    /// Server time at which it came.
    pub at_ms: UnixMillis,
}

/// What the shadows say, for the gate and for people.
#[derive(Debug, Clone, PartialEq)]
pub struct Weighed {
    /// For the planner, when the rollout has such a gate and somebody compared.
    pub reading: Option<Reading>,
    /// With its numbers.
    pub evidence: ShadowEvidence,
}

/// Weighs what the members of `rollout` saw in shadow. `None` when nobody has reported.
pub fn weigh<'a>(rollout: &Rollout, seen: impl Fn(&DeviceId) -> Option<&'a [ShadowView]>) -> Option<Weighed> {
    let state = &rollout.state;
    let mut reports: BTreeMap<&DeviceId, &ShadowView> = BTreeMap::new();
    for device in rollout.members.keys() {
        let of_rollout = |v: &&ShadowView| {
            v.report.candidate == state.target.digest && v.report.rollout.as_ref() == Some(&state.id)
        };
        let newest = seen(device).unwrap_or_default().iter().filter(of_rollout).max_by_key(|v| v.at_ms);
        reports.extend(newest.map(|view| (device, view)));
    }
    if reports.is_empty() {
        return None;
    }
    let text = told(&reports.values().copied().collect::<Vec<_>>());
    let fresh = |v: &&ShadowView| state.accepted_ms.is_none_or(|until| v.at_ms > until);
    let judged: Vec<&ShadowView> = reports.values().copied().filter(fresh).collect();
    let sum = |count: fn(&ShadowView) -> u64| reports.values().map(|v| count(v)).sum();
    let listed = reports.iter().take(LISTED).map(|(device, view)| DeviceShadow {
        device: (*device).clone(),
        current: view.report.current_version.clone(),
        end: view.report.end,
        reason: view.report.reason.clone(),
        totals: view.report.totals,
    });
    Some(Weighed {
        reading: judge(rollout, &judged),
        evidence: ShadowEvidence {
            text,
            rows: sum(|v| v.report.totals.rows),
            differ: sum(|v| v.report.totals.differ),
            devices: listed.collect(),
        },
    })
}

fn judge(rollout: &Rollout, reports: &[&ShadowView]) -> Option<Reading> {
    let spec = &rollout.state.spec;
    let limit_percent = spec.gate.max_shadow_disagree_percent?;
    let least = spec.policy.shadow.as_ref().map_or(1, |p| u64::from(p.min_rows.max(1)));
    let compared: Vec<&ShadowView> =
        reports.iter().copied().filter(|v| v.report.totals.rows >= least).collect();
    if compared.is_empty() {
        return None;
    }
    let (verdict, text) = verdict(&spec.gate, limit_percent, &compared);
    Some(Reading { gate: GATE.to_owned(), verdict, text })
}

fn verdict(
    gate: &plimsoll_protocol::api::GateSpec,
    limit_percent: f64,
    compared: &[&ShadowView],
) -> (Verdict, String) {
    let counted = told(compared);
    let limit = limit_percent / 100.0;
    let totals = || compared.iter().map(|v| &v.report.totals);
    let (rows, differ) = totals().fold((0, 0), |(n, bad), t| (n + t.rows, bad + t.differ));
    let above = totals().filter(|t| t.differ as f64 > limit * t.rows as f64).count();
    if above * 2 < compared.len() {
        return (Verdict::Pass, counted);
    }
    gate::judge_answers(gate, limit_percent, (differ, rows), counted)
}

/// `in shadow on 3 devices 412 of 3,000 answers differ from those of 1.0.0`
fn told(reports: &[&ShadowView]) -> String {
    let compared: Vec<_> = reports.iter().filter(|v| v.report.totals.rows > 0).collect();
    let silent = reports.len() - compared.len();
    let rest = match silent {
        0 => String::new(),
        n => format!("; {} compared nothing", devices(n as u64)),
    };
    if compared.is_empty() {
        return format!("in shadow {} compared nothing yet", devices(silent as u64));
    }
    let mut versions: Vec<_> = compared.iter().filter_map(|v| v.report.current_version.as_ref()).collect();
    versions.sort();
    versions.dedup();
    let with = match versions.as_slice() {
        [version] => version.to_string(),
        _ => "the versions before".to_owned(),
    };
    let rows: u64 = compared.iter().map(|v| v.report.totals.rows).sum();
    let differ: u64 = compared.iter().map(|v| v.report.totals.differ).sum();
    let failed: u64 = compared.iter().map(|v| v.report.totals.failed).sum();
    let failed = match failed {
        0 => String::new(),
        n => format!(" ({n} are missing)"),
    };
    format!(
        "in shadow on {} {differ} of {rows} answers differ from those of {with}{failed}{rest}",
        devices(compared.len() as u64)
    )
}

#[cfg(test)]
mod tests;
