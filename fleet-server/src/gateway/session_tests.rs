//! Byte sequences on the session, good, bad and random.

use super::*;
use proptest::prelude::*;

fn packet(kind_and_flags: u8, body: &[u8]) -> Vec<u8> {
    assert!(body.len() < 128, "one length byte is enough for these");
    [&[kind_and_flags, body.len() as u8], body].concat()
}

fn connect_v3(client_id: &str) -> Vec<u8> {
    let id = client_id.as_bytes();
    packet(0x10, &[b"\0\x04MQTT\x04\x02\0\x3c", &(id.len() as u16).to_be_bytes()[..], id].concat())
}

fn connect_v5(client_id: &str) -> Vec<u8> {
    let id = client_id.as_bytes();
    packet(0x10, &[b"\0\x04MQTT\x05\x02\0\x3c\0", &(id.len() as u16).to_be_bytes()[..], id].concat())
}

fn steps(session: &mut Session, bytes: &[u8]) -> Result<Vec<Step>, Broken> {
    let (mut input, mut steps) = (Cursor::new(bytes), Vec::new());
    while let Some(step) = session.next(&mut input)? {
        if let Step::Connect(connect) = &step {
            session.accept(connect)?;
        }
        steps.push(step);
    }
    Ok(steps)
}

fn connected(connect: &[u8]) -> Session {
    let mut session = Session::new();
    assert!(matches!(steps(&mut session, connect).unwrap()[..], [Step::Connect(_)]));
    session.output().clear();
    session
}

#[test]
fn packets_may_come_byte_by_byte_or_all_at_once() {
    let stream = [connect_v3("a.b"), packet(0x32, b"\0\x01t\0\x07hello"), packet(0xc0, b"")].concat();
    let whole = steps(&mut Session::new(), &stream).unwrap();
    assert!(matches!(&whole[..], [Step::Connect(_), Step::Publish(p), Step::Nothing] if p.id == Some(7)));
    let mut session = Session::new();
    let dripped: Vec<Step> = stream.iter().flat_map(|byte| steps(&mut session, &[*byte]).unwrap()).collect();
    assert_eq!(format!("{dripped:?}"), format!("{whole:?}"));
}

#[test]
fn a_qos_1_publish_is_not_acknowledged_by_itself() {
    for connect in [connect_v3("a.b"), connect_v5("a.b")] {
        let mut session = connected(&connect);
        let body: &[u8] = if session.is_v5() { b"\0\x01t\0\x07\0hello" } else { b"\0\x01t\0\x07hello" };
        steps(&mut session, &packet(0x32, body)).unwrap();
        assert!(session.output().is_empty(), "PUBACK is sent after the commit only");
        session.acknowledge(7, true).unwrap();
        assert_eq!(session.output()[..1], [0x40]);
    }
}

#[test]
fn a_version_5_client_cannot_have_more_in_flight_than_it_was_told() {
    let mut session = connected(&connect_v5("a.b"));
    let publish = |id: u16| packet(0x32, &[b"\0\x01t", &id.to_be_bytes()[..], b"\0x"].concat());
    for id in 1..=INFLIGHT {
        steps(&mut session, &publish(id)).unwrap();
    }
    let broken = steps(&mut session, &publish(INFLIGHT + 1)).unwrap_err();
    assert_eq!(broken, Broken(MqttError::ReceiveMaximumExceeded));
    assert_eq!(session.output()[..3], [0xe0, 1, 0x93], "told so by DISCONNECT");
}

#[test]
fn what_is_not_offered_or_out_of_order_ends_the_connection() {
    let cases: [(&str, Vec<u8>); 9] = [
        ("QoS 2", packet(0x34, b"\0\x01t\0\x07hello")),
        ("a second CONNECT", connect_v3("a.b")),
        ("PUBREL", packet(0x62, b"\0\x07")),
        ("a server's packet", packet(0x20, b"\0\0")),
        ("an unknown type", packet(0x00, b"")),
        ("PUBACK of nothing", packet(0x40, b"\0\x07")),
        ("SUBSCRIBE without filters", packet(0x82, b"\0\x07")),
        ("a topic that is not UTF-8", packet(0x30, b"\0\x02\xff\xffx")),
        ("a length that says 256 MiB", vec![0x30, 0xff, 0xff, 0xff, 0x7f]),
    ];
    for (what, bytes) in cases {
        assert!(steps(&mut connected(&connect_v3("a.b")), &bytes).is_err(), "{what} went on");
    }
    let before_connect = steps(&mut Session::new(), &packet(0x30, b"\0\x01tx"));
    assert!(before_connect.is_err(), "PUBLISH before CONNECT went on");
}

#[test]
fn a_client_without_a_keepalive_is_given_one() {
    let mut forever = connect_v5("a.b");
    forever[11] = 0; // the low byte of 60 seconds
    let mut session = Session::new();
    let mut input = Cursor::new(&forever[..]);
    let Ok(Some(Step::Connect(connect))) = session.next(&mut input) else { panic!("no CONNECT") };
    assert_eq!(session.accept(&connect).unwrap(), 1.5 * f64::from(MAX_KEEP_ALIVE_S));
    let told = [&[0x13][..], &MAX_KEEP_ALIVE_S.to_be_bytes()].concat();
    assert!(session.output().windows(3).any(|w| w == told), "server keep alive is in the CONNACK");
}

#[test]
fn an_unknown_protocol_version_is_told_so() {
    let mut session = Session::new();
    assert!(steps(&mut session, &packet(0x10, b"\0\x06MQIsdp\x03\x02\0\x3c\0\x01a")).is_err());
    assert_eq!(session.output()[..], packets::CONNACK_UNSUPPORTED_VERSION);
}

#[test]
fn orders_wait_for_room_and_acknowledgements_make_it() {
    let mut session = connected(&connect_v3("a.b"));
    let message = Delivery { topic: "t", payload: b"x", acknowledged: true, retain: false };
    for _ in 0..INFLIGHT {
        assert!(session.has_room());
        assert!(session.deliver(&message).unwrap());
    }
    assert!(!session.has_room());
    steps(&mut session, &packet(0x40, b"\0\x01")).unwrap();
    assert!(session.has_room());
}

proptest! {
    #[test]
    fn no_bytes_after_a_connect_can_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), v5: bool) {
        let connect = if v5 { connect_v5("a.b") } else { connect_v3("a.b") };
        let _any_outcome = steps(&mut connected(&connect), &bytes);
    }

    #[test]
    fn no_packet_of_any_kind_can_panic(
        kind: u8, body in proptest::collection::vec(any::<u8>(), 0..100), v5: bool, early: bool,
    ) {
        let mut session = match (early, v5) {
            (true, _) => Session::new(),
            (false, true) => connected(&connect_v5("a.b")),
            (false, false) => connected(&connect_v3("a.b")),
        };
        let _any_outcome = steps(&mut session, &packet(kind, &body));
    }

    #[test]
    fn no_flip_in_a_good_connect_can_panic(at in 0usize..40, to: u8, v5: bool) {
        let mut connect = if v5 { connect_v5("acme.cam-1") } else { connect_v3("acme.cam-1") };
        let at = at % connect.len();
        connect[at] = to;
        let _any_outcome = steps(&mut Session::new(), &connect);
    }
}
