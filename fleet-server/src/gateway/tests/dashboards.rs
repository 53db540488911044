//! What a dashboard sees, and that it can do nothing else.

use bytes::Bytes;
use plimsoll_protocol::wire::v1::{Down, Up};

use super::harness::{Fixture, Mode, TOKEN, id, roomy, up};
use super::raw::{DISCONNECT, Hello, PING, PINGRESP, PUBACK, Raw, V};

const CAM: &str = "acme.cam-1";

#[tokio::test]
async fn a_dashboard_sees_what_devices_of_its_tenant_say_once_it_is_committed() {
    for v in [V::Three, V::Five] {
        let on = Fixture::start().await;
        let mut grafana = Raw::watching(&on, v, "plimsoll/1/acme/+/up/#").await;
        let mut stranger = Raw::connected(&on, "other.cam-1", V::Five).await;
        stranger.publish(&up("other.cam-1", Up::Event), "not acme's", Some(1)).await;
        assert_eq!(stranger.read().await.unwrap().0, PUBACK);
        let mut cam = Raw::connected(&on, CAM, V::Five).await;
        cam.publish(&up(CAM, Up::Event), "overheated", Some(1)).await;
        let expected = (up(CAM, Up::Event), "overheated".to_owned(), 0x30);
        assert_eq!(grafana.message().await, expected);
        assert_eq!(cam.read().await.unwrap().0, PUBACK);
        cam.publish(&up(CAM, Up::Health), "52 degrees", None).await;
        assert_eq!(grafana.message().await.1, "52 degrees");
        // What the server tells a device is not the dashboard's to see.
        assert_eq!(cam.subscribe(&["plimsoll/1/acme/cam-1/dn/+"]).await.len(), 1);
        on.gateway.send(&id(CAM), Down::Desired, "secret".into(), true).unwrap();
        assert_eq!(cam.message().await.1, "secret");
        cam.publish(&up(CAM, Up::Health), "53 degrees", None).await;
        assert_eq!(grafana.message().await.1, "53 degrees");
    }
}

#[tokio::test]
async fn a_late_dashboard_is_given_the_last_state_of_every_device() {
    let stored = vec![
        (id("acme.cam-0"), Bytes::from("from the store")),
        (id("other.cam-0"), Bytes::from("not acme's")),
    ];
    let on = Fixture::start_with(roomy(), stored).await;
    let mut cam = Raw::connected(&on, CAM, V::Five).await;
    cam.publish_retained(&up(CAM, Up::State), "born", 1).await;
    cam.publish_retained(&up(CAM, Up::State), "born again", 2).await;
    cam.publish(&up(CAM, Up::Event), "past", Some(3)).await;
    assert_eq!(cam.read().await.unwrap().0, PUBACK);
    let mut grafana = Raw::watching(&on, V::Five, "plimsoll/1/acme/+/up/#").await;
    assert_eq!(grafana.message().await, (up("acme.cam-0", Up::State), "from the store".into(), 0x31));
    assert_eq!(grafana.message().await, (up(CAM, Up::State), "born again".into(), 0x31));
    cam.publish_retained(&up(CAM, Up::State), "", 4).await;
    assert_eq!(grafana.message().await.1, "");
    let mut late = Raw::watching(&on, V::Three, "plimsoll/1/acme/+/up/state").await;
    assert_eq!(late.message().await.0, up("acme.cam-0", Up::State));
    cam.publish(&up(CAM, Up::State), "not retained", Some(5)).await;
    assert_eq!(late.message().await.1, "not retained", "an empty state cleared the retained one");
}

#[tokio::test]
async fn a_will_reaches_dashboards() {
    let on = Fixture::start().await;
    let mut grafana = Raw::watching(&on, V::Five, "plimsoll/1/acme/cam-1/up/state").await;
    let mut cam = Raw::device(&on, CAM, V::Five).await.unwrap();
    let topic = up(CAM, Up::State);
    assert_eq!(cam.connect(&Hello { will: Some((&topic, "offline")), ..Hello::new(CAM) }).await, 0);
    drop(cam);
    assert_eq!(grafana.message().await.1, "offline");
}

#[tokio::test]
async fn without_a_token_there_is_nothing_to_see() {
    let on = Fixture::start().await;
    for (v, code) in [(V::Three, 4), (V::Five, 0x86)] {
        for password in [None, Some("wrong"), Some("")] {
            let mut someone = Raw::dashboard(&on, v).await;
            assert_eq!(someone.connect(&Hello { password, ..Hello::new(CAM) }).await, code, "{password:?}");
            assert!(someone.read().await.is_none());
        }
    }
    let seen = on.store.seen.lock().unwrap();
    assert_eq!(seen.refusals().len(), 6);
    assert!(seen.refusals().iter().all(|r| !r.contains("wrong")), "a password is never repeated");
}

#[tokio::test]
async fn a_dashboard_hears_only_upward_topics_of_its_tenant() {
    let on = Fixture::start().await;
    let outside = [
        "#",
        "plimsoll/1/acme/#",
        "plimsoll/1/acme/+/dn/#",
        "plimsoll/1/other/+/up/#",
        "plimsoll/1/+/+/up/#",
        "$share/g/plimsoll/1/acme/+/up/#",
        "$SYS/#",
    ];
    for (v, code) in [(V::Three, 0x80), (V::Five, 0x87)] {
        let mut grafana = Raw::dashboard(&on, v).await;
        assert_eq!(grafana.connect(&Hello { password: Some(TOKEN), ..Hello::new("g") }).await, 0);
        assert_eq!(grafana.subscribe(&outside).await, [code; 7]);
        assert_eq!(grafana.subscribe(&["plimsoll/1/acme/+/up/+"]).await, [0], "QoS 0 at most");
    }
}

