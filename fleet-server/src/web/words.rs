//! Every state in words, with a symbol beside it: colour only repeats what both say.

use maud::{Markup, html};
use plimsoll_protocol::UnixMillis;
use plimsoll_protocol::api::{DeviceInfo, RolloutStatus};
use plimsoll_protocol::wire::v1::{JobPhase, Severity};

/// How a state feels; decides colour and symbol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Good,
    Busy,
    Warn,
    Bad,
    Idle,
}

impl Tone {
    const fn class(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Busy => "busy",
            Self::Warn => "warn",
            Self::Bad => "bad",
            Self::Idle => "idle",
        }
    }
    /// Shapes that differ without colour: tick, open circle with a dot, triangle, cross, dash.
    const fn path(self) -> &'static str {
        match self {
            Self::Good => "M3 8.5l3.4 3.4L13 4.6",
            Self::Busy => "M8 2.2a5.8 5.8 0 1 0 5.8 5.8M8 4.8V8l2.4 1.6",
            Self::Warn => "M8 2.2L14.3 13.4H1.7zM8 6.4v3.2M8 11.5v.4",
            Self::Bad => "M3.8 3.8l8.4 8.4M12.2 3.8l-8.4 8.4",
            Self::Idle => "M3.5 8h9",
        }
    }
}

/// A state as a small label.
pub(super) fn chip(tone: Tone, words: &str) -> Markup {
    html! {
        span class={ "chip " (tone.class()) } {
            svg viewBox="0 0 16 16" aria-hidden="true" focusable="false" { path d=(tone.path()); }
            span { (words) }
        }
    }
}

/// A device in words.
pub(super) fn device(device: &DeviceInfo) -> (Tone, String) {
    if device.revoked {
        return (Tone::Bad, "Revoked".into());
    }
    if !device.online {
        return (Tone::Idle, "Offline".into());
    }
    let under_way = device.jobs.iter().find_map(|j| j.phase.filter(|p| !p.is_end()));
    let ended_badly = device.jobs.iter().find_map(|j| j.phase.filter(|p| phase(*p).0 == Tone::Bad));
    match (under_way, ended_badly) {
        (Some(p), _) | (None, Some(p)) => {
            let (tone, words) = phase(p);
            (tone, words.into())
        }
        (None, None) if device.running.is_empty() => (Tone::Idle, "No model yet".into()),
        (None, None) if device.running.iter().any(|m| !m.trial_passed) => (Tone::Busy, "On trial".into()),
        (None, None) => (Tone::Good, "Running".into()),
    }
}

/// A phase of an update in words.
pub(super) const fn phase(phase: JobPhase) -> (Tone, &'static str) {
    match phase {
        JobPhase::Waiting => (Tone::Busy, "Waiting to update"),
        JobPhase::Fetching => (Tone::Busy, "Downloading"),
        JobPhase::SelfTesting => (Tone::Busy, "Self-testing"),
        JobPhase::Shadowing => (Tone::Busy, "In shadow"),
        JobPhase::Activating => (Tone::Busy, "Switching over"),
        JobPhase::Probation => (Tone::Busy, "On trial"),
        JobPhase::Active => (Tone::Good, "Running"),
        JobPhase::Failed => (Tone::Bad, "Update failed"),
        JobPhase::RolledBack => (Tone::Bad, "Rolled itself back"),
        JobPhase::NotApplicable => (Tone::Idle, "Cannot run it"),
        JobPhase::Superseded => (Tone::Idle, "Replaced by a newer order"),
    }
}

/// Where a rollout stands, in words.
pub(super) const fn rollout(status: RolloutStatus) -> (Tone, &'static str) {
    match status {
        RolloutStatus::Running => (Tone::Busy, "Rolling out"),
        RolloutStatus::WaitingForApproval => (Tone::Warn, "Waiting for approval"),
        RolloutStatus::Paused => (Tone::Warn, "Paused"),
        RolloutStatus::RollingBack => (Tone::Bad, "Stopped, rolling back"),
        RolloutStatus::RolledBack => (Tone::Bad, "Stopped and rolled back"),
        RolloutStatus::Completed => (Tone::Good, "Completed"),
        RolloutStatus::Aborted => (Tone::Idle, "Aborted"),
        RolloutStatus::Superseded => (Tone::Idle, "Superseded"),
    }
}

