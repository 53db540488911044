//! What a device may do, and what it can rely on.

use std::time::Duration;

use bytes::Bytes;
use plimsoll_protocol::wire::v1::{Down, Up};

use super::harness::{Fixture, Mode, PATIENCE, id, roomy, up};
use super::raw::{DISCONNECT, GOODBYE, Hello, PING, PINGRESP, PUBACK, Raw, V};
use crate::gateway::{Limits, Notice, RateLimit, SendError};

const CAM: &str = "acme.cam-1";

#[tokio::test]
async fn a_publish_is_acknowledged_after_the_commit_and_not_before() {
    for v in [V::Three, V::Five] {
        let on = Fixture::start().await;
        let mut cam = Raw::connected(&on, CAM, v).await;
        on.store.mode.send_replace(Mode::Stopped);
        cam.publish(&up(CAM, Up::Event), "overheated", Some(7)).await;
        cam.send(PING).await;
        assert_eq!(cam.read().await.unwrap().0, PINGRESP, "the connection lives, without a PUBACK");
        assert!(on.store.seen.lock().unwrap().committed.is_empty());
        on.store.mode.send_replace(Mode::Works);
        let (kind, body) = cam.read().await.unwrap();
        assert_eq!((kind, &body[..2]), (PUBACK, &[0, 7][..]));
        let seen = on.store.seen.lock().unwrap();
        let message = &seen.committed[0];
        assert_eq!((&message.from, message.kind), (&id(CAM), Up::Event));
        assert_eq!((&message.payload[..], message.acknowledged), (&b"overheated"[..], true));
    }
}

#[tokio::test]
async fn a_failed_commit_closes_the_connection_without_an_acknowledgement_and_the_device_can_send_again() {
    for failure in [Mode::Fails, Mode::Panics] {
        let on = Fixture::start().await;
        on.store.mode.send_replace(failure);
        let mut cam = Raw::connected(&on, CAM, V::Five).await;
        cam.publish(&up(CAM, Up::Event), "overheated", Some(7)).await;
        let last = cam.until_closed().await;
        assert_eq!(last, [(DISCONNECT, vec![0x89])], "server busy, and no PUBACK");
        on.store.mode.send_replace(Mode::Works);
        let mut cam = Raw::connected(&on, CAM, V::Five).await;
        cam.publish(&up(CAM, Up::Event), "overheated", Some(7)).await;
        assert_eq!(cam.read().await.unwrap().0, PUBACK);
        assert_eq!(on.store.seen.lock().unwrap().committed.len(), 1);
        assert_eq!(on.gateway.stats().commit_failures, 1);
    }
}

