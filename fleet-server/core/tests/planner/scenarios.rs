//! Runs `tests/scenarios/*.txt`. A script is lines of commands; lines that start with `|` are what they print, and
//! the file must equal what the run prints. `UPDATE=1` rewrites the files, for review as a diff.
//!
//! ```text
//! fleet 6                       cam-1 … cam-6 exist, connected, on 1.0.0
//! device cam-7 site=lyon        one more (none=1: runs no model; offline=1)
//! rollout r1 1.1.0 2 soak=10, 100% ; select site = lyon ; max_failed 10 ; pause ; supersede ;
//!                               silent 60 ; trial 600 ; shadow 1200 5 (seconds, percent) ; accuracy 95 ;
//!                               warnings (prints them)
//! shadowed 12 120 cam-1 | all   what they compared of the order so far: 12 of 120 rows differ
//! labelled 14 120 cam-1 | all   labels came for what they run: 14 of 120 answers were wrong
//! tick 10s                      the clock moves, then the server plans
//! clock -1h                     the clock jumps; nothing else happens
//! obey cam-1 cam-2 | all        devices do what they were told, and it is active; `all` are those connected
//! say failed cam-1 : reason     a job report: waiting fetching probation failed rolled_back not_applicable …
//! runs cam-1 1.0.0              its birth says so, whatever it reported before
//! window 0.97 120 cam-1 | all | on 1.0.0    they close a window of 120 readings, mean confidence 0.97
//! revoke 1.1.0                  nobody signs for it any more
//! offline cam-1, online cam-1, gone cam-1, restart, pause r1 : why, resume r1, approve r1, abort r1
//! show r1, why r1 cam-1, devices
//! ```

use std::fmt::Write as _;
use std::path::Path;

use plimsoll_fleet_core::act::Action;
use plimsoll_fleet_core::view::Running;
use plimsoll_fleet_core::{Facts, Plan, fleet, summary};
use plimsoll_protocol::DeviceId;
use plimsoll_protocol::api::OnBreach;
use plimsoll_protocol::wire::v1::{JobPhase, ShadowPolicy};

use super::world::{START_MS, World, bundle, device, model, spec};

/// The order of devices in every script.
const SEED: u64 = 7;

#[test]
fn every_scenario_prints_its_transcript() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut paths: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 13, "scripts are missing from {}", folder.display());
    let mut wrong = Vec::new();
    for path in paths {
        let text = std::fs::read_to_string(&path).unwrap();
        let transcript = run(&text);
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, &transcript).unwrap();
        } else if transcript != text {
            wrong.push(format!("{}:\n{}", path.display(), first_difference(&text, &transcript)));
        }
    }
    assert!(wrong.is_empty(), "transcripts differ (UPDATE=1 rewrites them):\n{}", wrong.join("\n"));
}

fn first_difference(want: &str, got: &str) -> String {
    let line = want.lines().zip(got.lines()).position(|(a, b)| a != b);
    let at = line.unwrap_or(want.lines().count().min(got.lines().count()));
    let show = |text: &str| text.lines().nth(at).unwrap_or("(end)").to_owned();
    format!("  line {}\n  want {}\n  got  {}", at + 1, show(want), show(got))
}

fn run(script: &str) -> String {
    let mut stage = Stage { world: World::new(0), out: String::new() };
    for line in script.lines().filter(|l| !l.starts_with('|')) {
        writeln!(stage.out, "{line}").unwrap();
        let command = line.split('#').next().unwrap_or("").trim();
        if !command.is_empty() {
            stage.command(command);
        }
    }
    stage.out
}

struct Stage {
    world: World,
    out: String,
}

impl Stage {
    fn say(&mut self, line: &str) {
        writeln!(self.out, "| {line}").unwrap();
    }

