//! From flags and `rollout.toml` to the specification of a rollout. Flags win over the file.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use plimsoll_protocol::ModelName;
use plimsoll_protocol::api::{GateSpec, OnBreach, RolloutSpec, StageSpec};
use plimsoll_protocol::hours::MaintenanceHours;

use crate::failure::Usage;
use crate::time::seconds;

/// `plimsoll rollout start`
#[derive(Debug, Default, Args)]
pub struct Start {
    /// The whole specification as TOML; flags win over it.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// The model.
    #[arg(long, required_unless_present = "file")]
    model: Option<ModelName>,
    /// A published version.
    #[arg(long, required_unless_present = "file")]
    version: Option<semver::Version>,
    /// Which devices: `site = lyon and not arch = armv7`. Without it, all.
    #[arg(long, value_name = "SELECTOR")]
    selector: Option<String>,
    /// Devices or shares, each together with all before it: `2,10%,100%`. The last must reach 100 %.
    #[arg(long, value_name = "SIZES")]
    stages: Option<String>,
    /// Stage wait: how long to observe after the last device of a stage passed its trial.
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    soak: Option<u32>,
    /// A person approves every stage but the first.
    #[arg(long)]
    approval: bool,
    /// How long a device has the version on trial.
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    trial: Option<u32>,
    /// Requests that a trial should see.
    #[arg(long, value_name = "N")]
    trial_requests: Option<u32>,
    /// Failed requests in percent above which a device rolls back by itself.
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(0..=100))]
    trial_max_failed: Option<u32>,
    /// Spread of the start over the devices of a stage.
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    jitter: Option<u32>,
    /// How often a device may try before the version is blocked there.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    tries: Option<u32>,
    /// Compare the version with the one that runs for so long before it takes over: on a sample of the same requests,
    /// answering nobody.
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    shadow: Option<u32>,
    /// Requests in percent that a version in shadow sees too.
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(1..=100))]
    shadow_sample: Option<u32>,
    /// Rows that a shadow should compare; fewer is told, not failed.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    shadow_rows: Option<u32>,
    /// Rows in percent that may be answered otherwise in shadow: more, when it is proven, stops the version on a device,
    /// and the rollout over all devices. Without it shadows are only reported.
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(0..=50))]
    max_shadow_disagreement: Option<u32>,
    /// Labelled answers in percent that must be right: fewer, when it is proven, stops the rollout. Labels come by
    /// `POST …/feedback`; give a stage a soak in which they can. Without it accuracy is only shown.
    #[arg(long, value_name = "PERCENT")]
    min_accuracy: Option<f64>,
    /// A device that has not heard the server for so long does not activate.
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    lease: Option<u32>,
    /// Devices take it over only within these hours of their own local time: "Mon-Fri 02:00-04:30"; repeat for several.
    #[arg(long, value_name = "SPAN")]
    hours: Vec<String>,
    /// A device that has not answered an order after so long counts as silent.
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    silent_after: Option<u32>,
    /// Devices that must have answered before a share means anything.
    #[arg(long, value_name = "N")]
    min_sample: Option<u32>,
    /// Failed devices in percent above which the rollout stops.
    #[arg(long, value_name = "PERCENT")]
    max_failed: Option<f64>,
    /// Silent devices in percent above which the rollout stops.
    #[arg(long, value_name = "PERCENT")]
    max_silent: Option<f64>,
    /// Confidence of these bounds, 0 to 1.
    #[arg(long, value_name = "P")]
    confidence: Option<f64>,
    /// How far the mean confidence of its answers may fall, 0.01 to 1; 1 switches this off.
    #[arg(long, value_name = "DROP")]
    max_confidence_drop: Option<f64>,
    /// Readings that a device needs with either version before their confidence is compared.
    #[arg(long, value_name = "N")]
    min_readings: Option<u32>,
    /// Longest that a stage waits for these readings.
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    readings_wait: Option<u32>,
    /// What happens when a bound is crossed.
    #[arg(long, value_enum)]
    on_breach: Option<Breach>,
    /// Take over from a running rollout of the same model.
    #[arg(long)]
    supersede: bool,
}

/// What happens when a bound is crossed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Breach {
    /// Devices that have the version get the one they had before.
    Rollback,
    /// Nobody else gets it until a person decides.
    Pause,
}

