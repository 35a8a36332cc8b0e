// Signing in, and choosing a password of one's own.

import { choosePassword, current, doors, forget, leave, signIn, signOut } from "../api.js";
import { html, useState } from "../html.js";
import { t } from "../i18n.js";
import { Action, Field, Trouble, useLoad } from "../ui.js";

// One button for each provider, if there are any. Whoever was signed in through one sees that one alone.
function Doors({ only }) {
  const { data } = useLoad(doors, []);
  const items = (data?.items || []).filter(({ name }) => !only || name === only);
  if (!items.length) return null;
  return html`<div class="doors">${items.map(({ name, label }) => html`<${Action} key=${name} run=${() => leave(name)}>${t("Sign in with {label}", { label })}</${Action}>`)}</div>`;
}

export function SignIn({ again, refused, children }) {
  const [elsewhere] = again?.includes(":") ? again.split(":") : [];
  const [username, setUsername] = useState(again || "");
  const [password, setPassword] = useState("");
  const [error, setError] = useState(refused || null);
  const [busy, setBusy] = useState(false);
  const submit = async (event) => {
    event.preventDefault();
    setBusy(true);
    setError(null);
    try {
      await signIn(username, password);
    } catch (failed) {
      setError(failed);
      setBusy(false);
    }
  };
  const form = html`<form onSubmit=${submit}>
    <${Trouble} error=${error} />
    <${Field} label=${t("Name")} name="username" autocomplete="username" autocapitalize="none" spellcheck=${false} required value=${username} onInput=${setUsername} />
    <${Field} label=${t("Password")} name="password" type="password" autocomplete="current-password" required value=${password} onInput=${setPassword} />
    <div class="row end"><button type="submit" class="primary" disabled=${busy}>${busy ? t("Signing in…") : t("Sign in")}</button></div>
  </form>`;
  if (elsewhere) return html`<${Trouble} error=${error} /><${Doors} only=${elsewhere} /><div class="row end"><button type="button" onClick=${forget}>${t("Sign in as somebody else")}</button></div>`;
  if (again) return form;
  return html`<main class="alone"><img src="icon.svg" alt="" width="48" height="48" /><h1>${t("Sign in to Keylatch")}</h1>${form}<${Doors} />${children}</main>`;
}

export function PasswordForm({ done }) {
  const [values, set] = useState({ now: "", next: "", again: "" });
  const [error, setError] = useState(null);
  const [busy, setBusy] = useState(false);
  const put = (name) => (value) => set((before) => ({ ...before, [name]: value }));
  const differs = values.again && values.next !== values.again;
  const submit = async (event) => {
    event.preventDefault();
    if (differs) return;
    setBusy(true);
    setError(null);
    try {
      await choosePassword(values.now, values.next);
      set({ now: "", next: "", again: "" });
      done?.();
    } catch (failed) {
      setError(failed);
    }
    setBusy(false);
  };
  return html`<form onSubmit=${submit}>
    <${Trouble} error=${error?.field ? null : error} />
    <input name="username" autocomplete="username" value=${current()?.username} readonly hidden />
    <${Field} label=${t("The password you have now")} type="password" autocomplete="current-password" required value=${values.now} onInput=${put("now")} error=${error?.field === "current" && error.message} />
    <${Field} label=${t("A new one")} help=${t("At least 12 characters.")} type="password" autocomplete="new-password" minlength="12" required value=${values.next} onInput=${put("next")} error=${error?.field === "password" && error.message} />
    <${Field} label=${t("The new one again")} type="password" autocomplete="new-password" required value=${values.again} onInput=${put("again")} quiet error=${differs && t("The two are not the same.")} />
    <div class="row end"><button type="submit" class="primary" disabled=${busy || differs}>${t("Change the password")}</button></div>
  </form>`;
}

export const ChoosePassword = () => html`<main class="alone">
  <h1>${t("Choose a password")}</h1>
  <p>${t("Somebody else knows the one you have. Before anything else, choose one of your own.")}</p>
  <${PasswordForm} />
  <button type="button" onClick=${signOut}>${t("Sign out")}</button>
</main>`;
