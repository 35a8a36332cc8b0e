//! Creates the first admin account at the start, if the store has none. It never changes an existing account.

use std::sync::Arc;
use std::time::Duration;

use crate::admin::Api;
use crate::operator::{Fault, accounts};
use crate::telemetry::logs;

/// The environment variable with the first account's password. Without it a random password is generated.
const FIRST_PASSWORD: &str = "KEYLATCH_ADMIN_PASSWORD";

/// Creates the first account, if there is no account.
pub async fn create(api: Arc<Api>) {
    let given = std::env::var(FIRST_PASSWORD).ok().filter(|password| !password.is_empty());
    let made = loop {
        match accounts::create_first(&api.store, api.authenticator.passwords(), given.as_deref()).await {
            // The store is unavailable. The account is needed as soon as it is back, so this retries without end.
            Err(Fault::Unavailable(_)) => tokio::time::sleep(Duration::from_secs(5)).await,
            made => break made,
        }
    };
    match made {
        Ok(None) => {}
        Ok(Some(_)) if given.is_some() => {
            tracing::info!("the first account `{}` was created with the password of {FIRST_PASSWORD}", accounts::FIRST)
        }
        // Printed and not logged: the password must not reach a log collector.
        Ok(Some(password)) => logs::print(&format!(
            "The first account of the admin API is `{}`. Its password is shown only once and must be changed at the first sign-in:\n{password}",
            accounts::FIRST
        )),
        Err(fault) => tracing::error!("the first account cannot be created, so no sign-in is possible: {fault}"),
    }
}
