//! Roles that expire: said in time to those who can sign them again, on the events page, by `doctor` and as numbers.

use std::collections::BTreeMap;

use plimsoll_protocol::UnixSeconds;

/// Offline roles are told a month before they expire: enough to find the owners of the keys.
const SOON_S: i64 = 30 * 24 * 3600;
/// Roles that the server signs by itself; they live for days, so that only their end is news.
const ONLINE: [&str; 2] = ["snapshot", "timestamp"];
/// Where `doctor` reads what a running server has published.
pub const FILE: &str = "trust-expiries.json";

/// What a person should know about a role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// It has expired: nothing new is installed.
    pub expired: bool,
    /// In words, with the remedy.
    pub text: String,
}

/// What is to be said about these roles now.
pub fn warnings(expiries: &BTreeMap<String, UnixSeconds>, now: UnixSeconds) -> Vec<Warning> {
    let due = expiries.iter().filter(|(role, at)| {
        let notice = if ONLINE.contains(&role.as_str()) { 0 } else { SOON_S };
        **at - now <= notice
    });
    due.map(|(role, at)| {
        let remedy = match role.as_str() {
            role if ONLINE.contains(&role) => {
                "the server signs it by itself; its log says why it does not".into()
            }
            role => format!("where its keys are: plimsoll trust renew {role}"),
        };
        let days = (at - now).div_euclid(24 * 3600);
        let expired = *at <= now;
        let text = if expired {
            format!("role {role} has expired: devices install nothing new that depends on it; {remedy}")
        } else {
            format!("role {role} expires in {days} days; {remedy}")
        };
        Warning { expired, text }
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offline_roles_are_told_a_month_ahead_and_online_ones_only_when_they_are_late() {
        let day = 24 * 3600;
        let roles = [
            ("root", 29 * day),
            ("targets", 31 * day),
            ("timestamp", day / 2),
            ("meter", -1),
            ("snapshot", 0),
        ];
        let expiries = roles.iter().map(|(role, at)| ((*role).to_owned(), 1_000 + at)).collect();
        let said: Vec<(bool, String)> =
            warnings(&expiries, 1_000).into_iter().map(|w| (w.expired, w.text)).collect();
        assert_eq!(said.len(), 3, "{said:?}");
        assert!(
            said[0].0 && said[0].1.contains("role meter has expired") && said[0].1.contains("renew meter")
        );
        assert!(!said[1].0 && said[1].1.contains("root expires in 29 days"));
        assert!(said[2].0 && said[2].1.contains("snapshot has expired") && said[2].1.contains("log"));
    }
}
