//! Hearing of changes: the database tells every process, whoever makes them (`NOTIFY`, sent by a trigger).

use std::sync::Arc;
use std::time::Duration;

use keylatch_filters::contract::KeyId;
use sqlx::Executor;
use sqlx::postgres::PgListener;
use tokio::time::timeout;

use super::pools::Pools;
use crate::store::{News, OnChange};

/// After so long without news it is asked whether anybody is there.
const SILENCE_MAX: Duration = Duration::from_secs(5);
const CHANNEL: &str = "keylatch_bindings";
const SETTINGS: &str = "keylatch_settings";
const MAIL: &str = "keylatch_mail";

/// Listens for as long as the process lives. While the connection is away, news is lost: once it is back,
/// everything that is remembered counts as old.
pub async fn listen(pools: Arc<Pools>, on_change: OnChange) {
    loop {
        if let Err(error) = listen_once(&pools, &on_change).await {
            tracing::warn!(%error, "changes made by other processes are not heard of at once; trying again");
        }
        on_change(News::Lost);
        // A server that is away is not asked without a pause.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn listen_once(pools: &Pools, on_change: &OnChange) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let patience = pools.timeout() * 5;
    let mut listener = timeout(patience, PgListener::connect_with(&pools.get())).await??;
    // Whoever listens anew must know that he does.
    listener.eager_reconnect(false);
    timeout(patience, listener.listen_all([CHANNEL, SETTINGS, MAIL])).await??;
    on_change(News::Lost);
    // `None`: the connection was lost. It would be made again silently; we want to know.
    loop {
        let said = match timeout(SILENCE_MAX, listener.try_recv()).await {
            Ok(Ok(Some(said))) => said,
            Ok(Ok(None)) => return Ok(()),
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => {
                // Nothing to say, or nobody there?
                timeout(patience, (&mut listener).execute("SELECT 1")).await??;
                continue;
            }
        };
        match (said.channel(), parse(said.payload())) {
            (SETTINGS, _) => on_change(News::Settings),
            (MAIL, _) => on_change(News::Mail),
            (_, Some((id, version))) => on_change(News::Changed(id, version)),
            (_, None) => tracing::warn!("somebody sends malformed notifications on {CHANNEL}"),
        }
    }
}

/// `hex version`
fn parse(payload: &str) -> Option<(KeyId, i64)> {
    let (hex, version) = payload.split_once(' ')?;
    Some((KeyId::from_hex(hex)?, version.parse().ok()?))
}