#[tokio::test]
async fn a_dashboard_cannot_publish_or_leave_a_will() {
    let on = Fixture::start().await;
    let (v3, v5) = (V::Three, V::Five);
    let mut grafana = Raw::watching(&on, v5, "plimsoll/1/acme/+/up/#").await;
    grafana.publish(&up(CAM, Up::Event), "forged", Some(1)).await;
    assert_eq!(grafana.read().await.unwrap(), (PUBACK, vec![0, 1, 0x87]));
    grafana.publish("plimsoll/1/acme/cam-1/dn/desired", "forged", None).await;
    let mut old = Raw::watching(&on, v3, "plimsoll/1/acme/+/up/#").await;
    old.publish(&up(CAM, Up::Event), "forged", Some(1)).await;
    assert!(old.until_closed().await.is_empty());
    let topic = up(CAM, Up::State);
    let mut third = Raw::dashboard(&on, v5).await;
    let hello = Hello { password: Some(TOKEN), will: Some((&topic, "forged")), ..Hello::new("g") };
    assert_eq!(third.connect(&hello).await, 0x87);
    assert!(on.store.seen.lock().unwrap().committed.is_empty());
}

#[tokio::test]
async fn a_dashboard_that_does_not_read_loses_messages_and_slows_nobody() {
    let on = Fixture::start().await;
    let mut asleep = Raw::watching(&on, V::Five, "plimsoll/1/acme/+/up/#").await;
    let mut cam = Raw::connected(&on, CAM, V::Five).await;
    let payload = "x".repeat(3_000);
    // 24 MB: more than socket buffers and mailbox hold.
    for round in 0..400u16 {
        let publish = |n| cam.publish_bytes(&up(CAM, Up::Event), payload.as_bytes(), Some(n));
        let burst: Vec<u8> = (1..=20).flat_map(publish).collect();
        cam.send(&burst).await;
        for _ in 0..20 {
            assert_eq!(cam.read().await.unwrap().0, PUBACK, "round {round}");
        }
    }
    assert!(on.gateway.stats().dashboard_dropped > 0);
    assert_eq!(asleep.message().await.1, payload, "what it did not lose is whole");
    on.gateway.shutdown(super::harness::PATIENCE).await;
    let _whatever_came_before_the_end = asleep.until_closed().await;
    assert_eq!(on.gateway.stats().dashboards_now, 0);
}

#[tokio::test]
async fn a_stopping_server_says_goodbye_to_dashboards() {
    let on = Fixture::start().await;
    let mut grafana = Raw::watching(&on, V::Five, "plimsoll/1/acme/+/up/#").await;
    on.gateway.shutdown(super::harness::PATIENCE).await;
    assert_eq!(grafana.until_closed().await, [(DISCONNECT, vec![0x8b])]);
}

#[tokio::test]
async fn tokens_are_not_taken_in_the_clear_from_other_machines() {
    let on = Fixture::start().await;
    let everywhere = "0.0.0.0:0".parse().unwrap();
    let started = on.another(everywhere, None).await;
    let error = started.err().expect("refused");
    assert!(error.to_string().contains("without TLS"), "{error}");
    let taken = on.another(on.gateway.dashboards_address(), None).await.err().expect("in use").to_string();
    assert!(taken.contains(&on.gateway.dashboards_address().to_string()), "{taken}");
}

#[tokio::test]
async fn dashboards_may_come_over_tls() {
    let on = Fixture::start().await;
    let other = on.another("127.0.0.1:0".parse().unwrap(), Some(on.tls.clone())).await.unwrap();
    let tcp = tokio::net::TcpStream::connect(other.dashboards_address()).await.unwrap();
    let tls = tokio_rustls::TlsConnector::from(on.client_tls(Some(CAM)));
    let mut someone = Raw::over(tls.connect("localhost".try_into().unwrap(), tcp).await.unwrap(), V::Five);
    assert_eq!(someone.connect(&Hello::new(CAM)).await, 0x86, "a device's certificate is no token");
}

#[tokio::test]
async fn a_revoked_token_ends_its_connections_at_the_next_ping() {
    let on = Fixture::start().await;
    let mut grafana = Raw::watching(&on, V::Five, "plimsoll/1/acme/+/up/#").await;
    grafana.send(PING).await;
    assert_eq!(grafana.read().await.unwrap().0, PINGRESP);
    on.store.token_revoked.store(true, std::sync::atomic::Ordering::SeqCst);
    grafana.send(PING).await;
    assert_eq!(grafana.until_closed().await, [(DISCONNECT, vec![0x87])]);
}

#[tokio::test]
async fn what_was_not_committed_is_not_shown() {
    let on = Fixture::start().await;
    let mut grafana = Raw::watching(&on, V::Five, "plimsoll/1/acme/+/up/#").await;
    on.store.mode.send_replace(Mode::Fails);
    let mut cam = Raw::connected(&on, CAM, V::Five).await;
    cam.publish(&up(CAM, Up::State), "lost", Some(1)).await;
    cam.until_closed().await;
    on.store.mode.send_replace(Mode::Works);
    let mut cam = Raw::connected(&on, CAM, V::Five).await;
    cam.publish(&up(CAM, Up::State), "kept", Some(1)).await;
    assert_eq!(grafana.message().await.1, "kept");
}
