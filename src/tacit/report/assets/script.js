"use strict";
// Draws the charts with the page's own colours, and the samples browser. All texts of a run go in as text, never as HTML.

const data = JSON.parse(document.getElementById("data").textContent);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const series = (index) => colour(`c${index % 8}`);
const element = (tag, attributes = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
};
const faded = (hex) => hex + "55";

// --- charts ---

const layout = (extra) => {
  const axis = { gridcolor: colour("line"), linecolor: colour("line"), zerolinecolor: colour("line"), tickfont: { color: colour("faint") }, automargin: true };
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("soft") },
    margin: { l: 8, r: 8, t: 8, b: 8 },
    hovermode: "x unified",
    hoverlabel: { bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("ink") } },
    showlegend: false,
    ...extra,
    xaxis: { ...axis, showgrid: false, zeroline: false, ...extra.xaxis },
    yaxis: { ...axis, nticks: 6, ...extra.yaxis },
  };
};
const options = { displayModeBar: false, responsive: true };

const main = (line) => ({
  name: line.name, x: line.x, y: line.y, type: "scatter", connectgaps: false,
  mode: line.style === "points" ? "lines+markers" : line.x.length === 1 ? "markers" : "lines",
  hoverinfo: line.style === "faint" ? "skip" : undefined,
  line: {
    color: line.style === "faint" ? faded(series(line.colour)) : series(line.colour),
    width: { faint: 1, points: 1.5 }[line.style] ?? 2, dash: line.style === "dashed" ? "dot" : "solid",
  },
  marker: { size: 6, color: series(line.colour) },
  error_y: line.low && line.high && !line.band && {
    type: "data", symmetric: false, array: line.high.map((high, n) => high - line.y[n]), arrayminus: line.low.map((low, n) => line.y[n] - low),
    color: series(line.colour), thickness: 1.2, width: 3,
  },
});

// A line with a band is three traces: its lower edge, the area up to its upper edge, and the line itself.
const edge = (line, y, fill) => ({
  x: line.x, y, type: "scatter", mode: "lines", line: { width: 0 }, hoverinfo: "skip", connectgaps: true,
  ...(fill ? { fill: "tonexty", fillcolor: series(line.colour) + "2b" } : {}),
});
const traces = (line) => (line.band ? [edge(line, line.low, false), edge(line, line.high, true), main(line)] : [main(line)]);

const limit = (bound) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: bound.y, y1: bound.y, line: { color: colour("warn"), width: 1, dash: "dash" } });
const label = (bound, log) => ({
  xref: "paper", x: 1, y: log ? Math.log10(bound.y) : bound.y, text: bound.label, showarrow: false, xanchor: "right", yanchor: "bottom",
  font: { size: 11, color: colour("warn") },
});

function drawChart(id, chart) {
  const values = chart.lines.flatMap((line) => [...line.y, ...(line.band ? [...line.low, ...line.high] : [])]).filter((y) => y !== null);
  const log = chart.log && values.some((y) => y > 0) && values.every((y) => y >= 0);
  const shown = chart.limits.filter((bound) => log || near(bound.y, values));
  const yaxis = log ? { type: "log", exponentformat: "power", dtick: 1 } : {};
  if (!log) {
    const low = Math.min(...values), high = Math.max(...values);
    if (low === high) yaxis.range = low === 0 ? [-0.05, 1] : [Math.min(0, 2 * low), Math.max(0, 2 * low)];
    else yaxis.rangemode = low >= 0 && low < 0.3 * high ? "tozero" : "normal";
    yaxis.exponentformat = Math.abs(high) < 0.001 ? "e" : "SI";
  }
  const steps = chart.lines.flatMap((line) => line.x), first = Math.min(...steps), last = Math.max(...steps), margin = 0.015 * (last - first) || 1;
  Plotly.react(`chart-${id}`, chart.lines.flatMap(traces),
    layout({ yaxis, xaxis: { range: [first - margin, last + margin] }, shapes: shown.map(limit), annotations: shown.map((bound) => label(bound, log)) }), options);
  legend(`chart-${id}`, chart.lines.flatMap((line) => traces(line).map(() => [line.key, line.colour])));
}

// Buttons under a chart, one for each key of its traces, that hide and show them.
function legend(id, traces) {
  const chart = document.getElementById(id), keys = new Map(traces);
  chart.parentElement.querySelector(".legend")?.remove();
  if (keys.size < 2) return;
  const place = element("div", { class: "legend" });
  for (const [key, index] of keys) {
    const button = element("button", { type: "button", "aria-pressed": "true", title: `Hide or show ${key}` }, element("i", { style: `background: var(--c${index % 8})` }), key);
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(on));
      Plotly.restyle(id, { visible: on }, traces.flatMap(([other], n) => (other === key ? [n] : [])));
    });
    place.append(button);
  }
  chart.after(place);
}

