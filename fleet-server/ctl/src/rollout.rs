//! `plimsoll rollout`: bring a model version to the fleet, stage by stage.

mod spec;

use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use plimsoll_protocol::api::{
    DeviceOutputs, DeviceShadow, OutputEvidence, RolloutAction, RolloutInfo, RolloutStatus, ShadowEvidence,
    StageInfo,
};
use plimsoll_protocol::ids::RolloutId;
use plimsoll_protocol::wire::v1::ShadowEnd;

use crate::api::Api;
use crate::failure::Refused;
use crate::output::{Screen, memory, table};
use crate::time::utc;
pub use spec::Start;

/// A decision is taken a few times a minute at most; a person notices a second.
const FOLLOW_EVERY: Duration = Duration::from_secs(1);

/// `plimsoll rollout …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a rollout of a published version
    Start(Box<Start>),
    /// Where a rollout stands, and why
    Status(Status),
    /// List rollouts
    List,
    /// Give the version to nobody else until resumed
    Pause(Act),
    /// Go on after a pause
    Resume(Act),
    /// End the rollout; devices keep what they run
    Abort(Act),
    /// Let the stage start that waits for a person
    Approve(Act),
}

/// `plimsoll rollout status ID`
#[derive(Debug, Args)]
pub struct Status {
    /// The rollout.
    id: RolloutId,
    /// Print every decision until the rollout ends. Exit code 0 when it completed, 3 when it was rolled back.
    #[arg(long)]
    follow: bool,
}

/// Something a person does to a rollout.
#[derive(Debug, Args)]
pub struct Act {
    /// The rollout.
    id: RolloutId,
    /// Why, for the history.
    #[arg(long, default_value = "")]
    reason: String,
}

/// Dispatch.
pub async fn run(command: Command, api: &Api, screen: &Screen) -> Result<()> {
    match command {
        Command::Start(start) => {
            let info: RolloutInfo = api.post("rollouts", &start.spec()?).await?;
            screen.show(&info, || {
                format!("{}\n\nFollow it: plimsoll rollout status {} --follow", describe(&info), info.id)
            })
        }
        Command::Status(args) if args.follow => follow(&args.id, api, screen).await,
        Command::Status(args) => {
            let info: RolloutInfo = api.get(&format!("rollouts/{}", args.id)).await?;
            screen.show(&info, || describe(&info))
        }
        Command::List => {
            let rollouts: Vec<RolloutInfo> = api.get("rollouts").await?;
            screen.show(&rollouts, || list(&rollouts))
        }
        Command::Pause(act) => act.send("pause", api, screen).await,
        Command::Resume(act) => act.send("resume", api, screen).await,
        Command::Abort(act) => act.send("abort", api, screen).await,
        Command::Approve(act) => act.send("approve", api, screen).await,
    }
}

impl Act {
    async fn send(self, verb: &str, api: &Api, screen: &Screen) -> Result<()> {
        api.act(&format!("rollouts/{}/{verb}", self.id), &RolloutAction { reason: self.reason }).await?;
        let info: RolloutInfo = api.get(&format!("rollouts/{}", self.id)).await?;
        screen.show(&info, || describe(&info))
    }
}

/// Prints each new decision (as JSON: the whole rollout whenever it changed) until the end.
async fn follow(id: &RolloutId, api: &Api, screen: &Screen) -> Result<()> {
    let mut said = 0;
    let mut last = None;
    loop {
        let info: RolloutInfo = api.get(&format!("rollouts/{id}")).await?;
        if screen.is_json() {
            let line = serde_json::to_string(&info)?;
            if last.as_ref() != Some(&line) {
                screen.show(&info, String::new)?;
                last = Some(line);
            }
        } else {
            for decision in info.history.iter().skip(said) {
                screen.show(&(), || format!("{}  {}", utc(decision.at_ms), decision.text))?;
            }
        }
        said = info.history.len();
        if info.status.is_end() {
            return ended(&info, screen);
        }
        tokio::time::sleep(FOLLOW_EVERY).await;
    }
}

fn ended(info: &RolloutInfo, screen: &Screen) -> Result<()> {
    if !screen.is_json() {
        screen.show(&(), || describe(info))?;
    }
    match info.status {
        RolloutStatus::Completed => Ok(()),
        RolloutStatus::RolledBack => {
            bail!(Refused(format!("rollout {} was rolled back: {}", info.id, info.reason)))
        }
        other => bail!("rollout {} is {}: {}", info.id, other.words(), info.reason),
    }
}

