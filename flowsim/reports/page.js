"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const frames = data.frames, svg = at("chart"), slider = at("slider");
  const MARGIN = { left: 62, right: 14, top: 10, bottom: 40 };
  const state = { chart: data.charts[0], logValue: data.charts[0].logarithmic, logTime: false, cross: null };
  let scales = null;

  const text = (x) => (x === null ? "no value" : String(Number(x.toPrecision(5))));
  const finite = (values, log) => values.filter((x) => x !== null && (!log || x > 0));

  // ------------------------------------------------------------------------------------------------ scales and ticks

  function scale(values, log, from, to, { padded, roundOff, fromZero }) {
    const known = finite(values, log);
    let low = Infinity, high = -Infinity;
    for (const x of known) { low = Math.min(low, x); high = Math.max(high, x); }
    if (!known.length) { low = log ? 0.1 : 0; high = 1; }
    if (log && roundOff && high < 10 * low) {
      low = 10 ** Math.floor(Math.log10(low) - 0.1);
      high = 10 ** Math.ceil(Math.log10(high) + 0.1);
    }
    if (!log && fromZero && low > 0) low = 0;
    if (high === low) [low, high] = log ? [low / 2, high * 2] : [low - 0.5, high + 0.5];
    const f = log ? Math.log10 : (x) => x;
    const pad = padded ? 0.04 * (f(high) - f(low)) : 0;
    const a = f(low) - (low === 0 ? 0 : pad), b = f(high) + pad;
    const place = (x) => from + ((f(x) - a) / (b - a)) * (to - from);
    place.inverse = (pixel) => { const y = a + ((pixel - from) / (to - from)) * (b - a); return log ? 10 ** y : y; };
    place.ticks = log ? decades(a, b) : rounds(a, b);
    return place;
  }

  function rounds(a, b) {
    const rough = (b - a) / 5, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((m) => m * power >= rough);
    const ticks = [];
    for (let k = Math.ceil(a / step - 1e-9); k * step <= b + 1e-9 * step; k += 1) ticks.push(k * step);
    return ticks;
  }

  function decades(a, b) {
    const every = Math.max(1, Math.ceil((b - a) / 7)), ticks = [];
    for (let k = Math.ceil(a - 1e-9); k <= b + 1e-9; k += 1) if (k % every === 0) ticks.push(10 ** k);
    return ticks.length > 1 ? ticks : rounds(10 ** a, 10 ** b);
  }

  function label(x) {
    if (x === 0) return "0";
    const size = Math.abs(x);
    if (size >= 1e-3 && size < 1e5) return String(Number(x.toPrecision(4)));
    const digits = Number(x.toPrecision(1)) === Number(x.toPrecision(3)) ? 0 : 1;
    return x.toExponential(digits).replace("e+", "e");
  }

  // ------------------------------------------------------------------------------------------------------ drawing

  function node(name, attributes, content) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key of Object.keys(attributes)) made.setAttribute(key, attributes[key]);
    if (content !== undefined) made.textContent = content;
    return made;
  }

  const DASHES = { run: [""], bound: ["7 4", "2 3", "8 3 2 3"], target: ["2 3"], unresolved: [""] };

  function looks(chart) {
    const count = { run: 0, bound: 0, target: 0, unresolved: 0 };
    return chart.curves.map((curve, k) => {
      const dashes = DASHES[curve.role], dash = dashes[count[curve.role] % dashes.length];
      count[curve.role] += 1;
      const faint = curve.role === "unresolved";
      const stroke = faint ? "#aaa" : data.colours[k % data.colours.length];
      return { stroke, "stroke-width": faint ? 1 : 2, "stroke-dasharray": dash, fill: "none" };
    });
  }

  const visible = (t, value) => value !== null && (!state.logValue || value > 0) && (!state.logTime || t > 0);

  function path(times, values, x, y) {
    let parts = "", pen = false;
    values.forEach((value, k) => {
      const drawn = visible(times[k], value);
      if (drawn) parts += `${pen ? "L" : "M"}${x(times[k]).toFixed(1)} ${y(value).toFixed(1)}`;
      pen = drawn;
    });
    return parts;
  }

  function draw() {
    const chart = state.chart, width = svg.clientWidth, height = svg.clientHeight;
    if (!width || !height) return;  // not displayed, as in print
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.replaceChildren();
    at("axis").textContent = chart.words;
    if (chart.missing) {
      svg.append(node("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, chart.missing.replace("\n", " ")));
      scales = null;
      return read();
    }
    const x = scale(chart.time.concat(frames.time), state.logTime, MARGIN.left, width - MARGIN.right, {});
    const y = scale(chart.curves.flatMap((c) => c.values), state.logValue, height - MARGIN.bottom, MARGIN.top, {
      padded: true, ...chart,
    });
    grid(x, y, width, height);
    const styles = looks(chart);
    chart.curves.forEach((curve, k) => {
      svg.append(node("path", { ...styles[k], d: path(chart.time, curve.values, x, y) }));
    });
    svg.append(node("line", { class: "now", id: "now", y1: MARGIN.top, y2: height - MARGIN.bottom }));
    svg.append(node("line", { class: "cross", id: "cross", y1: MARGIN.top, y2: height - MARGIN.bottom, visibility: "hidden" }));
    styles.forEach((style) => svg.append(node("circle", { class: "dot", r: 4, fill: style.stroke })));
    scales = { x, y };
    read();
  }

  function grid(x, y, width, height) {
    const bottom = height - MARGIN.bottom, right = width - MARGIN.right;
    const room = Math.max(1, Math.ceil((x.ticks.length * 62) / (right - MARGIN.left)));
    x.ticks.filter((_, k) => k % room === 0).forEach((t) => {
      svg.append(node("line", { class: "grid", x1: x(t), x2: x(t), y1: MARGIN.top, y2: bottom }));
      svg.append(node("text", { x: x(t), y: bottom + 16, "text-anchor": "middle" }, label(t)));
    });
    y.ticks.forEach((v) => {
      svg.append(node("line", { class: "grid", x1: MARGIN.left, x2: right, y1: y(v), y2: y(v) }));
      svg.append(node("text", { x: MARGIN.left - 6, y: y(v) + 4, "text-anchor": "end" }, label(v)));
    });
    svg.append(node("rect", { class: "frame", x: MARGIN.left, y: MARGIN.top, width: right - MARGIN.left, height: bottom - MARGIN.top }));
    svg.append(node("text", { x: (MARGIN.left + right) / 2, y: height - 6, "text-anchor": "middle" }, "time t"));
  }

  // ------------------------------------------------------------------------------------------------------ reading

  function nearest(times, t) {
    let best = 0;
    times.forEach((u, k) => { if (Math.abs(u - t) < Math.abs(times[best] - t)) best = k; });
    return best;
  }

  function put(element, shown, attributes) {
    element.setAttribute("visibility", shown ? "visible" : "hidden");
    if (shown) for (const key of Object.keys(attributes)) element.setAttribute(key, attributes[key]());
  }

  function line(element, t) {
    put(element, t !== null && (!state.logTime || t > 0), { x1: () => scales.x(t), x2: () => scales.x(t) });
  }

  function read() {
    const chart = state.chart, now = frames.time[slider.value];
    const place = state.cross !== null ? state.cross : nearest(chart.time, now);
    if (scales) {
      line(at("now"), now);
      line(at("cross"), state.cross === null ? null : chart.time[state.cross]);
      svg.querySelectorAll(".dot").forEach((dot, k) => {
        const t = chart.time[place], value = chart.curves[k].values[place];
        put(dot, visible(t, value), { cx: () => scales.x(t), cy: () => scales.y(value) });
      });
    }
    at("moment").textContent = chart.missing ? "" : `at t = ${text(chart.time[place])}`;
    const styles = looks(chart);
    at("readout").replaceChildren(...(chart.missing ? [] : chart.curves.map((curve, k) => {
      const row = document.createElement("li"), key = node("svg", { viewBox: "0 0 32 10", "aria-hidden": "true" });
      key.append(node("line", { ...styles[k], x1: 0, x2: 32, y1: 5, y2: 5 }));
      row.append(key, `${curve.name}: ${text(curve.values[place])}`);
      return row;
    })));
  }

  function cross(place) {
    state.cross = place === null ? null : Math.min(Math.max(place, 0), state.chart.time.length - 1);
    read();
  }

  const pointed = (event) => nearest(state.chart.time, scales.x.inverse(event.clientX - svg.getBoundingClientRect().left));

  svg.addEventListener("pointermove", (event) => { if (scales) cross(pointed(event)); });
  svg.addEventListener("pointerleave", () => cross(null));
  svg.addEventListener("blur", () => cross(null));
  svg.addEventListener("click", (event) => {
    if (!scales) return;
    slider.value = nearest(frames.time, state.chart.time[pointed(event)]);
    show();
  });
  svg.addEventListener("keydown", (event) => {
    const stride = event.shiftKey ? Math.ceil(state.chart.time.length / 20) : 1;
    const move = { ArrowLeft: -stride, ArrowRight: stride }[event.key];
    if (event.key === "Escape") return cross(null);
    if (!scales || move === undefined) return;
    event.preventDefault();
    cross((state.cross === null ? nearest(state.chart.time, frames.time[slider.value]) : state.cross) + move);
  });

  // ------------------------------------------------------------------------------------------------ singular values

  const subscript = (k) => String(k).replace(/\d/g, (digit) => "₀₁₂₃₄₅₆₇₈₉"[digit]);
  const largest = Math.max(...frames.values.flat(), ...frames.targets) || 1;

  function box(name, kind) {
    const made = document.createElement(kind || "div");
    made.className = name;
    return made;
  }

  const rows = frames.values[0].map((_, k) => {
    const row = box("mode"), name = box("name", "span"), track = box("track"), bar = box("bar"), value = box("value", "output");
    name.textContent = `σ${subscript(k + 1)}`;
    track.append(bar);
    if (frames.targets[k] !== undefined) {
      const target = box("target");
      target.style.left = `${(100 * frames.targets[k]) / largest}%`;
      track.append(target);
    }
    row.append(name, track, value);
    at("modes").append(row);
    return { bar, value };
  });

  function show() {
    const values = frames.values[slider.value], time = `t = ${text(frames.time[slider.value])}`;
    values.forEach((value, k) => {
      rows[k].bar.style.width = `${(100 * value) / largest}%`;
      rows[k].value.textContent = text(value);
    });
    at("slider-time").textContent = time;
    slider.setAttribute("aria-valuetext", time);
    read();
  }

  // ------------------------------------------------------------------------------------------------------- controls

  function choose(chart) {
    state.chart = chart;
    state.cross = null;
    const possible = chart.curves.some((c) => finite(c.values, true).length);
    state.logValue = chart.logarithmic && possible;
    at("log-value").checked = state.logValue;
    at("log-value").disabled = !possible;
    draw();
  }

  data.charts.forEach((chart, k) => {
    const made = document.createElement("label"), button = document.createElement("input");
    Object.assign(button, { type: "radio", name: "quantity", value: chart.key, checked: k === 0 });
    button.addEventListener("change", () => choose(chart));
    made.append(button, ` ${chart.title.toLowerCase()}`);
    at("quantity").append(made);
  });
  at("log-value").addEventListener("change", (event) => { state.logValue = event.target.checked; draw(); });
  at("log-time").addEventListener("change", (event) => { state.logTime = event.target.checked; draw(); });
  at("log-time").disabled = !finite(state.chart.time, true).length;
  slider.max = frames.time.length - 1;
  slider.value = slider.max;
  slider.disabled = frames.time.length < 2;
  slider.addEventListener("input", show);
  at("target-note").hidden = !frames.targets.length;
  at("explore").hidden = false;
  choose(state.chart);
  show();
  new ResizeObserver(() => draw()).observe(svg.parentElement);
})();
