//! # budget
//!
//! Limits what a key, subject, client or route may spend in an hour, day, week or month: in money, by the section `prices`, or
//! in tokens. A request over the budget gets 429 `insufficient_quota` and is told when the budget renews.
//!
//! ```yaml
//! budget:
//!   per: key
//!   amount: 10 USD
//!   period: month
//!   alert_at: [50, 80, 100]
//! ```
//!
//! **Reserve, then settle.** Before a request is sent, the most that it can cost is reserved: its text, and its maximum of output
//! tokens (`max_tokens` and its kin), or `output_tokens_default` if it sets none. After the answer the reservation is replaced by
//! what was used. So parallel requests cannot pass a budget together. A request that uses more than it announced, such as one with
//! images in its input, can pass it by that difference. For this, the body of a POST is read ahead (`read_ahead_bytes`); of a
//! larger body, the length counts.
//!
//! **Order.** `usage` must stand before it in the chain: it reads what a request has used. Requests with a body count. WebSockets do
//! not: if the upstream serves a realtime API, refuse its path with `rules`. Of a compressed body, its length counts as text, and
//! `output_tokens_default` as its maximum.
//!
//! **Unreported usage.** If the upstream does not report what a request has used, or the client leaves before it does, the whole
//! reservation counts as spent: an estimate knows no hidden reasoning, and a client could leave on purpose. `unreported: estimate`
//! counts the estimate of `usage` instead. With OpenAI's streams, set `ask_upstream: true` in `usage`.
//!
//! **Amounts.** `10 USD`, in the currency of `prices`; `2000000 tokens`; `500000 input tokens`; `100000 output tokens`. A model
//! without a price cannot be counted in money: `on_missing_price` refuses such requests or lets them pass.
//!
//! **Several budgets.** List the filter several times. Budgets with the same `name` are one budget, also in several routes. With
//! `label`, only requests of keys with this label count; without `per`, they share the amount.
//!
//! **Periods** are calendar periods in `time_zone`. What was spent is kept in the store and survives restarts; a crash forgets at
//! most `usage.flush_every`.
//!
//! **Replicas.** With `scope: shared`, replicas count together in Redis. If Redis is unavailable, `on_store_failure` decides:
//! requests get 503 (`deny`), pass uncounted (`allow`), or each replica goes on with the amounts of the store (`local`).

mod amount;
mod config;
mod estimate;

use std::sync::Arc;

use http::header::{self, HeaderValue};
use jiff::tz::TimeZone;
use prometheus::IntCounter;

use crate::contract::{
    Binding, CountSource, Currency, Filter, Flow, Hooks, Invalid, Ledger, LedgerEntry, LedgerState, LogCx, PriceTable, Problem, Reply,
    RequestCx, RequestModel, Reserved, Result, Site, StoreError, Trace, UsageRecord, check_name,
};
use crate::limiting::calendar::CalendarWindows;
use crate::limiting::{ClientPrefixes, CountScope, CountsFailurePolicy, SubjectReader, ceil_s, time_zone};
use crate::usage_scan::has_body;
pub use amount::{BudgetAmount, BudgetUnit};
pub use config::{BudgetConfig, BudgetPeriod, MissingPrice, Unreported};

/// The compiled filter.
pub struct Budget {
    name: String,
    /// `None`: all requests together.
    subject: Option<SubjectReader>,
    label: Option<String>,
    amount: BudgetAmount,
    windows: CalendarWindows,
    reservation_ttl: std::time::Duration,
    alert_at: Arc<[u8]>,
    output_tokens_default: u64,
    on_missing_price: MissingPrice,
    unreported: Unreported,
    prices: Arc<PriceTable>,
    ledger: Arc<dyn Ledger>,
    on_store_failure: CountsFailurePolicy,
    store_failures: IntCounter,
}

/// The reservation of one request.
#[derive(Default)]
pub struct BudgetState(Option<Reservation>);

struct Reservation {
    id: String,
    entry: LedgerEntry,
    amount: u64,
}

impl Filter for Budget {
    const NAME: &'static str = "budget";
    const HOOKS: Hooks = Hooks { request: true, log: true, ..Hooks::NONE };
    const SOURCE: &'static str = include_str!("mod.rs");
    type Config = BudgetConfig;
    type State = BudgetState;

    fn reads_model(&self) -> bool {
        self.amount.is_money()
    }

    fn reads_parameters(&self) -> bool {
        true
    }

