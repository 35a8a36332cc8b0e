// Translations. Pages contain the English texts, which are the keys of the other language's catalogue.

import zh from "./zh.js";

const STORED = "keylatch.language";
export const languages = { en: "English", zh: "简体中文" };

const wanted = () => {
  const chosen = localStorage.getItem(STORED);
  if (chosen in languages) return chosen;
  return navigator.languages.some((language) => language.toLowerCase().startsWith("zh")) && !navigator.language.toLowerCase().startsWith("en") ? "zh" : "en";
};

export let language = wanted();
document.documentElement.lang = language === "zh" ? "zh-Hans" : "en";

export function choose(next) {
  localStorage.setItem(STORED, next);
  language = next;
  document.documentElement.lang = next === "zh" ? "zh-Hans" : "en";
}

// Translates a text and replaces each `{name}` in it.
export function t(text, values = {}) {
  const said = (language === "zh" && zh[text]) || text;
  return said.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

export const locale = () => (language === "zh" ? "zh-CN" : navigator.language || "en");
export const number = (value) => (value === null || value === undefined ? "–" : new Intl.NumberFormat(locale(), { maximumFractionDigits: value < 10 ? 1 : 0 }).format(value));
export const compact = (value) => (value === null || value === undefined ? "–" : new Intl.NumberFormat(locale(), { notation: "compact", maximumSignificantDigits: 3 }).format(value));
export const percent = (part, whole) => (whole > 0 ? new Intl.NumberFormat(locale(), { style: "percent", maximumFractionDigits: 0 }).format(part / whole) : "–");
// An amount of money. Amounts below a tenth keep two significant digits.
export function money(value, currency) {
  const amount = Number(value);
  const digits = amount !== 0 && Math.abs(amount) < 0.1 ? { maximumSignificantDigits: 2 } : { minimumFractionDigits: 2, maximumFractionDigits: 2 };
  return new Intl.NumberFormat(locale(), currency ? { style: "currency", currency, ...digits } : digits).format(amount);
}
export const seconds = (value) => {
  if (value === null || value === undefined) return "–";
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} s`;
};

export function age(total) {
  for (const [unit, size] of [["day", 86_400], ["hour", 3600], ["minute", 60]]) {
    if (total >= size) return new Intl.NumberFormat(locale(), { style: "unit", unit, unitDisplay: "short" }).format(Math.floor(total / size));
  }
  return new Intl.NumberFormat(locale(), { style: "unit", unit: "second", unitDisplay: "short" }).format(Math.floor(total));
}

export const local = (at) => new Intl.DateTimeFormat(locale(), { dateStyle: "medium", timeStyle: "medium" }).format(new Date(at));
