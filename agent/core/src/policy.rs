//! Numbers and small verdicts, each with its arithmetic.

use plimsoll_protocol::wire::v1::UpdatePolicy;

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;

/// A fetch that has not answered: the largest file (4 GiB) over a 2 Mbit/s mobile link takes 4 h 46 min; a fetch
/// that resumes loses nothing when it is cut here and tried again.
pub const FETCH_DEADLINE_MS: u64 = 6 * HOUR;
/// Fsync of a whole bundle: 4 GiB at the 10 MB/s of a worn SD card are 7 min 10 s.
pub const STAGE_DEADLINE_MS: u64 = 10 * MINUTE;
/// Golden samples in a child: the driver gives the child its own, shorter limit; this one catches a driver that
/// lost the child. Loading 60 s and 64 samples at 5 s each are under 7 min.
pub const SELF_TEST_DEADLINE_MS: u64 = 10 * MINUTE;
/// A load with its warm-up inference: as long as a self-test, whose work it repeats in part.
pub const LOAD_DEADLINE_MS: u64 = 10 * MINUTE;
/// From the flip to the first answer by the new version: one swap of a pointer, or, when the child was restarted
/// meanwhile, one more load.
pub const SERVE_DEADLINE_MS: u64 = LOAD_DEADLINE_MS + MINUTE;
/// Loads of a proven version that may fail in a row before the previous one is served instead: with the backoff of
/// [`crate::retry`] the third comes within six seconds, and a device without a model is worse than one on N-1.
pub const RELOADS: u32 = 3;
/// Longest `Retry-After` that is obeyed: a day; a server that says more is broken or lies.
pub const RETRY_AFTER_CAP_MS: u64 = 24 * HOUR;
/// How often a risky step may be begun under a policy. None at all would block every version.
pub const fn budget(policy: &UpdatePolicy) -> u32 {
    if policy.tries == 0 { 1 } else { policy.tries }
}

/// How a version takes over from the one that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swap {
    /// Loaded beside it: no request is refused.
    Overlap,
    /// Loaded in its place: memory does not hold both.
    Exclusive,
}

/// What a swap leaves to everybody else: the kernel begins to kill when nothing is left, and an inference in a burst
/// needs tensors of its own (a 1080p frame as FP32 is 24 MiB).
pub const RAM_RESERVE_BYTES: u64 = 32 * 1024 * 1024;

/// Chooses by what the version's own self-test needed at its peak on this device, and what is available now. What is
/// not known (0, `None`) does not speak against an overlap: the serving child dies before anything else does, and a
/// trial ends with it.
pub fn swap(ram_bytes: u64, available_bytes: Option<u64>) -> Swap {
    match available_bytes {
        Some(available) if ram_bytes > 0 && ram_bytes.saturating_add(RAM_RESERVE_BYTES) > available => {
            Swap::Exclusive
        }
        _ => Swap::Overlap,
    }
}

/// What the counters of a trial say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    Open,
    /// Roll back, for this reason.
    Bad(String),
    /// The trial passed; with a remark when it saw less than it should.
    Passed(Option<String>),
}

/// Judges a trial. `over` says that its time has passed.
///
/// While it runs, a share is judged only from `trial_requests` on, because one failure among the first three
/// requests is 33 % of nothing. When it ends with fewer, that is remarked and not failed, unless not one request
/// succeeded: then nothing speaks for the new version.
pub fn judge(policy: &UpdatePolicy, requests: u64, failed: u64, over: bool) -> Verdict {
    let asked = u64::from(policy.trial_requests);
    let share_too_high =
        u128::from(failed) * 100 > u128::from(policy.trial_max_failed_percent) * u128::from(requests);
    if requests >= asked.max(1) && share_too_high {
        let limit = policy.trial_max_failed_percent;
        return Verdict::Bad(format!(
            "{failed} of {requests} requests of its trial failed; the limit is {limit} %"
        ));
    }
    if !over {
        return Verdict::Open;
    }
    if requests > 0 && failed >= requests {
        return Verdict::Bad(format!("all {requests} requests of its trial failed"));
    }
    let few = (requests < asked).then(|| {
        format!("the trial of {} s saw {requests} requests; {asked} were asked for", policy.trial_s)
    });
    Verdict::Passed(few)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_is_judged_by_its_share_of_failures_once_it_has_seen_enough() {
        let policy =
            UpdatePolicy { trial_requests: 20, trial_max_failed_percent: 5, ..UpdatePolicy::default() };
        let cases = [
            // requests, failed, over, expected
            (0, 0, false, "open"),
            (3, 3, false, "open"),
            (19, 19, false, "open"),
            (20, 1, false, "open"), // exactly 5 %
            (20, 2, false, "bad"),
            (1_000, 50, false, "open"),
            (1_000, 51, false, "bad"),
            (1_000, 50, true, "passed"),
            (20, 0, true, "passed"),
            (0, 0, true, "remarked"),
            (3, 1, true, "remarked"),
            (3, 3, true, "bad"),
            (u64::MAX, u64::MAX, false, "bad"),
        ];
        for (requests, failed, over, expected) in cases {
            let got = match judge(&policy, requests, failed, over) {
                Verdict::Open => "open",
                Verdict::Bad(_) => "bad",
                Verdict::Passed(None) => "passed",
                Verdict::Passed(Some(_)) => "remarked",
            };
            assert_eq!(got, expected, "{failed} of {requests} failed, over: {over}");
        }
    }

    #[test]
    fn a_limit_of_zero_requests_still_needs_one_to_condemn() {
        let policy =
            UpdatePolicy { trial_requests: 0, trial_max_failed_percent: 0, ..UpdatePolicy::default() };
        assert_eq!(judge(&policy, 0, 0, false), Verdict::Open);
        assert!(matches!(judge(&policy, 1, 1, false), Verdict::Bad(_)));
        assert_eq!(judge(&policy, 0, 0, true), Verdict::Passed(None));
    }
}
