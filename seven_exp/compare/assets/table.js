/* Means, intervals and the differences to a baseline. */
(root, data, page) => {
  const {html, number, state, rows, tasks, methods} = page;
  const controls = root.appendChild(html("div", {class: "controls"}));
  page.choice(controls, "baseline", "baseline", [["", "none"], ...data.baselines.map(name => [name, name])]);
  const note = root.appendChild(html("p", {class: "note"}));
  const body = root.appendChild(html("div"));
  page.follow(() => {
    const {metric, baseline} = state, {mean, half, n, best} = page.estimates[metric], {lower} = page.metrics[metric];
    const {seeds} = page.marks[metric], apart = page.differences[metric][baseline]?.apart ?? [];
    const tested = baseline ? page.differences[metric][baseline]?.holm.filter(p => p !== null).length ?? 0 : 0;
    note.textContent = "± is half the 95% interval (Student t), never less than one test example. The best mean of each " +
      "sparsity is bold, among rows without failed or missing seeds; a mean of one seed has no interval." +
      (!baseline ? "" : (page.paired ? " A difference is the mean over the seeds that both have, paired seed by seed (n " +
      "where fewer than the row's)" : " A difference is that of the means, not paired by seed") + ", with its own interval; " +
      "if the baseline has several settings, the one with the row's settings counts. " +
      `* marks p < ${page.significant} in ${page.paired ? "a paired t test" : "Welch's t test"} after Holm's correction ` +
      (page.family === "table" ? `over all ${tested} tests of this table.` : `over the tests of each sparsity, ${tested} in all.`) +
      (data.more ? ` ${data.more} more methods are not offered as baselines here: name one with --baseline.` : ""));
    body.replaceChildren(...tasks.flatMap((task, t) => {
      const own = rows.task.flatMap((n, i) => n === t && mean[i] !== null ? [i] : [])
        .sort((a, b) => rows.sparsity[a] - rows.sparsity[b] || (lower ? 1 : -1) * (mean[a] - mean[b]));
      if (!own.length) return [];
      const heads = ["sparsity", "method", metric, "seeds", ...(baseline ? [`minus ${baseline}`, "p (Holm)"] : []),
        "kept", "zeros of all parameters", "FLOPs", "seconds"];
      const lines = own.map((i, k) => {
        const d = page.difference(metric, baseline, i);
        const compared = !baseline ? [] : !d ? [apart[i] ? "seeds differ" : "", ""] : [number.interval(metric, d.mean, d.half, true) +
          (d.n === n[i] || !page.paired ? "" : ` (n=${d.n})`), number.p(d.holm, d.starred)];
        const cells = [number.percent(rows.sparsity[i]), methods[rows.method[i]].name,
          number.interval(metric, mean[i], half[i]), seeds[i], ...compared, number.count(rows.kept[i]),
          rows.zeros[i] === null ? "" : number.percent(rows.zeros[i]), number.count(rows.flops[i]), rows.seconds[i].toFixed(1)];
        const first = k > 0 && rows.sparsity[own[k - 1]] !== rows.sparsity[i];
        return html("tr", {class: `${best[i] ? "best" : ""} ${first ? "first" : ""}`, "data-row": i},
          ...cells.map((cell, c) => html("td", {class: c === 1 ? "words" : null}, String(cell))));
      });
      return [html("h3", {}, task), html("div", {class: "wide", tabindex: 0, role: "region", "aria-label": `means: ${task}`},
        html("table", {}, html("thead", {}, html("tr", {},
          ...heads.map((head, c) => html("th", {class: c === 1 ? "words" : null, scope: "col"}, head)))),
          html("tbody", {}, ...lines))),
        ...page.captions[metric][t].map(words => html("p", {class: "note"}, words))];
    }));
  }, ["metric", "baseline"]);
}
