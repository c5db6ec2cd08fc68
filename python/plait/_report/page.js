// Draws the report's page from the numbers in it: tiles, tables, and charts by uPlot.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("numbers").textContent);
  const reports = data.reports.filter((report) => report.jobs > 0);
  const $ = (selector) => document.querySelector(selector);
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const isDark = () => css("color-scheme").includes("dark");
  const PARTS = ["serialise", "cpu", "gil_wait", "delayed", "waiting", "idle"];
  const PART_COLOURS = { serialise: "#e0883a", cpu: "#2f8f5b", gil_wait: "#d1495b", delayed: "#a06cd5", waiting: "#4c8fd8", idle: "#d9dce1" };
  const DARK_PARTS = { ...PART_COLOURS, idle: "#3a4149" };
  const WHEEL = ["#2f6fde", "#e0883a", "#2f8f5b", "#d1495b", "#8b62c9", "#1c9aa0", "#b8860b", "#c2579b", "#6b7a8f", "#7ba23f"];
  const colour = (at) => WHEEL[at % WHEEL.length];
  const partColour = (part) => (isDark() ? DARK_PARTS : PART_COLOURS)[part];

  const seconds = (value) => {
    if (value === null || value === undefined) return "not known";
    if (value >= 100) return value.toFixed(0) + " s";
    if (value >= 1) return value.toPrecision(3) + " s";
    if (value >= 1e-3) return (value * 1e3).toPrecision(3) + " ms";
    if (value >= 1e-6) return (value * 1e6).toPrecision(3) + " µs";
    return (value * 1e9).toFixed(0) + " ns";
  };
  const bytes = (count) => (count >= 1e9 ? (count / 1e9).toPrecision(3) + " GB" : count >= 1e6 ? (count / 1e6).toPrecision(3) + " MB" : count >= 1e3 ? (count / 1e3).toPrecision(3) + " kB" : count + " bytes");
  const percent = (value) => (100 * value).toFixed(0) + " %";
  const element = (tag, text, parent) => {
    const made = document.createElement(tag);
    if (text !== undefined && text !== null) made.textContent = text;
    if (parent) parent.append(made);
    return made;
  };
  const row = (table, cells, tag = "td") => {
    const line = element("tr", null, table);
    for (const cell of cells) element(tag, cell, line);
    return line;
  };
  const legend = (parent, entries) => {
    parent.replaceChildren();
    for (const [text, background] of entries) {
      const span = element("span", null, parent);
      element("i", null, span).style.background = background;
      span.append(text);
    }
  };
  const tip = $("#tip");
  const showTip = (event, text) => {
    tip.hidden = !text;
    if (!text) return;
    tip.textContent = text;
    const { width, height } = tip.getBoundingClientRect();
    tip.style.left = Math.min(event.clientX + 14, innerWidth - width - 6) + "px";
    tip.style.top = Math.min(event.clientY + 14, innerHeight - height - 6) + "px";
  };
  const axis = (more) => ({ stroke: css("--faint"), grid: { stroke: css("--line"), width: 1 }, ticks: { stroke: css("--line"), width: 1 }, ...more });
  const widthOf = (chart) => Math.max(chart.clientWidth, 300);
  // Every model's name, with the report's in front where there are several.
  const series = reports.flatMap((report) =>
    Object.entries(report.models).map(([model, numbers]) => ({ name: reports.length > 1 && report.model !== model ? report.model + " → " + model : model, numbers })));

  function facts() {
    const tiles = $("#facts");
    const total = (of) => reports.reduce((sum, report) => sum + of(report), 0);
    const add = (value, what) => {
      const tile = element("div", null, tiles);
      element("b", value, tile);
      element("span", what, tile);
    };
    add(total((report) => report.jobs).toLocaleString("en"), "jobs");
    if (reports.length === 1) {
      const report = reports[0];
      add(seconds(report.span), "from the first to the last");
      add(seconds(report.where.cpu), "CPU time in jobs");
      const there = report.workers.reduce((sum, worker) => sum + worker.seconds, 0);
      const busy = report.workers.reduce((sum, worker) => sum + worker.busy, 0);
      if (there > 0) add(percent(busy / there), "workers busy (" + report.workers.length + ")");
      if (report.peak_memory) add(bytes(report.peak_memory), "largest worker");
      for (const [ending, count] of Object.entries(report.endings)) if (count && ending !== "returned") add(count.toLocaleString("en"), ending);
    }
    const first = data.reports[0];
    if (first) add(first.cpus, first.cpus === 1 ? "CPU" : "CPUs");
  }

  function words() {
    const findings = reports.flatMap((report) => report.findings.map((text) => (reports.length > 1 ? report.model + ": " : "") + text));
    if (findings.length) {
      $("#findings").hidden = false;
      for (const text of findings) element("li", text, $("#findings ul"));
    }
    const decided = reports.find((report) => report.decision);
    if (decided) {
      const decision = decided.decision;
      $("#decision").hidden = false;
      $("#decision p").textContent = decision.model + " for " + decision.function + ": " + decision.reason;
      const expected = Object.entries(decision.expected);
      if (expected.length) {
        const table = $("#decision table");
        row(table, ["model", "expected jobs/s", "all jobs would take"], "th");
        for (const [model, rate] of expected) {
          const line = row(table, [model, rate.toPrecision(3), seconds(decided.jobs / rate)]);
          if (model === decision.model) line.className = "best";
        }
      }
    }
    const workers = reports.flatMap((report) => report.workers).sort((one, other) => other.busy - one.busy);
    if (workers.length) {
      $("#workers").hidden = false;
      const table = $("#workers table");
      row(table, ["worker", "model", "jobs", "there for", "busy", "CPU"], "th");
      for (const worker of workers.slice(0, 64))
        row(table, [worker.name, worker.model, worker.jobs.toLocaleString("en"), seconds(worker.seconds), percent(worker.seconds ? worker.busy / worker.seconds : 0), percent(worker.seconds ? worker.cpu / worker.seconds : 0)]);
      if (workers.length > 64) row(table, [workers.length - 64 + " more", "", "", "", "", ""]);
    }
  }

  function compared() {
    const comparison = data.comparison;
    if (!comparison) return;
    $("#comparison").hidden = false;
    $("#comparison .lead").textContent = "best: " + comparison.summary;
    const table = $("#comparison table");
    row(table, ["model", "workers", "wall", "× serial", "CPU", "memory"], "th");
    const walls = comparison.models.filter((one) => one.wall && !["serial", "auto"].includes(one.model)).map((one) => one.wall);
    for (const one of comparison.models) {
      if (!one.wall) {
        row(table, [one.model, "–", "–", "–", "–", one.error || "–"]);
        continue;
      }
      const name = one.chosen ? "auto → " + one.chosen : one.model;
      const line = row(table, [name, one.workers ?? "–", seconds(one.wall), one.speedup.toFixed(2), seconds(one.cpu), bytes(one.peak_memory)]);
      if (one.wall === Math.min(...walls) && !["serial", "auto"].includes(one.model)) line.className = "best";
    }
    for (const remark of comparison.remarks) element("li", remark, $("#comparison ul"));
  }

  // Bars side by side, each of parts on top of each other. Values are given from the bottom up.
  function bars(chart, names, stacks, colours, label, tell) {
    const xs = names.map((_, at) => at);
    const tops = [];
    stacks.forEach((values, at) => tops.push(values.map((value, x) => value + (at ? tops[at - 1][x] : 0))));
    const paths = uPlot.paths.bars({ size: [0.6, 90] });
    // The tallest is drawn first, and what is below it over it.
    const order = tops.map((_, at) => at).reverse();
    const plot = new uPlot({
      width: widthOf(chart), height: 260, legend: { show: false },
      cursor: { x: false, y: false, points: { show: false }, drag: { x: false, y: false } },
      scales: { x: { time: false, range: [-0.6, names.length - 0.4] }, y: { range: (_, low, high) => [0, (high || 1) * 1.08] } },
      axes: [axis({ splits: () => xs, values: () => names, grid: { show: false } }), axis({ size: 70, label, labelSize: 20, values: (_, values) => values.map(seconds) })],
      series: [{}, ...order.map((at) => ({ paths, points: { show: false }, fill: colours[at], stroke: colours[at], width: 0 }))],
      hooks: { setCursor: [(plot) => { chart.at = plot.cursor.left >= 0 ? Math.round(plot.posToVal(plot.cursor.left, "x")) : -1; }] },
    }, [xs, ...order.map((at) => tops[at])], chart);
    plot.over.addEventListener("mousemove", (event) => showTip(event, chart.at >= 0 && chart.at < names.length ? tell(chart.at) : ""));
    plot.over.addEventListener("mouseleave", () => { tip.hidden = true; });
    return plot;
  }

  function where() {
    if (!series.length) return null;
    $("#where").hidden = false;
    legend($("#where .legend"), PARTS.map((part) => [data.titles[part], partColour(part)]));
    const stacks = PARTS.map((part) => series.map((one) => one.numbers.parts[part] || 0));
    return bars($("#where .chart"), series.map((one) => one.name), stacks, PARTS.map(partColour), "seconds, summed up", (at) =>
      series[at].name + ", " + series[at].numbers.jobs.toLocaleString("en") + " jobs, in the queue for " + seconds(series[at].numbers.parts.queued) + " together\n" + PARTS.map((part, of) => data.titles[part] + ": " + seconds(stacks[of][at])).join("\n"));
  }

  function walls() {
    if (!data.comparison) return null;
    const ran = data.comparison.models.filter((one) => one.wall);
    return bars($("#comparison .chart"), ran.map((one) => one.model), [ran.map((one) => one.wall)], [css("--accent")], "wall time", (at) => ran[at].model + ": " + seconds(ran[at].wall) + "\nCPU " + seconds(ran[at].cpu));
  }

  function latency() {
    const curves = series.filter((one) => one.numbers.quantiles.length);
    if (!curves.length) return null;
    $("#latency").hidden = false;
    const chart = $("#latency .chart");
    const shares = curves[0].numbers.quantiles.map(([share]) => 100 * share);
    // On a scale of logarithms nothing may be 0.
    const values = curves.map((one) => one.numbers.quantiles.map(([, value]) => Math.max(value, 1e-9)));
    return new uPlot({
      width: widthOf(chart), height: 260,
      scales: { x: { time: false }, y: { distr: 3 } },
      axes: [axis({ values: (_, marks) => marks.map((mark) => mark + " %") }), axis({ size: 70, values: (_, marks) => marks.map((mark) => (mark === null ? "" : seconds(mark))) })],
      series: [{ label: "jobs", value: (_, value) => (value === null || value === undefined ? "–" : value.toFixed(1) + " %") },
        ...curves.map((one, at) => ({ label: one.name, stroke: colour(at), width: 2, points: { show: false }, value: (_, value) => (value === null || value === undefined ? "–" : seconds(value)) }))],
    }, [shares, ...values], chart);
  }

  // The timeline: uPlot has the axes, the zoom and the cursor; the jobs are drawn by the hook.
  function timeline() {
    const rows = [], jobs = [];
    const functions = new Map();
    let leftOut = 0;
    for (const report of reports) {
      const from = rows.length, line = report.timeline;
      leftOut += line.left_out;
      for (const [model, name] of line.rows) rows.push(reports.length > 1 ? report.model + " · " + name : name);
      for (const job of line.jobs) {
        const name = line.functions[job[1]];
        if (!functions.has(name)) functions.set(name, functions.size);
        jobs.push([job[0] + from, functions.get(name), ...job.slice(2)]);
      }
    }
    if (!jobs.length) return null;
    $("#timeline").hidden = false;
    if (leftOut) $("#timeline .hint").textContent += " The newest jobs are shown; " + leftOut.toLocaleString("en") + " earlier ones are not.";
    const names = [...functions.keys()];
    legend($("#timeline .legend"), [...names.slice(0, 12).map((name, at) => [name, colour(at)]), ...(names.length > 12 ? [[names.length - 12 + " more", "transparent"]] : [])]);
    const byRow = rows.map(() => []);
    for (const job of jobs) byRow[job[0]].push(job);
    for (const line of byRow) line.sort((one, other) => one[2] - other[2]);
    const begin = Math.min(...byRow.filter((line) => line.length).map((line) => line[0][2]));
    const end = jobs.reduce((latest, job) => Math.max(latest, job[3]), begin);
    const all = [begin, end + (end - begin) * 0.01 + 1e-9];
    const chart = $("#timeline .chart");
    const height = Math.min(Math.max(rows.length * 20, 60), 560);
    // The first job of a row that ends after a moment; rows are sorted, and their jobs do not overlap.
    const firstAfter = (line, moment) => {
      let low = 0, high = line.length;
      while (low < high) {
        const middle = (low + high) >> 1;
        if (line[middle][3] < moment) low = middle + 1; else high = middle;
      }
      return low;
    };
    const draw = (plot) => {
      const { ctx, bbox } = plot;
      const { min, max } = plot.scales.x;
      const scale = bbox.width / (max - min), tall = bbox.height / rows.length;
      ctx.save();
      ctx.beginPath();
      ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
      ctx.clip();
      byRow.forEach((line, at) => {
        const top = bbox.top + at * tall + Math.min(tall * 0.12, 2);
        const size = Math.max(tall - 2 * Math.min(tall * 0.12, 2), 1);
        let drawn = -1;
        for (let next = firstAfter(line, min); next < line.length && line[next][2] <= max; next++) {
          const [, name, from, to, ending] = line[next];
          const left = bbox.left + (from - min) * scale;
          const right = Math.max(bbox.left + (to - min) * scale, left + 1);
          if (right <= drawn + 0.5) continue;
          drawn = right;
          ctx.fillStyle = colour(name);
          ctx.globalAlpha = ending === "returned" ? 0.85 : 0.45;
          ctx.fillRect(left, top, Math.max(right - left - (right - left > 4 ? 1 : 0), 1), size);
          if (ending !== "returned") {
            ctx.globalAlpha = 1;
            ctx.fillStyle = "#d1495b";
            ctx.fillRect(left, top + size - 2, right - left, 2);
          }
        }
      });
      ctx.restore();
    };
    const step = Math.ceil(rows.length / (height / 20));
    const plot = new uPlot({
      width: widthOf(chart), height: height + 50, legend: { show: false },
      cursor: { y: false, points: { show: false }, drag: { x: true, y: false, setScale: true } },
      scales: { x: { time: false, range: (_, low, high) => (low === null || low === high ? all : [low, high]) }, y: { range: [0, rows.length], dir: -1 } },
      axes: [axis({ values: (_, marks) => marks.map((mark) => (mark === 0 ? "0" : seconds(mark))) }),
        axis({ size: 190, splits: () => rows.flatMap((_, at) => (at % step ? [] : [at + 0.5])), values: (_, marks) => marks.map((mark) => { const name = rows[Math.floor(mark)]; return name.length > 26 ? name.slice(0, 25) + "…" : name; }), grid: { show: false }, ticks: { show: false } })],
      series: [{}, { points: { show: false } }],
      hooks: { draw: [draw], ready: [(plot) => moves(plot, all)] },
    }, [all, [null, null]], chart);
    const at = (event) => {
      const box = plot.over.getBoundingClientRect();
      const line = byRow[Math.floor(((event.clientY - box.top) / box.height) * rows.length)];
      if (!line) return null;
      const slack = (plot.scales.x.max - plot.scales.x.min) / box.width;
      const moment = plot.posToVal(event.clientX - box.left, "x");
      const job = line[firstAfter(line, moment - 2 * slack)];
      return job && job[2] <= moment + 2 * slack ? job : null;
    };
    plot.over.addEventListener("mousemove", (event) => {
      const job = at(event);
      if (!job) return showTip(event, "");
      const [line, name, from, to, ending, queued, cpu, waiting, gil, size] = job;
      const lines = [names[name] + (ending === "returned" ? "" : " (" + ending + ")"), rows[line], "from " + seconds(from) + ", took " + seconds(to - from), "in the queue " + seconds(queued)];
      if (cpu !== null) lines.push("CPU " + seconds(cpu) + ", waiting " + seconds(waiting) + (gil ? ", GIL " + seconds(gil) : ""));
      else lines.push("what it cost is not known");
      if (size) lines.push(bytes(size) + " pickled");
      showTip(event, lines.join("\n"));
    });
    plot.over.addEventListener("mouseleave", () => { tip.hidden = true; });
    return plot;
  }

  // Zooming by the wheel, moving by dragging with shift.
  function moves(plot, all) {
    const set = (min, max) => {
      const span = Math.min(Math.max(max - min, (all[1] - all[0]) * 1e-6), all[1] - all[0]);
      const from = Math.min(Math.max(min, all[0]), all[1] - span);
      plot.setScale("x", { min: from, max: from + span });
    };
    plot.over.addEventListener("wheel", (event) => {
      event.preventDefault();
      const { min, max } = plot.scales.x;
      const middle = plot.posToVal(event.clientX - plot.over.getBoundingClientRect().left, "x");
      const factor = event.deltaY < 0 ? 0.8 : 1.25;
      set(middle - (middle - min) * factor, middle + (max - middle) * factor);
    }, { passive: false });
    plot.over.addEventListener("mousedown", (event) => {
      if (!event.shiftKey) return;
      event.stopImmediatePropagation();
      const { min, max } = plot.scales.x;
      const perPixel = (max - min) / plot.over.clientWidth, start = event.clientX;
      const move = (other) => set(min - (other.clientX - start) * perPixel, max - (other.clientX - start) * perPixel);
      const stop = () => { removeEventListener("mousemove", move); removeEventListener("mouseup", stop); };
      addEventListener("mousemove", move);
      addEventListener("mouseup", stop);
    }, { capture: true });
    plot.over.addEventListener("dblclick", () => set(all[0], all[1]));
  }

  let plots = [];
  function charts() {
    for (const plot of plots) plot.destroy();
    plots = [walls(), where(), latency(), timeline()].filter(Boolean);
  }

  $("#title").textContent = data.title;
  facts();
  words();
  compared();
  charts();
  $("#theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    charts();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", charts);
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; charts(); } });
  document.documentElement.dataset.ready = plots.length;
})();
