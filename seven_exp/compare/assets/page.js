/* The drawing functions of all sections. A section is a function (root, data, page), called once; `page` has

   tasks, methods, metrics, runs, rows, estimates, differences, marks, captions, ranks, axes
                               data from the records (sections.py)
   state, set({key: value})    the selection, kept in the address; set calls all followers
   follow(draw, keys)          calls draw now, and again whenever the state changes (only these of its keys)
   shown(method)               whether the method with this index is visible
   isolate(name)               dims all other methods, or ends that
   words(row, metric)          the tip of a row: its means, cost and difference
   choice(root, label, key, options), tick(root, label, key)     controls bound to the state
   html(name, attributes, ...children), svg(...)                 elements
   difference(metric, baseline, row)    {mean, half, n, p, holm, starred, reference}, or null
   ends(metric, factor)        the metric's bounds, infinite without a bound
   chart(root, {...})          curves with intervals, single points, and a tip for each point
   tip(element, words)         words shown when the pointer is on the element
   scale, number               axes and spellings of numbers                                    */
"use strict";
const page = (() => {
  const everything = JSON.parse(document.getElementById("data").textContent);
  const shared = everything.shared;
  // Black on white is white on black.
  for (const style of shared.methods) if (style.colour === "#000000") style.colour = "currentColor";

  const element = space => (name, attributes = {}, ...children) => {
    const made = document.createElementNS(space, name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
      else if (value !== null && value !== undefined && value !== false)
        made.setAttribute(key, value === true ? "" : value);
    }
    made.append(...children);
    return made;
  };
  const html = element("http://www.w3.org/1999/xhtml");
  const svg = element("http://www.w3.org/2000/svg");

  // ---- numbers
  const compact = new Intl.NumberFormat("en", {notation: "compact", maximumSignificantDigits: 3});
  const number = {
    exact: value => value === null ? "" : Number(value.toPrecision(6)).toLocaleString(
      "en", {maximumSignificantDigits: 6}),
    count: value => value === null ? "" : Math.round(value).toLocaleString("en"),
    short: value => Math.abs(value) < 1000 ? String(Number(value.toPrecision(4))) : compact.format(value),
    percent: value => `${Number((100 * value).toPrecision(4))}%`,
    p: (value, starred) => value === null ? "" :
      (value < .001 ? "<0.001" : value.toFixed(3)) + (starred ? "*" : ""),
    signed: (value, digits) => (value < 0 && Number(value.toFixed(digits)) ? "" : "+") +
      (Number(value.toFixed(digits)) || 0).toFixed(digits),
    // The format of the table on the terminal.
    of(metric, value, signed = false) {
      if (value === null || value === undefined) return "n/a";
      const {percent} = shared.metrics[metric];
      return (signed && value >= 0 ? "+" : "") + (percent ? (100 * value).toFixed(2) : value.toFixed(4));
    },
    interval: (metric, mean, half, signed) =>
      `${number.of(metric, mean, signed)} ± ${number.of(metric, half)}`,
  };

  // The lowest and the highest value of a metric.
  const ends = (metric, factor = 1) => {
    const [least, most] = shared.metrics[metric]?.bounds ?? [null, null];
    return [factor * (least ?? -Infinity), factor * (most ?? Infinity)];
  };
  // Row minus the baseline's row of the same task and sparsity, or null.
  const difference = (metric, baseline, row) => {
    const found = shared.differences[metric]?.[baseline];
    return found && found.mean[row] !== null
      ? Object.fromEntries(Object.entries(found).map(([key, values]) => [key, values[row]])) : null;
  };

  // ---- state
  const defaults = {metric: shared.metric, x: "sparsity", y: "", baseline: shared.baseline ?? "", seeds: true,
    front: true, hide: [], chosen: [], only: "", find: ""};
  const state = {...defaults}, followers = [];
  const set = patch => {
    const touched = Object.keys(patch).filter(key => JSON.stringify(patch[key]) !== JSON.stringify(state[key]));
    Object.assign(state, patch);
    const changed = Object.entries(state)
      .filter(([key, value]) => JSON.stringify(value) !== JSON.stringify(defaults[key]));
    const words = new URLSearchParams(changed.map(([key, value]) => [key, JSON.stringify(value)]));
    try { history.replaceState(null, "", words.size ? `#${words}` : location.pathname + location.search); }
    catch { /* an embedded page may have no address */ }
    for (const [draw, keys] of followers) if (!keys || touched.some(key => keys.includes(key))) draw();
  };
  const restore = () => {
    Object.assign(state, defaults);
    for (const [key, value] of new URLSearchParams(location.hash.slice(1))) {
      try { state[key] = JSON.parse(value); } catch { continue; }
    }
    if (!shared.metrics[state.metric]) state.metric = shared.metric;
    if (!shared.differences[state.metric]?.[state.baseline]) state.baseline = shared.baseline ?? "";
    if (!shared.methods.some(m => m.name === state.only)) state.only = "";
    for (const key of ["hide", "chosen"]) if (!Array.isArray(state[key])) state[key] = [];
  };
  const follow = (draw, keys) => { followers.push([draw, keys]); draw(); };
  const shown = method => {
    const {name} = shared.methods[method];
    return !state.hide.includes(name) && found(name);
  };
  const found = name => String(state.find).toLowerCase().split(/\s+/).every(word => name.toLowerCase().includes(word));
  const isolate = name => set({only: name === state.only ? "" : name});

  const choice = (root, label, key, options) => {
    const select = html("select", {name: key, onchange: () => set({[key]: select.value})});
    for (const [value, text] of options) select.append(html("option", {value}, text));
    defaults[key] ??= options[0][0];
    if (!options.some(([value]) => value === state[key])) state[key] = defaults[key];
    root.append(html("label", {}, `${label} `, select));
    follow(() => { select.value = state[key]; });
  };
  const tick = (root, label, key) => {
    const box = html("input", {type: "checkbox", name: key, onchange: () => set({[key]: box.checked})});
    root.append(html("label", {}, box, ` ${label}`));
    follow(() => { box.checked = state[key]; });
  };

  // ---- the tip
  const bubble = html("div", {id: "tip", hidden: true, role: "status"});
  document.body.append(bubble);
  const say = (words, x, y) => {
    bubble.textContent = words;
    bubble.hidden = false;
    const left = Math.max(4, Math.min(x + 14, innerWidth - bubble.offsetWidth - 8));
    const below = y + 14 + bubble.offsetHeight < innerHeight;
    const top = below ? y + 14 : Math.max(4, y - 14 - bubble.offsetHeight);
    bubble.style.translate = `${left}px ${top}px`;
  };
  const hush = () => { bubble.hidden = true; };
  const tip = (target, words) => {
    target.addEventListener("pointermove", e => say(words, e.clientX, e.clientY));
    target.addEventListener("pointerleave", hush);
  };
  addEventListener("keydown", event => {
    if (event.key !== "Escape") return;
    hush();
    if (state.only) set({only: ""});
  });

  const words = (i, metric = state.metric) => {
    const {rows} = shared, {mean, half} = shared.estimates[metric], lines = [
      shared.methods[rows.method[i]].name,
      `${metric}: ${number.interval(metric, mean[i], half[i])}${shared.metrics[metric].percent ? " %" : ""}`,
      `seeds: ${shared.marks[metric].seeds[i]}`,
      `sparsity: ${number.percent(rows.sparsity[i])}`,
      `kept: ${number.count(rows.kept[i])}`,
      rows.zeros[i] === null ? "" : `zeros of all parameters: ${number.percent(rows.zeros[i])}`,
      rows.flops[i] === null ? "" : `FLOPs: ${number.count(rows.flops[i])}`,
      `seconds: ${number.exact(rows.seconds[i])}`,
    ];
    const found = difference(metric, state.baseline, i);
    if (found) lines.push(`minus ${shared.methods[rows.method[found.reference]].name}: ` +
      number.interval(metric, found.mean, found.half, true) +
      (found.holm === null ? "" : `, p (Holm) ${number.p(found.holm, found.starred)}`));
    return lines.filter(Boolean).join("\n");
  };

  // ---- scales: value -> position, and the ticks
  const span = (values, [least, most] = [-Infinity, Infinity]) => {
    let low = Infinity, high = -Infinity;
    for (const value of values) { low = Math.min(low, value); high = Math.max(high, value); }
    if (low !== high) return [low, high];
    return [Math.max(least, low - (Math.abs(low) || 1) * .05), Math.min(most, high + (Math.abs(high) || 1) * .05)];
  };
  const scale = {
    // A metric's `bounds` limit its axis.
    linear(values, spell = number.short, bounds = undefined) {
      const [low, high] = span(values, bounds), wanted = (high - low) / 5;
      const unit = 10 ** Math.floor(Math.log10(wanted));
      const step = unit * [1, 2, 5, 10].find(n => n * unit >= wanted);
      const ticks = [];
      for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i++) ticks.push(i * step);
      return {place: v => v, low, high, ticks, spell: v => spell(Number(v.toPrecision(12)))};
    },
    logarithmic(values, spell = number.short) {
      const [low, high] = span(values.filter(v => v > 0).map(Math.log10));
      const ticks = [];
      for (let e = Math.floor(low); e <= Math.ceil(high); e++)
        for (const n of high - low > 2.5 ? [1] : high - low > 1 ? [1, 3] : [1, 1.5, 2, 3, 4, 5, 6, 8])
          if (Math.log10(n) + e >= low && Math.log10(n) + e <= high) ticks.push(n * 10 ** e);
      return {place: Math.log10, low, high, ticks, spell};
    },
    // Spread high sparsities, where methods differ.
    density(values) {
      const place = v => -Math.log1p(-v), [low, high] = span(values.map(place));
      return {place, low, high, ticks: [...new Set(values)].sort((a, b) => a - b),
        spell: v => String(Number((100 * v).toPrecision(4)))};
    },
    fitting: (values, spell) => // four octaves and more don't fit a linear axis
      values.every(v => v > 0) && Math.max(...values) / Math.min(...values) > 16
        ? scale.logarithmic(values, spell) : scale.linear(values, spell),
  };

  // ---- marks
  const MARKS = {
    o: r => `M${-r},0a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0z`,
    s: r => `M${-r},${-r}h${2 * r}v${2 * r}h${-2 * r}z`,
    D: r => `M0,${-1.3 * r}L${1.3 * r},0 0,${1.3 * r} ${-1.3 * r},0z`,
    "^": r => `M0,${-1.2 * r}L${1.2 * r},${r} ${-1.2 * r},${r}z`,
    v: r => `M0,${1.2 * r}L${1.2 * r},${-r} ${-1.2 * r},${-r}z`,
    P: r => { const a = .45 * r, b = 1.2 * r;
      return `M${-a},${-b}H${a}V${-a}H${b}V${a}H${a}V${b}H${-a}V${a}H${-b}V${-a}H${-a}z`; },
    X: r => { const a = 1.1 * r, b = .5 * r;
      return `M${-a},${-a + b}L${-b},0 ${-a},${a - b} ${-a + b},${a} 0,${b} ${a - b},${a} ${a},${a - b} ${b},0 ` +
        `${a},${-a + b} ${a - b},${-a} 0,${-b} ${-a + b},${-a}z`; },
    "*": r => "M" + Array.from({length: 10}, (_, i) => {
      const size = i % 2 ? .6 * r : 1.5 * r, turn = Math.PI * (i / 5 - .5);
      return `${(size * Math.cos(turn)).toFixed(2)},${(size * Math.sin(turn)).toFixed(2)}`;
    }).join("L") + "z",
  };
  const mark = (style, r, attributes) => svg("path", {d: MARKS[style.marker](r), fill: style.colour, ...attributes});

  /* A chart. `series`: {style, label, points, faint, line, level}. A point: {x, y, low, high, shift, words,
     ringed, colour, data}; its words are its tip. `faint`: points without words. `level`: a horizontal rule there.
     `front`: places that a stair joins. Arrow keys walk along a series and from one to the next.             */
  const chart = (root, {title, xTitle, yTitle, x, y, series, front = [], marks = true}) => {
    const width = Math.max(300, Math.min(1400, root.clientWidth || 640)), height = Math.max(250, Math.min(560, .62 * width));
    const labels = y.ticks.map(y.spell);
    const left = 34 + 6.5 * Math.max(2, ...labels.map(l => l.length)), right = width - 14, top = 10, bottom = height - 46;
    const room = 12 + Math.max(0, ...series.flatMap(s => s.points.map(p => Math.abs(p.shift ?? 0))));
    const across = v => left + room + (x.place(v) - x.low) / (x.high - x.low) * (right - left - 2 * room);
    const up = v => bottom - 8 - (y.place(v) - y.low) / (y.high - y.low) * (bottom - top - 16);
    const picture = svg("svg", {viewBox: `0 0 ${width} ${height}`, class: "chart", tabindex: 0, role: "img",
      "aria-label": `${title}: ${yTitle} over ${xTitle}. Arrow keys go from point to point, Enter isolates a method.`});
    labels.forEach((label, i) => picture.append(
      svg("line", {class: "grid", x1: left, x2: right, y1: up(y.ticks[i]), y2: up(y.ticks[i])}),
      svg("text", {x: left - 6, y: up(y.ticks[i]) + 4, "text-anchor": "end"}, label)));
    let free = Infinity; // from the right, where high sparsities are
    for (const tick of [...x.ticks].reverse()) {
      const label = x.spell(tick), place = across(tick), half = 3.5 * label.length;
      picture.append(svg("line", {class: "axis", x1: place, x2: place, y1: bottom, y2: bottom + 4}));
      if (place + half > free) continue;
      free = place - half - 6;
      picture.append(svg("text", {x: place, y: bottom + 17, "text-anchor": "middle"}, label));
    }
    picture.append(
      svg("line", {class: "axis", x1: left, x2: right, y1: bottom, y2: bottom}),
      svg("line", {class: "axis", x1: left, x2: left, y1: top, y2: bottom}),
      svg("text", {x: (left + right) / 2, y: height - 8, "text-anchor": "middle"}, xTitle),
      svg("text", {transform: `translate(13 ${(top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle"}, yTitle));
    if (front.length > 1) {
      const [first, ...rest] = front;
      picture.append(svg("path", {class: "front", "stroke-width": 5, "stroke-opacity": .25, "data-front": front.length,
        d: `M${across(first.x)},${up(first.y)}` + rest.map(p => `L${across(p.x)},${up(p.y)}`).join("")}));
    }
    const layer = svg("g"), targets = [];
    for (const {style, label, points, faint = [], line = true, level = null, ...more} of series) {
      const group = svg("g", {"data-series": label, "data-name": style.name, ...more.data}), at = p => [across(p.x) + (p.shift ?? 0), up(p.y)];
      if (level !== null) group.append(svg("line", {x1: left, x2: right, y1: up(level), y2: up(level),
        stroke: style.colour, "stroke-dasharray": "2 4"}));
      for (const p of faint) {
        const [px, py] = at(p);
        group.append(mark(style, 2.2, {transform: `translate(${px} ${py})`, "fill-opacity": .4, class: "seed", ...p.data}));
      }
      if (line && points.length > 1) group.append(svg("path", {d: `M${points.map(p => at(p).join()).join("L")}`,
        fill: "none", stroke: style.colour, "stroke-width": more.width ?? 1.6, "stroke-opacity": more.opacity ?? 1,
        "stroke-dasharray": style.dash || null, "stroke-linejoin": "round"}));
      for (const p of points) {
        const [px, py] = at(p);
        if (p.low !== undefined && p.low !== null) group.append(svg("line", {x1: px, x2: px, y1: up(p.low), y2: up(p.high),
          stroke: style.colour, "stroke-width": 1.3, class: "interval"}));
        if (marks) group.append(mark(p.colour ? {...style, colour: p.colour} : style, 4.2, {transform: `translate(${px} ${py})`, "stroke-width": .6,
          class: "point", ...p.data}));
        if (p.ringed) group.append(svg("circle", {cx: px, cy: py, r: 8.5, fill: "none", class: "ring"}));
        if (p.words) targets.push({px, py, group, series: label, words: p.words});
      }
      layer.append(group);
    }
    const spot = svg("circle", {r: 7, fill: "none", stroke: "currentColor", "stroke-width": 2, visibility: "hidden"});
    picture.append(layer, spot);
    const pick = target => {
      for (const group of layer.children) group.classList.toggle("dim",
        target ? group !== target.group : !!state.only && group.dataset.name !== state.only);
      spot.setAttribute("visibility", target ? "visible" : "hidden");
      if (!target) return hush();
      spot.setAttribute("cx", target.px); spot.setAttribute("cy", target.py);
      const box = picture.getBoundingClientRect(), zoom = box.width / width;
      say(target.words(), box.left + target.px * zoom, box.top + target.py * zoom);
    };
    let current = -1;
    const under = event => {
      const box = picture.getBoundingClientRect(), zoom = width / box.width;
      const px = (event.clientX - box.left) * zoom, py = (event.clientY - box.top) * zoom;
      let nearest = -1, least = 24 ** 2;
      targets.forEach((t, i) => {
        const distance = (t.px - px) ** 2 + (t.py - py) ** 2;
        if (distance < least) [nearest, least] = [i, distance];
      });
      return nearest;
    };
    picture.addEventListener("pointermove", event => pick(targets[current = under(event)]));
    picture.addEventListener("pointerleave", () => pick(null));
    picture.addEventListener("click", event => isolate(targets[under(event)]?.group.dataset.name ?? ""));
    picture.addEventListener("blur", () => pick(null));
    picture.addEventListener("keydown", event => {
      const step = {ArrowRight: 1, ArrowLeft: -1}[event.key], jump = {ArrowDown: 1, ArrowUp: -1}[event.key];
      if (event.key === "Enter" && current >= 0) return isolate(targets[current].group.dataset.name);
      if (!targets.length || !(step || jump)) return;
      event.preventDefault();
      const wrap = i => (i + targets.length) % targets.length;
      if (current < 0) current = 0;
      else if (step) current = wrap(current + step);
      else {
        const from = targets[current].series;
        while (current = wrap(current + jump), targets[current].series === from)
          if (targets.every(t => t.series === from)) break;
      }
      pick(targets[current]);
    });
    pick(null);
    const file = `${title}: ${yTitle} over ${xTitle}`.replace(/[^\w.]+/g, "_");
    const lines = () => [["series", xTitle, yTitle, "low", "high"], ...series.flatMap(s =>
      s.points.map(p => [s.label, p.x, p.y, p.low ?? "", p.low === undefined || p.low === null ? "" : p.high]))];
    root.replaceChildren(html("figcaption", {}, title), picture, html("p", {class: "save"},
      html("button", {type: "button", onclick: () => save(`${file}.svg`, drawing(picture), "image/svg+xml")}, "save figure"),
      html("button", {type: "button", onclick: () => save(`${file}.csv`, lines().map(line => line.map(quote).join()).join("\r\n"),
        "text/csv")}, "save data")));
    return picture;
  };

  // ---- files
  const quote = value => /[",\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : value;
  const save = (name, text, type) => {
    const link = html("a", {href: URL.createObjectURL(new Blob([text], {type})), download: name});
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  // The picture with the page's light colours, which outside it has no style.
  const drawing = picture => {
    const copy = picture.cloneNode(true);
    copy.prepend(svg("style", {}, "svg { color: #000; background: #fff; font: 12px sans-serif } .axis { stroke: #444 } " +
      ".grid { stroke: #e6e6e6 } .front { stroke: #555; fill: none } .point { stroke: #fff } .ring { stroke: #333 } .dim { opacity: .1 }"));
    copy.setAttribute("width", picture.viewBox.baseVal.width);
    return new XMLSerializer().serializeToString(copy);
  };

  // ---- the key, which stays in view: a box for each method, and a search among them
  const key = root => {
    const find = html("input", {type: "search", name: "find", placeholder: "words of a name", size: 18,
      oninput: () => set({find: find.value})});
    const count = html("span", {role: "status"});
    const all = html("button", {type: "button", class: "all", onclick: () =>
      set({hide: state.hide.length ? [] : shared.methods.map(m => m.name)})});
    const entries = html("div", {class: "entries", hidden: shared.methods.length > 12});
    const names = html("button", {type: "button", class: "names", onclick: () => {
      entries.hidden = !entries.hidden;
      names.setAttribute("aria-expanded", String(!entries.hidden));
    }, "aria-expanded": String(!entries.hidden)}, "names");
    root.append(html("label", {}, "only methods with ", find), count, all, names, entries);
    const boxes = shared.methods.map(({name, colour, marker, dash, dense}, i) => {
      const swatch = svg("svg", {width: 34, height: 14, viewBox: "-17 -7 34 14", "aria-hidden": "true"},
        svg("path", {d: "M-16,0H16", stroke: colour, "stroke-width": 1.6, "stroke-dasharray": dense ? "2 4" : dash || null}),
        mark({colour, marker}, 4.2, {}));
      const box = html("input", {type: "checkbox", "data-method": i, onchange: () => set({
        hide: box.checked ? state.hide.filter(n => n !== name) : [...state.hide, name]})});
      const alone = html("button", {type: "button", class: "method", title: "show this method alone", onclick: () => isolate(name)}, "alone");
      entries.append(html("span", {class: "entry"}, html("label", {}, box, swatch, ` ${name}`), alone));
      return [box, alone];
    });
    follow(() => {
      if (find.value !== state.find) find.value = state.find;
      boxes.forEach(([box, alone], i) => {
        const {name} = shared.methods[i];
        box.checked = !state.hide.includes(name);
        alone.setAttribute("aria-pressed", String(state.only === name));
        box.closest(".entry").hidden = !found(name);
      });
      const visible = shared.methods.filter((_, i) => shown(i)).length;
      count.textContent = `${visible} of ${boxes.length} methods` + (state.only ? `, ${state.only} isolated` : "");
      all.textContent = state.hide.length ? "show all" : "hide all";
    });
  };

  const sections = [];
  const start = () => {
    restore();
    if (shared.methods?.length) {
      const root = html("nav", {class: "key", "aria-label": "methods"});
      document.querySelector("main > section")?.before(root);
      key(root);
    }
    for (const [id, draw] of sections) {
      const root = document.querySelector(`#${CSS.escape(id)} > .body`);
      try { draw(root, everything.sections[id], page); }
      catch (error) {
        root.append(html("p", {class: "note"}, `This part can't be drawn: ${error.message}`));
        console.error(error);
      }
    }
    let width = document.body.clientWidth;
    addEventListener("resize", () => {
      if (document.body.clientWidth === width) return;
      width = document.body.clientWidth;
      for (const [draw] of followers) draw();
    });
    addEventListener("hashchange", () => { restore(); for (const [draw] of followers) draw(); });
  };
  return {...shared, state, set, follow, shown, isolate, words, choice, tick, ends, difference, html, svg, chart, tip, scale, number, sections, start};
})();
