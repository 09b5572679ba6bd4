// The explorer: parallel coordinates of all runs with ranges that select, AUC against rejection, and learning curves.
// What is selected is what the table of runs shows. The address holds ranges and words, so that a link restores them.
// Names come from the page's JSON and may be anybody's: they are set as text only.
"use strict";
{
  const MOST_LINES = 600; // drawn of the selected, and of the others; of more, one in 2, 3, …
  const MOST_CURVES = 150;
  const data = JSON.parse(document.getElementById("explorer-data").textContent);
  const filter = filters.get("runs-table");
  const element = (name) => document.getElementById(`explorer-${name}`);
  const axes = data.axes.map(withStops);
  const axis = Object.fromEntries(axes.map((each) => [each.key, each]));
  const runs = data.names.map((_, run) => run).filter((run) => axis.auc.values[run] !== null);
  const pareto = new Set(data.pareto);
  const limits = new Set(data.limits);
  const curves = Object.entries(data.curves).filter(([name]) => element(name));
  const views = []; // functions that draw what is selected
  let held = null; // a run that was clicked
  let pointed = null; // the run under the pointer

  // ---- axes: values of few kinds are evenly spaced, others to scale; `place` maps to 0…1, `value` back

  function withStops(given) {
    const known = given.values.filter((value) => value !== null);
    const kinds = [...new Set(known)].sort((a, b) => a - b);
    const few = kinds.length <= 12;
    return { ...given, few, stops: few ? kinds : [kinds[0], kinds.at(-1)], range: null };
  }

  function interpolated(at, from, to) {
    if (from.length < 2) return to[0];
    let i = 1;
    while (i < from.length - 1 && at > from[i]) i++;
    return to[i - 1] + ((at - from[i - 1]) / (from[i] - from[i - 1])) * (to[i] - to[i - 1]);
  }

  const fractions = ({ stops }) => (stops.length < 2 ? [0.5] : stops.map((_, i) => i / (stops.length - 1)));
  const place = (axis, value) => interpolated(value, axis.stops, fractions(axis));
  const value = (axis, fraction) => interpolated(fraction, fractions(axis), axis.stops);

  // A range between two fractions; of values of few kinds, from one to another of them.
  function ranged(axis, a, b) {
    const ends = [value(axis, Math.max(0, Math.min(a, b))), value(axis, Math.min(1, Math.max(a, b)))];
    if (!axis.few) return ends.map((end) => Number(end.toFixed(axis.digits)));
    const nearest = (at) => axis.stops.reduce((x, y) => (Math.abs(place(axis, y) - at) < Math.abs(place(axis, x) - at) ? y : x));
    const inside = axis.stops.filter((stop) => stop >= ends[0] && stop <= ends[1]);
    return inside.length ? [inside[0], inside.at(-1)] : [nearest((a + b) / 2), nearest((a + b) / 2)];
  }

  // ---- selection

  function select() {
    const limited = axes.filter((each) => each.range).map(({ values, range: [low, high] }) => ({ values, low, high }));
    filter.where("explorer", (run) => limited.every(({ values, low, high }) =>
      values[run] !== null && values[run] >= low && values[run] <= high));
  }

  const selected = () => runs.filter((run) => filter.kept[run]);
  const others = () => runs.filter((run) => !filter.kept[run]);

  function thinned(some, most) {
    const step = Math.ceil(some.length / most);
    return step > 1 ? some.filter((_, i) => i % step === 0) : some;
  }

  function save() {
    const state = new URLSearchParams();
    for (const { key, range } of axes) if (range) state.set(key, range.join(":"));
    if (filter.input.value) state.set("words", filter.input.value);
    if (filter.select.value) state.set("choice", filter.select.value);
    if (held !== null) state.set("run", held);
    const text = state.size ? `#explorer?${state}` : location.hash.startsWith("#explorer") ? "#explorer" : location.hash;
    if (text !== location.hash) history.replaceState(null, "", text || "#");
  }

  function restore() {
    const [id, query] = location.hash.slice(1).split("?");
    if (id !== "explorer" || query === undefined) return; // a link to a part leaves the selection as it is
    const state = new URLSearchParams(query);
    for (const each of axes) {
      const ends = state.get(each.key)?.split(":").map(Number);
      each.range = ends?.length === 2 && ends.every(Number.isFinite) ? ends : null;
    }
    const run = state.has("run") ? Number(state.get("run")) : null;
    held = runs.includes(run) ? run : null;
    filter.input.value = state.get("words") ?? "";
    filter.select.value = state.get("choice") ?? "";
    if (filter.select.selectedIndex < 0) filter.select.value = "";
    filter.search();
    select();
  }

  // ---- drawing

  function add(parent, name, attributes = {}, text = null) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== null) made.textContent = text;
    parent.append(made);
    return made;
  }

  function cleared(svg, width, height) {
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.style.width = `${width}px`;
    svg.style.height = `${height}px`;
    return svg;
  }

  // One path for all others, one for the selected of each strategy, and one for the run that is pointed at or held:
  // few elements, whatever the number of runs. shape(run): the path of a run.
  function layers(parent, shape, most) {
    const kinds = ["other", "kind0", "kind1", "kind2", "kind3", "pointed"];
    const paths = kinds.map((kind) => add(parent, "path", { class: `run ${kind}` }));
    return () => {
      const chosen = thinned(selected(), most);
      const groups = [thinned(others(), most), [], [], [], [], []];
      for (const run of chosen) groups[1 + axis.strategy.values[run]].push(run);
      if ((pointed ?? held) !== null) groups[5].push(pointed ?? held);
      paths.forEach((path, i) => path.setAttribute("d", groups[i].map(shape).join("")));
    };
  }

  function line(points) {
    let move = "M";
    return points.map((point) => {
      if (!point) { move = "M"; return ""; }
      const text = `${move}${point[0].toFixed(1)} ${point[1].toFixed(1)}`;
      move = "L";
      return text;
    }).join("");
  }

  function drawAxes() {
    const width = Math.max(640, element("axes").parentElement.clientWidth);
    const svg = cleared(element("axes"), width, 340);
    const [top, bottom] = [46, 316];
    const x = (i) => 104 + (i * (width - 166)) / (axes.length - 1);
    const y = (fraction) => bottom - fraction * (bottom - top);
    const draw = layers(svg, (run) => line(axes.map((each, i) =>
      each.values[run] === null ? null : [x(i), y(place(each, each.values[run]))])), MOST_LINES);
    const marks = axes.map((each, i) => {
      const group = add(svg, "g", { transform: `translate(${x(i)} 0)`, class: "axis", "data-axis": each.key });
      add(group, "text", { y: 16, class: "label" }, each.label);
      add(group, "line", { y1: top, y2: bottom });
      const mark = add(group, "rect", { x: -8, width: 16, class: "range" });
      const named = each.few ? each.stops.map((stop) => [stop, each.names?.[stop] ?? String(stop)]) : ticks(...each.stops, 6);
      for (const [stop, text] of named) {
        const side = i ? { x: 6, class: "tick" } : { x: -6, class: "tick first" };
        add(group, "text", { ...side, y: y(place(each, stop)) + 4 }, text);
      }
      const zone = add(group, "rect", { x: -22, y: top - 10, width: 44, height: bottom - top + 20, class: "zone" });
      brush(zone, each, (event) => (bottom - (event.clientY - svg.getBoundingClientRect().top)) / (bottom - top));
      return mark;
    });
    views.push(() => {
      draw();
      axes.forEach((each, i) => {
        marks[i].style.display = each.range ? "" : "none";
        if (!each.range) return;
        const [low, high] = each.range.map((end) => y(Math.max(0, Math.min(1, place(each, end)))));
        marks[i].setAttribute("y", Math.min(low, high) - 4);
        marks[i].setAttribute("height", Math.abs(low - high) + 8);
      });
    });
  }

  // Dragging selects a range, moves the one there is, or one of its ends; a click removes it, or selects a value.
  function brush(zone, axis, fraction) {
    zone.addEventListener("pointerdown", (event) => {
      const start = fraction(event);
      const old = axis.range?.map((end) => place(axis, end));
      const margin = 0.03;
      let moved = false;
      let change = (at) => [start, at];
      if (old && start > old[0] - margin && start < old[1] + margin) {
        if (old[1] - old[0] < 3 * margin) change = (at) => [at > start ? old[0] : old[1], at];
        else if (start < old[0] + margin) change = (at) => [old[1], at];
        else if (start > old[1] - margin) change = (at) => [old[0], at];
        else change = (at) => {
          const shift = Math.max(-old[0], Math.min(1 - old[1], at - start));
          return [old[0] + shift, old[1] + shift];
        };
      }
      zone.setPointerCapture(event.pointerId);
      zone.onpointermove = (move) => {
        const at = fraction(move);
        moved ||= Math.abs(at - start) > 0.01;
        if (moved) { axis.range = ranged(axis, ...change(at)); select(); }
      };
      zone.onpointerup = () => {
        zone.onpointermove = zone.onpointerup = null;
        if (moved) return;
        axis.range = old || !axis.few ? null : ranged(axis, start, start);
        select();
      };
    });
  }

  // Round numbers between low and high, about as many as asked for.
  function ticks(low, high, count) {
    const rough = (high - low) / count || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
    const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push([i * step, (i * step).toFixed(digits)]);
    return found;
  }

  function chart(name, height, [xLow, xHigh], [yLow, yHigh], labels) {
    const width = Math.max(280, element(name).parentElement.clientWidth);
    const svg = cleared(element(name), width, height);
    const ends = { left: 54, right: width - 12, top: 12, bottom: height - 44 };
    const x = (value) => ends.left + ((value - xLow) / (xHigh - xLow || 1)) * (ends.right - ends.left);
    const y = (value) => ends.bottom - ((value - yLow) / (yHigh - yLow || 1)) * (ends.bottom - ends.top);
    for (const [tick, text] of ticks(xLow, xHigh, width / 65)) {
      add(svg, "line", { x1: x(tick), x2: x(tick), y1: ends.top, y2: ends.bottom, class: "grid" });
      add(svg, "text", { x: x(tick), y: ends.bottom + 18, class: "tick below" }, text);
    }
    for (const [tick, text] of ticks(yLow, yHigh, height / 45)) {
      add(svg, "line", { x1: ends.left, x2: ends.right, y1: y(tick), y2: y(tick), class: "grid" });
      add(svg, "text", { x: ends.left - 6, y: y(tick) + 4, class: "tick first" }, text);
    }
    add(svg, "rect", { x: ends.left, y: ends.top, width: ends.right - ends.left, height: ends.bottom - ends.top, class: "frame" });
    add(svg, "text", { x: ends.right, y: height - 6, class: "tick first" }, labels[0]);
    if (labels[1]) add(svg, "text", { class: "tick", transform: `translate(13 ${ends.top}) rotate(-90)`, "text-anchor": "end" }, labels[1]);
    return { svg, x, y, ends };
  }

  function extent(values, margin) {
    let [low, high] = [Infinity, -Infinity];
    for (const value of values) if (value !== null) { low = Math.min(low, value); high = Math.max(high, value); }
    if (low > high) return [0, 1];
    const room = margin * (high - low) || 1e-3;
    return [low - room, high + room];
  }

  function drawScatter() {
    const [auc, rejection] = [axis.auc, axis.rejection];
    const { svg, x, y, ends } = chart("scatter", innerWidth < 600 ? 320 : 490, extent(auc.values, 0.04), extent(rejection.values, 0.06), [auc.label, rejection.label]);
    const at = (run) => [x(auc.values[run]), y(rejection.values[run])];
    const dots = add(svg, "g", { class: "dots" });
    const draw = layers(dots, (run) => `M${at(run).map((place) => place.toFixed(1)).join(" ")}h0`, Infinity);
    const rings = runs.filter((run) => pareto.has(run)).map((run) => {
      const [cx, cy] = at(run);
      return `M${cx - 7} ${cy}a7 7 0 1 0 14 0a7 7 0 1 0 -14 0`;
    });
    add(svg, "path", { d: rings.join(""), class: "ring" });
    const mark = add(svg, "rect", { class: "range" });
    const zone = add(svg, "rect", { x: ends.left, y: ends.top, width: ends.right - ends.left, height: ends.bottom - ends.top, class: "zone cross" });
    const inside = (event) => {
      const box = svg.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    const nearest = (event) => {
      const [px, py] = inside(event);
      let [best, distance] = [null, 14 ** 2];
      for (const run of runs) {
        const [cx, cy] = at(run);
        const own = (cx - px) ** 2 + (cy - py) ** 2;
        if (own < distance) [best, distance] = [run, own];
      }
      return best;
    };
    const back = (low, high, from, to, axis) => [from, to].map((end) => Number((low + end * (high - low)).toFixed(axis.digits))).sort((a, b) => a - b);
    zone.addEventListener("pointermove", (event) => { if (!zone.start) point(nearest(event)); });
    zone.addEventListener("pointerleave", () => point(null));
    zone.addEventListener("pointerdown", (event) => {
      const start = inside(event);
      let moved = false;
      zone.start = start;
      zone.setPointerCapture(event.pointerId);
      const move = (event) => {
        const now = inside(event);
        moved ||= Math.hypot(now[0] - start[0], now[1] - start[1]) > 5;
        if (!moved) return;
        const shares = [start, now].map(([px, py]) => [(px - ends.left) / (ends.right - ends.left), (ends.bottom - py) / (ends.bottom - ends.top)]);
        auc.range = back(...extent(auc.values, 0.04), shares[0][0], shares[1][0], auc);
        rejection.range = back(...extent(rejection.values, 0.06), shares[0][1], shares[1][1], rejection);
        select();
      };
      zone.addEventListener("pointermove", move);
      zone.addEventListener("pointerup", (event) => {
        zone.removeEventListener("pointermove", move);
        zone.start = null;
        if (moved) return;
        const run = nearest(event);
        held = run === held ? null : run;
        update();
      }, { once: true });
    });
    views.push(() => {
      draw();
      const clamp = (value, low, high) => Math.max(low, Math.min(high, value));
      mark.style.display = auc.range && rejection.range ? "" : "none";
      if (!auc.range || !rejection.range) return;
      const [left, right] = auc.range.map((end) => clamp(x(end), ends.left, ends.right));
      const [low, high] = rejection.range.map((end) => clamp(y(end), ends.top, ends.bottom));
      for (const [key, value] of Object.entries({ x: left, y: high, width: right - left, height: low - high })) mark.setAttribute(key, value);
    });
  }

  // Curves are stored as whole numbers, each but the first as its difference to the one before.
  function decoded(curve, digits) {
    let sum = 0;
    return curve.map((step) => (step === null ? null : (sum += step) / 10 ** digits));
  }

  function drawCurves(name, given) {
    const values = given.values.map((curve) => decoded(curve, given.digits));
    const epochs = values.map((curve, run) => data.epochs?.[run] ?? curve.map((_, i) => i + 1));
    const all = runs.flatMap((run) => values[run]);
    const last = Math.max(2, ...runs.map((run) => epochs[run].at(-1) ?? 0));
    const { svg, x, y } = chart(name, 220, [1, last], extent(all, 0.04), ["Epoch", ""]);
    const shape = (run) => line(values[run].map((value, i) => (value === null ? null : [x(epochs[run][i]), y(value)])));
    views.push(layers(svg, shape, MOST_CURVES));
  }

  // ---- what is pointed at, counted and written

  function point(run) {
    if (run === pointed) return;
    pointed = run;
    update();
  }

  function described(run) {
    const numbers = ["auc", "rejection", "auc_gain"].filter((key) => axis[key] && axis[key].values[run] !== null).map((key) => {
      const above = key === "rejection" && limits.has(run) ? "> " : "";
      return `${axis[key].label} ${above}${axis[key].values[run].toFixed(axis[key].digits - (key === "rejection" ? 0 : 1))}`;
    });
    return `${data.names[run]}, seed ${data.seeds[run]}: ${numbers.join(", ")}`;
  }

  function ranges() {
    const rows = axes.map((each) => {
      const row = document.createElement("div");
      const inputs = [0, 1].map((end) => {
        const input = document.createElement("input");
        input.type = "number";
        input.step = "any";
        input.setAttribute("aria-label", `${each.label}, ${end ? "to" : "from"}`);
        input.addEventListener("change", () => {
          const ends = inputs.map((own, i) => (own.value === "" ? each.stops.at(-i) : Number(own.value)));
          each.range = inputs.every((own) => own.value === "") ? null : ends;
          select();
        });
        return input;
      });
      const label = document.createElement("span");
      label.textContent = each.names ? `${each.label} (${each.names.map((name, i) => `${i}: ${name}`).join(", ")})` : each.label;
      row.append(label, inputs[0], " to ", inputs[1]);
      views.push(() => inputs.forEach((input, i) => { input.value = each.range?.[i] ?? ""; }));
      return row;
    });
    element("ranges").querySelector(".ranges").replaceChildren(...rows);
  }

  function count() {
    const chosen = selected().length;
    const words = chosen < runs.length ? `${chosen} of ${runs.length} runs selected` : `All ${runs.length} runs`;
    const drawn = thinned(selected(), MOST_LINES).length;
    element("count").textContent = drawn < chosen ? `${words}; lines: one in ${Math.ceil(chosen / MOST_LINES)}` : words;
    const run = pointed ?? held;
    element("run").textContent = run === null ? "Point at a dot, or at a row of the table, to see its run." : described(run);
    const lines = thinned(selected(), MOST_CURVES).length;
    const thinning = element("thinned");
    if (thinning) thinning.textContent = lines < chosen ? `${lines} of the ${chosen} selected runs are drawn.` : "";
  }

  // ---- life: everything is drawn anew when the width changes, and what is selected once a frame at most

  let waiting = false;
  let saving = 0;
  function update() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      for (const view of views) view();
      count();
      clearTimeout(saving);
      saving = setTimeout(save, 200); // browsers refuse an address that changes with every frame
    });
  }

  let width = 0;
  function layout() {
    const now = element("plots").clientWidth;
    if (now === width || now === 0) return; // the same, or a print, which leaves it out
    width = now;
    views.length = 0;
    drawAxes();
    drawScatter();
    for (const [name, given] of curves) drawCurves(name, given);
    ranges();
    update();
  }

  element("plots").hidden = false;
  filter.table.addEventListener("filtered", update);
  filter.rows.forEach((row, run) => { if (axis.auc.values[run] !== null) row.run = run; });
  filter.table.addEventListener("pointerover", (event) => point(event.target.closest("tr")?.run ?? null));
  filter.table.addEventListener("pointerleave", () => point(null));
  element("clear").addEventListener("click", () => {
    for (const each of axes) each.range = null;
    filter.input.value = filter.select.value = "";
    held = null;
    filter.search();
    select();
  });
  addEventListener("hashchange", restore);
  restore();
  layout();
  reveal(); // once more: the plots have moved what is below them
  new ResizeObserver(layout).observe(element("plots"));
}
