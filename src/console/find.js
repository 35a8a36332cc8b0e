// Search fields. A key is looked up in a request body and never becomes part of an address or a query.

import { call, get, query } from "./api.js";
import { html, useEffect, useRef, useState } from "./html.js";
import { t } from "./i18n.js";
import { href } from "./route.js";
import { Field } from "./ui.js";

const KEY_CHARS_MIN = 20;

// Classifies a text: a key id, an address or network, a key, or another word.
export function classify(text) {
  const said = text.trim();
  const id = said.replace(/^key=/, "").replace(/…$/, "");
  if (/^[0-9a-f]{6,64}$/i.test(id)) return { key_id: id.toLowerCase() };
  const address = said.replace(/^client=/, "");
  if (/^[0-9a-f:.]+(\/\d{1,3})?$/i.test(address) && /[.:]/.test(address)) return { network: address };
  // A long text is a key unless it looks like a setting name, a path or an e-mail address.
  const isLong = said.length >= KEY_CHARS_MIN && /[0-9A-Z]/.test(said) && !/^\/|[\s[\]"'(){}@<>,;…]/.test(said);
  if (isLong || /^sk-[^\s…]{8,}$/.test(said)) return { key: said };
  return { word: said };
}

// Classifies a text and replaces a key, or the hint of exactly one key, by its key id.
export async function resolve(text, { hints } = {}) {
  const said = classify(text);
  if (said.key) {
    const found = await call("POST", "/bindings/look-up", { key: said.key });
    return { key_id: found.key_id, unbound: !found.binding };
  }
  if (!hints || !said.word || said.word.length < 4) return said;
  const { items } = await get(`/bindings${query({ hint: said.word, limit: 2 })}`);
  return items.length === 1 ? { key_id: items[0].key_id } : { ...said, several: items.length > 1 };
}

// The complete id of the key with these first digits.
export async function wholeId(digits) {
  return digits.length === 64 ? digits : (await get(`/bindings/${digits}`)).key_id;
}

// A search field that submits on Enter or blur. `find(text)` may return an error text.
export function SearchField({ label, help, value = "", find, ...rest }) {
  const [text, setText] = useState(value);
  const [wrong, setWrong] = useState(null);
  const before = useRef(value);
  useEffect(() => {
    // Not on the first render: the user may be typing already.
    if (before.current !== value) setText(value);
    before.current = value;
  }, [value]);
  const search = async ({ target }) => {
    const said = target.value.trim();
    if (said === value) return;
    setWrong(null);
    try {
      const why = said ? await find(said) : await find("");
      if (why) setWrong(why);
    } catch (failed) {
      setWrong(failed.message);
    }
    // A key must not stay on the page.
    if (classify(said).key) setText(value);
  };
  const entered = (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    search(event);
  };
  return html`<${Field} label=${label} help=${help} value=${text} error=${wrong} quiet onInput=${setText} onChange=${search} onKeyDown=${entered} autocomplete="off" spellcheck=${false} maxlength="32768" ...${rest} />`;
}

// Links to the traces of a key that is not bound.
export const KeyLinks = ({ id }) => html`<a href=${href("intercepts", { key_id: id })}>${t("Intercepts of this key")}</a> · <a href=${href("audit", { target: id })}>${t("Changes of this key")}</a> · <a href=${href("limits", { search: id.slice(0, 12) })}>${t("Limits of this key")}</a>`;
