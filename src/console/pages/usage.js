// Usage: tokens and cost of requests, over time and by key, model, …

import { download, get, query } from "../api.js";
import { Chart } from "../charts.js";
import { classify, resolve, SearchField } from "../find.js";
import { html, useEffect, useState } from "../html.js";
import { compact, money, number, percent, seconds, t } from "../i18n.js";
import { go, href, parse } from "../route.js";
import { Action, Badge, Field, KeyId, More, Page, Table, Trouble, useList, useLoad } from "../ui.js";

const DAY_MS = 86_400_000;
const RANGES = { "24h": () => t("1 day"), "7d": () => t("1 week"), "30d": () => t("30 days"), custom: () => t("Custom") };
const GROUPS = {
  key: () => t("key"), model: () => t("model"), "key,model": () => t("key and model"), label: () => t("label"), subject: () => t("identity"),
  route: () => t("route"), upstream: () => t("upstream"), status: () => t("status"),
};
const SORTS = { cost: () => t("cost"), tokens: () => t("tokens"), requests: () => t("requests") };
const FILTERS = ["key_id", "label", "model", "route", "subject", "upstream"];
const KINDS = [
  ["--c1", () => t("input"), (row) => row.input_tokens - row.cached_input_tokens],
  ["--c6", () => t("cached input"), (row) => row.cached_input_tokens],
  ["--c2", () => t("output"), (row) => row.output_tokens - row.reasoning_tokens],
  ["--c3", () => t("reasoning"), (row) => row.reasoning_tokens],
];

const zone = () => Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC";
const midnight = (at) => new Date(at.getFullYear(), at.getMonth(), at.getDate());
const dateOf = (at) => new Date(at - at.getTimezoneOffset() * 60_000).toISOString().slice(0, 10);

// The range of the route's parameters: whole hours or days of the browser's time zone.
function span({ range, from, to }) {
  const now = new Date();
  const today = midnight(now);
  const days = (back) => new Date(today.getFullYear(), today.getMonth(), today.getDate() - back);
  if (range === "custom") {
    const [first, last] = [from, to].map((text) => new Date(`${text}T00:00`));
    const begin = isNaN(first) ? days(6) : first;
    const end = isNaN(last) || last < begin ? (begin > today ? begin : today) : last;
    return { begin, end: new Date(end.getFullYear(), end.getMonth(), end.getDate() + 1) };
  }
  if (range === "7d" || range === "30d") return { begin: days(range === "7d" ? 6 : 29), end: null };
  return { begin: new Date(Math.floor(now / 3_600_000) * 3_600_000 - 23 * 3_600_000), end: null };
}

// The step of the chart, and the start of each step.
function steps({ begin, end }) {
  const until = end && end < Date.now() ? end : new Date();
  const days = (until - begin) / DAY_MS;
  const step = days <= 3 ? "hour" : days <= 120 ? "day" : "month";
  const starts = [];
  let at = step === "month" ? new Date(begin.getFullYear(), begin.getMonth(), 1) : begin;
  while (at < until && starts.length < 1000) {
    starts.push(at.toISOString());
    if (step === "hour") at = new Date(at.getTime() + 3_600_000);
    else at = new Date(at.getFullYear(), at.getMonth() + (step === "month"), step === "month" ? 1 : at.getDate() + 1);
  }
  return { step, starts };
}

const api = ({ begin, end }) => ({ from: begin.toISOString(), to: end?.toISOString(), time_zone: zone() });
const cost = (row) => (row.cost === null ? "–" : html`${money(row.cost, row.currency)}${row.other_costs.map((one) => html` + ${money(one.cost, one.currency)}`)}`);
const cached = (row) => percent(row.cached_input_tokens, row.input_tokens);
const first = (ms) => seconds(ms === null || ms === undefined ? null : ms / 1000);
const speed = (row) => (row.tokens_per_second === null ? "–" : number(row.tokens_per_second));

