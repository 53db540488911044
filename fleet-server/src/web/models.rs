//! Published versions.

use maud::{Markup, html};
use plimsoll_protocol::api::ModelVersion;

use super::words;

/// A row each.
pub(super) fn table(models: &[ModelVersion]) -> Markup {
    if models.is_empty() {
        return html! {
            p class="empty" { "No model yet. Publish one with " code { "plimsoll bundle publish" } "." }
        };
    }
    html! {
        table class="cards" {
            thead {
                tr {
                    th scope="col" { "Model" }
                    th scope="col" { "Signed by" }
                    th scope="col" { "Bundle" }
                    th scope="col" { "About" }
                    th scope="col" class="num" { "Size" }
                    th scope="col" class="num" { "Runs on" }
                    th scope="col" class="num" { "Accuracy" }
                }
            }
            tbody {
                @for model in models {
                    tr {
                        th scope="row" { (model.model) " " strong { (model.version) } }
                        td data-label="Signed by" { (model.signed_by) }
                        td data-label="Bundle" { code title=(model.digest) { (model.digest.short()) } }
                        td data-label="About" {
                            @if model.annotations.is_empty() { span class="none" { "nothing noted" } }
                            div { @for (key, value) in &model.annotations { span class="label" { (key) ": " (value) } " " } }
                        }
                        td data-label="Size" class="num" { (words::bytes(model.bytes)) }
                        td data-label="Runs on" class="num" { (words::count(model.devices, "device")) }
                        td data-label="Accuracy" class="num" {
                            @if model.labelled > 0 {
                                (format!("{:.1} %", model.correct as f64 * 100.0 / model.labelled as f64))
                                " of " (words::number(model.labelled)) " labels"
                            } @else { span class="none" { "no labels" } }
                        }
                    }
                }
            }
        }
    }
}
