//! Keeps the device's certificate and the fleet's authorities current: the one writer of `device.crt` and `ca.pem`
//! after the enrolment.
//!
//! Persist, then switch: the new file is durable before anybody uses it, the key stays the same, so a power cut at
//! any instant leaves a certificate that fits its key. The running models notice nothing; the link is made anew.
//!
//! Time alone does not decide: a device whose clock stands in 1970 learns from the server's refusal that its
//! certificate has ended, and from its own that the server has another authority now.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use plimsoll_agent_core::retry;
use plimsoll_protocol::UnixSeconds;
use rustls::ClientConfig;
use tokio::sync::{mpsc, watch};

use super::authorities::learn;
use super::{Identity, Validity, renew};
use crate::clock::{Clock, random_u64};
use crate::fetch::Trust;
use crate::tls::{self, Trouble};

/// Longest sleep: clocks jump, so what is due is looked at again every hour.
const LOOK: Duration = Duration::from_secs(3600);
/// Between two looks at the published authorities while all is well: as often as the agent refreshes its trust. A
/// rotation that leaves a day between publishing and switching finds every device that is on prepared.
const AUTHORITIES_EVERY_MS: u64 = 6 * 3600 * 1000;
/// First ceiling of the random delay after a failure; it doubles.
const BASE_MS: u64 = 1_000;
/// Last ceiling: a certificate of 90 days has 22 left when it becomes due, which are 500 tries of an hour.
const CAP_MS: u64 = 3600 * 1000;
/// Authorities that were just learned are not asked for again sooner: a server that is refused all the same has
/// another cause.
const AFTER_LEARNING_MS: u64 = 30_000;

/// What the keeper did.
#[derive(Debug)]
pub enum News {
    /// Use this from now on; it is on the disk.
    Changed {
        /// The identity.
        identity: Box<Identity>,
        /// Its TLS.
        tls: Arc<ClientConfig>,
        /// For people.
        text: String,
    },
    /// Newest time that verified metadata proves.
    Issued(UnixSeconds),
    /// A try failed; the next follows by itself.
    Failed {
        /// Code of the event.
        code: &'static str,
        /// What was tried, why it failed.
        text: String,
        /// The first of its series.
        first: bool,
    },
}

/// One thing that may have to be tried again.
#[derive(Debug, Default)]
struct Task {
    wanted: bool,
    failures: u32,
    not_before_ms: u64,
}

impl Task {
    fn is_due(&self, mono_ms: u64) -> bool {
        self.wanted && mono_ms >= self.not_before_ms
    }

    fn failed(&mut self, mono_ms: u64, asked: Option<Duration>) {
        let ceiling = (BASE_MS << self.failures.min(20)).min(CAP_MS);
        let asked = asked.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX).min(CAP_MS));
        self.wanted = true;
        self.failures += 1;
        self.not_before_ms = mono_ms + retry::uniform_ms(ceiling, random_u64()).max(asked);
    }

    fn done(&mut self, mono_ms: u64, pause_ms: u64) {
        *self = Self { wanted: false, failures: 0, not_before_ms: mono_ms + pause_ms };
    }
}

/// See the top of this file.
pub struct Keeper {
    /// Where the files lie.
    pub state: PathBuf,
    /// As it is on the disk.
    pub identity: Identity,
    /// For the owner's word about authorities.
    pub trust: Trust,
    /// For due dates.
    pub clock: Clock,
    /// Fixed for a device.
    pub seed: u64,
    /// What the link connects with.
    pub link: watch::Sender<Arc<ClientConfig>>,
}

impl Keeper {
    /// Runs until the driver drops its ends.
    pub async fn run(mut self, mut troubles: mpsc::Receiver<Trouble>, news: mpsc::Sender<News>) {
        let (mut renewal, mut authorities) = (Task::default(), Task::default());
        let mut server_known = true;
        let mut look_ms = retry::uniform_ms(AUTHORITIES_EVERY_MS, self.seed);
        loop {
            let now_ms = self.clock.mono_ms();
            renewal.wanted |= self.is_due();
            if now_ms >= look_ms {
                authorities.wanted = true;
                look_ms = now_ms + AUTHORITIES_EVERY_MS;
            }
            let told = if authorities.is_due(now_ms) {
                self.learn(&mut authorities, &mut server_known).await
            } else if renewal.is_due(now_ms) {
                self.renew(&mut renewal, &mut authorities, &mut server_known).await
            } else {
                let pause = self.pause(now_ms, look_ms, &renewal, &authorities);
                match tokio::time::timeout(pause, troubles.recv()).await {
                    Ok(None) => return,
                    Ok(Some(Trouble::CertificateRefused)) => renewal.wanted = true,
                    Ok(Some(Trouble::ServerUnknown)) => (authorities.wanted, server_known) = (true, false),
                    Err(_) => {}
                }
                continue;
            };
            for news_item in told {
                if news.send(news_item).await.is_err() {
                    return;
                }
            }
        }
    }

    fn is_due(&self) -> bool {
        let validity = Validity::of(&self.identity.certificate_pem);
        validity.is_ok_and(|v| self.clock.now_s() >= v.renew_s(self.seed))
    }

