//! What every store must do, written against the traits. Each case gets a fresh store and a way to close and reopen
//! it; an implementation adds one line at the bottom.

use std::collections::BTreeMap;

use plimsoll_fleet_core::{Bundle, Member, RolloutState};
use plimsoll_protocol::api::{Role, RolloutStatus};
use plimsoll_protocol::ids::RolloutId;
use plimsoll_protocol::wire::v1::{Birth, Desired, Event, JobPhase, JobReport, Severity};
use plimsoll_protocol::{DeviceId, Digest, Incarnation, ModelName};

use super::*;

pub fn device(name: &str) -> DeviceId {
    DeviceId::new(name).unwrap()
}

pub fn join_token(id: &str, uses: u32) -> JoinTokenRecord {
    let labels = BTreeMap::from([("site".to_owned(), "lyon".to_owned())]);
    JoinTokenRecord {
        id: id.into(),
        secret: Digest::of(b"secret"),
        uses_left: uses,
        expires_ms: 1_000,
        labels,
        uses,
        revoked: false,
        names: None,
    }
}

pub fn enrolment(name: &str, key: &[u8]) -> Enrolment {
    Enrolment {
        device: device(name),
        key: Digest::of(key),
        token_id: "t1".into(),
        secret: Digest::of(b"secret"),
        arch: "x86_64".into(),
        labels: BTreeMap::new(),
        certificate_until_ms: 5_000,
        issuer: Digest::of(b"ca"),
        now_ms: 500,
    }
}

pub fn birth(boot: u64, conn: u64) -> Birth {
    Birth {
        boot,
        conn,
        agent_version: semver::Version::new(0, 1, 0),
        arch: "x86_64".into(),
        os: "Debian".into(),
        ram_bytes: 1,
        generation: 0,
        models: vec![],
        labels: BTreeMap::new(),
    }
}

pub fn report(name: &str, seq: u64, body: ReportBody) -> ReportWrite {
    ReportWrite { device: device(name), inc: Incarnation::from_bytes([1; 16]), boot: 1, seq, at_ms: 10, body }
}

fn event(text: &str) -> ReportBody {
    ReportBody::Event(Event {
        severity: Severity::Warning,
        code: "test".into(),
        text: text.into(),
        model: None,
        digest: None,
    })
}

fn job(phase: JobPhase) -> ReportBody {
    ReportBody::Job(Box::new(JobReport {
        generation: 1,
        rollout: None,
        model: ModelName::new("m").unwrap(),
        version: semver::Version::new(1, 0, 0),
        digest: Digest::of(b"m"),
        phase,
        reason: None,
        running: None,
    }))
}

pub async fn a_join_token_lets_in_as_many_devices_as_it_says(store: &dyn Store) {
    store.add_join_token(join_token("t1", 2)).await.unwrap();
    store.enrol(enrolment("a", b"a")).await.unwrap();
    let again = store.enrol(enrolment("a", b"a")).await.unwrap();
    assert_eq!(again.granted["site"], "lyon");
    store.enrol(enrolment("b", b"b")).await.unwrap();
    let third = store.enrol(enrolment("c", b"c")).await.unwrap_err();
    assert!(matches!(third, StoreError::JoinToken { fault: TokenFault::UsedUp, .. }), "{third}");
    assert_eq!(store.devices().await.unwrap().len(), 2);
}

pub async fn an_enrolment_that_is_refused_leaves_nothing(store: &dyn Store) {
    store.add_join_token(join_token("t1", 2)).await.unwrap();
    store.enrol(enrolment("a", b"a")).await.unwrap();
    let taken = store.enrol(enrolment("a", b"other key")).await.unwrap_err();
    assert!(matches!(taken, StoreError::DeviceTaken(_)), "{taken}");
    let wrong = Enrolment { secret: Digest::of(b"guess"), ..enrolment("b", b"b") };
    let wrong = store.enrol(wrong).await.unwrap_err();
    assert!(matches!(wrong, StoreError::JoinToken { fault: TokenFault::Unknown, .. }), "{wrong}");
    let late = store.enrol(Enrolment { now_ms: 1_000, ..enrolment("b", b"b") }).await.unwrap_err();
    assert!(matches!(late, StoreError::JoinToken { fault: TokenFault::Expired, .. }), "{late}");
    assert_eq!(store.join_tokens().await.unwrap()[0].uses_left, 1);
    assert_eq!(store.devices().await.unwrap().len(), 1);
}

