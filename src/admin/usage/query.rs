//! Query parameters of usage, and the store queries that they mean.

use std::time::SystemTime;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use keylatch_filters::contract::KeyId;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::super::Api;
use super::super::export::Format;
use super::super::paging::{limit, parse_cursor};
use super::super::problem::{Answer, Problem};
use crate::operator::usage;
use crate::sql::record::label;
use crate::sql::usage::query::GROUPS_MAX;
use crate::sql::usage::{UsageCursor, UsageDimension, UsageFilter, UsageQuery, UsageSort, UsageStep};
use crate::util::time::millis;

/// Steps over time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// One row for the whole range.
    #[default]
    None,
    /// By hour.
    Hour,
    /// By day.
    Day,
    /// By week, from Monday on.
    Week,
    /// By month.
    Month,
}

impl Step {
    /// The step of the store, and its length in seconds.
    fn of_store(self) -> Option<(UsageStep, i64)> {
        const DAY_S: i64 = 86_400;
        Some(match self {
            Step::None => return None,
            Step::Hour => (UsageStep::Hour, 3600),
            Step::Day => (UsageStep::Day, DAY_S),
            Step::Week => (UsageStep::Week, 7 * DAY_S),
            Step::Month => (UsageStep::Month, 30 * DAY_S),
        })
    }
}

/// Sort orders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SortBy {
    /// By cost. Amounts of different currencies are compared by their numbers.
    #[default]
    Cost,
    /// By input and output tokens.
    Tokens,
    /// By requests.
    Requests,
    /// By step, then by group.
    Time,
}

/// Directions of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// The smallest or earliest first.
    Asc,
    /// The largest or latest first.
    Desc,
}

/// Query parameters of reports.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ReportParams {
    /// Start of the range: a time (RFC 3339), a date, or a duration before now such as `7d`. Default: `24h`.
    from: Option<String>,
    /// End of the range, exclusive, in the same forms. Default: now.
    to: Option<String>,
    /// One row for each step of time. Default: `none`.
    #[param(inline)]
    step: Option<Step>,
    /// The time zone of steps and dates, by its IANA name. Default: UTC.
    #[param(example = "Europe/Berlin")]
    time_zone: Option<String>,
    /// The fields by which rows are grouped, at most two, with commas: `key`, `subject`, `label`, `model`, `route`, `upstream`,
    /// `status`.
    #[param(example = "key,model")]
    group: Option<String>,
    /// Only this key: its id, or the first digits of it.
    key_id: Option<String>,
    /// Only this verified identity.
    subject: Option<String>,
    /// Only keys with this label.
    label: Option<String>,
    /// Only this model; empty: requests without a known model.
    model: Option<String>,
    /// Only this route.
    route: Option<String>,
    /// Only this upstream.
    upstream: Option<String>,
    /// The sort order. Default: `cost`; with a step, `time`.
    #[param(inline)]
    sort: Option<SortBy>,
    /// The direction. Default: `asc` by time, else `desc`.
    #[param(inline)]
    order: Option<Direction>,
    /// The file format of an export.
    #[param(inline)]
    pub format: Option<Format>,
    /// The cursor: `next` of the previous page. Give the `from` and `to` that the first page returned.
    cursor: Option<String>,
    /// Maximum rows.
    #[param(minimum = 1, maximum = 1000, default = 50)]
    limit: Option<u32>,
}

/// Query parameters of times to first token.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LatencyParams {
    /// Start of the range: a time (RFC 3339), a date, or a duration before now such as `7d`. Default: `24h`.
    from: Option<String>,
    /// End of the range, exclusive, in the same forms. Default: now.
    to: Option<String>,
    /// One row for each step of time. Default: `none`.
    #[param(inline)]
    step: Option<Step>,
    /// The time zone of steps and dates, by its IANA name. Default: UTC.
    #[param(example = "Europe/Berlin")]
    time_zone: Option<String>,
    /// Only this model.
    model: Option<String>,
    /// Only this route.
    route: Option<String>,
}

/// Filters that reports and the request log share.
#[derive(Clone, Debug, Default)]
pub struct Filters<'a> {
    pub key_id: Option<&'a str>,
    pub subject: Option<&'a String>,
    pub label: Option<&'a String>,
    pub model: Option<&'a String>,
    pub route: Option<&'a String>,
    pub upstream: Option<&'a String>,
}

