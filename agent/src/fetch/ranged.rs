//! What an answer to a ranged request for a blob means. Pure, because each of these answers was seen from some
//! server, proxy or cache, and most of them spoil a file when they are misread.

use std::time::Duration;

/// The parts of an answer that decide.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reply<'a> {
    /// HTTP status.
    pub status: u16,
    /// `Content-Range`, as sent.
    pub content_range: Option<&'a str>,
    /// `Content-Length`.
    pub content_length: Option<u64>,
    /// `Content-Encoding`, as sent.
    pub content_encoding: Option<&'a str>,
    /// `Retry-After`, as sent.
    pub retry_after: Option<&'a str>,
    /// `Date`, as sent.
    pub date: Option<&'a str>,
}

/// What to do with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The body continues what is there.
    Append,
    /// The body is the whole blob: what is there goes.
    Restart,
    /// What is there goes, and the request is made once more without a range.
    StartOver(String),
    /// Later.
    Later {
        /// Why.
        why: String,
        /// What the server asked for.
        after_s: Option<u64>,
    },
    /// Never: this will not change by waiting.
    Never(String),
}

/// Longest `Retry-After` obeyed: a server that says a year was misconfigured for longer than a device should sleep.
const MAX_RETRY_AFTER_S: u64 = 24 * 3600;

/// What a `Retry-After` means that cannot be read: a server that is overloaded long enough to say so is not well again
/// within seconds.
const UNREADABLE_S: u64 = 60;

/// Judges the answer to a request for `size` bytes of which `have` are there (with `Range` when `have > 0`).
pub fn judge(reply: Reply<'_>, have: u64, size: u64) -> Verdict {
    if matches!(reply.status, 200 | 206) && reply.content_encoding.is_some_and(|e| e != "identity") {
        let encoding = reply.content_encoding.unwrap_or_default();
        return Verdict::Never(format!(
            "it came with content-encoding {encoding:?}, which was not asked for"
        ));
    }
    match reply.status {
        200 => match reply.content_length {
            Some(length) if length != size => {
                Verdict::Never(format!("the server offers {length} bytes, {size} are signed"))
            }
            _ => Verdict::Restart,
        },
        206 if have == 0 => Verdict::Never("a part came although the whole was asked for".into()),
        206 => {
            let expected = format!("bytes {have}-{}/{size}", size.saturating_sub(1));
            match reply.content_range {
                Some(range) if range == expected => Verdict::Append,
                other => Verdict::StartOver(format!(
                    "the part that came is {:?}, asked was {expected:?}",
                    other.unwrap_or("unnamed")
                )),
            }
        }
        416 if have > 0 => Verdict::StartOver("the server cannot continue at this place".into()),
        404 => later("the server does not have it (yet)", reply),
        408 | 425 | 429 | 500..=599 => later(&format!("the server answered {}", reply.status), reply),
        401 | 403 => Verdict::Later {
            why: format!("the server refuses this device's certificate ({}); was it revoked?", reply.status),
            after_s: Some(retry_after(reply).unwrap_or(300)),
        },
        status => Verdict::Never(format!("the server answered {status}")),
    }
}

/// What an answer to a request for a delta means. A delta can always be done without, so there is no "later" and no
/// "never": whatever is odd means that the file is fetched whole, which then meets the same server and says what ails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeltaVerdict {
    /// The body begins where it was asked for.
    Part,
    /// The body begins at the delta's first byte.
    Whole,
    /// It is being built; ask again after this.
    Building(Duration),
    /// There is none to be had; why.
    None(String),
}

/// Judges the answer to a request for a delta from byte `from` on.
pub fn judge_delta(reply: Reply<'_>, from: u64) -> DeltaVerdict {
    if reply.content_encoding.is_some_and(|e| e != "identity") {
        return DeltaVerdict::None("it came with a content-encoding, which was not asked for".into());
    }
    match reply.status {
        200 => DeltaVerdict::Whole,
        202 => DeltaVerdict::Building(Duration::from_secs(retry_after(reply).unwrap_or(1))),
        206 => {
            let begins =
                reply.content_range.and_then(|r| r.strip_prefix("bytes ")?.split('-').next()?.parse().ok());
            if begins == Some(from) {
                DeltaVerdict::Part
            } else {
                DeltaVerdict::None(format!("the part of it that came does not begin at byte {from}"))
            }
        }
        404 => DeltaVerdict::None("the server has none".into()),
        status => DeltaVerdict::None(format!("the server answered {status}")),
    }
}

fn later(why: &str, reply: Reply<'_>) -> Verdict {
    Verdict::Later { why: why.to_owned(), after_s: retry_after(reply) }
}

/// Seconds. The form with a date is read against the answer's own date: their difference is right whatever the clock of
/// this device says.
fn retry_after(reply: Reply<'_>) -> Option<u64> {
    let text = reply.retry_after?.trim();
    let seconds = text.parse().ok().or_else(|| between(reply.date?, text));
    Some(seconds.unwrap_or(UNREADABLE_S).min(MAX_RETRY_AFTER_S))
}

