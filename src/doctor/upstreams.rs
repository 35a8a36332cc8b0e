//! Whether the servers of upstreams can be reached from here. It connects, and sends nothing.

use super::{Findings, Level};
use crate::compile::Snapshot;

pub async fn look(snapshot: &Snapshot, found: &mut Findings) {
    for (index, upstream) in snapshot.upstreams.iter().enumerate() {
        for (server, error) in upstream.unreachable().await {
            let place = format!("upstreams[{index}].servers");
            let what = match &error {
                Some(error) => format!("no connection to {server} of upstream `{}`: {error}", upstream.name),
                None => format!("{server} of upstream `{}` has no address here", upstream.name),
            };
            // A name of one word may be known in a network of containers, and not where this is asked.
            let level = if error.is_none() && !server.contains('.') { Level::Note } else { Level::Warn };
            found.add(level, place, what, "start the server, or correct its address");
        }
    }
}
