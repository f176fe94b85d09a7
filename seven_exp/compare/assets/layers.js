/* Sparsity of each layer: a column for each method and sparsity, or for each run of one. */
(root, data, page) => {
  const {html, number, state, rows, runs, tasks, methods} = page;
  const withLayers = tasks.flatMap((task, t) => data.names[t].length ? [[task, task]] : []);
  if (!withLayers.length) {
    root.append(html("p", {class: "note"}, "No record holds layer sparsities."));
    return;
  }
  const targets = [...new Set(rows.sparsity)].sort((a, b) => b - a).filter(s => s > 0);
  const controls = root.appendChild(html("div", {class: "controls"}));
  page.choice(controls, "model and data set", "layersOf", withLayers);
  page.choice(controls, "sparsity", "layersAt", [...targets.map(s => [String(s), number.percent(s)]), ["", "all"]]);
  page.choice(controls, "method", "layersMethod", [["", "all visible ones"], ...methods.map(m => [m.name, m.name])]);
  const note = root.appendChild(html("p", {class: "note"}));
  const body = root.appendChild(html("div", {class: "wide", tabindex: 0, role: "region", "aria-label": "sparsity of each layer"}));

  const average = some => {
    const present = some.filter(r => data.sparsity[r]);
    return !present.length ? null : data.sparsity[present[0]].map((_, k) => {
      const values = present.map(r => data.sparsity[r][k]).filter(v => v !== null);
      return values.length ? values.reduce((a, b) => a + b) / values.length : null;
    });
  };
  // Remove the common prefix and suffix of all names, by whole parts between dots.
  const shortened = names => {
    const parts = names.map(name => name.split("."));
    const least = Math.min(...parts.map(p => p.length)) - 1;
    const alike = at => parts.every(p => p.at(at) === parts[0].at(at));
    let start = 0, end = 0;
    while (start < least && alike(start)) start++;
    while (start + end < least && alike(-1 - end)) end++;
    return parts.map(p => p.slice(start, p.length - end).join("."));
  };
  page.follow(() => {
    const t = tasks.indexOf(state.layersOf), names = data.names[t], shorter = shortened(names);
    const own = rows.task.flatMap((n, i) => n === t
      && (!state.layersAt || String(rows.sparsity[i]) === state.layersAt)
      && (state.layersMethod ? methods[rows.method[i]].name === state.layersMethod : page.shown(rows.method[i])) ? [i] : [])
      .sort((a, b) => rows.sparsity[b] - rows.sparsity[a] || rows.method[a] - rows.method[b]);
    const column = i => ({head: methods[rows.method[i]].name + (state.layersAt ? "" : ` ${number.percent(rows.sparsity[i])}`),
      values: average(rows.runs[i]), row: i});
    const columns = (own.length === 1 ? [column(own[0]), ...rows.runs[own[0]].map(r =>
      ({head: `seed ${runs.seed[r]}`, values: data.sparsity[r], run: r}))] : own.map(column)).filter(c => c.values);
    const all = columns.flatMap(c => c.values).filter(v => v !== null);
    if (!all.length) {
      note.textContent = "None of these runs has layer sparsities.";
      body.replaceChildren();
      return;
    }
    const low = Math.min(...all), high = Math.max(...all), digits = high - low < .1 ? 1 : 0;
    note.textContent = `${state.layersOf}${state.layersAt ? ` at ${number.percent(+state.layersAt)}` : ""}: percentage of each ` +
      "layer's weights that is zero, mean over seeds. From white " +
      `(${number.percent(low)}) to dark blue (${number.percent(high)}).`;
    const cell = (value, name, {head, row, run}) => {
      if (value === null || value === undefined) return html("td", {}, "");
      const depth = high > low ? (value - low) / (high - low) : .5;
      // One hue from light to dark keeps its order for colour-blind readers and in grey.
      const shade = [255 - 247 * depth, 255 - 207 * depth, 255 - 148 * depth].map(Math.round);
      const made = html("td", {"data-value": value, "data-layer": name, "data-row": row, "data-run": run,
        style: `background: rgb(${shade}); color: ${depth > .62 ? "#fff" : "#1a1a1a"}`}, (100 * value).toFixed(digits));
      page.tip(made, `${head}\n${name}\nsparsity: ${number.percent(value)}`);
      return made;
    };
    body.replaceChildren(html("table", {class: "heat"},
      html("thead", {}, html("tr", {}, html("th", {scope: "col"}, "layer"), ...columns.map(c => html("th", {scope: "col"}, c.head)))),
      html("tbody", {}, ...names.map((name, k) => html("tr", {}, html("th", {scope: "row", title: name}, shorter[k]),
        ...columns.map(c => cell(c.values[k], name, c)))))));
  }, ["layersOf", "layersAt", "layersMethod", "hide", "find"]);
}
