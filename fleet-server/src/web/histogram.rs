//! A measurement window beside its baseline, bin by bin.

use maud::{Markup, html};
use plimsoll_protocol::drift::verdict::histogram as bars;
use plimsoll_protocol::drift::{Baseline, Shift, Standing, Verdict, Window, WindowError};

use super::words::{Tone, chip};

/// One feature's picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    /// Feature.
    pub feature: String,
    /// The verdict in words.
    pub text: String,
    /// Whether the verdict is an alarm.
    pub alarm: bool,
    /// `(bin in words, share of the reference, share now)`, as `drift::verdict::histogram` gives them.
    pub bars: Vec<(String, f64, f64)>,
}

/// A picture for each feature of a whole window, what deserves a look first. `verdicts` are the device's own (its judge
/// remembers earlier windows); a feature without one is told by this window alone.
pub fn charts(
    baseline: &Baseline,
    window: &Window,
    verdicts: &[Verdict],
) -> Result<Vec<Histogram>, WindowError> {
    window.check(baseline)?;
    let mut charts: Vec<(u8, Histogram)> = Vec::new();
    for (feature, counts) in baseline.features().iter().zip(&window.features) {
        let known = verdicts.iter().find(|v| v.feature == feature.name).cloned();
        let verdict = known.unwrap_or_else(|| Verdict {
            feature: feature.name.clone(),
            standing: Standing::of(feature, counts),
            evidence: 0.0,
        });
        let rank = match verdict.standing {
            Standing::Drift(_) | Standing::Fault { .. } => 0,
            Standing::Watch(_) => 1,
            Standing::Gathering { .. } | Standing::Quiet(_) => 2,
        };
        // While samples gather, what they look like so far is worth more than how many are missing.
        let text = match (&verdict.standing, Shift::of(feature, counts)) {
            (Standing::Gathering { .. }, Ok(shift)) => format!("{shift}; too few for a verdict"),
            _ => verdict.to_string(),
        };
        let (feature_, alarm) = (feature.name.clone(), verdict.is_alarm());
        charts.push((rank, Histogram { feature: feature_, text, alarm, bars: bars(feature, counts) }));
    }
    charts.sort_by_key(|(rank, _)| *rank);
    Ok(charts.into_iter().map(|(_, chart)| chart).collect())
}

/// Drawing area in user units, about the pixels of its place, so that its text has about the size of the page's.
const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 180.0;
/// Room for the scale on the left and the labels below.
const LEFT: f64 = 44.0;
const BOTTOM: f64 = 24.0;
const TOP: f64 = 8.0;
/// Labels below the axis that are enough to read it by.
const LABELS: usize = 5;
/// Width of a character of a label and its share of the gap to the next one: 12 px text is about 6.3 a character.
const CHARACTER: f64 = 7.0;

/// The reference as wide hatched bars, the window as narrow solid bars in front of them: two shapes, told apart
/// without colour. The numbers are in a table below, for whoever cannot or will not read a picture.
pub fn histogram(chart: &Histogram) -> Markup {
    compared(chart, "Baseline", "Now", "Drift")
}

