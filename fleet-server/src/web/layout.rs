//! What surrounds every page.

use maud::{DOCTYPE, Markup, html};
use plimsoll_protocol::api::ServerInfo;

/// A whole document around a live part.
pub(super) fn document(title: &str, fragment: &str, server: &ServerInfo, live: Markup) -> Markup {
    shell(
        title,
        server,
        html! {
            main id="live" data-fragment=(fragment) tabindex="-1" { (live) }
        },
    )
}

/// Says what is missing and where to go.
pub(super) fn not_found(server: &ServerInfo, what: &str) -> Markup {
    let body = html! {
        main id="main" tabindex="-1" {
            h1 { "Not found" }
            p class="lead" { "There is no " (what) " on this server. " a href="/" { "Back to the fleet" } }
        }
    };
    shell("Not found", server, body)
}

fn shell(title: &str, server: &ServerInfo, main: Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                title { (title) " · Plimsoll" }
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                link rel="icon" type="image/svg+xml" href="/static/icon.svg";
                link rel="stylesheet" href="/static/app.css";
                script src="/static/app.js" defer {}
                // Without the script the page loads itself again, often enough to follow a rollout.
                noscript { meta http-equiv="refresh" content="10"; }
            }
            body {
                a class="skip" href="#live" { "Skip to the content" }
                header class="top" {
                    a class="brand" href="/" {
                        svg viewBox="0 0 32 32" aria-hidden="true" focusable="false" {
                            circle cx="16" cy="16" r="9" {}
                            path d="M2 16h28" {}
                        }
                        span { "Plimsoll" }
                    }
                    nav aria-label="Sections" {
                        a href="/#rollouts" { "Rollouts" }
                        a href="/#fleet" { "Fleet" }
                        a href="/#models" { "Models" }
                        a href="/#events" { "Events" }
                    }
                    span id="link" class="link" data-state="static" {
                        span class="lamp" aria-hidden="true" {}
                        span { "As loaded" }
                    }
                }
                (patterns())
                (main)
                p id="announce" class="hidden" role="status" aria-live="polite" {}
                footer {
                    span { "Fleet " strong { (server.tenant) } }
                    span { "Server " (server.version) }
                    span { "Devices connect to " code { (server.device_mqtt) } }
                    span { "Dashboards subscribe at " code { (server.dashboard_mqtt) } }
                }
            }
        }
    }
}

/// Fills that tell the parts of a bar apart without colour. Outside the live part: drawn once, used by every bar.
fn patterns() -> Markup {
    html! {
        svg class="hidden" width="0" height="0" aria-hidden="true" focusable="false" {
            defs {
                pattern id="p-progress" width="8" height="8" patternUnits="userSpaceOnUse" patternTransform="rotate(45)" {
                    rect class="p-progress-back" width="8" height="8" {}
                    rect class="p-progress-line" width="4" height="8" {}
                }
                pattern id="p-failed" width="7" height="7" patternUnits="userSpaceOnUse" {
                    rect class="p-failed-back" width="7" height="7" {}
                    path class="p-failed-line" d="M0 0l7 7M7 0l-7 7" {}
                }
                pattern id="p-silent" width="6" height="6" patternUnits="userSpaceOnUse" {
                    rect class="p-silent-back" width="6" height="6" {}
                    circle class="p-silent-dot" cx="3" cy="3" r="1.4" {}
                }
                pattern id="p-reference" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)" {
                    rect class="p-reference-back" width="6" height="6" {}
                    rect class="p-reference-line" width="1.6" height="6" {}
                }
            }
        }
    }
}