pub async fn a_revoked_device_cannot_enrol_again_under_its_name(store: &dyn Store) {
    store.add_join_token(join_token("t1", 9)).await.unwrap();
    store.enrol(enrolment("a", b"a")).await.unwrap();
    assert!(store.set_revoked(&device("a"), true).await.unwrap().revoked);
    for key in [b"a", b"b"] {
        assert!(matches!(store.enrol(enrolment("a", key)).await, Err(StoreError::DeviceRevoked(_))));
    }
    assert!(matches!(store.set_revoked(&device("nobody"), true).await, Err(StoreError::NotFound(_))));
}

pub async fn a_readmitted_device_keeps_its_key_unless_a_new_one_is_let_in(store: &dyn Store) {
    store.add_join_token(join_token("t1", 2)).await.unwrap();
    store.enrol(enrolment("a", b"a")).await.unwrap();
    store.set_revoked(&device("a"), true).await.unwrap();
    assert!(!store.set_revoked(&device("a"), false).await.unwrap().revoked);
    assert!(matches!(store.enrol(enrolment("a", b"b")).await, Err(StoreError::DeviceTaken(_))));
    let open = store.allow_new_key(&device("a")).await.unwrap();
    assert!(open.revoked, "until the new key comes nobody holds the name");
    assert!(matches!(store.enrol(enrolment("a", b"a")).await, Err(StoreError::DeviceRevoked(_))));
    let new = store.enrol(enrolment("a", b"b")).await.unwrap();
    assert_eq!((new.key, new.revoked, new.rekey), (Digest::of(b"b"), false, false));
    assert_eq!(store.join_tokens().await.unwrap()[0].uses_left, 0, "another key is another use");
    assert!(matches!(store.enrol(enrolment("a", b"c")).await, Err(StoreError::DeviceTaken(_))));
}

pub async fn a_renewal_is_for_the_registered_key_of_a_device_that_is_let_in(store: &dyn Store) {
    store.add_join_token(join_token("t1", 2)).await.unwrap();
    store.enrol(enrolment("a", b"a")).await.unwrap();
    let renewal = |name: &str, key: &[u8]| Renewal {
        device: device(name),
        key: Digest::of(key),
        certificate_until_ms: 9_000,
        issuer: Digest::of(b"other ca"),
    };
    assert!(matches!(store.renew(renewal("a", b"b")).await, Err(StoreError::DeviceTaken(_))));
    assert!(matches!(store.renew(renewal("b", b"a")).await, Err(StoreError::NotFound(_))));
    let renewed = store.renew(renewal("a", b"a")).await.unwrap();
    assert_eq!((renewed.certificate_until_ms, renewed.enrolled_ms), (9_000, 500));
    assert_eq!(renewed.issuer, Some(Digest::of(b"other ca")));
    store.set_revoked(&device("a"), true).await.unwrap();
    assert!(matches!(store.renew(renewal("a", b"a")).await, Err(StoreError::DeviceRevoked(_))));
}

pub async fn a_join_token_is_for_its_names_until_it_is_revoked(store: &dyn Store) {
    let token = JoinTokenRecord { names: Some("cam-*".into()), ..join_token("t1", 9) };
    store.add_join_token(token).await.unwrap();
    store.enrol(enrolment("cam-1", b"a")).await.unwrap();
    let other = store.enrol(enrolment("meter-1", b"b")).await.unwrap_err();
    assert!(matches!(other, StoreError::JoinToken { fault: TokenFault::Names, .. }), "{other}");
    assert!(store.revoke_join_token("t1").await.unwrap().revoked);
    let late = store.enrol(enrolment("cam-2", b"c")).await.unwrap_err();
    assert!(matches!(late, StoreError::JoinToken { fault: TokenFault::Revoked, .. }), "{late}");
    assert_eq!(store.devices().await.unwrap().len(), 1);
    assert!(matches!(store.revoke_join_token("t2").await, Err(StoreError::NotFound(_))));
}

pub async fn a_report_is_counted_once(store: &dyn Store) {
    let fresh = |id| Outcome::Fresh(Change::Event(id));
    let first =
        store.commit_reports(vec![report("a", 7, event("x")), report("a", 7, event("x"))]).await.unwrap();
    assert_eq!(first, [fresh(1), Outcome::Duplicate]);
    let second =
        store.commit_reports(vec![report("a", 7, event("x")), report("b", 7, event("x"))]).await.unwrap();
    assert_eq!(second, [Outcome::Duplicate, fresh(2)]);
    let mut reflashed = report("a", 7, event("y"));
    reflashed.inc = Incarnation::from_bytes([2; 16]);
    assert_eq!(store.commit_reports(vec![reflashed]).await.unwrap(), [fresh(3)]);
    let texts: Vec<String> = store.events(None, 10).await.unwrap().into_iter().map(|e| e.text).collect();
    assert_eq!(texts, ["y", "x", "x"]);
}

