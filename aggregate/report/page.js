"use strict";
(() => {
  document.documentElement.classList.add("js");
  const all = (selector, root = document) => Array.from(root.querySelectorAll(selector));
  const isFormula = /^[=+\-@\t\r]/; // what a spreadsheet would run

  // a table as rows of values: the exact ones of data-cells, else the text of the cell
  const valuesOf = (cell) => {
    if (cell.dataset.cells) return JSON.parse(cell.dataset.cells);
    const text = cell.cloneNode(true);
    all(".flag", text).forEach((mark) => mark.remove());
    return [text.textContent.replace(/\s+/g, " ").trim()];
  };
  const rowsOf = (table) => all("tr", table)
    .filter((row) => row.closest("table") === table && !row.classList.contains("panel") && !row.parentNode.hidden)
    .map((row) => Array.from(row.cells).flatMap((cell) => {
      const values = valuesOf(cell);
      return values.concat(Array(Math.max(0, cell.colSpan - values.length)).fill(""));
    }));
  const plain = (value) => {
    if (value === null) return "";
    if (typeof value === "number") return String(value);
    return isFormula.test(value) ? "'" + value : value;
  };
  const csvCell = (value) => {
    const text = plain(value);
    return /[",\n\r]/.test(text) ? '"' + text.replace(/"/g, '""') + '"' : text;
  };
  const csvOf = (table) => rowsOf(table).map((row) => row.map(csvCell).join(",")).join("\r\n") + "\r\n";
  const tabbed = (table) => rowsOf(table).map((row) => row.map((value) => plain(value).replace(/[\t\r\n]+/g, " ")).join("\t")).join("\n");

  const say = (button, text) => {
    const before = button.dataset.label || (button.dataset.label = button.textContent);
    button.textContent = text;
    setTimeout(() => { button.textContent = before; }, 1600);
  };
  const copyByHand = (text) => {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  };
  all(".tools").forEach((tools) => { tools.hidden = false; });
  all("[data-copy]").forEach((button) => button.addEventListener("click", async () => {
    const text = tabbed(document.getElementById(button.dataset.copy));
    let done = false;
    try {
      await navigator.clipboard.writeText(text);
      done = true;
    } catch (_) {
      done = copyByHand(text);
      button.focus();
    }
    say(button, done ? "Copied" : "Not allowed here");
  }));
  all("[data-csv]").forEach((button) => button.addEventListener("click", () => {
    const text = "\ufeff" + csvOf(document.getElementById(button.dataset.csv));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" }));
    link.download = button.dataset.file.replace(/[^\w.\-]+/g, "_");
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    say(button, "Saved");
  }));

  // rows that open
  all("tr[data-panel]").forEach((row) => {
    const panel = document.getElementById(row.dataset.panel);
    const name = row.cells[0];
    const button = document.createElement("button");
    button.type = "button";
    button.className = "open";
    button.setAttribute("aria-expanded", "false");
    button.setAttribute("aria-controls", panel.id);
    button.append(...name.childNodes);
    name.append(button);
    panel.hidden = true;
    panel.querySelector("details").open = true;
    button.addEventListener("click", () => {
      panel.hidden = !panel.hidden;
      button.setAttribute("aria-expanded", String(!panel.hidden));
    });
  });

  // columns that sort
  const keyOf = (cell, kind) => {
    if (!cell) return kind === "number" ? NaN : "";
    if (kind !== "number") return cell.textContent.trim();
    const value = cell.dataset.cells ? JSON.parse(cell.dataset.cells)[0] : parseFloat(cell.textContent);
    return value === null ? NaN : value;
  };
  const compare = (a, b, kind) => {
    if (kind !== "number") return a.localeCompare(b, undefined, { numeric: true });
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
    return a - b;
  };
  all("table.caselist").forEach((table) => {
    const heads = Array.from(table.tHead.rows[0].cells); // not those of tables inside the rows
    heads.forEach((head, column) => {
      const kind = head.dataset.sort;
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const first = kind === "number" ? "descending" : "ascending";
        const other = first === "ascending" ? "descending" : "ascending";
        const order = head.getAttribute("aria-sort") === first ? other : first;
        heads.forEach((each) => each.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", order);
        const bodies = Array.from(table.tBodies).map((body, place) => [keyOf(body.rows[0].cells[column], kind), place, body]);
        const sign = order === "ascending" ? 1 : -1;
        bodies.sort((a, b) => {
          const bothKnown = kind !== "number" || !(Number.isNaN(a[0]) || Number.isNaN(b[0]));
          return (bothKnown ? sign : 1) * compare(a[0], b[0], kind) || a[1] - b[1];
        });
        table.append(...bodies.map((each) => each[2]));
      });
    });
  });

  // filters
  all("form.filter").forEach((form) => {
    const table = document.getElementById(form.dataset.table);
    const bodies = Array.from(table.tBodies);
    const cellOf = (body, name) => body.querySelector('td[data-column="' + name + '"]');
    const textOf = new Map(bodies.map((body) => [body, body.rows[0].textContent.toLowerCase()]));
    ["truth", "endpoint"].forEach((name) => {
      const select = form.elements[name];
      if (!select) return;
      const values = Array.from(new Set(bodies.map((body) => cellOf(body, name).textContent)));
      if (values.length > 60) { select.closest("label").remove(); return; }
      values.sort((a, b) => a.localeCompare(b, undefined, { numeric: true })).forEach((value) => {
        const option = document.createElement("option");
        option.value = value;
        option.textContent = value;
        select.append(option);
      });
    });
    if (!bodies.some((body) => body.dataset.outcome)) form.elements.outcome.closest("label").remove();
    const output = form.querySelector("output");
    const apply = () => {
      const words = form.elements.text.value.toLowerCase().split(/\s+/).filter(Boolean);
      const wanted = (name) => (form.elements[name] ? form.elements[name].value : "");
      let shown = 0;
      bodies.forEach((body) => {
        const fits = words.every((word) => textOf.get(body).includes(word))
          && (!wanted("outcome") || body.dataset.outcome === wanted("outcome"))
          && ["truth", "endpoint"].every((name) => !wanted(name) || cellOf(body, name).textContent === wanted(name));
        body.hidden = !fits;
        shown += fits;
      });
      output.textContent = shown + " of " + bodies.length + " shown";
    };
    form.hidden = false;
    form.addEventListener("input", apply);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => setTimeout(apply));
    apply();
  });
})();
