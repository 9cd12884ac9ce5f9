// The explorable network (nbs/plots/80_explorer.ipynb), drawn by Cytoscape.js 3.35.0 (MIT licence: cytoscape.LICENSE). Gene names are untrusted: they reach the page as text only, and never a selector.
(() => {
"use strict";
const began = performance.now(), $ = id => document.getElementById(id), timing = {};
const {genes: G, edges, columns, hops, max: most} = JSON.parse($("network").textContent);
const MODULES = ["#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#0072B2"], OTHER = "#999999";
const E = edges.source.map((s, i) => ({i, s, t: edges.target[i], w: edges.weight[i], p: edges.probability[i], sign: edges.sign[i], flag: edges.flag ? edges.flag[i] : ""}));
const out = G.map(() => []), into = G.map(() => []), both = new Set(E.map(e => `${e.s} ${e.t}`));
for (const e of E) { out[e.s].push(e); into[e.t].push(e); }
const index = new Map(); G.forEach((g, i) => { const k = g.name.toLowerCase(); if (!index.has(k)) index.set(k, i); });
const lowest = E.length ? Math.floor(100 * Math.min(...E.map(e => e.p))) / 100 : 0;
const WORDS = {1: "activates", "-1": "represses", 0: "regulates"}, ARROWS = {1: "\u2192", "-1": "\u22a3", 0: "\u2192"};
const number = (x, digits = 3) => x === null || x === undefined ? "not known" : x === 0 ? "0" : Math.abs(x) < 1e-3 ? x.toExponential(1) : Math.abs(x) >= 1e4 ? x.toLocaleString("en") : String(+x.toPrecision(digits));
const told = v => typeof v === "number" ? number(v) : v === null || v === undefined ? "not known" : v === true ? "yes" : v === false ? "no" : String(v);
const some = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
const signed = x => (x > 0 ? "+" : "") + number(x);
const state = {min: lowest, sign: 0, max: most, sure: false, view: {kind: "all"}, chosen: null, selected: []};

// ---- which edges are shown ----
const passes = e => e.p >= state.min && (!state.sign || e.sign === state.sign) && !(state.sure && e.flag);
const beside = g => [...out[g].filter(passes).map(e => e.t), ...into[g].filter(passes).map(e => e.s)];
function shown() {
  const v = state.view;
  if (v.kind === "paths") { const on = new Set(v.paths.flatMap(p => p.edges.map(e => e.i))); return E.filter(e => on.has(e.i)); }
  const kept = E.filter(e => passes(e) && (v.kind === "all" || (v.genes.has(e.s) && v.genes.has(e.t))));
  const top = kept.slice(0, state.max), on = new Set(top), c = state.chosen, its = new Set(state.selected);  // the table is sorted, most probable first
  return !c || c.path ? top : kept.filter(e => on.has(e) || (c.gene === undefined ? e.i === c.edge : its.has(e.s) || its.has(e.t)));   // and all of what was chosen
}

// ---- the drawing ----
const colour = name => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
const mixed = (a, b) => { const part = (c, k) => parseInt(c.length === 4 ? c[k + 1] + c[k + 1] : c.slice(1 + 2 * k, 3 + 2 * k), 16); return `rgb(${[0, 1, 2].map(k => Math.round(.3 * part(a, k) + .7 * part(b, k))).join(",")})`; };
function style() {
  const ink = colour("ink"), paper = colour("paper");
  const line = sign => ({selector: `edge[sign = ${sign}]`, style: {"line-color": colour(WORDS[sign]), "target-arrow-color": colour(WORDS[sign])}});
  return [
    {selector: "node", style: {label: "data(name)", width: "data(size)", height: "data(size)", "background-color": "data(colour)", shape: "data(shape)", "border-width": 1, "border-color": colour("soft"), color: ink, "font-size": "data(font)", "font-family": "system-ui, sans-serif",
      "text-valign": "bottom", "text-margin-y": 2, "text-outline-color": paper, "text-outline-width": 2, "min-zoomed-font-size": 6.5, "text-max-width": 900, "text-wrap": "ellipsis"}},
    {selector: "edge", style: {width: "data(width)", "curve-style": "straight", "target-arrow-shape": "triangle", "arrow-scale": .9, opacity: .8}},
    {selector: "edge[?mutual]", style: {"curve-style": "unbundled-bezier", "control-point-distances": 14, "control-point-weights": .5}},
    {selector: "node.boxed", style: {shape: "data(box)", width: "data(wide)", height: 26, "background-color": n => mixed(n.data("colour"), paper), "border-width": 2, "border-color": "data(colour)", "text-valign": "center", "text-margin-y": 0, "text-outline-width": 0, "text-max-width": 158, "font-size": 12, "min-zoomed-font-size": 0}},
    line(1), line(-1), line(0),
    {selector: "edge[sign = -1]", style: {"target-arrow-shape": "tee", "line-style": "dashed", "line-dash-pattern": [6, 3], "arrow-scale": 1.2}},
    {selector: "edge[?flag]", style: {opacity: .4}},
    {selector: ".off", style: {display: "none"}},
    {selector: "node.dim", style: {opacity: .25, "text-opacity": .15}}, {selector: "edge.dim", style: {opacity: .07}},
    {selector: "node.near", style: {"min-zoomed-font-size": 0, "font-weight": "bold"}},
    {selector: "node.chosen", style: {"border-width": 3, "border-color": ink, "min-zoomed-font-size": 0, "font-weight": "bold"}}, {selector: "edge.chosen", style: {opacity: 1, "underlay-color": ink, "underlay-opacity": .2, "underlay-padding": 4}}];
}
const degree = G.map((_, g) => out[g].length + into[g].length), busiest = Math.max(1, ...degree), many = G.length > 80, boxed = () => !many || state.view.kind !== "all", start = new Set(shown().flatMap(e => [e.s, e.t]));
const cy = cytoscape({container: $("canvas"), style: style(), layout: {name: "preset", fit: false}, minZoom: .02, maxZoom: 6, boxSelectionEnabled: false, autounselectify: true, userZoomingEnabled: false, hideEdgesOnViewport: E.length > 5000, pixelRatio: "auto",
  elements: G.map((g, i) => ({group: "nodes", data: {id: "g" + i, at: i, name: g.name, colour: MODULES[g.module - 1] || OTHER, shape: g.perturbed === false ? "rectangle" : "ellipse", box: g.perturbed === false ? "rectangle" : "round-rectangle", wide: Math.min(170, 16 + 7.6 * g.name.length), size: 24 + 60 * Math.sqrt(degree[i] / busiest), font: 20 + 50 * Math.sqrt(degree[i] / busiest)}, position: {x: g.x, y: g.y}, classes: (boxed() ? "boxed" : "") + (start.has(i) ? "" : " off")}))});
const nodes = G.map((_, i) => cy.getElementById("g" + i)), lines = [];
function need(edges) {                                                   // a line is made when it is first shown
  const missing = edges.filter(e => !lines[e.i]);
  if (missing.length) cy.add(missing.map(e => ({group: "edges", data: {id: "e" + e.i, at: e.i, source: "g" + e.s, target: "g" + e.t, sign: e.sign, flag: !!e.flag, mutual: both.has(`${e.t} ${e.s}`), width: .6 + 2.6 * Math.max(0, (e.p - lowest) / (1 - lowest || 1)) ** 2}}))).forEach((l, k) => { lines[missing[k].i] = l; });
}
cy.one("render", () => { timing.painted = performance.now(); timing.built = timing.painted - began; });
function fit() {
  const at = nodes.filter(n => !n.hasClass("off")).map(n => n.position()), xs = at.map(p => p.x), ys = at.map(p => p.y), w = cy.width(), h = cy.height();
  if (!at.length || !w || !h) return;
  const left = Math.min(...xs) - 60, right = Math.max(...xs) + 60, top = Math.min(...ys) - 40, low = Math.max(...ys) + 50, zoom = Math.min(1.5, w / (right - left), h / (low - top));
  cy.viewport({zoom, pan: {x: w / 2 - zoom * (left + right) / 2, y: h / 2 - zoom * (top + low) / 2}});
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => cy.style(style()));
addEventListener("resize", () => { cy.resize(); });

function place() {                                                       // where the genes of a view stand
  const v = state.view, at = i => ({x: G[i].x, y: G[i].y});
  if (v.kind === "all") return at;
  if (v.kind === "paths") {
    const column = new Map(), row = new Map(), count = [];
    for (const p of v.paths) p.genes.forEach((g, k) => column.set(g, Math.max(column.get(g) || 0, k)));
    column.set(v.to, Math.max(...column.values(), 1)); column.set(v.from, 0);
    for (const p of v.paths) for (const g of p.genes) if (!row.has(g)) { const c = column.get(g); row.set(g, count[c] = (count[c] ?? -1) + 1); }
    return i => column.has(i) ? {x: 170 * column.get(i), y: 100 * (row.get(i) - count[column.get(i)] / 2) + (column.get(i) % 2 ? 18 : -18) * (column.get(i) > 0 && i !== v.to)} : at(i);
  }
  const ring = new Map([[v.centre, 0]]), where = new Map([[v.centre, {x: 0, y: 0}]]);
  for (let layer = [v.centre], k = 1; layer.length; k++) { layer = [...new Set(layer.flatMap(beside))].filter(g => v.genes.has(g) && !ring.has(g)); for (const g of layer) ring.set(g, k); }
  const rings = []; for (const g of v.genes) if (g !== v.centre) (rings[(ring.get(g) ?? rings.length) - 1 || 0] ||= []).push(g);
  let radius = 0;
  for (const r of rings.filter(Boolean)) {
    radius = Math.max(radius + 130, r.length * 62 / (2 * Math.PI));
    const turn = g => Math.atan2(G[g].y - G[v.centre].y, G[g].x - G[v.centre].x);
    r.sort((a, b) => turn(a) - turn(b) || a - b).forEach((g, k) => where.set(g, {x: 1.35 * radius * Math.cos(2 * Math.PI * k / r.length - Math.PI), y: radius * Math.sin(2 * Math.PI * k / r.length - Math.PI)}));
  }
  return i => where.get(i) || at(i);
}
function draw(moved) {
  const start = performance.now(), kept = shown(), on = new Set(kept.map(e => e.i)), seen = new Set(kept.flatMap(e => [e.s, e.t]));
  if (state.view.kind === "around") state.view.genes.forEach(g => seen.add(g));
  if (state.view.kind === "paths") { seen.add(state.view.from); seen.add(state.view.to); }
  if (state.chosen && state.chosen.gene !== undefined) state.selected.forEach(g => seen.add(g));
  cy.batch(() => {
    need(kept);
    lines.forEach((l, i) => { if (l.hasClass("off") === on.has(i)) l.toggleClass("off", !on.has(i)); });
    nodes.forEach((n, i) => { if (n.hasClass("off") === seen.has(i)) n.toggleClass("off", !seen.has(i)); });
    if (moved) { const at = place(); nodes.forEach((n, i) => { if (seen.has(i)) n.position(at(i)); }); }
    mark();
  });
  cy.nodes().toggleClass("boxed", boxed());
  if (moved) fit();
  state.edges = kept; state.genes = seen;
  $("minimum").textContent = state.min.toFixed(2);
  const all = E.filter(passes).length;
  $("status").textContent = `${seen.size.toLocaleString("en")} of ${G.length.toLocaleString("en")} genes, ${kept.length.toLocaleString("en")} of ${E.length.toLocaleString("en")} edges shown` + (state.view.kind === "all" && all > kept.length ? `; ${(all - kept.length).toLocaleString("en")} more pass the filter` : "");
  cy.one("render", () => { timing.step = performance.now() - start; });
}
function mark() {                                                        // the choice stands out, the rest steps back
  const c = state.chosen; cy.elements(".dim, .near, .chosen").removeClass("dim near chosen");
  if (!c) return;
  let near = cy.collection();
  if (c.gene !== undefined) { const its = cy.collection().union(state.selected.map(g => nodes[g])).addClass("chosen"), es = its.connectedEdges().filter(x => !x.hasClass("off")); near = es.connectedNodes().union(its).addClass("near").union(es); }
  else if (c.edge !== undefined) { lines[c.edge].addClass("chosen"); near = lines[c.edge].connectedNodes().addClass("near").union(lines[c.edge]); }
  else if (c.path) { c.path.edges.forEach(e => { lines[e.i].addClass("chosen"); near = near.union(lines[e.i]).union(lines[e.i].connectedNodes()); }); near.nodes().addClass("near"); }
  cy.elements().not(near).addClass("dim");
}

// ---- the panel ----
function tag(name, text, more = {}) { const x = document.createElement(name); if (text !== undefined) x.textContent = text; Object.assign(x, more); return x; }
function button(text, click, right, kind) { const b = tag("button", undefined, {type: "button", onclick: click}); b.append(tag("span", text, {className: kind || ""})); if (right !== undefined) b.append(tag("span", right, {className: "number"})); return b; }
function listed(items, make) { const u = tag("ul"); for (const x of items) { const l = tag("li"); l.append(make(x)); u.append(l); } return u; }
const panel = (...parts) => { $("panel").replaceChildren(...parts); $("panel").scrollTop = 0; };
function welcome() {
  const top = G.map((_, g) => g).filter(g => out[g].some(passes)).sort((a, b) => out[b].filter(passes).length - out[a].filter(passes).length || a - b).slice(0, 12);
  panel(tag("h2", "The network"), tag("p", E.length ? "Click a gene or an edge, or type a name. Double-click a gene to add what it regulates and what regulates it. Shift and a click select several genes. Click the drawing first, then the wheel zooms." : "There is no edge in this table."),
    tag("h3", "Regulators with most targets"), listed(top, g => button(G[g].name, () => go(g), some(out[g].filter(passes).length, "target"))));
}
function partner(e, g, arrow) { return button(`${ARROWS[e.sign]} ${G[g].name}`, () => chooseEdge(e.i), `${signed(e.w)}, p ${e.p.toFixed(2)}`, WORDS[e.sign]); }
// The selection is what a notebook is told of: the gene chosen and those added to it, the ends of an edge, the genes of a path.
let notebook = null;                                                      // the window around this one, once it has asked
function select(genes) { state.selected = [...new Set(genes)]; if (notebook) notebook.postMessage({gpovae: "selected", selected: state.selected.map(g => G[g].name)}, "*"); }
const kept = g => state.selected.includes(g) ? state.selected : [g];
function toggle(g) {                                                      // an edge or a path is no start of a list
  const before = state.chosen && state.chosen.gene !== undefined ? state.selected : [], after = before.includes(g) ? before.filter(h => h !== g) : [...before, g];
  after.length ? chooseGene(after.includes(g) ? g : after[after.length - 1], after) : clear();
}
function chooseGene(g, selected = [g]) {
  state.chosen = {gene: g}; select(selected);
  const size = e => -Math.abs(e.w), r = into[g].filter(passes).sort((a, b) => size(a) - size(b)), t = out[g].filter(passes).sort((a, b) => size(a) - size(b)), about = [];
  if (G[g].module !== null && G[g].module !== undefined) about.push(`module ${G[g].module}`);
  if (G[g].perturbed !== undefined) about.push(G[g].perturbed ? "perturbed" : "not perturbed: what it regulates is not known");
  const extra = tag("dl"); for (const [k, v] of Object.entries(G[g].more || {})) extra.append(tag("dt", k), tag("dd", told(v)));
  const only = button("Only its surroundings", () => around(g)), more = button("Add neighbours", () => grow([g])), acts = tag("div", undefined, {className: "acts"}); acts.append(only, more);
  panel(tag("h2", G[g].name), tag("p", about.join(", ")), acts,
    ...(state.selected.length > 1 ? [tag("h3", `Selected (${state.selected.length})`), listed(state.selected, h => button(G[h].name, () => toggle(h), "remove"))] : []), extra,
    tag("h3", `Regulators (${r.length})`), listed(r, e => partner(e, e.s)), tag("h3", `Targets (${t.length})`), listed(t, e => partner(e, e.t)));
  draw(false);
}
function chooseEdge(i) {
  const e = E[i], dl = tag("dl"); state.chosen = {edge: i}; select([e.s, e.t]);
  for (const c of columns) {
    const v = edges[c.key][i]; if (v === "" || c.key === "sign" || (c.key === "flag" && !v)) continue;
    const text = c.signed && typeof v === "number" ? signed(v) : told(v);
    dl.append(tag("dt", c.label), tag("dd", text, {className: text.length > 14 ? "text" : ""}));
  }
  panel(tag("h2", `${G[e.s].name} ${ARROWS[e.sign]} ${G[e.t].name}`), tag("p", `${G[e.s].name} ${WORDS[e.sign]} ${G[e.t].name}.`, {className: WORDS[e.sign]}), dl,
    listed([e.s, e.t], g => button(G[g].name, () => go(g), "open the gene")));
  draw(false);
}
function clear() { state.chosen = null; select([]); state.view.kind === "paths" ? tellPaths() : welcome(); draw(false); }

// ---- going about ----
function named(text) {
  const k = text.trim().toLowerCase(); if (!k) return -1;
  if (index.has(k)) return index.get(k);
  const starts = G.findIndex(g => g.name.toLowerCase().startsWith(k));
  return starts >= 0 ? starts : G.findIndex(g => g.name.toLowerCase().includes(k));
}
const say = text => { $("status").textContent = text; };
function go(g) { state.genes.has(g) && state.view.kind !== "paths" ? chooseGene(g) : around(g); if (state.view.kind === "all") { if (cy.zoom() < .8) cy.zoom(.8); cy.center(nodes[g]); } }
function around(g) { state.view = {kind: "around", centre: g, genes: new Set([g, ...beside(g)])}; const its = kept(g); state.chosen = {gene: g}; select(its); draw(true); chooseGene(g, its); }
function grow(from) {
  const v = state.view;
  if (v.kind !== "around") return around(from[0]);
  for (const g of from) for (const h of beside(g)) v.genes.add(h);
  draw(true); chooseGene(from[0], kept(from[0]));
}
// Paths without repeated genes, strongest product of |weight| first. `best[k][g]` bounds what k more edges can multiply by on the way to the target.
function paths(from, to, length, many = 12) {
  const best = [G.map((_, g) => g === to ? 1 : 0)];
  for (let k = 1; k <= length; k++) best.push(G.map((_, g) => g === to ? 1 : Math.max(0, ...out[g].filter(passes).map(e => Math.abs(e.w) * best[k - 1][e.t]))));
  const heap = [], found = [], less = (a, b) => a.bound > b.bound;
  const push = x => { let i = heap.push(x) - 1; for (let j; i && less(heap[i], heap[j = (i - 1) >> 1]); i = j) [heap[i], heap[j]] = [heap[j], heap[i]]; };
  const pop = () => { const top = heap[0], last = heap.pop(); if (heap.length) { heap[0] = last; for (let i = 0, j; (j = 2 * i + 1) < heap.length; i = j) { if (j + 1 < heap.length && less(heap[j + 1], heap[j])) j++; if (!less(heap[j], heap[i])) break; [heap[i], heap[j]] = [heap[j], heap[i]]; } } return top; };
  if (best[length][from] > 0) push({genes: [from], edges: [], size: 1, bound: best[length][from]});
  for (let steps = 0; heap.length && found.length < many && steps < 200000; steps++) {
    const p = pop(), g = p.genes[p.genes.length - 1];
    if (g === to) { found.push({...p, product: p.edges.reduce((x, e) => x * e.w, 1)}); continue; }
    for (const e of out[g]) if (passes(e) && !p.genes.includes(e.t)) { const size = p.size * Math.abs(e.w), bound = size * best[length - p.edges.length - 1][e.t]; if (bound > 0) push({genes: [...p.genes, e.t], edges: [...p.edges, e], size, bound}); }
  }
  return found;
}
const sequence = p => G[p.genes[0]].name + p.edges.map(e => ` ${ARROWS[e.sign]} ${G[e.t].name}`).join("");
function tellPaths() {
  const v = state.view;
  panel(tag("h2", `${G[v.from].name} to ${G[v.to].name}`), tag("p", v.paths.length ? `${v.paths.length === 1 ? "The only path" : `The ${v.paths.length} strongest paths`} of at most ${v.length} edges, with the product of the weights along it (log per log).` : `No path of at most ${v.length} edges leads from ${G[v.from].name} to ${G[v.to].name} at this filter.`),
    listed(v.paths, p => button(sequence(p), () => { state.chosen = {path: p}; select(p.genes); draw(false); }, signed(p.product), p.product < 0 ? "represses" : "activates")));
}
function showPaths(from, to, length) { state.view = {kind: "paths", from, to, length, paths: paths(from, to, length)}; state.chosen = null; select([]); tellPaths(); draw(true); }
function reset() {
  Object.assign(state, {min: lowest, sign: 0, max: most, sure: false, view: {kind: "all"}, chosen: null}); select([]);
  $("min").value = lowest; $("sign").value = "0"; $("max").value = most; $("sure").checked = false; for (const i of ["gene", "from", "to"]) $(i).value = ""; $("length").value = hops;
  welcome(); draw(true);
}
function filtered() {
  Object.assign(state, {min: +$("min").value, sign: +$("sign").value, max: Math.max(1, +$("max").value || 1), sure: $("sure").checked});
  if (state.view.kind === "paths") return showPaths(state.view.from, state.view.to, state.view.length);
  const c = state.chosen; c && c.gene !== undefined ? chooseGene(c.gene, state.selected) : c && c.edge !== undefined && passes(E[c.edge]) ? draw(false) : clear();
}

// ---- taking it away ----
function save(name, type, content) { const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], {type})), a = tag("a", "", {href: url, download: name}); document.body.append(a); a.click(); a.remove(); setTimeout(() => URL.revokeObjectURL(url), 10000); }
const clean = v => v === null ? "" : String(v).replace(/[\t\r\n]+/g, " ");
const tsv = () => [["source", "target", ...columns.map(c => c.key)].join("\t"), ...state.edges.map(e => [clean(G[e.s].name), clean(G[e.t].name), ...columns.map(c => clean(edges[c.key][e.i]))].join("\t"))].join("\n") + "\n";
const cyjs = () => JSON.stringify({format_version: "1.0", generated_by: "gpovae", target_cytoscapejs_version: "~3", data: {name: "gpovae network"}, elements: {
  nodes: [...state.genes].sort((a, b) => a - b).map(g => ({data: {id: String(g), name: G[g].name, module: G[g].module, ...(G[g].perturbed === undefined ? {} : {perturbed: G[g].perturbed})}, position: {...nodes[g].position()}})),
  edges: state.edges.map(e => ({data: {id: "e" + e.i, source: String(e.s), target: String(e.t), interaction: WORDS[e.sign], ...Object.fromEntries(columns.map(c => [c.key, edges[c.key][e.i]]))}}))}}, null, 1);

