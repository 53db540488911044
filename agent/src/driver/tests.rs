//! The whole driver, with a real server behind TLS, a link that a test holds the other end of, and a shell script
//! in the place of the program that serves and tests models.

use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};

use plimsoll_protocol::wire::v1::{
    Ack, BatchEntry, Desired, DesiredModel, Down, Envelope, JobPhase, JobReport, State, Topic, Up,
    UpdatePolicy,
};
use serde_json::{Value, json};

use super::testing::World;
use super::*;
use crate::config::Layer;
use crate::mqtt::{Full, Outgoing};

/// Only the end of hope; each scenario takes a second or two.
const PATIENCE: Duration = Duration::from_secs(60);

/// Plays both children. Files beside it make it misbehave: `mismatch`, `failing`, `dies`.
const SCRIPT: &str = r#"#!/bin/sh
here=$(dirname "$0")
if [ "$1" = selftest ]; then
    [ -e "$here/mismatch" ] && { echo '{"error":"golden sample 0 differs"}'; exit 3; }
    exit 0
fi
n=0
while read -r line; do
    digest=$(echo "$line" | sed -n 's/.*"digest":"\([^"]*\)".*/\1/p')
    about="\"model\":\"meter\",\"digest\":\"$digest\""
    case "$line" in
    *'"order":"configure"'*) echo '{"answer":"listening","addr":"127.0.0.1:9"}';;
    *'"order":"load"'*) echo "{\"answer\":\"loaded\",$about,\"rss_bytes\":1,\"load_ms\":1}";;
    *'"order":"serve"'*)
        echo "{\"answer\":\"serving\",$about}"
        served=$about
        if [ -e "$here/dies" ]; then rm "$here/dies"; kill -9 $$; fi;;
    *'"order":"stats"'*)
        n=$((n + 10))
        failed=0; [ -e "$here/failing" ] && failed=$n
        [ -n "$served" ] && echo "{\"answer\":\"stats\",\"rss_bytes\":1,\"models\":[{$served,\"requests\":$n,\"failed\":$failed,\"refused\":0,\"busy\":0,\"p50_us\":1,\"p99_us\":1}]}";;
    esac
done
"#;

/// What the driver published, in order.
#[derive(Clone, Default)]
struct Wire(Arc<Mutex<Vec<Outgoing>>>);

impl Link for Wire {
    fn publish(&self, message: Outgoing) -> Result<(), Full> {
        self.0.lock().unwrap().push(message);
        Ok(())
    }
    fn disconnect(&self) -> Result<(), Full> {
        Ok(())
    }
}

struct Rig {
    driver: Driver,
    child: mpsc::Receiver<ChildEvent>,
    work: mpsc::Receiver<Done>,
    wire: Wire,
    generation: u64,
}

impl Rig {
    /// Starts an agent on a state folder; a second call is a restart.
    fn start(world: &World) -> Self {
        let state = world.state.path();
        let program = state.join("fake-agent");
        if !program.exists() {
            let root = std::fs::read(state.join("tuf/root.json")).unwrap();
            world.server.identity.store(state, &serde_json::from_slice(&root).unwrap()).unwrap();
            std::fs::write(&program, SCRIPT).unwrap();
            std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        }
        let layer = Layer { state_dir: Some(state.to_owned()), reserve_bytes: Some(0), ..Layer::default() };
        let (send_work, work) = mpsc::channel(MAILBOX);
        let (mut driver, first) = boot::boot(layer.resolve().unwrap(), program, send_work).unwrap();
        // Documents of these tests are signed for a time that the machine has not reached yet.
        driver.clock.raise_floor(super::testing::NOW);
        let _ = driver.settle(first);
        let (send_child, child) = mpsc::channel(MAILBOX);
        tokio::spawn(child::supervise(driver.spawn_serve(), send_child));
        Self { driver, child, work, wire: Wire::default(), generation: 0 }
    }

    /// Starts an agent that is connected.
    fn online(world: &World) -> Self {
        let mut rig = Self::start(world);
        rig.driver.on_link(LinkEvent::Up { conn: 1, link: Box::new(rig.wire.clone()) });
        rig.driver.publish_waiting();
        rig
    }

    async fn turn(&mut self) {
        // Statistics every turn, so that a trial is judged as soon as there is something to judge.
        self.driver.order(Order::Stats);
        tokio::select! {
            Some(event) = self.child.recv() => self.driver.on_child(event),
            Some(done) = self.work.recv() => self.driver.on_done(done),
            () = tokio::time::sleep(self.driver.until_due().min(Duration::from_millis(50))) => self.driver.on_time(),
        }
        self.driver.publish_waiting();
    }

