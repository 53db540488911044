//! Before a version takes over: beside the one that runs, on a sample of the same requests, answering nobody.
//!
//! A shadow is asked for by the order. It ends well when its time is over, also when it saw fewer rows than it should
//! (silence is no proof of badness, and is told); it ends the order when the candidate is *proven* to answer otherwise
//! in more rows than the limit allows, or when it crashes. The version that runs is not touched by any of it.
//!
//! A candidate in shadow can take the serving child down with it, so a try is spent before it is loaded, and no other
//! model has a version at risk meanwhile. What is persisted is that a shadow was begun, and that it is over: a crash
//! in between starts it again.

use plimsoll_protocol::Digest;
use plimsoll_protocol::wire::v1::{
    MAX_SHADOW_S, SHADOW_ERROR, Severity, ShadowEnd, ShadowPolicy, ShadowReport, ShadowTotals,
};

use crate::candidate::{activate, bring_back, fail_and_block, wait_for_next_try};
use crate::holds::hold_for_answer;
use crate::outcome::{Effect, Report};
use crate::policy::{LOAD_DEADLINE_MS, Swap, budget, swap};
use crate::record::{Order, State, kept};
use crate::turn::{Turn, Unit};

/// A shadow that compares: what was counted, and from how many rows on it is told again.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Comparing {
    pub totals: ShadowTotals,
    pub tell_at: u64,
}

/// Whether the order asks for one. A return to an earlier version is in a hurry, and was proven here.
pub(crate) fn asked(order: &Order) -> Option<&ShadowPolicy> {
    order.wanted.policy.shadow.as_ref().filter(|_| !order.wanted.rollback)
}

/// Begins a shadow when the order asks for one that has not been. `true` when the version does not go on to its
/// activation now: it shadows, waits to, or was given up.
pub(crate) fn comes_first(unit: &mut Unit, turn: &mut Turn) -> bool {
    let Some((order, version, digest)) = unit.wanted() else { return false };
    let mut tries = turn.next.record.tries(&unit.name, digest);
    if asked(&order).is_none() || tries.shadowed {
        return false;
    }
    if let Some(why) = pointless(unit, tries.ram_bytes, turn) {
        skip(unit, &why, turn);
        return false;
    }
    let active = unit.record.active.as_ref().map(|a| a.digest);
    if unit.volatile.serving != active {
        hold_for_answer(unit, "waits until the running version answers, to be compared with it", turn);
        return true;
    }
    let most = budget(&order.wanted.policy);
    if tries.shadows >= most {
        fail_and_block(unit, &format!("its shadow was begun {most} times and never ended"), turn);
        return true;
    }
    tries.shadows += 1;
    tries.attempt = order.wanted.attempt;
    turn.next.record.spend(tries);
    unit.enter(State::Shadowing, Some(turn.ctx.mono_ms + LOAD_DEADLINE_MS));
    turn.effect(Effect::Load { model: unit.name.clone(), version, digest });
    turn.report_job(unit);
    true
}

/// An order asks for a shadow while the version is being loaded to be served: it is taken back, to be compared first,
/// and what left memory for it returns. The try was not the version's fault.
pub(crate) fn catch_up(unit: &mut Unit, turn: &mut Turn) {
    let Some((order, _, digest)) = unit.wanted() else { return };
    let mut tries = turn.next.record.tries(&unit.name, digest);
    if asked(&order).is_none() || tries.shadowed || pointless(unit, tries.ram_bytes, turn).is_some() {
        return;
    }
    tries.activations = tries.activations.saturating_sub(1);
    turn.next.record.spend(tries);
    unload(unit, digest, turn);
    unit.enter(State::SelfTested, None);
    bring_back(unit, turn);
    unit.volatile.recheck_at = Some(turn.ctx.mono_ms);
}

/// Why a shadow would show nothing here, or cannot be held.
fn pointless(unit: &Unit, ram_bytes: u64, turn: &Turn) -> Option<String> {
    let Some(active) = &unit.record.active else {
        return Some("nothing runs that it could be compared with".to_owned());
    };
    if !active.trial_passed {
        return Some(format!("{}, which runs, is on trial itself", active.version));
    }
    if swap(ram_bytes, turn.ctx.ram_available_bytes) == Swap::Exclusive {
        return Some("the free memory does not hold both versions".to_owned());
    }
    let given_up = unit.volatile.reloads > 0 || unit.waited_long_enough(turn);
    (unit.volatile.serving != Some(active.digest) && given_up)
        .then(|| format!("{}, which runs, does not answer", active.version))
}

