// Client of the admin API: requests, the session, live events.

const BASE = "/admin/api";
const STORED = "keylatch.session";

let session = read();
const listeners = new Set();
let renewal;

function read() {
  try {
    return JSON.parse(sessionStorage.getItem(STORED));
  } catch {
    return null;
  }
}

function setSession(next) {
  session = next;
  if (next) sessionStorage.setItem(STORED, JSON.stringify(next));
  else sessionStorage.removeItem(STORED);
  listeners.forEach((tell) => tell(next));
  plan();
}

// The token is renewed after half of its lifetime; a machine that wakes from sleep renews it at once.
function plan() {
  clearTimeout(renewal);
  if (!session || session.expired) return;
  renewal = setTimeout(renew, Math.max(1000, (session.until - Date.now()) / 2));
}

async function renew() {
  try {
    setSession(signedIn(await call("POST", "/session")));
  } catch {
    if (session && !session.expired) renewal = setTimeout(renew, 5000);
  }
}

const signedIn = (answer) => ({
  token: answer.access_token,
  until: Date.now() + answer.expires_in * 1000,
  username: answer.username,
  role: answer.role,
  scopes: answer.scopes,
  mustChange: answer.must_change_password,
});

export const current = () => session;
export const may = (scope) => Boolean(session?.scopes.includes(scope));

export function onSession(tell) {
  listeners.add(tell);
  return () => listeners.delete(tell);
}

// A problem returned by the API (RFC 9457).
export class Problem extends Error {
  constructor(problem) {
    super(problem.detail || problem.title);
    Object.assign(this, { status: problem.status, field: problem.field, title: problem.title, type: problem.type });
  }
}

export async function call(method, path, body, { version, fresh, raw, signal } = {}) {
  const headers = {};
  const token = session?.token;
  if (token) headers.authorization = `Bearer ${token}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  if (version !== undefined) headers["if-match"] = `"${version}"`;
  if (fresh) headers["if-none-match"] = "*";
  let answer;
  try {
    answer = await fetch(BASE + path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body), signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({ status: 0, title: "offline", detail: "offline" });
  }
  if (answer.ok) return raw ? answer : answer.status === 204 ? null : answer.json();
  const problem = new Problem(await answer.json().catch(() => ({ status: answer.status, title: answer.statusText, detail: `${answer.status} ${answer.statusText}` })));
  // The session has ended: the page stays until the user has signed in again.
  if (answer.status === 401 && session && session.token === token && path !== "/login" && !path.startsWith("/oidc/")) setSession({ ...session, expired: true });
  throw problem;
}

export const get = (path, options) => call("GET", path, undefined, options);
export const query = (values) => {
  const entries = Object.entries(values).filter(([, value]) => value !== undefined && value !== null && value !== "");
  const text = new URLSearchParams(entries).toString();
  return text ? `?${text}` : "";
};

export async function signIn(username, password) {
  setSession(signedIn(await call("POST", "/login", { username, password })));
}

// A provider sign-in leaves this page; the provider redirects back to `?state=…&code=…`.
const PLACE = "keylatch.place";
export const signInProviders = () => get("/oidc");

export async function beginProviderSignIn(provider) {
  const { url } = await call("POST", `/oidc/${provider}/begin`);
  sessionStorage.setItem(PLACE, location.hash);
  location.assign(url);
}

// Finishes a provider sign-in if the address is a redirect back; returns the error, or `null`.
export async function finishProviderSignIn() {
  const { state, code, iss, provider, error, error_description: why } = Object.fromEntries(new URLSearchParams(location.search));
  if (!state) return null;
  // A redirect without a sign-in begun in this tab is ignored: anyone can craft such a link.
  const place = sessionStorage.getItem(PLACE);
  // The code is valid once, and should not stay in the address.
  history.replaceState(null, "", location.pathname + (place || ""));
  sessionStorage.removeItem(PLACE);
  if (place === null) return null;
  if (!code) return new Problem({ status: 403, title: "The provider refused the sign-in", detail: why || error || "" });
  try {
    setSession(signedIn(await call("POST", "/oidc/finish", { state, code, iss, provider })));
    return null;
  } catch (failed) {
    return failed;
  }
}

export const clearSession = () => setSession(null);

export async function signOut() {
  try {
    await call("POST", "/logout");
  } finally {
    setSession(null);
  }
}

export async function choosePassword(now, next) {
  await call("PUT", "/account/password", { current: now, password: next });
  await renew();
}

export async function download(path) {
  const answer = await call("GET", path, undefined, { raw: true });
  const name = /filename="([^"]+)"/.exec(answer.headers.get("content-disposition") || "")?.[1] || "keylatch";
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await answer.blob());
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// Follows the event stream until stopped, and reconnects. `tell(event, data)`; `state(connected)`.
// Browsers allow about six HTTP/1.1 connections per server, for all tabs together: a hidden tab (or a page kept for the
// back button) releases its connection, and `tell("resumed")` follows once it is shown and connected again.
export function follow(tell, state) {
  let stopped = false;
  let connection = new AbortController();
  let shown = () => {};
  const changed = () => (document.hidden ? connection.abort() : shown());
  document.addEventListener("visibilitychange", changed);
  (async () => {
    let pause = 1000;
    let resumed = false;
    while (!stopped) {
      if (document.hidden) {
        await new Promise((visible) => (shown = visible));
        resumed = true;
        continue;
      }
      connection = new AbortController();
      const { signal } = connection;
      if (session && !session.expired) {
        try {
          const answer = await call("GET", "/events", undefined, { raw: true, signal });
          state(true);
          if (resumed) tell("resumed");
          resumed = false;
          pause = 1000;
          await each(answer.body, tell);
        } catch {
          // The connection state is set below.
        }
      }
      if (stopped) return;
      if (signal.aborted) continue;
      state(false);
      await new Promise((later) => setTimeout(later, pause));
      pause = Math.min(pause * 2, 15_000);
    }
  })();
  return () => {
    stopped = true;
    document.removeEventListener("visibilitychange", changed);
    connection.abort();
    shown();
  };
}

async function each(body, tell) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    let end;
    while ((end = text.indexOf("\n\n")) >= 0) {
      const fields = { event: "message", data: "" };
      for (const line of text.slice(0, end).split("\n")) {
        const at = line.indexOf(":");
        if (at > 0) fields[line.slice(0, at)] = line.slice(at + 1).trimStart();
      }
      text = text.slice(end + 2);
      if (fields.data) tell(fields.event, JSON.parse(fields.data));
    }
  }
}

plan();
