//! Is it well with the devices that have the version?
//!
//! Two shares are judged, failed and silent, each against the limit of the spec. Three answers are possible:
//!
//! - **breach**: the devices prove, at the confidence of the spec, that the share of the whole fleet would lie above
//!   the limit. The proof may be looked at on every tick ([`share`]), and the gates share the error
//!   budget equally. "2 % of 20" as a plain comparison would stop a healthy fleet with 1 % failures one time in
//!   five; the proof does so less than one time in a hundred.
//! - **doubt**: no proof, but an answer this bad had a chance below 5 % on a version at the limit. A person decides
//!   whether the next stage starts. One failed of two canaries is such a case (3.96 % at a limit of 2 %).
//! - **pass**.
//!
//! One plain rule stands beside the proof, because one to three devices cannot prove much: when everyone has answered
//! and no device came through, it is stopped; in the first stage after one failure, in a later one after two. On a
//! version at a limit of 2 % that is wrong for 1 single canary in 50, for 2 devices 1 time in 2,500, for 3 one time
//! in 125,000; and it costs one small stage.
//!
//! Shares divide by devices that answered. Until they have, those under way count as if they will turn out well:
//! failures come faster than passed trials, and five early failures among 500 devices still on trial are not
//! "5 of 5". Devices that were never reached, that cannot run it, or that left the fleet count nowhere.

use plimsoll_protocol::api::GateSpec;
use plimsoll_protocol::share;

/// Gates that always share the error budget; gates on shadows and accuracy take their share when a rollout has them.
pub const GATES: f64 = 2.0;
/// Below this chance at the limit, a person is asked: one healthy rollout in twenty at the limit itself; at half the
/// limit (1 % against 2 %) about one in fifty for two canaries, one in six hundred for fifty.
pub const DOUBT: f64 = 0.05;

/// Devices of one or all stages, counted by what became of the order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Run it, trial passed.
    pub active: u64,
    /// Failed or went back by themselves.
    pub failed: u64,
    /// Gave no answer in time.
    pub silent: u64,
    /// In time.
    pub under_way: u64,
    /// Cannot run it.
    pub not_applicable: u64,
    /// Not connected since the order.
    pub away: u64,
    /// Left the fleet.
    pub gone: u64,
    /// Failed, and a person resumed knowing it: counts for no gate.
    pub accepted_failed: u64,
    /// Silent, and a person resumed knowing it: counts for no gate.
    pub accepted_silent: u64,
}

impl Tally {
    /// Devices that answered, well or badly.
    pub const fn answered(&self) -> u64 {
        self.active + self.failed
    }

    /// Failed or silent, and a person resumed knowing it.
    pub const fn accepted(&self) -> u64 {
        self.accepted_failed + self.accepted_silent
    }

    /// Devices that fill a place of their stage: all that have it, may have it or may yet get it.
    pub const fn filling(&self) -> u64 {
        self.active + self.failed + self.silent + self.under_way + self.away + self.accepted()
    }
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.active += other.active;
        self.failed += other.failed;
        self.silent += other.silent;
        self.under_way += other.under_way;
        self.not_applicable += other.not_applicable;
        self.away += other.away;
        self.gone += other.gone;
        self.accepted_failed += other.accepted_failed;
        self.accepted_silent += other.accepted_silent;
    }
}

/// What one gate says. From mild to severe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Nothing speaks against going on.
    Pass,
    /// A person decides about the next stage.
    Doubt,
    /// Stop.
    Breach,
}

/// What one gate says, and why. Gates on other evidence (drift, failed requests, accuracy) hand in the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Which gate: `failed`, `silent`, …
    pub gate: String,
    /// What it says.
    pub verdict: Verdict,
    /// In words, with numbers.
    pub text: String,
}

/// What the two gates say of all devices ordered so far (`tally`), those of the open stage (`open`) among them.
pub fn judge(gate: &GateSpec, tally: &Tally, open: &Tally) -> Vec<Reading> {
    let failed = Share {
        gate: "failed",
        verb: "failed",
        bad: tally.failed,
        bad_in_stage: open.failed,
        of: tally.answered(),
        whom: "that answered",
        limit_percent: gate.max_failed_percent,
    };
    let silent = Share {
        gate: "silent",
        verb: "went silent after the order",
        bad: tally.silent,
        bad_in_stage: open.silent,
        of: tally.answered() + tally.silent,
        whom: "reached",
        limit_percent: gate.max_silent_percent,
    };
    vec![failed.judge(gate, tally, open), silent.judge(gate, tally, open)]
}

/// The most severe reading; of several the first.
pub fn worst(readings: &[Reading]) -> Option<&Reading> {
    readings.iter().rev().max_by_key(|r| r.verdict)
}

