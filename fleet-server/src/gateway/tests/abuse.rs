//! Bytes and sockets that no good client sends: each ends its own connection and nothing else.

use std::time::Duration;

use plimsoll_protocol::wire::v1::{Down, Up};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::harness::{Fixture, Mode, PATIENCE, TOKEN, id, roomy, up};
use super::raw::{Hello, PUBACK, Raw, V, packet};
use crate::gateway::Limits;

const CAM: &str = "acme.cam-1";

async fn still_works(on: &Fixture) {
    let mut cam = Raw::connected(on, "acme.good", V::Five).await;
    cam.publish(&up("acme.good", Up::Event), "x", Some(1)).await;
    assert_eq!(cam.read().await.unwrap().0, PUBACK);
    assert_eq!(on.gateway.stats().panics, 0);
}

/// Reproducible noise: a linear congruential generator.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    (0..len).map(|_| next()).collect()
}

#[tokio::test]
async fn two_hundred_connections_of_garbage_change_nothing() {
    let on = Fixture::start().await;
    let mut steady = Raw::connected(&on, CAM, V::Five).await;
    for seed in 0..200u64 {
        let garbage = noise(seed, 1 + (seed as usize * 7) % 400);
        match seed % 4 {
            // Not TLS at all.
            0 => {
                let mut tcp = TcpStream::connect(on.gateway.devices_address()).await.unwrap();
                let _closed_early = tcp.write_all(&garbage).await;
            }
            // Not MQTT.
            1 => {
                let mut tcp = TcpStream::connect(on.gateway.dashboards_address()).await.unwrap();
                let _closed_early = tcp.write_all(&garbage).await;
            }
            // A CONNECT packet of garbage.
            2 => {
                let mut tcp = TcpStream::connect(on.gateway.dashboards_address()).await.unwrap();
                let body = [&b"\0\x04MQTT"[..], &[4 + (seed % 3) as u8], &garbage].concat();
                let _closed_early = tcp.write_all(&packet(0x10, &body)).await;
            }
            // A dashboard that was let in and goes mad.
            _ => {
                let v = if seed % 8 == 3 { V::Three } else { V::Five };
                let mut mad = Raw::watching(&on, v, "plimsoll/1/acme/+/up/#").await;
                let _closed_early = mad.stream.write_all(&packet(garbage[0], &garbage)).await;
            }
        }
    }
    steady.publish(&up(CAM, Up::Event), "x", Some(1)).await;
    assert_eq!(steady.read().await.unwrap().0, PUBACK, "the device that was there before is served");
    still_works(&on).await;
}

#[tokio::test]
async fn an_oversized_packet_ends_its_connection_before_it_is_buffered() {
    let on = Fixture::start().await;
    for v in [V::Three, V::Five] {
        let mut cam = Raw::connected(&on, CAM, v).await;
        // Only the header of a packet of 128 KiB and a byte: the refusal does not wait for its body.
        cam.send(&[0x32, 0x81, 0x80, 0x08]).await;
        let last = cam.until_closed().await;
        let told: &[(u8, Vec<u8>)] = if v == V::Five { &[(0xe0, vec![0x95])] } else { &[] };
        assert_eq!(last, told);
    }
    let mut grafana = Raw::dashboard(&on, V::Three).await;
    grafana.send(&[0x10, 0xff, 0xff, 0xff, 0x7f]).await;
    assert!(grafana.until_closed().await.is_empty());
    still_works(&on).await;
}

#[tokio::test]
async fn half_open_handshakes_time_out_and_make_room() {
    let limits = Limits { handshakes: 2, handshake_time: Duration::from_millis(300), ..roomy() };
    let on = Fixture::start_with(limits, Vec::new()).await;
    let mut silent = TcpStream::connect(on.gateway.devices_address()).await.unwrap();
    let mut half = TcpStream::connect(on.gateway.dashboards_address()).await.unwrap();
    half.write_all(&[0x10, 60, 0, 4]).await.unwrap();
    for stream in [&mut silent, &mut half] {
        let mut rest = Vec::new();
        let ended = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("closed by the server");
        assert!(ended.is_err() || rest.is_empty());
    }
    assert_eq!(on.gateway.stats().handshakes_failed, 2);
    // On a loaded machine a good handshake may need more than 300 ms: it tries again, as devices do.
    let mut tries = 0;
    loop {
        if let Ok(mut cam) = Raw::device(&on, "acme.good", V::Five).await
            && cam.try_connect(&Hello::new("acme.good")).await == Some(0)
        {
            break;
        }
        tries += 1;
        assert!(tries < 20, "nobody gets in");
    }
}

#[tokio::test]
async fn connections_over_the_limit_are_dropped_and_those_that_are_in_stay() {
    let on = Fixture::start_with(Limits { connections: 2, ..roomy() }, Vec::new()).await;
    let mut cam = Raw::connected(&on, CAM, V::Five).await;
    let second = Raw::watching(&on, V::Five, "plimsoll/1/acme/+/up/#").await;
    let mut third = TcpStream::connect(on.gateway.dashboards_address()).await.unwrap();
    let mut byte = [0];
    let closed = timeout(PATIENCE, third.read(&mut byte)).await.expect("closed by the server");
    assert!(matches!(closed, Ok(0) | Err(_)));
    assert_eq!(on.gateway.stats().over_limit, 1);
    cam.publish(&up(CAM, Up::Event), "x", Some(1)).await;
    assert_eq!(cam.read().await.unwrap().0, PUBACK);
    drop(second);
}