    fn command(&mut self, command: &str) {
        let (verb, rest) = command.split_once(' ').unwrap_or((command, ""));
        let rest = rest.trim();
        match verb {
            "fleet" => self.world.grow(rest.parse().unwrap()),
            "device" => self.add(rest),
            "rollout" => self.rollout(rest),
            "tick" => self.tick(rest),
            "clock" => self.world.now_ms += span_ms(rest),
            "obey" => {
                for name in self.named(rest) {
                    if self.world.wanted(&name).is_some() || rest != "all" {
                        self.world.report(&name, JobPhase::Active, None);
                    }
                }
            }
            "say" => self.report(rest),
            "offline" | "online" => {
                for name in self.named(rest) {
                    self.world.devices.get_mut(&name).unwrap().online = verb == "online";
                }
            }
            "gone" => {
                for name in self.named(rest) {
                    self.world.devices.remove(&name);
                }
            }
            "runs" => {
                let (name, version) = rest.split_once(' ').unwrap();
                let running = Running { bundle: bundle(version), trial_passed: true };
                self.world.devices.get_mut(&device(name)).unwrap().running.insert(model(), running);
            }
            "revoke" => _ = self.world.revoked.insert(bundle(rest).digest),
            "window" => self.window(rest),
            "shadowed" => self.of_so_many(rest, World::shadowed),
            "labelled" => self.of_so_many(rest, World::labelled),
            "restart" => self.world.restart(),
            "pause" => self.act(rest, Action::Pause),
            "resume" => self.act(rest, Action::Resume),
            "approve" => self.act(rest, Action::Approve),
            "abort" => self.act(rest, Action::Abort),
            "show" => self.show(rest),
            "why" => self.why(rest),
            "devices" => self.devices(),
            other => panic!("no command {other:?}"),
        }
    }

    fn window(&mut self, rest: &str) {
        let mut words = rest.splitn(3, ' ');
        let mean: f64 = words.next().unwrap().parse().unwrap();
        let n: u32 = words.next().unwrap().parse().unwrap();
        let whom = words.next().unwrap();
        let names = match whom.strip_prefix("on ") {
            Some(version) => {
                let runs = |f: &Facts| f.running.get(&model()).is_some_and(|r| r.bundle == bundle(version));
                self.world.devices.iter().filter(|(_, f)| runs(f)).map(|(d, _)| d.clone()).collect()
            }
            None => self.named(whom),
        };
        names.iter().for_each(|name| self.world.window(name, mean, n));
    }

    /// `14 120 cam-1`
    fn of_so_many(&mut self, rest: &str, say: fn(&mut World, &DeviceId, u32, u32)) {
        let mut words = rest.splitn(3, ' ');
        let some = words.next().unwrap().parse().unwrap();
        let all = words.next().unwrap().parse().unwrap();
        for name in self.named(words.next().unwrap()) {
            say(&mut self.world, &name, some, all);
        }
    }

    /// Devices by name; `all` are all that are connected.
    fn named(&self, names: &str) -> Vec<DeviceId> {
        if names == "all" {
            let online = self.world.devices.iter().filter(|(_, f)| f.online);
            return online.map(|(d, _)| d.clone()).collect();
        }
        names.split_whitespace().map(device).collect()
    }

    fn add(&mut self, rest: &str) {
        let mut words = rest.split_whitespace();
        let name = words.next().unwrap();
        let facts = self.world.add(name, Some("1.0.0"));
        for (key, value) in words.map(|w| w.split_once('=').unwrap()) {
            match key {
                "arch" => facts.attributes.arch = value.to_owned(),
                "offline" => facts.online = false,
                "none" => facts.running.clear(),
                label => {
                    facts.attributes.labels.insert(label.to_owned(), value.to_owned());
                }
            }
        }
    }

    fn rollout(&mut self, rest: &str) {
        let mut parts = rest.split(';').map(str::trim);
        let mut head = parts.next().unwrap().splitn(3, ' ');
        let id = head.next().unwrap();
        let version = head.next().unwrap();
        let mut spec = spec(version, head.next().unwrap());
        let mut loud = false;
        for option in parts {
            let (name, value) = option.split_once(' ').unwrap_or((option, ""));
            match name {
                "select" => spec.selector = value.to_owned(),
                "max_failed" => spec.gate.max_failed_percent = value.parse().unwrap(),
                "silent" => spec.gate.silent_after_s = value.parse().unwrap(),
                "trial" => spec.policy.trial_s = value.parse().unwrap(),
                "shadow" => {
                    let (seconds, limit) = value.split_once(' ').unwrap();
                    let seconds = seconds.parse().unwrap();
                    spec.policy.shadow = Some(ShadowPolicy { seconds, ..ShadowPolicy::default() });
                    spec.gate.max_shadow_disagree_percent = Some(limit.parse().unwrap());
                }
                "accuracy" => spec.gate.min_accuracy_percent = Some(value.parse().unwrap()),
                "pause" => spec.on_breach = OnBreach::Pause,
                "supersede" => spec.supersede = true,
                "warnings" => loud = true,
                other => panic!("no option {other:?}"),
            }
        }
        match self.world.start(id, spec, SEED) {
            Ok(_) if !loud => {}
            Ok(warnings) => warnings.iter().for_each(|w| self.say(&format!("warning: {w}"))),
            Err(error) => self.say(&format!("refused: {error}")),
        }
    }

