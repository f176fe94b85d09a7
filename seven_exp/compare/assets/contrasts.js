/* The planned contrasts, one line each; the last cell is a sentence. */
(root, data, {html}) => {
  const wrapped = "white-space: normal; min-width: 24em";
  const cells = line => line.map((cell, c) => html("td", {class: "words", style: c + 1 === line.length && wrapped}, cell));
  root.append(html("div", {class: "wide", tabindex: 0, role: "region", "aria-label": "planned contrasts"}, html("table", {},
    html("thead", {}, html("tr", {}, ...data.heads.map(head => html("th", {class: "words", scope: "col"}, head)))),
    html("tbody", {}, ...data.lines.map(line => html("tr", {}, ...cells(line)))))));
}
