//! What a version answered in shadow, device by device.

use maud::{Markup, html};
use plimsoll_protocol::api::{DeviceShadow, ShadowEvidence};
use plimsoll_protocol::wire::v1::ShadowEnd;

use super::words::{self, Tone};

/// The part of a rollout's page.
pub(super) fn section(shadow: &ShadowEvidence) -> Markup {
    html! {
        section aria-labelledby="h-shadow" {
            h2 id="h-shadow" { "In shadow" }
            p { (shadow.text) }
            div class="scroll" {
                table {
                    caption { "Beside the version before, on the same requests, answering nobody" }
                    thead { tr {
                        th scope="col" { "Device" } th scope="col" { "Beside" } th scope="col" { "State" }
                        th scope="col" class="num" { "Rows" } th scope="col" class="num" { "Differ" }
                        th scope="col" class="num" { "Median before" } th scope="col" class="num" { "Median" }
                        th scope="col" class="num" { "Memory" }
                    } }
                    tbody { @for device in &shadow.devices { (row(device)) } }
                }
            }
        }
    }
}

fn row(row: &DeviceShadow) -> Markup {
    let (tone, state) = state(row.end);
    let totals = &row.totals;
    let ms = |us: u64| format!("{:.1} ms", us as f64 / 1e3);
    html! {
        tr {
            th scope="row" { a href={ "/devices/" (row.device) } { (row.device) } }
            td { @match &row.current { Some(version) => (version), None => "–" } }
            td { (words::chip(tone, state)) @if let Some(why) = &row.reason { " " (why) } }
            td class="num" { (words::number(totals.rows)) } td class="num" { (words::number(totals.differ)) }
            td class="num" { (ms(totals.current_p50_us)) } td class="num" { (ms(totals.candidate_p50_us)) }
            td class="num" { @if totals.memory_bytes > 0 { (words::bytes(totals.memory_bytes)) } @else { "–" } }
        }
    }
}

const fn state(end: ShadowEnd) -> (Tone, &'static str) {
    match end {
        ShadowEnd::Open => (Tone::Busy, "Compares"),
        ShadowEnd::Agreed => (Tone::Good, "Ended well"),
        ShadowEnd::Few => (Tone::Warn, "Saw little"),
        ShadowEnd::Differs => (Tone::Bad, "Differs"),
        ShadowEnd::Broke => (Tone::Bad, "Broke"),
        ShadowEnd::Skipped => (Tone::Warn, "Not held"),
    }
}

#[cfg(test)]
mod tests {
    use plimsoll_protocol::wire::v1::ShadowTotals;

    use super::*;

    #[test]
    fn each_device_says_how_many_rows_differ_and_text_of_devices_is_escaped() {
        let device = DeviceShadow {
            device: "camera-4".parse().unwrap(),
            current: Some("1.0.0".parse().unwrap()),
            end: ShadowEnd::Differs,
            reason: Some("<b>60 of 120</b>".into()),
            totals: ShadowTotals {
                rows: 1_200,
                differ: 600,
                current_p50_us: 1_500,
                memory_bytes: 7 << 20,
                ..ShadowTotals::default()
            },
        };
        let evidence = ShadowEvidence {
            text: "in shadow on 1 device".into(),
            devices: vec![device],
            ..ShadowEvidence::default()
        };
        let html = section(&evidence).into_string();
        for part in ["in shadow on 1 device", "camera-4", "1.0.0", "Differs", "600", "1.5 ms", "7.3 MB"] {
            assert!(html.contains(part), "{part} is missing: {html}");
        }
        assert!(!html.contains("<b>60"), "{html}");
    }
}
