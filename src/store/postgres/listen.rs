//! Hearing of changes: the database tells every process, whoever makes them (`NOTIFY`, sent by a trigger).

use std::time::Duration;

use keylatch_filters::contract::KeyId;
use sqlx::postgres::{PgListener, PgPool};

use crate::store::{News, OnChange};

const CHANNEL: &str = "keylatch_bindings";

/// Listens for as long as the process lives. While the connection is away, news is lost: once it is back,
/// everything that is remembered counts as old.
pub async fn listen(pool: PgPool, on_change: OnChange) {
    loop {
        if let Err(error) = listen_once(&pool, &on_change).await {
            tracing::warn!(%error, "changes made by other processes are not heard of at once; trying again");
        }
        on_change(News::Lost);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn listen_once(pool: &PgPool, on_change: &OnChange) -> sqlx::Result<()> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen(CHANNEL).await?;
    on_change(News::Lost);
    // `None`: the connection was lost. It would be made again silently; we want to know.
    while let Some(said) = listener.try_recv().await? {
        match parse(said.payload()) {
            Some((id, version)) => on_change(News::Changed(id, version)),
            None => tracing::warn!("somebody sends malformed notifications on {CHANNEL}"),
        }
    }
    Ok(())
}

/// `hex version`
fn parse(payload: &str) -> Option<(KeyId, i64)> {
    let (hex, version) = payload.split_once(' ')?;
    Some((KeyId::from_hex(hex)?, version.parse().ok()?))
}