export function Usage({ route }) {
  const { params } = route;
  const range = params.range in RANGES ? params.range : "24h";
  const filter = Object.fromEntries(FILTERS.map((name) => [name, params[name]]));
  const whole = span({ ...params, range });
  const asked = { ...api(whole), ...filter };
  const key = JSON.stringify(asked);
  const put = (change) => go("usage", { ...parse().params, ...change });
  const total = useLoad((signal) => get(`/usage${query(asked)}`, { signal }), [key]);
  const latency = useLoad((signal) => get(`/usage/latency${query({ ...api(whole), model: filter.model, route: filter.route })}`, { signal }), [key]);
  useEffect(() => {
    const again = setInterval(() => (total.reload(), latency.reload()), 60_000);
    return () => clearInterval(again);
  }, []);
  const table = { group: params.group in GROUPS ? params.group : "key", sort: params.sort in SORTS ? params.sort : "cost" };
  const file = (format) => () => download(`/usage/export${query({ ...asked, ...table, format })}`);
  const picker = html`<fieldset class="picker"><legend>${t("Time range")}</legend>
    ${Object.entries(RANGES).map(([value, name]) => html`<label><input type="radio" name="range" value=${value} checked=${value === range} onChange=${() => put({ range: value, from: value === "custom" ? dateOf(whole.begin) : undefined, to: value === "custom" ? dateOf(new Date()) : undefined })} /> ${name()}</label>`)}
  </fieldset>`;
  const sums = total.data?.items[0];
  return html`<${Page} title=${t("Usage")} actions=${picker}>
    <${Search} filter=${filter} range=${range} params=${params} put=${put} />
    <${Trouble} error=${total.error} retry=${total.reload} />
    ${total.data && !sums && html`<div class="notice"><p>${t("No usage in this period. The filter `usage` counts requests of the routes that have it.")}</p></div>`}
    ${sums && html`<${Tiles} sums=${sums} latency=${latency.data?.items[0]} narrowed=${FILTERS.some((name) => filter[name] && name !== "model" && name !== "route")} />
    <div class="charts"><${OverTime} asked=${asked} whole=${whole} show=${params.show === "cost" ? "cost" : "tokens"} put=${put} /></div>
    <div class="charts tops"><${TopKeys} asked=${asked} /><${TopModels} asked=${asked} whole=${whole} /></div>
    <${All} asked=${asked} table=${table} put=${put} file=${file} />`}
  </${Page}>`;
}

function Search({ filter, range, params, put }) {
  const text = (name, label) => html`<${SearchField} label=${label} value=${filter[name] || ""} find=${async (said) => {
    if (!said) return put({ [name]: undefined });
    const { key_id } = name === "key_id" ? await resolve(said, { hints: true }) : classify(said).key ? await resolve(said) : {};
    if (key_id) return put({ key_id });
    return name === "key_id" ? t("No key id, key or hint matches.") : put({ [name]: said });
  }} />`;
  const date = (name, label) => html`<${Field} label=${label} type="date" value=${params[name] || ""} onInput=${(value) => value && put({ [name]: value })} />`;
  return html`<form class="search" role="search" onSubmit=${(event) => event.preventDefault()}>
    ${text("key_id", t("Key"))} ${text("model", t("Model"))} ${text("label", t("Label"))} ${text("route", t("Route"))} ${text("subject", t("Identity"))}
    ${range === "custom" && html`${date("from", t("First day"))} ${date("to", t("Last day"))}`}
    ${FILTERS.some((name) => filter[name]) && html`<div class="row end"><button type="button" onClick=${() => put(Object.fromEntries(FILTERS.map((name) => [name, undefined])))}>${t("Clear")}</button></div>`}
  </form>`;
}

const Tile = ({ name, value, note }) => html`<div class="tile"><dt>${name}</dt><dd>${value}${note && html`<small>${note}</small>`}</dd></div>`;

function Tiles({ sums, latency, narrowed }) {
  const p95 = latency && t("95 %: {p95}", { p95: first(latency.p95_ms) });
  return html`<dl class="tiles">
    <${Tile} name=${t("Cost")} value=${cost(sums)} note=${sums.unpriced > 0 && t("{count} requests without a price", { count: number(sums.unpriced) })} />
    <${Tile} name=${t("Requests")} value=${compact(sums.requests)} note=${sums.estimated > 0 && t("{count} estimated", { count: number(sums.estimated) })} />
    <${Tile} name=${t("Input tokens")} value=${compact(sums.input_tokens)} note=${sums.input_tokens > 0 && t("{share} cached", { share: cached(sums) })} />
    <${Tile} name=${t("Output tokens")} value=${compact(sums.output_tokens)} note=${sums.reasoning_tokens > 0 && t("{share} reasoning", { share: percent(sums.reasoning_tokens, sums.output_tokens) })} />
    <${Tile} name=${t("Tokens per second")} value=${speed(sums)} />
    ${narrowed
      ? html`<${Tile} name=${t("Time to first token")} value=${first(sums.first_token_ms)} note=${t("average")} />`
      : html`<${Tile} name=${t("Time to first token")} value=${first(latency?.p50_ms)} note=${p95} />`}
  </dl>`;
}

