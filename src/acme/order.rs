//! The conversation with the CA: the account, and one certificate.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, ChallengeType, ExternalAccountKey, Identifier, NewAccount, NewOrder, OrderStatus,
    RetryPolicy,
};
use keylatch_filters::contract::Resolve;

use super::Acme;
use super::client::Client;
use crate::config::Files;
use crate::config::model::{Acme as Config, Challenge};

/// How long the CA may take over each step.
const PATIENCE: RetryPolicy = RetryPolicy::new().timeout(Duration::from_secs(120));
/// An account lasts for as long as it is used.
const ACCOUNT_TIME: Duration = Duration::from_secs(5 * 365 * 86_400);

fn plainly(error: instant_acme::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// The account that is kept, or one that is made.
pub async fn account(acme: &Acme, config: &Config, files: &Files) -> Result<Account, String> {
    let ca = config.ca_file.as_ref().map(|path| files.file(path)).transpose().map_err(|invalid| invalid.message)?;
    let client = || Client::new(config.allow_private, ca.clone());
    let name = format!("acme account {}", config.directory);
    let kept = acme.store.desk().fetch(&name).await.map_err(|e| format!("the store is away: {e}"))?;
    let known = kept
        .and_then(|sealed| acme.sealer.open(&name, &sealed))
        .and_then(|plain| serde_json::from_slice::<AccountCredentials>(&plain).ok());
    if let Some(credentials) = known {
        return Account::builder_with_http(Box::new(client()?)).from_credentials(credentials).await.map_err(plainly);
    }
    let external = match &config.external_account {
        Some(external) => {
            let key = files.secret(&external.key).map_err(|invalid| invalid.message)?;
            let key = URL_SAFE_NO_PAD.decode(key.trim_end_matches('=')).map_err(|_| "acme.external_account.key is not base64url")?;
            Some(ExternalAccountKey::new(external.key_id.clone(), &key))
        }
        None => None,
    };
    let contact: Vec<&str> = config.contact.iter().map(String::as_str).collect();
    let wanted = NewAccount { contact: &contact, terms_of_service_agreed: config.accept_terms, only_return_existing: false };
    let made = Account::builder_with_http(Box::new(client()?)).create(&wanted, config.directory.clone(), external.as_ref()).await;
    let (account, credentials) = made.map_err(plainly)?;
    let plain = serde_json::to_vec(&credentials).map_err(|e| e.to_string())?;
    acme.keep_sealed(&name, &plain, ACCOUNT_TIME).await?;
    Ok(account)
}

/// One certificate for all these names: its chain and its key, as PEM.
pub async fn certificate(acme: &Acme, account: &Account, by: Challenge, names: &[String]) -> Result<(String, String), String> {
    let identifiers: Vec<Identifier> = names.iter().cloned().map(Identifier::Dns).collect();
    let mut order = account.new_order(&NewOrder::new(&identifiers)).await.map_err(plainly)?;
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
            Challenge::TlsAlpn => acme.keep_challenge("tls", &name, answer.digest().as_ref()).await?,
            Challenge::Http => acme.keep_challenge("http", &challenge.token.clone(), answer.as_str().as_bytes()).await?,
        }
        challenge.set_ready().await.map_err(plainly)?;
    }
    let status = order.poll_ready(&PATIENCE).await.map_err(plainly)?;
    if status != OrderStatus::Ready {
        return Err(why(&mut order, status).await);
    }
    let key = order.finalize().await.map_err(plainly)?;
    let chain = order.poll_certificate(&PATIENCE).await.map_err(plainly)?;
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