/// The candidate is loaded: the child compares from now on.
pub(crate) fn compare(unit: &mut Unit, turn: &mut Turn) {
    let (Some((order, _, digest)), Some(with)) =
        (unit.wanted(), unit.record.active.as_ref().map(|a| a.digest))
    else {
        return;
    };
    let Some(policy) = asked(&order).filter(|_| unit.volatile.comparing.is_none()) else { return };
    unit.volatile.loaded.insert(digest);
    unit.volatile.deadline =
        Some(turn.ctx.mono_ms + u64::from(policy.seconds.clamp(1, MAX_SHADOW_S)) * 1_000);
    let tell_at = u64::from(policy.min_rows.max(1));
    unit.volatile.comparing = Some(Comparing { totals: ShadowTotals::default(), tell_at });
    turn.effect(Effect::Shadow {
        model: unit.name.clone(),
        digest,
        with,
        sample_percent: policy.sample_percent.clamp(1, 100),
        seed: turn.ctx.seed,
    });
}

/// New totals from the child.
pub(crate) fn count(unit: &mut Unit, totals: ShadowTotals, turn: &mut Turn) {
    let Some((order, ..)) = unit.wanted() else { return };
    let (Some(policy), Some(comparing)) = (asked(&order), &mut unit.volatile.comparing) else { return };
    comparing.totals = totals;
    let news = totals.rows >= comparing.tell_at;
    if news {
        comparing.tell_at = totals.rows.saturating_mul(2);
    }
    if let Some(reason) = disagrees(policy, &totals, unit) {
        report(unit, ShadowEnd::Differs, Some(&reason), turn);
        leave(unit, turn);
        fail_and_block(unit, &reason, turn);
        return;
    }
    unit.volatile.why = Some(kept(&seen(&totals)));
    if news {
        report(unit, ShadowEnd::Open, None, turn);
    }
}

/// Why the candidate may not answer, when that is proven.
fn disagrees(policy: &ShadowPolicy, totals: &ShadowTotals, unit: &Unit) -> Option<String> {
    let limit = policy.max_disagree_percent?;
    let bound = totals.proven_above(f64::from(limit), SHADOW_ERROR)?;
    if totals.rows < u64::from(policy.min_rows) {
        return None;
    }
    let current = unit.record.active.as_ref().map(|a| a.version.to_string()).unwrap_or_default();
    let failed = match totals.failed {
        0 => String::new(),
        n => format!(" ({n} of them not at all)"),
    };
    Some(format!(
        "in shadow it answered {} of {} rows otherwise than {current}{failed}; at least {bound:.1} % is proven, the \
         limit is {limit} %",
        totals.differ, totals.rows
    ))
}

fn seen(totals: &ShadowTotals) -> String {
    let ShadowTotals { rows, differ, .. } = totals;
    format!("{rows} rows compared with the running version, {differ} answered otherwise")
}

/// Its time is over, or it did not load in time.
pub(crate) fn time_over(unit: &mut Unit, turn: &mut Turn) {
    let Some(comparing) = unit.volatile.comparing.clone() else {
        broke(unit, "it did not load within its deadline", turn);
        return;
    };
    let Some((order, version, digest)) = unit.wanted() else { return };
    let least = asked(&order).map_or(0, |p| u64::from(p.min_rows));
    let few = comparing.totals.rows < least;
    let told = seen(&comparing.totals);
    if few {
        report(unit, ShadowEnd::Few, Some(&format!("{told}; {least} were asked for")), turn);
        let text =
            format!("the shadow of {} {version} saw little: {told}; {least} were asked for", unit.name);
        turn.report_event(Severity::Warning, "shadow.few", &text, Some(&unit.name), Some(digest));
    } else {
        report(unit, ShadowEnd::Agreed, None, turn);
        let text = format!("the shadow of {} {version} ended well: {told}", unit.name);
        turn.report_event(Severity::Info, "shadow.ended", &text, Some(&unit.name), Some(digest));
    }
    over(unit, turn);
}