    async fn until(&mut self, what: &str, look: impl Fn(&Self) -> bool) {
        let patience = tokio::time::sleep(PATIENCE);
        tokio::pin!(patience);
        while !look(self) {
            tokio::select! {
                () = self.turn() => {}
                () = &mut patience => panic!("in vain: {what}; jobs {:?}", self.driver.core.jobs()),
            }
        }
    }

    fn message(&mut self, topic: &str, payload: &Value) {
        let payload = payload.to_string().into_bytes().into();
        self.driver.on_link(LinkEvent::Message { topic: topic.to_owned(), payload });
        self.driver.publish_waiting();
    }

    fn hears(&mut self, kind: Down, payload: &Value) {
        let topic = Topic::Down(self.driver.identity.as_ref().unwrap().who.clone(), kind);
        self.message(&topic.to_string(), payload);
    }

    fn order(&mut self, text: &str, digest: Digest, change: impl FnOnce(&mut DesiredModel)) {
        self.generation += 1;
        let policy =
            UpdatePolicy { jitter_s: 0, trial_s: 1, trial_requests: 5, tries: 1, ..UpdatePolicy::default() };
        let mut wanted: DesiredModel =
            serde_json::from_value(json!({"model": "meter", "version": text, "digest": digest})).unwrap();
        wanted.policy = policy;
        change(&mut wanted);
        let desired = Desired { v: 1, generation: self.generation, models: vec![wanted], issued_ms: 0 };
        self.hears(Down::Desired, &serde_json::to_value(desired).unwrap());
    }

    /// Orders a good version and waits until its trial has passed.
    async fn install(&mut self, text: &str, digest: Digest) {
        self.order(text, digest, |_| {});
        self.until("an active version", |r| r.phase() == Some(JobPhase::Active)).await;
        assert_eq!(self.running(), [text]);
    }

    fn phase(&self) -> Option<JobPhase> {
        self.driver.core.jobs().first().map(|j| j.phase)
    }

    fn running(&self) -> Vec<String> {
        self.driver.core.running().iter().map(|m| m.version.to_string()).collect()
    }

    /// Bodies of what was published of one kind, alone or in a batch.
    fn said(&self, kind: Up) -> Vec<Value> {
        let (wire, mut said) = (self.wire.0.lock().unwrap(), Vec::new());
        for message in wire.iter() {
            match &message.topic {
                Topic::Up(_, Up::Batch) => {
                    let inflated = flate2::read::ZlibDecoder::new(message.payload.as_slice());
                    let entries: Vec<BatchEntry> = serde_json::from_reader(inflated).unwrap();
                    let of_kind = entries.into_iter().filter(|e| e.kind == kind.as_str());
                    said.extend(of_kind.map(|e| e.report.body));
                }
                Topic::Up(_, k) if *k == kind => {
                    said.push(serde_json::from_slice::<Envelope<Value>>(&message.payload).unwrap().body);
                }
                _ => {}
            }
        }
        said
    }

    fn phases(&self) -> Vec<JobPhase> {
        let jobs = self.said(Up::Job).into_iter();
        let mut phases: Vec<JobPhase> =
            jobs.map(|j| serde_json::from_value::<JobReport>(j).unwrap().phase).collect();
        phases.dedup();
        phases
    }

    fn told(&self, code: &str) -> bool {
        self.said(Up::Event).iter().any(|e| e["code"] == code)
    }

    /// What `plimsoll-agent status` would get.
    async fn status(&mut self) -> crate::control::Status {
        let (reply, answer) = tokio::sync::oneshot::channel();
        self.driver.on_ask(control::Request { ask: control::Ask::Status, reply });
        match answer.await.unwrap() {
            control::Answer::Status(status) => *status,
            other => panic!("{other:?}"),
        }
    }

    fn misbehave(&self, world: &World, how: &str) {
        std::fs::write(world.state.path().join(how), "").unwrap();
        assert!(self.driver.program.exists());
    }
}

#[tokio::test]
async fn an_order_becomes_a_served_version_and_every_step_is_reported_until_acknowledged() {
    let mut world = World::new().await;
    let digest = world.publish("1.0.0", |_| {});
    let mut rig = Rig::online(&world);
    assert_eq!(rig.said(Up::State)[0]["state"], "online", "the birth is the first message");
    rig.install("1.0.0", digest).await;
    use JobPhase::{Activating, Active, Fetching, Probation, SelfTesting};
    let steps = rig.phases().into_iter().filter(|p| *p != JobPhase::Waiting).collect::<Vec<_>>();
    assert_eq!(steps, [Fetching, SelfTesting, Activating, Probation, Active]);
    let births = rig.said(Up::State);
    let last = &births.last().unwrap()["models"][0];
    assert_eq!((&last["version"], &last["trial_passed"]), (&"1.0.0".into(), &true.into()), "{births:?}");

    let waiting = rig.driver.outbox.len();
    assert!(waiting >= 5, "reports wait until the server has them: {waiting}");
    let stamp = rig.driver.stamp.clone();
    let ack =
        |inc, boot| serde_json::to_value(Ack { inc, ranges: vec![(boot, 1, 1000)], server_ms: 0 }).unwrap();
    rig.hears(Down::Ack, &ack(stamp.inc, stamp.boot + 1));
    assert_eq!(rig.driver.outbox.len(), waiting, "another boot's acknowledgement forgets nothing");
    rig.hears(Down::Ack, &ack(stamp.inc, stamp.boot));
    assert_eq!(rig.driver.outbox.len(), 0);
}

