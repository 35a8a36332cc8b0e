// Shared components of the pages.

import { html, useCallback, useEffect, useRef, useState } from "./html.js";
import { local, t } from "./i18n.js";
import { href } from "./route.js";

// Calls `load(signal)` whenever `deps` change. Previous data stays until new data arrives.
export function useLoad(load, deps) {
  const [state, set] = useState({ loading: true });
  const [again, repeat] = useState(0);
  useEffect(() => {
    const stop = new AbortController();
    set((before) => ({ ...before, loading: true }));
    load(stop.signal).then(
      (data) => set({ data, loading: false }),
      (error) => error.name === "AbortError" || set((before) => ({ ...before, error, loading: false })),
    );
    return () => stop.abort();
  }, [...deps, again]);
  return { ...state, reload: useCallback(() => repeat((n) => n + 1), []), put: (data) => set({ data, loading: false }) };
}

export const Time = ({ at }) => (at ? html`<time datetime=${at} title=${at.replace("T", " ").replace("Z", " UTC")}>${local(at)}</time>` : "–");

export const KeyId = ({ id, hint }) =>
  html`<a class="key" href=${href(`bindings/${id}`)} title=${id}><code>${id.slice(0, 12)}</code>${hint ? html` <span class="hint">${hint}</span>` : ""}</a>`;

export const Badge = ({ kind, children }) => html`<span class="badge ${kind || ""}">${children}</span>`;

export function Trouble({ error, retry }) {
  if (!error) return null;
  const offline = error.status === 0;
  return html`<div class="notice bad" role="alert">
    <p><strong>${offline ? t("Keylatch cannot be reached.") : t(error.title || "Request failed")}</strong> ${offline ? t("Your input is kept. Try again in a moment.") : error.message}</p>
    ${retry && html`<button type="button" onClick=${retry}>${t("Try again")}</button>`}
  </div>`;
}

// A notice of the replicas that did not answer: the data is incomplete.
export const Silent = ({ replicas }) =>
  replicas?.length ? html`<div class="notice warn" role="status"><p>${t("No answer from {names}: their data is missing here.", { names: replicas.join(", ") })}</p></div>` : null;

export const Done = ({ children }) => html`<div class="notice good" role="status">${children}</div>`;

// A button for an asynchronous action; it shows the error beside itself.
export function Action({ run, children, kind, confirm, label, disabled }) {
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState(null);
  const [asking, setAsking] = useState(false);
  const go = async () => {
    setAsking(false);
    setBusy(true);
    setError(null);
    try {
      await run();
    } catch (failed) {
      setError(failed);
    }
    setBusy(false);
  };
  return html`<span class="action">
    <button type="button" class=${kind || ""} disabled=${busy || disabled} aria-label=${label} onClick=${() => (confirm ? setAsking(true) : go())}>${children}</button>
    ${error && html`<span class="wrong" role="alert">${error.message}</span>`}
    ${asking && html`<${Dialog} title=${children} close=${() => setAsking(false)}>
      <p>${confirm}</p>
      <div class="row end"><button type="button" onClick=${() => setAsking(false)}>${t("Cancel")}</button><button type="button" class="danger" onClick=${go}>${children}</button></div>
    </${Dialog}>`}
  </span>`;
}

export function Dialog({ title, close, children, fixed }) {
  const dialog = useRef();
  useEffect(() => {
    dialog.current.showModal();
    return () => dialog.current?.close();
  }, []);
  return html`<dialog ref=${dialog} aria-labelledby="dialog-title" onCancel=${(event) => (fixed ? event.preventDefault() : close())}>
    <h2 id="dialog-title">${title}</h2>
    ${children}
  </dialog>`;
}

let fields = 0;