// A threshold far away from the curve would flatten it.
function near(bound, values) {
  const low = Math.min(...values), high = Math.max(...values), span = high - low || Math.abs(high) || 1;
  return bound > low - 2 * span && bound < high + 2 * span;
}

function drawTime(time) {
  const bars = time.bars.map((bar) => ({
    type: "bar", name: bar.name, marker: { color: series(bar.colour) }, hovertemplate: "%{" + (time.horizontal ? "x" : "y") + ":.3f} s",
    ...(time.horizontal ? { y: bar.x, x: bar.y, orientation: "h" } : { x: bar.x, y: bar.y }),
  }));
  const axes = time.horizontal ? { yaxis: { autorange: "reversed", type: "category", showgrid: false }, xaxis: { showgrid: true }, hovermode: "closest" } : {};
  Plotly.react("chart-time", bars, layout({ barmode: "stack", bargap: time.horizontal ? 0.45 : 0.12, ...axes }), options);
  legend("chart-time", time.bars.map((bar) => [bar.name, bar.colour]));
}

// A chart is drawn when it is about to be seen, so that the page appears at once; and all of them for paper.
const drawers = new Map([
  ...Object.entries({ ...data.charts, ...data.others }).map(([id, chart]) => [`chart-${id}`, () => drawChart(id, chart)]),
  ...(data.time ? [["chart-time", () => drawTime(data.time)]] : []),
]);
const drawn = new Set();
const drawOne = (id) => { drawn.add(id); drawers.get(id)(); };
const watcher = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) if (isIntersecting && !drawn.has(target.id)) drawOne(target.id);
}, { rootMargin: "400px" });
for (const id of drawers.keys()) watcher.observe(document.getElementById(id));
addEventListener("beforeprint", () => { for (const id of Object.keys(data.charts)) drawOne(`chart-${id}`); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach(drawOne));

// --- samples ---

const number = (value) => (value === null ? "–" : Number(value.toPrecision(3)).toString());
const PAGE = 25;
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const negative = (value) => (value === null || value === undefined ? null : -value);
const surprise = (sample) => (sample.logps?.length ? -mean(sample.logps.filter((logp) => logp !== null)) : null);

// What the samples are sorted by, the highest first; those that have no such number come last.
const ORDERS = {
  "latest first": (sample) => sample.step,
  "earliest first": (sample) => -sample.step,
  "highest reward": (sample) => sample.reward,
  "lowest reward": (sample) => negative(sample.reward),
  "highest advantage": (sample) => sample.advantage,
  "lowest advantage": (sample) => negative(sample.advantage),
  "longest": (sample) => sample.completion.length,
  "shortest": (sample) => -sample.completion.length,
  "least likely": surprise,
};

function browse(place) {
  const several = data.runs.length > 1;
  const all = data.runs.flatMap((run) => run.samples.map((sample) => ({ ...sample, run: run.name })));
  const texts = new Map(all.map((sample) => [sample, `${sample.prompt}\n${sample.completion}\n${sample.failure}`.toLowerCase()]));
  const distinct = (field) => [...new Set(all.map((sample) => sample[field]))];
  const choice = (name, title, values, every) =>
    element("select", { name, "aria-label": title }, element("option", { value: "" }, every), ...values.map(([value, text]) => element("option", { value }, text)));

  const verdicts = element("fieldset", { "aria-label": "Verdict" }, ...["all", "right", "wrong", "unscored"].map((verdict) => {
    const radio = element("input", { type: "radio", name: "verdict", value: verdict, ...(verdict === "all" ? { checked: "" } : {}) });
    return element("label", {}, radio, verdict);
  }));
  const steps = distinct("step").sort((a, b) => b - a).map((step) => [step, `step ${step}`]);
  const roles = distinct("role");
  const form = element("form", { role: "search" }, verdicts,
    ...(several ? [choice("run", "Run", distinct("run").map((run) => [run, run]), "all runs")] : []),
    choice("step", "Step", steps, "all steps"),
    ...(roles.length > 1 ? [choice("role", "Role", roles.map((role) => [role, role]), "all roles")] : []),
    choice("order", "Order", Object.keys(ORDERS).slice(1).map((name) => [name, name]), Object.keys(ORDERS)[0]),
    element("input", { type: "search", name: "words", placeholder: "Find in texts", "aria-label": "Find in texts" }));
  const count = element("p", { class: "count", role: "status" });
  const list = element("div", { class: "card list" });
  const more = element("button", { type: "button" }, `Show ${PAGE} more`);
  let shown = PAGE;

  const fits = (sample, wanted) =>
    (wanted.verdict === "all" || sample.verdict === wanted.verdict) && (!wanted.run || sample.run === wanted.run) &&
    (!wanted.step || String(sample.step) === wanted.step) && (!wanted.role || sample.role === wanted.role) &&
    (!wanted.words || texts.get(sample).includes(wanted.words.toLowerCase()));

  function update() {
    const wanted = Object.fromEntries(new FormData(form));
    const found = all.filter((sample) => fits(sample, wanted)), order = ORDERS[wanted.order || Object.keys(ORDERS)[0]];
    found.sort((a, b) => (order(b) ?? -Infinity) - (order(a) ?? -Infinity) || b.step - a.step);
    count.textContent = `${found.length.toLocaleString("en")} of ${all.length.toLocaleString("en")}`;
    list.replaceChildren(...found.slice(0, shown).map((sample) => row(sample, several)));
    if (!found.length) list.replaceChildren(element("p", { class: "absent" }, "No sample is like that."));
    more.hidden = found.length <= shown;
    more.style.display = more.hidden ? "none" : "";
  }
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => { shown = PAGE; update(); });
  more.addEventListener("click", () => {
    const from = shown;
    shown += PAGE;
    update();
    list.children[from]?.firstChild.focus();
  });
  list.addEventListener("keydown", (event) => {
    const towards = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
    const next = towards && event.target.matches("summary") && event.target.parentElement[towards];
    if (next) { event.preventDefault(); next.firstChild.focus(); }
  });
  place.append(form, count, list, more);
  update();
}

