// The user's own account: password, sessions, API tokens.

import { call, get } from "../api.js";
import { html, useState } from "../html.js";
import { t } from "../i18n.js";
import { Action, Badge, Copy, Done, Field, Page, Table, Time, Trouble, useLoad } from "../ui.js";
import { PasswordForm } from "./sign-in.js";

export function Account({ session }) {
  const sessions = useLoad((signal) => get("/account/sessions", { signal }), []);
  const [done, setDone] = useState("");
  return html`<${Page} title=${t("Your account")}>
    <p>${session.username}, ${t(session.role)}. ${t("Permissions: {scopes}.", { scopes: session.scopes.join(", ") })}</p>
    ${done && html`<${Done}>${done}</${Done}>`}
    ${!session.username.includes(":") && html`<div class="card"><h2>${t("Password")}</h2><${PasswordForm} done=${() => (setDone(t("Password changed. Your other sessions have ended.")), sessions.reload())} /></div>`}
    <div class="card"><h2>${t("Sessions")}</h2>
      <${Trouble} error=${sessions.error} retry=${sessions.reload} />
      <${Table} caption=${t("Sessions")} rows=${sessions.data?.items || []} loading=${sessions.loading} empty="" columns=${[
        [t("Signed in"), (row) => html`<${Time} at=${row.created_at} /> ${row.current && html`<${Badge} kind="good">${t("current")}</${Badge}>`}`],
        [t("From"), (row) => html`<code>${row.origin}</code>`],
        [t("Browser"), (row) => html`<small>${row.user_agent}</small>`],
        [t("Expires"), (row) => html`<${Time} at=${row.expires_at} />`],
        [t("Actions"), (row) => !row.current && html`<${Action} run=${async () => (await call("DELETE", `/account/sessions/${row.id}`), sessions.reload())}>${t("End session")}</${Action}>`],
      ]} /></div>
    <${Tokens} session=${session} />
  </${Page}>`;
}

function Tokens({ session }) {
  const tokens = useLoad((signal) => get("/account/tokens", { signal }), []);
  const [values, set] = useState({ name: "", days: 30, scopes: ["read"] });
  const [made, setMade] = useState(null);
  const [error, setError] = useState(null);
  const submit = async (event) => {
    event.preventDefault();
    setError(null);
    try {
      setMade(await call("POST", "/account/tokens", { ...values, days: Number(values.days) }));
      set({ name: "", days: 30, scopes: ["read"] });
      tokens.reload();
    } catch (failed) {
      setError(failed);
    }
  };
  const flip = (scope) => (on) => set((before) => ({ ...before, scopes: on ? [...before.scopes, scope] : before.scopes.filter((one) => one !== scope) }));
  return html`<div class="card"><h2>${t("API tokens")}</h2>
    ${made && html`<${Done}><p>${t("Token {name} created. Copy it now: it is not shown again.", made)}</p><p class="row"><code class="long">${made.token}</code><${Copy} text=${made.token} /></p></${Done}>`}
    <${Trouble} error=${tokens.error} retry=${tokens.reload} />
    <${Table} caption=${t("Tokens")} rows=${tokens.data?.items || []} loading=${tokens.loading} empty=${t("No tokens.")} columns=${[
      [t("Name"), (row) => row.name],
      [t("Permissions"), (row) => row.scopes.map((scope) => html`<${Badge}>${scope}</${Badge}> `)],
      [t("Last used"), (row) => html`<${Time} at=${row.last_used_at} />`],
      [t("Expires"), (row) => html`<${Time} at=${row.expires_at} />`],
      [t("Actions"), (row) => html`<${Action} kind="danger" confirm=${t("Scripts that use this token lose access. This cannot be undone.")} run=${async () => (await call("DELETE", `/account/tokens/${row.id}`), tokens.reload())}>${t("Remove")}</${Action}>`],
    ]} />
    <form onSubmit=${submit}><h3>${t("New token")}</h3>
      <${Trouble} error=${error?.field ? null : error} />
      <${Field} label=${t("Name")} required maxlength="64" value=${values.name} onInput=${(name) => set((before) => ({ ...before, name }))} error=${error?.field === "name" && error.message} />
      <fieldset><legend>${t("Permissions")}</legend>${session.scopes.map((scope) => html`<${Field} label=${scope} type="checkbox" checked=${values.scopes.includes(scope)} onInput=${flip(scope)} />`)}${error?.field?.startsWith("scopes") && html`<small class="wrong">${error.message}</small>`}</fieldset>
      <${Field} label=${t("Days")} type="number" min="1" max="366" required value=${values.days} onInput=${(days) => set((before) => ({ ...before, days }))} error=${error?.field === "days" && error.message} />
      <div class="row end"><button type="submit" class="primary">${t("Create token")}</button></div>
    </form></div>`;
}