// Tokens by kind, or cost, in each step.
function OverTime({ asked, whole, show, put }) {
  const { step, starts } = steps(whole);
  const rows = useLoad((signal) => get(`/usage${query({ ...asked, step, limit: 1000 })}`, { signal }), [JSON.stringify(asked)]);
  const at = new Map((rows.data?.items || []).map((row) => [Date.parse(row.at), row]));
  const found = starts.map((start) => at.get(Date.parse(start)));
  const currency = rows.data?.items.find((row) => row.currency)?.currency;
  const series = show === "cost"
    ? [{ name: currency || t("cost"), values: found.map((row) => Number(row?.cost || 0)) }]
    : KINDS.map(([colour, name, value]) => ({ name: name(), colour, values: found.map((row) => (row ? value(row) : 0)) }));
  const choice = html`<label>${t("Show")} <select value=${show} onChange=${(event) => put({ show: event.target.value })}><option value="tokens" selected=${show === "tokens"}>${t("tokens")}</option><option value="cost" selected=${show === "cost"}>${t("cost")}</option></select></label>`;
  return html`<div class="wide"><div class="row end">${choice}</div><${Trouble} error=${rows.error} retry=${rows.reload} />
    <${Chart} title=${show === "cost" ? t("Cost over time") : t("Tokens over time")} points=${starts} stack format=${show === "cost" ? (value) => money(value, currency) : compact} series=${series} /></div>`;
}

const TOP = 5;
const measures = () => [
  [t("Cost"), cost, "number"],
  [t("Total tokens"), (row) => compact(row.input_tokens + row.output_tokens), "number"],
  [t("Cached"), cached, "number"],
  [t("Tokens/s"), speed, "number"],
];
const Key = ({ row }) => (row.key_id ? html`<${KeyId} id=${row.key_id} hint=${row.hint} /> <small>${row.note || row.labels.join(", ")}</small>` : html`<span class="empty">${t("without a key")}</span>`);
const Model = ({ name }) => (name ? html`<a href=${href("usage", { ...parse().params, model: name })}>${name}</a>` : html`<span class="empty">${t("unknown")}</span>`);

const Top = ({ title, list, rows, columns }) => html`<div><h2>${title}</h2>
  <${Trouble} error=${list.error} retry=${list.reload} />
  <${Table} caption=${title} rows=${rows} loading=${list.loading} empty=${t("None in this period.")} of=${(row) => row.key_id ?? row.model} columns=${columns} /></div>`;

function TopKeys({ asked }) {
  const list = useLoad((signal) => get(`/usage${query({ ...asked, group: "key", limit: TOP })}`, { signal }), [JSON.stringify(asked)]);
  return html`<${Top} title=${t("Top keys")} list=${list} rows=${list.data?.items || []} columns=${[
    [t("Key"), (row) => html`<${Key} row=${row} />`],
    ...measures(),
    [t("First token"), (row) => first(row.first_token_ms), "number"],
  ]} />`;
}

// Quantiles are stored by model, not by key.
function TopModels({ asked, whole }) {
  const list = useLoad(async (signal) => {
    const { items } = await get(`/usage${query({ ...asked, group: "model", limit: TOP })}`, { signal });
    const of = (row) => get(`/usage/latency${query({ ...api(whole), route: asked.route, model: row.model })}`, { signal });
    const quantiles = await Promise.all(items.map((row) => (row.model && row.first_token_ms !== null ? of(row) : { items: [] })));
    return items.map((row, index) => ({ ...row, latency: quantiles[index].items[0] }));
  }, [JSON.stringify(asked)]);
  return html`<${Top} title=${t("Top models")} list=${list} rows=${list.data || []} columns=${[
    [t("Model"), (row) => html`<${Model} name=${row.model} />`],
    ...measures(),
    [t("First token"), (row) => (row.latency ? html`${first(row.latency.p50_ms)}<br /><small>${t("95 %: {p95}", { p95: first(row.latency.p95_ms) })}</small>` : "–"), "number"],
  ]} />`;
}

