//! Whether the servers of upstreams can be reached from here. It connects, and sends nothing.

use super::Findings;
use crate::config::Snapshot;

pub async fn look(snapshot: &Snapshot, found: &mut Findings) {
    for (index, upstream) in snapshot.upstreams.iter().enumerate() {
        for (server, error) in upstream.unreachable().await {
            let what = format!("no connection to {server} of upstream `{}`: {error}", upstream.name);
            found.warn(format!("upstreams[{index}].servers"), what, "start the server, or correct its address");
        }
    }
}
