//! What every page must hold: hostile text stays text, every state has words, nothing runs inline.

use std::collections::BTreeMap;

use plimsoll_protocol::api::{
    Decision, DeviceInfo, EventInfo, GateSpec, JobInfo, ModelVersion, OnBreach, RolloutInfo, RolloutSpec,
    RolloutStatus, ServerInfo, StageInfo, StageSpec,
};
use plimsoll_protocol::drift::{Quality, Truth};
use plimsoll_protocol::wire::v1::{
    Birth, Health, JobPhase, ModelHealth, RunningModel, Severity, UpdatePolicy,
};
use plimsoll_protocol::{Digest, UnixMillis};

use super::*;

const NOW: UnixMillis = 1_795_248_000_000;
const HOSTILE: &str = "<script>alert(1)</script>\"'&</title><img src=x onerror=alert(1)>";

fn server() -> ServerInfo {
    ServerInfo {
        version: semver::Version::new(0, 1, 0),
        tenant: "acme".into(),
        device_https: "https://127.0.0.1:8443".into(),
        device_mqtt: "127.0.0.1:8883".into(),
        dashboard_mqtt: "127.0.0.1:8884".into(),
        ca: Digest::of(b"ca"),
    }
}

fn digest(version: &str) -> Digest {
    Digest::of(version.as_bytes())
}

fn running(version: &str, trial_passed: bool) -> RunningModel {
    let model = "meter-reader".parse().unwrap();
    RunningModel { model, version: version.parse().unwrap(), digest: digest(version), trial_passed }
}

fn job(version: &str, phase: JobPhase, reason: Option<&str>) -> JobInfo {
    let (model, version_) = ("meter-reader".parse().unwrap(), version.parse().unwrap());
    let reason = reason.map(Into::into);
    JobInfo {
        model,
        version: version_,
        digest: digest(version),
        phase: Some(phase),
        reason,
        at_ms: Some(NOW - 9_000),
    }
}

fn device(name: &str, version: &str, phase: JobPhase) -> DeviceInfo {
    let requests = 1200 + name.len() as u64 * 37;
    let served = ModelHealth {
        model: "meter-reader".parse().unwrap(),
        digest: digest(version),
        requests,
        failed: 0,
        refused: 3,
        busy: 0,
        p50_us: 340,
        p99_us: 1210,
        quality: Quality { malformed: 2, ..Quality::default() },
        truth: Truth { labelled: 40, correct: 37, ..Truth::default() },
        memory_bytes: 11_400_000,
    };
    DeviceInfo {
        device: name.parse().unwrap(),
        online: true,
        revoked: false,
        certificate_until_ms: 0,
        last_seen_ms: Some(NOW - 4_000),
        labels: [("site".to_owned(), "lyon".to_owned()), ("rev".to_owned(), "b".to_owned())].into(),
        birth: Some(Birth {
            boot: 3,
            conn: 1,
            agent_version: semver::Version::new(0, 1, 0),
            arch: "aarch64".into(),
            os: "Debian GNU/Linux 12".into(),
            ram_bytes: 2_000_000_000,
            generation: 4,
            models: vec![],
            labels: BTreeMap::new(),
        }),
        health: Some(Health {
            uptime_s: 300,
            cpu: 0.12,
            ram_used_bytes: 600_000_000,
            agent_rss_bytes: 31_000_000,
            disk_free_bytes: 11_400_000_000,
            temperature_c: Some(47.0),
            outbox_entries: 0,
            outbox_dropped: 0,
            serve_restarts: 0,
            trust_expired: false,
            models: vec![served],
        }),
        running: vec![running(version, phase != JobPhase::Probation)],
        generation: 4,
        jobs: vec![job(version, phase, None)],
        waiting: None,
        drift: Vec::new(),
    }
}

fn stage(name: &str, state: &str, devices: u64) -> StageInfo {
    StageInfo { name: name.into(), state: state.into(), devices, ..StageInfo::default() }
}

