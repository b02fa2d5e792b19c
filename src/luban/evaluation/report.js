document.addEventListener("DOMContentLoaded", () => {
  "use strict";
  const source = document.getElementById("read-out");
  if (!source) return;
  const { names, tables } = JSON.parse(source.textContent);
  const shape = "http://www.w3.org/2000/svg";
  const language = () => (document.documentElement.lang.startsWith("zh") ? "zh" : "en");

  const clock = (seconds) => {
    const whole = Math.round(seconds);
    const two = (value) => String(value).padStart(2, "0");
    return `${Math.floor(whole / 3600)}:${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}`;
  };
  const write = (name, value) => {
    if (value === null) return "—";
    if (name === "seconds") return clock(value);
    if (name === "peak_share") return `${(100 * value).toFixed(1)}%`;
    if (Math.abs(value) >= 1000) return Math.round(value).toLocaleString("en");
    return String(Number(value.toPrecision(4)));
  };
  const nearest = (sorted, wanted) => {
    let low = 0;
    let high = sorted.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (sorted[middle] < wanted) low = middle;
      else high = middle;
    }
    return wanted - sorted[low] < sorted[high] - wanted ? low : high;
  };

  for (const plot of document.querySelectorAll("svg.plot[data-table]")) {
    const { axis, table, x0, x1 } = plot.dataset;
    const columns = tables[table];
    const places = columns[axis];
    if (!places || !places.length) continue;
    const frame = plot.closest(".frame");
    let box = null;
    let line = null;
    let at = -1;

    const hide = () => {
      box?.remove();
      line?.remove();
      box = line = null;
      at = -1;
    };
    const show = (index) => {
      at = Math.min(Math.max(index, 0), places.length - 1);
      const share = (places[at] - x0) / (x1 - x0);
      if (!box) {
        box = document.createElement("dl");
        box.className = "readout";
        frame.append(box);
        line = document.createElementNS(shape, "line");
        line.setAttribute("class", "cursor");
        line.setAttribute("y2", "100%");
        plot.append(line);
      }
      line.setAttribute("x1", `${100 * share}%`);
      line.setAttribute("x2", `${100 * share}%`);
      box.replaceChildren(...Object.keys(columns).filter((name) => columns[name].some((v) => v !== null)).map((name) => {
        const row = document.createElement("div");
        const term = document.createElement("dt");
        const value = document.createElement("dd");
        term.textContent = names[name][language()];
        value.textContent = write(name, columns[name][at]);
        row.append(term, value);
        return row;
      }));
      const inner = plot.getBoundingClientRect();
      const outer = frame.getBoundingClientRect();
      const x = inner.left - outer.left + share * inner.width;
      const left = share < 0.5 ? x + 14 : x - 14 - box.offsetWidth;
      box.style.left = `${Math.min(Math.max(left, 0), outer.width - box.offsetWidth)}px`;
    };

    plot.addEventListener("pointermove", (event) => {
      const inner = plot.getBoundingClientRect();
      const share = (event.clientX - inner.left) / inner.width;
      show(nearest(places, Number(x0) + share * (x1 - x0)));
    });
    plot.addEventListener("pointerleave", hide);
    plot.addEventListener("blur", hide);
    plot.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20 }[event.key];
      if (event.key === "Escape") hide();
      if (step === undefined) return;
      event.preventDefault();
      show(at < 0 ? (step > 0 ? 0 : places.length - 1) : at + step);
    });
  }
});
