/* Training curves: one per run, and the mean of runs that were logged at the same steps. */
(root, data, page) => {
  const {html, number, scale, state, rows, runs, tasks, methods} = page;
  const first = ["validation", "test"].map(split => `${split}/${page.metric}`).find(name => name in data.curves);
  const quantities = Object.keys(data.curves).sort((a, b) => (b === first) - (a === first) || a.localeCompare(b));
  if (!quantities.length) {
    root.append(html("p", {class: "note"}, "The records have no metrics.jsonl."));
    return;
  }
  const targets = [...new Set(rows.sparsity)].sort((a, b) => b - a);
  const controls = root.appendChild(html("div", {class: "controls"}));
  page.choice(controls, "curve", "curve", quantities.map(name => [name, name]));
  page.choice(controls, "sparsity", "curvesAt", targets.map(s => [String(s), number.percent(s)]));
  root.append(html("p", {class: "note"}, "Faint lines are single seeds, strong ones their mean." +
    (data.most ? ` Of longer histories ${data.most} evenly spaced points are drawn.` : "")));
  const panels = root.appendChild(html("div", {class: "panels"}));
  const boxes = tasks.map(() => panels.appendChild(html("figure")));
  page.follow(() => {
    const curves = data.curves[state.curve];
    tasks.forEach((task, t) => {
      const own = rows.task.flatMap((n, i) => n === t && page.shown(rows.method[i])
        && String(rows.sparsity[i]) === state.curvesAt && rows.runs[i].some(r => curves[r]) ? [i] : []);
      boxes[t].hidden = !own.length;
      if (!own.length) return;
      const series = [], xs = [], ys = [];
      const add = (style, label, [grid, values], words, look) => {
        const points = values.flatMap((y, k) => y === null ? [] : [{x: data.steps[grid][k], y, words: words && (() => words(data.steps[grid][k], y))}]);
        for (const p of points) { xs.push(p.x); ys.push(p.y); }
        series.push({style, label, points, ...look});
      };
      for (const i of own) {
        const {name} = methods[rows.method[i]], style = methods[rows.method[i]];
        const mine = rows.runs[i].filter(r => curves[r]), alike = mine.every(r => curves[r][0] === curves[mine[0]][0]);
        const say = who => (step, y) => `${name}\n${who}\nstep: ${number.count(step)}\n${state.curve}: ${number.exact(y)}`;
        if (state.seeds || !alike) for (const r of mine)
          add(style, `${name} seed ${runs.seed[r]}`, curves[r], mine.length > 1 && alike ? null : say(`seed ${runs.seed[r]}`),
            {width: .8, opacity: alike && mine.length > 1 ? .35 : 1, data: {"data-run": r}});
        if (alike && mine.length > 1) {
          const mean = curves[mine[0]][1].map((_, k) => {
            const values = mine.map(r => curves[r][1][k]);
            return values.includes(null) ? null : values.reduce((a, b) => a + b) / values.length;
          });
          add(style, name, [curves[mine[0]][0], mean], say(`mean of ${mine.length} seeds`), {width: 2, data: {"data-row": i}});
        }
      }
      page.chart(boxes[t], {title: `${task}, sparsity ${number.percent(+state.curvesAt)}`, xTitle: "optimizer steps", yTitle: state.curve, marks: false,
        x: scale.linear(xs), y: scale.linear(ys, undefined, page.ends(state.curve.replace(/^(validation|test)\//, ""))), series});
    });
  }, ["curve", "curvesAt", "seeds", "only", "hide", "find"]);
}
