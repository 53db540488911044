//! `plimsoll events`.

use std::time::Duration;

use anyhow::Result;
use plimsoll_protocol::api::EventInfo;
use plimsoll_protocol::wire::v1::Severity;

use crate::api::Api;
use crate::output::{Screen, table};
use crate::time::utc;

/// People notice a second; a server notices nothing of one small query a second.
const FOLLOW_EVERY: Duration = Duration::from_secs(1);

/// `plimsoll events`
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How many at most.
    #[arg(long, default_value_t = 50, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Only those after this id.
    #[arg(long, default_value_t = 0, value_name = "ID")]
    after: u64,
    /// Keep printing what comes, oldest first, until interrupted.
    #[arg(long)]
    follow: bool,
}

/// Prints events.
pub async fn run(args: &Args, api: &Api, screen: &Screen) -> Result<()> {
    let mut after = args.after;
    let events = fetch(api, after, args.limit).await?;
    if !args.follow {
        return screen.show(&events, || {
            let rows: Vec<_> = events.iter().map(row).collect();
            if rows.is_empty() { "Nothing happened yet.".into() } else { table(&HEAD, &rows) }
        });
    }
    let mut batch = events;
    loop {
        batch.sort_by_key(|e| e.id);
        for event in &batch {
            after = after.max(event.id);
            screen.show(event, || row(event).join("  "))?;
        }
        tokio::time::sleep(FOLLOW_EVERY).await;
        batch = fetch(api, after, args.limit).await?;
    }
}

async fn fetch(api: &Api, after: u64, limit: u32) -> Result<Vec<EventInfo>> {
    api.get(&format!("events?after={after}&limit={limit}")).await
}

const HEAD: [&str; 5] = ["TIME (UTC)", "SEVERITY", "DEVICE", "CODE", "TEXT"];

fn row(e: &EventInfo) -> Vec<String> {
    let severity = match e.severity {
        Severity::Info => "info",
        Severity::Warning => "warning",
        Severity::Alarm => "ALARM",
    };
    let device = e.device.as_ref().map_or("server", |d| d.as_str());
    // A device's words are data: a control character could rewrite the operator's terminal.
    let text: String = e.text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    vec![utc(e.at_ms), severity.into(), device.into(), e.code.clone(), text]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_cannot_write_on_the_operators_terminal() {
        let event = EventInfo {
            id: 1,
            at_ms: 1_800_000_000_000,
            device: None,
            severity: Severity::Alarm,
            code: "x".into(),
            text: "a\u{1b}[2Jb\nc".into(),
        };
        assert_eq!(row(&event), ["2027-01-15 08:00:00", "ALARM", "server", "x", "a [2Jb c"]);
    }
}
