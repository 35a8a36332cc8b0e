//! Checks that the servers of upstreams accept connections from this machine. It sends nothing.

use super::{Findings, Level};
use crate::compile::Snapshot;

pub async fn check(snapshot: &Snapshot, found: &mut Findings) {
    for (index, upstream) in snapshot.upstreams.iter().enumerate() {
        for (server, error) in upstream.unreachable().await {
            let place = format!("upstreams[{index}].servers");
            let what = match &error {
                Some(error) => format!("cannot connect to {server} of upstream `{}`: {error}", upstream.name),
                None => format!("{server} of upstream `{}` cannot be resolved on this machine", upstream.name),
            };
            // A name without a dot may exist only in the network of the containers.
            let level = if error.is_none() && !server.contains('.') { Level::Note } else { Level::Warn };
            found.add(level, place, what, "start the server, or correct its address");
        }
    }
}