    fn compile(config: BudgetConfig, site: &mut Site<'_>) -> Result<Self, Invalid> {
        config.check()?;
        if !site.reads_usage.get() {
            return Err(Invalid::new("the filter `usage` must stand before it in the chain: it reads what requests have used"));
        }
        if let BudgetUnit::Money(currency) = config.amount.unit {
            check_currency(currency, &site.prices).map_err(|invalid| invalid.at("amount"))?;
        }
        let terms = config.terms();
        let prefixes = ClientPrefixes::for_subjects(config.ipv4_prefix, config.ipv6_prefix, config.per.iter())?;
        let subject = config.per.map(|per| SubjectReader::compile(per, prefixes, &site.ports.hasher)).transpose();
        let (subject, words) = subject.map_err(|invalid| invalid.at("per"))?.unzip();
        let words = words.or_else(|| config.label.as_deref().map(word)).unwrap_or_default();
        let name = config.name.unwrap_or_else(|| format!("{}{words}-{}", route_of(&site.place), config.period.as_str()));
        check_name(&name, "name").map_err(|invalid| invalid.at("name"))?;
        let zone = config.time_zone.as_deref().map(time_zone).transpose().map_err(|invalid| invalid.at("time_zone"))?;
        site.declare_budget(&name, &terms).map_err(|invalid| invalid.at("name"))?;
        let on_store_failure = config.on_store_failure.unwrap_or(CountsFailurePolicy::Deny);
        Ok(Self {
            subject,
            label: config.label,
            amount: config.amount,
            windows: CalendarWindows::new(config.period.unit(), zone.filter(|zone| *zone != TimeZone::UTC)),
            reservation_ttl: config.reservation_ttl.0,
            alert_at: config.alert_at.into(),
            output_tokens_default: config.output_tokens_default,
            on_missing_price: config.on_missing_price,
            unreported: config.unreported,
            prices: Arc::clone(&site.prices),
            ledger: site.ledger(config.scope == CountScope::Shared).map_err(|invalid| invalid.at("scope"))?,
            on_store_failure,
            store_failures: site.counter(
                "budget_store_failures_total",
                "Requests for which the store of budgets was unreachable, by the action taken.",
                ("outcome", on_store_failure.as_str()),
            ),
            name,
        })
    }

    async fn request(&self, cx: &mut RequestCx<'_>, state: &mut BudgetState) -> Result<Flow> {
        if !has_body(cx.request) || !self.counts(cx) {
            return Ok(Flow::Continue);
        }
        let Some(amount) = self.most(cx) else { return Ok(self.missing_price(cx)) };
        let entry = self.entry(cx);
        if cx.is_dry_run() {
            return Ok(self.dry_run(&entry, amount, cx).await);
        }
        let mut id = new_id();
        let reserved = match self.ledger.reserve(&id, &entry, amount, cx.now).await {
            Ok(reserved) => reserved,
            Err(_) => {
                // The store may have the reservation although its answer was lost.
                self.ledger.settle(&id, &entry, 0);
                self.store_failures.inc();
                match self.on_store_failure {
                    CountsFailurePolicy::Deny => return Ok(unavailable().into()),
                    CountsFailurePolicy::Allow => {
                        cx.facts.let_through(Self::NAME);
                        return Ok(Flow::Continue);
                    }
                    CountsFailurePolicy::Local => {
                        // Another id: the settlement above belongs to the first one.
                        id = new_id();
                        match self.ledger.reserve_locally(&id, &entry, amount, cx.now).await {
                            Ok(reserved) => reserved,
                            Err(_) => return Ok(unavailable().into()),
                        }
                    }
                }
            }
        };
        if reserved.allowed || cx.shadow {
            state.0 = Some(Reservation { id, entry: entry.clone(), amount });
        }
        Ok(if reserved.allowed { Flow::Continue } else { self.refusal(&entry, &reserved, amount, cx).into() })
    }

    fn log(&self, cx: &mut LogCx<'_>, state: &mut BudgetState) {
        let Some(Reservation { id, entry, amount }) = state.0.take() else { return };
        let spent = match cx.facts.get::<UsageRecord>() {
            // It was not sent to the upstream.
            None => 0,
            Some(record) => self.spent(record).unwrap_or(amount),
        };
        self.ledger.settle(&id, &entry, spent);
    }
}

impl Budget {
    /// Whether this request counts: with `label`, only if its key has the label.
    fn counts(&self, cx: &RequestCx<'_>) -> bool {
        let Some(label) = &self.label else { return true };
        cx.facts.get::<Arc<Binding>>().is_some_and(|binding| binding.labels.contains(label))
    }

    /// The entry of the request's subject in the current period.
    fn entry(&self, cx: &RequestCx<'_>) -> LedgerEntry {
        let (period, left) = self.windows.window_at(cx.now.wall);
        let name = match &self.subject {
            Some(reader) => format!("{}:{}", self.name, reader.subject(cx)),
            None => self.name.clone(),
        };
        let end_s = cx.now.unix_s().saturating_add(ceil_s(left));
        LedgerEntry {
            name: name.into(),
            period,
            period_end_s: i64::try_from(end_s).unwrap_or(i64::MAX),
            amount_max: self.amount.value,
            reservation_ttl: self.reservation_ttl,
            alert_at: Arc::clone(&self.alert_at),
        }
    }