fn rollout(version: &str, status: RolloutStatus, reason: &str, stages: Vec<StageInfo>) -> RolloutInfo {
    let spec_stage = |name: &str, size: &str| StageSpec {
        name: Some(name.into()),
        size: size.into(),
        min: 0,
        soak_s: 20,
        approval: false,
    };
    RolloutInfo {
        id: format!("r-{}", version.replace('.', "-")).parse().unwrap(),
        spec: RolloutSpec {
            model: "meter-reader".parse().unwrap(),
            version: version.parse().unwrap(),
            selector: "site = lyon".into(),
            stages: vec![spec_stage("canary", "2"), spec_stage("all", "100%")],
            gate: GateSpec::default(),
            on_breach: OnBreach::Rollback,
            policy: UpdatePolicy::default(),
            supersede: false,
        },
        digest: digest(version),
        status,
        reason: reason.into(),
        started_ms: NOW - 95_000,
        ended_ms: status.is_end().then_some(NOW - 20_000),
        stages,
        history: vec![
            Decision { at_ms: NOW - 95_000, text: "started for 6 devices: canary 2, all 4".into() },
            Decision {
                at_ms: NOW - 60_000,
                text: "canary: 2 of 2 devices passed the trial; observing for 20 s".into(),
            },
        ],
        evidence: None,
        accuracy: format!("{version}: accuracy 91.2 % of 340 labelled answers"),
        shadow: None,
    }
}

fn event(id: u64, severity: Severity, device: Option<&str>, code: &str, text: &str) -> EventInfo {
    let device = device.map(|d| d.parse().unwrap());
    EventInfo { id, at_ms: NOW - 7_000 * id as i64, device, severity, code: code.into(), text: text.into() }
}

struct Story {
    server: ServerInfo,
    devices: Vec<DeviceInfo>,
    rollouts: Vec<RolloutInfo>,
    models: Vec<ModelVersion>,
    events: Vec<EventInfo>,
}

impl Story {
    fn page(&self) -> FleetPage<'_> {
        let Self { server, devices, rollouts, models, events } = self;
        FleetPage { now_ms: NOW, server, devices, rollouts, models, events }
    }
}

fn story() -> Story {
    let mut devices = vec![
        device("cam-1", "1.1.0", JobPhase::Active),
        device("cam-2", "1.1.0", JobPhase::Active),
        device("cam-3", "1.1.0", JobPhase::Probation),
        device("cam-4", "1.0.0", JobPhase::SelfTesting),
        device("cam-5", "1.0.0", JobPhase::Waiting),
        device("cam-6", "1.0.0", JobPhase::Active),
    ];
    devices[4].waiting = Some("jitter: starts in 12 s".into());
    devices[5].online = false;
    devices[5].last_seen_ms = Some(NOW - 260_000);
    let mut canary = stage("canary", "done", 2);
    canary.ordered = 2;
    canary.active = 2;
    let mut all = stage("all", "running", 4);
    all.ordered = 3;
    all.in_progress = 3;
    all.waiting_for = Some("3 devices to finish their trial".into());
    let mut stopped = stage("canary", "running", 2);
    stopped.failed = 1;
    stopped.active = 1;
    let reason = "Stopped at canary: on cam-1 and cam-2 confidence fell from 0.93 to 0.61 on average within 40 s of \
                  the switch; the four controls did not change. Evidence 8.4e5, needed 800.";
    Story {
        server: server(),
        devices,
        rollouts: vec![
            rollout(
                "1.1.0",
                RolloutStatus::Running,
                "Stage 2 of 2: 3 devices are under way, 1 is offline.",
                vec![canary, all],
            ),
            rollout("1.2.0", RolloutStatus::RolledBack, reason, vec![stopped, stage("all", "waiting", 4)]),
        ],
        models: ["1.2.0", "1.1.0", "1.0.0"]
            .map(|v| ModelVersion {
                model: "meter-reader".parse().unwrap(),
                version: v.parse().unwrap(),
                digest: digest(v),
                bytes: 61_440,
                signed_by: "meter-reader".into(),
                annotations: [("licence".to_owned(), "CC BY 4.0".to_owned())].into(),
                devices: 3,
                labelled: if v == "1.1.0" { 340 } else { 0 },
                correct: 310,
            })
            .to_vec(),
        events: vec![
            event(1, Severity::Info, Some("cam-3"), "job.probation", "meter-reader 1.1.0 is on trial"),
            event(2, Severity::Warning, None, "device.silent", "cam-6 has not been heard for 4 minutes"),
            event(
                3,
                Severity::Alarm,
                Some("cam-2"),
                "trust.refused",
                "refused meter-reader 1.3.0: signature of key 3f… is wrong; running 1.0.0 goes on",
            ),
        ],
    }
}

