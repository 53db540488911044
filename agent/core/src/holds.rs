//! Why an update waits although nothing is wrong: somebody said so.
//!
//! Four voices can hold an update: the fleet (a pause), the person at the device (a pause that survives restarts),
//! the maintenance hours of the order and of the device's settings, and the application on the device ("not now").
//! A return to an earlier version listens to none of them: it leads to what is known to work.

use plimsoll_protocol::hours::MaintenanceHours;

use crate::policy::SERVE_DEADLINE_MS;
use crate::turn::{Turn, Unit};

/// The hold that ends when the running version answers.
pub(crate) const HOLD_SERVING: &str = "serving";

/// What the device's own settings say about updates. Not persisted: the shell reads them at every start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// Updates start and go on within these hours only; those of the order hold as well.
    pub hours: MaintenanceHours,
    /// Longest that the application may put off one update, milliseconds. At 0 it cannot.
    pub not_now_max_ms: u64,
}

/// A clock that is not set may be set at any moment: ten minutes are short against maintenance hours and long against
/// a wake-up of the processor.
const CLOCK_RECHECK_MS: u64 = 10 * 60 * 1_000;
const MINUTE_MS: u64 = 60_000;

/// Holds the unit when the fleet, the person at the device or the hours want it so.
pub(crate) fn hold_for_people(unit: &mut Unit, turn: &mut Turn) -> bool {
    if !listens(unit) {
        return false;
    }
    if turn.next.record.paused {
        hold(unit, "pause", "updates of the fleet are paused", turn);
        return true;
    }
    if turn.next.record.paused_here {
        hold(
            unit,
            "pause_here",
            "updates of this device are paused: `plimsoll-agent resume` lets them go on",
            turn,
        );
        return true;
    }
    let Some((why, wait_ms)) = closed(unit, turn) else { return false };
    hold(unit, "hours", &why, turn);
    unit.volatile.recheck_at = Some(turn.ctx.mono_ms + wait_ms);
    true
}

/// Whether a fetch that runs has to stop for now: a pause of this device, or the end of its hours. A pause of the
/// fleet keeps updates from starting and does not cut off what has started.
pub(crate) fn must_wait(unit: &Unit, turn: &Turn) -> bool {
    listens(unit) && (turn.next.record.paused_here || closed(unit, turn).is_some())
}

/// A return to an earlier version listens to nobody, nor does an order of the person who stands at the device.
fn listens(unit: &Unit) -> bool {
    unit.record.order.as_ref().is_some_and(|o| !o.wanted.rollback && !o.local)
}

/// Sets the next look at hours that are open now, so that their end is noticed.
pub(crate) fn watch_hours(unit: &mut Unit, turn: &Turn) {
    let Some(local) = turn.ctx.local else { return };
    let ends = both(unit, turn).filter_map(|hours| hours.changes_in(local)).min();
    unit.volatile.recheck_at = ends.map(|minutes| turn.ctx.mono_ms + u64::from(minutes) * MINUTE_MS);
}

/// Holds the activation while the application says "not now", for as long as the operator allows.
pub(crate) fn hold_for_application(unit: &mut Unit, turn: &mut Turn) -> bool {
    let now = turn.ctx.mono_ms;
    let Some(until) = turn.next.not_now_until.filter(|until| *until > now) else { return false };
    let since = *unit.volatile.not_now_since.get_or_insert(now);
    let most = turn.next.rules.not_now_max_ms;
    let bound = since.saturating_add(most);
    if bound <= now {
        return false;
    }
    let text = format!(
        "the application on this device says not now; it may put this off for {} s in all",
        most / 1_000
    );
    hold(unit, "not_now", &text, turn);
    unit.volatile.recheck_at = Some(until.min(bound));
    true
}

/// Holds the unit until the running version answers, at most for as long as that one may take.
pub(crate) fn hold_for_answer(unit: &mut Unit, why: &str, turn: &mut Turn) {
    let since = *unit.volatile.waits_since.get_or_insert(turn.ctx.mono_ms);
    hold(unit, HOLD_SERVING, why, turn);
    unit.volatile.recheck_at = Some(since + SERVE_DEADLINE_MS);
}

/// Says once what the unit waits for.
pub(crate) fn hold(unit: &mut Unit, kind: &'static str, why: &str, turn: &mut Turn) {
    unit.volatile.hold_until = None;
    unit.volatile.recheck_at = None;
    if unit.volatile.told != Some(kind) {
        unit.volatile.told = Some(kind);
        turn.report_job_because(unit, why);
    }
}

/// The hours of the order and those of the device.
fn both<'a>(unit: &'a Unit, turn: &'a Turn) -> impl Iterator<Item = &'a MaintenanceHours> {
    let ordered = unit.record.order.as_ref().map(|o| &o.wanted.policy.hours);
    ordered.into_iter().chain([&turn.next.rules.hours])
}

/// Why the hours are closed, and for how many milliseconds at least.
fn closed(unit: &Unit, turn: &Turn) -> Option<(String, u64)> {
    both(unit, turn).find_map(|hours| {
        let Some(local) = turn.ctx.local else {
            let why = format!("waits for its maintenance hours ({hours}), and this device does not know the time: set its clock");
            return (!hours.is_any_time()).then_some((why, CLOCK_RECHECK_MS));
        };
        if hours.open(local) {
            return None;
        }
        let minutes = hours.changes_in(local).unwrap_or(1);
        let why = format!(
            "waits for its maintenance hours ({hours}): it is {local} here, they begin in {} h {} min",
            minutes / 60,
            minutes % 60
        );
        Some((why, u64::from(minutes) * MINUTE_MS))
    })
}
