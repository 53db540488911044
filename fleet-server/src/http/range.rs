//! Which bytes of an immutable file a request asks for (RFC 9110, one range).

/// What to answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Wanted {
    /// 200 with everything.
    Whole,
    /// 206 with `length` bytes from `start`.
    Part {
        /// First byte.
        start: u64,
        /// How many.
        length: u64,
    },
    /// 416.
    Unsatisfiable,
}

/// Reads a `Range` header for a file of `total` bytes. `If-Range` counts only when it is the file's strong ETag.
/// Whatever is not one well-formed byte range is ignored, as the RFC allows: the answer is the whole file.
pub fn wanted(range: Option<&str>, if_range: Option<&str>, etag: &str, total: u64) -> Wanted {
    let Some(spec) = range.and_then(|r| r.strip_prefix("bytes=")) else { return Wanted::Whole };
    if if_range.is_some_and(|condition| condition != etag) {
        return Wanted::Whole;
    }
    let Some((first, last)) = spec.trim().split_once('-') else { return Wanted::Whole };
    let number =
        |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
    let (start, end) = match (first, last) {
        ("", suffix) => match number(suffix) {
            Some(suffix) => (total.saturating_sub(suffix), if suffix == 0 { 0 } else { total }),
            None => return Wanted::Whole,
        },
        (first, "") => match number(first) {
            Some(first) => (first, total),
            None => return Wanted::Whole,
        },
        (first, last) => match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => (first, last.saturating_add(1).min(total)),
            _ => return Wanted::Whole,
        },
    };
    if start >= total || end <= start {
        Wanted::Unsatisfiable
    } else {
        Wanted::Part { start, length: end - start }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_rfc_says() {
        let part = |start, length| Wanted::Part { start, length };
        for (range, expect) in [
            ("bytes=0-99", part(0, 100)),
            ("bytes=10-19", part(10, 10)),
            ("bytes=10-", part(10, 90)),
            ("bytes=-10", part(90, 10)),
            ("bytes=-1000", part(0, 100)),
            ("bytes=50-5000", part(50, 50)),
            ("bytes=99-99", part(99, 1)),
            ("bytes=100-", Wanted::Unsatisfiable),
            ("bytes=-0", Wanted::Unsatisfiable),
            ("bytes=200-300", Wanted::Unsatisfiable),
            ("bytes=5-4", Wanted::Whole),
            ("bytes=0-1,5-6", Wanted::Whole),
            ("items=0-1", Wanted::Whole),
            ("bytes=a-b", Wanted::Whole),
            ("bytes=-", Wanted::Whole),
            ("bytes=+1-2", Wanted::Whole),
            ("bytes=0-99999999999999999999999", Wanted::Whole),
        ] {
            assert_eq!(wanted(Some(range), None, "\"e\"", 100), expect, "{range}");
        }
        assert_eq!(wanted(None, None, "\"e\"", 100), Wanted::Whole);
        assert_eq!(wanted(Some("bytes=0-0"), None, "\"e\"", 0), Wanted::Unsatisfiable);
    }

    #[test]
    fn a_part_of_another_file_is_not_sent() {
        assert_eq!(wanted(Some("bytes=1-2"), Some("\"other\""), "\"e\"", 9), Wanted::Whole);
        assert_eq!(wanted(Some("bytes=1-2"), Some("W/\"e\""), "\"e\"", 9), Wanted::Whole);
        assert_eq!(
            wanted(Some("bytes=1-2"), Some("\"e\""), "\"e\"", 9),
            Wanted::Part { start: 1, length: 2 }
        );
    }
}
