// Accounts.

import { call, get } from "../api.js";
import { html, useState } from "../html.js";
import { t } from "../i18n.js";
import { Action, Badge, Done, Field, Page, Table, Time, Trouble, useLoad } from "../ui.js";
import { Providers } from "./providers.js";

const ROLES = ["viewer", "operator", "admin"];

export function Accounts({ session }) {
  const accounts = useLoad((signal) => get("/accounts", { signal }), []);
  const [values, set] = useState({ name: "", role: "viewer", password: "" });
  const [error, setError] = useState(null);
  const [done, setDone] = useState("");
  const put = (name) => (value) => set((before) => ({ ...before, [name]: value }));
  const change = (row, what, text) => async () => {
    await call("PATCH", `/accounts/${row.name}`, what, { version: row.version }).finally(accounts.reload);
    setDone(text);
  };
  const submit = async (event) => {
    event.preventDefault();
    setError(null);
    try {
      const made = await call("POST", "/accounts", values);
      set({ name: "", role: "viewer", password: "" });
      setDone(t("Account {name} created. The password must be changed at the first sign-in.", made));
      accounts.reload();
    } catch (failed) {
      setError(failed);
    }
  };
  const wrong = (field) => error?.field === field && error.message;
  return html`<${Page} title=${t("Accounts")}>
    ${done && html`<${Done}>${done}</${Done}>`}
    <${Trouble} error=${accounts.error} retry=${accounts.reload} />
    <${Table} caption=${t("Accounts")} rows=${accounts.data?.items || []} loading=${accounts.loading} empty="" columns=${[
      [t("Name"), (row) => html`<strong>${row.name}</strong> ${row.name === session.username && html`<${Badge}>${t("you")}</${Badge}>`}`],
      [t("Role"), (row) => (row.name === session.username || row.provider ? t(row.role) : html`<span class="row">${ROLES.map((role) => (role === row.role ? html`<${Badge} kind="good">${t(role)}</${Badge}>` : html`<${Action} run=${change(row, { role }, t("Role of {name} changed. Its sessions have ended.", row))} label=${t("Change role of {name} to {role}", { name: row.name, role: t(role) })}>${t(role)}</${Action}>`))}</span>`)],
      [t("State"), (row) => html`${row.disabled ? html`<${Badge} kind="bad">${t("disabled")}</${Badge}>` : html`<${Badge} kind="good">${t("enabled")}</${Badge}>`} ${row.must_change_password && html`<${Badge} kind="warn">${t("must change password")}</${Badge}>`}`],
      [t("Last sign-in"), (row) => html`<${Time} at=${row.signed_in_at} />`],
      [t("Actions"), (row) => row.name !== session.username && html`<span class="row">
        <${Action} run=${change(row, { disabled: !row.disabled, unlock: true }, row.disabled ? t("{name} enabled.", row) : t("{name} disabled. Its sessions have ended.", row))}>${row.disabled ? t("Enable") : t("Disable")}</${Action}>
        ${!row.provider && html`<${Action} run=${async () => (await call("PATCH", `/accounts/${row.name}`, { unlock: true }), setDone(t("{name} unlocked.", row)))}>${t("Unlock")}</${Action}>`}
        <${Action} kind="danger" confirm=${t("The account is removed with its sessions and API tokens. This cannot be undone.")} run=${async () => (await call("DELETE", `/accounts/${row.name}`, undefined, { version: row.version }), accounts.reload())}>${t("Remove")}</${Action}></span>`],
    ]} />
    <form class="card" onSubmit=${submit}><h2>${t("New account")}</h2>
      <${Trouble} error=${error?.field ? null : error} />
      <${Field} label=${t("Name")} required autocomplete="off" maxlength="64" value=${values.name} onInput=${put("name")} error=${wrong("name")} />
      <${Field} label=${t("Role")} as="select" value=${values.role} onInput=${put("role")}>${ROLES.map((role) => html`<option value=${role} selected=${values.role === role}>${t(role)}</option>`)}</${Field}>
      <${Field} label=${t("Temporary password")} help=${t("At least 12 characters. It must be changed at the first sign-in.")} type="password" autocomplete="new-password" required value=${values.password} onInput=${put("password")} error=${wrong("password")} />
      <div class="row end"><button type="submit" class="primary">${t("Create account")}</button></div>
    </form>
    <${Providers} />
  </${Page}>`;
}
