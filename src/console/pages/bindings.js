// The list of bindings, and changes of many bindings.

import { call, download, get, may, query } from "../api.js";
import { KeyLinks, classify, resolve, SearchField } from "../find.js";
import { html, useState } from "../html.js";
import { t } from "../i18n.js";
import { go, parse } from "../route.js";
import { Action, Badge, Dialog, Done, Field, KeyId, More, Page, Table, Time, Trouble, useList } from "../ui.js";

const SORTS = { "-last_used_at": () => t("Recently used first"), last_used_at: () => t("Least recently used first"), "-created_at": () => t("Newest first"), created_at: () => t("Oldest first"), key_id: () => t("By key id") };
const RULES = ["single", "multiple", "all", "roaming"];

export const Rule = ({ row }) => html`${row.banned && html`<${Badge} kind="bad">${t("banned")}</${Badge}> `}${t(row.rule)}${!row.confirmed && html` <${Badge}>${t("not confirmed")}</${Badge}>`}`;
export const Networks = ({ row }) => (row.rule === "all" ? t("everywhere") : html`<span class="networks">${row.networks.slice(0, 3).map((net) => html`<code>${net.replace(/\/(32|128)$/, "")}</code> `)}${row.networks.length > 3 && t("and {n} more", { n: row.networks.length - 3 })}</span>`);

export function Bindings({ route }) {
  const filter = route.params;
  const [text, setText] = useState(filter.key_id || filter.network || filter.hint || "");
  const [error, setError] = useState(null);
  const [unbound, setUnbound] = useState(null);
  const [bulk, setBulk] = useState(false);
  const [done, setDone] = useState("");
  const list = useList((cursor, signal) => get(`/bindings${query({ ...filter, cursor })}`, { signal }), [JSON.stringify(filter)]);
  // Enter in a field fires both change and submit; the second must not undo the first.
  const put = (change) => go("bindings", { ...parse().params, ...change });
  const search = async (event) => {
    event.preventDefault();
    setError(null);
    const nothing = { key_id: undefined, network: undefined, hint: undefined };
    setUnbound(null);
    const { key_id, network, word, key } = text.trim() ? classify(text) : {};
    if (!key) return put({ ...nothing, key_id, network, hint: word });
    try {
      const found = await resolve(key);
      setText("");
      if (!found.unbound) go(`bindings/${found.key_id}`);
      else setUnbound(found.key_id);
    } catch (failed) {
      setError(failed);
    }
  };
  const narrowed = ["key_id", "network", "hint", "label", "banned", "rule", "made_by"].some((name) => filter[name]);
  return html`<${Page} title=${t("Bindings")} actions=${html`<${Action} run=${() => download(`/bindings/export${query({ ...filter, format: "csv" })}`)}>CSV</${Action}><${Action} run=${() => download(`/bindings/export${query(filter)}`)}>JSON</${Action}>`}>
    <form class="search" role="search" onSubmit=${search}>
      <${Field} label=${t("Search")} help=${t("Key, start of a key id, end of a hint, address or network.")} value=${text} onInput=${setText} autocomplete="off" spellcheck=${false} maxlength="32768" />
      <${SearchField} label=${t("Label")} value=${filter.label || ""} find=${async (said) => {
        const { key_id } = classify(said).key ? await resolve(said) : {};
        return key_id ? go("bindings", { key_id }) : put({ label: said });
      }} />
      <${Field} label=${t("State")} as="select" value=${filter.banned || ""} onInput=${(banned) => put({ banned })}><option value="">${t("any")}</option><option value="true" selected=${filter.banned === "true"}>${t("banned")}</option><option value="false" selected=${filter.banned === "false"}>${t("not banned")}</option></${Field}>
      <${Field} label=${t("Rule")} as="select" value=${filter.rule || ""} onInput=${(rule) => put({ rule })}><option value="">${t("any")}</option>${RULES.map((rule) => html`<option value=${rule} selected=${filter.rule === rule}>${t(rule)}</option>`)}</${Field}>
      <${Field} label=${t("Order")} as="select" value=${filter.sort || "-last_used_at"} onInput=${(sort) => put({ sort })}>${Object.entries(SORTS).map(([value, name]) => html`<option value=${value} selected=${(filter.sort || "-last_used_at") === value}>${name()}</option>`)}</${Field}>
      <div class="row end"><button type="submit" class="primary">${t("Search")}</button>${narrowed && html`<button type="button" onClick=${() => (setText(""), go("bindings"))}>${t("Clear")}</button>`}${narrowed && may("bindings") && html`<button type="button" onClick=${() => setBulk(true)}>${t("Change all matching bindings…")}</button>`}</div>
    </form>
    <${Trouble} error=${error} />
    ${unbound && html`<div class="notice" role="alert"><p><strong>${t("This key is not bound.")}</strong> ${t("Its key id is {id}. It was never used, or its binding was removed or archived.", { id: unbound.slice(0, 12) })}</p><p><${KeyLinks} id=${unbound} /></p></div>`}
    ${done && html`<${Done}>${done}</${Done}>`}
    <${Trouble} error=${list.error} retry=${list.reload} />
    <${Table} caption=${t("Bindings")} rows=${list.items} loading=${list.loading} empty=${t("No matching bindings.")} columns=${[
      [t("Key"), (row) => html`<${KeyId} id=${row.key_id} hint=${row.hint} />`],
      [t("Rule"), (row) => html`<${Rule} row=${row} />`],
      [t("Allowed networks"), (row) => html`<${Networks} row=${row} />`],
      [t("Last used"), (row) => html`<${Time} at=${row.last_used_at} />`],
      [t("Labels"), (row) => row.labels.map((label) => html`<${Badge}>${label}</${Badge}> `)],
      [t("Created by"), (row) => (row.made_by === "first_use" ? t("first use") : row.made_by)],
    ]} />
    <${More} list=${list} />
    ${bulk && html`<${Bulk} filter=${filter} close=${() => setBulk(false)} done=${(text) => (setDone(text), setBulk(false), list.reload())} />`}
  </${Page}>`;
}

