//! A rollout: where it stands and why, stage by stage.

use maud::{Markup, html};
use plimsoll_protocol::UnixMillis;
use plimsoll_protocol::api::{DeviceOutputs, OutputEvidence, RolloutInfo, RolloutStatus, StageInfo};

use super::histogram::{self, Histogram};
use super::words::{self, Tone};
use super::{RolloutPage, fleet};

/// The live part of a rollout's own page.
pub(super) fn fragment(page: &RolloutPage) -> Markup {
    let spec = &page.rollout.spec;
    let gate = &spec.gate;
    let selector = if spec.selector.is_empty() { "all devices" } else { &spec.selector };
    html! {
        p class="crumbs" { a href="/#rollouts" { "Rollouts" } " / " (page.rollout.id) }
        h1 class="hidden" { "Rollout " (page.rollout.id) }
        (card(page.rollout, page.now_ms, false))
        @if let Some(shadow) = &page.rollout.shadow { (super::shadow::section(shadow)) }
        @if let Some(evidence) = &page.rollout.evidence { (self::evidence(evidence)) }
        @if !page.rollout.accuracy.is_empty() {
            section aria-labelledby="h-accuracy" {
                h2 id="h-accuracy" { "Accuracy, by labels that came later" }
                p { (page.rollout.accuracy) }
            }
        }
        section aria-labelledby="h-rules" {
            h2 id="h-rules" { "Rules" }
            dl class="facts" {
                dt { "Devices" } dd { (selector) }
                dt { "Stopped when" }
                dd {
                    "more than " (gate.max_failed_percent) " % fail or roll back, or more than "
                    (gate.max_silent_percent) " % are silent for " (gate.silent_after_s) " s, of at least "
                    (words::count(gate.min_sample.into(), "device")) " that answered, at "
                    ((gate.confidence * 1e4).round() / 100.0) " % confidence"
                    @if let Some(limit) = gate.max_shadow_disagree_percent {
                        "; or in shadow more than " (limit) " % of its answers differ from those of the version before"
                    }
                    @if let Some(least) = gate.min_accuracy_percent {
                        "; or fewer than " (least) " % of its labelled answers are right"
                    }
                    @if gate.outputs.max_confidence_drop < 1.0 {
                        "; or the mean confidence of its answers falls by more than "
                        (gate.outputs.max_confidence_drop) " on the devices that have it and not on the others, at "
                        ((gate.outputs.confidence * 1e4).round() / 100.0) " % confidence"
                    }
                }
                dt { "Then" }
                dd {
                    @match spec.on_breach {
                        plimsoll_protocol::api::OnBreach::Rollback => "devices get the version that they had before",
                        plimsoll_protocol::api::OnBreach::Pause => "nobody else gets it until a person decides",
                    }
                }
                @if let Some(shadow) = &spec.policy.shadow {
                    dt { "Shadow on each device" }
                    dd {
                        (shadow.seconds) " s, " (shadow.sample_percent) " % of the requests, at least "
                        (words::count(shadow.min_rows.into(), "row"))
                        @if let Some(limit) = shadow.max_disagree_percent {
                            "; stops there when more than " (limit) " % differ"
                        }
                    }
                }
                dt { "Trial on each device" }
                dd { (spec.policy.trial_s) " s, at most " (spec.policy.trial_max_failed_percent) " % failed requests" }
                dt { "Bundle" } dd { code { (page.rollout.digest.short()) } }
            }
        }
        section aria-labelledby="h-devices" {
            h2 id="h-devices" { "Devices" }
            (fleet::device_table(page.devices, page.now_ms))
        }
    }
}

