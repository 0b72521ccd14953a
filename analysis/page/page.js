"use strict";
// Tables: a click on a head sorts; the search hides rows that lack one of its words.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = row => row.cells[column].textContent;
    const number = row => parseFloat(value(row).replaceAll(",", ""));
    const compare = head.classList.contains("number")
      ? (a, b) => (number(a) || 0) - (number(b) || 0)
      : (a, b) => value(a).localeCompare(value(b));
    body.append(...[...body.rows].sort((a, b) => (down ? -1 : 1) * compare(a, b)));
  }));
}
const search = document.getElementById("search"), rows = [...document.querySelectorAll("#cell-table tbody tr")];
const texts = rows.map(row => row.textContent.toLowerCase());
function filter() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  rows.forEach((row, i) => { const fits = words.every(word => texts[i].includes(word)); row.hidden = !fits; shown += fits; });
  document.getElementById("count").textContent = shown + " of " + rows.length + " cells";
}
search.addEventListener("input", filter);
filter();

// Charts: drawn when they come near the screen, and again when the colour scheme changes.
const dark = matchMedia("(prefers-color-scheme: dark)"), views = new Map();
function colours() {
  const style = getComputedStyle(document.documentElement), read = name => style.getPropertyValue(name).trim();
  const text = read("--text"), line = read("--line");
  return {
    background: "transparent", view: { stroke: line },
    axis: { labelColor: text, titleColor: text, gridColor: line, domainColor: line, tickColor: line },
  };
}
function parameters(figure) {
  const hidden = [...figure.querySelectorAll("[data-curve][aria-pressed=false]")].map(button => button.dataset.curve);
  const found = { hidden };
  for (const select of figure.querySelectorAll("[data-parameter]")) found[select.dataset.parameter] = select.value;
  return found;
}
function apply(view, figure) {
  for (const [name, value] of Object.entries(parameters(figure))) view.signal(name, value);
  return view.runAsync();
}
async function draw(chart) {
  // Black and grey lines would vanish on a dark ground.
  let text = document.getElementById(chart.dataset.of).textContent;
  if (dark.matches) text = text.replaceAll('"#000000"', '"#f0f0f0"').replaceAll('"#666666"', '"#b0b0b0"');
  views.get(chart)?.finalize();
  const result = await vegaEmbed(chart, JSON.parse(text), { mode: "vega-lite", actions: false, renderer: "svg", config: colours() });
  views.set(chart, result);
  await apply(result.view, chart.closest("figure"));
}
const failed = error => { console.error(error); document.documentElement.classList.remove("live"); };
if (window.vegaEmbed) {
  document.documentElement.classList.add("live");
  const near = new IntersectionObserver(entries => {
    for (const entry of entries) if (entry.isIntersecting) { near.unobserve(entry.target); draw(entry.target).catch(failed); }
  }, { rootMargin: "600px" });
  document.querySelectorAll(".chart").forEach(chart => near.observe(chart));
  dark.addEventListener("change", () => [...views.keys()].forEach(chart => draw(chart).catch(failed)));
  addEventListener("beforeprint", () => document.querySelectorAll(".chart").forEach(chart => views.has(chart) || draw(chart).catch(failed)));
}
// By keyboard: arrows go from point to point, and a line under the chart says what the mouse would show.
function readable(chart) {
  const line = document.createElement("p");
  line.className = "soft readout screen"; line.setAttribute("role", "status");
  chart.tabIndex = 0; chart.after(line);
  let at = -1;
  const points = () => [...chart.querySelectorAll("svg path, svg line")].filter(point => point.__data__?.tooltip);
  const choose = (all, chosen) => all.forEach((point, i) => point.classList.toggle("chosen", i === chosen));
  chart.addEventListener("focus", () => { line.textContent = "Arrow keys go from point to point."; });
  chart.addEventListener("blur", () => { choose(points(), -1); line.textContent = ""; at = -1; });
  chart.addEventListener("keydown", event => {
    const all = points(), last = all.length - 1;
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: last }[event.key];
    if (to === undefined || last < 0) return;
    event.preventDefault();
    at = Math.min(Math.max(to, 0), last);
    choose(all, at);
    line.textContent = Object.entries(all[at].__data__.tooltip).map(([name, value]) => name + ": " + value).join(" \u00b7 ");
  });
}
if (window.vegaEmbed) document.querySelectorAll(".chart").forEach(readable);
function changed(figure) {
  for (const [chart, result] of views) if (chart.closest("figure") === figure) apply(result.view, figure);
}
document.querySelectorAll(".legend button").forEach(button => button.addEventListener("click", () => {
  button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
  changed(button.closest("figure"));
}));
document.querySelectorAll("[data-parameter]").forEach(select => select.addEventListener("change", () => changed(select.closest("figure"))));
