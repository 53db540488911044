//! The front page: the fleet in numbers, its rollouts, its devices, its models, what happened.

use std::collections::BTreeMap;

use maud::{Markup, html};
use plimsoll_protocol::UnixMillis;
use plimsoll_protocol::api::{DeviceInfo, EventInfo, RolloutInfo};
use plimsoll_protocol::wire::v1::Severity;

use super::words::{self, Tone};
use super::{FleetPage, events, models, rollout};

/// Rollouts that are shown open; older ones are folded away.
const OPEN_ROLLOUTS: usize = 3;
/// An alarm counts as recent for an hour: an operator who looks in the morning finds it in the events.
const RECENT_MS: UnixMillis = 3_600_000;

/// The live part of the front page.
pub(super) fn fragment(page: &FleetPage) -> Markup {
    // Rollouts under way first, then the newest.
    let (under_way, ended): (Vec<_>, Vec<_>) = page.rollouts.iter().partition(|r| !r.status.is_end());
    let ordered: Vec<&RolloutInfo> = under_way.into_iter().chain(ended).collect();
    let (open, older) = ordered.split_at(OPEN_ROLLOUTS.min(ordered.len()));
    html! {
        h1 class="hidden" { "Fleet " (page.server.tenant) }
        (summary(page, &ordered))
        (drifting(page.devices))
        section id="rollouts" aria-labelledby="h-rollouts" {
            h2 id="h-rollouts" { "Rollouts" }
            @if ordered.is_empty() {
                p class="empty" { "No rollout yet. Start one with " code { "plimsoll rollout start" } "." }
            }
            @for info in open { (rollout::card(info, page.now_ms, true)) }
            @if !older.is_empty() {
                details id="older-rollouts" class="fold" {
                    summary { (words::count(older.len() as u64, "older rollout")) }
                    @for info in older { (rollout::card(info, page.now_ms, true)) }
                }
            }
        }
        section id="fleet" aria-labelledby="h-fleet" {
            h2 id="h-fleet" { "Fleet" }
            (device_table(page.devices, page.now_ms))
        }
        section id="models" aria-labelledby="h-models" {
            h2 id="h-models" { "Models" }
            (models::table(page.models))
        }
        section id="events" aria-labelledby="h-events" {
            h2 id="h-events" { "Events" }
            (events::list(page.events, page.now_ms, true))
        }
    }
}

fn summary(page: &FleetPage, rollouts: &[&RolloutInfo]) -> Markup {
    let all = page.devices.len() as u64;
    let online = page.devices.iter().filter(|d| d.online).count() as u64;
    let updating = page.devices.iter().filter(|d| words::device(d).0 == Tone::Busy).count() as u64;
    let (requests, failed) = page.devices.iter().map(requests).fold((0, 0), |(r, f), (x, y)| (r + x, f + y));
    let alarms = page.events.iter().filter(|e| is_recent_alarm(e, page.now_ms)).count() as u64;
    let latest = rollouts.first().map(|r| {
        let (tone, status) = words::rollout(r.status);
        (tone, format!("{} {}: {}", r.spec.model, r.spec.version, status.to_lowercase()))
    });
    let spoken = match &latest {
        Some((_, rollout)) => format!("{online} of {all} devices online. {rollout}."),
        None => format!("{online} of {all} devices online."),
    };
    html! {
        dl class="summary" data-announce=(spoken) {
            div {
                dt { "Devices online" }
                dd { strong { (words::number(online)) } " of " (words::number(all)) }
            }
            div {
                dt { "Updating now" }
                dd { strong { (words::number(updating)) } }
            }
            div {
                dt { "Requests answered" }
                dd { strong { (words::number(requests)) } " · " (words::number(failed)) " failed" }
            }
            div {
                dt { "Alarms in the last hour" }
                dd {
                    @if alarms == 0 { (words::chip(Tone::Good, "None")) }
                    @else { (words::chip(Tone::Bad, &words::count(alarms, "alarm"))) }
                }
            }
        }
    }
}

/// Where data have moved, in words: a sentence a model, with the devices that it is about.
fn drifting(devices: &[DeviceInfo]) -> Markup {
    let mut models: BTreeMap<&str, (&str, Vec<&str>)> = BTreeMap::new();
    for device in devices {
        for alarm in &device.drift {
            let entry = models.entry(alarm.model.as_str()).or_insert_with(|| (&alarm.cause, Vec::new()));
            entry.1.push(device.device.as_str());
        }
    }
    html! {
        @if !models.is_empty() {
            section id="drift" aria-labelledby="h-drift" {
                h2 id="h-drift" { "Drift" }
                @for (model, (cause, devices)) in &models {
                    p class="reason stop" {
                        strong { (model) } " on "
                        @for (at, device) in devices.iter().enumerate() {
                            @if at > 0 { ", " }
                            a href={ "/devices/" (device) } { (device) }
                        }
                        @if !cause.is_empty() { ": " (cause) "." }
                    }
                }
            }
        }
    }
}

fn is_recent_alarm(event: &EventInfo, now: UnixMillis) -> bool {
    event.severity == Severity::Alarm && now.saturating_sub(event.at_ms) < RECENT_MS
}

/// Requests and failed requests of the models that a device runs.
fn requests(device: &DeviceInfo) -> (u64, u64) {
    let models = device.health.iter().flat_map(|h| &h.models);
    models.fold((0, 0), |(r, f), m| (r + m.requests, f + m.failed))
}

/// A row each; on a narrow screen a card each, where `data-label` repeats the column's head.
pub(super) fn device_table(devices: &[DeviceInfo], now: UnixMillis) -> Markup {
    if devices.is_empty() {
        return html! {
            p class="empty" { "No device yet. Create a token with " code { "plimsoll device token" } "." }
        };
    }
    html! {
        table class="cards" {
            thead {
                tr {
                    th scope="col" { "Device" }
                    th scope="col" { "State" }
                    th scope="col" { "Runs" }
                    th scope="col" { "Labels" }
                    th scope="col" { "Last seen" }
                    th scope="col" class="num" { "Requests" }
                    th scope="col" class="num" { "Failed" }
                }
            }
            tbody { @for device in devices { (row(device, now)) } }
        }
    }
}

fn row(device: &DeviceInfo, now: UnixMillis) -> Markup {
    let (tone, state) = words::device(device);
    let (requests, failed) = requests(device);
    let name = device.device.as_str();
    html! {
        tr {
            th scope="row" { a id={ "device-" (name) } href={ "/devices/" (name) } { (name) } }
            td data-label="State" {
                (words::chip(tone, &state))
                @if !device.drift.is_empty() { " " (words::chip(Tone::Bad, "Drift")) }
                @if let Some(why) = &device.waiting { span class="why" { (why) } }
            }
            td data-label="Runs" {
                @if device.running.is_empty() { span class="none" { "nothing" } }
                @for model in &device.running {
                    div class="runs" { (model.model) " " strong { (model.version) } }
                }
            }
            td data-label="Labels" {
                @if device.labels.is_empty() { span class="none" { "none" } }
                div { @for (key, value) in &device.labels { span class="label" { (key) "=" (value) } " " } }
            }
            td data-label="Last seen" {
                @match device.last_seen_ms {
                    Some(then) => (words::ago(then, now)),
                    None => span class="none" { "never" },
                }
            }
            td data-label="Requests" class="num" { (words::number(requests)) }
            td data-label="Failed" class={ "num" @if failed > 0 { " failed" } } { (words::number(failed)) }
        }
    }
}
