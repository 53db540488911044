//! The driver's side of the certificate's keeper: what it did is used and told, what the link met is handed on.

use std::sync::Arc;

use plimsoll_protocol::Digest;
use plimsoll_protocol::wire::v1::Severity;
use rustls::ClientConfig;
use tokio::sync::{mpsc, watch};

use super::{Driver, MAILBOX};
use crate::control::CertificateStatus;
use crate::fetch::HttpSource;
use crate::identity::{Identity, Keeper, News, Validity};
use crate::tls::Trouble;

/// The keeper's ends, while it runs.
#[derive(Debug, Default)]
pub(super) struct Certificate {
    news: Option<mpsc::Receiver<News>>,
    troubles: Option<mpsc::Sender<Trouble>>,
    /// Why the last try failed, until one succeeds.
    problem: Option<String>,
}

impl Certificate {
    /// What the keeper did next; pends while there is none. Cancelling it loses nothing.
    pub(super) async fn news(&mut self) -> Option<News> {
        match &mut self.news {
            Some(news) => news.recv().await,
            None => std::future::pending().await,
        }
    }
}

/// Fixed for a device: its place in every spread.
pub(super) fn device_seed(identity: &Identity) -> u64 {
    let digest = Digest::of(identity.who.to_string().as_bytes());
    digest.as_bytes().first_chunk::<8>().map_or(0, |b| u64::from_le_bytes(*b))
}

impl Driver {
    /// Starts the keeper; gives back what the link is to connect with.
    pub(super) fn keep_certificate(
        &mut self,
        identity: Identity,
        tls: ClientConfig,
    ) -> watch::Receiver<Arc<ClientConfig>> {
        let (link, current) = watch::channel(Arc::new(tls));
        let (send_news, news) = mpsc::channel(MAILBOX);
        let (troubles, hear_troubles) = mpsc::channel(MAILBOX);
        let keeper = Keeper {
            state: self.settings.state_dir.clone(),
            seed: device_seed(&identity),
            identity,
            trust: self.trust.clone(),
            clock: self.clock.clone(),
            link,
        };
        tokio::spawn(keeper.run(hear_troubles, send_news));
        self.certificate = Certificate { news: Some(news), troubles: Some(troubles), problem: None };
        current
    }

    /// A connection failed for a certificate. A full mailbox means that the keeper knows.
    pub(super) fn on_trouble(&self, trouble: Option<Trouble>) {
        if let (Some(trouble), Some(keeper)) = (trouble, &self.certificate.troubles) {
            let _ = keeper.try_send(trouble);
        }
    }

    pub(super) fn on_certificate(&mut self, news: News) {
        match news {
            News::Changed { identity, tls, text } => {
                tracing::info!(certificate.change = text, "certificate or authorities changed");
                let source = HttpSource::new(
                    &identity.https,
                    ClientConfig::clone(&tls),
                    self.settings.bandwidth,
                    self.clock.clone(),
                );
                match source {
                    Ok(source) => self.source = Some(source),
                    Err(error) => tracing::error!(error = crate::causes(&error), "no HTTPS client"),
                }
                self.identity = Some(*identity);
                self.certificate.problem = None;
                self.report_event(Severity::Info, "certificate.changed", text, None, None);
            }
            News::Issued(issued) => self.raise_floor(issued),
            News::Failed { code, text, first } => {
                tracing::warn!(certificate.problem = text, "certificate or authorities not renewed");
                if first {
                    self.report_event(Severity::Warning, code, text.clone(), None, None);
                }
                self.certificate.problem = Some(text);
            }
        }
    }

    pub(super) fn certificate_status(&self) -> Option<CertificateStatus> {
        let identity = self.identity.as_ref()?;
        let validity = Validity::of(&identity.certificate_pem).ok()?;
        Some(CertificateStatus {
            until_s: validity.until_s,
            renews_s: validity.renew_s(device_seed(identity)),
            words: validity.words(self.clock.now_s()),
            problem: self.certificate.problem.clone(),
        })
    }
}