fn charts() -> Vec<Histogram> {
    let sharp: Vec<(String, f64, f64)> = (0..10)
        .map(|i| {
            (
                format!("{} to {}", i * 4, i * 4 + 4),
                0.1,
                [0.42, 0.31, 0.14, 0.07, 0.03, 0.02, 0.01, 0.0, 0.0, 0.0][i],
            )
        })
        .collect();
    let classes = (0..10).map(|i| (i.to_string(), 0.1, 0.08 + 0.004 * f64::from(i))).collect();
    vec![
        Histogram {
            feature: "sharpness".into(),
            alarm: true,
            bars: sharp,
            text: "sharpness fell from 21.3 to 6.2 on average; PSI 1.9 over 400 samples".into(),
        },
        Histogram {
            feature: "class".into(),
            text: "class: as the reference; PSI 0.012".into(),
            alarm: false,
            bars: classes,
        },
    ]
}

fn device_html(device: &DeviceInfo) -> String {
    let (server, charts, story) = (server(), charts(), story());
    let page = DevicePage { now_ms: NOW, server: &server, device, events: &story.events, drift: &charts };
    device_page(&page).into_string()
}

fn rollout_html(rollout: &RolloutInfo) -> String {
    let (server, story) = (server(), story());
    rollout_page(&RolloutPage { now_ms: NOW, server: &server, rollout, devices: &story.devices })
        .into_string()
}

#[test]
fn hostile_text_stays_text_on_every_page() {
    let mut story = story();
    story.server.tenant = HOSTILE.into();
    for device in &mut story.devices {
        device.labels = [(HOSTILE.to_owned(), HOSTILE.to_owned())].into();
        device.waiting = Some(HOSTILE.into());
        device.jobs[0].reason = Some(HOSTILE.into());
        if let Some(birth) = &mut device.birth {
            birth.os = HOSTILE.into();
            birth.arch = HOSTILE.into();
        }
    }
    for rollout in &mut story.rollouts {
        rollout.reason = HOSTILE.into();
        rollout.spec.selector = HOSTILE.into();
        rollout.history[0].text = HOSTILE.into();
        rollout.stages[0].name = HOSTILE.into();
        rollout.stages[0].state = HOSTILE.into();
        rollout.stages[0].waiting_for = Some(HOSTILE.into());
    }
    for model in &mut story.models {
        model.signed_by = HOSTILE.into();
        model.annotations = [(HOSTILE.to_owned(), HOSTILE.to_owned())].into();
    }
    for event in &mut story.events {
        event.text = HOSTILE.into();
        event.code = HOSTILE.into();
    }
    let pages = [
        fleet_page(&story.page()).into_string(),
        device_html(&story.devices[0]),
        rollout_html(&story.rollouts[0]),
        not_found_page(&story.server, HOSTILE).into_string(),
    ];
    for html in pages {
        assert!(html.contains("&lt;script&gt;"), "the text is shown");
        assert_eq!(html.matches("<script").count(), 1, "only the page's own script");
        assert_eq!(html.matches("<title").count(), html.matches("</title>").count());
        // Inside a tag, only a quote could end an attribute; none of the hostile ones is left.
        assert!(!html.contains("\"'&<") && !html.contains("<img"), "{html}");
    }
}

#[test]
fn nothing_runs_or_styles_inline_so_the_policy_can_forbid_it() {
    let story = story();
    for html in [
        fleet_page(&story.page()).into_string(),
        device_html(&story.devices[0]),
        rollout_html(&story.rollouts[1]),
    ] {
        assert!(!html.contains(" style=") && !html.contains("<style") && !html.contains("javascript:"));
        assert!(!html.contains(" onclick=") && !html.contains(" onload="));
        for part in html.split("<script").skip(1) {
            assert!(part.starts_with(" src=\"/static/app.js\" defer></script>"), "{part}");
        }
        assert!(html.contains("<noscript><meta http-equiv=\"refresh\""), "it works without the script");
    }
    assert!(!CONTENT_SECURITY_POLICY.contains("unsafe"));
    for name in ["app.css", "app.js", "icon.svg"] {
        assert!(asset(name).is_some_and(|a| !a.body.is_empty()), "{name}");
    }
    assert_eq!(asset("../mod.rs"), None);
}