pub async fn an_older_job_report_does_not_win(store: &dyn Store) {
    store.commit_reports(vec![report("a", 9, job(JobPhase::Active))]).await.unwrap();
    store.commit_reports(vec![report("a", 3, job(JobPhase::Fetching))]).await.unwrap();
    let jobs = store.jobs().await.unwrap();
    assert_eq!(jobs.len(), 1);
    assert_eq!(jobs[0].report.phase, JobPhase::Active);
}

pub async fn the_newest_shadow_report_of_a_candidate_is_kept(store: &dyn Store) {
    let shadow = |rows| {
        let report = serde_json::json!({
            "generation": 1, "rollout": "r1", "model": "m", "version": "1.1.0", "candidate": Digest::of(b"m"),
            "end": "open", "totals": { "rows": rows, "differ": 1, "failed": 0, "skipped": 0, "current_p50_us": 1,
            "current_p99_us": 1, "candidate_p50_us": 1, "candidate_p99_us": 1, "memory_bytes": 1 },
        });
        ReportBody::Shadow(Box::new(serde_json::from_value(report).unwrap()))
    };
    let outcomes = store.commit_reports(vec![report("a", 9, shadow(200))]).await.unwrap();
    assert!(matches!(&outcomes[..], [Outcome::Fresh(Change::Shadow(s))] if s.report.totals.rows == 200));
    store.commit_reports(vec![report("a", 3, shadow(100)), report("b", 3, shadow(7))]).await.unwrap();
    let rows: Vec<u64> = store.shadows().await.unwrap().iter().map(|s| s.report.totals.rows).collect();
    assert_eq!(rows, [200, 7], "one a device and candidate, the newest by number");
}

pub async fn a_stale_will_does_not_put_a_device_offline(store: &dyn Store) {
    let online = |conn| report("a", 0, ReportBody::Online(Box::new(birth(1, conn)), "p".into()));
    let will = |conn| report("a", 0, ReportBody::Offline { boot: 1, conn, payload: "w".into() });
    store.commit_reports(vec![online(1), online(2), will(1), online(1)]).await.unwrap();
    assert!(store.states().await.unwrap()[0].1.online, "the will of connection 1 came after birth 2");
    store.commit_reports(vec![will(2)]).await.unwrap();
    let (_, state) = store.states().await.unwrap().remove(0);
    assert!(!state.online);
    assert_eq!(state.birth.conn, 2, "the birth is kept");
}

pub fn rollout(epoch: u64, reason: &str) -> RolloutState {
    RolloutState {
        id: RolloutId::new("r1").unwrap(),
        number: 1,
        epoch,
        seed: 7,
        spec: serde_json::from_value(serde_json::json!({
            "model": "m", "version": "1.0.0", "stages": [{ "size": "100%" }],
        }))
        .unwrap(),
        target: Bundle { version: semver::Version::new(1, 0, 0), digest: Digest::of(b"m") },
        started_ms: 0,
        ended_ms: None,
        status: RolloutStatus::Running,
        reason: reason.into(),
        stages: vec![],
        approved: 0,
        accepted_ms: None,
        stopped_for: None,
        evidence: None,
    }
}

pub async fn of_two_planners_one_wins(store: &dyn Store) {
    let plan = |r| PlanWrite { rollouts: vec![r], ..PlanWrite::default() };
    store.commit_plan(plan(rollout(1, "started"))).await.unwrap();
    store.commit_plan(plan(rollout(2, "one"))).await.unwrap();
    let desired = Desired { generation: 5, ..Desired::default() };
    let stale = PlanWrite { desired: vec![(device("a"), desired)], ..plan(rollout(2, "two")) };
    assert!(matches!(store.commit_plan(stale).await, Err(StoreError::Conflict(_))));
    assert_eq!(store.rollouts().await.unwrap()[0].state, rollout(2, "one"));
    assert!(store.all_desired().await.unwrap().is_empty(), "a refused plan leaves nothing");
}

