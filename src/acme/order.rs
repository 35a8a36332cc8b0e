//! The conversation with the CA: the account, and one certificate.

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
use super::storage::KeptAccount;
use super::{Acme, Order};
use crate::config::Files;
use crate::config::model::{Acme as Config, Challenge};

/// How long the CA may take over each step.
const PATIENCE: RetryPolicy = RetryPolicy::new().timeout(Duration::from_secs(120));
/// How long it may take until it has made the certificate.
const MADE_PATIENCE: RetryPolicy = RetryPolicy::new().timeout(Duration::from_secs(300));

fn plainly(error: instant_acme::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// One certificate: its chain and its key, as PEM. `asked`: for how long the CA has asked not to be asked.
pub async fn made(acme: &Acme, order: &Order, asked: &Arc<AtomicU64>) -> Result<(String, String), String> {
    let identifiers: Vec<Identifier> = order.wanted.names.iter().cloned().map(Identifier::Dns).collect();
    let account = account(acme, &order.config, &order.files, asked).await?;
    let begun = match account.new_order(&NewOrder::new(&identifiers)).await {
        Err(error) if is_unknown(&error) => {
            tracing::warn!(directory = order.config.directory, "the CA knows the account no more: another is made");
            // It takes the other's place once it is there: what CAs call unauthorized may be something else.
            let account = fresh_account(acme, &order.config, &order.files, asked).await?;
            account.new_order(&NewOrder::new(&identifiers)).await
        }
        begun => begun,
    };
    certificate(acme, order, begun.map_err(plainly)?).await
}

/// Whether the account is not there any more (RFC 8555, section 6.7), or was deactivated (section 7.3.6).
fn is_unknown(error: &instant_acme::Error) -> bool {
    let instant_acme::Error::Api(problem) = error else { return false };
    let kind = problem.r#type.as_deref().and_then(|kind| kind.rsplit(':').next());
    matches!(kind, Some("accountDoesNotExist" | "unauthorized"))
}

/// The account that is kept, or one that is made.
async fn account(acme: &Acme, config: &Config, files: &Files, asked: &Arc<AtomicU64>) -> Result<Account, String> {
    let ca = config.ca_file.as_ref().map(|path| files.file(path)).transpose().map_err(|invalid| invalid.message)?;
    let contact: Vec<&str> = config.contact.iter().map(String::as_str).collect();
    if let Some(KeptAccount { credentials, contact: told }) = acme.shelf.account(config).await? {
        let again = serde_json::to_value(&credentials).and_then(serde_json::from_value).map_err(|e| e.to_string())?;
        let account = Account::builder_with_http(Box::new(Client::new(config.allow_private, ca, asked)?))
            .from_credentials(credentials)
            .await
            .map_err(plainly)?;
        if told != config.contact {
            match account.update_contacts(&contact).await {
                Ok(()) => acme.shelf.keep_account(config, &KeptAccount { credentials: again, contact: config.contact.clone() }).await?,
                // Said when something is ordered.
                Err(error) if is_unknown(&error) => {}
                Err(error) => return Err(plainly(error)),
            }
        }
        return Ok(account);
    }
    fresh_account(acme, config, files, asked).await
}

/// One that is made, and kept from now on.
async fn fresh_account(acme: &Acme, config: &Config, files: &Files, asked: &Arc<AtomicU64>) -> Result<Account, String> {
    let ca = config.ca_file.as_ref().map(|path| files.file(path)).transpose().map_err(|invalid| invalid.message)?;
    let contact: Vec<&str> = config.contact.iter().map(String::as_str).collect();
    let external = match &config.external_account {
        Some(external) => {
            let key = files.secret(&external.key).map_err(|invalid| invalid.message)?;
            let key = URL_SAFE_NO_PAD.decode(key.trim_end_matches('=')).map_err(|_| "acme.external_account.key is not base64url")?;
            Some(ExternalAccountKey::new(external.key_id.clone(), &key))
        }
        None => None,
    };
    let wanted = NewAccount { contact: &contact, terms_of_service_agreed: config.accept_terms, only_return_existing: false };
    let made = Account::builder_with_http(Box::new(Client::new(config.allow_private, ca, asked)?))
        .create(&wanted, config.directory.clone(), external.as_ref())
        .await;
    let (account, credentials) = made.map_err(plainly)?;
    acme.shelf.keep_account(config, &KeptAccount { credentials, contact: config.contact.clone() }).await?;
    Ok(account)
}

/// Shows whose the names are, and takes the certificate.
async fn certificate(acme: &Acme, wanted: &Order, mut order: instant_acme::Order) -> Result<(String, String), String> {
    let (by, for_order) = (wanted.config.challenge, wanted.wanted.certificate());
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization.map_err(plainly)?;
        match authorization.status {
            AuthorizationStatus::Pending => {}
            AuthorizationStatus::Valid => continue,
            other => return Err(format!("the CA says of {}: {other:?}", authorization.identifier())),
        }
        let kind = match by {
            Challenge::TlsAlpn => ChallengeType::TlsAlpn01,
            Challenge::Http => ChallengeType::Http01,
        };
        let name = authorization.identifier().to_string();
        let Some(mut challenge) = authorization.challenge(kind) else { return Err(format!("the CA does not offer {by:?} for {name}")) };
        let answer = challenge.key_authorization();
        match by {
            Challenge::TlsAlpn => acme.challenges.keep(&for_order, "tls", &name, answer.digest().as_ref()).await?,
            Challenge::Http => acme.challenges.keep(&for_order, "http", &challenge.token.clone(), answer.as_str().as_bytes()).await?,
        }
        challenge.set_ready().await.map_err(plainly)?;
    }
    let status = order.poll_ready(&PATIENCE).await.map_err(plainly)?;
    if status != OrderStatus::Ready {
        return Err(why(&mut order, status).await);
    }
    let key = order.finalize().await.map_err(plainly)?;
    let chain = order.poll_certificate(&MADE_PATIENCE).await.map_err(plainly)?;
    Ok((chain, key))
}

/// What the CA says was wrong with the challenges.
async fn why(order: &mut instant_acme::Order, status: OrderStatus) -> String {
    let mut said = vec![format!("the order is {status:?}")];
    let mut authorizations = order.authorizations();
    while let Some(Ok(authorization)) = authorizations.next().await {
        let name = authorization.identifier().to_string();
        said.extend(authorization.challenges.iter().filter_map(|one| one.error.as_ref()).map(|problem| format!("{name}: {problem}")));
    }
    said.join("; ")
}
