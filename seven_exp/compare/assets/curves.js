/* The chosen metric over the chosen axis: a panel for each model and data set. */
(root, data, page) => {
  const {html, number, scale, state, rows, runs, tasks, methods} = page;
  const axes = {
    sparsity: {title: "sparsity, % (spaced by the logarithm of density)", more: true},
    kept: {title: "kept parameters", more: false},
    flops: {title: "operations of a forward pass (FLOPs)", more: false},
    seconds: {title: "seconds of training", more: false},
  };
  const controls = root.appendChild(html("div", {class: "controls"}));
  page.choice(controls, "metric", "metric", Object.keys(page.metrics).map(name => [name, name]));
  page.choice(controls, "over", "x", [["sparsity", "sparsity"], ["kept", "kept parameters"],
    ["flops", "FLOPs"], ["seconds", "seconds"]]);
  page.tick(controls, "seeds as points", "seeds");
  page.tick(controls, "Pareto front", "front");
  page.key(root.appendChild(html("div", {class: "key"})));
  const panels = root.appendChild(html("div", {class: "panels"}));
  const boxes = tasks.map(() => panels.appendChild(html("figure")));

  const words = (i, metric) => {
    const {mean, half} = page.estimates[metric], lines = [
      `${methods[rows.method[i]].name}`,
      `${metric}: ${number.interval(metric, mean[i], half[i])}${page.metrics[metric].percent ? " %" : ""}`,
      `seeds: ${page.marks[metric].seeds[i]}`,
      `sparsity: ${number.percent(rows.sparsity[i])}`,
      `kept: ${number.count(rows.kept[i])}`,
      rows.zeros[i] === null ? "" : `zeros of all parameters: ${number.percent(rows.zeros[i])}`,
      rows.flops[i] === null ? "" : `FLOPs: ${number.count(rows.flops[i])}`,
      `seconds: ${number.exact(rows.seconds[i])}`,
    ];
    const found = page.difference(metric, state.baseline, i);
    if (found) lines.push(`minus ${methods[rows.method[found.reference]].name}: ` +
      number.interval(metric, found.mean, found.half, true) +
      (found.holm === null ? "" : `, p (Holm) ${number.p(found.holm, found.starred)}`));
    return lines.filter(Boolean).join("\n");
  };

  // The points that no other one beats on one axis without losing on the other.
  const pareto = (points, more, lower) => {
    const cost = p => lower ? p.y : -p.y, size = p => more ? -p.x : p.x;
    const front = [];
    for (const p of [...points].sort((a, b) => size(a) - size(b) || cost(a) - cost(b)))
      if (!front.length || cost(p) < cost(front.at(-1))) front.push(p);
    return front;
  };

  page.follow(() => {
    const {metric, x: axis} = state, {mean, half} = page.estimates[metric];
    const {percent, lower} = page.metrics[metric], factor = percent ? 100 : 1;
    const [least, most] = page.ends(metric, factor), {barred} = page.marks[metric];
    tasks.forEach((task, t) => {
      const at = rows[axis], own = rows.task.flatMap((n, i) =>
        n === t && mean[i] !== null && at[i] !== null && page.shown(rows.method[i]) ? [i] : []);
      boxes[t].hidden = !rows.task.some((n, i) => n === t && mean[i] !== null);
      if (boxes[t].hidden) return;
      if (!own.length) {
        boxes[t].replaceChildren(html("figcaption", {}, task), html("p", {class: "note"},
          `Nothing to draw: no visible method has ${metric} and ${axis}.`));
        return;
      }
      const present = [...new Set(own.map(i => rows.method[i]))].sort((a, b) => a - b);
      const pruning = present.filter(m => !methods[m].dense);
      const places = [...new Set(own.map(i => rows[axis][i]))];
      // All methods have the same sparsities, so they are drawn side by side.
      const step = axis === "sparsity" && pruning.length > 1 ? Math.min(12, 260 / places.length / pruning.length) : 0;
      const values = [], starts = [];
      const series = present.map(m => {
        const mine = own.filter(i => rows.method[i] === m).sort((a, b) => at[a] - at[b]);
        const shift = methods[m].dense ? 0 : step * (pruning.indexOf(m) - (pruning.length - 1) / 2);
        const points = mine.map(i => ({
          x: at[i], y: factor * mean[i], shift, words: () => words(i, metric), data: {"data-row": i},
          barred: barred[i], low: half[i] === null ? null : Math.max(least, factor * (mean[i] - half[i])),
          high: Math.min(most, factor * (mean[i] + half[i]))}));
        const faint = !state.seeds ? [] : mine.filter(i => rows.runs[i].length > 1).flatMap(i => rows.runs[i].flatMap(r => {
          const px = axis === "sparsity" ? at[i] : runs[axis][r], py = runs.metrics[metric][r];
          return px === null || py === null ? [] : [{x: px, y: factor * py, shift, data: {"data-run": r}}];
        }));
        for (const p of points) {
          values.push(p.y, ...(p.low === null ? [] : [p.low, p.high]));
          starts.push(p.x);
        }
        for (const p of faint) { values.push(p.y); starts.push(p.x); }
        return {style: methods[m], label: methods[m].name, points, faint,
          level: methods[m].dense && points.length ? points[0].y : null};
      });
      const points = series.flatMap(s => s.points), front = state.front ? pareto(points.filter(p => !p.barred), axes[axis].more, lower) : [];
      for (const p of front) p.ringed = true;
      page.chart(boxes[t], {title: task, xTitle: axes[axis].title, yTitle: percent ? `${metric}, %` : metric,
        x: axis === "sparsity" ? scale.density(starts) : scale.fitting(starts),
        y: lower ? scale.fitting(values) : scale.linear(values, undefined, [least, most]), series, front});
    });
  });
}
