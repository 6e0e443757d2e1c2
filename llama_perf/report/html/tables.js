/* The theme's button, and tables that sort.
 *
 * A table of the class "sortable" gets a button in every heading. A cell sorts by its
 * data-value, a number, or else by its text; empty ones and "-" come last either way.
 */
(() => {
  "use strict";
  const root = document.documentElement;

  function remembered(theme) {
    // A browser may refuse to store anything for a file.
    try {
      if (theme) localStorage.setItem("llama-perf theme", theme);
      return localStorage.getItem("llama-perf theme");
    } catch {
      return null;
    }
  }

  function initTheme() {
    const button = document.getElementById("theme");
    const system = matchMedia("(prefers-color-scheme: dark)");
    let chosen = remembered();
    const show = () => {
      const dark = chosen ? chosen === "dark" : system.matches;
      root.dataset.theme = dark ? "dark" : "light";
      button.setAttribute("aria-pressed", String(dark));
    };
    button.addEventListener("click", () => {
      chosen = root.dataset.theme === "dark" ? "light" : "dark";
      remembered(chosen);
      show();
    });
    system.addEventListener("change", show);
    button.hidden = false;
    show();
  }

  function valueOf(row, column) {
    const cell = row.cells[column];
    if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
    const text = cell.textContent.trim();
    return text === "-" || text === "" ? null : text;
  }

  function compare(one, other) {
    if (typeof one === "number" && typeof other === "number") return one - other;
    return String(one).localeCompare(String(other), "en", { numeric: true });
  }

  function sort(table, heading) {
    const column = heading.cellIndex;
    const up = heading.getAttribute("aria-sort") !== "ascending";
    for (const each of table.tHead.rows[0].cells) each.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", up ? "ascending" : "descending");
    const body = table.tBodies[0];
    const keyed = Array.from(body.rows, (row) => [valueOf(row, column), row]);
    keyed.sort(([one], [other]) => {
      if (one === null || other === null) return (one === null) - (other === null);
      return up ? compare(one, other) : compare(other, one);
    });
    body.append(...keyed.map(([, row]) => row));
  }

  function makeSortable(table) {
    for (const heading of table.tHead.rows[0].cells) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      button.addEventListener("click", () => sort(table, heading));
      heading.append(button);
    }
  }

  initTheme();
  document.querySelectorAll("table.sortable").forEach(makeSortable);
  performance.mark("tables-usable");
})();