fn describe(info: &RolloutInfo) -> String {
    let head = format!(
        "Rollout {}: {} {} is {}\n{}\n",
        info.id,
        info.spec.model,
        info.spec.version,
        info.status.words(),
        info.reason
    );
    let rows: Vec<_> = info.stages.iter().map(stage).collect();
    format!(
        "{head}\n{}",
        table(
            &["STAGE", "STATE", "DEVICES", "WELL", "FAILED", "SILENT", "BUSY", "CANNOT", "WAITS FOR"],
            &rows
        ),
    ) + &info.shadow.as_ref().map(shadow).unwrap_or_default()
        + &info.evidence.as_ref().map(evidence).unwrap_or_default()
        + &accuracy(&info.accuracy)
}

fn accuracy(words: &str) -> String {
    if words.is_empty() { String::new() } else { format!("\n\nAccuracy, by labels that came later: {words}") }
}

/// What the version answered in shadow, device by device.
fn shadow(evidence: &ShadowEvidence) -> String {
    let ms = |us: u64| format!("{:.1}", us as f64 / 1e3);
    let row = |d: &DeviceShadow| {
        let t = &d.totals;
        let state = match d.end {
            ShadowEnd::Open => "compares",
            ShadowEnd::Agreed => "ended well",
            ShadowEnd::Few => "saw little",
            ShadowEnd::Differs => "differs",
            ShadowEnd::Broke => "broke",
            ShadowEnd::Skipped => "not held",
        };
        let current = d.current.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
        let counts = [t.rows, t.differ, t.failed, t.skipped].map(|n| n.to_string());
        let apart = t.distance.map_or_else(|| "-".to_owned(), |d| format!("{:.3}", d.relative));
        let mut cells = vec![d.device.to_string(), current, state.to_owned()];
        cells.extend(counts);
        cells.extend([apart, ms(t.current_p50_us), ms(t.candidate_p50_us)]);
        cells.push(memory(t.memory_bytes).unwrap_or_else(|| "-".to_owned()));
        cells.push(d.reason.clone().unwrap_or_default());
        cells
    };
    let rows: Vec<_> = evidence.devices.iter().map(row).collect();
    let head = [
        "DEVICE",
        "BESIDE",
        "SHADOW",
        "ROWS",
        "DIFFER",
        "FAILED",
        "SKIPPED",
        "APART (SD)",
        "P50 BEFORE (MS)",
        "P50 (MS)",
        "MEMORY",
        "WHY",
    ];
    format!("\n\nShadow: {}\n\n{}", evidence.text, table(&head, &rows))
}

/// The answers of both versions, device by device.
fn evidence(evidence: &OutputEvidence) -> String {
    let mean = |mean: Option<f64>| mean.map_or_else(|| "-".to_owned(), |m| format!("{m:.2}"));
    let row = |d: &DeviceOutputs, has_it: &str| {
        let (before, after) = (mean(d.before), mean(d.after));
        let counts = (d.before_readings.to_string(), d.after_readings.to_string());
        vec![d.device.to_string(), has_it.into(), before, counts.0, after, counts.1]
    };
    let rows: Vec<_> = evidence.canaries.iter().map(|d| row(d, "yes")).collect();
    let rows: Vec<_> = rows.into_iter().chain(evidence.controls.iter().map(|d| row(d, "no"))).collect();
    let head = ["DEVICE", "HAS IT", "CONFIDENCE BEFORE", "READINGS", "SINCE", "READINGS"];
    format!("\n\nEvidence: {}\n\n{}", evidence.text, table(&head, &rows))
}

fn stage(s: &StageInfo) -> Vec<String> {
    let mut cells = vec![s.name.clone(), s.state.clone()];
    cells.extend(
        [s.devices, s.active, s.failed, s.silent, s.in_progress, s.not_applicable].map(|n| n.to_string()),
    );
    cells.push(s.waiting_for.clone().unwrap_or_default());
    cells
}

