//! What follows when the owner no longer signs for a version that this device has.
//!
//! A device without a model is worse than one on a revoked model, and the server, which knows the fleet, orders the
//! replacement. So what runs goes on running, loudly. Nothing revoked is started again: not by an order (a stolen
//! server may give one), not by a person, and not by a rollback unless nothing else is left.

use std::collections::BTreeSet;

use plimsoll_protocol::Digest;
use plimsoll_protocol::wire::v1::Severity;

use crate::turn::Turn;

/// Why it is not started.
pub(crate) const REVOKED: &str = "the fleet's owner no longer signs for it, and this device has seen that";

/// Takes what a refresh found, and tells what is new in it.
pub(crate) fn take(mut revoked: BTreeSet<Digest>, turn: &mut Turn) {
    let slots = turn.next.record.slots();
    revoked.retain(|digest| slots.contains(digest));
    let before = std::mem::replace(&mut turn.next.record.revoked, revoked);
    let new: BTreeSet<Digest> = turn.next.record.revoked.difference(&before).copied().collect();
    let mut told = Vec::new();
    for (model, record) in &turn.next.record.models {
        let fates = [
            (&record.active, Severity::Alarm, "it goes on running until another version is ordered"),
            (&record.previous, Severity::Info, "this device does not return to it"),
        ];
        for (installed, severity, fate) in fates {
            if let Some(installed) = installed.as_ref().filter(|i| new.contains(&i.digest)) {
                let text = format!(
                    "{model} {} ({:?}) was revoked: the fleet's owner no longer signs for it; {fate}",
                    installed.version, installed.digest
                );
                told.push((severity, text, model.clone(), installed.digest));
            }
        }
    }
    for (severity, text, model, digest) in told {
        turn.report_event(severity, "model.revoked", &text, Some(&model), Some(digest));
    }
}