/// Seconds from one HTTP date to another; 0 when the other is the earlier one.
fn between(from: &str, to: &str) -> Option<u64> {
    let [from, to] = [from, to].map(|date| httpdate::parse_http_date(date.trim()).ok());
    Some(to?.duration_since(from?).map_or(0, |wait| wait.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_answer_is_read_for_what_it_is() {
        let range = |r| Reply { status: 206, content_range: Some(r), ..Reply::default() };
        let status = |s| Reply { status: s, ..Reply::default() };
        let length = |l| Reply { status: 200, content_length: Some(l), ..Reply::default() };
        let gzip = Reply { status: 200, content_encoding: Some("gzip"), ..Reply::default() };
        let table: &[(&str, Reply<'_>, u64, &str)] = &[
            ("a first request is answered whole", length(100), 0, "Restart"),
            ("an unknown length is checked by the hash", status(200), 0, "Restart"),
            ("a server without ranges sends all again", length(100), 40, "Restart"),
            ("a changed blob has another length", length(99), 40, "Never"),
            ("a part continues exactly", range("bytes 40-99/100"), 40, "Append"),
            ("a part from elsewhere would spoil the file", range("bytes 41-99/100"), 40, "StartOver"),
            ("a part of something else", range("bytes 40-99/101"), 40, "StartOver"),
            ("a shorter part would end early", range("bytes 40-98/100"), 40, "StartOver"),
            ("a part without a name", status(206), 40, "StartOver"),
            ("a part that nobody asked for", range("bytes 0-99/100"), 0, "Never"),
            ("beyond its end", status(416), 100, "StartOver"),
            ("a proxy that compresses", gzip, 0, "Never"),
            ("not there", status(404), 0, "Later"),
            ("overloaded", status(503), 0, "Later"),
            ("revoked", status(403), 0, "Later"),
            ("moved to somewhere we do not know", status(302), 0, "Never"),
            ("nonsense", status(204), 0, "Never"),
        ];
        for (name, reply, have, expected) in table {
            let got = format!("{:?}", judge(*reply, *have, 100));
            assert!(got.starts_with(expected), "{name}: expected {expected}, got {got}");
        }
    }

    #[test]
    fn retry_after_is_obeyed_within_reason() {
        let after = |text| match judge(Reply { status: 503, retry_after: text, ..Reply::default() }, 0, 1) {
            Verdict::Later { after_s, .. } => after_s,
            other => panic!("{other:?}"),
        };
        assert_eq!(after(None), None);
        assert_eq!(after(Some("120")), Some(120));
        assert_eq!(after(Some("99999999")), Some(MAX_RETRY_AFTER_S));
        assert_eq!(after(Some("Wed, 21 Oct 2026 07:28:00 GMT")), Some(60), "without a date to compare with");
        let dated = |date, text| {
            let reply = Reply { status: 503, retry_after: Some(text), date: Some(date), ..Reply::default() };
            match judge(reply, 0, 1) {
                Verdict::Later { after_s, .. } => after_s,
                other => panic!("{other:?}"),
            }
        };
        let now = "Wed, 21 Oct 2026 07:26:30 GMT";
        assert_eq!(dated(now, "Wed, 21 Oct 2026 07:28:00 GMT"), Some(90));
        assert_eq!(dated(now, "Wednesday, 21-Oct-26 07:26:40 GMT"), Some(10), "as RFC 850 wrote it");
        assert_eq!(dated(now, "Wed, 21 Oct 2026 07:00:00 GMT"), Some(0), "it is over");
        assert_eq!(dated(now, "Thu, 21 Oct 2027 07:28:00 GMT"), Some(MAX_RETRY_AFTER_S));
        assert_eq!(dated(now, "soon"), Some(60));
        assert_eq!(dated("now", "Wed, 21 Oct 2026 07:28:00 GMT"), Some(60));
        assert_eq!(dated(now, "7"), Some(7));
    }

    #[test]
    fn an_odd_answer_means_that_a_delta_is_done_without() {
        let status = |status| Reply { status, ..Reply::default() };
        let part = |range| Reply { status: 206, content_range: Some(range), ..Reply::default() };
        let building = Reply { retry_after: Some("2"), ..status(202) };
        let gzip = Reply { content_encoding: Some("gzip"), ..status(200) };
        for (reply, from, expected) in [
            (status(200), 0, "Whole"),
            (status(200), 96, "Whole"),
            (part("bytes 96-200/201"), 96, "Part"),
            (part("bytes 0-65535/70000"), 0, "Part"),
            (part("bytes 97-200/201"), 96, "None"),
            (part("96"), 96, "None"),
            (status(206), 96, "None"),
            (building, 0, "Building(2s)"),
            (status(202), 0, "Building(1s)"),
            (gzip, 0, "None"),
            (status(404), 0, "None"),
            (status(503), 0, "None"),
            (status(302), 0, "None"),
        ] {
            let got = format!("{:?}", judge_delta(reply, from));
            assert!(got.starts_with(expected), "{reply:?}: expected {expected}, got {got}");
        }
    }
}