    /// What a request has used. `None`: it is unknown.
    fn spent(&self, record: &UsageRecord) -> Option<u64> {
        // Status 0: the client left before the answer, which the upstream may have made all the same.
        let may_have_used = (200..300).contains(&record.status) || record.status == 0;
        match record.source {
            CountSource::Reported => {}
            CountSource::Estimated if self.unreported == Unreported::Estimate => {}
            CountSource::Estimated => return None,
            CountSource::None => return if may_have_used { None } else { Some(0) },
        }
        Some(match self.amount.unit {
            BudgetUnit::Tokens => record.tokens.total(),
            BudgetUnit::InputTokens => record.tokens.input,
            BudgetUnit::OutputTokens => record.tokens.output,
            // Without a price: `on_missing_price: allow`.
            BudgetUnit::Money(_) => record.cost.map_or(0, |cost| cost.micros),
        })
    }

    fn refusal(&self, entry: &LedgerEntry, reserved: &Reserved, amount: u64, cx: &RequestCx<'_>) -> Reply {
        let renews_at = std::time::UNIX_EPOCH + std::time::Duration::from_secs(u64::try_from(entry.period_end_s).unwrap_or(0));
        let renewal = humantime::format_rfc3339_seconds(renews_at);
        let is_spent = reserved.state.spent >= entry.amount_max;
        let (reason, message) = if is_spent {
            ("spent", format!("The budget of this {} is spent. It renews at {renewal}.", self.period_name()))
        } else {
            (
                "reserved",
                format!(
                    "The rest of the budget does not cover this request. Lower its maximum of output tokens, or retry after {renewal}."
                ),
            )
        };
        let wait_s = u64::try_from(entry.period_end_s).unwrap_or(0).saturating_sub(cx.now.unix_s()).max(1);
        let state = reserved.state;
        let detail = format!(
            "budget `{}`: {} spent and {} reserved of {}, {} needed",
            self.name,
            self.amount.show(state.spent),
            self.amount.show(state.reserved),
            self.amount.show(entry.amount_max),
            self.amount.show(amount)
        );
        Reply::new(Problem::RateLimited, "insufficient_quota", reason, message)
            .detail(detail)
            .header(header::RETRY_AFTER, HeaderValue::from(wait_s))
    }

    fn period_name(&self) -> &'static str {
        self.windows.unit().as_str()
    }

    fn missing_price(&self, cx: &mut RequestCx<'_>) -> Flow {
        match self.on_missing_price {
            MissingPrice::Allow => Flow::Continue,
            MissingPrice::Refuse => {
                let is_named = matches!(cx.facts.get::<RequestModel>(), Some(RequestModel::Named(_)));
                if let Some(trace) = cx.facts.get_mut::<Trace>() {
                    trace.0.push(if is_named { "the model has no price" } else { "the model is unknown; give it with `--model`" }.into());
                }
                let message = match is_named {
                    true => "The model has no price, so it cannot be used with a budget.",
                    false => "The request names no model, so its cost is unknown and it cannot be used with a budget.",
                };
                Reply::new(Problem::Forbidden, "model_without_price", "no_price", message).into()
            }
        }
    }

    /// The decision on a request without reserving anything.
    async fn dry_run(&self, entry: &LedgerEntry, amount: u64, cx: &mut RequestCx<'_>) -> Flow {
        let state: Result<LedgerState, StoreError> = self.ledger.state(entry, cx.now).await;
        let Ok(state) = state else {
            return match self.on_store_failure {
                CountsFailurePolicy::Deny => unavailable().into(),
                CountsFailurePolicy::Allow | CountsFailurePolicy::Local => {
                    cx.facts.let_through(Self::NAME);
                    Flow::Continue
                }
            };
        };
        let allowed = state.left(entry.amount_max) >= amount && state.spent < entry.amount_max;
        if let Some(trace) = cx.facts.get_mut::<Trace>() {
            let show = |value| self.amount.show(value);
            trace.0.push(format!(
                "budget `{}`: {} spent and {} reserved of {}, for {}; the request reserves {}",
                self.name,
                show(state.spent),
                show(state.reserved),
                show(entry.amount_max),
                entry.name,
                show(amount)
            ));
        }
        if allowed { Flow::Continue } else { self.refusal(entry, &Reserved { allowed, state }, amount, cx).into() }
    }
}

/// Prices with errors are reported on their own.
fn check_currency(currency: Currency, prices: &PriceTable) -> Result<(), Invalid> {
    match prices.currency() {
        Some(known) if known == currency => Ok(()),
        Some(other) => Err(Invalid::new(format!("is in {currency}, but `prices` are in {other}"))),
        None if prices.is_invalid() => Ok(()),
        None => Err(Invalid::new("needs the section `prices` with at least one model")),
    }
}

/// The place of a route with a final dot; empty for a top-level filter.
fn route_of(place: &str) -> &str {
    place.rsplit_once("budget[").map_or("", |(route, _)| route)
}

/// A label as a part of a name.
fn word(label: &str) -> String {
    label.replace(['/', ':', '@'], "-")
}

fn new_id() -> String {
    uuid::Uuid::now_v7().simple().to_string()
}

fn unavailable() -> Reply {
    let message = "Budgets are temporarily unavailable. Retry after 1 s.";
    Reply::new(Problem::Unavailable, "limits_unavailable", "store", message).header(header::RETRY_AFTER, HeaderValue::from_static("1"))
}

#[cfg(test)]
mod tests;
