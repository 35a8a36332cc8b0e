//! The options of `budget`. Checks that need the rest of the configuration are in `mod.rs`.

use schemars::JsonSchema;
use serde::Deserialize;

use super::BudgetAmount;
use crate::contract::{HumanDuration, Invalid, is_label};
use crate::limiting::calendar::CalendarUnit;
use crate::limiting::{CountScope, CountsFailurePolicy, SubjectKinds};

/// The period after which a budget renews.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BudgetPeriod {
    /// At each full minute.
    Minute,
    /// At each full hour.
    Hour,
    /// At midnight.
    Day,
    /// On Monday at midnight.
    Week,
    /// On the first of the month at midnight.
    Month,
}

impl BudgetPeriod {
    /// The calendar unit.
    pub fn unit(self) -> CalendarUnit {
        match self {
            BudgetPeriod::Minute => CalendarUnit::Minute,
            BudgetPeriod::Hour => CalendarUnit::Hour,
            BudgetPeriod::Day => CalendarUnit::Day,
            BudgetPeriod::Week => CalendarUnit::Week,
            BudgetPeriod::Month => CalendarUnit::Month,
        }
    }

    /// The name in the configuration.
    pub fn as_str(self) -> &'static str {
        self.unit().as_str()
    }
}

/// What happens to a request for a model without a price.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MissingPrice {
    /// It is refused with 403.
    #[default]
    Refuse,
    /// It passes without being counted.
    Allow,
}

/// What counts as spent if the upstream does not report what a request has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Unreported {
    /// What was reserved for it.
    #[default]
    Reservation,
    /// The estimate of `usage`.
    Estimate,
}

/// `budget`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BudgetConfig {
    /// The name in errors and alerts. Budgets with the same name are one budget. Default: the words of `per` and `period`, such as
    /// `key-month`, in a route after the route's place.
    pub name: Option<String>,
    /// What has a budget of its own. With several, each combination of values has one. Default: with `label`, all requests
    /// together.
    pub per: Option<SubjectKinds>,
    /// Only requests of keys with this label count. Default: all.
    pub label: Option<String>,
    /// The prefix by which IPv4 clients are grouped, in bits, 8 to 32. Default: 32.
    pub ipv4_prefix: Option<u8>,
    /// The prefix by which IPv6 clients are grouped, in bits, 16 to 128. Default: 64.
    pub ipv6_prefix: Option<u8>,
    /// The amount: `10 USD`, `2000000 tokens`, `500000 input tokens` or `100000 output tokens`.
    pub amount: BudgetAmount,
    /// The period after which it renews.
    pub period: BudgetPeriod,
    /// The time zone of the periods, such as `Europe/Berlin`. Default: UTC.
    pub time_zone: Option<String>,
    /// The output tokens that are reserved for a request that sets no maximum. Default: 4096.
    #[serde(default = "output_tokens_default")]
    pub output_tokens_default: u64,
    /// How long a reservation lasts that is not settled, because its replica died; 1m to 24h. Default: 15m.
    #[serde(default = "reservation_ttl")]
    pub reservation_ttl: HumanDuration,
    /// The shares of the amount, in percent, at which webhooks get an alert. Default: none.
    #[serde(default)]
    pub alert_at: Vec<u8>,
    /// What happens to requests for models without a price, with an amount of money. Default: `refuse`.
    #[serde(default)]
    pub on_missing_price: MissingPrice,
    /// What counts as spent if the upstream does not report what a request has used. Default: `reservation`.
    #[serde(default)]
    pub unreported: Unreported,
    /// Where it is counted. Default: `local`.
    #[serde(default)]
    pub scope: CountScope,
    /// What happens to requests when the counts cannot be reached. Default: `deny`.
    pub on_store_failure: Option<CountsFailurePolicy>,
}

fn output_tokens_default() -> u64 {
    4096
}

fn reservation_ttl() -> HumanDuration {
    HumanDuration::secs(900)
}

impl BudgetConfig {
    /// What budgets of one name must have in common, for comparison.
    pub(super) fn terms(&self) -> String {
        let zone = self.time_zone.as_deref().unwrap_or("UTC");
        format!("{:?} {:?} {:?} {:?} {zone} {:?}", self.per, self.label, self.amount, self.period, self.scope)
    }

    /// Checks that need nothing else.
    pub(super) fn check(&self) -> Result<(), Invalid> {
        if self.per.is_none() && self.label.is_none() {
            return Err(Invalid::new("set `per`, such as `per: key`, or `label`"));
        }
        if self.label.as_ref().is_some_and(|label| !is_label(label)) {
            return Err(Invalid::new("labels have 1 to 64 letters, digits and `-_.:/@`").at("label"));
        }
        if self.output_tokens_default > 10_000_000 {
            return Err(Invalid::new("must be at most 10000000").at("output_tokens_default"));
        }
        if !(60..=86_400).contains(&self.reservation_ttl.0.as_secs()) {
            return Err(Invalid::new("must be between 1m and 24h").at("reservation_ttl"));
        }
        if self.alert_at.len() > 10 || self.alert_at.iter().any(|share| !(1..=100).contains(share)) {
            return Err(Invalid::new("list at most ten shares from 1 to 100").at("alert_at"));
        }
        Ok(())
    }
}