impl Filters<'_> {
    /// The filter of the store.
    pub async fn resolve(&self, api: &Api) -> Answer<UsageFilter> {
        let key = match self.key_id {
            Some(digits) => Some(usage::key(&api.store, digits).await?),
            None => None,
        };
        let label = self.label.map(|text| label(text)).transpose().map_err(|why| Problem::invalid("label", why))?;
        Ok(UsageFilter {
            key,
            label,
            subject: self.subject.cloned(),
            model: self.model.cloned(),
            route: self.route.cloned(),
            upstream: self.upstream.cloned(),
        })
    }
}

/// The time zone with this name; UTC without one.
pub fn zone(name: Option<&str>) -> Answer<TimeZone> {
    match name {
        None => Ok(TimeZone::UTC),
        Some(name) => {
            TimeZone::get(name).map_err(|_| Problem::invalid("time_zone", "must be an IANA name such as `Asia/Shanghai` or `UTC`"))
        }
    }
}

/// A time in milliseconds since 1970.
fn moment(field: &'static str, text: &str, zone: &TimeZone, now_ms: i64) -> Answer<i64> {
    let date = || text.parse::<Date>().ok()?.to_zoned_datetime(zone.clone()).ok().map(|start| start.timestamp().as_millisecond());
    let time = || text.parse::<Timestamp>().ok().map(Timestamp::as_millisecond);
    let ago = || now_ms.checked_sub(i64::try_from(humantime::parse_duration(text).ok()?.as_millis()).ok()?);
    let says = "must be a time such as 2026-01-31T09:00:00Z, a date such as 2026-01-31, or a duration before now such as 24h";
    ago().or_else(time).or_else(date).ok_or_else(|| Problem::invalid(field, says))
}

/// The range of a query, in milliseconds since 1970. Default: the last 24 hours.
pub fn range(from: Option<&str>, to: Option<&str>, zone: &TimeZone) -> Answer<(i64, i64)> {
    let now_ms = millis(SystemTime::now());
    let from_ms = moment("from", from.unwrap_or("24h"), zone, now_ms)?.max(0);
    let to_ms = to.map_or(Ok(now_ms), |to| moment("to", to, zone, now_ms))?;
    if from_ms >= to_ms {
        return Err(Problem::invalid("from", "must be before `to`"));
    }
    Ok((from_ms, to_ms))
}

fn dimension(name: &str) -> Option<UsageDimension> {
    Some(match name {
        "key" => UsageDimension::Key,
        "subject" => UsageDimension::Subject,
        "label" => UsageDimension::Label,
        "model" => UsageDimension::Model,
        "route" => UsageDimension::Route,
        "upstream" => UsageDimension::Upstream,
        "status" => UsageDimension::Status,
        _ => return None,
    })
}

fn groups(text: Option<&str>) -> Answer<Vec<UsageDimension>> {
    let mut all = Vec::new();
    for name in text.into_iter().flat_map(|text| text.split(',')).map(str::trim).filter(|name| !name.is_empty()) {
        let says = "must be one or two of `key`, `subject`, `label`, `model`, `route`, `upstream`, `status`, with a comma";
        let by = dimension(name).ok_or_else(|| Problem::invalid("group", says))?;
        if all.contains(&by) || all.len() == GROUPS_MAX {
            return Err(Problem::invalid("group", says));
        }
        all.push(by);
    }
    Ok(all)
}

/// Whether a cursor belongs to a report with these groups.
fn fits(cursor: &UsageCursor, group: &[UsageDimension]) -> bool {
    let valid = |(by, value): (&UsageDimension, &String)| match by {
        UsageDimension::Key => value.is_empty() || KeyId::from_hex(value).is_some(),
        UsageDimension::Status => value.parse::<i64>().is_ok(),
        _ => true,
    };
    cursor.group.len() == group.len() && group.iter().zip(&cursor.group).all(valid)
}

/// Seconds of a range of milliseconds.
fn seconds((from_ms, to_ms): (i64, i64)) -> (i64, i64) {
    (from_ms / 1000, (to_ms + 999) / 1000)
}

