//! The ACME protocol: the account, and the order of one certificate. It neither stores certificates
//! nor decides when one is due.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use instant_acme::{
    Account, AuthorizationStatus, ChallengeType, ExternalAccountKey, Identifier, NewAccount, NewOrder, OrderStatus, RetryPolicy,
};
use keylatch_filters::contract::Resolve;

use super::client::Client;
use super::storage::StoredAccount;
use super::{Acme, Order};
use crate::config::Files;
use crate::config::model::{Acme as AcmeConfig, Challenge};

/// How long the CA may take for each step.
const STEP_POLICY: RetryPolicy = RetryPolicy::new().timeout(Duration::from_secs(120));
/// How long the CA may take to issue the certificate.
const ISSUE_POLICY: RetryPolicy = RetryPolicy::new().timeout(Duration::from_secs(300));

fn error_chain(error: instant_acme::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// Orders one certificate. Returns its chain and its key, as PEM. `retry_after_s` receives the CA's
/// `Retry-After`.
pub async fn issue(acme: &Acme, order: &Order, retry_after_s: &Arc<AtomicU64>) -> Result<(String, String), String> {
    let identifiers: Vec<Identifier> = order.wanted.names.iter().cloned().map(Identifier::Dns).collect();
    let account = account(acme, &order.config, &order.files, retry_after_s).await?;
    let begun = match account.new_order(&NewOrder::new(&identifiers)).await {
        Err(error) if is_unknown(&error) => {
            tracing::warn!(directory = order.config.directory, "the CA does not know the ACME account; creating another");
            // The new account replaces the old one only once it exists: `unauthorized` may have
            // another cause.
            let account = create_account(acme, &order.config, &order.files, retry_after_s).await?;
            account.new_order(&NewOrder::new(&identifiers)).await
        }
        begun => begun,
    };
    certificate(acme, order, begun.map_err(error_chain)?).await
}

/// Whether the account does not exist (RFC 8555, section 6.7) or was deactivated (section 7.3.6).
fn is_unknown(error: &instant_acme::Error) -> bool {
    let instant_acme::Error::Api(problem) = error else { return false };
    let kind = problem.r#type.as_deref().and_then(|kind| kind.rsplit(':').next());
    matches!(kind, Some("accountDoesNotExist" | "unauthorized"))
}

/// The stored account, or a new one.
async fn account(acme: &Acme, config: &AcmeConfig, files: &Files, retry_after_s: &Arc<AtomicU64>) -> Result<Account, String> {
    let ca = config.ca_file.as_ref().map(|path| files.file(path)).transpose().map_err(|invalid| invalid.message)?;
    let contact: Vec<&str> = config.contact.iter().map(String::as_str).collect();
    if let Some(StoredAccount { credentials, contact: registered }) = acme.storage.account(config).await? {
        let again = serde_json::to_value(&credentials).and_then(serde_json::from_value).map_err(|e| e.to_string())?;
        let account = Account::builder_with_http(Box::new(Client::new(config.allow_private, ca, retry_after_s)?))
            .from_credentials(credentials)
            .await
            .map_err(error_chain)?;
        if registered != config.contact {
            match account.update_contacts(&contact).await {
                Ok(()) => {
                    acme.storage.store_account(config, &StoredAccount { credentials: again, contact: config.contact.clone() }).await?
                }
                // The order reports it.
                Err(error) if is_unknown(&error) => {}
                Err(error) => return Err(error_chain(error)),
            }
        }
        return Ok(account);
    }
    create_account(acme, config, files, retry_after_s).await
}

/// Creates an account and stores it.
async fn create_account(acme: &Acme, config: &AcmeConfig, files: &Files, retry_after_s: &Arc<AtomicU64>) -> Result<Account, String> {
    let ca = config.ca_file.as_ref().map(|path| files.file(path)).transpose().map_err(|invalid| invalid.message)?;
    let contact: Vec<&str> = config.contact.iter().map(String::as_str).collect();
    let external = match &config.external_account {
        Some(external) => {
            let key = files.secret(&external.key).map_err(|invalid| invalid.message)?;
            let key = URL_SAFE_NO_PAD.decode(key.trim_end_matches('=')).map_err(|_| "acme.external_account.key: must be base64url")?;
            Some(ExternalAccountKey::new(external.key_id.clone(), &key))
        }
        None => None,
    };
    let wanted = NewAccount { contact: &contact, terms_of_service_agreed: config.accept_terms, only_return_existing: false };
    let made = Account::builder_with_http(Box::new(Client::new(config.allow_private, ca, retry_after_s)?))
        .create(&wanted, config.directory.clone(), external.as_ref())
        .await;
    let (account, credentials) = made.map_err(error_chain)?;
    acme.storage.store_account(config, &StoredAccount { credentials, contact: config.contact.clone() }).await?;
    Ok(account)
}

/// Completes the challenges and downloads the certificate.
async fn certificate(acme: &Acme, wanted: &Order, mut order: instant_acme::Order) -> Result<(String, String), String> {
    let (by, for_order) = (wanted.config.challenge, wanted.wanted.storage_name());
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization.map_err(error_chain)?;
        match authorization.status {
            AuthorizationStatus::Pending => {}
            AuthorizationStatus::Valid => continue,
            other => return Err(format!("the CA reports the authorization of {} as {other:?}", authorization.identifier())),
        }
        let kind = match by {
            Challenge::TlsAlpn => ChallengeType::TlsAlpn01,
            Challenge::Http => ChallengeType::Http01,
        };
        let name = authorization.identifier().to_string();
        let Some(mut challenge) = authorization.challenge(kind) else {
            return Err(format!("the CA does not offer the challenge {by:?} for {name}"));
        };
        let answer = challenge.key_authorization();
        match by {
            Challenge::TlsAlpn => acme.challenges.keep(&for_order, "tls", &name, answer.digest().as_ref()).await?,
            Challenge::Http => acme.challenges.keep(&for_order, "http", &challenge.token.clone(), answer.as_str().as_bytes()).await?,
        }
        challenge.set_ready().await.map_err(error_chain)?;
    }
    let status = order.poll_ready(&STEP_POLICY).await.map_err(error_chain)?;
    if status != OrderStatus::Ready {
        return Err(challenge_errors(&mut order, status).await);
    }
    let key = order.finalize().await.map_err(error_chain)?;
    let chain = order.poll_certificate(&ISSUE_POLICY).await.map_err(error_chain)?;
    Ok((chain, key))
}

/// The errors that the CA reports for the challenges.
async fn challenge_errors(order: &mut instant_acme::Order, status: OrderStatus) -> String {
    let mut errors = vec![format!("the order is {status:?}")];
    let mut authorizations = order.authorizations();
    while let Some(Ok(authorization)) = authorizations.next().await {
        let name = authorization.identifier().to_string();
        errors.extend(authorization.challenges.iter().filter_map(|one| one.error.as_ref()).map(|problem| format!("{name}: {problem}")));
    }
    errors.join("; ")
}
