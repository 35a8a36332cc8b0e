// One binding: details, actions, refused addresses, history.

import { call, get, may } from "../api.js";
import { html, useState } from "../html.js";
import { number, t } from "../i18n.js";
import { go, href } from "../route.js";
import { holds } from "../network.js";
import { Action, Badge, Done, Field, Page, Time, Trouble, useLoad } from "../ui.js";
import { Networks, Rule } from "./bindings.js";
import { KeyUsage } from "./usage.js";

export function Binding({ route }) {
  const id = route.thing;
  const binding = useLoad((signal) => get(`/bindings/${encodeURIComponent(id)}`, { signal }), [id]);
  const timeline = useLoad((signal) => get(`/bindings/${encodeURIComponent(id)}/timeline`, { signal }), [id]);
  const [done, setDone] = useState("");
  const { data } = binding;
  const changed = (text, next) => {
    setDone(text);
    if (next) binding.put(next);
    else binding.reload();
    timeline.reload();
  };
  const act = (path, text, body = {}) => async () => changed(text, await call("POST", `/bindings/${path}`, { key_id: data.key_id, ...body }, { version: data.version }));
  const gone = binding.error?.status === 404;
  const actions = data && !gone && may("bindings") && html`
    ${data.banned ? html`<${Action} run=${act("unban", t("Ban lifted."))}>${t("Unban")}</${Action}>` : html`<${Action} kind="danger" confirm=${t("All requests with this key are refused, and its open streams end. Unban the key to undo this.")} run=${act("ban", t("Key banned."))}>${t("Ban")}</${Action}>`}
    <${Action} kind="danger" confirm=${t("The next use of the key binds it to the network of that use. This cannot be undone.")} run=${async () => { await call("POST", "/bindings/unbind", { key_id: data.key_id }, { version: data.version }); setDone(t("Key unbound.")); binding.reload(); timeline.reload(); }}>${t("Unbind")}</${Action}>`;
  return html`<${Page} title=${html`${t("Binding")} <code>${id.slice(0, 12)}</code> ${data && html`<span class="hint">${data.hint}</span>`}`} actions=${actions}>
    <p><a href=${href("bindings")}>← ${t("All bindings")}</a></p>
    ${done && html`<${Done}>${done}</${Done}>`}
    <${Trouble} error=${gone ? null : binding.error} retry=${binding.reload} />
    ${gone && html`<div class="notice"><p>${t("This key is no longer bound. Its history is below.")}</p></div>`}
    ${data && !gone && html`<div class="columns"><${Facts} row=${data} />${may("bindings") && html`<${Edit} key=${data.version} row=${data} changed=${changed} reload=${binding.reload} />`}</div>`}
    ${/^[0-9a-f]{64}$/.test(data?.key_id || id) && html`<${KeyUsage} id=${data?.key_id || id} />`}
    <${Refused} timeline=${timeline.data} row=${gone ? null : data} changed=${changed} />
    <${Story} timeline=${timeline} />
  </${Page}>`;
}

const Facts = ({ row }) => html`<div class="card"><h2>${t("Details")}</h2><dl class="facts">
  <dt>${t("Key id")}</dt><dd><code class="long">${row.key_id}</code></dd>
  <dt>${t("Rule")}</dt><dd><${Rule} row=${row} /></dd>
  <dt>${t("Allowed networks")}</dt><dd><${Networks} row=${row} /></dd>
  ${row.rule === "roaming" && html`<dt>${t("Roaming")}</dt><dd>${t("{networks_max} networks, each for {window} after its last use", row)}</dd>`}
  <dt>${t("Created by")}</dt><dd>${row.made_by === "first_use" ? t("first use") : row.made_by}, <${Time} at=${row.created_at} /></dd>
  <dt>${t("Last used")}</dt><dd><${Time} at=${row.last_used_at} /></dd>
  <dt>${t("Labels")}</dt><dd>${row.labels.length ? row.labels.map((label) => html`<a href=${href("bindings", { label })}><${Badge}>${label}</${Badge}></a> `) : "–"}</dd>
  <dt>${t("Note")}</dt><dd>${row.note || "–"}</dd>
</dl></div>`;

