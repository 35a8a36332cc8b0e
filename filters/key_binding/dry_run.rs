//! The dry run of `key_binding`, for `explain`: the verdict on a request. It changes no binding and counts nothing.

use std::sync::Arc;

use super::{Confirm, KeyBinding, Verdict};
use crate::contract::{Binding, Key, RequestCx, Rule, StoreError, Trace};
use crate::limiting::client_network;

impl KeyBinding {
    /// The verdict that the key would get. The explanation goes into the [`Trace`].
    pub(super) async fn dry_run_verdict(&self, cx: &mut RequestCx<'_>, key: &Key) -> Result<Verdict, StoreError> {
        let (client, now) = (cx.client(), cx.now.wall);
        let (verdict, why) = match self.stored(cx, key).await? {
            Some(stored) => {
                let mut binding = (*stored).clone();
                let may_join = binding.roaming.is_some() && !binding.admits(client, now) || self.adds_family(&binding, client, now);
                let joins = may_join && binding.roam(self.network(client), now);
                let joins = if joins { format!("; {} would be added", self.network(client)) } else { String::new() };
                let why = format!("{}{joins}", described(&stored));
                let binding = Arc::new(binding);
                (if binding.admits(client, now) { Verdict::Admitted(binding) } else { Verdict::Refused(binding) }, why)
            }
            None => self.first_use(cx, key),
        };
        if let Some(trace) = cx.facts.get_mut::<Trace>() {
            trace.0.extend([format!("key {} ({})", key.id, key.hint), why]);
        }
        Ok(verdict)
    }

    /// The binding of the key, also under an earlier id.
    async fn stored(&self, cx: &RequestCx<'_>, key: &Key) -> Result<Option<Arc<Binding>>, StoreError> {
        let earlier = match self.reader.read(cx.request) {
            Ok(Some(text)) => self.hasher.earlier_ids(&text),
            _ => Vec::new(),
        };
        for id in std::iter::once(key.id).chain(earlier) {
            if let Some(binding) = self.bindings.authoritative(id, None).await? {
                return Ok(Some(binding));
            }
        }
        Ok(None)
    }

    /// The verdict on a key that is not bound.
    fn first_use(&self, cx: &RequestCx<'_>, key: &Key) -> (Verdict, String) {
        let (client, now) = (cx.client(), cx.now.wall);
        if !self.config.enrols(now) {
            return (Verdict::Unknown, "not bound; `enrol` does not allow first uses".to_owned());
        }
        let brought = self.new_keys.peek(self.new_keys.slot(&client_network(client)), self.new_keys_quota, cx.now.instant);
        if !brought.allowed {
            return (Verdict::TooMany(brought.retry_in), "not bound; the client has exceeded `new_keys_per_client`".to_owned());
        }
        let (network, roaming) = (self.network(client), self.roaming());
        let binding = Binding {
            id: key.id,
            rule: if roaming.is_some() { Rule::Roaming } else { Rule::Single },
            networks: vec![network],
            seen: if roaming.is_some() { vec![now] } else { Vec::new() },
            roaming,
            banned: false,
            labels: Vec::new(),
            by_first_use: true,
            confirmed: self.config.confirm == Confirm::Immediate,
            version: 0,
        };
        (Verdict::Admitted(Arc::new(binding)), format!("not bound; this use would bind it to {network}"))
    }
}

fn described(binding: &Binding) -> String {
    let networks: Vec<String> = binding.networks.iter().map(ToString::to_string).collect();
    let bound = match binding.rule {
        Rule::All => "may be used from every network".to_owned(),
        rule => format!("bound to {} ({})", networks.join(", "), rule.as_str()),
    };
    let banned = if binding.banned { "; banned" } else { "" };
    let unconfirmed = if binding.confirmed { "" } else { "; not confirmed by the upstream yet" };
    format!("{bound}{banned}{unconfirmed}")
}