impl Start {
    /// The specification. The server judges it; here only what cannot even be written down is refused.
    pub fn spec(&self) -> Result<RolloutSpec> {
        let mut spec = self.base()?;
        set(&mut spec.model, &self.model);
        set(&mut spec.version, &self.version);
        set(&mut spec.selector, &self.selector);
        if let Some(text) = &self.stages {
            spec.stages = stages(text)?;
        }
        for (at, stage) in spec.stages.iter_mut().enumerate() {
            set(&mut stage.soak_s, &self.soak);
            stage.approval |= self.approval && at > 0;
        }
        set(&mut spec.policy.trial_s, &self.trial);
        set(&mut spec.policy.trial_requests, &self.trial_requests);
        set(&mut spec.policy.trial_max_failed_percent, &self.trial_max_failed);
        set(&mut spec.policy.jitter_s, &self.jitter);
        set(&mut spec.policy.tries, &self.tries);
        set(&mut spec.policy.lease_s, &self.lease);
        if !self.hours.is_empty() {
            spec.policy.hours = MaintenanceHours::parse(&self.hours).map_err(|e| Usage(e.to_string()))?;
        }
        self.shadow(&mut spec)?;
        set(&mut spec.gate.silent_after_s, &self.silent_after);
        set(&mut spec.gate.min_sample, &self.min_sample);
        set(&mut spec.gate.max_failed_percent, &self.max_failed);
        set(&mut spec.gate.max_silent_percent, &self.max_silent);
        set(&mut spec.gate.confidence, &self.confidence);
        spec.gate.min_accuracy_percent = self.min_accuracy.or(spec.gate.min_accuracy_percent);
        set(&mut spec.gate.outputs.max_confidence_drop, &self.max_confidence_drop);
        set(&mut spec.gate.outputs.min_readings, &self.min_readings);
        set(&mut spec.gate.outputs.max_wait_s, &self.readings_wait);
        if let Some(breach) = self.on_breach {
            spec.on_breach = match breach {
                Breach::Rollback => OnBreach::Rollback,
                Breach::Pause => OnBreach::Pause,
            };
        }
        spec.supersede |= self.supersede;
        Ok(spec)
    }

    /// Flags of a shadow change the file's; without either there is none.
    fn shadow(&self, spec: &mut RolloutSpec) -> Result<()> {
        let details = [self.shadow_sample, self.shadow_rows, self.max_shadow_disagreement];
        if self.shadow.is_none() && details.iter().all(Option::is_none) {
            return Ok(());
        }
        if self.shadow.is_none() && spec.policy.shadow.is_none() {
            bail!(Usage("say how long the version is in shadow too: --shadow 20m".into()));
        }
        let shadow = spec.policy.shadow.get_or_insert_default();
        set(&mut shadow.seconds, &self.shadow);
        set(&mut shadow.sample_percent, &self.shadow_sample);
        set(&mut shadow.min_rows, &self.shadow_rows);
        if let Some(limit) = self.max_shadow_disagreement {
            shadow.max_disagree_percent = Some(limit);
            spec.gate.max_shadow_disagree_percent = Some(f64::from(limit));
        }
        Ok(())
    }

    fn base(&self) -> Result<RolloutSpec> {
        if let Some(file) = &self.file {
            let text =
                std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
            return toml::from_str(&text).map_err(|e| Usage(format!("{}: {e}", file.display())).into());
        }
        let (Some(model), Some(version)) = (self.model.clone(), self.version.clone()) else {
            bail!(Usage("name the version with --model and --version, or give --file".into()));
        };
        Ok(RolloutSpec {
            model,
            version,
            selector: String::new(),
            stages: stages(DEFAULT_STAGES)?,
            gate: GateSpec::default(),
            on_breach: OnBreach::default(),
            policy: Default::default(),
            supersede: false,
        })
    }
}

/// One device shows what breaks everywhere, a tenth what breaks somewhere.
const DEFAULT_STAGES: &str = "1,10%,100%";

fn set<T: Clone>(target: &mut T, flag: &Option<T>) {
    if let Some(value) = flag {
        *target = value.clone();
    }
}

/// `2,10%,100%`: the first of several is the canary, the one of 100 % is everybody.
fn stages(text: &str) -> Result<Vec<StageSpec>> {
    let sizes: Vec<&str> = text.split(',').map(str::trim).collect();
    let stage = |(at, size): (usize, &&str)| {
        let digits = size.strip_suffix('%').unwrap_or(size);
        let number = digits.parse::<f64>().ok().filter(|n| n.is_finite() && *n > 0.0);
        if number.is_none() || !digits.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
            bail!(Usage(format!(
                "stage {size:?} is neither a number of devices nor a share: --stages 2,10%,100%"
            )));
        }
        let name = match (at, *size) {
            (_, "100%") => Some("all".to_owned()),
            (0, _) => Some("canary".to_owned()),
            _ => None,
        };
        Ok(StageSpec { name, size: (*size).to_owned(), min: 0, soak_s: DEFAULT_SOAK_S, approval: false })
    };
    sizes.iter().enumerate().map(stage).collect()
}