#[tokio::test]
async fn the_order_of_a_devices_reports_is_kept() {
    let on = Fixture::start().await;
    let mut cam = Raw::connected(&on, CAM, V::Three).await;
    let all: Vec<u8> = (1..=60)
        .flat_map(|n: u16| cam.publish_bytes(&up(CAM, Up::Drift), n.to_string().as_bytes(), Some(n)))
        .collect();
    cam.send(&all).await;
    for n in 1..=60u16 {
        assert_eq!(cam.read().await.unwrap().1[..2], n.to_be_bytes());
    }
    let seen = on.store.seen.lock().unwrap();
    let order: Vec<_> = seen.committed.iter().map(|m| m.payload.clone()).collect();
    assert_eq!(order, (1..=60).map(|n| Bytes::from(n.to_string())).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_device_cannot_speak_for_another_or_downwards() {
    let on = Fixture::start().await;
    let mut cam = Raw::connected(&on, CAM, V::Five).await;
    let not_its_own = [
        up("acme.cam-2", Up::Event),
        up("other.cam-1", Up::Event),
        "plimsoll/1/acme/cam-1/dn/desired".into(),
        "plimsoll/1/acme/all/dn/cfg".into(),
        "é/x".into(),
        "$SYS/broker".into(),
    ];
    for (n, topic) in not_its_own.iter().enumerate() {
        cam.publish(topic, "x", Some(n as u16 + 1)).await;
        let (kind, body) = cam.read().await.unwrap();
        assert_eq!((kind, body[2]), (PUBACK, 0x87), "{topic} was not refused");
    }
    cam.publish(&up(CAM, Up::Event), "still here", Some(99)).await;
    assert_eq!(cam.read().await.unwrap(), (PUBACK, vec![0, 99]));
    {
        let seen = on.store.seen.lock().unwrap();
        assert_eq!(seen.committed.len(), 1);
        assert_eq!(seen.refusals().len(), not_its_own.len());
        assert!(seen.refusals()[0].contains("acme.cam-1") && seen.refusals()[0].contains("cam-2"));
    }
    assert_eq!(on.gateway.stats().publishes_refused, not_its_own.len() as u64);

    let mut old = Raw::connected(&on, "acme.cam-3", V::Three).await;
    old.publish(&up("acme.cam-2", Up::Event), "x", Some(1)).await;
    assert!(old.until_closed().await.is_empty(), "version 3.1.1 can only be disconnected");
}

#[tokio::test]
async fn a_device_that_keeps_trying_is_disconnected() {
    let on = Fixture::start().await;
    let mut cam = Raw::connected(&on, CAM, V::Five).await;
    for n in 1..=10 {
        cam.publish(&up("acme.cam-2", Up::Event), "x", Some(n)).await;
    }
    let last = cam.until_closed().await;
    assert_eq!(last.last(), Some(&(DISCONNECT, vec![0x87])));
    assert_eq!(last.len(), 10, "nine refusals and the end");
}

#[tokio::test]
async fn the_will_is_published_when_a_connection_dies_and_not_after_a_goodbye() {
    let on = Fixture::start().await;
    let (topic, will) = (up(CAM, Up::State), "offline");
    for v in [V::Three, V::Five] {
        let mut cam = Raw::device(&on, CAM, v).await.unwrap();
        assert_eq!(cam.connect(&Hello { will: Some((&topic, will)), ..Hello::new(CAM) }).await, 0);
        cam.send(GOODBYE).await;
        assert!(cam.until_closed().await.is_empty());
        on.store.until("a graceful leave", |s| s.has_left(CAM, true)).await;
        assert_eq!(on.store.seen.lock().unwrap().wills(), 0);
        on.store.seen.lock().unwrap().notices.clear();
    }
    let mut cam = Raw::device(&on, CAM, V::Five).await.unwrap();
    assert_eq!(cam.connect(&Hello { will: Some((&topic, will)), ..Hello::new(CAM) }).await, 0);
    drop(cam);
    on.store.until("the will", |s| s.wills() == 1 && s.has_left(CAM, false)).await;
    let seen = on.store.seen.lock().unwrap();
    let message = seen.committed.last().unwrap();
    assert_eq!((message.kind, &message.payload[..], message.retain), (Up::State, &b"offline"[..], true));
}

#[tokio::test]
async fn a_will_on_anything_but_the_devices_own_state_is_refused() {
    let on = Fixture::start().await;
    for topic in [up("acme.cam-2", Up::State), up(CAM, Up::Event), "plimsoll/1/acme/cam-1/dn/desired".into()]
    {
        for (v, code) in [(V::Three, 5), (V::Five, 0x87)] {
            let mut cam = Raw::device(&on, CAM, v).await.unwrap();
            assert_eq!(cam.connect(&Hello { will: Some((&topic, "x")), ..Hello::new(CAM) }).await, code);
            assert!(cam.read().await.is_none(), "and closed");
        }
    }
}

#[tokio::test]
async fn the_client_id_is_the_certificates_identity_or_the_connection_is_refused() {
    let on = Fixture::start().await;
    for (v, code) in [(V::Three, 2), (V::Five, 0x85)] {
        for client_id in ["acme.cam-2", "", "cam-1", "grafana"] {
            let mut cam = Raw::device(&on, CAM, v).await.unwrap();
            assert_eq!(cam.connect(&Hello::new(client_id)).await, code, "{client_id:?}");
        }
    }
    let mut nobody = Raw::device(&on, "not an identity", V::Five).await.unwrap();
    assert_eq!(nobody.connect(&Hello::new("not an identity")).await, 0x87);
    assert!(on.gateway.connected().is_empty());
}

#[tokio::test]
async fn without_a_client_certificate_there_is_no_connection() {
    let on = Fixture::start().await;
    let tcp = tokio::net::TcpStream::connect(on.gateway.devices_address()).await.unwrap();
    let tls = tokio_rustls::TlsConnector::from(on.client_tls(None));
    let connected = tls.connect("localhost".try_into().unwrap(), tcp).await;
    if let Ok(stream) = connected {
        // TLS 1.3: the client learns it with its first read.
        assert!(Raw::over(stream, V::Five).read().await.is_none());
    }
    assert_eq!(on.gateway.stats().devices_now, 0);
}

#[tokio::test]
async fn a_second_connection_takes_over_and_the_first_leaves_without_a_will() {
    let on = Fixture::start().await;
    let topic = up(CAM, Up::State);
    let mut first = Raw::device(&on, CAM, V::Five).await.unwrap();
    assert_eq!(first.connect(&Hello { will: Some((&topic, "offline")), ..Hello::new(CAM) }).await, 0);
    let mut second = Raw::connected(&on, CAM, V::Five).await;
    assert_eq!(first.until_closed().await, [(DISCONNECT, vec![0x8e])]);
    second.publish(&topic, "online", Some(1)).await;
    assert_eq!(second.read().await.unwrap().0, PUBACK);
    assert_eq!(on.gateway.connected(), [id(CAM)].into());
    assert_eq!(on.gateway.stats().takeovers, 1);
    let seen = on.store.seen.lock().unwrap();
    assert_eq!(seen.wills(), 0);
    assert!(!seen.has_left(CAM, false) && !seen.has_left(CAM, true));
}

#[tokio::test]
async fn a_device_gets_its_orders_when_it_subscribes_and_when_they_are_sent() {
    let on = Fixture::start().await;
    on.hold(CAM, Down::Desired, "generation 1");
    for v in [V::Three, V::Five] {
        let mut cam = Raw::connected(&on, CAM, v).await;
        assert_eq!(
            cam.subscribe(&["plimsoll/1/acme/cam-1/dn/+", "plimsoll/1/acme/all/dn/cfg"]).await,
            [1, 1]
        );
        let (topic, payload, kind) = cam.message().await;
        assert_eq!((topic.as_str(), payload.as_str()), ("plimsoll/1/acme/cam-1/dn/desired", "generation 1"));
        assert_eq!(kind & 0x0f, 0x03, "QoS 1, retained");
        on.gateway.send(&id(CAM), Down::Desired, "generation 2".into(), true).unwrap();
        let (_, payload, kind) = cam.message().await;
        assert_eq!((payload.as_str(), kind & 0x0f), ("generation 2", 0x02), "live: not marked retained");
        on.gateway.send(&id(CAM), Down::Ack, "ranges".into(), false).unwrap();
        let (_, payload, kind) = cam.message().await;
        assert_eq!((payload.as_str(), kind & 0x0f), ("ranges", 0), "QoS 0");
        assert_eq!(on.gateway.broadcast_config(&id(CAM).tenant, "{}".into()), 1);
        assert_eq!(cam.message().await.0, "plimsoll/1/acme/all/dn/cfg");
    }
    assert_eq!(
        on.gateway.send(&id("acme.cam-2"), Down::Ack, "x".into(), false),
        Err(SendError::NotConnected)
    );
}

#[tokio::test]
async fn a_device_cannot_listen_to_others() {
    let on = Fixture::start().await;
    on.hold("acme.cam-2", Down::Desired, "secret");
    let others = [
        "#",
        "plimsoll/1/acme/+/dn/desired",
        "plimsoll/1/acme/cam-2/dn/desired",
        "$SYS/#",
        "plimsoll/1/acme/+/up/#",
    ];
    for (v, code) in [(V::Three, 0x80), (V::Five, 0x87)] {
        let mut cam = Raw::connected(&on, CAM, v).await;
        assert_eq!(cam.subscribe(&others).await, [code; 5]);
        let shared = format!("$share/g/plimsoll/1/acme/cam-1/dn/{}", "+");
        assert_eq!(cam.subscribe(&[&shared, "plimsoll/1/acme/cam-1/dn/+"]).await, [code, 1]);
    }
    assert_eq!(on.gateway.stats().filters_refused, 12);
}

#[tokio::test]
async fn a_device_that_does_not_take_its_orders_is_disconnected_so_that_it_asks_again() {
    let on = Fixture::start().await;
    let mut cam = Raw::connected(&on, CAM, V::Five).await;
    assert_eq!(cam.subscribe(&["plimsoll/1/acme/cam-1/dn/+"]).await, [1]);
    let mut sent = 0;
    while on.gateway.send(&id(CAM), Down::Desired, "x".into(), true) == Ok(()) {
        sent += 1;
        assert!(sent < 1_000, "the mailbox has no bound");
        tokio::task::yield_now().await;
    }
    let last = cam.until_closed().await;
    assert_eq!(last.last(), Some(&(DISCONNECT, vec![0x97])));
    assert!(last.len() <= 21, "at most 20 unacknowledged messages and the end: {}", last.len());
    assert_eq!(on.gateway.stats().devices_too_slow, 1);
}

#[tokio::test]
async fn a_revoked_device_is_kicked_and_refused() {
    let on = Fixture::start().await;
    let mut cam = Raw::connected(&on, CAM, V::Five).await;
    on.store.seen.lock().unwrap().revoked.insert(id(CAM));
    assert!(on.gateway.kick(&id(CAM)));
    assert_eq!(cam.until_closed().await, [(DISCONNECT, vec![0x98])]);
    on.store.until("it left", |s| s.has_left(CAM, false)).await;
    for (v, code) in [(V::Three, 5), (V::Five, 0x87)] {
        let mut cam = Raw::device(&on, CAM, v).await.unwrap();
        assert_eq!(cam.connect(&Hello::new(CAM)).await, code);
    }
    assert!(!on.gateway.kick(&id(CAM)));
}

#[tokio::test]
async fn silence_for_one_and_a_half_keepalives_is_death() {
    let on = Fixture::start().await;
    let topic = up(CAM, Up::State);
    let mut cam = Raw::device(&on, CAM, V::Five).await.unwrap();
    let hello = Hello { will: Some((&topic, "offline")), keep_alive_s: 1, ..Hello::new(CAM) };
    assert_eq!(cam.connect(&hello).await, 0);
    // Half a packet is not a sign of life.
    cam.send(&[0xc0]).await;
    assert_eq!(cam.until_closed().await, [(DISCONNECT, vec![0x8d])]);
    on.store.until("the will", |s| s.wills() == 1).await;
    assert_eq!(on.gateway.stats().keepalive_timeouts, 1);
}

#[tokio::test]
async fn a_device_that_sends_too_fast_is_read_more_slowly_and_loses_nothing() {
    let rate = RateLimit { per_second: 100, burst: 10 };
    let on = Fixture::start_with(Limits { rate, ..roomy() }, Vec::new()).await;
    let mut cam = Raw::connected(&on, CAM, V::Three).await;
    let before = tokio::time::Instant::now();
    for round in 0..3u16 {
        let publish = |n: u16| cam.publish_bytes(&up(CAM, Up::Drift), b"x", Some(round * 20 + n));
        let burst: Vec<u8> = (1..=20).flat_map(publish).collect();
        cam.send(&burst).await;
        for _ in 0..20 {
            assert_eq!(cam.read().await.unwrap().0, PUBACK);
        }
    }
    // 10 at once, the other 50 at 100 a second, the last 20 of which may be acknowledged before their wait.
    assert!(before.elapsed() >= Duration::from_millis(290), "{:?}", before.elapsed());
    assert_eq!(on.store.seen.lock().unwrap().committed.len(), 60);
}

#[tokio::test]
async fn a_shutdown_says_goodbye_and_commits_what_was_received() {
    let on = Fixture::start().await;
    let topic = up(CAM, Up::State);
    let mut cam = Raw::device(&on, CAM, V::Five).await.unwrap();
    assert_eq!(cam.connect(&Hello { will: Some((&topic, "offline")), ..Hello::new(CAM) }).await, 0);
    cam.publish(&up(CAM, Up::Event), "x", Some(1)).await;
    assert_eq!(cam.read().await.unwrap().0, PUBACK);
    on.gateway.shutdown(PATIENCE).await;
    assert_eq!(cam.until_closed().await, [(DISCONNECT, vec![0x8b])]);
    assert_eq!(on.store.seen.lock().unwrap().wills(), 0, "it is the server that left");
    assert!(tokio::net::TcpStream::connect(on.gateway.devices_address()).await.is_err());
}

#[tokio::test]
async fn a_connection_accepted_elsewhere_is_served_by_the_same_rules() {
    let on = Fixture::start().await;
    let (ours, theirs) = tokio::io::duplex(4096);
    let (gateway, certificate) = (on.gateway.clone(), on.device_certificate(CAM));
    let served = tokio::spawn(async move {
        gateway.serve_stream(theirs, certificate, "10.0.0.1:5".parse().unwrap()).await
    });
    let mut cam = Raw::over(ours, V::Five);
    assert_eq!(cam.connect(&Hello::new(CAM)).await, 0);
    let from = "10.0.0.1:5".parse().unwrap();
    assert_eq!(on.store.seen.lock().unwrap().notices, [Notice::Connected { identity: id(CAM), peer: from }]);
    cam.publish(&up("acme.cam-2", Up::Event), "x", Some(1)).await;
    assert_eq!(cam.read().await.unwrap().1[2], 0x87);
    cam.send(GOODBYE).await;
    served.await.unwrap();
    assert!(on.store.seen.lock().unwrap().has_left(CAM, true));
}
