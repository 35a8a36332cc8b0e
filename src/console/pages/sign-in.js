// Sign-in and change of the password.

import { choosePassword, current, signInProviders, clearSession, beginProviderSignIn, signIn, signOut } from "../api.js";
import { html, useState } from "../html.js";
import { t } from "../i18n.js";
import { Action, Field, Trouble, useLoad } from "../ui.js";

// A button for each provider. `only`: the provider of the expired session.
function ProviderButtons({ only }) {
  const { data } = useLoad(signInProviders, []);
  const items = (data?.items || []).filter(({ name }) => !only || name === only);
  if (!items.length) return null;
  return html`<div class="providers">${items.map(({ name, label }) => html`<${Action} key=${name} run=${() => beginProviderSignIn(name)}>${t("Sign in with {label}", { label })}</${Action}>`)}</div>`;
}

export function SignIn({ again, refused, children }) {
  const [provider] = again?.includes(":") ? again.split(":") : [];
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
  if (provider) return html`<${Trouble} error=${error} /><${ProviderButtons} only=${provider} /><div class="row end"><button type="button" onClick=${clearSession}>${t("Use another account")}</button></div>`;
  if (again) return form;
  return html`<main class="alone"><img src="icon.svg" alt="" width="48" height="48" /><h1>${t("Sign in to Keylatch")}</h1>${form}<${ProviderButtons} />${children}</main>`;
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
    <${Field} label=${t("Current password")} type="password" autocomplete="current-password" required value=${values.now} onInput=${put("now")} error=${error?.field === "current" && error.message} />
    <${Field} label=${t("New password")} help=${t("At least 12 characters.")} type="password" autocomplete="new-password" minlength="12" required value=${values.next} onInput=${put("next")} error=${error?.field === "password" && error.message} />
    <${Field} label=${t("Confirm new password")} type="password" autocomplete="new-password" required value=${values.again} onInput=${put("again")} quiet error=${differs && t("The passwords do not match.")} />
    <div class="row end"><button type="submit" class="primary" disabled=${busy || differs}>${t("Change password")}</button></div>
  </form>`;
}

export const ChoosePassword = () => html`<main class="alone">
  <h1>${t("Choose a password")}</h1>
  <p>${t("Your current password is temporary. Choose a new one to continue.")}</p>
  <${PasswordForm} />
  <button type="button" onClick=${signOut}>${t("Sign out")}</button>
</main>`;
