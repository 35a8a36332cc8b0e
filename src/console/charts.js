// Charts of counts over time, each with a table for screen readers.

import { html, useEffect, useRef } from "./html.js";
import { local, locale, t } from "./i18n.js";
import uPlot from "./vendor/uplot.js";

// A canvas cannot resolve CSS variables, so an element computes the colour.
function colour(name) {
  const probe = document.createElement("i");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const { color } = getComputedStyle(probe);
  probe.remove();
  return color;
}
export const COLOURS = ["--c1", "--c2", "--c3", "--c4", "--c5", "--c6"];

// Stacks the series; the first one drawn is the sum of all.
function stacked(series) {
  const sums = [];
  let below = null;
  for (const one of series) {
    below = one.values.map((value, at) => (value || 0) + (below ? below[at] : 0));
    sums.push(below);
  }
  return sums;
}

// `series`: [{ name, values, colour? }]. `format` writes a value.
export function Chart({ title, points, series, stack, format }) {
  const box = useRef();
  const key = JSON.stringify([points.length, points[0], points.at(-1), series]);
  useEffect(() => {
    const host = box.current;
    const draw = () => {
      host.replaceChildren();
      if (!points.length) return null;
      const step = points.length > 1 ? (Date.parse(points[1]) - Date.parse(points[0])) / 1000 : 60;
      const order = stack ? [...series.keys()].reverse() : [...series.keys()];
      const drawn = stack ? stacked(series) : series.map((one) => one.values);
      const ink = colour("--muted");
      const axis = { stroke: ink, grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") }, font: "12px system-ui" };
      const chart = new uPlot(
        {
          width: Math.max(200, host.clientWidth),
          height: 200,
          legend: { show: false },
          cursor: { points: { show: false }, drag: { x: false, y: false } },
          // Each point is a time step that begins there.
          scales: { x: { range: (_, from, until) => [from, until + (stack ? step : 0)] }, y: { range: (_, least, most) => [0, Math.max(most * 1.1, stack ? 1 : 0.001)] } },
          axes: [
            { ...axis, space: 72, values: (_, splits) => splits.map((at) => clock(at, points)) },
            { ...axis, size: 60, values: (_, splits) => splits.map((value) => format(value)) },
          ],
          series: [
            {},
            ...order.map((at) => {
              const stroke = colour(series[at].colour || COLOURS[at % COLOURS.length]);
              return { label: series[at].name, stroke, width: 1.5, fill: stack ? stroke : undefined, paths: stack ? uPlot.paths.bars({ size: [0.9, 80], align: 1 }) : undefined, points: stack ? { show: false } : { show: true, size: 5, stroke, fill: stroke }, spanGaps: false };
            }),
          ],
        },
        [points.map((at) => Date.parse(at) / 1000), ...order.map((at) => drawn[at])],
        host,
      );
      return chart;
    };
    let chart = draw();
    const again = () => {
      chart?.destroy();
      chart = draw();
    };
    let width = host.clientWidth;
    const resized = new ResizeObserver(() => {
      if (Math.abs(host.clientWidth - width) > 2) {
        width = host.clientWidth;
        again();
      }
    });
    resized.observe(host);
    const dressed = new MutationObserver(again);
    dressed.observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
    const system = matchMedia("(prefers-color-scheme: dark)");
    system.addEventListener("change", again);
    return () => {
      resized.disconnect();
      dressed.disconnect();
      system.removeEventListener("change", again);
      chart?.destroy();
    };
  }, [key]);
  return html`<figure class="chart">
    <figcaption>${title}<span class="legend">${series.map((one, at) => html`<span class="swatch ${(one.colour || COLOURS[at % COLOURS.length]).slice(2)}">${one.name}</span>`)}</span></figcaption>
    <div ref=${box} aria-hidden="true"></div>
    <details><summary>${t("Show as table")}</summary>
      <div class="table" role="region" tabindex="0" aria-label=${title}><table><caption>${title}</caption>
        <thead><tr><th scope="col">${t("Time")}</th>${series.map((one) => html`<th scope="col" class="number">${one.name}</th>`)}</tr></thead>
        <tbody>${points.map((at, index) => html`<tr><th scope="row">${local(at)}</th>${series.map((one) => html`<td class="number">${format(one.values[index])}</td>`)}</tr>`).reverse()}</tbody>
      </table></div>
    </details>
  </figure>`;
}

function clock(at, points) {
  const days = (Date.parse(points.at(-1)) - Date.parse(points[0])) / 86_400_000;
  const options = days > 1.5 ? { month: "short", day: "numeric" } : { hour: "2-digit", minute: "2-digit" };
  return new Intl.DateTimeFormat(locale(), options).format(new Date(at * 1000));
}

// A ranking, largest first. `rows`: [{ name, value, label, shown }].
export const Bars = ({ title, rows, empty }) => html`<figure class="bars">
  <figcaption>${title}</figcaption>
  ${rows.length === 0 && html`<p class="empty">${empty}</p>`}
  <ol>${rows.map((row) => html`<li><span>${row.name}</span><meter min="0" max=${rows[0].value} value=${row.value} aria-label=${row.label}></meter><span class="number">${row.shown}</span></li>`)}</ol>
</figure>`;
