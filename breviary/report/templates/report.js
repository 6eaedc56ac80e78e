
"use strict";
(() => {
  const state = document.getElementById("sorted");

  // Empty values stay last in both directions; equal rows keep their order.
  function compare(one, other, isNumber, sign) {
    if (one === "" || other === "") return (one === "") - (other === "");
    return sign * (isNumber ? Number(one) - Number(other) : one.localeCompare(other));
  }

  function sort(table, head, place) {
    const former = head.getAttribute("aria-sort");
    const first = head.dataset.first ?? "ascending";
    const order = former ? (former === "ascending" ? "descending" : "ascending") : first;
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    const body = table.tBodies[0];
    const value = (row) => row.cells[place].dataset.sort ?? "";
    const rows = [...body.rows].sort((one, other) =>
      compare(value(one), value(other), head.dataset.kind === "number", order === "ascending" ? 1 : -1));
    body.append(...rows);
    state.textContent = `Sorted by ${head.textContent}, ${order}`;
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((head, place) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(table, head, place));
      head.append(button);
    });
  }

  // A link into closed details opens them; paper shows all of them.
  function open() {
    const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
    if (target && target.tagName === "DETAILS") target.open = true;
  }
  addEventListener("hashchange", open);
  open();
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));
})();
