"use strict";
(async () => {
  const get = (id) => document.getElementById(id);
  const data = JSON.parse(get("explore-data").textContent);
  const { default: DataTable } = await import(
    "data:text/javascript;base64," + get("explore-tables").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.classList.toggle("dark", dark);
  const element = (tag, attributes = {}, ...inner) => {
    const made = Object.assign(document.createElement(tag), attributes);
    made.append(...inner);
    return made;
  };
  const options = (id, values, chosen) => {
    get(id).replaceChildren(...values.map(([value, text]) => element("option", { value, textContent: text })));
    if (chosen !== undefined) get(id).value = chosen;
  };
  const head = Object.fromEntries(data.figures.map((figure) => [figure.key, figure]));
  const number = (value, digits) => (value === null || value === undefined ? "" : value.toFixed(digits));
  const factor = (run, name) => {
    const value = run.factors[name];
    return value === undefined || value === null ? "" : value;
  };
  // What is chosen: runs whose right or wrong answers are asked for.
  const wants = new Map(); // number of a run to true (right) or false (wrong)
  let onlyDifferent = false;
  const family = () => get("family").value;
  const figures = (run) => run.figures[family()] || {};

  // Runs.
  const factors = data.factors;
  const pick = (number) => {
    const cell = element("span");
    for (const [right, text] of [[false, "✗ wrong"], [true, "✓ right"]]) {
      const button = element("button", { type: "button", textContent: text,
        title: `show problems that this run got ${right ? "right" : "wrong"}` });
      button.dataset.run = number;
      button.dataset.right = right;
      button.setAttribute("aria-pressed", wants.get(number) === right);
      cell.append(button, " ");
    }
    return cell;
  };
  const text = DataTable.render.text();
  const filter = [["search", "spacer", "searchList"]];
  const ordering = { indicators: true, handler: true };
  const runColumns = [
    { title: "run", data: (row) => row.run.name, render: { display: (value, _, row) =>
      element("span", {}, element("i", { className: "dot", style: `background:${row.run.colour}` }), value),
      _: (value) => value } },
    { title: "answers", data: null, orderable: false, className: "pick", columnControl: [],
      render: { display: (_, __, row) => pick(row.number), _: () => "" } },
    ...factors.map((name) => ({ title: name, data: (row) => factor(row.run, name), render: text })),
    ...data.figures.map((figure) => ({
      title: figure.head, data: (row) => figures(row.run)[figure.key] ?? null,
      type: "num", className: "dt-right",
      render: { display: (value, _, row) => {
        const own = figures(row.run), low = own[figure.key + "_low"], high = own[figure.key + "_high"];
        return number(value, figure.digits) + (low === undefined || low === null ? ""
          : ` [${number(low, figure.digits)}, ${number(high, figure.digits)}]`);
      }, _: (value) => value },
    })),
  ];
  options("family", data.families.map((name) => [name, name]));
  options("group", [["", "nothing"], ...factors.map((name) => [name, name])]);
  const runs = new DataTable("#runs", {
    data: data.runs.map((run, number) => ({ run, number })),
    columns: runColumns, columnControl: filter, ordering, order: [], paging: data.runs.length > 40, pageLength: 40,
    rowGroup: { enable: false, dataSrc: () => "", startRender: (rows, name) => `${get("group").value}: ${name} (${rows.count()})` },
    layout: { topStart: "info", topEnd: "search", bottomStart: null, bottomEnd: "paging" },
  });
  const visible = () => runs.rows({ search: "applied" }).data().toArray();

  // Chart.
  const ink = dark ? "#eee" : "#111", faint = dark ? "#555" : "#ddd";
  const config = { background: "transparent", font: "system-ui, sans-serif",
    axis: { labelColor: ink, titleColor: ink, gridColor: faint, domainColor: faint, tickColor: faint,
      titleFontWeight: "normal", labelFontSize: 12, titleFontSize: 12 },
    legend: { labelColor: ink, titleColor: ink, symbolOpacity: 1 }, view: { stroke: null }, text: { color: ink } };
  const embed = async (id, spec) => {
    const made = await vegaEmbed("#" + id, { config, ...spec }, { actions: false, renderer: "svg" });
    return made.view;
  };
  const kinds = [...new Map(data.runs.map((run) => [run.kind, run.colour])).entries()]
    .map(([kind, hue]) => [kind, dark && hue === "#000000" ? "#ffffff" : hue]);
  options("across", data.figures.map((figure) => [figure.key, figure.head]), "tokens_per_forward");
  options("up", data.figures.map((figure) => [figure.key, figure.head]), "accuracy");
  const drawChart = async () => {
    const x = get("across").value, y = get("up").value;
    const values = visible().map(({ run, number }) => {
      const own = figures(run);
      return { number, name: run.name, kind: run.kind, line: run.line, at: run.at, x: own[x], y: own[y],
        x_low: own[x + "_low"], x_high: own[x + "_high"], y_low: own[y + "_low"], y_high: own[y + "_high"],
        chosen: wants.has(number), ...Object.fromEntries(factors.map((name, i) => [`f${i}`, factor(run, name)])) };
    }).filter((row) => Number.isFinite(row.x) && Number.isFinite(row.y));
    // a name at every lone point and at the end of every line, where none is near
    const spread = (key) => Math.max(...values.map((row) => row[key])) - Math.min(...values.map((row) => row[key])) || 1;
    const wide = spread("x"), high = spread("y"), named = [];
    const free = (row) => named.every((other) =>
      Math.abs(other.x - row.x) / wide > 0.12 || Math.abs(other.y - row.y) / high > 0.04);
    const lines = new Map();
    for (const row of values) lines.set(row.line, [...(lines.get(row.line) || []), row]);
    for (const rows of lines.values()) {
      rows.sort((a, b) => a.x - b.x);
      rows.forEach((row, i) => {
        row.label = i === rows.length - 1 && free(row) ? row.name : "";
        if (row.label) named.push(row);
        row.joined = rows.length > 1 && row.at !== null;
      });
    }
    const colour = { field: "kind", type: "nominal", title: null,
      scale: { domain: kinds.map(([kind]) => kind), range: kinds.map(([, hue]) => hue) } };
    const scale = (key) => ({ zero: false, padding: 14, ...(key === "accuracy" ? { domainMax: 100, nice: false } : {}) });
    const across = { field: "x", type: "quantitative", title: head[x].head, scale: scale(x) };
    const up = { field: "y", type: "quantitative", title: head[y].head, scale: scale(y) };
    const tooltip = [{ field: "name", title: "run" },
      ...factors.map((name, i) => ({ field: `f${i}`, title: name.replaceAll(".", " ") })),
      { field: "x", title: head[x].head, format: `.${head[x].digits}f` },
      { field: "y", title: head[y].head, format: `.${head[y].digits}f` }];
    const view = await embed("chart", {
      width: Math.min(860, get("explore").clientWidth - 230), height: 380, data: { values },
      layer: [
        { mark: { type: "rule", opacity: 0.3 }, transform: [{ filter: "isValid(datum.x_low)" }],
          encoding: { x: { ...across, field: "x_low" }, x2: { field: "x_high" }, y: up, color: colour } },
        { mark: { type: "rule", opacity: 0.3 }, transform: [{ filter: "isValid(datum.y_low)" }],
          encoding: { x: across, y: { ...up, field: "y_low" }, y2: { field: "y_high" }, color: colour } },
        { mark: { type: "line", strokeWidth: 1.5, opacity: 0.8 }, transform: [{ filter: "datum.joined" }],
          encoding: { x: across, y: up, color: colour, detail: { field: "line" }, order: { field: "at" } } },
        { mark: { type: "point", filled: true, opacity: 1, cursor: "pointer" },
          encoding: { x: across, y: up, color: colour, tooltip,
            shape: { field: "kind", type: "nominal", legend: null,
              scale: { domain: ["control", "oracle"], range: ["square", "diamond"] } },
            size: { condition: { test: "datum.chosen", value: 220 }, value: 70 } } },
        { mark: { type: "text", align: "left", dx: 8, fontSize: 11 },
          encoding: { x: across, y: up, text: { field: "label" } } },
      ],
    });
    view.addEventListener("click", (_, item) => {
      if (item && item.datum && item.datum.number !== undefined) toggle(item.datum.number, false);
    });
  };

  // Pivot.
  const groups = [...factors, ...(factors.length ? [] : ["run"])];
  const count = (name) => new Set(data.runs.map((run) => factor(run, name))).size;
  const [first, second] = [...groups].sort((a, b) => (b === "strategy") - (a === "strategy") || count(b) - count(a));
  options("rows", groups.map((name) => [name, name]), first);
  options("columns", [["", "(none)"], ...groups.map((name) => [name, name])], second || "");
  options("cells", data.figures.map((figure) => [figure.key, figure.head]), "tokens_per_forward");
  const drawPivot = async () => {
    const [r, c, v] = ["rows", "columns", "cells"].map((id) => get(id).value);
    const worth = head[v], cells = new Map();
    const of = (run, name) => (name === "run" ? run.name : name ? factor(run, name) : "");
    for (const { run } of visible()) {
      const value = figures(run)[v], key = JSON.stringify([of(run, r), of(run, c)]);
      if (value !== null && value !== undefined) cells.set(key, [...(cells.get(key) || []), value]);
    }
    const values = [...cells].map(([key, found]) => {
      const [row, column] = JSON.parse(key);
      const best = worth.best > 0 ? Math.max(...found) : Math.min(...found);
      const mean = found.reduce((sum, value) => sum + value, 0) / found.length;
      return { row, column, runs: found.length, value: get("several").value === "best" ? best : mean };
    });
    const low = Math.min(...values.map((cell) => cell.value)), high = Math.max(...values.map((cell) => cell.value));
    const place = (field, title) => ({ field, type: "ordinal", title: title || null,
      axis: field === "column" ? { orient: "top", labelAngle: 0 } : {} });
    const encoding = { y: place("row", r), x: place("column", c) };
    await embed("pivot", {
      width: { step: 74 }, height: { step: 30 }, data: { values },
      layer: [
        { mark: "rect", encoding: { ...encoding, tooltip: [{ field: "row", title: r }, { field: "column", title: c || " " },
            { field: "value", title: worth.head, format: `.${worth.digits}f` }, { field: "runs" }],
          color: { field: "value", type: "quantitative", title: worth.head,
            scale: { scheme: "cividis", reverse: worth.best < 0, zero: false } } } },
        { mark: { type: "text", fontSize: 12 }, encoding: { ...encoding,
          text: { field: "value", format: `.${worth.digits}f` },
          color: { value: "white", condition: { value: "black",
            test: `(datum.value - ${low}) / ${high - low || 1} ${worth.best < 0 ? "<" : ">"} 0.5` } } } },
      ],
    });
  };

  // Best of those that are accurate enough.
  const floors = new DataTable("#floors", {
    data: [], paging: false, searching: false, info: false, ordering: false,
    columns: [{ title: "accuracy of at least", className: "dt-right" }, { title: "most tokens per forward", render: text },
      { title: "tokens per forward", className: "dt-right" }, { title: "accuracy %", className: "dt-right" }],
  });
  const drawFloors = () => {
    const known = visible().filter(({ run }) => run.kind !== "oracle" && figures(run).accuracy !== undefined);
    const rows = [80, 90, 95, 98, 99, 99.5].map((floor) => {
      const enough = known.filter(({ run }) => figures(run).accuracy >= floor);
      if (!enough.length) return [`${floor} %`, "no run", "", ""];
      const best = enough.reduce((a, b) =>
        figures(b.run).tokens_per_forward > figures(a.run).tokens_per_forward ? b : a).run;
      return [`${floor} %`, best.name, number(figures(best).tokens_per_forward, 2), number(figures(best).accuracy, 1)];
    });
    floors.clear().rows.add(rows).draw();
  };

  // Answers.
  const shown = () => [...wants.keys()];
  const mark = (answer) => element("span", { className: answer[1] ? "yes" : "no", textContent: answer[1] ? "✓" : "✗" });
  let samples = null;
  const fits = (answers) => shown().every((run) => answers[run] && Boolean(answers[run][1]) === wants.get(run));
  const drawSamples = () => {
    const chosen = shown(), names = chosen.map((run) => data.runs[run].name);
    const rows = data.problems.map(([key, kind, prompt], i) => ({ key, kind, prompt, answers: data.answers[i] }))
      .filter((row) => family() === data.families[0] || row.kind === family())
      .filter((row) => onlyDifferent && chosen.length > 1
        ? new Set(chosen.map((run) => row.answers[run]?.[1])).size > 1 : fits(row.answers));
    const held = data.problems.length < data.total
      ? ` This page holds ${data.problems.length.toLocaleString("en")} of ${data.total.toLocaleString("en")} problems; those that some run got wrong come first.` : "";
    get("chosen").textContent = (chosen.length
      ? `${rows.length} problems: ` + chosen.map((run, i) =>
        onlyDifferent ? names[i] : `${names[i]} ${wants.get(run) ? "right" : "wrong"}`).join(", ") + "."
      : "Choose ✗ wrong or ✓ right of one run or more in the table at the top.") + held;
    get("differ").setAttribute("aria-pressed", onlyDifferent);
    if (samples) samples.destroy();
    get("samples").replaceChildren();
    get("players").replaceChildren();
    samples = null;
    if (!chosen.length) return;
    samples = new DataTable("#samples", {
      data: rows, order: [], pageLength: 10, columnControl: filter, ordering, deferRender: true,
      layout: { topStart: "info", topEnd: "search", bottomStart: "pageLength", bottomEnd: "paging" },
      columns: [
        { title: "family", data: "kind", render: text },
        { title: "prompt", data: "prompt", render: text, className: "long" },
        ...chosen.flatMap((run, i) => [
          { title: names[i], data: (row) => (row.answers[run] ? data.texts[row.answers[run][0]] : ""), className: "long",
            render: { display: (value, _, row) => element("span", {}, row.answers[run] ? mark(row.answers[run]) : "", " ", value),
              _: (value) => value } },
          { title: "passes", data: (row) => row.answers[run]?.[2] ?? "", className: "dt-right", type: "num" },
        ]),
      ],
      createdRow: (line, row) => {
        line.style.cursor = "pointer";
        line.tabIndex = 0;
        line.onclick = () => play(row);
        line.onkeydown = (event) => { if (event.key === "Enter") play(row); };
      },
    });
    if (rows.length) play(rows[0], false);
  };

  // A player per chosen run: the answer as it was committed, pass by pass.
  const shade = (share) => share === undefined ? data.given
    : data.scale.find(([bound]) => share / 100 < bound)[1];
  const play = (row, jump = true) => {
    get("players").replaceChildren(element("pre", { textContent: row.prompt }),
      ...shown().filter((run) => row.answers[run]).map((run) => player(data.runs[run].name, row.answers[run])));
    if (jump) get("players").scrollIntoView({ behavior: "smooth", block: "nearest" });
  };
  const player = (name, answer) => {
    const [, right, passes, steps, shares, pieces] = answer;
    const cells = element("div", { className: "cells" });
    const slider = element("input", { type: "range", min: 0, max: passes, value: passes, ariaLabel: "pass" });
    const button = element("button", { type: "button", textContent: "▶" });
    const said = element("span", { className: "said" });
    const draw = () => {
      const at = Number(slider.value);
      cells.replaceChildren(...steps.map((step, i) => {
        const open = step >= at;
        const piece = pieces.length ? data.texts[pieces[i]] : "█";
        const cell = element("span", { textContent: open ? "·" : piece, className: open ? "open" : step === at - 1 ? "new" : "",
          title: `${pieces.length ? piece : "token " + i}: pass ${step + 1}` + (shares.length ? `, confidence ${shares[i]} %` : "") });
        if (!open) cell.style.background = shade(shares[i]);
        return cell;
      }));
      if (!pieces.length) cells.append(element("span", { textContent: data.texts[answer[0]] }));
      said.textContent = ` pass ${at} of ${passes}`;
    };
    let timer = 0;
    button.onclick = () => {
      clearInterval(timer);
      slider.value = 0;
      draw();
      timer = setInterval(() => {
        slider.value = Number(slider.value) + 1;
        draw();
        if (Number(slider.value) >= passes) clearInterval(timer);
      }, Math.max(60, Math.min(500, 4000 / Math.max(1, passes))));
    };
    slider.oninput = () => { clearInterval(timer); draw(); };
    draw();
    return element("div", { className: "play" },
      element("h4", {}, mark(answer), ` ${name}, ${passes} ${passes === 1 ? "pass" : "passes"}`),
      element("div", { className: "bar" }, button, slider, said), cells);
  };

  const toggle = (run, right) => {
    if (wants.get(run) === right) wants.delete(run); else wants.set(run, right);
    for (const button of document.querySelectorAll("#runs button")) {
      button.setAttribute("aria-pressed", wants.get(Number(button.dataset.run)) === (button.dataset.right === "true"));
    }
    drawSamples();
    drawChart();
  };
  get("runs").addEventListener("click", (event) => {
    const button = event.target.closest("button[data-run]");
    if (button) toggle(Number(button.dataset.run), button.dataset.right === "true");
  });
  get("clear").onclick = () => { wants.clear(); onlyDifferent = false; runs.rows().invalidate().draw(false); drawSamples(); drawChart(); };
  get("differ").onclick = () => { onlyDifferent = !onlyDifferent; drawSamples(); };
  get("group").onchange = () => {
    const name = get("group").value;
    if (!name) { runs.rowGroup().disable(); runs.order.fixed({ pre: [] }); } else {
      runs.rowGroup().enable().rowGroup().dataSrc((row) => String(factor(row.run, name)) || "-");
      runs.order.fixed({ pre: [[2 + factors.indexOf(name), "asc"]] });
    }
    runs.draw();
  };
  const redraw = () => Promise.all([drawChart(), drawPivot(), drawFloors()]);
  get("family").onchange = () => { runs.rows().invalidate().draw(false); drawSamples(); };
  for (const id of ["across", "up"]) get(id).onchange = drawChart;
  for (const id of ["rows", "columns", "cells", "several"]) get(id).onchange = drawPivot;
  runs.on("draw", redraw);
  drawSamples();
  await redraw();
  get("explore").dataset.ready = "yes";
})();
