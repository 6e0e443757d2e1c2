/* The rows of a run: which ones are shown, and one row's details in a dialog. */
(() => {
  "use strict";
  const table = document.getElementById("rows-table");
  const copyButtons = "button[data-copy]";

  async function copy(button) {
    const text = button.previousElementSibling;
    try {
      await navigator.clipboard.writeText(text.textContent);
    } catch {
      // A browser may refuse: then the command is selected, to be copied by a key.
      getSelection().selectAllChildren(text);
      button.textContent = "Selected";
      return;
    }
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 2000);
  }
  document.addEventListener("click", (event) => {
    const button = event.target.closest(copyButtons);
    if (button) copy(button);
  });
  if (!table) return;

  const form = document.getElementById("filters");
  const rows = [...table.tBodies[0].rows];
  let details = null;
  const dialog = document.getElementById("details");
  const slots = new Map();
  for (const slot of dialog.querySelectorAll("[data-slot]")) {
    slots.set(slot.dataset.slot, slot);
  }

  /* What the page knows of a row: megabytes, so they are read when one is opened. */
  function detailsOf(row) {
    details ??= JSON.parse(document.getElementById("row-details").textContent);
    return details[row.dataset.id];
  }

  function isShown(row, wanted) {
    for (const name of ["model", "scheme", "kernels"]) {
      if (wanted[name] && row.dataset[name] !== wanted[name]) return false;
    }
    if (wanted.verdict === "failed") {
      if (!("failed" in row.dataset)) return false;
    } else if (wanted.verdict && row.dataset.verdict !== wanted.verdict) {
      return false;
    }
    const id = `${row.dataset.id} ${row.cells[0].textContent}`.toLowerCase();
    return wanted.id.every((word) => id.includes(word));
  }

  function filter() {
    const wanted = Object.fromEntries(new FormData(form));
    wanted.id = wanted.id.toLowerCase().split(/\s+/);
    for (const row of rows) row.hidden = !isShown(row, wanted);
    const shown = rows.filter((row) => !row.hidden);
    document.getElementById("shown").textContent =
      `${shown.length} of ${rows.length} rows`;
    const all = shown.length === rows.length;
    window.llamaPerf?.show(all ? null : shown.map((row) => row.dataset.id));
  }

  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.querySelector("button").addEventListener("click", () => {
    form.reset();
    filter();
  });

  function element(name, text, className) {
    const made = document.createElement(name);
    made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  function figuresOf(row) {
    const headings = [...table.tHead.rows[0].cells].slice(1);
    return headings
      .map((heading, number) => [heading.textContent, row.cells[number + 1]])
      .filter(([, cell]) => cell.className === "figure" && cell.textContent !== "-")
      .map(([name, cell]) => {
        const pair = document.createElement("div");
        pair.append(element("dt", name), element("dd", cell.textContent));
        return pair;
      });
  }

  function changeLine(cells) {
    const line = document.createElement("tr");
    cells.forEach((text, number) => {
      const isFigure = number > 0 && number < 5;
      line.append(element("td", text, isFigure ? "figure" : ""));
    });
    return line;
  }

  function fill(row) {
    const known = detailsOf(row);
    for (const name of ["reason", "disturbed", "closeness"]) {
      slots.get(name).textContent = known[name] ?? "";
      slots.get(name).hidden = !known[name];
    }
    if (known.disturbed) slots.get("disturbed").prepend("Disturbed: ");
    if (known.closeness) slots.get("closeness").prepend("Closeness: ");
    slots.get("id").textContent = row.dataset.id;
    slots.get("verdict").textContent = known.verdict;
    slots.get("verdict").className = `badge ${known.kind}`;
    for (const name of ["ranks", "why"]) {
      slots.get(name).replaceChildren(
        ...(known[name] ?? []).map((line) => element("li", line)),
      );
    }
    slots.get("command").hidden = !known.command;
    slots.get("command").querySelector("pre").textContent = known.command ?? "";
    slots.get("changes").hidden = !known.changes;
    slots.get("changes").querySelector("tbody").replaceChildren(
      ...(known.changes ?? []).map(changeLine),
    );
    slots.get("figures").replaceChildren(...figuresOf(row));
  }

  const figures = [...dialog.querySelectorAll("figure[data-row-chart]")];
  let drawn = Promise.resolve([]);

  /* Draws a row's charts in place of those of the row before. */
  function drawCharts(row) {
    const known = detailsOf(row).charts ?? {};
    const shown = figures.filter((figure) => figure.id in known);
    for (const figure of figures) figure.hidden = !shown.includes(figure);
    for (const figure of shown) {
      figure.querySelector(".figures").textContent = known[figure.id].text;
    }
    drawn = drawn.then((views) => {
      // Another row may have been opened meanwhile.
      if (row !== current) return views;
      views.forEach((view) => view.finalize());
      return Promise.all(
        shown.map((figure) => {
          const spec = llamaPerf.specOf(figure.id);
          const { values, text } = known[figure.id];
          spec.datasets = { [figure.id]: values };
          spec.description += ` ${text}`;
          return llamaPerf.draw(figure.querySelector(".chart"), spec);
        }),
      );
    });
  }

  let current = null;
  function open(row) {
    current = row;
    fill(row);
    for (const button of dialog.querySelectorAll("[data-step]")) {
      button.disabled = neighbour(Number(button.dataset.step)) === undefined;
    }
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
    slots.get("id").focus();
    drawCharts(row);
  }

  function neighbour(step) {
    // As the table stands: sorted and filtered.
    const shown = [...table.tBodies[0].rows].filter((row) => !row.hidden);
    const place = shown.indexOf(current);
    return place < 0 ? undefined : shown[place + step];
  }

  dialog.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    // A click beside the dialog is one on the dialog itself.
    if (event.target === dialog || button?.matches("[data-close]")) dialog.close();
    if (button?.dataset.step) open(neighbour(Number(button.dataset.step)));
  });
  document.addEventListener("click", (event) => {
    const opener = event.target.closest("[data-open]");
    if (opener) open(rows.find((row) => row.dataset.id === opener.dataset.open));
  });
})();
