//! Whether a connection may still be served, by the certificate that was shown when it began.

use std::sync::Arc;
use std::time::SystemTime;

use keylatch_filters::contract::ClientCertificate;
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;

use crate::listener::policy::Clients;
use crate::util::time::millis;

/// What was shown, and under which rules that was found good last. A connection may last for days; rules change, lists of what
/// was revoked are renewed, and certificates end.
#[derive(Debug, Default)]
pub struct Allowed {
    shown: Vec<CertificateDer<'static>>,
    not_after_s: Option<i64>,
    judged: Mutex<Option<Arc<Clients>>>,
}

impl Allowed {
    /// `shown` was found good under `rules`.
    pub fn new(shown: Vec<CertificateDer<'static>>, certificate: Option<&ClientCertificate>, rules: Option<Arc<Clients>>) -> Self {
        Self { shown, not_after_s: certificate.map(|one| one.not_after_s), judged: Mutex::new(rules) }
    }

    /// Whether these rules let it in now. Looked at for each request; only other rules than the last ones cost more than a glance.
    pub fn still(&self, rules: Option<&Arc<Clients>>, now: SystemTime) -> bool {
        if self.not_after_s.is_some_and(|end_s| millis(now) / 1000 > end_s) {
            return false;
        }
        let Some(rules) = rules else { return true };
        let mut judged = self.judged.lock();
        if judged.as_ref().is_some_and(|judged| Arc::ptr_eq(judged, rules)) {
            return true;
        }
        let admitted = rules.admit(&self.shown);
        if admitted {
            *judged = Some(Arc::clone(rules));
        }
        admitted
    }
}
