// The admin API: calls, who is signed in, and what happens as it happens.

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

function hold(next) {
  session = next;
  if (next) sessionStorage.setItem(STORED, JSON.stringify(next));
  else sessionStorage.removeItem(STORED);
  listeners.forEach((tell) => tell(next));
  plan();
}

// Long before the token expires there is another one; a machine that slept asks at once.
function plan() {
  clearTimeout(renewal);
  if (!session || session.expired) return;
  renewal = setTimeout(renew, Math.max(1000, (session.until - Date.now()) / 2));
}

async function renew() {
  try {
    hold(signedIn(await call("POST", "/session")));
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

// What went wrong, in the API's own words.
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
  // Signed out elsewhere, or too late: the page stays as it is until somebody has signed in again.
  if (answer.status === 401 && session && session.token === token && path !== "/login" && !path.startsWith("/oidc/")) hold({ ...session, expired: true });
  throw problem;
}

export const get = (path, options) => call("GET", path, undefined, options);
export const query = (values) => {
  const entries = Object.entries(values).filter(([, value]) => value !== undefined && value !== null && value !== "");
  const text = new URLSearchParams(entries).toString();
  return text ? `?${text}` : "";
};

export async function signIn(username, password) {
  hold(signedIn(await call("POST", "/login", { username, password })));
}

// Signing in elsewhere leaves this page; it is come back to as `?state=…&code=…`.
const PLACE = "keylatch.place";
export const doors = () => get("/oidc");

export async function leave(provider) {
  const { url } = await call("POST", `/oidc/${provider}/begin`);
  sessionStorage.setItem(PLACE, location.hash);
  location.assign(url);
}

// Finishes a sign-in that was begun elsewhere, if this is one: what went wrong, or `null`.
export async function comeBack() {
  const { state, code, iss, provider, error, error_description: why } = Object.fromEntries(new URLSearchParams(location.search));
  if (!state) return null;
  // Whoever has not left from here does not come back: links say what they like.
  const place = sessionStorage.getItem(PLACE);
  // The code is good once, and nobody needs to see it again.
  history.replaceState(null, "", location.pathname + (place || ""));
  sessionStorage.removeItem(PLACE);
  if (place === null) return null;
  if (!code) return new Problem({ status: 403, title: "The provider did not let you in", detail: why || error || "" });
  try {
    hold(signedIn(await call("POST", "/oidc/finish", { state, code, iss, provider })));
    return null;
  } catch (failed) {
    return failed;
  }
}

export const forget = () => hold(null);

export async function signOut() {
  try {
    await call("POST", "/logout");
  } finally {
    hold(null);
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

// Follows the event stream until it is stopped, and reconnects by itself. `tell(event, data)`; `state(connected)`.
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
          // The state is set below.
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