/// What the version answers beside the one before: in words, as a picture, device by device.
fn evidence(evidence: &OutputEvidence) -> Markup {
    let chart = Histogram {
        feature: "Confidence of the devices with the new version".into(),
        text: evidence.text.clone(),
        alarm: evidence.stopped,
        bars: evidence.bars.clone(),
    };
    html! {
        section aria-labelledby="h-evidence" {
            h2 id="h-evidence" { "Evidence" }
            @if chart.bars.is_empty() { p { (evidence.text) } }
            @else { (histogram::compared(&chart, "Version before", "New version", "Stopped")) }
            div class="scroll" {
                table {
                    caption { "Mean confidence, device by device" }
                    thead { tr {
                        th scope="col" { "Device" } th scope="col" { "Has it" }
                        th scope="col" class="num" { "Before" } th scope="col" class="num" { "Readings" }
                        th scope="col" class="num" { "Since" } th scope="col" class="num" { "Readings" }
                    } }
                    tbody {
                        @for device in &evidence.canaries { (compared_device(device, "yes")) }
                        @for device in &evidence.controls { (compared_device(device, "no")) }
                    }
                }
            }
        }
    }
}

fn compared_device(row: &DeviceOutputs, has_it: &str) -> Markup {
    let mean = |mean: Option<f64>| mean.map_or_else(|| "–".to_owned(), |m| format!("{m:.2}"));
    html! {
        tr {
            th scope="row" { a href={ "/devices/" (row.device) } { (row.device) } }
            td { (has_it) }
            td class="num" { (mean(row.before)) } td class="num" { (words::number(row.before_readings)) }
            td class="num" { (mean(row.after)) } td class="num" { (words::number(row.after_readings)) }
        }
    }
}

/// A rollout as a card; `linked` where its heading leads to its own page.
pub(super) fn card(info: &RolloutInfo, now: UnixMillis, linked: bool) -> Markup {
    let (tone, status) = words::rollout(info.status);
    let title = html! { (info.spec.model) " " strong { (info.spec.version) } };
    let id = info.id.as_str();
    html! {
        article class={ "rollout " @if info.status.is_end() { "ended" } @else { "under-way" } }
            data-announce=[(!linked).then(|| format!("{status}: {}", info.reason))] {
            header {
                h3 {
                    @if linked { a id={ "rollout-" (id) } href={ "/rollouts/" (id) } { (title) } } @else { (title) }
                }
                (words::chip(tone, status))
                span class="when" {
                    "started " (words::ago(info.started_ms, now))
                    @if let Some(end) = info.ended_ms { ", ended " (words::ago(end, now)) }
                }
            }
            @if !info.reason.is_empty() { p class={ "reason" @if tone == Tone::Bad { " stop" } } { (info.reason) } }
            ol class="stages" { @for (at, stage) in info.stages.iter().enumerate() { (stage_row(at, stage, info.status)) } }
            (exposure(&info.stages))
            @if !info.history.is_empty() {
                details id={ "history-" (id) } class="fold" open[!linked] {
                    summary { (words::count(info.history.len() as u64, "decision")) }
                    ol class="history" reversed {
                        @for decision in info.history.iter().rev() {
                            li { (words::ago(decision.at_ms, now)) span { (decision.text) } }
                        }
                    }
                }
            }
        }
    }
}

fn stage_row(at: usize, stage: &StageInfo, rollout: RolloutStatus) -> Markup {
    let (tone, state) = words::stage(&stage.state, rollout);
    html! {
        li class="stage" {
            div class="stage-head" {
                span class="stage-name" {
                    (at + 1) ". "
                    @if stage.name.is_empty() { "stage" } @else { (stage.name) }
                }
                span class="stage-size" { (words::count(stage.devices, "device")) }
                (words::chip(tone, state))
            }
            (bar(stage))
            p class="counts" { (counts(stage)) }
            @if let Some(why) = &stage.waiting_for { p class="waits" { "Waits for " (why) } }
        }
    }
}

/// The parts of a stage's bar, in order: devices, words, class of the fill.
fn parts(stage: &StageInfo) -> [(u64, &'static str, &'static str); 6] {
    let told = stage.active + stage.in_progress + stage.failed + stage.silent + stage.not_applicable;
    let unheard =
        if is_over(stage) { "taken back before it answered" } else { "ordered, not connected since" };
    [
        (stage.active, "passed the trial", "active"),
        (stage.in_progress, "under way", "progress"),
        (stage.failed, "failed or rolled back", "failed"),
        (stage.silent, "silent", "silent"),
        (stage.not_applicable, "cannot run it", "apart"),
        (stage.ordered.saturating_sub(told), unheard, "apart"),
    ]
}