/// The same for any two sets of shares, named for the legend; `alarm` is the word of its chip.
pub fn compared(chart: &Histogram, one: &str, other: &str, alarm: &str) -> Markup {
    let highest = chart.bars.iter().map(|(_, p, q)| p.max(*q)).fold(0.0, f64::max);
    let (top, step) = scale(highest);
    let slot = (WIDTH - LEFT) / chart.bars.len().max(1) as f64;
    let y = |share: f64| TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - share / top);
    let bar = |at: usize, share: f64, part: f64| {
        let width = slot * part;
        let x = LEFT + slot * (at as f64 + 0.5) - width / 2.0;
        (f(x), f(y(share)), f(width), f(y(0.0) - y(share)))
    };
    let longest = chart.bars.iter().map(|(label, ..)| label.chars().count()).max().unwrap_or(0);
    let fit = ((WIDTH - LEFT) / (CHARACTER * longest.max(1) as f64)).floor() as usize;
    let every = chart.bars.len().div_ceil(LABELS.min(fit).max(1)).max(1);
    let id = anchor(&chart.feature);
    html! {
        figure class={ "chart" @if chart.alarm { " alarm" } } {
            figcaption {
                strong { (chart.feature) }
                @if chart.alarm { (chip(Tone::Bad, alarm)) }
                span class="verdict" { (chart.text) }
            }
            svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-labelledby={ "t-" (id) " d-" (id) } {
                title id={ "t-" (id) } { (chart.feature) ": share of each bin, " (one.to_lowercase()) " and " (other.to_lowercase()) }
                desc id={ "d-" (id) } { (chart.text) }
                @for tick in 0..=(top / step).round() as u32 {
                    @let share = f64::from(tick) * step;
                    line class="grid" x1=(f(LEFT)) x2=(f(WIDTH)) y1=(f(y(share))) y2=(f(y(share))) {}
                    text class="tick" x=(f(LEFT - 6.0)) y=(f(y(share) + 4.0)) text-anchor="end" {
                        (format!("{:.0} %", share * 100.0))
                    }
                }
                @for (at, (_, reference, now)) in chart.bars.iter().enumerate() {
                    @let (x, y, w, h) = bar(at, *reference, 0.86);
                    rect class="reference" x=(x) y=(y) width=(w) height=(h) {}
                    @let (x, y, w, h) = bar(at, *now, 0.42);
                    rect class="now" x=(x) y=(y) width=(w) height=(h) {}
                }
                @for (at, (label, ..)) in chart.bars.iter().enumerate() {
                    @if at % every == every / 2 {
                        text class="tick" x=(f(LEFT + slot * (at as f64 + 0.5))) y=(f(HEIGHT - 7.0)) text-anchor="middle" {
                            (label)
                        }
                    }
                }
            }
            p class="legend" {
                span class="key" { svg viewBox="0 0 14 14" aria-hidden="true" { rect class="reference" width="14" height="14" {} } " " (one) }
                span class="key" { svg viewBox="0 0 14 14" aria-hidden="true" { rect class="now" x="3" width="8" height="14" {} } " " (other) }
            }
            details id={ "numbers-" (id) } class="fold" {
                summary { "Numbers" }
                table {
                    thead { tr { th scope="col" { "Bin" } th scope="col" class="num" { (one) } th scope="col" class="num" { (other) } } }
                    tbody {
                        @for (label, reference, now) in &chart.bars {
                            tr {
                                th scope="row" { (label) }
                                td class="num" { (percent(*reference)) }
                                td class="num" { (percent(*now)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A round number at or above the highest bar, and the step between its lines: two to five lines.
fn scale(highest: f64) -> (f64, f64) {
    let steps = [0.01, 0.02, 0.05, 0.1, 0.2];
    let step = steps.into_iter().find(|s| highest / s <= 5.0).unwrap_or(0.25);
    let lines = (highest / step - 1e-9).ceil().max(1.0);
    (lines * step, step)
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// A tenth of a unit is finer than any screen.
fn f(value: f64) -> String {
    format!("{value:.1}")
}

/// A feature's name as an id: letters and digits, everything else a dash.
fn anchor(feature: &str) -> String {
    feature.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_is_round_and_holds_the_highest_bar() {
        for (highest, expect) in [(0.0, 0.01), (0.1, 0.1), (0.33, 0.4), (0.62, 0.8), (1.0, 1.0)] {
            let (top, step) = scale(highest);
            assert!((top - expect).abs() < 1e-9, "{highest}: {top}");
            assert!(top / step < 5.5);
        }
    }

    #[test]
    fn what_moved_comes_first_and_a_foreign_window_is_refused() {
        use plimsoll_protocol::drift::{Cell, Column, Order, Source};
        let column = |name: &str, factor: f32| Column {
            name: name.into(),
            source: Source::Input { tensor: "x".into(), index: 0 },
            range: None,
            categorical: false,
            values: (0..1000).map(|i| Cell::from((i * 37 % 1000) as f32 * factor)).collect(),
        };
        let base = Baseline::fit(&[column("calm", 1.0), column("moved", 2.0)], Order::Unordered).unwrap();
        let mut window = Window::open(&base, 0);
        for i in 0..400 {
            let x = (i * 29 % 400) as f32;
            window.observe(&base, &[Cell::from(x * 2.5), Cell::from(x)]).unwrap();
        }
        let charts = charts(&base, &window, &[]).unwrap();
        assert_eq!((charts[0].feature.as_str(), charts[1].feature.as_str()), ("moved", "calm"));
        assert!(
            charts[0].text.starts_with("moved fell from 999 to 199.5 on average; PSI "),
            "{}",
            charts[0].text
        );
        assert!(!charts[0].alarm, "one window alone is no alarm");
        let other = Baseline::fit(&[column("other", 1.0)], Order::Unordered).unwrap();
        assert!(super::charts(&other, &window, &[]).is_err());
    }

    #[test]
    fn a_picture_names_itself_and_escapes_what_it_shows() {
        let bars = vec![("<b>".into(), 0.5, 1.0), ("1 to 2".into(), 0.5, 0.0)];
        let chart = Histogram { feature: "a\"<x>".into(), text: "fell & fell".into(), alarm: true, bars };
        let html = histogram(&chart).into_string();
        assert!(html.contains("role=\"img\" aria-labelledby=\"t-a--x- d-a--x-\""), "{html}");
        assert!(
            html.contains("a&quot;&lt;x&gt;")
                && html.contains("fell &amp; fell")
                && html.contains("&lt;b&gt;")
        );
        assert!(!html.contains("<b>") && !html.contains("<x>"));
        assert_eq!(html.matches("class=\"now\"").count(), 3, "two bars and the legend");
        assert!(html.contains("50.0 %") && html.contains("100.0 %"));
    }

    #[test]
    fn a_window_without_values_is_drawn_without_dividing_by_nothing() {
        let empty = Histogram { feature: "x".into(), text: "nothing yet".into(), alarm: false, bars: vec![] };
        let html = histogram(&empty).into_string();
        assert!(!html.contains("NaN") && !html.contains("inf"), "{html}");
    }
}