#[tokio::test]
async fn a_refused_version_is_reported_and_leaves_the_running_one_alone() {
    let mut world = World::new().await;
    let first = world.publish("1.0.0", |_| {});
    let second = world.publish("1.1.0", |_| {});
    let mut rig = Rig::online(&world);
    rig.install("1.0.0", first).await;

    // An order whose digest nobody signed.
    rig.order("1.1.0", Digest::of(b"evil"), |_| {});
    rig.until("a refusal", |r| r.phase() == Some(JobPhase::Failed)).await;
    assert!(rig.told("order.wrong_bundle"), "{:?}", rig.said(Up::Event));
    assert_eq!(rig.running(), ["1.0.0"]);

    // A bundle that answers wrongly on this hardware.
    rig.misbehave(&world, "mismatch");
    rig.order("1.1.0", second, |_| {});
    rig.until("a failed self-test", |r| {
        r.phase() == Some(JobPhase::Failed)
            && r.phases().contains(&JobPhase::SelfTesting)
            && r.said(Up::Job).iter().any(|j| j["reason"].to_string().contains("golden sample 0"))
    })
    .await;
    assert_eq!(rig.running(), ["1.0.0"]);

    // A stale order, somebody else's, and no message at all.
    rig.generation = 0;
    rig.order("1.1.0", second, |_| {});
    rig.message("plimsoll/1/acme/cam-2/dn/desired", &json!({}));
    rig.hears(Down::Desired, &json!("nonsense"));
    for code in ["order.stale", "message.foreign", "message.malformed"] {
        assert!(rig.told(code), "{code} is missing in {:?}", rig.said(Up::Event));
    }
    assert_eq!((rig.running(), rig.driver.messages_refused), (vec!["1.0.0".to_owned()], 2));
}

#[tokio::test]
async fn a_version_that_fails_requests_or_kills_its_process_is_rolled_back_by_the_device() {
    for how in ["failing", "dies"] {
        let mut world = World::new().await;
        let first = world.publish("1.0.0", |_| {});
        let second = world.publish("1.1.0", |_| {});
        let mut rig = Rig::online(&world);
        rig.install("1.0.0", first).await;
        rig.misbehave(&world, how);
        rig.order("1.1.0", second, |wanted| wanted.policy.trial_s = 600);
        rig.until(how, |r| r.phase() == Some(JobPhase::RolledBack) && r.told("rolled_back")).await;
        assert_eq!(rig.running(), ["1.0.0"], "{how}");
    }
}

#[tokio::test]
async fn an_agent_that_is_cut_off_in_an_update_finishes_it_after_its_restart() {
    let mut world = World::new().await;
    let first = world.publish("1.0.0", |_| {});
    let second = world.publish("1.1.0", |_| {});
    let mut rig = Rig::online(&world);
    rig.install("1.0.0", first).await;
    for stop_at in [JobPhase::Fetching, JobPhase::SelfTesting, JobPhase::Activating, JobPhase::Probation] {
        let (text, digest) = if rig.running() == ["1.0.0"] { ("1.1.0", second) } else { ("1.0.0", first) };
        let before = rig.running();
        rig.order(text, digest, |wanted| wanted.policy.tries = 5);
        rig.until("the phase to be cut off in", |r| r.phases().contains(&stop_at) || r.running() != before)
            .await;
        let generation = rig.generation;
        drop(rig); // nothing is said, nothing is flushed
        rig = Rig::online(&world);
        rig.generation = generation;
        rig.until("the same goal", |r| r.phase() == Some(JobPhase::Active) && r.running() == [text]).await;
    }
}

#[tokio::test]
async fn a_device_that_lost_its_anchor_counts_its_boots_on_from_the_reports_that_wait() {
    let mut world = World::new().await;
    let first = world.publish("1.0.0", |_| {});
    let mut rig = Rig::online(&world);
    rig.install("1.0.0", first).await;
    let past = rig.driver.stamp.clone();
    assert!(!rig.driver.outbox.is_empty(), "reports of the past wait");
    drop(rig);
    for copy in ["anchor.a", "anchor.b"] {
        std::fs::write(world.state.path().join(copy), [0xff; 4096]).unwrap();
    }
    let rig = Rig::start(&world);
    assert_ne!(rig.driver.stamp.inc, past.inc);
    assert!(rig.driver.stamp.boot > past.boot, "boot {} after {}", rig.driver.stamp.boot, past.boot);
    assert_eq!(rig.running(), ["1.0.0"], "rebuilt from the slots");
}