    fn report(&mut self, rest: &str) {
        let (rest, reason) = rest.split_once(" : ").map_or((rest, None), |(a, b)| (a, Some(b)));
        let (phase, names) = rest.split_once(' ').unwrap();
        let phase: JobPhase = serde_json::from_str(&format!("\"{phase}\"")).unwrap();
        for name in self.named(names) {
            self.world.report(&name, phase, reason);
        }
    }

    fn tick(&mut self, span: &str) {
        self.world.now_ms += span_ms(span);
        let plans = self.world.tick();
        plans.iter().for_each(|plan| self.print(plan));
        let again =
            fleet::tick(&self.world.devices, &self.world.rollouts, &self.world.revoked, self.world.now())
                .unwrap();
        assert!(again.iter().all(|p| p.orders.is_empty()), "the same tick twice orders twice");
    }

    fn print(&mut self, plan: &Plan) {
        let t = (self.world.now_ms - START_MS) / 1_000;
        for decision in &plan.decisions {
            self.say(&format!("{t} s  {}: {}", plan.next.id, decision.text));
        }
        for order in &plan.orders {
            let version = order.bundle.as_ref().map_or("nothing else".to_owned(), |b| b.version.to_string());
            let how = if order.rollback { "back to " } else { "" };
            self.say(&format!("  order {} {how}{version}", order.device));
        }
    }

    fn act(&mut self, rest: &str, action: Action) {
        let (id, reason) = rest.split_once(" : ").unwrap_or((rest, ""));
        match self.world.act(id, action, reason) {
            Ok(plan) => self.print(&plan),
            Err(error) => self.say(&format!("refused: {error}")),
        }
    }

    fn show(&mut self, id: &str) {
        let rollout = self.world.rollout(id).clone();
        let view =
            fleet::view(&self.world.devices, &self.world.rollouts, &self.world.revoked, &rollout).unwrap();
        self.say(&format!("{id} is {}: {}", rollout.state.status.words(), rollout.state.reason));
        if let Some(waits) = summary::waiting(&view, &rollout, self.world.now()) {
            self.say(&format!("  now: {waits}"));
        }
        for s in summary::stage_infos(&view, &rollout, self.world.now()) {
            let counts = [
                (s.active, "active"),
                (s.failed, "failed"),
                (s.silent, "silent"),
                (s.not_applicable, "not applicable"),
                (s.in_progress, "in progress"),
            ];
            let counts: Vec<String> =
                counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
            let waits = s.waiting_for.map(|w| format!("; waits for: {w}")).unwrap_or_default();
            let line = format!(
                "  {}: {}, {} of {} ordered, {}{waits}",
                s.name,
                s.state,
                s.ordered,
                s.devices,
                if counts.is_empty() { "nothing yet".to_owned() } else { counts.join(", ") }
            );
            self.say(&line);
        }
    }

    fn why(&mut self, rest: &str) {
        let (id, name) = rest.split_once(' ').unwrap();
        let rollout = self.world.rollout(id).clone();
        let view =
            fleet::view(&self.world.devices, &self.world.rollouts, &self.world.revoked, &rollout).unwrap();
        let why = summary::why(&view, &rollout, &device(name), self.world.now());
        self.say(&format!("{name}: {}", why.unwrap_or_else(|| "not concerned".to_owned())));
    }

    fn devices(&mut self) {
        let mut lines = Vec::new();
        for (name, facts) in &self.world.devices {
            let runs =
                facts.running.values().next().map_or("nothing".to_owned(), |r| r.bundle.version.to_string());
            let doc = self.world.stored.get(name);
            let wants = doc.and_then(|d| d.models.first()).map_or("nothing".to_owned(), |m| {
                let back = if m.rollback { " (back)" } else { "" };
                let blocked = if m.blocked.is_empty() {
                    String::new()
                } else {
                    format!(", {} blocked", m.blocked.len())
                };
                format!("{}{back}{blocked}", m.version)
            });
            let generation = doc.map_or(0, |d| d.generation);
            lines.push(format!("  {name} runs {runs}, goal {wants}, generation {generation}"));
        }
        lines.iter().for_each(|line| self.say(line));
    }
}

/// `10s`, `5m`, `-1h`, `2d`; nothing is nothing.
fn span_ms(text: &str) -> i64 {
    let Some(unit) = text.chars().last() else { return 0 };
    let factor = match unit {
        's' => 1_000,
        'm' => 60_000,
        'h' => 3_600_000,
        'd' => 86_400_000,
        _ => panic!("no time span {text:?}"),
    };
    text[..text.len() - 1].trim_start_matches('+').parse::<i64>().unwrap() * factor
}