/// A stage in words; a state that this page does not know is shown as it is. A stage that its rollout left behind is
/// not under way, whatever it was last.
pub(super) fn stage(state: &str, rollout: RolloutStatus) -> (Tone, &str) {
    let stopped = matches!(rollout, RolloutStatus::RollingBack | RolloutStatus::RolledBack);
    match state {
        "waiting" => (Tone::Idle, "Not started"),
        "done" => (Tone::Good, "Done"),
        "running" | "soaking" if stopped => (Tone::Bad, "Stopped"),
        "running" | "soaking" if rollout.is_end() => (Tone::Idle, "Ended"),
        "running" => (Tone::Busy, "Updating devices"),
        "soaking" => (Tone::Busy, "Stage wait: observing"),
        other => (Tone::Idle, other),
    }
}

/// How bad an event is.
pub(super) const fn severity(severity: Severity) -> (Tone, &'static str) {
    match severity {
        Severity::Info => (Tone::Idle, "Info"),
        Severity::Warning => (Tone::Warn, "Warning"),
        Severity::Alarm => (Tone::Bad, "Alarm"),
    }
}

/// `12 s ago`, with the exact time for machines and on hover.
pub(super) fn ago(then: UnixMillis, now: UnixMillis) -> Markup {
    let exact = utc(then);
    html! { time datetime=(exact.replace(' ', "T")) title=(exact) { (age(then, now)) } }
}

fn age(then: UnixMillis, now: UnixMillis) -> String {
    let s = now.saturating_sub(then) / 1000;
    match s {
        ..3 => "just now".into(), // and clocks that are ahead of ours
        3..90 => format!("{s} s ago"),
        90..5400 => format!("{} min ago", (s + 30) / 60),
        5400..129_600 => format!("{} h ago", (s + 1800) / 3600),
        _ => format!("{} days ago", (s + 43_200) / 86_400),
    }
}

/// `2026-11-21 08:15:03Z`. The calendar by Hinnant's day count: days since 0000-03-01, so that leap days end a year.
fn utc(ms: UnixMillis) -> String {
    let (days, seconds) = (ms.div_euclid(86_400_000), ms.rem_euclid(86_400_000) / 1000);
    let z = days + 719_468; // from 0000-03-01 to 1970-01-01
    let (era, of_era) = (z.div_euclid(146_097), z.rem_euclid(146_097)); // 400 years
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153; // 0 is March
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = year + era * 400 + next;
    let (h, m, s) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {h:02}:{m:02}:{s:02}Z")
}

/// `1.3 MB`.
pub(super) fn bytes(n: u64) -> String {
    let scaled = |unit: f64| format!("{:.1}", n as f64 / unit);
    match n {
        ..1000 => format!("{n} B"),
        1000..1_000_000 => format!("{} kB", scaled(1e3)),
        1_000_000..1_000_000_000 => format!("{} MB", scaled(1e6)),
        _ => format!("{} GB", scaled(1e9)),
    }
}

/// `12 345`: thousands apart, by a space that does not break.
pub(super) fn number(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

/// `1 device`, `2 devices`.
pub(super) fn count(n: u64, one: &str) -> String {
    format!("{} {one}{}", number(n), if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (ms, text) in [
            (0, "1970-01-01 00:00:00Z"),
            (951_782_400_000, "2000-02-29 00:00:00Z"),
            (1_735_689_599_999, "2024-12-31 23:59:59Z"),
            (-1, "1969-12-31 23:59:59Z"),
            (4_107_542_400_000, "2100-03-01 00:00:00Z"),
        ] {
            assert_eq!(utc(ms), text);
        }
    }

    #[test]
    fn ages_are_told_in_one_unit_and_never_lie_ahead() {
        for (s, text) in [(-60, "just now"), (2, "just now"), (45, "45 s ago"), (300, "5 min ago")] {
            assert_eq!(age(0, s * 1000), text);
        }
        assert_eq!(age(0, 7_200_000), "2 h ago");
        assert_eq!(age(0, 3 * 86_400_000), "3 days ago");
        assert_eq!(age(i64::MIN, i64::MAX), age(0, i64::MAX));
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!(number(1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!((bytes(999), bytes(1_270_000)), ("999 B".into(), "1.3 MB".into()));
        assert_eq!((count(1, "device"), count(0, "device")), ("1 device".into(), "0 devices".into()));
    }
}
