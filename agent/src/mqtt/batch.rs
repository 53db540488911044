//! Backfill: many waiting reports as one message, `up/batch`.
//!
//! After an outage the outbox holds hundreds of reports that resemble each other down to the names of their fields;
//! together they compress several times better than the few hundred bytes of each alone, and take one round trip
//! instead of one a window. The server counts each of them by its own numbers and acknowledges ranges, so nothing else
//! changes: what is lost is sent again, in a batch or alone, and is counted once.

use std::io::Write;

use flate2::Compression;
use flate2::write::ZlibEncoder;

use crate::outbox::Waiting;

/// From so many waiting reports on they go together. Fewer are what an update or a closing window makes at once, and
/// leave alone, so that a dashboard that watches `up/event` sees them.
pub const BATCH_FROM: usize = 8;
/// Most reports of a batch: ten days of hourly windows of one model.
pub const BATCH_REPORTS: usize = 256;
/// Most bytes of a batch before compression. Even if nothing compressed, the message would stay under the 128 KiB of a
/// packet; at the usual ratio of 6 it has 19 KiB.
pub const BATCH_BYTES: u64 = 112 * 1024;

/// The message: a JSON array of [`plimsoll_protocol::wire::v1::BatchEntry`], as zlib.
pub fn encode(reports: &[Waiting]) -> std::io::Result<Vec<u8>> {
    let mut out = ZlibEncoder::new(Vec::new(), Compression::best());
    for (n, report) in reports.iter().enumerate() {
        let before = if n == 0 { "[" } else { "," };
        write!(out, "{before}{{\"kind\":\"{}\",\"report\":", report.kind.as_str())?;
        out.write_all(&report.json)?; // JSON already, since it was stored
        out.write_all(b"}")?;
    }
    out.write_all(if reports.is_empty() { b"[]" } else { b"]" })?;
    out.finish()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use plimsoll_protocol::Incarnation;
    use plimsoll_protocol::wire::v1::{BatchEntry, MAX_PACKET_BYTES, MAX_REPORT_BYTES, Up};

    use super::*;

    fn waiting(kind: Up, seq: u64, body: &str) -> Waiting {
        let inc = Incarnation::from_bytes([7; 16]);
        let json = format!(
            r#"{{"v":1,"inc":"{inc}","boot":3,"seq":{seq},"ts":{},"mono":{},"body":{body}}}"#,
            1_760_000_000_000 + seq * 3_600_000,
            seq * 3_600_000
        );
        Waiting { kind, inc, boot: 3, seq, json: json.into_bytes() }
    }

    fn read(batch: &[u8]) -> Vec<BatchEntry> {
        let mut text = String::new();
        flate2::read::ZlibDecoder::new(batch).read_to_string(&mut text).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_batch_holds_what_would_have_been_published_in_its_order() {
        let reports = [
            waiting(Up::Event, 4, r#"{"code":"a"}"#),
            waiting(Up::Drift, 2, "{}"),
            waiting(Up::Job, 9, "{}"),
        ];
        let entries = read(&encode(&reports).unwrap());
        assert_eq!(entries.len(), 3);
        for (entry, report) in entries.iter().zip(&reports) {
            assert_eq!(entry.kind, report.kind.as_str());
            assert_eq!((entry.report.boot, entry.report.seq), (report.boot, report.seq));
            let published: serde_json::Value = serde_json::from_slice(&report.json).unwrap();
            assert_eq!(serde_json::to_value(&entry.report).unwrap(), published);
        }
        assert!(read(&encode(&[]).unwrap()).is_empty());
    }

    #[test]
    fn the_largest_batch_fits_a_packet_even_if_it_does_not_compress() {
        let noise = |seed: u64| {
            let word = |n: u64| {
                (n ^ (seed << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed.wrapping_mul((n * n) | 1)
            };
            let text: String = (0..170).map(|n| format!("{:016x}", word(n))).collect();
            waiting(Up::Drift, seed, &format!("{text:?}"))
        };
        let (mut reports, mut bytes) = (Vec::new(), 0);
        for seed in 1.. {
            let report = noise(seed);
            assert!(report.json.len() <= MAX_REPORT_BYTES);
            bytes += report.json.len() as u64;
            if bytes > BATCH_BYTES {
                break;
            }
            reports.push(report);
        }
        let batch = encode(&reports).unwrap();
        assert!(batch.len() + 200 < MAX_PACKET_BYTES as usize, "{} bytes", batch.len());
    }

    /// Prints what a day without a network costs to make good (`cargo test -p plimsoll-agent backfill -- --nocapture`):
    /// hourly windows of a model with 12 features of 16 bins and 10 classes, 3,000 requests each.
    #[test]
    fn backfill_of_a_day_takes_a_fraction_of_the_bytes() {
        let count = |hour: u64, feature: u64, bin: u64| {
            let hill = 60_000 / (10 + (bin * 7).abs_diff(52 + feature % 5) * 12);
            hill + (hour * 31 + feature * 17 + bin * 13).wrapping_mul(2_654_435_761) % 29
        };
        let window = |hour: u64| {
            let features: Vec<_> = (0..12)
                .map(|feature| {
                    let bins: Vec<u64> = (0..16).map(|bin| count(hour, feature, bin)).collect();
                    serde_json::json!({ "name": format!("sensor_{feature}"), "bins": bins, "missing": 0 })
                })
                .collect();
            let classes: Vec<u64> = (0..10).map(|class| count(hour, 40, class)).collect();
            let body = serde_json::json!({
                "model": "meter-reader", "version": "1.4.0", "digest": "ab".repeat(32), "index": hour, "part": [1, 1],
                "window": { "requests": 3000, "features": features, "classes": classes },
            });
            waiting(Up::Drift, hour + 1, &body.to_string())
        };
        let day: Vec<Waiting> = (0..24).map(window).collect();
        assert!(day.iter().all(|r| r.json.len() <= MAX_REPORT_BYTES));
        // On the wire each message has a fixed header of 3, a topic of 2 + 35 and 3 more bytes, and its PUBACK 4.
        let message = |payload: usize| payload + 3 + 37 + 3 + 4;
        let single: usize = day.iter().map(|r| message(r.json.len())).sum();
        let batch = message(encode(&day).unwrap().len());
        println!("backfill_24h_single {single} bytes\nbackfill_24h_batch {batch} bytes");
        assert!(batch * 3 < single, "{batch} of {single} bytes");
    }
}