#[tokio::test]
async fn a_lost_outbox_is_told_even_when_the_anchor_is_lost_with_it() {
    let mut world = World::new().await;
    let first = world.publish("1.0.0", |_| {});
    let mut rig = Rig::online(&world);
    rig.install("1.0.0", first).await;
    drop(rig);
    for file in ["anchor.a", "anchor.b", "outbox.redb"] {
        std::fs::write(world.state.path().join(file), [0xff; 8192]).unwrap();
    }
    let mut rig = Rig::online(&world);
    rig.turn().await;
    assert!(rig.told("anchor.rebuilt") && rig.told("outbox.recreated"), "{:?}", rig.said(Up::Event));
    assert_eq!(rig.running(), ["1.0.0"]);
}

#[tokio::test]
async fn commands_of_the_server_are_obeyed_answered_and_cannot_change_what_runs() {
    let mut world = World::new().await;
    let first = world.publish("1.0.0", |_| {});
    let mut rig = Rig::online(&world);
    rig.install("1.0.0", first).await;
    let healths = rig.said(Up::Health).len();
    for (command, ok, words) in [
        (json!({"id": "1", "command": "report"}), true, "reported"),
        (json!({"id": "2", "command": "pause"}), true, "paused"),
        (json!({"id": "2", "command": "pause"}), true, "paused"),
        (json!({"id": "3", "command": "log", "filter": "x=loud", "for_s": 5}), false, "x=loud"),
        (json!({"id": "4", "command": "log", "filter": "debug", "for_s": 999_999}), true, "3600 s"),
        (json!({"id": "5", "command": "reboot"}), false, "update the agent"),
        (json!({"id": "6", "command": "refresh"}), true, "looked at"),
    ] {
        rig.hears(Down::Command, &command);
        let answer = rig.said(Up::Response).pop().unwrap();
        assert_eq!((&answer["id"], &answer["ok"]), (&command["id"], &ok.into()), "{answer}");
        assert!(answer["text"].to_string().contains(words), "{answer}");
    }
    assert!(rig.said(Up::Health).len() > healths);
    assert!(rig.told("updates.paused"));
    let second = world.publish("1.1.0", |_| {});
    rig.order("1.1.0", second, |_| {});
    drop(rig);
    let mut rig = Rig::online(&world);
    rig.turn().await;
    assert_eq!((rig.phase(), rig.running()), (Some(JobPhase::Waiting), vec!["1.0.0".to_owned()]));
    rig.hears(Down::Command, &json!({"id": "7", "command": "resume"}));
    rig.until("the update to go on", |r| r.running() == ["1.1.0"]).await;
}

#[tokio::test]
async fn settings_that_are_read_again_take_effect_and_those_that_cannot_are_named() {
    let world = World::new().await;
    let mut rig = Rig::online(&world);
    let births = rig.said(Up::State).len();
    let mut new = rig.driver.settings.clone();
    new.maintenance_hours = plimsoll_protocol::hours::MaintenanceHours::parse(&["01:00-02:00"]).unwrap();
    new.labels.insert("site".into(), "lyon".into());
    new.listen = "127.0.0.1:1".parse().unwrap();
    rig.driver.reload(new);
    rig.driver.publish_waiting();
    let told = rig.said(Up::Event).pop().unwrap();
    assert_eq!(told["code"], "settings.restart_needed");
    assert!(
        told["text"].to_string().contains("listen") && !told["text"].to_string().contains("labels"),
        "{told}"
    );
    assert_eq!(rig.said(Up::State).len(), births + 1, "the labels are told");
    let status = rig.status().await;
    assert_eq!(status.maintenance_hours, "01:00-02:00");
    assert_ne!(rig.driver.settings.listen.port(), 1);
}

#[tokio::test]
async fn health_and_goodbye_are_published_for_whoever_listens() {
    let world = World::new().await;
    let mut rig = Rig::online(&world);
    rig.driver.publish_health();
    let health = rig.said(Up::Health);
    assert!(health[0]["agent_rss_bytes"].as_u64() > Some(0), "{health:?}");
    assert!(rig.driver.say_goodbye());
    let last: State = serde_json::from_value(rig.said(Up::State).pop().unwrap()).unwrap();
    assert_eq!(last, State::Offline { boot: 1, conn: 1 });
    rig.driver.on_link(LinkEvent::Down { conn: 1, reason: "cut".into(), trouble: None, retry_ms: 1500 });
    assert!(!rig.driver.say_goodbye(), "nobody is there");
    assert!(rig.driver.connection.contains("next try in 2 s"), "{}", rig.driver.connection);
}