// A dry run fixes the set of bindings; the second call changes exactly this set.
function Bulk({ filter, close, done }) {
  const [action, setAction] = useState("ban");
  const [labels, setLabels] = useState("");
  const [would, setWould] = useState(null);
  const [error, setError] = useState(null);
  const [busy, setBusy] = useState(false);
  const { key_id, hint, network, label, rule, made_by } = filter;
  const what = () => ({
    action,
    filter: { key_id, hint, network, label, rule, made_by, banned: filter.banned ? filter.banned === "true" : undefined },
    labels: action === "label" ? labels.split(/[\s,]+/).filter(Boolean) : undefined,
  });
  const run = async (dry) => {
    setBusy(true);
    setError(null);
    try {
      const outcome = await call("POST", "/bindings/bulk", { ...what(), dry_run: dry, ...(dry ? {} : { expected: would.matched, digest: would.digest }) });
      if (dry) setWould(outcome);
      else done(t("{changed} of {matched} bindings changed.", outcome));
    } catch (failed) {
      setError(failed);
      setWould(null);
    }
    setBusy(false);
  };
  const choose = (next) => (setAction(next), setWould(null));
  return html`<${Dialog} title=${t("Change all matching bindings")} close=${close}>
    <${Trouble} error=${error} />
    <${Field} label=${t("Action")} as="select" value=${action} onInput=${choose}><option value="ban">${t("Ban")}</option><option value="unban">${t("Unban")}</option><option value="unbind">${t("Unbind")}</option><option value="label">${t("Set labels")}</option></${Field}>
    ${action === "label" && html`<${Field} label=${t("Labels")} help=${t("Separated by spaces.")} value=${labels} onInput=${(next) => (setLabels(next), setWould(null))} />`}
    ${would && html`<p role="status"><strong>${t("{matched} bindings match.", would)}</strong></p>
      <ul class="plain short">${would.sample.map((row) => html`<li><code>${row.key_id.slice(0, 12)}</code> ${row.hint} · <${Networks} row=${row} /></li>`)}${would.matched > would.sample.length && html`<li>${t("and {n} more", { n: would.matched - would.sample.length })}</li>`}</ul>
      ${action === "unbind" && html`<p class="wrong">${t("The next use of each key binds it again. This cannot be undone.")}</p>`}`}
    <div class="row end"><button type="button" onClick=${close}>${t("Cancel")}</button>
      ${would ? html`<button type="button" class="danger" disabled=${busy || !would.matched} onClick=${() => run(false)}>${t("Change {matched} bindings", would)}</button>` : html`<button type="button" class="primary" disabled=${busy} onClick=${() => run(true)}>${t("Preview changes")}</button>`}</div>
  </${Dialog}>`;
}