pub async fn a_rollout_comes_back_with_its_members_and_its_history(store: &dyn Store) {
    let id = rollout(1, "").id;
    let member =
        Member { stage: 0, ordered_ms: 4, previous: None, reached_ms: None, answer: None, recalled: None };
    for n in 0..3 {
        let plan = PlanWrite {
            rollouts: vec![rollout(n, "")],
            members: vec![(id.clone(), device(&format!("d{n}")), member.clone())],
            decisions: vec![(id.clone(), Decision { at_ms: n as i64, text: format!("step {n}") })],
            ..PlanWrite::default()
        };
        store.commit_plan(plan).await.unwrap();
    }
    let loaded = store.rollouts().await.unwrap();
    assert_eq!(loaded[0].members.len(), 3);
    assert_eq!(loaded[0].members[&device("d1")], member);
    let texts: Vec<String> = store.decisions(&id).await.unwrap().into_iter().map(|d| d.text).collect();
    assert_eq!(texts, ["step 0", "step 1", "step 2"]);
}

pub async fn trust_moves_only_from_the_serial_it_was_made_from(store: &dyn Store) {
    let next = TrustIndex { serial: 1, ..TrustIndex::default() };
    store.set_trust(0, next.clone()).await.unwrap();
    assert!(matches!(store.set_trust(0, next.clone()).await, Err(StoreError::Conflict(_))));
    assert_eq!(store.trust().await.unwrap(), next);
}

pub async fn the_audit_chain_holds_and_shows_a_change(store: &dyn Store) {
    for n in 0..5 {
        let who = format!("token-{n}");
        store
            .audit(NewAudit { at_ms: n, who, action: "a".into(), object: "o".into(), detail: String::new() })
            .await
            .unwrap();
    }
    let mut log = store.audit_log().await.unwrap();
    verify_audit(&log).unwrap();
    log[2].who = "somebody else".into();
    assert!(verify_audit(&log).unwrap_err().contains('3'));
    log.remove(0);
    assert!(verify_audit(&log).is_err());
}

pub async fn events_page_backwards(store: &dyn Store) {
    let batch = (1..=25).map(|n| report("a", n, event(&n.to_string()))).collect();
    store.commit_reports(batch).await.unwrap();
    let first = store.events(None, 10).await.unwrap();
    let second = store.events(Some(first[9].id), 10).await.unwrap();
    assert_eq!((first[0].text.as_str(), second[0].text.as_str()), ("25", "15"));
}

pub async fn a_long_value_is_kept_whole(store: &dyn Store) {
    for (epoch, len) in [(1, 50_000), (2, 9_000), (3, 10), (4, 3_600), (5, 3_700), (6, 4_000), (7, 4_100)] {
        let state = rollout(epoch, &"x".repeat(len));
        store.commit_plan(PlanWrite { rollouts: vec![state.clone()], ..PlanWrite::default() }).await.unwrap();
        assert_eq!(store.rollouts().await.unwrap()[0].state, state);
    }
}

pub async fn tokens_are_found_by_their_public_part(store: &dyn Store) {
    let token = TokenRecord {
        id: "ab".into(),
        name: "ci".into(),
        role: Role::Publisher,
        secret: Digest::of(b"s"),
        expires_ms: 9,
    };
    store.add_token(token.clone()).await.unwrap();
    assert_eq!(store.token("ab").await.unwrap(), Some(token));
    assert_eq!(store.token("a").await.unwrap(), None);
}

macro_rules! contract {
    ($open:expr; $($case:ident),+ $(,)?) => {$(
        #[tokio::test]
        async fn $case() {
            let dir = tempfile::tempdir().unwrap();
            super::$case(&$open(dir.path())).await;
        }
    )+};
}

mod embedded {
    use std::path::Path;

    fn open(dir: &Path) -> super::super::embedded::Embedded {
        super::super::embedded::Embedded::open(&dir.join("store")).unwrap()
    }

    contract!(open;
        a_join_token_lets_in_as_many_devices_as_it_says,
        an_enrolment_that_is_refused_leaves_nothing,
        a_revoked_device_cannot_enrol_again_under_its_name,
        a_readmitted_device_keeps_its_key_unless_a_new_one_is_let_in,
        a_renewal_is_for_the_registered_key_of_a_device_that_is_let_in,
        a_join_token_is_for_its_names_until_it_is_revoked,
        a_report_is_counted_once,
        an_older_job_report_does_not_win,
        the_newest_shadow_report_of_a_candidate_is_kept,
        a_stale_will_does_not_put_a_device_offline,
        of_two_planners_one_wins,
        a_rollout_comes_back_with_its_members_and_its_history,
        trust_moves_only_from_the_serial_it_was_made_from,
        the_audit_chain_holds_and_shows_a_change,
        events_page_backwards,
        a_long_value_is_kept_whole,
        tokens_are_found_by_their_public_part,
    );
}
