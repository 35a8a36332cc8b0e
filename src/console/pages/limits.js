// Usage of limits, updated live.

import { call, get, may } from "../api.js";
import { resolve, SearchField } from "../find.js";
import { html, useEffect, useState } from "../html.js";
import { age, number, t } from "../i18n.js";
import { go } from "../route.js";
import { Action, Badge, Done, Field, KeyId, Page, Silent, Table, Trouble, useLoad } from "../ui.js";

const EVERY_MS = 3000;

function Who({ row }) {
  const others = row.subject.split("+").filter((part) => !(part.startsWith("key=") && row.key_id) && !(part.startsWith("client=") && row.client) && !(part.startsWith("claim=") && row.claim));
  return html`${row.key_id && html`<${KeyId} id=${row.key_id} />`} ${row.client && html`<code>${row.client}</code>`} ${row.claim && html`<code>${row.claim}</code>`} ${others.map((part) => html`<code>${part}</code>`)}`;
}

const Used = ({ row }) => html`<meter min="0" max=${row.most} low=${row.most * 0.8} high=${row.most * 0.99} optimum="0" value=${row.used} aria-label=${t("{used} of {most} used", row)}></meter> <small>${number(row.used)} / ${number(row.most)}</small>`;

export function Limits({ route }) {
  const { over, search = "" } = route.params;
  const limits = useLoad((signal) => get("/limits", { signal }), []);
  const [done, setDone] = useState("");
  // The next request waits for the answer of the previous one.
  useEffect(() => {
    if (limits.loading) return undefined;
    const again = setTimeout(limits.reload, EVERY_MS);
    return () => clearTimeout(again);
  }, [limits.loading]);
  const narrow = (params) => go("limits", { ...route.params, ...params }, { replace: true });
  const giveBack = (row) => async () => {
    await call("POST", "/limits/reset", { limit: row.limit, place: row.place, subject: row.subject });
    setDone(t("{limit} reset for {subject}.", row));
    limits.reload();
  };
  const fits = (row) => (!over || row.over) && [row.limit, row.place, row.subject, row.claim || "", row.replica || "", row.key_id || ""].some((text) => text.includes(search));
  const rows = (limits.data?.items || []).filter(fits);
  return html`<${Page} title=${t("Limits")}>
    <p>${t("Subjects that have used at least 80 % of a limit, on all replicas. Refused ones come first. Updated every few seconds.")}</p>
    ${done && html`<${Done}>${done}</${Done}>`}
    <${Trouble} error=${limits.error} retry=${limits.reload} />
    <${Silent} replicas=${limits.data?.silent} />
    ${limits.data?.complete === false && html`<div class="notice warn" role="status"><p>${t("A replica has more than 1,000 entries. Only those with the highest usage are shown.")}</p></div>`}
    <form class="filters" onSubmit=${(event) => event.preventDefault()}>
      <${SearchField} label=${t("Limit, key, key id, address or claim")} type="search" value=${search} find=${async (said) => {
        const { key_id } = said ? await resolve(said, { hints: true }) : {};
        return narrow({ search: key_id || said });
      }} />
      <${Field} label=${t("Refused only")} type="checkbox" checked=${Boolean(over)} onInput=${(on) => narrow({ over: on ? 1 : "" })} />
    </form>
    <${Table} caption=${t("Subjects near or over a limit")} rows=${rows} of=${(row) => [row.place, row.limit, row.subject, row.replica].join(" ")} loading=${limits.loading && !limits.data} empty=${t("No subject is near a limit.")} columns=${[
      [t("Limit"), (row) => html`<strong>${row.limit}</strong> <small>${row.place}</small> ${row.shadow && html`<${Badge}>${t("shadow")}</${Badge}>`}`],
      [t("Subject"), (row) => html`<${Who} row=${row} />`],
      [t("Used"), (row) => html`<${Used} row=${row} />`],
      [t("State"), (row) => (row.over ? html`<${Badge} kind="bad">${row.shadow ? t("would be refused") : t("refused")}</${Badge}> ${row.retry_in_s > 0 && t("for another {time}", { time: age(row.retry_in_s) })}` : html`<${Badge} kind="warn">${t("near")}</${Badge}>`)],
      [t("Full capacity in"), (row) => (row.full_in_s ? age(row.full_in_s) : "–")],
      [t("Counted by"), (row) => row.replica || t("all replicas together")],
      [t("Actions"), (row) => row.can_give_back && may("limits") && html`<${Action} run=${giveBack(row)} label=${t("Reset {limit} for {subject}", row)}>${t("Reset")}</${Action}>`],
    ]} />
  </${Page}>`;
}
