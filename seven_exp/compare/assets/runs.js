/* Every run with its record, and how configs differ. */
(root, data, page) => {
  const {html, number, runs, tasks, methods, state} = page;
  const metrics = Object.keys(page.metrics), count = runs.seed.length;
  const columns = [
    ["model and data set", r => tasks[runs.task[r]], true], ["method", r => methods[runs.method[r]].name, true],
    ["sparsity", r => runs.sparsity[r], false, number.percent], ["reached", r => runs.reached[r], false, v => v === null ? "" : number.percent(v)],
    ["kept", r => runs.kept[r], false, number.count], ["FLOPs", r => runs.flops[r], false, number.count],
    ["seed", r => runs.seed[r], false, String],
    ...metrics.map(name => [name, r => runs.metrics[name][r], false, v => v === null ? "" : number.of(name, v)]),
    ["zeros of all parameters", r => runs.zeros[r], false, v => v === null ? "" : number.percent(v)],
    ["seconds", r => runs.seconds[r], false, v => v.toFixed(1)],
  ];
  const controls = root.appendChild(html("div", {class: "controls"}));
  const search = html("input", {name: "search", placeholder: "words, such as seven_dyn 90%", size: 24, oninput: () => sift()});
  const found = html("span");
  controls.append(html("label", {}, "only runs with ", search), found,
    html("button", {type: "button", onclick: () => page.set({chosen: []})}, "choose none"));
  const lines = runs.seed.map((_, r) => {
    const box = html("input", {type: "checkbox", "aria-label": "compare this run's config", onchange: () => page.set({
      chosen: box.checked ? [...state.chosen, r] : state.chosen.filter(n => n !== r)})});
    return html("tr", {"data-run": r}, html("td", {}, box), ...columns.map(([, get, text, spell = String]) =>
      html("td", {class: text ? "words" : null}, spell(get(r)))),
      html("td", {class: "words"}, html("a", {href: runs.link[r]}, runs.folder[r])));
  });
  const body = html("tbody", {}, ...lines);
  let order = null;
  const heads = columns.map(([name, get, text], c) => html("th", {class: text ? "words" : null, scope: "col"},
    html("button", {type: "button", title: "sort", onclick: () => {
      order = order?.[0] === c ? [c, -order[1]] : [c, 1];
      const rank = (a, b) => text ? get(a).localeCompare(get(b)) : (get(a) ?? Infinity) - (get(b) ?? Infinity);
      body.append(...runs.seed.map((_, r) => r).sort((a, b) => order[1] * rank(a, b) || a - b).map(r => lines[r]));
      for (const head of heads) head.removeAttribute("aria-sort");
      heads[c].setAttribute("aria-sort", order[1] > 0 ? "ascending" : "descending");
    }}, name)));
  root.append(html("div", {class: "wide", tabindex: 0, role: "region", "aria-label": "all runs"},
    html("table", {class: "runs"}, html("thead", {}, html("tr", {}, html("th", {}, ""), ...heads,
      html("th", {class: "words", scope: "col"}, "record"))), body)));
  const sift = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let left = 0;
    for (const line of lines) {
      const text = [...line.cells].map(cell => cell.textContent).join(" ").toLowerCase();
      line.hidden = !words.every(word => text.includes(word));
      left += !line.hidden;
    }
    found.textContent = left === count ? `${count} runs` : `${left} of ${count} runs`;
  };
  sift();

  root.append(html("h3", {}, "How their configs differ"));
  const note = root.appendChild(html("p", {class: "note"}));
  const differing = root.appendChild(html("div", {class: "wide", tabindex: 0, role: "region", "aria-label": "differences between configs"}));
  page.follow(() => {
    const chosen = state.chosen.filter(r => r < count);
    lines.forEach((line, r) => { line.cells[0].firstChild.checked = chosen.includes(r); });
    const of = (key, r) => data.varying[key].values[data.varying[key].of[r]];
    const keys = Object.keys(data.varying).filter(key => chosen.length < 2 || new Set(chosen.map(r => of(key, r))).size > 1);
    const alike = Object.keys(data.varying).length + Object.keys(data.same).length - keys.length;
    note.textContent = (chosen.length < 2 ? "Keys that differ among all runs, their values and in how many runs; choose two " +
      "runs or more in the table above to compare these. " : "Keys that differ among the chosen runs. ") +
      `${alike} further keys are equal.`;
    const heads = chosen.length < 2 ? ["key", "values"] : ["key", ...chosen.map(r => runs.folder[r])];
    const cells = key => {
      if (chosen.length > 1) return chosen.map(r => of(key, r));
      const {values, of: places} = data.varying[key], counts = values.map(() => 0);
      for (const place of places) counts[place]++;
      const said = values.slice(0, 12).map((value, k) => `${value} (${counts[k]})`).join(", ");
      return [values.length > 12 ? `${said}, and ${values.length - 12} more` : said];
    };
    differing.replaceChildren(html("table", {class: "configs"},
      html("thead", {}, html("tr", {}, ...heads.map(head => html("th", {class: "words", scope: "col"}, head)))),
      html("tbody", {}, ...keys.map(key => html("tr", {"data-key": key},
        ...[key, ...cells(key)].map(cell => html("td", {class: "words"}, cell)))))));
  });
}