struct Share {
    gate: &'static str,
    verb: &'static str,
    bad: u64,
    bad_in_stage: u64,
    of: u64,
    whom: &'static str,
    limit_percent: f64,
}

impl Share {
    fn judge(&self, gate: &GateSpec, tally: &Tally, open: &Tally) -> Reading {
        let (verdict, text) = self.verdict(gate, tally, open);
        Reading { gate: self.gate.to_owned(), verdict, text }
    }

    fn verdict(&self, gate: &GateSpec, tally: &Tally, open: &Tally) -> (Verdict, String) {
        let counted = format!("{} of {} {} {}", self.bad, devices(self.of), self.whom, self.verb);
        if self.bad == 0 {
            return (Verdict::Pass, counted);
        }
        let limit = self.limit_percent / 100.0;
        let settled = tally.under_way == 0;
        if settled && tally.active == 0 {
            return (Verdict::Breach, format!("{counted}, and no device has come through"));
        }
        if open.under_way == 0 && open.active == 0 && self.bad_in_stage >= 2 {
            return (Verdict::Breach, format!("{counted}, and no device of the last stage has come through"));
        }
        let alpha = budget(gate);
        let n = self.of + tally.under_way;
        if (settled || self.of >= u64::from(gate.min_sample))
            && share::evidence_above(limit, self.bad, n) >= 1.0 / alpha
        {
            let bound = share::lower_bound(self.bad, n, alpha);
            let even_if = match tally.under_way {
                0 => String::new(),
                n => format!(" (the {n} still under way counted as good)"),
            };
            let text = format!(
                "{counted}; at {} confidence more than {} of the fleet would{even_if}, above the limit of {}",
                percent(gate.confidence * 100.0),
                percent(bound * 100.0),
                percent(self.limit_percent),
            );
            return (Verdict::Breach, text);
        }
        let chance = share::tail(limit, self.bad, n);
        if chance < DOUBT {
            let text = format!(
                "{counted}; a version at the limit of {} does so with a chance of {}: too few devices for proof, \
                 too many for chance",
                percent(self.limit_percent),
                percent(chance * 100.0),
            );
            return (Verdict::Doubt, text);
        }
        (Verdict::Pass, counted)
    }
}

/// Judges answers of which `(bad, all)` are not as they should be, against a limit in percent. `counted` says so in words.
pub(crate) fn judge_answers(
    gate: &GateSpec,
    limit_percent: f64,
    (bad, all): (u64, u64),
    counted: String,
) -> (Verdict, String) {
    if bad == 0 {
        return (Verdict::Pass, counted);
    }
    let limit = limit_percent / 100.0;
    let alpha = budget(gate);
    if share::evidence_above(limit, bad, all) >= 1.0 / alpha {
        let text = format!(
            "{counted}; at {} confidence that stands for more than {} of all, above the limit of {}",
            percent(gate.confidence * 100.0),
            percent(share::lower_bound(bad, all, alpha) * 100.0),
            percent(limit_percent),
        );
        return (Verdict::Breach, text);
    }
    let chance = share::tail(limit, bad, all);
    if chance < DOUBT {
        let text = format!(
            "{counted}; a version at the limit of {} does so with a chance of {}: too few answers for proof, too many \
             for chance",
            percent(limit_percent),
            percent(chance * 100.0),
        );
        return (Verdict::Doubt, text);
    }
    (Verdict::Pass, counted)
}

/// Error probability of one gate.
pub(crate) fn budget(gate: &GateSpec) -> f64 {
    let more = [gate.max_shadow_disagree_percent, gate.min_accuracy_percent];
    (1.0 - gate.confidence) / (GATES + more.iter().flatten().count() as f64)
}

/// Fewest bad devices among `n` that breach a limit; `None` when even all would not.
pub(crate) fn fewest_to_breach(limit_percent: f64, n: u64, alpha: f64) -> Option<u64> {
    let breaches = |bad: u64| share::evidence_above(limit_percent / 100.0, bad, n) >= 1.0 / alpha;
    if n == 0 || !breaches(n) {
        return None;
    }
    // Evidence rises with every bad device, so halving finds the first.
    let (mut low, mut high) = (0, n);
    while low + 1 < high {
        let middle = low + (high - low) / 2;
        if breaches(middle) { high = middle } else { low = middle }
    }
    Some(high)
}

pub(crate) fn devices(n: u64) -> String {
    if n == 1 { "1 device".to_owned() } else { format!("{n} devices") }
}

