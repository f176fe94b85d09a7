/* Signal to noise of kept and pruned weights' gradients; survival; empty layers and rows. */
(root, data, page) => {
  const {html, number, scale, state, runs, tasks, methods} = page;
  const at = ({runs: [first]}) => `${tasks[runs.task[first]]}, ${number.percent(runs.sparsity[first])}`;
  const looks = {
    choice: ["just before weights were pruned", "Each weight's ratio at the last measurement before it was pruned, against " +
      "those that were kept then: the fairest of the three, because pruning can't have affected it. Methods that prune before training have none."],
    start: ["at the dense start", "Each weight's ratio over many batches at the dense start: the same numbers for all methods of a seed."],
    now: ["at the end of training", "Each weight's ratio at the last steps. A pruned weight's gradient is that at zero, and an emptied layer has no " +
      "gradients, so a low ratio of pruned weights may be an effect of pruning, not its cause."],
  };
  const measures = {
    snr: ["of size: mean |g| / rms g (SEVEN's factor)", "mean |g| / rms g"],
    direction: ["of direction: |mean g| / rms g (the classical one)", "|mean g| / rms g"],
  };
  const others = {survival: "kept since the previous measurement", unbroken: "never pruned so far", births: "returned since the previous measurement",
    collapsed_layers: "layers below 1% of their weights", empty_rows: "rows without a weight", silent: "weights without any gradient"};
  const places = [...new Set(data.rows.map(at))].map(place => [place, place]);
  const controls = root.appendChild(html("div", {class: "controls"}));
  page.choice(controls, "runs of", "evidenceOf", places);
  page.choice(controls, "signal to noise", "measure", Object.entries(measures).map(([key, [title]]) => [key, title]));
  page.choice(controls, "measured", "look", Object.entries(looks).map(([key, [title]]) => [key, title]));
  const note = root.appendChild(html("p", {class: "note"}));
  const body = root.appendChild(html("div", {class: "wide", tabindex: 0, role: "region", "aria-label": "signal to noise by method"}));
  const panels = root.appendChild(html("div", {class: "panels"}));
  const [spread, course] = [0, 1].map(() => panels.appendChild(html("figure")));
  const more = root.appendChild(html("div", {class: "controls"}));
  page.choice(more, "over training", "course", Object.entries(others));
  const other = root.appendChild(html("figure"));
  const three = value => value === null ? "" : value.toFixed(3);

  page.follow(() => {
    const {look, measure} = state, [, words] = looks[look], short = measures[measure][1];
    const own = data.rows.filter(row => at(row) === state.evidenceOf && page.shown(runs.method[row.runs[0]]));
    const style = row => methods[runs.method[row.runs[0]]];
    note.textContent = `${words} "Chance" is the probability that a kept weight's ratio exceeds a pruned one's, 0.5 means no ` +
      "difference; within layers, for pairs within a layer. Means over seeds." +
      (data.unread ? ` ${data.unread} more measured runs are left out.` : "");
    const heads = ["method", "seeds", "kept", "pruned", "chance", "chance within layers", "rows without a weight", "layers below 1%"];
    body.replaceChildren(html("table", {class: "evidence"},
      html("thead", {}, html("tr", {}, ...heads.map((head, i) => html("th", {class: i === 0 || i === 7 ? "words" : null, scope: "col"}, head)))),
      html("tbody", {}, ...own.map(row => {
        const found = row.contrasts[`${look}_${measure}`];
        const cells = [style(row).name, row.runs.length, ...["kept", "pruned", "separation", "in_layers"].map(key => found ? three(found[key]) : ""),
          number.percent(row.empty_rows), row.collapsed.length ? row.collapsed.map(([name, n]) => row.runs.length > 1 ? `${name} (${n})` : name).join(", ") : ""];
        return html("tr", {"data-evidence": style(row).name},
          ...cells.map((cell, i) => html("td", {class: i === 0 || i === 7 ? "words" : null}, String(cell))));
      }))));

    const draw = (box, title, xTitle, yTitle, lines) => {
      const xs = lines.flatMap(l => l.points.map(p => p.x)), ys = lines.flatMap(l => l.points.map(p => p.y));
      if (!xs.length) return box.replaceChildren(html("figcaption", {}, title), html("p", {class: "note"}, "Nothing was measured here."));
      page.chart(box, {title, xTitle, yTitle, marks: false, x: scale.linear(xs), y: scale.linear(ys), series: lines});
    };
    const groups = ["kept", "pruned"], dashes = ["", "3 3"];
    const line = (row, g, points) => ({style: {...style(row), dash: dashes[g]}, label: `${style(row).name} ${groups[g]}`, points: points.map(([x, y]) =>
      ({x, y, words: () => `${style(row).name}, ${groups[g]}\n${number.exact(x)}: ${number.exact(y)}`}))});
    draw(spread, `${state.evidenceOf}: solid kept, dashed pruned`, short, "weights, %", own.flatMap(row => {
      const found = row.contrasts[`${look}_${measure}`];
      return !found ? [] : found.counts.flatMap((counts, g) => {
        const all = counts.reduce((a, b) => a + b, 0), width = data.edges[measure].at(-1) / counts.length;
        return all ? [line(row, g, counts.map((n, k) => [(k + .5) * width, 100 * n / all]))] : [];
      });
    }));
    const key = look === "now" ? measure : `${look}_${measure}`;
    const curve = (row, name) => {
      const found = row.curves[name];
      return found ? found[1].map((y, k) => [data.steps[found[0]][k], y]) : [];
    };
    draw(course, `${state.evidenceOf}: solid kept, dashed pruned`, "optimizer steps", `mean of ${short}`, own.flatMap(row =>
      groups.flatMap((group, g) => { const points = curve(row, `${key}_${group}`); return points.length ? [line(row, g, points)] : []; })));
    draw(other, state.evidenceOf, "optimizer steps", others[state.course] ?? "", own.flatMap(row => {
      const points = curve(row, state.course);
      return points.length ? [{style: style(row), label: style(row).name, points: points.map(([x, y]) =>
        ({x, y, words: () => `${style(row).name}\nstep ${number.exact(x)}: ${number.exact(y)}`}))}] : [];
    }));
  });
}