// A labelled input with its error. `as` may be `select` or `textarea`. `quiet`: an error does not move the focus to the
// field while the user types elsewhere.
export function Field({ label, help, error, quiet, as = "input", children, onInput, ...rest }) {
  const [id] = useState(() => `field-${++fields}`);
  const control = useRef();
  useEffect(() => {
    if (error && !quiet) control.current?.focus();
  }, [error]);
  const described = [help && `${id}-help`, error && `${id}-error`].filter(Boolean).join(" ");
  const props = { id, ref: control, "aria-describedby": described || undefined, "aria-invalid": error ? "true" : undefined, ...rest };
  if (onInput) props[as === "select" || rest.type === "checkbox" ? "onChange" : "onInput"] = (event) => onInput(rest.type === "checkbox" ? event.target.checked : event.target.value);
  return html`<div class="field ${rest.type === "checkbox" ? "check" : ""}">
    <label for=${id}>${label}</label>
    <${as} ...${props}>${children}</${as}>
    ${help && html`<small id="${id}-help">${help}</small>`}
    ${error && html`<small id="${id}-error" class="wrong">${error}</small>`}
  </div>`;
}

// `columns`: [heading, row => cell, class]. Wide tables scroll horizontally.
export function Table({ caption, columns, rows, empty, loading, of = (row) => row.id || row.key_id || row.name }) {
  return html`<div class="table" role="region" tabindex="0" aria-label=${caption} aria-busy=${loading ? "true" : "false"}>
    <table>
      <caption>${caption}</caption>
      <thead><tr>${columns.map(([heading, , kind]) => html`<th scope="col" class=${kind || ""}>${heading}</th>`)}</tr></thead>
      <tbody>
        ${rows.map((row) => html`<tr key=${of(row)}>${columns.map(([heading, cell, kind]) => html`<td class=${kind || ""} data-label=${heading}><div>${cell(row)}</div></td>`)}</tr>`)}
        ${!rows.length && html`<tr><td class="empty" colspan=${columns.length}>${loading ? t("Loading…") : empty}</td></tr>`}
      </tbody>
    </table>
  </div>`;
}

// A paged list: `load(cursor, signal)`. Empty pages with a cursor continue automatically, up to a limit.
export function useList(load, deps) {
  const [state, set] = useState({ items: [], next: null, total: null, loading: true });
  const [again, repeat] = useState(0);
  const stop = useRef();
  const fetch = useCallback(async (cursor, before) => {
    stop.current?.abort();
    const mine = (stop.current = new AbortController());
    set({ ...before, loading: true, error: null });
    try {
      let [items, total, next, silent] = [before.items, before.total, cursor, cursor ? before.silent || [] : []];
      for (let searched = 0; searched < 5; searched += 1) {
        const page = await load(next, mine.signal);
        [items, next, total, silent] = [[...items, ...page.items], page.next, page.total ?? total, [...new Set([...silent, ...(page.silent || [])])]];
        if (page.items.length || !next) break;
      }
      set({ items, next, total, silent, loading: false });
    } catch (error) {
      if (error.name !== "AbortError") set({ ...before, loading: false, error });
    }
  }, deps);
  useEffect(() => {
    fetch(null, { items: [], next: null, total: null });
    return () => stop.current?.abort();
  }, [...deps, again]);
  return { ...state, more: () => fetch(state.next, state), reload: () => repeat((n) => n + 1) };
}

export function More({ list }) {
  const shown = list.items.length;
  return html`<div class="row more">
    <span role="status">${list.total === null || list.total === undefined ? t("{shown} shown", { shown }) : t("{shown} of {total} shown", { shown, total: list.total })}</span>
    ${list.next && html`<button type="button" disabled=${list.loading} onClick=${list.more}>${list.loading ? t("Loading…") : shown ? t("Show more") : t("Continue search")}</button>`}
  </div>`;
}

export const Page = ({ title, actions, children }) => html`<section class="page">
  <header class="row"><h1 tabindex="-1" id="title">${title}</h1><div class="row">${actions}</div></header>
  ${children}
</section>`;

export const Copy = ({ text }) => {
  const [done, set] = useState(false);
  return html`<button type="button" onClick=${() => navigator.clipboard?.writeText(text).then(() => set(true))}>${done ? t("Copied") : t("Copy")}</button>`;
};
