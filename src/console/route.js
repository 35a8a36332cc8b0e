// Routes in the address: `#/page/thing?filter=value`, so that the back button and shared links work.

import { useEffect, useState } from "./html.js";

export function parse() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [page = "", ...rest] = path.split("/");
  // A typed address may contain invalid escapes.
  const decoded = (text) => {
    try {
      return decodeURIComponent(text);
    } catch {
      return text;
    }
  };
  return { page: page || "dashboard", thing: rest.map(decoded).join("/"), params: Object.fromEntries(new URLSearchParams(query)) };
}

export const href = (page, params = {}) => {
  const entries = Object.entries(params).filter(([, value]) => value !== undefined && value !== null && value !== "");
  const query = new URLSearchParams(entries).toString();
  return `#/${page}${query ? `?${query}` : ""}`;
};

export function go(page, params, { replace } = {}) {
  const next = href(page, params);
  if (location.hash === next) return;
  if (replace) {
    history.replaceState(null, "", next);
    dispatchEvent(new HashChangeEvent("hashchange"));
  } else location.hash = next;
}

export function useRoute() {
  const [route, set] = useState(parse);
  useEffect(() => {
    const changed = () => set(parse());
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  return route;
}