impl ReportParams {
    /// The query of the store.
    pub async fn query(&self, api: &Api) -> Answer<UsageQuery> {
        let zone = zone(self.time_zone.as_deref())?;
        let (from_s, to_s) = seconds(range(self.from.as_deref(), self.to.as_deref(), &zone)?);
        let step = self.step.unwrap_or_default().of_store().map(|(step, _)| step);
        let sort = match self.sort.unwrap_or(if step.is_some() { SortBy::Time } else { SortBy::Cost }) {
            SortBy::Cost => UsageSort::Cost,
            SortBy::Tokens => UsageSort::Tokens,
            SortBy::Requests => UsageSort::Requests,
            SortBy::Time => UsageSort::Time,
        };
        let group = groups(self.group.as_deref())?;
        let after: Option<UsageCursor> = parse_cursor(self.cursor.as_deref())?;
        if after.as_ref().is_some_and(|after| !fits(after, &group)) {
            return Err(Problem::invalid("cursor", "belongs to a report with another `group`; use `next` of the previous page"));
        }
        let filters = Filters {
            key_id: self.key_id.as_deref(),
            subject: self.subject.as_ref(),
            label: self.label.as_ref(),
            model: self.model.as_ref(),
            route: self.route.as_ref(),
            upstream: self.upstream.as_ref(),
        };
        Ok(UsageQuery {
            step,
            zone,
            group,
            sort,
            descending: self.order.map_or(sort != UsageSort::Time, |order| order == Direction::Desc),
            filter: filters.resolve(api).await?,
            after,
            limit: limit(self.limit)?,
            ..UsageQuery::new(from_s, to_s, api.usage.horizon(SystemTime::now()))
        })
    }
}

impl LatencyParams {
    /// The query of the store.
    pub fn query(&self, api: &Api) -> Answer<UsageQuery> {
        const STEPS_MAX: i64 = 5000;
        let zone = zone(self.time_zone.as_deref())?;
        let (from_s, to_s) = seconds(range(self.from.as_deref(), self.to.as_deref(), &zone)?);
        let step = self.step.unwrap_or_default().of_store();
        if step.is_some_and(|(_, step_s)| (to_s - from_s) / step_s > STEPS_MAX) {
            return Err(Problem::invalid("step", format!("gives more than {STEPS_MAX} rows; use a longer step or a shorter range")));
        }
        let filter = UsageFilter { model: self.model.clone(), route: self.route.clone(), ..UsageFilter::default() };
        let horizon = api.usage.horizon(SystemTime::now());
        Ok(UsageQuery { step: step.map(|(step, _)| step), zone, filter, ..UsageQuery::new(from_s, to_s, horizon) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_durations_times_and_dates() {
        let berlin = zone(Some("Europe/Berlin")).unwrap();
        let ms = |text: &str| moment("from", text, &berlin, 1_000_000_000_000).ok();
        assert_eq!(ms("24h"), Some(1_000_000_000_000 - 86_400_000));
        assert_eq!(ms("2026-01-31T09:00:00Z"), Some(1_769_850_000_000));
        assert_eq!(ms("2026-01-31T10:00:00+01:00"), Some(1_769_850_000_000));
        assert_eq!(ms("2026-01-31"), Some(1_769_850_000_000 - 10 * 3_600_000));
        assert!(["", "yesterday", "-2h", "2026-13-01"].iter().all(|wrong| ms(wrong).is_none()));
        assert!(zone(Some("Mars/Olympus")).is_err() && range(Some("1h"), Some("2h"), &TimeZone::UTC).is_err());
    }

    #[test]
    fn groups_are_at_most_two_names() {
        assert_eq!(groups(Some("key, model")).unwrap(), [UsageDimension::Key, UsageDimension::Model]);
        assert!(groups(None).unwrap().is_empty() && groups(Some("")).unwrap().is_empty());
        assert!(["keys", "key,key", "key,model,route"].iter().all(|wrong| groups(Some(wrong)).is_err()));
        let cursor = |group: &[&str]| UsageCursor { value: 1, bucket: 0, group: group.iter().map(|text| (*text).into()).collect() };
        assert!(fits(&cursor(&["", "m"]), &[UsageDimension::Key, UsageDimension::Model]));
        assert!(!fits(&cursor(&["m"]), &[UsageDimension::Key]) && !fits(&cursor(&[]), &[UsageDimension::Model]));
    }
}