fn list(rollouts: &[RolloutInfo]) -> String {
    if rollouts.is_empty() {
        return "No rollout yet: `plimsoll rollout start` begins one.".into();
    }
    let rows = rollouts.iter().map(|r| {
        let version = format!("{} {}", r.spec.model, r.spec.version);
        vec![r.id.to_string(), version, r.status.words().into(), utc(r.started_ms), r.reason.clone()]
    });
    table(&["ROLLOUT", "VERSION", "STATUS", "STARTED (UTC)", "WHY"], &rows.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Form;

    fn info(status: &str) -> RolloutInfo {
        serde_json::from_value(serde_json::json!({
            "id": "r-1", "digest": "00".repeat(32), "status": status, "reason": "2 of 2 devices are well",
            "spec": {"model": "meter", "version": "1.1.0", "stages": [{"size": "2"}, {"size": "100%"}]},
            "started_ms": 1_800_000_000_000_i64, "ended_ms": null, "history": [],
            "stages": [{"name": "canary", "devices": 2, "ordered": 2, "active": 2, "failed": 0, "not_applicable": 0,
                        "silent": 0, "in_progress": 0, "state": "soaking", "waiting_for": "3 s of stage wait"}]
        }))
        .unwrap()
    }

    #[test]
    fn accuracy_is_told_when_labels_came() {
        let accuracy = "1.1.0: accuracy 91.0 % of 40 labelled answers".to_owned();
        let text = describe(&RolloutInfo { accuracy, ..info("running") });
        assert!(text.ends_with("came later: 1.1.0: accuracy 91.0 % of 40 labelled answers"), "{text}");
        assert!(!describe(&info("running")).contains("Accuracy"));
    }

    #[test]
    fn a_rollout_is_told_in_words_and_counts() {
        let text = describe(&info("running"));
        assert!(text.starts_with("Rollout r-1: meter 1.1.0 is running\n2 of 2 devices are well\n"), "{text}");
        assert!(text.contains("canary  soaking  2        2     0"), "{text}");
        assert!(text.ends_with("3 s of stage wait"), "{text}");
    }

    #[test]
    fn the_evidence_is_told_device_by_device() {
        let device = |name: &str, after| DeviceOutputs {
            device: name.parse().unwrap(),
            before_readings: 120,
            before: Some(0.971),
            after_readings: 95,
            after,
        };
        let evidence = OutputEvidence {
            text: "confidence on camera-4 fell".into(),
            canaries: vec![device("camera-4", Some(0.234))],
            controls: vec![device("camera-1", None)],
            ..OutputEvidence::default()
        };
        let text = describe(&RolloutInfo { evidence: Some(evidence), ..info("rolled_back") });
        assert!(text.contains("\n\nEvidence: confidence on camera-4 fell\n\nDEVICE"), "{text}");
        let line =
            |name: &str| text.lines().find(|l| l.starts_with(name)).map(str::split_whitespace).unwrap();
        assert_eq!(line("camera-4").collect::<Vec<_>>(), ["camera-4", "yes", "0.97", "120", "0.23", "95"]);
        assert_eq!(line("camera-1").collect::<Vec<_>>(), ["camera-1", "no", "0.97", "120", "-", "95"]);
    }

    #[test]
    fn a_shadow_is_told_device_by_device() {
        let shadow = serde_json::json!({
            "text": "in shadow on 1 device 60 of 120 answers differ from those of 1.0.0", "rows": 120, "differ": 60,
            "devices": [{
                "device": "camera-4", "current": "1.0.0", "end": "differs", "reason": "60 of 120",
                "totals": { "rows": 120, "differ": 60, "failed": 1, "skipped": 3, "current_p50_us": 1500,
                            "current_p99_us": 2000, "candidate_p50_us": 1600, "candidate_p99_us": 2100,
                            "memory_bytes": 7_340_032, "distance": { "mean": 0.1, "max": 1.0, "relative": 0.25 } }
            }]
        });
        let shadow = serde_json::from_value(shadow).unwrap();
        let text = describe(&RolloutInfo { shadow: Some(shadow), ..info("rolled_back") });
        assert!(text.contains("\n\nShadow: in shadow on 1 device 60 of 120"), "{text}");
        let line = text.lines().find(|l| l.starts_with("camera-4")).unwrap();
        let cells: Vec<&str> = line.split_whitespace().take(12).collect();
        assert_eq!(
            cells,
            ["camera-4", "1.0.0", "differs", "120", "60", "1", "3", "0.250", "1.5", "1.6", "7.3", "MB"]
        );
    }

    #[test]
    fn the_exit_code_of_following_says_how_it_ended() {
        let screen = Screen::new(Form::Json);
        assert!(ended(&info("completed"), &screen).is_ok());
        for (status, expect) in [("rolled_back", 3), ("aborted", 1), ("superseded", 1)] {
            let error = ended(&info(status), &screen).unwrap_err();
            assert_eq!(crate::failure::exit_code(&error), expect, "{status}");
        }
    }
}