#[tokio::test]
async fn a_flood_of_one_device_waits_while_the_store_is_stopped_and_the_others_are_answered() {
    let on = Fixture::start().await;
    on.store.mode.send_replace(Mode::Stopped);
    let flood = Raw::connected(&on, CAM, V::Three).await;
    let publish = |n: u16| flood.publish_bytes(&up(CAM, Up::Event), &[b'x'; 1_000], Some(n));
    let bytes: Vec<u8> = (1..=2_000).flat_map(publish).collect();
    let (mut read, mut write) = tokio::io::split(flood.stream);
    let writing = tokio::spawn(async move { write.write_all(&bytes).await });
    let mut grafana = Raw::dashboard(&on, V::Five).await;
    assert_eq!(grafana.connect(&Hello { password: Some(TOKEN), ..Hello::new("g") }).await, 0);
    let read_ahead = on.gateway.stats().publishes;
    assert!(read_ahead < 150, "{read_ahead} messages were read although nothing is committed");
    on.store.mode.send_replace(Mode::Works);
    let mut acks = vec![0; 2_000 * 4];
    timeout(PATIENCE, read.read_exact(&mut acks)).await.expect("all are acknowledged").unwrap();
    writing.await.unwrap().unwrap();
    assert_eq!(on.store.seen.lock().unwrap().committed.len(), 2_000);
}

#[tokio::test]
async fn a_peer_that_stops_reading_is_dropped_after_its_time() {
    let limits = Limits { write_time: Duration::from_millis(200), ..roomy() };
    let on = Fixture::start_with(limits, Vec::new()).await;
    let (mut ours, theirs) = tokio::io::duplex(64);
    let (gateway, certificate) = (on.gateway.clone(), on.device_certificate(CAM));
    let peer = "10.0.0.1:5".parse().unwrap();
    let served = tokio::spawn(async move { gateway.serve_stream(theirs, certificate, peer).await });
    let mut hello = packet(0x10, &[&b"\0\x04MQTT\x04\x02\0\x3c\0\x0a"[..], CAM.as_bytes()].concat());
    hello.extend([0xc0, 0].repeat(100)); // pings whose answers it does not read
    let _dropped_while_it_sends = ours.write_all(&hello).await;
    timeout(PATIENCE, served).await.expect("dropped").unwrap();
    assert_eq!(on.gateway.stats().write_timeouts, 1);
    assert!(on.gateway.connected().is_empty());
}

#[tokio::test]
async fn a_storm_of_refusals_is_counted_but_not_all_of_it_reported() {
    let on = Fixture::start().await;
    for n in 0..150 {
        let mut someone = Raw::dashboard(&on, V::Five).await;
        let guess = format!("guess {n}");
        assert_eq!(someone.connect(&Hello { password: Some(&guess), ..Hello::new("g") }).await, 0x86);
    }
    let stats = on.gateway.stats();
    assert_eq!(stats.connects_refused, 150);
    let reported = on.store.seen.lock().unwrap().refusals().len();
    assert!((100..150).contains(&reported), "{reported}");
    assert_eq!(stats.refusals_not_reported, 150 - reported as u64);
}

#[tokio::test]
async fn half_open_handshakes_do_not_hold_up_a_shutdown() {
    let on = Fixture::start().await;
    let _silent = TcpStream::connect(on.gateway.devices_address()).await.unwrap();
    let mut half = TcpStream::connect(on.gateway.dashboards_address()).await.unwrap();
    half.write_all(&[0x10, 60, 0, 4]).await.unwrap();
    while on.gateway.stats().accepted < 2 {
        tokio::task::yield_now().await;
    }
    // They have until the end of PATIENCE; a shutdown that waited for them would be given up as well.
    timeout(PATIENCE / 2, on.gateway.shutdown(PATIENCE)).await.expect("stopped at once");
}

#[tokio::test]
async fn a_packet_cut_short_is_not_completed_by_a_goodbye() {
    let on = Fixture::start().await;
    let (ours, theirs) = tokio::io::duplex(64);
    let (gateway, certificate) = (on.gateway.clone(), on.device_certificate(CAM));
    let peer = "10.0.0.1:5".parse().unwrap();
    let served = tokio::spawn(async move { gateway.serve_stream(theirs, certificate, peer).await });
    let mut cam = Raw::over(ours, V::Five);
    assert_eq!(cam.connect(&Hello::new(CAM)).await, 0);
    assert_eq!(cam.subscribe(&["plimsoll/1/acme/cam-1/dn/+"]).await, [1]);
    on.gateway.send(&id(CAM), Down::Ack, vec![b'x'; 300].into(), false).unwrap();
    let mut packet = vec![0; 32]; // its beginning: the rest does not fit into the pipe
    cam.stream.read_exact(&mut packet).await.unwrap();
    assert!(on.gateway.kick(&id(CAM)));
    cam.stream.read_to_end(&mut packet).await.unwrap();
    assert!(packet.ends_with(b"xxx"), "{packet:?}");
    served.await.unwrap();
}
