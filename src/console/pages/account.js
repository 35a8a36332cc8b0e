// One's own account: password, sign-ins, tokens for scripts.

import { call, get } from "../api.js";
import { html, useState } from "../html.js";
import { t } from "../i18n.js";
import { Action, Badge, Copy, Done, Field, Page, Table, Time, Trouble, useLoad } from "../ui.js";
import { PasswordForm } from "./sign-in.js";

export function Account({ session }) {
  const sessions = useLoad((signal) => get("/account/sessions", { signal }), []);
  const [done, setDone] = useState("");
  return html`<${Page} title=${t("Your account")}>
    <p>${session.username}, ${t(session.role)}. ${t("You may: {scopes}.", { scopes: session.scopes.join(", ") })}</p>
    ${done && html`<${Done}>${done}</${Done}>`}
    ${!session.username.includes(":") && html`<div class="card"><h2>${t("Password")}</h2><${PasswordForm} done=${() => (setDone(t("The password was changed; you are signed out everywhere else.")), sessions.reload())} /></div>`}
    <div class="card"><h2>${t("Where you are signed in")}</h2>
      <${Trouble} error=${sessions.error} retry=${sessions.reload} />
      <${Table} caption=${t("Sign-ins")} rows=${sessions.data?.items || []} loading=${sessions.loading} empty="" columns=${[
        [t("Since"), (row) => html`<${Time} at=${row.created_at} /> ${row.current && html`<${Badge} kind="good">${t("this one")}</${Badge}>`}`],
        [t("From"), (row) => html`<code>${row.origin}</code>`],
        [t("Browser"), (row) => html`<small>${row.user_agent}</small>`],
        [t("Until"), (row) => html`<${Time} at=${row.expires_at} />`],
        [t("Do"), (row) => !row.current && html`<${Action} run=${async () => (await call("DELETE", `/account/sessions/${row.id}`), sessions.reload())}>${t("Sign out there")}</${Action}>`],
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
  return html`<div class="card"><h2>${t("Tokens for scripts")}</h2>
    ${made && html`<${Done}><p>${t("The token of {name}. It is shown this once and stored nowhere:", made)}</p><p class="row"><code class="long">${made.token}</code><${Copy} text=${made.token} /></p></${Done}>`}
    <${Trouble} error=${tokens.error} retry=${tokens.reload} />
    <${Table} caption=${t("Tokens")} rows=${tokens.data?.items || []} loading=${tokens.loading} empty=${t("None so far.")} columns=${[
      [t("Name"), (row) => row.name],
      [t("May"), (row) => row.scopes.map((scope) => html`<${Badge}>${scope}</${Badge}> `)],
      [t("Last used"), (row) => html`<${Time} at=${row.last_used_at} />`],
      [t("Until"), (row) => html`<${Time} at=${row.expires_at} />`],
      [t("Do"), (row) => html`<${Action} kind="danger" confirm=${t("Scripts that use it are refused from now on. This cannot be undone.")} run=${async () => (await call("DELETE", `/account/tokens/${row.id}`), tokens.reload())}>${t("Remove")}</${Action}>`],
    ]} />
    <form onSubmit=${submit}><h3>${t("A new token")}</h3>
      <${Trouble} error=${error?.field ? null : error} />
      <${Field} label=${t("Name")} required maxlength="64" value=${values.name} onInput=${(name) => set((before) => ({ ...before, name }))} error=${error?.field === "name" && error.message} />
      <fieldset><legend>${t("It may")}</legend>${session.scopes.map((scope) => html`<${Field} label=${scope} type="checkbox" checked=${values.scopes.includes(scope)} onInput=${flip(scope)} />`)}${error?.field?.startsWith("scopes") && html`<small class="wrong">${error.message}</small>`}</fieldset>
      <${Field} label=${t("Days")} type="number" min="1" max="366" required value=${values.days} onInput=${(days) => set((before) => ({ ...before, days }))} error=${error?.field === "days" && error.message} />
      <div class="row end"><button type="submit" class="primary">${t("Make a token")}</button></div>
    </form></div>`;
}
