// Open event streams and WebSockets.

import { call, get, may, query } from "../api.js";
import { html, useState } from "../html.js";
import { age, t } from "../i18n.js";
import { Action, Done, KeyId, More, Page, Silent, Table, Trouble, useList } from "../ui.js";

export function Streams() {
  const list = useList((cursor, signal) => get(`/streams${query({ cursor })}`, { signal }), []);
  const [done, setDone] = useState("");
  const end = (row) => async () => {
    await call("DELETE", `/streams/${row.id}${query({ replica: row.replica })}`);
    setDone(t("Stream of {client} ended.", row));
    list.reload();
  };
  return html`<${Page} title=${t("Streams")} actions=${html`<button type="button" onClick=${list.reload}>${t("Refresh")}</button>`}>
    <p>${t("Open event streams and WebSockets on all replicas, oldest first.")}</p>
    ${done && html`<${Done}>${done}</${Done}>`}
    <${Trouble} error=${list.error} retry=${list.reload} />
    <${Silent} replicas=${list.silent} />
    <${Table} caption=${t("Open streams")} rows=${list.items} of=${(row) => `${row.replica} ${row.id}`} loading=${list.loading} empty=${t("No open streams.")} columns=${[
      [t("Duration"), (row) => age(row.age_s)],
      [t("Client"), (row) => html`<code>${row.client}</code> ${row.subject && html`<small>${row.subject}</small>`}`],
      [t("Key"), (row) => (row.key_id ? html`<${KeyId} id=${row.key_id} hint=${row.hint} />` : "–")],
      [t("Route"), (row) => html`${row.route} <code>${row.path}</code>`],
      [t("Server"), (row) => row.upstream || "–"],
      [t("Replica"), (row) => row.replica],
      [t("Request id"), (row) => html`<small>${row.request_id || "–"}</small>`],
      [t("Actions"), (row) => may("streams") && html`<${Action} kind="danger" confirm=${t("The client's response is cut off. This cannot be undone.")} run=${end(row)}>${t("End")}</${Action}>`],
    ]} />
    <${More} list=${list} />
  </${Page}>`;
}
