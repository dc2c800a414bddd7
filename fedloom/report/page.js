"use strict";
(() => {
  const PRINTED_WIDTH = 660; // CSS pixels of an A4 page between its margins.
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const coarse = window.matchMedia("(pointer: coarse)").matches;
  const plots = [...document.querySelectorAll(".plot")].map((element) => ({
    element,
    figure: JSON.parse(document.querySelector(`script[data-of="${element.id}"]`).textContent),
    hidden: new Set(),
    drawn: false,
  }));
  let axis = "rounds";

  // "@c0/0.2" is the page's --c0 at a fifth of its opacity.
  function colour(token, style) {
    const [name, opacity] = token.slice(1).split("/");
    const value = style.getPropertyValue(`--${name}`).trim();
    if (opacity === undefined) return value;
    const [red, green, blue] = [1, 3, 5].map((at) => parseInt(value.slice(at, at + 2), 16));
    return `rgba(${red},${green},${blue},${opacity})`;
  }

  // Only values that are colours: a run may be called "@c0".
  function painted(value, style, isColour = false) {
    if (typeof value === "string") return isColour && value.startsWith("@") ? colour(value, style) : value;
    if (Array.isArray(value)) return value.map((item) => painted(item, style, isColour));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(
      Object.entries(value).map(([key, item]) => [key, painted(item, style, /color(scale)?$/.test(key))]),
    );
  }

  const AXIS = {
    automargin: true,
    gridcolor: "@grid",
    linecolor: "@grid",
    zerolinecolor: "@grid",
    tickcolor: "@grid",
    tickfont: { size: 12 },
    title: { standoff: 8, font: { size: 13 } },
    fixedrange: coarse,
  };

  function layoutOf(figure, family, width) {
    const { xaxis, yaxis, ...rest } = figure.layout;
    const chosen = { ...xaxis, ...figure.axes[axis] };
    return {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family, color: "@ink", size: 13 },
      hoverlabel: { namelength: 30, bgcolor: "@surface", bordercolor: "@muted", font: { color: "@ink", family } },
      margin: { l: 48, r: 14, t: 12, b: 44 },
      showlegend: false,
      hovermode: "closest",
      dragmode: coarse ? false : "zoom",
      ...rest,
      xaxis: { ...AXIS, ...chosen, title: { ...AXIS.title, ...chosen.title } },
      yaxis: { ...AXIS, ...yaxis, title: { ...AXIS.title, ...yaxis?.title } },
      ...(width ? { width, autosize: false } : { autosize: true }),
    };
  }

  function draw(plot, width) {
    const style = getComputedStyle(document.documentElement);
    const family = getComputedStyle(document.body).fontFamily;
    const traces = plot.figure.data.map((trace, number) => ({
      ...trace,
      ...(trace.x && !Array.isArray(trace.x) ? { x: trace.x[axis] } : {}),
      ...(trace.colorbar ? { colorbar: { ...trace.colorbar, tickfont: { size: 11 } } } : {}),
      visible: !plot.hidden.has(number),
    }));
    Plotly.react(plot.element, painted(traces, style), painted(layoutOf(plot.figure, family, width), style), {
      responsive: true,
      displayModeBar: false,
    });
    plot.drawn = true;
  }

  function redraw(width) {
    plots.filter((plot) => plot.drawn).forEach((plot) => draw(plot, width));
  }

  document.querySelectorAll(".switch button").forEach((button) => {
    button.addEventListener("click", () => {
      axis = button.dataset.axis;
      button.parentElement.querySelectorAll("button").forEach((other) => {
        other.setAttribute("aria-pressed", String(other === button));
      });
      plots.filter((plot) => plot.drawn && plot.figure.axes[axis]).forEach((plot) => draw(plot));
    });
  });

  document.querySelectorAll("[data-shows]").forEach((button) => {
    const plot = plots.find((one) => one.element.id === button.dataset.shows);
    button.addEventListener("click", () => {
      const shows = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(shows));
      for (const trace of button.dataset.traces.split(" ").map(Number)) {
        if (shows) plot.hidden.delete(trace);
        else plot.hidden.add(trace);
      }
      draw(plot);
    });
  });

  // What is folded has no width yet; it is drawn when it is unfolded.
  document.querySelectorAll("details").forEach((details) => {
    details.addEventListener("toggle", () => {
      plots.filter((plot) => !plot.drawn && details.contains(plot.element)).forEach((plot) => draw(plot));
    });
  });

  function save(name, kind, content) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([content], { type: kind }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  const fileName = (text, end) => `${text.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60)}.${end}`;

  // Rows of a table as texts: a number with its spread, without the word that marks the best.
  const rowsOf = (table) => [...table.rows].map((row) => [...row.cells].map((cell) => {
    const parts = [...cell.querySelectorAll(".number, .spread")].map((part) => part.textContent);
    return { text: parts.length ? parts.join(" ") : cell.textContent, best: cell.querySelector(".best") !== null };
  }));

  const inCsv = (text) => (/[",\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text);
  const LATEX = { "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "±": "$\\pm$", "–": "--" };
  const inLatex = ({ text, best }) => {
    const safe = text.replace(/[\\~^±–&%$#_{}]/g, (sign) => LATEX[sign] ?? `\\${sign}`);
    return best ? `\\textbf{${safe}}` : safe;
  };

  function latexOf(rows, caption) {
    const [head, ...body] = rows.map((row) => `${row.map(inLatex).join(" & ")} \\\\`);
    return ["\\begin{table}", `\\caption{${inLatex({ text: caption })}}`, `\\begin{tabular}{l${"r".repeat(rows[0].length - 1)}}`,
      "\\hline", head, "\\hline", ...body, "\\hline", "\\end{tabular}", "\\end{table}", ""].join("\n");
  }

  document.querySelectorAll("[data-export]").forEach((button) => {
    const table = button.parentElement.previousElementSibling.querySelector("table");
    button.addEventListener("click", () => {
      const rows = rowsOf(table);
      const caption = table.caption.textContent;
      if (button.dataset.export === "CSV") {
        save(fileName(caption, "csv"), "text/csv", rows.map((row) => row.map(({ text }) => inCsv(text)).join(",")).join("\n") + "\n");
      } else save(fileName(caption, "tex"), "application/x-tex", latexOf(rows, caption));
    });
  });

  document.querySelectorAll("[data-svg]").forEach((button) => {
    const element = document.getElementById(button.dataset.svg);
    button.addEventListener("click", async () => {
      const { width, height } = element.getBoundingClientRect();
      const url = await Plotly.toImage(element, { format: "svg", width, height, imageDataOnly: true });
      save(fileName(button.closest("figure").querySelector("h3").textContent, "svg"), "image/svg+xml", url);
    });
  });

  dark.addEventListener("change", () => redraw());
  window.matchMedia("print").addEventListener("change", (event) => {
    redraw(event.matches ? PRINTED_WIDTH : undefined);
  });

  plots.filter((plot) => !plot.element.closest("details:not([open])")).forEach((plot) => draw(plot));
  document.documentElement.dataset.ready = "true";
})();
