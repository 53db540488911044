//! Which reports of the outbox to publish next. Pure: the outbox is read and written by the driver.
//!
//! A report is *in flight* from its publication to its acknowledgement. The acknowledgement travels at QoS 0 and may
//! be lost, so a report that stays in flight too long is published again; the server counts it once.

use std::collections::BTreeMap;

use plimsoll_protocol::Incarnation;
use plimsoll_protocol::wire::v1::Ack;

/// `(boot, seq)`: with the incarnation, the identity of a report.
pub type ReportId = (u64, u64);

/// Reports published ahead of their acknowledgement. The link itself keeps 20 unacknowledged messages; births,
/// health and answers need the other four.
pub const WINDOW: usize = 16;
/// After so long without an acknowledgement a report is published again: the server commits within 20 ms and answers
/// at once, so this is a lost message or an overloaded server, which more haste would not help.
pub const RESEND_MS: u64 = 30_000;

/// Reports in flight.
#[derive(Debug, Default)]
pub struct Outflow {
    sent_at: BTreeMap<ReportId, u64>,
}

impl Outflow {
    /// Of the first waiting reports in order of priority, those to publish now. The caller gives at most
    /// [`WINDOW`] and says [`Self::sent`] for each that the link took.
    pub fn due<'a>(&'a self, head: impl Iterator<Item = ReportId> + 'a, mono_ms: u64) -> impl Iterator<Item = ReportId> + 'a {
        head.filter(move |id| self.sent_at.get(id).is_none_or(|at| mono_ms.saturating_sub(*at) >= RESEND_MS))
    }

    /// The link took a report.
    pub fn sent(&mut self, id: ReportId, mono_ms: u64) {
        self.sent_at.insert(id, mono_ms);
    }

    /// The ranges of an acknowledgement that the outbox may forget: those of this state folder. `None` when it
    /// speaks of another incarnation (the device was reflashed since).
    pub fn acknowledged(&mut self, ack: &Ack, mine: Incarnation) -> Option<Vec<(u64, u64, u64)>> {
        if ack.inc != mine {
            return None;
        }
        let ranges: Vec<_> = ack.ranges.iter().copied().filter(|(_, low, high)| low <= high).collect();
        self.sent_at.retain(|(boot, seq), _| {
            !ranges.iter().any(|(b, low, high)| boot == b && (low..=high).contains(&seq))
        });
        Some(ranges)
    }

    /// The connection is gone, and with it whatever was not acknowledged: all of it is due again.
    pub fn connection_lost(&mut self) {
        self.sent_at.clear();
    }

    /// When the oldest report in flight is due again, if any is.
    pub fn next_resend_ms(&self) -> Option<u64> {
        self.sent_at.values().min().map(|at| at + RESEND_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inc(byte: u8) -> Incarnation {
        Incarnation::from_bytes([byte; 16])
    }

    fn due(flow: &Outflow, head: &[ReportId], now: u64) -> Vec<ReportId> {
        flow.due(head.iter().copied(), now).collect()
    }

    #[test]
    fn a_report_is_published_once_until_it_is_lost() {
        let mut flow = Outflow::default();
        let head = [(1, 1), (1, 2)];
        assert_eq!(due(&flow, &head, 0), head);
        flow.sent((1, 1), 0);
        assert_eq!(due(&flow, &head, 10), [(1, 2)], "the link was full after the first");
        flow.sent((1, 2), 10);
        assert!(due(&flow, &head, RESEND_MS - 1).is_empty());
        assert_eq!(due(&flow, &head, RESEND_MS), [(1, 1)], "no acknowledgement came: again");
        flow.connection_lost();
        assert_eq!(due(&flow, &head, 20), head, "a new connection starts over");
    }

    #[test]
    fn only_acknowledged_ranges_of_this_incarnation_are_forgotten() {
        let mut flow = Outflow::default();
        for seq in 1..=5 {
            flow.sent((7, seq), 0);
        }
        flow.sent((8, 2), 0);
        let ack = |inc, ranges| Ack { inc, ranges, server_ms: 0 };
        assert_eq!(flow.acknowledged(&ack(inc(2), vec![(7, 1, 5)]), inc(1)), None);
        let forgotten = flow.acknowledged(&ack(inc(1), vec![(7, 2, 3), (7, 9, 4)]), inc(1));
        assert_eq!(forgotten, Some(vec![(7, 2, 3)]), "a range that runs backwards is no range");
        let head = [(7, 1), (7, 2), (7, 3), (7, 4), (8, 2)];
        assert_eq!(due(&flow, &head, 1), [(7, 2), (7, 3)], "only those two are no longer in flight");
        assert_eq!(flow.next_resend_ms(), Some(RESEND_MS));
    }
}
