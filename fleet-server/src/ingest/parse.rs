//! From bytes to reports, or to a reason why not. Total: any bytes give one of the two.

use std::io::Read;

use plimsoll_protocol::wire::v1::{
    BatchEntry, DriftReport, Envelope, Event, Health, JobReport, MAX_REPORT_BYTES, ShadowReport, State, Up,
};
use plimsoll_protocol::{DeviceId, DeviceIdentity, UnixMillis};
use serde::de::DeserializeOwned;

use crate::gateway::Inbound;
use crate::store::{ReportBody, ReportWrite};

/// Largest backfill after inflation: 64 KiB of zlib at the measured 5:1 are 320 KiB; 2 MiB stop a bomb early.
const MAX_INFLATED: u64 = 2 * 1024 * 1024;
/// Longest text of an event that is kept; the protocol allows 600 bytes.
const MAX_TEXT: usize = 600;
/// Longest code of an event.
const MAX_CODE: usize = 64;
/// What is shown of a message that was set aside.
const HEAD: usize = 120;

/// What a batch of messages holds.
#[derive(Default)]
pub struct Parsed {
    /// To be committed.
    pub reports: Vec<ReportWrite>,
    /// Latest wins, in memory.
    pub health: Vec<(DeviceId, Health)>,
    /// Set aside.
    pub poison: Vec<Poison>,
}

/// A message that cannot be read.
#[derive(Debug)]
pub struct Poison {
    /// Whose.
    pub from: DeviceIdentity,
    /// Last part of its topic.
    pub topic: &'static str,
    /// What is wrong with it.
    pub why: String,
    /// How it begins.
    pub head: String,
}

/// Reads a batch.
pub fn batch(messages: &[Inbound], now: UnixMillis) -> Parsed {
    let mut parsed = Parsed::default();
    for message in messages {
        if let Err(why) = one(&mut parsed, message, now) {
            // With readable numbers the report counts as seen, so that the device may forget it.
            if let Ok(envelope) = serde_json::from_slice::<Envelope<serde_json::Value>>(&message.payload) {
                parsed.reports.push(write(&message.from.device, envelope, now, |_| ReportBody::Seen));
            }
            parsed.poison.push(poison(message, why));
        }
    }
    parsed
}

fn poison(message: &Inbound, why: String) -> Poison {
    let head = String::from_utf8_lossy(&message.payload[..message.payload.len().min(HEAD)]).into_owned();
    Poison { from: message.from.clone(), topic: message.kind.as_str(), why, head }
}

fn one(parsed: &mut Parsed, message: &Inbound, now: UnixMillis) -> Result<(), String> {
    let device = &message.from.device;
    let bytes = &message.payload;
    match message.kind {
        Up::State => {
            let text = std::str::from_utf8(bytes).map_err(|e| e.to_string())?.to_owned();
            let mut envelope: Envelope<State> = read(bytes)?;
            envelope.seq = 0; // replaced by the next one, never counted
            parsed.reports.push(write(device, envelope, now, |state| match state {
                State::Online(birth) => ReportBody::Online(birth, text),
                State::Offline { boot, conn } => ReportBody::Offline { boot, conn, payload: text },
            }));
        }
        Up::Health => {
            let envelope: Envelope<Health> = read(bytes)?;
            parsed.health.push((device.clone(), envelope.body));
        }
        Up::Drift | Up::Event | Up::Job | Up::Shadow => {
            if bytes.len() > MAX_REPORT_BYTES {
                return Err(format!("it has {} bytes; a report has at most {MAX_REPORT_BYTES}", bytes.len()));
            }
            let report = counted(device, message.kind.as_str(), read(bytes)?, now)?;
            parsed.reports.push(report);
        }
        Up::Batch => {
            let mut inflated = Vec::new();
            let decoder = flate2::read::ZlibDecoder::new(bytes.as_ref());
            decoder
                .take(MAX_INFLATED + 1)
                .read_to_end(&mut inflated)
                .map_err(|e| format!("it is no zlib: {e}"))?;
            if inflated.len() as u64 > MAX_INFLATED {
                return Err(format!("it inflates to more than {MAX_INFLATED} bytes"));
            }
            let entries: Vec<serde_json::Value> =
                serde_json::from_slice(&inflated).map_err(|e| format!("it is no list of reports: {e}"))?;
            for entry in entries {
                if let Err(why) = entry_of(parsed, device, &entry, now) {
                    let why = format!("an entry of the batch: {why}");
                    let inner = Inbound { payload: entry.to_string().into(), ..message.clone() };
                    parsed.poison.push(poison(&inner, why));
                }
            }
        }
        Up::Response => {
            let envelope: Envelope<serde_json::Value> = read(bytes)?;
            parsed.reports.push(write(device, envelope, now, |_| ReportBody::Seen));
        }
    }
    Ok(())
}

fn entry_of(
    parsed: &mut Parsed,
    device: &DeviceId,
    entry: &serde_json::Value,
    now: UnixMillis,
) -> Result<(), String> {
    let BatchEntry { kind, report } = serde_json::from_value(entry.clone()).map_err(|e| e.to_string())?;
    let seen = report.clone();
    match counted(device, &kind, report, now) {
        Ok(report) => parsed.reports.push(report),
        Err(why) => {
            parsed.reports.push(write(device, seen, now, |_| ReportBody::Seen));
            return Err(why);
        }
    }
    Ok(())
}

