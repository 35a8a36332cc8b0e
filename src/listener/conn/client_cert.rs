//! Checks for each request whether the client certificate of its connection is still valid. The
//! handshake itself is in `tls`.

use std::sync::Arc;
use std::time::SystemTime;

use keylatch_filters::contract::ClientCertificate;
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;

use crate::listener::policy::ClientCertPolicy;
use crate::util::time::millis;

/// The certificates of the handshake, and the policy that accepted them last. A connection may last
/// for days, in which policies change, revocation lists are renewed, and certificates expire.
#[derive(Debug, Default)]
pub struct ClientCertCheck {
    shown: Vec<CertificateDer<'static>>,
    not_after_s: Option<i64>,
    accepted_by: Mutex<Option<Arc<ClientCertPolicy>>>,
}

impl ClientCertCheck {
    /// `shown` was accepted by `rules`.
    pub fn new(shown: Vec<CertificateDer<'static>>, certificate: Option<&ClientCertificate>, rules: Option<Arc<ClientCertPolicy>>) -> Self {
        Self { shown, not_after_s: certificate.map(|one| one.not_after_s), accepted_by: Mutex::new(rules) }
    }

    /// Whether these rules accept the connection now. Verifies again only when the rules have
    /// changed.
    pub fn is_valid(&self, rules: Option<&Arc<ClientCertPolicy>>, now: SystemTime) -> bool {
        if self.not_after_s.is_some_and(|end_s| millis(now) / 1000 > end_s) {
            return false;
        }
        let Some(rules) = rules else { return true };
        let mut accepted_by = self.accepted_by.lock();
        if accepted_by.as_ref().is_some_and(|accepted_by| Arc::ptr_eq(accepted_by, rules)) {
            return true;
        }
        let admitted = rules.admit(&self.shown);
        if admitted {
            *accepted_by = Some(Arc::clone(rules));
        }
        admitted
    }
}
