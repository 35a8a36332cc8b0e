// The dashboard: current state and history.

import { get, query } from "../api.js";
import { Bars, Chart } from "../charts.js";
import { html, useEffect } from "../html.js";
import { number, seconds, t } from "../i18n.js";
import { go, href } from "../route.js";
import { Badge, KeyId, Page, Time, Trouble, useLoad } from "../ui.js";

const RANGES = { "1h": () => t("1 hour"), "6h": () => t("6 hours"), "24h": () => t("1 day"), "7d": () => t("1 week"), "30d": () => t("30 days") };
const CLASSES = [["2xx", "--good"], ["3xx", "--c3"], ["4xx", "--warn"], ["5xx", "--bad"], ["0", "--muted"]];

const OUTCOMES = [["refused", "--bad", () => t("refused")], ["answered", "--c3", () => t("answered by a filter")], ["shadow", "--warn", () => t("not applied (shadow mode)")]];

export function Dashboard({ route, live }) {
  const range = route.params.range in RANGES ? route.params.range : "1h";
  const board = useLoad((signal) => get(`/dashboard${query({ range })}`, { signal }), [range]);
  useEffect(() => {
    const again = setInterval(board.reload, 15_000);
    return () => clearInterval(again);
  }, []);
  const { data } = board;
  const now = live.now || data?.now;
  const picker = html`<fieldset class="picker"><legend>${t("Time range")}</legend>
    ${Object.entries(RANGES).map(([value, name]) => html`<label><input type="radio" name="range" value=${value} checked=${value === range} onChange=${() => go("dashboard", { range: value })} /> ${name()}</label>`)}
  </fieldset>`;
  return html`<${Page} title=${t("Dashboard")} actions=${picker}>
    <${Trouble} error=${board.error} retry=${board.reload} />
    ${data && html`<${Outage} health=${data.health} />`}
    <dl class="tiles">
      <${Tile} name=${t("Requests per second")} value=${number(now?.requests_per_s)} />
      <${Tile} name=${t("Open streams")} value=${number(now?.streams)} to=${href("streams")} />
      <${Tile} name=${t("Time to first byte")} value=${seconds(data?.first_byte.p50)} note=${t("95 %: {p95}", { p95: seconds(data?.first_byte.p95) })} />
      <${Tile} name=${t("Requests")} value=${number(data?.requests)} />
      <${Tile} name=${t("Intercepts")} value=${number(data?.intercepts)} to=${href("intercepts")} />
      <${Tile} name=${t("Replicas")} value=${number(now?.replicas)} />
    </dl>
    ${data && html`<${Charts} data=${data} /><${Tops} data=${data} /><${Health} data=${data} />`}
  </${Page}>`;
}

// Outages come before all numbers.
function Outage({ health }) {
  const lines = health.upstreams.filter((one) => one.status !== "ok").map((one) => ({
    bad: one.status === "down",
    text: one.status === "down" ? t("Upstream {name}: no working server. Requests to it fail.", one) : t("Upstream {name}: {well} of {servers} servers work.", one),
  }));
  const servers = lines.length > 0;
  if (!health.notifications) lines.unshift({ text: t("Notifications from PostgreSQL do not arrive: changes made on other replicas take up to 30 s to apply. Run `keylatch doctor` to find the cause.") });
  if (health.redis && !health.redis.ok) lines.unshift({ text: t("Redis is unavailable ({errors}): shared limits are not counted across replicas.", { errors: health.redis.errors.join(", ") || t("unavailable") }) });
  if (health.store_error) lines.unshift({ bad: true, text: t("The store is not ready: {error}", { error: health.store_error }) });
  if (lines.length === 0) return null;
  const bad = health.status !== "ok";
  const title = { down: () => t("Down: no upstream has a working server."), degraded: () => t("Degraded: some requests fail.") }[health.status]
    || (servers ? () => t("Some servers fail. The other servers handle the requests.") : () => t("Requests succeed, but something needs attention."));
  return html`<div class="notice ${bad ? "bad" : "warn"}" role=${bad ? "alert" : "status"}>
    <p><strong>${title()}</strong></p>
    <ul class="plain">${lines.map((line) => html`<li>${line.text}</li>`)}</ul>
  </div>`;
}

const Tile = ({ name, value, note, to }) => html`<div class="tile"><dt>${to ? html`<a href=${to}>${name}</a>` : name}</dt><dd>${value}${note && html`<small>${note}</small>`}</dd></div>`;