/// A report that goes through the outbox.
fn counted(
    device: &DeviceId,
    kind: &str,
    report: Envelope<serde_json::Value>,
    now: UnixMillis,
) -> Result<ReportWrite, String> {
    if report.seq == 0 {
        return Err("its seq is 0, which is for state and health; reports count from 1".into());
    }
    let body = match kind {
        "drift" => ReportBody::Drift(Box::new(body::<DriftReport>(&report)?)),
        "job" => ReportBody::Job(Box::new(body::<JobReport>(&report)?)),
        "shadow" => ReportBody::Shadow(Box::new(body::<ShadowReport>(&report)?)),
        "event" => {
            let mut event = body::<Event>(&report)?;
            event.code = cut(&event.code, MAX_CODE);
            event.text = cut(&event.text, MAX_TEXT);
            ReportBody::Event(event)
        }
        other => return Err(format!("kind {other:?} is none of drift, job, shadow, event")),
    };
    Ok(write(device, report, now, |_| body))
}

fn body<T: DeserializeOwned>(report: &Envelope<serde_json::Value>) -> Result<T, String> {
    T::deserialize(&report.body).map_err(|e| e.to_string())
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<Envelope<T>, String> {
    let envelope: Envelope<T> = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    if envelope.v == 1 {
        Ok(envelope)
    } else {
        Err(format!("version {} of the envelope; 1 is spoken here", envelope.v))
    }
}

fn write<T>(
    device: &DeviceId,
    envelope: Envelope<T>,
    at_ms: UnixMillis,
    body: impl FnOnce(T) -> ReportBody,
) -> ReportWrite {
    let Envelope { inc, boot, seq, body: content, .. } = envelope;
    ReportWrite { device: device.clone(), inc, boot, seq, at_ms, body: body(content) }
}

fn cut(text: &str, max: usize) -> String {
    let mut end = max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn message(kind: Up, payload: impl Into<bytes::Bytes>) -> Inbound {
        Inbound {
            from: "acme.cam-1".parse().unwrap(),
            kind,
            payload: payload.into(),
            acknowledged: true,
            retain: false,
            is_will: false,
        }
    }

    fn envelope(seq: u64, body: Value) -> Value {
        json!({ "v": 1, "inc": "01".repeat(16), "boot": 2, "seq": seq, "ts": 0, "mono": 0, "body": body })
    }

    fn event(text: &str) -> Value {
        json!({ "severity": "warning", "code": "c", "text": text })
    }

    fn zlib(value: &Value) -> Vec<u8> {
        let mut out = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
        out.write_all(value.to_string().as_bytes()).unwrap();
        out.finish().unwrap()
    }

    #[test]
    fn a_report_keeps_its_numbers_and_unknown_fields_are_tolerated() {
        let mut report = envelope(5, event("hello"));
        report["new_field"] = json!(1);
        let parsed = batch(&[message(Up::Event, report.to_string())], 99);
        let [report] = parsed.reports.as_slice() else { panic!("{:?}", parsed.poison) };
        assert_eq!((report.boot, report.seq, report.at_ms), (2, 5, 99));
        assert!(matches!(&report.body, ReportBody::Event(e) if e.text == "hello"));
    }

    #[test]
    fn a_poisoned_report_with_readable_numbers_counts_as_seen() {
        let bad = envelope(7, json!({ "severity": "dreadful" }));
        let parsed = batch(&[message(Up::Event, bad.to_string()), message(Up::Job, "{not json")], 0);
        assert_eq!(parsed.poison.len(), 2);
        assert!(parsed.poison[0].why.contains("dreadful"), "{}", parsed.poison[0].why);
        let [report] = parsed.reports.as_slice() else { panic!() };
        assert!(matches!(report.body, ReportBody::Seen));
        assert_eq!(report.seq, 7);
    }

    #[test]
    fn one_bad_entry_does_not_spoil_its_batch() {
        let entries = json!([
            { "kind": "event", "report": envelope(1, event("a")) },
            { "kind": "nonsense", "report": envelope(2, event("b")) },
            { "kind": "event", "report": envelope(3, event("c")) },
            "not an entry",
        ]);
        let parsed = batch(&[message(Up::Batch, zlib(&entries))], 0);
        let seqs: Vec<u64> = parsed.reports.iter().map(|r| r.seq).collect();
        assert_eq!(seqs, [1, 2, 3]);
        assert_eq!(parsed.poison.len(), 2);
    }

    #[test]
    fn a_bomb_a_giant_and_a_wrong_version_are_set_aside() {
        let bomb = zlib(&json!("x".repeat(3 * 1024 * 1024)));
        let giant = envelope(1, event(&"x".repeat(MAX_REPORT_BYTES)));
        let mut old = envelope(1, event("x"));
        old["v"] = json!(9);
        let messages = vec![
            message(Up::Batch, bomb),
            message(Up::Event, giant.to_string()),
            message(Up::Event, old.to_string()),
            message(Up::Event, envelope(0, event("zero")).to_string()),
        ];
        let whys: Vec<String> = batch(&messages, 0).poison.into_iter().map(|p| p.why).collect();
        assert!(whys[0].contains("inflates") && whys[1].contains("3072"), "{whys:?}");
        assert!(whys[2].contains("version 9") && whys[3].contains("seq is 0"), "{whys:?}");
    }

    proptest! {
        #[test]
        fn any_bytes_on_any_topic_are_read_or_set_aside(bytes: Vec<u8>, kind in 0..Up::ALL.len()) {
            let parsed = batch(&[message(Up::ALL[kind], bytes)], 0);
            prop_assert!(parsed.reports.len() + parsed.health.len() + parsed.poison.len() >= 1);
        }
    }
}
