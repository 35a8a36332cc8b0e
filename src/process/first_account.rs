//! The first account: where nobody may sign in yet, somebody may from now on.

use std::sync::Arc;
use std::time::Duration;

use crate::admin::Api;
use crate::operator::{Fault, accounts};
use crate::telemetry::logs;

/// The first account's password, if it is not to be made up.
const FIRST_PASSWORD: &str = "KEYLATCH_ADMIN_PASSWORD";

/// Makes it, if there is none.
pub async fn make(api: Arc<Api>) {
    let given = std::env::var(FIRST_PASSWORD).ok().filter(|password| !password.is_empty());
    let made = loop {
        match accounts::create_first(&api.store, api.authenticator.passwords(), given.as_deref()).await {
            // The store will be back, and then somebody wants in.
            Err(Fault::Unavailable(_)) => tokio::time::sleep(Duration::from_secs(5)).await,
            made => break made,
        }
    };
    match made {
        Ok(None) => {}
        Ok(Some(_)) if given.is_some() => {
            tracing::info!("the account `{}` was made, with the password of {FIRST_PASSWORD}", accounts::FIRST)
        }
        // Not by the log: this is for whoever starts it, and for nobody else.
        Ok(Some(password)) => logs::print(&format!(
            "The admin API's first account is `{}`, and its password, which is shown this once and must be changed:\n{password}",
            accounts::FIRST
        )),
        Err(fault) => tracing::error!("no first account can be made, so nobody can sign in: {fault}"),
    }
}