/// The child cannot compare the two.
pub(crate) fn refused(unit: &mut Unit, why: &str, turn: &mut Turn) {
    skip(unit, why, turn);
    over(unit, turn);
}

/// On to the activation. The candidate stays in memory for it, unless that has to wait.
fn over(unit: &mut Unit, turn: &mut Turn) {
    let Some((_, _, digest)) = unit.wanted() else { return };
    mark_over(unit, turn);
    turn.effect(Effect::EndShadow { model: unit.name.clone(), digest });
    unit.enter(State::SelfTested, None);
    activate(unit, turn);
    if unit.record.state != State::Activating {
        unload(unit, digest, turn);
    }
}

/// The candidate was loaded or compared, and something crashed: again, while there are tries.
pub(crate) fn broke(unit: &mut Unit, reason: &str, turn: &mut Turn) {
    let Some((order, _, digest)) = unit.wanted() else { return };
    leave(unit, turn);
    let spent = turn.next.record.tries(&unit.name, digest).shadows;
    if spent >= budget(&order.wanted.policy) {
        let reason = format!("its shadow broke {spent} times: {reason}");
        report(unit, ShadowEnd::Broke, Some(&reason), turn);
        fail_and_block(unit, &reason, turn);
        return;
    }
    wait_for_next_try(unit, State::SelfTested, spent, &format!("its shadow broke: {reason}"), turn);
}

/// It panicked on a request that the running version answered: no number of tries makes that right.
pub(crate) fn condemn(unit: &mut Unit, reason: &str, turn: &mut Turn) {
    let reason = format!("in shadow, on a request that the running version answered: {reason}");
    report(unit, ShadowEnd::Broke, Some(&reason), turn);
    leave(unit, turn);
    fail_and_block(unit, &reason, turn);
}

/// What it is compared with leaves, or the order does not ask for a shadow any more. Costs no try; the next tick looks
/// again.
pub(crate) fn interrupt(unit: &mut Unit, turn: &mut Turn) {
    let Some((_, _, digest)) = unit.wanted() else { return };
    leave(unit, turn);
    let mut tries = turn.next.record.tries(&unit.name, digest);
    tries.shadows = tries.shadows.saturating_sub(1);
    turn.next.record.spend(tries);
    unit.enter(State::SelfTested, None);
    unit.volatile.recheck_at = Some(turn.ctx.mono_ms);
}

/// The candidate leaves memory, and the comparison ends with it.
pub(crate) fn leave(unit: &mut Unit, turn: &mut Turn) {
    if let Some(digest) = unit.record.ordered() {
        unload(unit, digest, turn);
    }
}

fn unload(unit: &mut Unit, digest: Digest, turn: &mut Turn) {
    unit.volatile.loaded.remove(&digest);
    if turn.next.child_up {
        turn.effect(Effect::Unload { model: unit.name.clone(), digest });
    }
}

fn skip(unit: &mut Unit, why: &str, turn: &mut Turn) {
    let Some((_, version, digest)) = unit.wanted() else { return };
    report(unit, ShadowEnd::Skipped, Some(why), turn);
    let text = format!("{} {version} goes on without a shadow: {why}", unit.name);
    turn.report_event(Severity::Warning, "shadow.skipped", &text, Some(&unit.name), Some(digest));
    mark_over(unit, turn);
}

fn mark_over(unit: &Unit, turn: &mut Turn) {
    let Some((order, _, digest)) = unit.wanted() else { return };
    let mut tries = turn.next.record.tries(&unit.name, digest);
    tries.shadowed = true;
    tries.attempt = order.wanted.attempt;
    turn.next.record.spend(tries);
}

fn report(unit: &Unit, end: ShadowEnd, reason: Option<&str>, turn: &mut Turn) {
    let Some((order, version, candidate)) = unit.wanted() else { return };
    let active = unit.record.active.as_ref();
    let report = ShadowReport {
        generation: order.generation,
        rollout: order.wanted.rollout.clone(),
        model: unit.name.clone(),
        version,
        candidate,
        current_version: active.map(|a| a.version.clone()),
        current: active.map(|a| a.digest),
        end,
        reason: reason.map(kept),
        totals: unit.volatile.comparing.as_ref().map(|c| c.totals).unwrap_or_default(),
    };
    turn.after.reports.push(Report::Shadow(Box::new(report)));
}
