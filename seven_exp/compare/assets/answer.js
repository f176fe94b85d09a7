/* Who wins, by how much, is it certain, on what budget, when: in words, and as a ranked heat map. */
(root, data, page) => {
  const {html, number, state, rows, tasks, methods} = page;
  const controls = root.appendChild(html("div", {class: "controls"}));
  const baselines = [...new Set(Object.values(page.differences).flatMap(found => Object.keys(found)))].sort();
  page.choice(controls, "metric", "metric", Object.keys(page.metrics).map(key => [key, key]));
  page.choice(controls, "baseline", "baseline", [["", "none"], ...baselines.map(key => [key, key])]);
  const body = root.appendChild(html("div"));
  const name = i => methods[rows.method[i]].name;
  // A button that isolates a method.
  const button = i => html("button", {type: "button", class: "method", title: "show this method alone",
    "aria-pressed": String(state.only === name(i)), onclick: () => page.isolate(name(i))}, name(i));

  page.follow(() => {
    const {metric, baseline} = state, {mean, half, best} = page.estimates[metric], {lower, percent} = page.metrics[metric];
    const unit = percent ? " %" : "", sign = lower ? 1 : -1;
    const over = i => page.difference(metric, baseline, i);
    // A rival that is ahead, though barred from being best, is not beaten.
    const unbeaten = (i, j) => half[i] === null || half[j] === null || sign * (mean[j] - mean[i]) <= half[i] + half[j];
    const ahead = (i, j) => page.marks[metric].barred[j] && sign * (mean[j] - mean[i]) < 0;

    const verdict = (i, rivals) => {
      const d = over(i), close = rivals.filter(j => j !== i && unbeaten(i, j)), better = close.filter(j => ahead(i, j));
      const against = !d ? "" : `, ${number.interval(metric, d.mean, d.half, true)} against ${name(d.reference)}` +
        (d.holm === null ? "" : ` (p ${number.p(d.holm, d.starred).replace(/^(?!<)/, "= ")})`);
      const few = close.slice(0, 5).map(name).join(", ") + (close.length > 5 ? `, and ${close.length - 5} more` : "");
      return html("li", {"data-winner": name(i)}, html("b", {}, number.percent(rows.sparsity[i])), ": ", button(i),
        ` leads with ${number.interval(metric, mean[i], half[i])}${unit}${against}. `,
        html("em", {}, rivals.length < 2 ? "It has no rival."
          : half[i] === null ? "Not certain: one seed has no interval."
          : better.length ? `Not certain: ${better.map(name).join(", ")} (†) ${better.length > 1 ? "are" : "is"} ahead, but incomplete or not as sparse.`
          : close.length ? `Not certain: ${close.length} of ${rivals.length - 1} rivals have intervals that overlap (${few}).`
          : d && !d.starred ? `Not certain: no interval overlaps, but p against ${name(d.reference)} is not below 0.05.`
          : `Certain: no interval of its ${rivals.length - 1} rivals overlaps.`));
    };

    const heat = (own, order) => {
      const targets = [...new Set(own.map(i => rows.sparsity[i]))].sort((a, b) => a - b);
      const sizes = own.map(over).filter(Boolean).map(d => Math.abs(d.mean)).sort((a, b) => a - b);
      // A few very large differences would leave all others white.
      const most = sizes[Math.floor(.9 * (sizes.length - 1))] || 1, digits = percent ? 1 : 3;
      const cell = i => {
        if (i === undefined) return html("td", {});
        const d = over(i);
        if (!d) return html("td", {class: "base"}, number.of(metric, mean[i]));
        const depth = Math.max(-1, Math.min(1, -sign * d.mean / most)), deep = depth > 0 ? [33, 102, 172] : [178, 24, 43];
        const shade = deep.map(c => Math.round(255 + (c - 255) * Math.abs(depth)));
        const made = html("td", {"data-row": i, "data-difference": d.mean, style: `background: rgb(${shade}); color: ` +
          (Math.abs(depth) > .6 ? "#fff" : "#1a1a1a")}, number.signed((percent ? 100 : 1) * d.mean, digits) + (d.starred ? "*" : ""));
        page.tip(made, page.words(i));
        return made;
      };
      return html("div", {class: "wide", tabindex: 0, role: "region", "aria-label": "differences by method"},
        html("table", {class: "heat ranked"},
          html("thead", {}, html("tr", {}, html("th", {scope: "col"}, `minus ${baseline}${percent ? ", points" : ""}`),
            ...targets.map(s => html("th", {scope: "col"}, number.percent(s))))),
          html("tbody", {}, ...order.map(m => {
            const mine = own.filter(i => rows.method[i] === m);
            return html("tr", {class: state.only && state.only !== methods[m].name ? "dim" : null},
              html("th", {scope: "row"}, button(mine[0])), ...targets.map(s => cell(mine.find(i => rows.sparsity[i] === s))));
          }))));
    };

    body.replaceChildren(...tasks.flatMap((task, t) => {
      const all = rows.task.flatMap((n, i) => n === t && mean[i] !== null ? [i] : []);
      if (!all.length) return [];
      const pruned = all.filter(i => rows.sparsity[i] > 0), own = pruned.length ? pruned : all;
      const winners = own.filter(i => best[i]).sort((a, b) => rows.sparsity[b] - rows.sparsity[a]);
      const order = page.ranks[metric][t].filter(page.shown);
      const compared = own.some(i => over(i));
      return [html("h3", {}, task), html("ul", {class: "answer"}, ...winners.map(i =>
        verdict(i, own.filter(j => rows.sparsity[j] === rows.sparsity[i])))),
        html("p", {class: "note"}, data.budgets[t]),
        ...(compared ? [html("p", {class: "note"}, `Differences to ${baseline}, methods by their mean rank over the sparsities; ` +
          "the baseline's row holds its means. A star survives Holm's correction over the tests of " +
          `${page.family === "table" ? "the table" : "its sparsity"}. Click a method to isolate it.`),
          heat(own, order)] : [])];
    }));
  }, ["metric", "baseline", "only", "hide", "find"]);
}