// ---- wiring ----
for (const g of [...G].sort((a, b) => a.name < b.name ? -1 : 1)) $("genes").append(tag("option", undefined, {value: g.name}));
Object.assign($("min"), {min: lowest, max: 1, value: lowest}); $("max").value = most; $("length").value = hops;
$("signs").hidden = !E.some(e => e.sign); $("flags").hidden = $("pale").hidden = !E.some(e => e.flag); $("squares").style.display = G.some(g => g.perturbed === false) ? "" : "none"; $("square").hidden = !G.some(g => g.perturbed === false);
let waiting = 0;                                                          // a slider in motion is followed once a frame
for (const id of ["min", "sign", "max", "sure"]) $(id).addEventListener("input", () => { cancelAnimationFrame(waiting); waiting = requestAnimationFrame(filtered); });
$("find").addEventListener("submit", ev => { ev.preventDefault(); const g = named($("gene").value); g < 0 ? say(`No gene is called ${$("gene").value}.`) : go(g); });
$("gene").addEventListener("keydown", ev => { const g = named($("gene").value); if (ev.key === "Enter" && ev.shiftKey && g >= 0) { ev.preventDefault(); toggle(g); } });
$("gene").addEventListener("input", ev => { if (ev.inputType === "insertReplacementText" || !ev.inputType) { const k = $("gene").value.toLowerCase(); if (index.has(k)) go(index.get(k)); } });   // a suggestion was taken
$("way").addEventListener("submit", ev => { ev.preventDefault(); const a = named($("from").value), b = named($("to").value), n = Math.min(12, Math.max(1, +$("length").value || hops)); a < 0 || b < 0 ? say("Name two genes of the network.") : a === b ? say("Name two different genes.") : showPaths(a, b, n); });
$("reset").onclick = reset; $("fit").onclick = fit; $("png").onclick = () => save("network.png", "image/png", cy.png({output: "blob", full: true, scale: 2, maxWidth: 6000, maxHeight: 6000, bg: colour("paper")}));
$("tsv").onclick = () => save("network.tsv", "text/tab-separated-values", tsv()); $("cyjs").onclick = () => save("network.cyjs", "application/json", cyjs());
const zoom = f => cy.zoom({level: cy.zoom() * f, renderedPosition: {x: cy.width() / 2, y: cy.height() / 2}});
$("closer").onclick = () => zoom(1.3); $("farther").onclick = () => zoom(1 / 1.3);
const stage = $("stage"), tip = $("tip");
stage.addEventListener("pointerdown", ev => { if (!ev.target.closest("button")) stage.focus({preventScroll: true}); });
stage.addEventListener("focus", () => cy.userZoomingEnabled(true)); stage.addEventListener("blur", () => cy.userZoomingEnabled(false));   // a page is scrolled past it
const KEYS = {"+": () => zoom(1.2), "=": () => zoom(1.2), "-": () => zoom(1 / 1.2), 0: fit, ArrowLeft: () => cy.panBy({x: 60, y: 0}), ArrowRight: () => cy.panBy({x: -60, y: 0}), ArrowUp: () => cy.panBy({x: 0, y: 60}), ArrowDown: () => cy.panBy({x: 0, y: -60})};
stage.addEventListener("keydown", ev => { if (ev.target === stage && !ev.ctrlKey && !ev.metaKey && KEYS[ev.key]) { KEYS[ev.key](); ev.preventDefault(); } });
document.addEventListener("keydown", ev => { if (ev.key === "Escape") clear(); });
let taps = [];                                                            // two quick clicks on two genes are no double click
cy.on("tap", ev => { if (ev.target === cy) clear(); else if (ev.target.isNode()) { taps = [taps[1], ev.target.data("at")]; ev.originalEvent && (ev.originalEvent.shiftKey || ev.originalEvent.ctrlKey || ev.originalEvent.metaKey) ? toggle(taps[1]) : chooseGene(taps[1]); } else chooseEdge(ev.target.data("at")); });
cy.on("dbltap", "node", ev => { if (taps[0] === taps[1]) grow([taps[1]]); });
cy.on("mouseover", "node, edge", ev => {
  const i = ev.target.data("at"), e = E[i];
  tip.textContent = ev.target.isNode() ? `${G[i].name}: ${some(into[i].filter(passes).length, "regulator")}, ${some(out[i].filter(passes).length, "target")}` : `${G[e.s].name} ${WORDS[e.sign]} ${G[e.t].name}: ${signed(e.w)}, p ${e.p.toFixed(2)}`;
  tip.style.left = Math.min(ev.renderedPosition.x + 12, cy.width() - 200) + "px"; tip.style.top = ev.renderedPosition.y + 12 + "px"; tip.hidden = false; stage.style.cursor = "pointer";
});
const quiet = () => { tip.hidden = true; stage.style.cursor = ""; };
cy.on("mouseout pan zoom", quiet); stage.addEventListener("pointerleave", quiet);
welcome(); draw(false); fit();

// ---- inside a notebook: the widget's frame is told the theme and a selection, and answers with its own ----
addEventListener("message", ev => {
  if (window === parent || ev.source !== parent || !ev.data || ev.data.gpovae !== "notebook") return;
  const {theme, selected} = ev.data, root = document.documentElement;
  if (theme && root.dataset.theme !== theme) { root.dataset.theme = theme; cy.style(style()); }
  const genes = selected.map(name => G.findIndex(g => g.name === name)).filter(g => g >= 0), last = genes[genes.length - 1];
  notebook = null;                                                        // it need not be told what it says
  if (String(genes) !== String(state.selected)) genes.length ? chooseGene(last, genes) : clear();
  notebook = parent;
});
window.gpovaeNetwork = {cy, state, timing, genes: G, edges: E, paths, tsv, cyjs, node: name => nodes[index.get(name.toLowerCase())], line: (a, b) => lines[E.findIndex(e => G[e.s].name === a && G[e.t].name === b)]};
})();
