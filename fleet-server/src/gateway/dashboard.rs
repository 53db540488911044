//! A connected dashboard: hears what the devices of its tenant say, and says nothing itself.

use std::net::SocketAddr;
use std::sync::Arc;

use plimsoll_protocol::TenantId;
use tokio::sync::mpsc;

use super::Shared;
use super::access::DashboardFilter;
use super::connection::{Admission, End, MAX_REFUSALS, cut};
use super::device::refuse_publish;
use super::handler::Refused;
use super::link::Link;
use super::packets::Refusal;
use super::registry::Said;
use super::session::{Connect, Delivery, Publish, Session, Subscribe};

/// Messages put into one write: at 1 KiB each, 64 KiB.
const MESSAGES_A_WRITE: usize = 64;

/// A dashboard's side of its connection.
pub(super) struct Dashboard {
    tenant: TenantId,
    /// Asked about again whenever the dashboard sends something, at the latest its next ping.
    token: String,
    peer: SocketAddr,
    seat: Seated,
    filters: Vec<(String, DashboardFilter)>,
    mailbox: mpsc::Receiver<Arc<Said>>,
    refusals: u32,
}

/// Frees the seat however the connection ends.
struct Seated {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for Seated {
    fn drop(&mut self) {
        self.shared.counters.dashboards_now.less_one();
        self.shared.registry.free_dashboard(self.number);
    }
}

impl Dashboard {
    /// Checks the token, which comes as the password, and seats the dashboard.
    pub(super) fn admit(shared: &Arc<Shared>, connect: &Connect, peer: SocketAddr) -> Admission<Self> {
        let refuse = |refusal, what: &str| (refusal, Refused { peer, identity: None, what: what.to_owned() });
        let token = connect.password.as_deref().and_then(|p| std::str::from_utf8(p).ok());
        let Some(tenant) = token.and_then(|token| shared.handler.watcher(token)) else {
            let what = "a dashboard came without a valid API token as its MQTT password";
            return Err(refuse(Refusal::Password, what));
        };
        if connect.will.is_some() {
            return Err(refuse(
                Refusal::NotAuthorized,
                "a dashboard tried to leave a will; it may only subscribe",
            ));
        }
        let seat = shared.registry.seat_dashboard(tenant.clone());
        shared.counters.dashboards_now.one();
        let seated = Seated { shared: shared.clone(), number: seat.number };
        let (filters, mailbox) = (Vec::new(), seat.mailbox);
        let token = token.unwrap_or_default().to_owned();
        Ok((Self { tenant, token, peer, seat: seated, filters, mailbox, refusals: 0 }, seat.kick))
    }

    /// Ends the connection when the token has been revoked or has expired.
    pub(super) fn check_token(&self) -> Result<(), End> {
        match self.seat.shared.handler.watcher(&self.token) {
            Some(tenant) if tenant == self.tenant => Ok(()),
            _ => Err(End::NotAuthorized),
        }
    }

    /// Refuses: a dashboard only listens.
    pub(super) fn publish(&mut self, session: &mut Session, publish: Publish) -> Result<(), End> {
        self.seat.shared.counters.publishes_refused.one();
        self.refused(format!("a dashboard tried to publish on {:?}", cut(&publish.topic)))?;
        refuse_publish(session, publish.id)
    }

    /// Grants filters inside `up`, and gives the last states that they mean.
    pub(super) async fn subscribe(&mut self, link: &mut Link, wanted: Subscribe) -> Result<(), End> {
        let (mut granted, mut with_states) = (Vec::new(), Vec::new());
        for want in wanted.filters {
            let Some(filter) = DashboardFilter::parse(&want.filter, &self.tenant) else {
                self.seat.shared.counters.filters_refused.one();
                self.refused(format!("a dashboard tried to subscribe to {:?}", cut(&want.filter)))?;
                granted.push(None);
                continue;
            };
            // Always without acknowledgement: a dashboard is shown the present, the store keeps the past.
            granted.push(Some(false));
            if want.retained {
                with_states.push(filter.clone());
            }
            self.filters.retain(|(text, _)| *text != want.filter);
            self.filters.push((want.filter, filter));
        }
        link.session.subscribed(wanted.id, &granted).map_err(End::Broken)?;
        // First the subscription, then the snapshot: nothing falls between them.
        self.register();
        let states = self.seat.shared.registry.states_for(&self.tenant, &with_states);
        for chunk in states.chunks(MESSAGES_A_WRITE) {
            chunk.iter().try_for_each(|said| self.deliver(&mut link.session, said, true))?;
            link.flush().await?;
        }
        Ok(())
    }

    pub(super) fn unsubscribe(&mut self, filters: &[String]) {
        self.filters.retain(|(text, _)| !filters.contains(text));
        self.register();
    }

    /// Waits for messages of devices. Cancel-safe: a channel.
    pub(super) async fn serve_server(&mut self, session: &mut Session) -> Result<(), End> {
        let Some(said) = self.mailbox.recv().await else { std::future::pending().await };
        self.deliver(session, &said, false)?;
        for _ in 1..MESSAGES_A_WRITE {
            let Ok(said) = self.mailbox.try_recv() else { break };
            self.deliver(session, &said, false)?;
        }
        Ok(())
    }

    fn register(&self) {
        let filters = self.filters.iter().map(|(_, filter)| filter.clone()).collect();
        self.seat.shared.registry.set_filters(self.seat.number, filters);
    }

    fn deliver(&self, session: &mut Session, said: &Said, retain: bool) -> Result<(), End> {
        let message = Delivery { topic: &said.topic, payload: &said.payload, acknowledged: false, retain };
        if session.deliver(&message).map_err(End::Broken)? {
            self.seat.shared.counters.sent_to_dashboards.one();
        }
        Ok(())
    }

    fn refused(&mut self, what: String) -> Result<(), End> {
        let refused = Refused { peer: self.peer, identity: None, what };
        self.seat.shared.refused(refused);
        self.refusals += 1;
        if self.refusals >= MAX_REFUSALS { Err(End::NotAuthorized) } else { Ok(()) }
    }
}
