// OpenID Connect providers: list, check, add, change, remove.

import { call, get } from "../api.js";
import { html, useState } from "../html.js";
import { t } from "../i18n.js";
import { Action, Copy, Done, Field, Table, Trouble, useLoad } from "../ui.js";

const ROLES = ["viewer", "operator", "admin"];
const words = (text) => text.split(/[\s,]+/).filter(Boolean);
const lines = (text) => text.split(/\n/).map((line) => line.trim()).filter(Boolean);

const EMPTY = { name: "", label: "", issuer: "", client_id: "", client_secret: "", scopes: "profile email", name_claim: "preferred_username", role_claim: "groups", viewer: "", operator: "", admin: "", allow_private: false, ca: "" };

const opened = ({ name, version, settings, has_client_secret: secret }) => ({
  ...EMPTY, ...settings, name, version, secret,
  scopes: (settings?.scopes || []).join(" "),
  ...Object.fromEntries(ROLES.map((role) => [role, (settings?.roles[role] || []).join("\n")])),
});

const settingsOf = ({ label, issuer, client_id, scopes, name_claim, role_claim, allow_private, ca, ...values }) => ({
  label, issuer, client_id, scopes: words(scopes), name_claim, role_claim, allow_private, ...(ca.trim() ? { ca } : {}),
  roles: Object.fromEntries(ROLES.map((role) => [role, lines(values[role])])),
});

function Form({ values, put, error, submit, cancel }) {
  const wrong = (field) => error && [field, `settings.${field}`].includes(error.field) && error.message;
  const back = `${location.origin}/admin/ui/from/${values.name || "…"}`;
  const text = (label, name, help, more = {}) => html`<${Field} label=${label} help=${help} autocomplete="off" spellcheck=${false} value=${values[name]} onInput=${put(name)} error=${wrong(name)} ...${more} />`;
  return html`<form class="card" onSubmit=${submit}><h2>${values.version ? t("Change {name}", values) : t("New provider")}</h2>
    <${Trouble} error=${error?.field ? null : error} />
    <p>${t("Redirect URI to register at the provider:")} <code>${back}</code> <${Copy} text=${back} /></p>
    <div class="columns"><div>
      ${text(t("Name"), "name", t("Lower-case letters, digits and -. Account names begin with it."), { required: true, maxlength: 32, readonly: Boolean(values.version) })}
      ${text(t("Button text"), "label")}
      ${text(t("Issuer"), "issuer", t("Exactly as in its discovery document. It cannot be changed later."), { required: true, type: "url", placeholder: "https://id.example.com", readonly: Boolean(values.version) })}
      ${text(t("Client ID"), "client_id", null, { required: true })}
      ${text(t("Client secret"), "client_secret", values.secret ? t("Stored encrypted and never shown. Leave empty to keep it.") : t("Stored encrypted and never shown. Leave empty for a public client."), { type: "password", autocomplete: "new-password" })}
      ${text(t("Scopes"), "scopes", t("Requested in addition to openid."))}
    </div><div>
      ${text(t("Name claim"), "name_claim")}
      ${text(t("Role claim"), "role_claim", t("Text or a list. Dots select nested fields: realm_access.roles"), { required: true })}
      ${ROLES.map((role) => html`<${Field} key=${role} as="textarea" rows="2" label=${t("Values for {role}", { role: t(role) })} help=${t("One per line.")} spellcheck=${false} value=${values[role]} onInput=${put(role)} error=${wrong(`roles.${role}`) || (role === "viewer" && wrong("roles"))} />`)}
      <${Field} type="checkbox" label=${t("Allow private addresses and http")} checked=${values.allow_private} onInput=${put("allow_private")} />
      <${Field} as="textarea" rows="2" label=${t("CA certificates (PEM)")} help=${t("Leave empty to use the system's.")} spellcheck=${false} value=${values.ca} onInput=${put("ca")} error=${wrong("ca")} />
    </div></div>
    <div class="row end"><button type="button" onClick=${cancel}>${t("Cancel")}</button><button type="submit" class="primary">${t("Save")}</button></div>
  </form>`;
}

export function Providers() {
  const providers = useLoad((signal) => get("/providers", { signal }), []);
  const [values, set] = useState(null);
  const [error, setError] = useState(null);
  const [done, setDone] = useState("");
  const put = (name) => (value) => set((before) => ({ ...before, [name]: value }));
  const submit = async (event) => {
    event.preventDefault();
    setError(null);
    try {
      const secret = values.client_secret ? { client_secret: values.client_secret } : {};
      await call("PUT", `/providers/${encodeURIComponent(values.name)}`, { settings: settingsOf(values), ...secret }, { version: values.version, fresh: !values.version });
      setDone(t("Provider {name} saved.", values));
      set(null);
      providers.reload();
    } catch (failed) {
      setError(failed);
    }
  };
  const begin = (next) => () => (set(next), setError(null), setDone(""));
  const check = ({ name }) => async () => (await call("POST", `/providers/${name}/check`), setDone(t("{name} works.", { name })));
  return html`<h2>${t("Sign-in providers (OpenID Connect)")}</h2>
    ${done && html`<${Done}>${done}</${Done}>`}
    <${Trouble} error=${providers.error} retry=${providers.reload} />
    <${Table} caption=${t("Providers")} rows=${providers.data?.items || []} loading=${providers.loading} empty=${t("No providers. All accounts sign in with a password.")} columns=${[
      [t("Name"), (row) => html`<strong>${row.name}</strong>`],
      [t("Issuer"), (row) => html`<code>${row.settings?.issuer}</code>`],
      [t("Claim"), (row) => html`<code>${row.settings?.role_claim}</code>`],
      [t("Actions"), (row) => html`<span class="row">
        <${Action} run=${check(row)}>${t("Check")}</${Action}>
        <button type="button" onClick=${begin(opened(row))}>${t("Change")}</button>
        <${Action} kind="danger" confirm=${t("The provider is removed with all accounts that sign in through it. This cannot be undone.")} run=${async () => (await call("DELETE", `/providers/${row.name}`, undefined, { version: row.version }), providers.reload())}>${t("Remove")}</${Action}></span>`],
    ]} />
    ${values ? html`<${Form} values=${values} put=${put} error=${error} submit=${submit} cancel=${begin(null)} />` : html`<div class="row"><button type="button" onClick=${begin(EMPTY)}>${t("Add a provider")}</button></div>`}`;
}
