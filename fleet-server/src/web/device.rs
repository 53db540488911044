//! One device: what it runs and why, what it waits for, how it feels, how its data drift.

use maud::{Markup, html};
use plimsoll_protocol::UnixMillis;
use plimsoll_protocol::api::{DeviceInfo, JobInfo};
use plimsoll_protocol::wire::v1::{Birth, Health, ModelHealth};

use super::words::{self, Tone};
use super::{DevicePage, events, histogram};

/// The live part of a device's page.
pub(super) fn fragment(page: &DevicePage) -> Markup {
    let device = page.device;
    let (tone, state) = words::device(device);
    html! {
        p class="crumbs" { a href="/#fleet" { "Fleet" } " / " (device.device) }
        div class="title" data-announce={ (device.device) ": " (state) } {
            h1 { (device.device) }
            (words::chip(tone, &state))
            @if let Some(then) = device.last_seen_ms { span class="when" { "seen " (words::ago(then, page.now_ms)) } }
        }
        @if let Some(why) = &device.waiting { p class="reason" { "Waits: " (why) } }
        section aria-labelledby="h-runs" {
            h2 id="h-runs" { "Models" }
            (runs(device))
            @if !device.jobs.is_empty() { (orders(&device.jobs, page.now_ms)) }
        }
        @if !page.drift.is_empty() {
            section aria-labelledby="h-drift" {
                h2 id="h-drift" { "Drift: last measurement window against the baseline" }
                @for alarm in device.drift.iter().filter(|a| !a.cause.is_empty()) {
                    p class="reason stop" {
                        strong { (alarm.model) " " (alarm.version) } " drifts here. Where it comes from: " (alarm.cause) "."
                    }
                }
                div class="charts" { @for chart in page.drift { (histogram(chart)) } }
            }
        }
        section aria-labelledby="h-health" {
            h2 id="h-health" { "Health" }
            (health(device.birth.as_ref(), device.health.as_ref(), device))
        }
        section aria-labelledby="h-events" {
            h2 id="h-events" { "Events" }
            (events::list(page.events, page.now_ms, false))
        }
    }
}

fn runs(device: &DeviceInfo) -> Markup {
    if device.running.is_empty() {
        return html! { p class="empty" { "It runs no model." } };
    }
    let served =
        |digest| device.health.iter().flat_map(|h| &h.models).find(|m: &&ModelHealth| m.digest == digest);
    let said: Vec<(String, String)> = device
        .running
        .iter()
        .filter_map(|model| Some((model, served(model.digest)?)))
        .flat_map(|(model, m)| {
            let words = [m.quality.words(), m.truth.words(None)];
            let of = move |words: String| (format!("{} {}", model.model, model.version), words);
            words.into_iter().filter(|words| !words.is_empty()).map(of)
        })
        .collect();
    html! {
        table class="cards" {
            thead {
                tr {
                    th scope="col" { "Runs" }
                    th scope="col" { "Trial" }
                    th scope="col" class="num" { "Requests" }
                    th scope="col" class="num" { "Failed" }
                    th scope="col" class="num" { "Refused" }
                    th scope="col" class="num" { "Median" }
                    th scope="col" class="num" { "99 % below" }
                    th scope="col" class="num" { "Memory" }
                }
            }
            tbody {
                @for model in &device.running {
                    @let served = served(model.digest);
                    tr {
                        th scope="row" { (model.model) " " strong { (model.version) } " " code { (model.digest.short()) } }
                        td data-label="Trial" {
                            @if model.trial_passed { (words::chip(Tone::Good, "Passed")) }
                            @else { (words::chip(Tone::Busy, "On trial")) }
                        }
                        @for (label, value) in [
                            ("Requests", served.map(|m| words::number(m.requests))),
                            ("Failed", served.map(|m| words::number(m.failed))),
                            ("Refused", served.map(|m| words::number(m.refused + m.busy))),
                            ("Median", served.map(|m| micros(m.p50_us))),
                            ("99 % below", served.map(|m| micros(m.p99_us))),
                            ("Memory", served.filter(|m| m.memory_bytes > 0).map(|m| words::bytes(m.memory_bytes))),
                        ] {
                            td data-label=(label) class="num" { (value.unwrap_or_else(|| "–".into())) }
                        }
                    }
                }
            }
        }
        @for (of, words) in &said {
            p class="reason" { strong { (of) } " since it was loaded: " (words) "." }
        }
    }
}

/// `0.35 ms`.
fn micros(us: u64) -> String {
    format!("{:.2} ms", us as f64 / 1000.0)
}

fn orders(jobs: &[JobInfo], now: UnixMillis) -> Markup {
    html! {
        h3 { "Last orders" }
        ul class="orders" {
            @for job in jobs {
                @let (tone, phase) = job.phase.map_or((Tone::Idle, "Has not answered yet"), words::phase);
                li {
                    span { (job.model) " " strong { (job.version) } }
                    (words::chip(tone, phase))
                    @if let Some(then) = job.at_ms { span class="when" { (words::ago(then, now)) } }
                    @if let Some(why) = &job.reason { span class="why" { (why) } }
                }
            }
        }
    }
}

fn health(birth: Option<&Birth>, health: Option<&Health>, device: &DeviceInfo) -> Markup {
    html! {
        dl class="facts" {
            @if let Some(birth) = birth {
                dt { "Machine" } dd { (birth.os) ", " (birth.arch) ", " (words::bytes(birth.ram_bytes)) " of memory" }
                dt { "Agent" } dd { (birth.agent_version) ", boot " (birth.boot) }
            }
            dt { "Desired state" } dd { "generation " (device.generation) }
            @match health {
                Some(h) => {
                    dt { "Processor" } dd { (format!("{:.0} %", h.cpu * 100.0)) }
                    dt { "Memory of the agent" } dd { (words::bytes(h.agent_rss_bytes)) }
                    dt { "Free disk" } dd { (words::bytes(h.disk_free_bytes)) }
                    @if let Some(t) = h.temperature_c { dt { "Temperature" } dd { (format!("{t:.0} °C")) } }
                    dt { "Reports waiting" }
                    dd { (words::number(h.outbox_entries)) ", " (words::number(h.outbox_dropped)) " dropped" }
                    dt { "Restarts of the serving process" } dd { (words::number(h.serve_restarts)) }
                }
                None => { dt { "Health" } dd { "not reported since the server started" } }
            }
        }
    }
}
