/* Any axis over any other: a panel for each model and data set. */
(root, data, page) => {
  const {html, number, scale, state, rows, runs, tasks, methods} = page;
  const {axes} = page, MOST_COLOURS = 7; // that a reader can tell apart
  const controls = root.appendChild(html("div", {class: "controls"}));
  const offered = Object.entries(axes).map(([name, {title}]) => [name, title.replace(/ \(.*|, %.*/, "")]);
  page.choice(controls, "show", "y", [["", "the metric above"], ...offered]);
  page.choice(controls, "over", "x", offered);
  page.choice(controls, "coloured by", "colour", [["", "method"], ...offered]);
  page.tick(controls, "seeds as points", "seeds");
  page.tick(controls, "Pareto front", "front");
  const legend = root.appendChild(html("p", {class: "note", role: "status"}));
  const panels = root.appendChild(html("div", {class: "panels"}));
  const boxes = tasks.map(() => panels.appendChild(html("figure")));

  // The points that no other one beats on one axis without losing on the other.
  const pareto = (points, x, y) => {
    const cost = p => -y * p.y, size = p => -x * p.x;
    const front = [];
    for (const p of [...points].sort((a, b) => size(a) - size(b) || cost(a) - cost(b)))
      if (!front.length || cost(p) < cost(front.at(-1))) front.push(p);
    return front;
  };

  page.follow(() => {
    const axis = state.x, upright = axes[state.y] ? state.y : state.metric, {better: up} = axes[upright];
    const factor = page.metrics[upright]?.percent ? 100 : 1, scaled = values => values.map(v => v === null ? null : factor * v);
    // The interval of a metric is no narrower than one test example.
    const [mean, half] = page.metrics[upright] ? [page.estimates[upright].mean, page.estimates[upright].half].map(scaled)
      : [axes[upright].rows, axes[upright].half];
    const [least, most] = page.ends(upright, factor), {barred} = page.marks[state.metric];
    // Orange to blue, which colour-blind readers distinguish on white and on black.
    const tints = axes[state.colour]?.rows ?? [], known = tints.filter(v => v !== null), spread = scale.fitting(known);
    const tint = v => `rgb(${[[230, 0], [159, 114], [0, 178]].map(([low, high]) =>
      Math.round(low + (high - low) * (spread.place(v) - spread.low) / (spread.high - spread.low)))})`;
    const isChosen = m => [state.only, state.baseline].includes(methods[m].name) || methods[m].name.startsWith(`${state.baseline} `);
    // Of many methods the best ones are coloured, and those of which the reader asked for one.
    const loud = tasks.map((_, t) => {
      const ranked = page.ranks[state.metric][t].filter(page.shown);
      return axes[axis].lines || known.length || ranked.length <= MOST_COLOURS ? null
        : new Set([...ranked.filter(isChosen), ...ranked.slice(0, MOST_COLOURS)]);
    });
    legend.textContent = known.length ? `Colour: ${axes[state.colour].title}, from orange (` +
      `${spread.spell(Math.min(...known))}) to blue (${spread.spell(Math.max(...known))}).` : loud.some(Boolean)
      ? "Grey: methods of lower rank. Search for some, or isolate one, to see them in colour." : "";
    tasks.forEach((task, t) => {
      const {rows: at, lines} = axes[axis], own = rows.task.flatMap((n, i) =>
        n === t && mean[i] !== null && at[i] !== null && page.shown(rows.method[i]) ? [i] : []);
      boxes[t].hidden = !rows.task.some((n, i) => n === t && mean[i] !== null);
      if (boxes[t].hidden) return;
      if (!own.length) {
        boxes[t].replaceChildren(html("figcaption", {}, task), html("p", {class: "note"},
          `Nothing to draw: no visible method has ${upright} and ${axis}.`));
        return;
      }
      // Along a setting, the methods that it distinguishes are one line, drawn like the first of them.
      const groups = Map.groupBy([...own].sort((a, b) => rows.method[a] - rows.method[b]),
        i => lines ? lines[i] : methods[rows.method[i]].name);
      const pruning = [...groups.keys()].filter(name => !methods[rows.method[groups.get(name)[0]]].dense);
      const places = [...new Set(own.map(i => at[i]))];
      // All methods have the same sparsities, so they are drawn side by side.
      const step = axis === "sparsity" && pruning.length > 1 ? Math.min(12, 260 / places.length / pruning.length) : 0;
      const values = [], starts = [];
      const series = [...groups].map(([name, some]) => {
        const mine = some.sort((a, b) => at[a] - at[b]), own = methods[rows.method[some[0]]];
        const quiet = !own.dense && loud[t] && !loud[t].has(rows.method[some[0]]), style = quiet ? {...own, colour: "#b4b4b4"} : own;
        const shift = style.dense ? 0 : step * (pruning.indexOf(name) - (pruning.length - 1) / 2);
        const points = mine.map(i => ({
          x: at[i], y: mean[i], shift, words: () => page.words(i), data: {"data-row": i},
          colour: (tints[i] ?? null) === null ? null : tint(tints[i]), barred: barred[i], low: quiet || half[i] === null ? null : Math.max(least, mean[i] - half[i]),
          high: Math.min(most, mean[i] + half[i])}));
        const faint = quiet || !state.seeds ? [] : mine.filter(i => rows.runs[i].length > 1).flatMap(i => rows.runs[i].flatMap(r => {
          const px = axis === "sparsity" ? at[i] : axes[axis].runs[r], py = axes[upright].runs[r];
          return px === null || py === null ? [] : [{x: px, y: py, shift, data: {"data-run": r}}];
        }));
        for (const p of points) {
          values.push(p.y, ...(p.low === null ? [] : [p.low, p.high]));
          starts.push(p.x);
        }
        for (const p of faint) { values.push(p.y); starts.push(p.x); }
        return {style, label: name, points, faint, quiet, level: style.dense && points.length ? points[0].y : null};
      });
      series.sort((a, b) => !!b.quiet - !!a.quiet);
      const points = series.flatMap(s => s.points), {better} = axes[axis];
      const front = state.front && better && up ? pareto(points.filter(p => !p.barred), better, up) : [];
      for (const p of front) p.ringed = true;
      page.chart(boxes[t], {title: task, xTitle: axis === "sparsity" ? "sparsity, % (spaced by log density)" : axes[axis].title, yTitle: axes[upright].title,
        x: axis === "sparsity" ? scale.density(starts) : page.metrics[axis]?.percent
          ? scale.linear(starts, undefined, page.ends(axis, 100)) : scale.fitting(starts),
        y: page.metrics[upright]?.bounds[1] != null ? scale.linear(values, undefined, [least, most]) : scale.fitting(values), series, front});
    });
  }, ["metric", "baseline", "x", "y", "seeds", "front", "colour", "only", "hide", "find"]);
}