/// Two significant digits below ten, none after the point above: `3.9 %`, `0.04 %`, `58 %`.
pub(crate) fn percent(value: f64) -> String {
    let text = match value {
        v if (99.0..100.0).contains(&v) => format!("{v:.2}"),
        v if v >= 10.0 => format!("{v:.0}"),
        v if v >= 0.1 || v == 0.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    };
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text} %")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(active: u64, failed: u64, under_way: u64) -> Tally {
        Tally { active, failed, under_way, ..Tally::default() }
    }

    fn check(tally: Tally, expect: Verdict) {
        let readings = judge(&GateSpec::default(), &tally, &tally);
        let worst = worst(&readings).unwrap();
        assert_eq!(worst.verdict, expect, "{tally:?}: {}", worst.text);
    }

    #[test]
    fn small_stages_stop_when_all_fail_and_ask_when_half_does() {
        check(tally(0, 1, 0), Verdict::Breach);
        check(tally(0, 2, 0), Verdict::Breach);
        check(tally(0, 3, 0), Verdict::Breach);
        check(tally(1, 1, 0), Verdict::Doubt);
        check(tally(2, 1, 0), Verdict::Pass);
        check(tally(1, 2, 0), Verdict::Breach);
        check(tally(2, 0, 0), Verdict::Pass);
        check(tally(0, 0, 0), Verdict::Pass);
    }

    #[test]
    fn two_percent_of_twenty_does_not_stop_a_fleet_with_one_failure() {
        check(tally(19, 1, 0), Verdict::Pass);
        check(tally(48, 2, 0), Verdict::Pass);
        check(tally(46, 4, 0), Verdict::Doubt);
        check(tally(43, 7, 0), Verdict::Breach);
    }

    #[test]
    fn early_failures_do_not_stand_for_devices_still_on_trial() {
        check(tally(0, 5, 495), Verdict::Pass);
        check(tally(0, 40, 460), Verdict::Breach);
    }

    #[test]
    fn silent_devices_do_not_dilute_failures() {
        // 9 of 10 that answered failed while 90 of 100 are silent or away: the rate is 90 %, not 9 %.
        let tally = Tally { active: 1, failed: 9, away: 90, ..Tally::default() };
        check(tally, Verdict::Breach);
        let gate = GateSpec { max_failed_percent: 10.0, ..GateSpec::default() };
        assert_eq!(judge(&gate, &tally, &tally)[0].verdict, Verdict::Breach);
    }

    #[test]
    fn silence_is_a_failure_of_its_own() {
        check(Tally { silent: 2, ..Tally::default() }, Verdict::Breach);
        check(Tally { active: 1, silent: 1, ..Tally::default() }, Verdict::Doubt);
        check(Tally { active: 100, silent: 2, ..Tally::default() }, Verdict::Pass);
        check(Tally { active: 80, silent: 20, ..Tally::default() }, Verdict::Breach);
    }

    #[test]
    fn a_later_stage_stops_when_two_of_two_fail_and_asks_when_one_of_one_does() {
        let verdict =
            |all: Tally, open: Tally| worst(&judge(&GateSpec::default(), &all, &open)).map(|r| r.verdict);
        assert_eq!(verdict(tally(2, 2, 0), tally(0, 2, 0)), Some(Verdict::Breach));
        assert_eq!(verdict(tally(2, 2, 0), tally(1, 1, 0)), Some(Verdict::Doubt));
        assert_eq!(verdict(tally(1, 1, 0), tally(0, 1, 0)), Some(Verdict::Doubt));
    }

    #[test]
    fn what_a_person_accepted_counts_for_no_gate() {
        check(
            Tally { active: 1, accepted_failed: 30, accepted_silent: 20, ..Tally::default() },
            Verdict::Pass,
        );
    }

    #[test]
    fn the_words_carry_the_numbers() {
        let readings = judge(&GateSpec::default(), &tally(43, 7, 0), &tally(43, 7, 0));
        assert!(
            readings[0]
                .text
                .starts_with("7 of 50 devices that answered failed; at 99 % confidence more than")
        );
        assert!(readings[0].text.ends_with("above the limit of 2 %"), "{}", readings[0].text);
    }

    #[test]
    fn fewest_to_breach_is_the_edge() {
        for n in [2, 3, 10, 50, 500] {
            let fewest = fewest_to_breach(2.0, n, 0.005).unwrap();
            assert!(share::evidence_above(0.02, fewest, n) >= 200.0);
            assert!(share::evidence_above(0.02, fewest - 1, n) < 200.0);
        }
        assert_eq!(fewest_to_breach(50.0, 3, 0.005), None);
    }

    #[test]
    fn percentages_read_well() {
        for (value, text) in [
            (2.0, "2 %"),
            (3.96, "4 %"),
            (0.04, "0.04 %"),
            (58.3, "58 %"),
            (99.9, "99.9 %"),
            (0.0, "0 %"),
            (100.0, "100 %"),
            (10.0, "10 %"),
        ] {
            assert_eq!(percent(value), text);
        }
    }
}
