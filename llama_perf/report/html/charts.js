/* Charts: each is drawn when it comes near the view, or is printed.
 *
 * Colours of text and lines are the page's own, so a change of theme needs no drawing.
 */
(() => {
  "use strict";
  const CONFIG = {
    background: "transparent",
    font: "system-ui, sans-serif",
    view: { stroke: null },
    axis: {
      domainColor: "var(--line)",
      tickColor: "var(--line)",
      gridColor: "var(--line)",
      gridOpacity: 0.6,
      labelColor: "var(--muted)",
      titleColor: "var(--ink)",
      titleFontWeight: 500,
      labelFontSize: 12,
      titleFontSize: 12,
      labelLimit: 260,
    },
    legend: {
      labelColor: "var(--ink)",
      titleColor: "var(--ink)",
      titleFontWeight: 500,
      labelFontSize: 12,
      titleFontSize: 12,
      labelLimit: 260,
      orient: "bottom",
      columns: 3,
    },
    header: { labelColor: "var(--ink)", titleColor: "var(--ink)", labelLimit: 260 },
    title: { color: "var(--ink)", fontWeight: 600, anchor: "start" },
    mark: { color: "var(--series)" },
    text: { color: "var(--ink)" },
    rule: { color: "var(--muted)" },
    // Okabe and Ito's colours, told apart by those who see few.
    range: {
      category: [
        ...["#0072B2", "#E69F00", "#009E73", "#CC79A7"],
        ...["#56B4E9", "#D55E00", "#F0E442", "#999999"],
      ],
    },
  };
  const OPTIONS = {
    mode: "vega-lite",
    renderer: "svg",
    actions: false,
    defaultStyle: false,
    config: CONFIG,
    // The policy of the page forbids code that is made while it runs.
    ast: true,
    tooltip: { disableDefaultStyle: true },
  };
  const views = new Map();
  let visible = null;

  function specOf(name) {
    const holder = [...document.querySelectorAll("script[data-spec]")].find(
      (script) => script.dataset.spec === name,
    );
    return JSON.parse(holder.textContent);
  }

  /* Draws a Vega-Lite spec into an element; the promise has its view. */
  async function draw(element, spec) {
    if (!("width" in spec) && ("mark" in spec || "layer" in spec)) {
      spec.width = "container";
      spec.autosize ??= { type: "fit-x", contains: "padding" };
    }
    for (const param of spec.params ?? []) {
      if (param.name === "visible") param.value = visible;
    }
    const { view } = await vegaEmbed(element, spec, OPTIONS);
    // What is wider than the page scrolls, by keyboard too.
    if (element.scrollWidth > element.clientWidth) {
      element.tabIndex = 0;
      element.setAttribute("role", "group");
      element.setAttribute("aria-label", spec.description);
    }
    return view;
  }

  function drawFigure(figure) {
    const name = figure.dataset.chart;
    if (!views.has(name)) {
      views.set(name, draw(figure.querySelector(".chart"), specOf(name)));
    }
    return views.get(name);
  }

  /* Says which rows the page shows: their ids, null for all. */
  function show(ids) {
    visible = ids;
    for (const drawn of views.values()) {
      drawn.then((view) => {
        const signals = view.getState().signals;
        if ("visible" in signals) view.signal("visible", visible).runAsync();
      });
    }
  }

  const figures = [...document.querySelectorAll("figure[data-chart]")];
  const observer = new IntersectionObserver(
    async (entries) => {
      const near = entries.filter((entry) => entry.isIntersecting);
      near.forEach((entry) => observer.unobserve(entry.target));
      await Promise.all(near.map((entry) => drawFigure(entry.target)));
      if (performance.getEntriesByName("charts-drawn").length === 0) {
        performance.mark("charts-drawn");
      }
    },
    { rootMargin: "200px" },
  );
  figures.forEach((figure) => observer.observe(figure));
  addEventListener("beforeprint", () => figures.forEach(drawFigure));
  window.llamaPerf = { draw, show };
})();
