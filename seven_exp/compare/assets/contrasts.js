/* The planned contrasts, one line each. */
(root, data, {html}) => {
  root.append(html("div", {class: "wide", tabindex: 0, role: "region", "aria-label": "planned contrasts"}, html("table", {},
    html("thead", {}, html("tr", {}, ...data.heads.map(head => html("th", {class: "words", scope: "col"}, head)))),
    html("tbody", {}, ...data.lines.map(line => html("tr", {}, ...line.map(cell => html("td", {class: "words"}, cell))))))));
}