#[test]
fn every_status_phase_and_state_has_words() {
    use JobPhase as P;
    use RolloutStatus as S;
    for (status, expect) in [
        (S::Running, "Rolling out"),
        (S::WaitingForApproval, "Waiting for approval"),
        (S::Paused, "Paused"),
        (S::RollingBack, "Stopped, rolling back"),
        (S::RolledBack, "Stopped and rolled back"),
        (S::Completed, "Completed"),
        (S::Aborted, "Aborted"),
        (S::Superseded, "Superseded"),
    ] {
        assert!(rollout_html(&rollout("1.1.0", status, "why", vec![])).contains(expect), "{status:?}");
    }
    for (phase, expect) in [
        (P::Waiting, "Waiting to update"),
        (P::Fetching, "Downloading"),
        (P::SelfTesting, "Self-testing"),
        (P::Activating, "Switching over"),
        (P::Probation, "On trial"),
        (P::Active, "Running"),
        (P::Failed, "Update failed"),
        (P::RolledBack, "Rolled itself back"),
        (P::NotApplicable, "Cannot run it"),
        (P::Superseded, "Replaced by a newer order"),
    ] {
        assert!(device_html(&device("cam-1", "1.0.0", phase)).contains(expect), "{phase:?}");
    }
    let mut offline = device("cam-1", "1.0.0", P::Active);
    offline.online = false;
    assert!(device_html(&offline).contains("Offline"));
    offline.revoked = true;
    assert!(device_html(&offline).contains("Revoked"));
    for (state, expect) in [
        ("waiting", "Not started"),
        ("running", "Updating"),
        ("soaking", "observing"),
        ("done", "Done"),
        ("odd", "odd"),
    ] {
        assert!(
            rollout_html(&rollout("1.1.0", S::Running, "", vec![stage("s", state, 2)])).contains(expect),
            "{state}"
        );
    }
}

#[test]
fn the_fleet_page_tells_the_story_in_numbers_and_words() {
    let html = fleet_page(&story().page()).into_string();
    for expect in [
        "data-announce=\"5 of 6 devices online. meter-reader 1.1.0: rolling out.\"",
        "jitter: starts in 12 s",
        "aria-label=\"2 passed the trial\"",
        "aria-label=\"3 under way · 1 not ordered yet\"",
        "Waits for 3 devices to finish their trial",
        "confidence fell from 0.93 to 0.61 on average",
        "<span>Stopped</span>",
        "exposure so far <strong>5 devices</strong> (83 %)",
        "href=\"/devices/cam-3\"",
        "href=\"/rollouts/r-1-2-0\"",
        "1 alarm",
    ] {
        assert!(html.contains(expect), "{expect:?} is missing");
    }
}

#[test]
fn data_quality_and_accuracy_stand_under_the_models_of_a_device() {
    let html = device_html(&device("cam-1", "1.0.0", JobPhase::Active));
    for expect in ["refused requests: 2 malformed", "accuracy 92.5 % of 40 labelled answers"] {
        assert!(html.contains(expect), "{expect:?} is missing");
    }
}

#[test]
fn an_empty_fleet_says_what_to_do_next() {
    let empty = Story { server: server(), devices: vec![], rollouts: vec![], models: vec![], events: vec![] };
    let html = fleet_page(&empty.page()).into_string();
    for expect in
        ["plimsoll rollout start", "plimsoll device token", "plimsoll bundle publish", "0 of 0 devices"]
    {
        assert!(html.contains(expect), "{expect:?} is missing");
    }
    assert!(!html.contains("NaN"));
}

#[test]
fn a_stage_of_nobody_and_a_stage_of_too_many_are_drawn_inside_their_bar() {
    let nobody = rollout_html(&rollout("1.1.0", RolloutStatus::Running, "", vec![stage("s", "running", 0)]));
    assert!(nobody.contains("no device matches") && !nobody.contains("NaN") && !nobody.contains("inf%"));
    let mut many = stage("s", "running", 3);
    many.active = 9;
    let many = rollout_html(&rollout("1.1.0", RolloutStatus::Running, "", vec![many]));
    assert!(
        many.contains("width=\"100.00%\"") && !many.contains("width=\"300.00%\""),
        "counts that disagree stay inside"
    );
}

/// Writes the pages with their style inline, to look at: `PLIMSOLL_WEB_OUT=/some/folder cargo test web`.
#[test]
fn pages_can_be_looked_at() {
    let Some(folder) = std::env::var_os("PLIMSOLL_WEB_OUT").map(std::path::PathBuf::from) else { return };
    let story = story();
    let css = format!("<style>{}</style>", asset("app.css").unwrap().body);
    let pages = [
        ("fleet", fleet_page(&story.page()).into_string()),
        ("device", device_html(&story.devices[4])),
        ("rollout", rollout_html(&story.rollouts[1])),
        ("empty", not_found_page(&story.server, "device cam-9").into_string()),
    ];
    for (name, html) in pages {
        let html = html.replace("<link rel=\"stylesheet\" href=\"/static/app.css\">", &css);
        let html = html.replace("<noscript><meta http-equiv=\"refresh\" content=\"10\"></noscript>", "");
        std::fs::write(folder.join(format!("{name}.html")), html).unwrap();
    }
}