function Charts({ data }) {
  const at = data.points.map((point) => point.at);
  const rate = (value) => value / data.step_s;
  const classes = CLASSES.filter(([name]) => name === "2xx" || data.points.some((point) => point.requests[name]));
  const filters = [...new Set(data.points.flatMap((point) => Object.keys(point.decisions)))].sort();
  const perSecond = (value) => (value === 0 ? "0" : value < 0.1 ? value.toPrecision(1) : number(value));
  return html`<div class="charts">
    <${Chart} title=${t("Requests per second by status")} points=${at} stack format=${perSecond}
      series=${classes.map(([name, colour]) => ({ name: name === "0" ? t("no response") : name, colour, values: data.points.map((point) => rate(point.requests[name] || 0)) }))} />
    <${Chart} title=${t("Time to first byte")} points=${at} format=${seconds}
      series=${["p50", "p95", "p99"].map((name) => ({ name, values: data.points.map((point) => point.first_byte[name]) }))} />
    <${Chart} title=${t("Decisions by filter")} points=${at} stack format=${number}
      series=${(filters.length ? filters : [t("none")]).map((name) => ({ name, values: data.points.map((point) => point.decisions[name] || 0) }))} />
    <${Chart} title=${t("Decisions by outcome")} points=${at} stack format=${number}
      series=${OUTCOMES.map(([name, colour, text]) => ({ name: text(), colour, values: data.points.map((point) => point.outcomes[name] || 0) }))} />
    <${Chart} title=${t("Intercepts")} points=${at} stack format=${number} series=${[{ name: t("Intercepts"), colour: "--bad", values: data.points.map((point) => point.intercepts) }]} />
    <${Bars} title=${t("Decisions")} empty=${t("No refusals in this period.")}
      rows=${data.decisions.slice(0, 10).map((row) => ({ name: html`${row.filter}: ${row.reason} ${row.outcome === "shadow" ? html`<${Badge}>${t("shadow")}</${Badge}>` : ""}`, label: `${row.filter} ${row.reason}`, value: row.count, shown: number(row.count) }))} />
  </div>`;
}

const Tops = ({ data }) => html`<div class="charts">
  <${Bars} title=${t("Keys with the most requests")} empty=${t("No requests in this period.")}
    rows=${data.busiest_keys.map((one) => ({ name: html`<${KeyId} id=${one.what} hint=${one.hint} />`, label: one.what.slice(0, 12), value: one.requests, shown: number(one.requests) }))} />
  <${Bars} title=${t("Addresses with the most requests")} empty=${t("No requests in this period.")}
    rows=${data.busiest_clients.map((one) => ({ name: html`<a href=${href("bindings", { network: one.what })}>${one.what}</a>`, label: one.what, value: one.requests, shown: number(one.requests) }))} />
  <${Bars} title=${t("Keys over a limit (429)")} empty=${t("None in this period.")}
    rows=${data.limited_keys.map((one) => ({ name: html`<${KeyId} id=${one.what} hint=${one.hint} />`, label: one.what.slice(0, 12), value: one.requests, shown: number(one.requests) }))} />
  <${Bars} title=${t("Addresses over a limit (429)")} empty=${t("None in this period.")}
    rows=${data.limited_clients.map((one) => ({ name: html`<a href=${href("limits", { search: one.what })}>${one.what}</a>`, label: one.what, value: one.requests, shown: number(one.requests) }))} />
  <${Bars} title=${t("Addresses without a valid key or token (401)")} empty=${t("None in this period.")}
    rows=${data.unauthorized_clients.map((one) => ({ name: html`<a href=${href("bindings", { network: one.what })}>${one.what}</a>`, label: one.what, value: one.requests, shown: number(one.requests) }))} />
  <${Bars} title=${t("Most refused keys")} empty=${t("No refusals in this period.")}
    rows=${data.top_keys.map((group) => ({ name: html`<${KeyId} id=${group.what} hint=${group.hint} />`, label: group.what.slice(0, 12), value: group.count, shown: t("{count} from {others} addresses", { count: number(group.count), others: number(group.others) }) }))} />
  <${Bars} title=${t("Most refused addresses")} empty=${t("No refusals in this period.")}
    rows=${data.top_clients.map((group) => ({ name: html`<a href=${href("intercepts", { client: group.what })}>${group.what}</a>`, label: group.what, value: group.count, shown: number(group.count) }))} />
</div>`;

const Health = ({ data }) => html`<div class="charts">
  <div class="card"><h2>${t("Health")}</h2><ul class="plain">
    <li>${t("Store")} ${data.health.store_error ? html`<${Badge} kind="bad">${data.health.store_error}</${Badge}>` : html`<${Badge} kind="good">${t("ok")}</${Badge}>`}</li>
    ${data.health.redis !== null && html`<li>Redis ${data.health.redis.ok ? html`<${Badge} kind="good">${t("ok")}</${Badge}>` : html`<${Badge} kind="bad">${data.health.redis.errors.join(", ") || t("unavailable")}</${Badge}>`}</li>`}
    ${data.health.upstreams.map((one) => html`<li>${t("Upstream")} ${one.name} <${Badge} kind=${{ ok: "good", degraded: "warn" }[one.status] || "bad"}>${t("{well} of {servers} servers work", one)}</${Badge}></li>`)}
  </ul></div>
  <div class="card"><h2>${t("Replicas")}</h2><ul class="plain">
    ${data.replicas.map((one) => html`<li><strong>${one.name}</strong> ${one.current && html`<${Badge}>${t("current")}</${Badge}>`} ${one.gone ? html`<${Badge} kind="bad">${t("offline")}</${Badge}>` : one.handed_over ? html`<${Badge}>${t("handed over")}</${Badge}>` : html`<${Badge} kind="good">${t("ok")}</${Badge}>`} ${!one.reload_ok && html`<${Badge} kind="bad">${t("last reload failed")}</${Badge}>`}
      <br /><small>${one.version} · ${t("configuration loaded")} <${Time} at=${one.loaded_at} /> · ${t("last report")} <${Time} at=${one.seen_at} /></small></li>`)}
  </ul></div>
</div>`;
