// The root of the console: the sign-in page, or the frame with the page of the address.

import { finishProviderSignIn, current, follow, may, onSession, signOut } from "./api.js";
import { html, render, useEffect, useRef, useState } from "./html.js";
import { choose, language, languages, t } from "./i18n.js";
import { href, useRoute } from "./route.js";
import { Dialog } from "./ui.js";
import { Account } from "./pages/account.js";
import { Accounts } from "./pages/accounts.js";
import { Audit } from "./pages/audit.js";
import { Binding } from "./pages/binding.js";
import { Bindings } from "./pages/bindings.js";
import { Configuration } from "./pages/configuration.js";
import { Dashboard } from "./pages/dashboard.js";
import { Intercepts } from "./pages/intercepts.js";
import { Limits } from "./pages/limits.js";
import { Settings } from "./pages/settings.js";
import { ChoosePassword, SignIn } from "./pages/sign-in.js";
import { Streams } from "./pages/streams.js";
import { Usage } from "./pages/usage.js";

const pages = [
  ["dashboard", () => t("Dashboard"), Dashboard],
  ["usage", () => t("Usage"), Usage],
  ["bindings", () => t("Bindings"), Bindings],
  ["intercepts", () => t("Intercepts"), Intercepts],
  ["streams", () => t("Streams"), Streams],
  ["limits", () => t("Limits"), Limits],
  ["settings", () => t("Settings"), Settings],
  ["configuration", () => t("Configuration"), Configuration],
  ["audit", () => t("Audit"), Audit],
  ["accounts", () => t("Accounts"), Accounts, "accounts"],
  ["account", () => t("Your account"), Account],
];

const THEME = "keylatch.theme";
const applyTheme = (theme) => {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
};
applyTheme(localStorage.getItem(THEME));

function Appearance({ selectLanguage }) {
  const [theme, set] = useState(localStorage.getItem(THEME) || "");
  const selectTheme = (next) => {
    if (next) localStorage.setItem(THEME, next);
    else localStorage.removeItem(THEME);
    applyTheme(next);
    set(next);
  };
  return html`<div class="appearance">
    <label><span>${t("Language")}</span> <select value=${language} onChange=${(event) => selectLanguage(event.target.value)}>
      ${Object.entries(languages).map(([code, name]) => html`<option value=${code} lang=${code} selected=${code === language}>${name}</option>`)}
    </select></label>
    <label><span>${t("Colours")}</span> <select value=${theme} onChange=${(event) => selectTheme(event.target.value)}>
      <option value="">${t("System")}</option><option value="light">${t("Light")}</option><option value="dark">${t("Dark")}</option>
    </select></label>
  </div>`;
}

function Frame({ session, selectLanguage }) {
  const route = useRoute();
  const [live, setLive] = useState({ on: null, now: null, fresh: [] });
  const [menu, setMenu] = useState(false);
  const main = useRef();
  useEffect(() => {
    const tell = (event, data) =>
      setLive((before) => {
        if (event === "now") return { ...before, now: data, away: null, at: Date.now() };
        if (event === "resumed") return { ...before, resumed: Date.now() };
        if (event === "intercepts") return { ...before, fresh: data, at: Date.now() };
        return { ...before, away: data };
      });
    return follow(tell, (on) => setLive((before) => ({ ...before, on })));
  }, [session.username]);
  useEffect(() => {
    setMenu(false);
    const [, name] = pages.find(([page]) => page === route.page) || pages[0];
    document.title = `${name()} · Keylatch`;
    // Screen readers announce the new page.
    document.getElementById("title")?.focus({ preventScroll: true });
    main.current?.scrollTo(0, 0);
  }, [route.page, route.thing, language]);
  const [, , Shown] = pages.find(([page]) => page === route.page) || pages[0];
  const One = route.page === "bindings" && route.thing ? Binding : Shown;
  return html`<a class="skip" href="#title" onClick=${(event) => (event.preventDefault(), document.getElementById("title")?.focus())}>${t("Skip to content")}</a>
    <header class="top">
      <button type="button" class="menu" aria-expanded=${menu} aria-controls="nav" onClick=${() => setMenu(!menu)}>${t("Menu")}</button>
      <a class="brand" href=${href("dashboard")}><img src="icon.svg" alt="" width="24" height="24" /> Keylatch</a>
      <span class="line ${live.on ? "on" : "off"}" role="status">${live.on === null ? t("Connecting…") : live.on ? t("Live") : t("Reconnecting…")}</span>
      ${live.now?.maintenance && html`<span class="badge bad">${t("Maintenance mode: all requests are refused")}</span>`}
      ${live.away && html`<span class="badge bad">${t("Store unavailable")}</span>`}
      <span class="who">${session.username} <small>${t(session.role)}</small></span>
      <button type="button" onClick=${signOut}>${t("Sign out")}</button>
    </header>
    <nav id="nav" class=${menu ? "open" : ""} aria-label=${t("Pages")}>
      <ul>
        ${pages.filter(([, , , scope]) => !scope || may(scope)).map(([page, name]) => html`<li><a href=${href(page)} aria-current=${route.page === page ? "page" : undefined}>${name()}</a></li>`)}
      </ul>
      <${Appearance} selectLanguage=${selectLanguage} />
    </nav>
    <main ref=${main} id="main"><${One} key=${`${route.page}/${route.thing}`} route=${route} live=${live} session=${session} /></main>`;
}

function App({ refused }) {
  const [session, set] = useState(current());
  const [currentLanguage, setCurrentLanguage] = useState(language);
  useEffect(() => onSession(set), []);
  const selectLanguage = (next) => {
    choose(next);
    setCurrentLanguage(next);
  };
  if (!session) return html`<${SignIn} key=${currentLanguage} refused=${refused}><${Appearance} selectLanguage=${selectLanguage} /></${SignIn}>`;
  if (session.mustChange) return html`<${ChoosePassword} key=${currentLanguage} />`;
  return html`<${Frame} key=${currentLanguage} session=${session} selectLanguage=${selectLanguage} />
    ${session.expired && html`<${Dialog} title=${t("Sign in again")} fixed><p>${t("Your session has expired. Sign in to continue. Your input on this page is kept.")}</p><${SignIn} again=${session.username} refused=${refused} /></${Dialog}>`}`;
}

finishProviderSignIn().then((refused) => render(html`<${App} refused=${refused} />`, document.getElementById("app")));