const CELLS = {
  key: [() => t("Key"), (row) => html`<${Key} row=${row} />`],
  model: [() => t("Model"), (row) => html`<${Model} name=${row.model} />`],
  label: [() => t("Label"), (row) => html`<a href=${href("usage", { ...parse().params, label: row.label })}><${Badge}>${row.label}</${Badge}></a>`],
  subject: [() => t("Identity"), (row) => row.subject || "–"],
  route: [() => t("Route"), (row) => row.route],
  upstream: [() => t("Upstream"), (row) => row.upstream],
  status: [() => t("Status"), (row) => (row.status === "0" ? t("no response") : row.status)],
};

function All({ asked, table, put, file }) {
  const list = useList((cursor, signal) => get(`/usage${query({ ...asked, ...table, cursor })}`, { signal }), [JSON.stringify([asked, table])]);
  const select = (label, name, options) => html`<${Field} label=${label} as="select" value=${table[name]} onInput=${(value) => put({ [name]: value })}>${Object.entries(options).map(([value, text]) => html`<option value=${value} selected=${table[name] === value}>${text()}</option>`)}</${Field}>`;
  return html`<h2>${t("All usage")}</h2>
    <div class="row start">${select(t("Group by"), "group", GROUPS)} ${select(t("Order"), "sort", SORTS)} <div class="row exports"><${Action} run=${file("csv")}>CSV</${Action}><${Action} run=${file("jsonl")}>JSON</${Action}></div></div>
    <${Trouble} error=${list.error} retry=${list.reload} />
    <${Table} caption=${t("All usage")} rows=${list.items} loading=${list.loading} empty=${t("None in this period.")} of=${(row) => table.group.split(",").map((name) => row[name === "key" ? "key_id" : name]).join(" ")} columns=${[
      ...table.group.split(",").map((name) => [CELLS[name][0](), CELLS[name][1]]),
      [t("Cost"), (row) => html`${cost(row)}${row.unpriced > 0 && html`<br /><small>${t("{count} without a price", { count: number(row.unpriced) })}</small>`}`, "number"],
      [t("Requests"), (row) => html`${number(row.requests)}${row.estimated > 0 && html`<br /><small>${t("{count} estimated", { count: number(row.estimated) })}</small>`}`, "number"],
      [t("Input"), (row) => number(row.input_tokens), "number"],
      [t("Cached"), cached, "number"],
      [t("Output"), (row) => number(row.output_tokens), "number"],
      [t("Reasoning"), (row) => number(row.reasoning_tokens), "number"],
      [t("Tokens/s"), speed, "number"],
      [t("First token"), (row) => first(row.first_token_ms), "number"],
    ]} /><${More} list=${list} />`;
}

// What one key used in the last 30 days, for its page.
export function KeyUsage({ id }) {
  const whole = span({ range: "30d" });
  const asked = { ...api(whole), key_id: id };
  const { starts } = steps(whole);
  const [show, setShow] = useState(false);
  const list = useLoad(async (signal) => {
    const load = (more) => get(`/usage${query({ ...asked, ...more, limit: 1000 })}`, { signal });
    const [total, days, models] = await Promise.all([load({}), load({ step: "day" }), load({ group: "model" })]);
    return { total: total.items[0], days: days.items, models: models.items };
  }, [id]);
  // A store without usage is no reason for a notice on this page.
  if (!list.data?.total) return null;
  const { total, days, models } = list.data;
  const at = new Map(days.map((row) => [Date.parse(row.at), row]));
  const found = starts.map((start) => at.get(Date.parse(start)));
  return html`<div class="card stack"><div class="row"><h2>${t("Usage in the last 30 days")}</h2><a href=${href("usage", { range: "30d", key_id: id, group: "model" })}>${t("All usage of this key")}</a></div>
    <${Tiles} sums=${total} narrowed />
    <${Chart} title=${t("Tokens over time")} points=${starts} stack format=${compact} series=${KINDS.map(([colour, name, value]) => ({ name: name(), colour, values: found.map((row) => (row ? value(row) : 0)) }))} />
    <${Table} caption=${t("By model")} rows=${show ? models : models.slice(0, TOP)} empty="" of=${(row) => row.model} columns=${[
      [t("Model"), (row) => row.model || t("unknown")],
      ...measures(),
      [t("Requests"), (row) => number(row.requests), "number"],
      [t("First token"), (row) => first(row.first_token_ms), "number"],
    ]} />
    ${models.length > TOP && !show && html`<p><button type="button" onClick=${() => setShow(true)}>${t("Show more")}</button></p>`}
  </div>`;
}
