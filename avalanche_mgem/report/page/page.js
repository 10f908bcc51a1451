for (const [id, chart] of Object.entries(charts)) {
  const actions = { export: true, source: false, compiled: false, editor: false };
  vegaEmbed("#" + id, chart, { actions }).then(() => {
    document.getElementById(id).dataset.drawn = "yes";
  });
}

function sortBy(heading) {
  const table = heading.closest("table");
  const column = heading.cellIndex;
  const descending = heading.getAttribute("aria-sort") !== "descending";
  const key = (row) => row.cells[column].dataset.value;
  const isText = heading.dataset.kind === "text";
  const compare = (a, b) => {
    if (key(a) === "" || key(b) === "") return (key(a) === "") - (key(b) === "");
    const order = isText ? key(a).localeCompare(key(b)) : Number(key(a)) - Number(key(b));
    return descending ? -order : order;
  };
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
  table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
}

for (const heading of document.querySelectorAll("th")) {
  heading.querySelector("button").addEventListener("click", () => sortBy(heading));
}