    fn pause(&self, now_ms: u64, look_ms: u64, renewal: &Task, authorities: &Task) -> Duration {
        let until = |task: &Task| task.wanted.then_some(task.not_before_ms);
        let due = Validity::of(&self.identity.certificate_pem).ok().map(|v| {
            let seconds = v.renew_s(self.seed).saturating_sub(self.clock.now_s());
            // A renewal that is due already waits for its task's turn.
            now_ms.saturating_add(u64::try_from(seconds).unwrap_or(0).saturating_mul(1000)).max(now_ms + 1000)
        });
        let next = [until(renewal), until(authorities), due, Some(look_ms)].into_iter().flatten().min();
        Duration::from_millis(next.unwrap_or(u64::MAX).saturating_sub(now_ms)).min(LOOK)
    }

    async fn renew(&mut self, task: &mut Task, authorities: &mut Task, server_known: &mut bool) -> Vec<News> {
        let renewed = renew::renew(&self.identity, &self.clock).await;
        let now_ms = self.clock.mono_ms();
        let stored = renewed.and_then(|next| {
            next.store_certificate(&self.state).map(|()| next).map_err(|e| renew::RenewError {
                text: crate::causes(&e),
                retry_after: None,
                trouble: None,
            })
        });
        match stored {
            Ok(next) => {
                let validity = Validity::of(&next.certificate_pem).ok();
                task.done(now_ms, validity.map_or(CAP_MS, after_renewal_ms));
                let words = validity.map(|v| v.words(self.clock.now_s())).unwrap_or_default();
                let text = format!("the certificate was renewed: {words}");
                self.change(next, text)
            }
            Err(error) => {
                if error.trouble == Some(Trouble::ServerUnknown) {
                    (authorities.wanted, *server_known) = (true, false);
                }
                task.failed(now_ms, error.retry_after);
                let code = "certificate.not_renewed";
                vec![News::Failed { code, text: error.text, first: task.failures == 1 }]
            }
        }
    }

    async fn learn(&mut self, task: &mut Task, server_known: &mut bool) -> Vec<News> {
        let learned = learn(&self.identity, &self.trust, &self.clock, *server_known).await;
        let now_ms = self.clock.mono_ms();
        let failed = |task: &mut Task, text: String| {
            task.failed(now_ms, None);
            vec![News::Failed { code: "authority.unknown", text, first: task.failures == 1 }]
        };
        let learned = match learned {
            Ok(learned) => learned,
            Err(error) => {
                if error.code == tls::SERVER_UNKNOWN {
                    *server_known = false;
                }
                let text = format!("the fleet's authorities could not be learned: {error}");
                return failed(task, text);
            }
        };
        let mut told: Vec<News> = learned.issued.map(News::Issued).into_iter().collect();
        match learned.new_pem {
            Some(ca_pem) => {
                let next = Identity { ca_pem, ..self.identity.clone() };
                if let Err(error) = next.store_authorities(&self.state) {
                    told.extend(failed(task, crate::causes(&error)));
                    return told;
                }
                task.done(now_ms, AFTER_LEARNING_MS);
                *server_known = true;
                told.extend(self.change(next, "the owner signed for other authorities of the fleet".into()));
            }
            None if *server_known => task.done(now_ms, AFTER_LEARNING_MS),
            None => {
                let text = "the server's certificate is of an authority that the fleet's owner did not sign for \
                            (`plimsoll trust publish-ca`)";
                // The next failure of the link asks again; until then this may have been a passing stranger.
                *server_known = true;
                let tell = failed(task, text.into());
                task.wanted = false;
                told.extend(tell);
            }
        }
        told
    }

    /// What is on the disk is used from here on.
    fn change(&mut self, next: Identity, text: String) -> Vec<News> {
        self.identity = next;
        match tls::mutual(&self.identity, &self.clock) {
            Ok(config) => {
                let tls = Arc::new(config);
                self.link.send_replace(Arc::clone(&tls));
                vec![News::Changed { identity: Box::new(self.identity.clone()), tls, text }]
            }
            Err(error) => {
                vec![News::Failed { code: "identity.lost", text: crate::causes(&error), first: true }]
            }
        }
    }
}

/// How soon a renewed certificate may be renewed again: a hundredth of its life, an hour of 90 days. It bounds what a
/// device does whose clock is years ahead, and to which every certificate looks old.
fn after_renewal_ms(validity: Validity) -> u64 {
    let life_s = u64::try_from(validity.until_s.saturating_sub(validity.from_s)).unwrap_or(0);
    life_s.saturating_mul(10).clamp(1_000, CAP_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_that_fails_waits_longer_and_one_that_succeeds_does_not_repeat_at_once() {
        let mut task = Task { wanted: true, ..Task::default() };
        assert!(task.is_due(0));
        let mut longest = 0;
        for n in 0..40_u64 {
            let now = n * 10 * CAP_MS;
            task.failed(now, None);
            assert!(task.not_before_ms <= now + CAP_MS && task.wanted);
            longest = longest.max(task.not_before_ms - now);
        }
        assert!(longest > CAP_MS / 2, "{longest}");
        task.failed(0, Some(Duration::from_secs(90)));
        assert!(!task.is_due(89_999), "what the server asked for is kept to");
        task.done(1_000, 500);
        task.wanted = true;
        assert!(!task.is_due(1_499) && task.is_due(1_500));
    }

    #[test]
    fn a_short_life_leaves_time_for_its_next_renewal_and_a_long_one_is_not_renewed_all_day() {
        let pause = |life_s| after_renewal_ms(Validity { from_s: 0, until_s: life_s });
        assert_eq!([pause(10), pause(3_600), pause(90 * 86_400), pause(-5)], [1_000, 36_000, CAP_MS, 1_000]);
    }
}