/// An hour of stage wait is one measurement window: less could not even see drift.
const DEFAULT_SOAK_S: u32 = 3_600;

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        start: Start,
    }

    fn spec(line: &str) -> Result<RolloutSpec> {
        Line::try_parse_from(line.split(' '))?.start.spec()
    }

    #[test]
    fn flags_fill_the_specification() {
        let line = "start --model meter --version 1.1.0 --stages 2,100% --soak 3s --trial 4s --trial-requests 0 \
                    --jitter 1s --silent-after 60s --min-sample 1 --on-breach pause \
                    --max-confidence-drop 0.2 --min-readings 50 --readings-wait 2m";
        let spec = spec(&line.replace("                    ", "")).unwrap();
        let json = serde_json::to_value(&spec).unwrap();
        assert_eq!(json["stages"][0]["name"], "canary");
        assert_eq!(json["stages"][0]["size"], "2");
        assert_eq!(json["stages"][1]["name"], "all");
        assert_eq!((spec.stages[0].soak_s, spec.policy.trial_s, spec.policy.trial_requests), (3, 4, 0));
        assert_eq!((spec.policy.jitter_s, spec.gate.silent_after_s, spec.gate.min_sample), (1, 60, 1));
        let outputs = &spec.gate.outputs;
        assert_eq!((outputs.max_confidence_drop, outputs.min_readings, outputs.max_wait_s), (0.2, 50, 120));
        assert_eq!((spec.on_breach, spec.supersede), (OnBreach::Pause, false));
    }

    #[test]
    fn a_shadow_has_one_limit_for_devices_and_fleet_and_needs_a_time() {
        let start = |flags: &str| spec(&format!("start --model meter --version 1.1.0 {flags}"));
        let spec = start("--shadow 20m --shadow-sample 25 --max-shadow-disagreement 5").unwrap();
        let shadow = spec.policy.shadow.unwrap();
        assert_eq!((shadow.seconds, shadow.sample_percent, shadow.min_rows), (1_200, 25, 100));
        assert_eq!(shadow.max_disagree_percent, Some(5));
        assert_eq!(spec.gate.max_shadow_disagree_percent, Some(5.0));
        let only_told = start("--shadow 1h").unwrap();
        assert_eq!(only_told.gate.max_shadow_disagree_percent, None);
        assert_eq!(start("--trial 5s").unwrap().policy.shadow, None);
        let error = start("--shadow-sample 25").unwrap_err();
        assert!(error.to_string().contains("--shadow 20m"), "{error}");
    }

    #[test]
    fn a_least_accuracy_is_asked_for_by_name() {
        let start = |flags: &str| spec(&format!("start --model meter --version 1.1.0 {flags}")).unwrap();
        assert_eq!(start("--min-accuracy 97.5").gate.min_accuracy_percent, Some(97.5));
        assert_eq!(start("--trial 5s").gate.min_accuracy_percent, None);
    }

    #[test]
    fn maintenance_hours_are_read_before_the_server_is_asked() {
        let start = |hours: &str| spec(&format!("start --model meter --version 1.1.0 --hours {hours}"));
        assert_eq!(
            start("22:00-06:00 --hours 12:00-13:00").unwrap().policy.hours.to_string(),
            "22:00-06:00; 12:00-13:00"
        );
        let error = start("tonight").unwrap_err().to_string();
        assert!(error.contains("tonight") && error.contains("02:00-04:30"), "{error}");
    }

    #[test]
    fn a_file_is_taken_and_flags_win() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("rollout.toml");
        let text = "model = \"meter\"\nversion = \"1.0.0\"\nselector = \"site = lyon\"\n\
                    [[stages]]\nsize = \"1\"\nsoak_s = 9\n[[stages]]\nsize = \"100%\"\n";
        std::fs::write(&file, text).unwrap();
        let spec = spec(&format!("start --file {} --version 2.0.0 --approval", file.display())).unwrap();
        assert_eq!((spec.version.to_string(), spec.selector.as_str()), ("2.0.0".into(), "site = lyon"));
        assert_eq!(
            (spec.stages[0].soak_s, spec.stages[0].approval, spec.stages[1].approval),
            (9, false, true)
        );
        std::fs::write(&file, "model = \"meter\"\nversion = \"1.0.0\"\nstages = []\ntypo = 1\n").unwrap();
        let error =
            format!("{:#}", super::tests::spec(&format!("start --file {}", file.display())).unwrap_err());
        assert!(error.contains("typo") && error.contains("rollout.toml"), "{error}");
    }

    #[test]
    fn stages_that_are_no_sizes_are_wrong_usage() {
        for bad in ["", "x", "-1", "2,,3", "10 percent", "0", "nan"] {
            let error = stages(bad).unwrap_err();
            assert_eq!(crate::failure::exit_code(&error), crate::failure::USAGE, "{bad:?}");
        }
    }
}