function row(sample, several) {
  const tone = { right: "good", wrong: "bad", unscored: "open" }[sample.verdict];
  const one = (text) => text.replace(/\s+/g, " ").slice(0, 160);
  const details = element("details", { class: "sample" }, element("summary", {},
    element("span", {}, element("span", { class: `pill ${tone}` }, sample.verdict)),
    element("span", { class: "line" }, one(sample.prompt), element("i", {}, " → "), one(sample.completion)),
    element("span", { class: "meta" }, [...(several ? [sample.run] : []), ...(sample.role === "training" ? [] : [sample.role]), `step ${sample.step}`].join(" · "))));
  details.addEventListener("toggle", () => { if (details.open && details.children.length === 1) details.append(inside(sample)); });
  return details;
}

const block = (title, content, style = "") => element("div", {}, element("h4", {}, title), element("pre", { class: style, tabindex: "0" }, ...[content].flat()));

// The completion with its tokens shaded by their log-probs; what was drawn after the end of it, such as a stop string, in a block of its own.
function completion(sample) {
  if (!sample.lengths) return [block("Completion", sample.completion || "(empty)", sample.verdict)];
  const shaded = tokens(sample.drawn ?? sample.completion, sample.lengths, sample.logps);
  const legend = element("span", { class: "shades", "aria-hidden": "true" }, "  likely ", ...[0, 1, 2, 3, 4].map((level) => element("i", { class: `p${level}` })), " unlikely");
  if (sample.drawn === undefined) return [shadedBlock("Completion", legend, shaded, sample.verdict)];
  return [block("Completion", sample.completion || "(empty)", sample.verdict), shadedBlock("As drawn", legend, shaded, "")];
}

const shadedBlock = (title, legend, shaded, style) =>
  element("div", {}, element("h4", {}, title, legend), element("pre", { class: `${style} tokens`, tabindex: "0" }, ...shaded));

function tokens(text, lengths, logps) {
  let at = 0;
  return lengths.map((length, n) => {
    const piece = text.slice(at, at + length), logp = logps[n];
    at += length;
    const told = logp === null ? "log-prob not finite" : `p = ${Math.exp(logp).toPrecision(2)}, log-prob ${logp}`;
    const shown = piece || (n === lengths.length - 1 ? "∎" : "·"); // a token without text: the end, or a part of the character that follows
    return element("span", { class: `${piece ? "" : "silent "}p${logp === null ? 4 : level(logp)}`, title: `token ${n + 1}: ${told}` }, shown);
  });
}

// 0 for tokens of at least 80 %, then 50, 20 and 5 %.
const level = (logp) => [0.8, 0.5, 0.2, 0.05].filter((p) => Math.exp(logp) < p).length;

function inside(sample) {
  const facts = [
    ["reward", number(sample.reward)], ...Object.entries(sample.parts).map(([name, value]) => [name, number(value)]),
    ["advantage", number(sample.advantage)], ...(sample.logps ? [["mean log-prob", number(negative(surprise(sample)))]] : []), ["group", sample.group], ["role", sample.role], ["ended by", sample.finished ? "itself" : "the length limit"],
  ].filter(([, value]) => value !== "");
  return element("div", { class: "inside" },
    block("Prompt", sample.prompt), ...completion(sample),
    ...(sample.answer === null ? [] : [block("Expected answer", sample.answer)]),
    ...(sample.failure ? [block("Why it has no score", sample.failure)] : []),
    element("dl", { class: "chips" }, ...facts.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, String(value))))));
}

const place = document.getElementById("browser");
if (place) browse(place);
document.documentElement.dataset.ready = "yes";
