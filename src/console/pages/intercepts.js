// Intercepts: requests refused because of a binding.

import { call, download, get, may, query } from "../api.js";
import { classify, resolve, SearchField } from "../find.js";
import { html, useEffect, useState } from "../html.js";
import { number, t } from "../i18n.js";
import { go, href, parse } from "../route.js";
import { Action, Badge, Done, Field, KeyId, More, Page, Table, Time, Trouble, useList, useLoad } from "../ui.js";

const SPANS = { "1h": 3600, "24h": 86_400, "7d": 7 * 86_400, "30d": 30 * 86_400 };
const NAMES = { "1h": () => t("1 hour"), "24h": () => t("1 day"), "7d": () => t("1 week"), "30d": () => t("30 days") };

// Turns the route's parameters into those of the API.
function apiFilter({ span, by, ...filter }) {
  const since = SPANS[span] && new Date(Math.floor(Date.now() / 60_000) * 60_000 - SPANS[span] * 1000).toISOString();
  return { ...filter, since: since || filter.since };
}

export function Intercepts({ route, live }) {
  const filter = route.params;
  const put = (change) => go("intercepts", { ...parse().params, ...change });
  const [done, setDone] = useState("");
  const [missed, setMissed] = useState(0);
  const list = useList((cursor, signal) => (filter.by ? Promise.resolve({ items: [], next: null }) : get(`/logs${query({ ...apiFilter(filter), cursor })}`, { signal })), [JSON.stringify(filter)]);
  useEffect(() => {
    if (live.fresh?.length) setMissed((n) => n + live.fresh.reduce((sum, one) => sum + one.count, 0));
  }, [live.fresh]);
  // Intercepts during the time in the background are not counted above.
  useEffect(() => {
    if (live.resumed) list.reload();
  }, [live.resumed]);
  // Each field accepts a key, a hint or an address; none of them keeps a key.
  const text = (name, label) => html`<${SearchField} label=${label} value=${filter[name] || ""} find=${async (said) => {
    if (!said) return put({ [name]: "" });
    const { key_id, network, word, several } = name === "key_id" || name === "client" ? await resolve(said, { hints: true }) : await resolve(classify(said).key ? said : "");
    if (key_id) return put({ key_id });
    if (network) return put({ client: network });
    if (several) return go("bindings", { hint: word });
    return name === "key_id" || name === "client" ? t("No key id, key, hint or address matches.") : put({ [name]: said });
  }} />`;
  const file = (format) => () => download(`/logs/export${query({ ...apiFilter(filter), format })}`);
  const allow = (row) => async () => {
    await call("POST", "/bindings/allow", { key_id: row.key_id, ip: row.client });
    setDone(t("{client} is now allowed for {hint}.", row));
  };
  return html`<${Page} title=${t("Intercepts")} actions=${html`<${Action} run=${file("csv")}>CSV</${Action}><${Action} run=${file("jsonl")}>JSON</${Action}>`}>
    <form class="search" role="search" onSubmit=${(event) => event.preventDefault()}>
      ${text("key_id", t("Key"))} ${text("client", t("Address or network"))} ${text("path", t("Path prefix"))} ${text("route", t("Route"))}
      <${Field} label=${t("Reason")} as="select" value=${filter.reason || ""} onInput=${(reason) => put({ reason })}><option value="">${t("any")}</option><option value="elsewhere" selected=${filter.reason === "elsewhere"}>${t("bound to other networks")}</option><option value="banned" selected=${filter.reason === "banned"}>${t("banned")}</option></${Field}>
      <${Field} label=${t("Shadow mode")} as="select" value=${filter.shadow || ""} onInput=${(shadow) => put({ shadow })}><option value="">${t("any")}</option><option value="true" selected=${filter.shadow === "true"}>${t("let through")}</option><option value="false" selected=${filter.shadow === "false"}>${t("refused")}</option></${Field}>
      <${Field} label=${t("Time range")} as="select" value=${filter.span || ""} onInput=${(span) => put({ span, since: undefined })}><option value="">${t("any time")}</option>${Object.entries(NAMES).map(([span, name]) => html`<option value=${span} selected=${filter.span === span}>${name()}</option>`)}</${Field}>
      <${Field} label=${t("Group by")} as="select" value=${filter.by || ""} onInput=${(by) => put({ by })}><option value="">${t("no grouping")}</option><option value="key" selected=${filter.by === "key"}>${t("key")}</option><option value="client" selected=${filter.by === "client"}>${t("address")}</option></${Field}>
    </form>
    ${done && html`<${Done}>${done}</${Done}>`}
    ${missed > 0 && !filter.by && html`<p><button type="button" onClick=${() => (setMissed(0), list.reload())}>${t("Show {n} new", { n: number(missed) })}</button></p>`}
    <${Trouble} error=${list.error} retry=${list.reload} />
    ${filter.by
      ? html`<${Groups} filter=${filter} />`
      : html`<${Table} caption=${t("Intercepts")} rows=${list.items} loading=${list.loading} empty=${t("No matching intercepts.")} columns=${[
          [t("Last"), (row) => html`<${Time} at=${row.last_at} />`],
          [t("Count"), (row) => number(row.count), "number"],
          [t("Key"), (row) => html`<${KeyId} id=${row.key_id} hint=${row.hint} />`],
          [t("Used from"), (row) => html`<code>${row.client}</code>`],
          [t("Reason"), (row) => html`${row.shadow && html`<${Badge}>${t("shadow")}</${Badge}> `}${row.reason === "banned" ? html`<${Badge} kind="bad">${t("banned")}</${Badge}>` : html`${t("bound to")} ${row.networks.map((net) => html`<code>${net.replace(/\/(32|128)$/, "")}</code> `)}`}`],
          [t("Request"), (row) => html`<code>${row.method} ${row.path}</code> <small>${row.route}</small>`],
          [t("Client"), (row) => html`<small>${row.user_agent || "–"}</small>`],
          [t("Actions"), (row) => row.reason === "elsewhere" && may("bindings") && html`<${Action} run=${allow(row)} label=${t("Allow {client}", row)}>${t("Allow")}</${Action}>`],
        ]} /><${More} list=${list} />`}
  </${Page}>`;
}

function Groups({ filter }) {
  const groups = useLoad((signal) => get(`/logs/groups${query({ ...apiFilter(filter), by: filter.by, limit: 100 })}`, { signal }), [JSON.stringify(filter)]);
  const byKey = filter.by === "key";
  const what = (row) => (byKey ? html`<${KeyId} id=${row.what} hint=${row.hint} />` : html`<a href=${href("intercepts", { ...filter, by: undefined, client: row.what })}><code>${row.what}</code></a>`);
  return html`<${Trouble} error=${groups.error} retry=${groups.reload} />
    ${groups.data && !groups.data.complete && html`<div class="notice"><p>${t("Only the latest 10,000 intercepts are counted. Choose a shorter time range to count all.")}</p></div>`}
    <${Table} caption=${byKey ? t("By key") : t("By address")} rows=${groups.data?.items || []} loading=${groups.loading} empty=${t("No matching intercepts.")} columns=${[
      [byKey ? t("Key") : t("Address"), what],
      [t("Count"), (row) => number(row.count), "number"],
      [byKey ? t("Addresses") : t("Keys"), (row) => number(row.others), "number"],
      [t("Last"), (row) => html`<${Time} at=${row.last_at} />`],
    ]} />`;
}
