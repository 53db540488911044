//! What the demo says: plain words while it runs, and a table of outcomes at the end.

use anyhow::{Context, Result};
use plimsoll_tests::Fleet;
use serde::Serialize;

/// One thing that the story promised, and what was seen.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// What was promised.
    pub outcome: String,
    /// Whether it holds.
    pub holds: bool,
    /// What was seen, with numbers.
    pub seen: String,
}

/// Says things to a person, or keeps standard output for a machine.
#[derive(Debug)]
pub struct Narrator {
    json: bool,
}

impl Narrator {
    /// With `json`, words go to standard error.
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// One line.
    pub fn say(&self, text: &str) {
        if self.json { eprintln!("{text}") } else { println!("{text}") }
    }

    /// The start of a chapter.
    pub fn chapter(&self, number: u32, title: &str) {
        self.say(&format!("\n{number}. {title}"));
    }

    /// Where to look.
    pub fn dashboard(&self, fleet: &Fleet) {
        self.say(&format!("\n   Dashboard: {}/", fleet.api.base()));
        self.say(&format!(
            "   Telemetry: mosquitto_sub -h {} -p {} -u operator -P <token> -t 'plimsoll/1/+/+/up/#' -v",
            fleet.dashboard.ip(),
            fleet.dashboard.port()
        ));
        self.say(&format!("   State, logs and the token: {}", fleet.dir.display()));
    }

    /// The table; whether all outcomes hold.
    pub fn summary(&self, outcomes: &[Outcome]) -> Result<bool> {
        let all_hold = outcomes.iter().all(|o| o.holds);
        if self.json {
            let document = serde_json::json!({"ok": all_hold, "outcomes": outcomes});
            println!("{}", serde_json::to_string_pretty(&document).context("the outcomes are no JSON")?);
            return Ok(all_hold);
        }
        println!("\nHolds  Outcome, and what was seen\n{}", "-".repeat(100));
        for o in outcomes {
            println!("{:<6} {}", if o.holds { "yes" } else { "NO" }, o.outcome);
            wrapped(&o.seen, 90).for_each(|line| println!("         {line}"));
        }
        let held = outcomes.iter().filter(|o| o.holds).count();
        println!("\n{held} of {} outcomes hold.", outcomes.len());
        Ok(all_hold)
    }
}

/// Lines of at most `width` characters, broken at spaces; a longer word stands alone.
fn wrapped(text: &str, width: usize) -> impl Iterator<Item = String> {
    let mut lines: Vec<String> = vec![];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines.into_iter()
}
