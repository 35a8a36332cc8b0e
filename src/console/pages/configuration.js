// The configuration file: the one in force, a check, and the reload.

import { call, get, may } from "../api.js";
import { html, useState } from "../html.js";
import { t } from "../i18n.js";
import { Action, Badge, Copy, Done, Field, Page, Time, Trouble, useLoad } from "../ui.js";

export function Configuration() {
  const config = useLoad((signal) => get("/config", { signal }), []);
  const [done, setDone] = useState("");
  const { data } = config;
  const reload = async () => {
    setDone("");
    try {
      setDone((await call("POST", "/config/reload")).message);
    } finally {
      config.reload();
    }
  };
  return html`<${Page} title=${t("Configuration")} actions=${may("config") && html`<${Action} kind="primary" run=${reload}>${t("Reload file")}</${Action}>`}>
    ${done && html`<${Done}>${done}</${Done}>`}
    <${Trouble} error=${config.error} retry=${config.reload} />
    ${data && html`
      <dl class="facts wide"><dt>${t("File")}</dt><dd><code>${data.path}</code></dd><dt>${t("In force since")}</dt><dd><${Time} at=${data.loaded_at} /> <small>${t("load {generation} since the start", data)}</small></dd>
        <dt>${t("Last reload")}</dt><dd>${data.last_reload.ok ? html`<${Badge} kind="good">${t("succeeded")}</${Badge}>` : html`<${Badge} kind="bad">${t("failed")}</${Badge}>`} <${Time} at=${data.last_reload.at} /></dd></dl>
      ${!data.last_reload.ok && html`<div class="notice bad" role="alert"><p><strong>${t("Reload failed. The previous configuration stays in force.")}</strong></p><${Mistakes} mistakes=${data.last_reload.mistakes} /></div>`}
      ${may("config") && html`<${Check} />`}
      <div class="card"><div class="row"><h2>${t("Configuration in force (secrets masked)")}</h2><${Copy} text=${data.yaml} /></div><${Code} text=${data.yaml} /></div>`}
  </${Page}>`;
}

// Text with line numbers; the lines in `marked` are highlighted.
const Code = ({ text, marked = new Set(), only }) => html`<pre class="code" tabindex="0" role="region" aria-label=${t("Configuration")}>${text.split("\n").map((line, at) => (only && !only.has(at + 1) ? null : html`<span class=${marked.has(at + 1) ? "marked" : ""}><i aria-hidden="true">${at + 1}</i>${line || " "}
</span>`))}</pre>`;

const Mistakes = ({ mistakes }) => html`<ol class="mistakes">${mistakes.map((one) => html`<li>${one.line !== null && html`<strong>${t("Line {line}, column {column}", one)}</strong> `}${one.place && html`<code>${one.place}</code> `}${one.message}</li>`)}</ol>`;

function Check() {
  const [text, setText] = useState("");
  const [checked, setChecked] = useState(null);
  const [error, setError] = useState(null);
  const [busy, setBusy] = useState(false);
  const check = async (yaml) => {
    setBusy(true);
    setError(null);
    try {
      setChecked({ ...(await call("POST", "/config/check", yaml === null ? {} : { yaml })), text: yaml });
    } catch (failed) {
      setError(failed);
    }
    setBusy(false);
  };
  const lines = new Set((checked?.mistakes || []).map((one) => one.line).filter(Boolean));
  const around = new Set([...lines].flatMap((line) => [line - 2, line - 1, line, line + 1, line + 2]));
  return html`<form class="card" onSubmit=${(event) => (event.preventDefault(), check(text))}><h2>${t("Check a configuration")}</h2>
    <${Field} label=${t("Configuration to check")} help=${t("The text is only checked. It is neither stored nor loaded.")} as="textarea" rows="8" spellcheck=${false} class="mono" value=${text} onInput=${(next) => (setText(next), setChecked(null))} />
    <div class="row end"><button type="button" disabled=${busy} onClick=${() => check(null)}>${t("Check file")}</button><button type="submit" class="primary" disabled=${busy || !text.trim()}>${t("Check text")}</button></div>
    <${Trouble} error=${error} />
    ${checked && (checked.ok ? html`<${Done}>${t("The configuration is valid.")}</${Done}>` : html`<div class="notice bad" role="alert"><p><strong>${t("The configuration has errors.")}</strong></p><${Mistakes} mistakes=${checked.mistakes} /></div>${checked.text && lines.size > 0 && html`<${Code} text=${checked.text} marked=${lines} only=${around} />`}`)}
  </form>`;
}
