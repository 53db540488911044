//! Which reports of the outbox to publish next. Pure: the outbox is read and written by the driver.
//!
//! A report is *in flight* from its publication to its acknowledgement. The acknowledgement travels at QoS 0 and may
//! be lost, so a report that stays in flight too long is published again; the server counts it once.

use std::collections::BTreeMap;

use plimsoll_protocol::Incarnation;
use plimsoll_protocol::wire::v1::Ack;

/// The identity of a report.
pub type ReportId = (Incarnation, u64, u64);

/// Reports published ahead of their acknowledgement. The link itself keeps 20 unacknowledged messages; births,
/// health and answers need the other four.
pub const WINDOW: usize = 16;
/// After so long without an acknowledgement a report is published again: the server commits within 20 ms and answers
/// at once, so this is a lost message or an overloaded server, which more haste would not help.
pub const RESEND_MS: u64 = 30_000;

/// Reports in flight.
#[derive(Debug, Default)]
pub struct Outflow {
    sent: BTreeMap<ReportId, Sent>,
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    at_ms: u64,
    /// As one of many in a message.
    batched: bool,
}

impl Outflow {
    /// Whether a waiting report is to be published now: not in flight, or for too long. The caller asks for the first
    /// [`WINDOW`] in order of priority and says [`Self::sent`] for each that the link took.
    pub fn is_due(&self, id: ReportId, mono_ms: u64) -> bool {
        self.sent.get(&id).is_none_or(|sent| sent.is_overdue(mono_ms))
    }

    /// The link took a report; says whether it had before, and no acknowledgement came.
    pub fn sent(&mut self, id: ReportId, mono_ms: u64) -> bool {
        self.sent.insert(id, Sent { at_ms: mono_ms, batched: false }).is_some()
    }

    /// The same, as a part of a batch.
    pub fn sent_in_batch(&mut self, id: ReportId, mono_ms: u64) -> bool {
        self.sent.insert(id, Sent { at_ms: mono_ms, batched: true }).is_some()
    }

    /// Whether reports may go together. Not while an earlier batch is overdue: should a server or a broker on the way
    /// not take batches, the reports pass one by one, and none waits for ever behind a message that never arrives.
    pub fn may_batch(&self, mono_ms: u64) -> bool {
        !self.sent.values().any(|sent| sent.batched && sent.is_overdue(mono_ms))
    }

    /// The server has committed these. What an acknowledgement of another incarnation names was never in flight here.
    pub fn acknowledged(&mut self, ack: &Ack) {
        self.sent.retain(|(inc, boot, seq), _| {
            *inc != ack.inc
                || !ack.ranges.iter().any(|(b, low, high)| boot == b && (low..=high).contains(&seq))
        });
    }

    /// The connection is gone, and with it whatever was not acknowledged: all of it is due again.
    pub fn connection_lost(&mut self) {
        self.sent.clear();
    }

    /// When the oldest report in flight is due again, if any is.
    pub fn next_resend_ms(&self) -> Option<u64> {
        self.sent.values().map(|sent| sent.at_ms + RESEND_MS).min()
    }
}

impl Sent {
    const fn is_overdue(self, mono_ms: u64) -> bool {
        mono_ms.saturating_sub(self.at_ms) >= RESEND_MS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(inc: u8, boot: u64, seq: u64) -> ReportId {
        (Incarnation::from_bytes([inc; 16]), boot, seq)
    }

    fn due(flow: &Outflow, head: &[ReportId], now: u64) -> Vec<u64> {
        head.iter().filter(|id| flow.is_due(**id, now)).map(|(.., seq)| *seq).collect()
    }

    #[test]
    fn a_report_is_published_once_until_it_is_lost() {
        let mut flow = Outflow::default();
        let head = [id(1, 1, 1), id(1, 1, 2)];
        assert_eq!(due(&flow, &head, 0), [1, 2]);
        flow.sent(head[0], 0);
        assert_eq!(due(&flow, &head, 10), [2], "the link was full after the first");
        flow.sent(head[1], 10);
        assert!(due(&flow, &head, RESEND_MS - 1).is_empty());
        assert_eq!(due(&flow, &head, RESEND_MS), [1], "no acknowledgement came: again");
        flow.connection_lost();
        assert_eq!(due(&flow, &head, 20), [1, 2], "a new connection starts over");
        assert_eq!(flow.next_resend_ms(), None);
    }

    #[test]
    fn only_what_an_acknowledgement_names_is_no_longer_in_flight() {
        let mut flow = Outflow::default();
        let head = [id(1, 7, 1), id(1, 7, 2), id(1, 7, 3), id(1, 8, 2), id(2, 7, 2)];
        for report in head {
            flow.sent(report, 0);
        }
        let inc = Incarnation::from_bytes([1; 16]);
        flow.acknowledged(&Ack { inc, ranges: vec![(7, 2, 3), (7, 9, 1)], server_ms: 0 });
        let flying: Vec<ReportId> = head.into_iter().filter(|id| !flow.is_due(*id, 1)).collect();
        assert_eq!(flying, [head[0], head[3], head[4]], "a range that runs backwards names nothing");
        assert_eq!(flow.next_resend_ms(), Some(RESEND_MS));
    }

    #[test]
    fn after_a_batch_that_nobody_acknowledged_reports_go_one_by_one_until_they_are_through() {
        let mut flow = Outflow::default();
        let (a, b) = (id(1, 1, 1), id(1, 1, 2));
        flow.sent_in_batch(a, 0);
        flow.sent_in_batch(b, 0);
        assert!(flow.may_batch(RESEND_MS - 1));
        assert!(!flow.may_batch(RESEND_MS));
        flow.sent(a, RESEND_MS);
        assert!(!flow.may_batch(RESEND_MS), "the other one has not been sent alone yet");
        let inc = Incarnation::from_bytes([1; 16]);
        flow.acknowledged(&Ack { inc, ranges: vec![(1, 2, 2)], server_ms: 0 });
        assert!(flow.may_batch(RESEND_MS));
    }
}
