// Live settings: value, origin, change and revert.

import { call, get, may } from "../api.js";
import { html, useState } from "../html.js";
import { t } from "../i18n.js";
import { Action, Badge, Dialog, Done, Field, Page, Time, Trouble, useLoad } from "../ui.js";

const ORIGINS = { default: () => t("default"), file: () => t("file"), live: () => t("live setting") };

// Settings with a value that cuts off clients: saving it asks for confirmation.
const ASKS = { maintenance: { value: true, why: () => t("All requests get 503 on every replica until this is reverted. Open streams continue.") } };

export function Settings() {
  const settings = useLoad((signal) => get("/settings", { signal }), []);
  const [done, setDone] = useState("");
  const put = (text) => (data) => {
    settings.put(data);
    setDone(text);
  };
  return html`<${Page} title=${t("Settings")}>
    <p>${t("Changes apply to every replica within a second and override the configuration file until they are reverted.")}</p>
    ${done && html`<${Done}>${done}</${Done}>`}
    <${Trouble} error=${settings.error} retry=${settings.reload} />
    <div class="settings">${(settings.data?.items || []).map((one) => html`<${Setting} key=${one.name + JSON.stringify([one.value, one.changed_at]) + one.origin} one=${one} put=${put} version=${settings.data.version} again=${settings.reload} />`)}</div>
  </${Page}>`;
}

function range(kind) {
  if (kind.count) return t("{least} to {most}", kind.count);
  if (kind.choice) return kind.choice.of.join(", ");
  if (kind.secret) return t("Stored encrypted and never shown in full.");
  if (kind.duration) return t("A duration such as 15m, 12h or 90days.");
  return "";
}

// Sends a test alert to all webhooks.
function TestAlerts() {
  const [said, setSaid] = useState(null);
  const run = async () => setSaid((await call("POST", "/alerts/test")).items);
  return html`<${Action} run=${run}>${t("Send a test")}</${Action}>
    ${said && (said.length ? said.map(({ webhook, error }) => html`<p role="status"><strong>${webhook}</strong>: ${error || t("delivered")}</p>`) : html`<p role="status">${t("No webhook is configured: alerts appear in the log only.")}</p>`)}`;
}

function Setting({ one, put, version, again }) {
  const secret = one.kind.secret;
  const [value, setValue] = useState(secret ? "" : one.value);
  const [error, setError] = useState(null);
  const [busy, setBusy] = useState(false);
  const [asking, setAsking] = useState(false);
  const bool = one.kind === "bool";
  const save = async (next) => {
    setBusy(true);
    setError(null);
    try {
      const parsed = one.kind.count ? Number(next) : next;
      put(t("{name} saved.", one))(await call("PUT", "/settings", { values: { [one.name]: parsed } }, { version }));
    } catch (failed) {
      setError(failed);
      // The input stays; changes by others are loaded and shown beside it.
      if (failed.status === 412) again();
    }
    setBusy(false);
  };
  const asks = ASKS[one.name];
  const revert = async () => put(t("{name} reverted to the configuration file.", one))(await call("DELETE", `/settings/${one.name}`, undefined, { version }));
  const input = bool ? { type: "checkbox", checked: value === true } : one.kind.count ? { type: "number", min: one.kind.count.least, max: one.kind.count.most, value } : secret ? { type: secret.url ? "url" : "password", autocomplete: "off", placeholder: one.value || t("none"), value } : { value };
  return html`<form class="card setting" onSubmit=${(event) => (event.preventDefault(), asks?.value === value ? setAsking(true) : save(value))}>
    <h2><code>${one.name}</code> <${Badge} kind=${one.origin === "live" ? "warn" : ""}>${ORIGINS[one.origin]()}</${Badge}></h2>
    ${one.kind.choice
      ? html`<${Field} label=${t(one.means)} as="select" disabled=${busy || !may("settings")} error=${error?.message} value=${value} onInput=${setValue}>${one.kind.choice.of.map((word) => html`<option value=${word} selected=${word === value}>${word}</option>`)}</${Field}>`
      : html`<${Field} label=${t(one.means)} help=${range(one.kind)} disabled=${busy || !may("settings")} error=${error?.message} onInput=${setValue} ...${input} />`}
    ${one.name === "alerts.webhook.url" && may("settings") && html`<${TestAlerts} />`}
    <div class="row">
      <small>${one.origin === "live" ? html`${t("set by {changed_by}", one)} <${Time} at=${one.changed_at} />. ${t("Value in the file: {file}.", { file: one.file === null ? t("nothing") : String(one.file) })}` : ""}</small>
      <span class="row end">${one.origin === "live" && may("settings") && html`<${Action} run=${revert} label=${t("Revert {name}", one)}>${t("Revert")}</${Action}>`}
      ${may("settings") && html`<button type="submit" class="primary" aria-label=${t("Save {name}", one)} disabled=${busy || (secret ? !value : value === one.value)}>${t("Save")}</button>`}</span>
    </div>
    ${asking && html`<${Dialog} title=${t("Save {name}", one)} close=${() => setAsking(false)}>
      <p>${asks.why()}</p>
      <div class="row end"><button type="button" onClick=${() => setAsking(false)}>${t("Cancel")}</button><button type="button" class="danger" onClick=${() => (setAsking(false), save(value))}>${t("Save")}</button></div>
    </${Dialog}>`}
  </form>`;
}