function Edit({ row, changed, reload }) {
  const [values, set] = useState({ rule: row.rule, networks: row.networks.join("\n"), networks_max: row.networks_max || 3, window: row.window || "24h", note: row.note, labels: row.labels.join(" ") });
  const [error, setError] = useState(null);
  const [busy, setBusy] = useState(false);
  const put = (name) => (value) => set((before) => ({ ...before, [name]: value }));
  const words = (text) => text.split(/[\s,]+/).filter(Boolean);
  const submit = async (event) => {
    event.preventDefault();
    setBusy(true);
    setError(null);
    const networks = words(values.networks);
    const body = { note: values.note, labels: words(values.labels) };
    const roams = values.rule === "roaming";
    if (values.rule !== row.rule || networks.join() !== row.networks.join() || (roams && (Number(values.networks_max) !== row.networks_max || values.window !== row.window))) {
      Object.assign(body, { rule: values.rule, networks: values.rule === "all" ? [] : networks });
      if (roams) Object.assign(body, { networks_max: Number(values.networks_max), window: values.window });
    }
    try {
      changed(t("Binding saved."), await call("PATCH", `/bindings/${row.key_id}`, body, { version: row.version }));
    } catch (failed) {
      setError(failed);
    }
    setBusy(false);
  };
  const wrong = (field) => error?.field === field && error.message;
  const known = ["rule", "networks", "networks_max", "window", "note", "labels"].includes(error?.field);
  return html`<form class="card" onSubmit=${submit}><h2>${t("Edit binding")}</h2>
    <${Trouble} error=${known ? null : error} />
    ${error?.status === 412 && html`<p><button type="button" onClick=${reload}>${t("Load the current version")}</button></p>`}
    <${Field} label=${t("Rule")} as="select" value=${values.rule} onInput=${put("rule")} error=${wrong("rule")}>${["single", "multiple", "all", "roaming"].map((rule) => html`<option value=${rule} selected=${values.rule === rule}>${t(rule)}</option>`)}</${Field}>
    ${values.rule !== "all" && html`<${Field} label=${t("Addresses and networks")} help=${t("One per line.")} as="textarea" rows="4" spellcheck=${false} value=${values.networks} onInput=${put("networks")} error=${wrong("networks")} />`}
    ${values.rule === "roaming" && html`<${Field} label=${t("Maximum networks")} type="number" min="1" max="64" value=${values.networks_max} onInput=${put("networks_max")} error=${wrong("networks_max")} /><${Field} label=${t("Validity of each network")} value=${values.window} onInput=${put("window")} error=${wrong("window")} />`}
    <${Field} label=${t("Labels")} help=${t("Separated by spaces.")} value=${values.labels} onInput=${put("labels")} error=${wrong("labels")} />
    <${Field} label=${t("Note")} as="textarea" rows="2" maxlength="1000" value=${values.note} onInput=${put("note")} error=${wrong("note")} />
    <div class="row end"><button type="submit" class="primary" disabled=${busy}>${t("Save")}</button></div>
  </form>`;
}

// The refused client addresses, each with a button that allows it.
function Refused({ timeline, row, changed }) {
  const clients = new Map();
  for (const one of timeline?.intercepts || []) {
    const seen = clients.get(one.client) || { client: one.client, count: 0, last: one.last_at, agent: one.user_agent, shadow: true };
    clients.set(one.client, { ...seen, count: seen.count + one.count, shadow: seen.shadow && one.shadow });
  }
  if (!clients.size) return null;
  const allow = (client) => async () => changed(t("{client} is now allowed.", { client }), await call("POST", "/bindings/allow", { key_id: row.key_id, ip: client }, { version: row.version }));
  const allowed = (client) => row?.rule === "all" || row?.networks.some((net) => holds(net, client));
  return html`<div class="card"><h2>${t("Refused addresses")}</h2><ul class="plain">
    ${[...clients.values()].slice(0, 20).map((one) => html`<li class="row"><span><a href=${href("intercepts", { client: one.client })}><strong>${one.client}</strong></a> ${one.shadow && html`<${Badge}>${t("shadow")}</${Badge}> `}${t("{count} times, last", { count: number(one.count) })} <${Time} at=${one.last} /> <small>${one.agent}</small></span>
      ${row && may("bindings") && (allowed(one.client) ? html`<${Badge} kind="good">${t("allowed")}</${Badge}>` : html`<${Action} run=${allow(one.client)} label=${t("Allow {client}", { client: one.client })}>${t("Allow")}</${Action}>`)}</li>`)}
  </ul></div>`;
}

const DONE = { "binding.made": () => t("created"), "binding.changed": () => t("changed"), "binding.removed": () => t("unbound") };

function Story({ timeline }) {
  const { data } = timeline;
  const events = [
    ...(data?.changes || []).map((change) => ({ at: change.at, what: html`<strong>${(DONE[change.action] || (() => change.action))()}</strong> ${t("by {actor} from {origin}", change)} <${Difference} before=${change.before} after=${change.after} />` })),
    ...(data?.intercepts || []).map((one) => ({ at: one.last_at, what: html`${one.shadow ? html`<${Badge}>${t("shadow")}</${Badge}>` : html`<${Badge} kind="warn">${t("refused")}</${Badge}>`} ${one.client} ${one.method} ${one.path} ${one.count > 1 ? t("{count} times", { count: number(one.count) }) : ""} <small>${one.reason === "banned" ? t("it was banned") : t("it was bound to {networks}", { networks: one.networks.join(", ") })}</small>` })),
  ].sort((a, b) => (a.at < b.at ? 1 : -1));
  return html`<div class="card"><h2>${t("History")}</h2>
    <${Trouble} error=${timeline.error} retry=${timeline.reload} />
    <ol class="story">${events.map((event) => html`<li><${Time} at=${event.at} /> <span>${event.what}</span></li>`)}${!events.length && html`<li class="empty">${timeline.loading ? t("Loading…") : t("No events since the first use.")}</li>`}</ol>
  </div>`;
}

export function Difference({ before, after }) {
  if (before === null || after === null || typeof before !== "object" || typeof after !== "object") {
    const show = (value) => (value === null ? "–" : JSON.stringify(value));
    return typeof before === "object" && typeof after === "object" ? null : html`<code>${show(before)}</code> → <code>${show(after)}</code>`;
  }
  const names = Object.keys(after).filter((name) => JSON.stringify(before[name]) !== JSON.stringify(after[name]) && !["last_used", "version"].includes(name));
  return names.map((name) => html`<span class="change">${name}: <code>${JSON.stringify(before[name]) ?? "–"}</code> → <code>${JSON.stringify(after[name])}</code></span> `);
}
