/* Agreement of masks of one task, sparsity and seed: weights kept by both over weights kept by either. */
(root, data, page) => {
  const {html, number, state, runs, tasks, methods} = page;
  const places = data.map(({runs: [first]}, i) =>
    [String(i), `${tasks[runs.task[first]]}, ${number.percent(runs.sparsity[first])}`]);
  const controls = root.appendChild(html("div", {class: "controls"}));
  page.choice(controls, "masks of", "overlapOf", places);
  const note = root.appendChild(html("p", {class: "note"}));
  const body = root.appendChild(html("div", {class: "wide", tabindex: 0, role: "region", "aria-label": "agreement of masks"}));
  const two = value => value.toFixed(2).replace(/^0/, "");
  page.follow(() => {
    const one = data[state.overlapOf] ?? data[0];
    const own = one.runs.map((_, k) => k).filter(k => page.shown(runs.method[one.runs[k]]));
    const name = k => methods[runs.method[one.runs[k]]].name;
    note.textContent = "Weights kept by both masks over weights kept by either (Jaccard), of one seed, the mean over " +
      `${one.seeds} seed${one.seeds > 1 ? "s" : ""}; on the diagonal a method with itself, between two seeds. In brackets: what ` +
      "random masks with the same number of weights in each layer would have." +
      (one.more_seeds ? ` ${one.more_seeds} more seeds are left out.` : "") +
      (one.more_methods ? ` ${one.more_methods} more methods are left out.` : "");
    const cell = (a, b) => {
      const value = one.jaccard[a][b], chance = one.expected[a][b];
      if (value === null) return html("td", {class: a === b ? "self" : null}, "");
      const shade = [255 - 247 * value, 255 - 207 * value, 255 - 148 * value].map(Math.round);
      const made = html("td", {"data-overlap": value, "data-pair": `${name(a)}|${name(b)}`, class: a === b ? "self" : null,
        style: `background: rgb(${shade}); color: ${value > .5 ? "#fff" : "#1a1a1a"}`},
        two(value), html("small", {}, ` (${two(chance)})`));
      page.tip(made, `${name(a)}\n${a === b ? "another seed" : name(b)}\nJaccard: ${number.exact(value)}\nrandom masks: ${number.exact(chance)}`);
      return made;
    };
    body.replaceChildren(html("table", {class: "heat"},
      html("thead", {}, html("tr", {}, html("th", {scope: "col"}, "method"), ...own.map(k => html("th", {scope: "col"}, name(k))))),
      html("tbody", {}, ...own.map(a => html("tr", {}, html("th", {scope: "row"}, name(a)), ...own.map(b => cell(a, b)))))));
  });
}
