// The audit log.

import { download, get, query } from "../api.js";
import { classify, resolve, SearchField, wholeId } from "../find.js";
import { html } from "../html.js";
import { t } from "../i18n.js";
import { go, href, parse } from "../route.js";
import { Action, Field, More, Page, Table, Time, Trouble, useList } from "../ui.js";
import { Difference } from "./binding.js";

const KINDS = { binding: () => t("Bindings"), setting: () => t("Settings"), config: () => t("Configuration"), account: () => t("Accounts"), session: () => t("Sessions"), token: () => t("Tokens"), stream: () => t("Streams") };

export function Audit({ route }) {
  const filter = route.params;
  const put = (change) => go("audit", { ...parse().params, ...change });
  const list = useList((cursor, signal) => get(`/audit${query({ ...filter, cursor })}`, { signal }), [JSON.stringify(filter)]);
  const target = (row) => (row.action.startsWith("binding.") ? html`<a href=${href(`bindings/${row.target}`)}><code>${row.target.slice(0, 12)}</code></a>` : html`<code>${row.target}</code>`);
  return html`<${Page} title=${t("Audit")} actions=${html`<${Action} run=${() => download(`/audit/export${query({ ...filter, format: "csv" })}`)}>CSV</${Action}><${Action} run=${() => download(`/audit/export${query(filter)}`)}>JSON</${Action}>`}>
    <form class="search" role="search" onSubmit=${(event) => event.preventDefault()}>
      <${Field} label=${t("Action")} as="select" value=${filter.action || ""} onInput=${(action) => put({ action })}><option value="">${t("all actions")}</option>${Object.entries(KINDS).map(([kind, name]) => html`<option value=${kind} selected=${filter.action === kind}>${name()}</option>`)}</${Field}>
      <${SearchField} label=${t("Actor")} value=${filter.actor || ""} find=${async (said) => {
        const { key_id } = classify(said).key ? await resolve(said) : {};
        return key_id ? put({ target: key_id }) : put({ actor: said });
      }} />
      <${SearchField} label=${t("Target")} help=${t("Key, key id, hint, setting or account.")} value=${filter.target || ""} find=${async (said) => {
        const { key_id, network } = said ? await resolve(said, { hints: true }) : {};
        if (network) return go("bindings", { network });
        return put({ target: key_id ? await wholeId(key_id) : said });
      }} />
    </form>
    <${Trouble} error=${list.error} retry=${list.reload} />
    <${Table} caption=${t("Audit")} rows=${list.items} loading=${list.loading} empty=${t("No matching changes.")} columns=${[
      [t("Time"), (row) => html`<${Time} at=${row.at} />`],
      [t("Actor"), (row) => html`${row.actor} <small>${row.origin}</small>`],
      [t("Action"), (row) => html`<code>${row.action}</code>`],
      [t("Target"), target],
      [t("Before and after"), (row) => html`<${Difference} before=${row.before} after=${row.after} />`],
    ]} />
    <${More} list=${list} />
  </${Page}>`;
}
