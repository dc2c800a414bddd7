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

  dark.addEventListener("change", () => redraw());
  window.matchMedia("print").addEventListener("change", (event) => {
    redraw(event.matches ? PRINTED_WIDTH : undefined);
  });

  plots.filter((plot) => !plot.element.closest("details:not([open])")).forEach((plot) => draw(plot));
  document.documentElement.dataset.ready = "true";
})();
