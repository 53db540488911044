//! `plimsoll device tokens` and `revoke-token`: the join tokens that were made.

use plimsoll_protocol::UnixMillis;
use plimsoll_protocol::api::JoinTokenInfo;

use crate::output::table;
use crate::time::utc;

/// All tokens as a table.
pub fn list(tokens: &[JoinTokenInfo], now_ms: UnixMillis) -> String {
    if tokens.is_empty() {
        return "No join token was made yet: `plimsoll device token` makes one.".into();
    }
    let row = |t: &JoinTokenInfo| {
        let labels: Vec<_> = t.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        vec![
            t.id.clone(),
            state(t, now_ms).into(),
            format!("{} of {}", t.uses_left, t.uses),
            utc(t.expires_ms),
            t.names.clone().unwrap_or_else(|| "*".into()),
            labels.join(" "),
        ]
    };
    let rows: Vec<_> = tokens.iter().map(row).collect();
    table(&["TOKEN", "STATE", "USES LEFT", "UNTIL (UTC)", "NAMES", "LABELS"], &rows)
}

fn state(token: &JoinTokenInfo, now_ms: UnixMillis) -> &'static str {
    match (token.revoked, token.expires_ms <= now_ms, token.uses_left) {
        (true, ..) => "revoked",
        (_, true, _) => "expired",
        (.., 0) => "used up",
        _ => "open",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_lets_nobody_in_says_why() {
        let token = |uses_left, expires_ms, revoked| JoinTokenInfo {
            id: "a1b2".into(),
            uses: 5,
            uses_left,
            expires_ms,
            revoked,
            labels: [("site".to_owned(), "lyon".to_owned())].into(),
            names: Some("cam-*".into()),
        };
        for (token, expect) in [
            (token(5, 2, false), "open"),
            (token(0, 2, false), "used up"),
            (token(5, 1, false), "expired"),
            (token(5, 2, true), "revoked"),
        ] {
            assert_eq!(state(&token, 1), expect);
        }
        let text = list(&[token(4, 2, false)], 1);
        assert!(text.contains("a1b2") && text.contains("4 of 5") && text.contains("cam-*"), "{text}");
        assert!(text.contains("site=lyon") && list(&[], 0).contains("plimsoll device token"), "{text}");
    }
}
