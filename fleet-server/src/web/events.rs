//! What happened, newest first.

use maud::{Markup, html};
use plimsoll_protocol::UnixMillis;
use plimsoll_protocol::api::EventInfo;

use super::words;

/// A line each; `with_device` where the page is not about one device.
pub(super) fn list(events: &[EventInfo], now: UnixMillis, with_device: bool) -> Markup {
    if events.is_empty() {
        return html! { p class="empty" { "Nothing has happened yet." } };
    }
    html! {
        ol class="events" {
            @for event in events {
                @let (tone, severity) = words::severity(event.severity);
                li {
                    span class="event-time" { (words::ago(event.at_ms, now)) }
                    (words::chip(tone, severity))
                    @if with_device {
                        span class="event-device" {
                            @match &event.device {
                                Some(device) => a href={ "/devices/" (device) } { (device) },
                                None => "server",
                            }
                        }
                    }
                    span class="event-text" { (event.text) " " code { (event.code) } }
                }
            }
        }
    }
}
