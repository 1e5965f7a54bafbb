// Each column's head becomes a button: a click sorts by it, another turns the order.
for (const head of document.querySelectorAll("th")) {
  const button = document.createElement("button");
  button.append(...head.childNodes);
  head.append(button);
  button.onclick = () => {
    const column = head.cellIndex, body = head.closest("table").tBodies[0];
    const text = row => row.cells[column].textContent.trim();
    // the best scores and gains stand first, and names from A
    const score = head.className === "number" || [...body.rows].some(row => /^[+-]\d/.test(text(row)));
    const down = score ? head.ariaSort !== "descending" : head.ariaSort === "ascending";
    const number = row => parseFloat(text(row).replaceAll(",", ""));
    const order = (a, b) => number(a) - number(b) || text(a).localeCompare(text(b));
    for (const other of head.parentNode.cells) other.ariaSort = null;
    head.ariaSort = down ? "descending" : "ascending";
    body.append(...[...body.rows].sort((a, b) => down ? order(b, a) : order(a, b)));
  };
}