/// Whether nothing more comes of the stage: the rollout was stopped in it or before it.
fn is_over(stage: &StageInfo) -> bool {
    matches!(stage.state.as_str(), "stopped" | "not started")
}

/// The bar in words.
fn counts(stage: &StageInfo) -> String {
    let mut words: Vec<String> = parts(stage)
        .iter()
        .filter(|(n, ..)| *n > 0)
        .map(|(n, what, _)| format!("{} {what}", words::number(*n)))
        .collect();
    let told: u64 = parts(stage).iter().map(|(n, ..)| n).sum();
    let rest = stage.devices.saturating_sub(told);
    if rest > 0 {
        let yet = if is_over(stage) { "" } else { " yet" };
        words.push(format!("{} not ordered{yet}", words::number(rest)));
    }
    if !words.is_empty() {
        return words.join(" · ");
    }
    if is_over(stage) { "no device was ordered".into() } else { "no device matches".into() }
}

fn bar(stage: &StageInfo) -> Markup {
    let width = |n: u64| 100.0 * n as f64 / stage.devices.max(1) as f64;
    let mut left = 0.0;
    let segments: Vec<(f64, f64, &str)> = parts(stage)
        .iter()
        .filter(|(n, ..)| *n > 0)
        .map(|(n, _, class)| {
            let x = left;
            left = f64::min(100.0, left + width(*n));
            (x, left - x, *class)
        })
        .collect();
    html! {
        svg class="bar" role="img" aria-label=(counts(stage)) width="100%" height="14" {
            rect class="track" x="0" y="0" width="100%" height="14" rx="3" {}
            @for (x, width, class) in &segments {
                rect class={ "part " (class) } x=(format!("{x:.2}%")) y="0" width=(format!("{width:.2}%")) height="14" {}
            }
            // A line between devices, while they can be told apart: a bar of six is six devices.
            @if (2..=24).contains(&stage.devices) {
                @for device in 1..stage.devices {
                    @let x = format!("{:.2}%", width(device));
                    line class="cut" x1=(x) x2=(x) y1="0" y2="14" {}
                }
            }
        }
    }
}

/// How many devices have met the new version so far: what a bad one could have harmed.
fn exposure(stages: &[StageInfo]) -> Markup {
    let all: u64 = stages.iter().map(|s| s.devices).sum();
    let active: u64 = stages.iter().map(|s| s.active).sum();
    let tried: u64 = stages.iter().flat_map(parts).map(|(n, ..)| n).sum::<u64>()
        - stages.iter().map(|s| s.not_applicable).sum::<u64>();
    // Of a stopped rollout's later stages nobody knows how many devices they would have had.
    let whole = all > 0 && !stages.iter().any(is_over);
    html! {
        p class="exposure" {
            strong { (words::number(active)) " of " (words::count(all, "device")) }
            " passed the trial · exposure so far " strong { (words::count(tried, "device")) }
            @if whole { " (" (format!("{:.0}", 100.0 * tried as f64 / all as f64)) " %)" }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_was_taken_back_in_its_trial_was_ordered_and_is_counted() {
        let stage = |state: &str, devices, ordered, active| StageInfo {
            state: state.into(),
            devices,
            ordered,
            active,
            ..StageInfo::default()
        };
        let stages = [stage("stopped", 2, 2, 1), stage("not started", 0, 0, 0)];
        assert_eq!(counts(&stages[0]), "1 passed the trial · 1 taken back before it answered");
        assert_eq!(counts(&stages[1]), "no device was ordered");
        let words = exposure(&stages).into_string();
        assert!(
            words.contains("exposure so far <strong>2 devices</strong>") && !words.contains('%'),
            "{words}"
        );
        assert_eq!(counts(&stage("running", 2, 1, 0)), "1 ordered, not connected since · 1 not ordered yet");
    }
}
