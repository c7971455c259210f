// What a page can do beyond being read: sort and copy tables, copy drawings, pick one chain of several.
(() => {
  const made = (tag, text, more) => Object.assign(document.createElement(tag), { textContent: text }, more);

  async function copy(text, button) {
    try { await navigator.clipboard.writeText(text); }
    catch {  // older browsers, and pages that were opened from a disk
      const area = document.body.appendChild(made("textarea", text));
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    const name = button.textContent;
    button.textContent = "copied";
    setTimeout(() => { button.textContent = name; }, 1200);
  }

  function tools(place, buttons) {
    const row = made("p", "", { className: "tools" });
    for (const [name, title, text] of buttons) {
      const button = made("button", name, { type: "button", title });
      button.onclick = () => copy(text(), button);
      row.append(button);
    }
    place.after(row);
  }

  // A cell is its own text and the lines in small type below it.
  const plain = (text) => text.replaceAll("\u00a0", " ").trim();
  const small = (cell) => plain([...cell.querySelectorAll("small")].map((line) => line.textContent).join("; "));
  const own = (cell) => {
    const whole = cell.cloneNode(true);
    whole.querySelectorAll("small, svg").forEach((part) => part.remove());
    return plain(whole.textContent);
  };

  function rows(table) {
    const heads = table.tHead.rows[table.tHead.rows.length - 1], over = [];
    if (table.tHead.rows.length > 1)
      for (const cell of table.tHead.rows[0].cells) over.push(...Array(cell.colSpan).fill(own(cell)));
    const body = [...table.tBodies[0].rows];
    const lines = [[], ...body.map(() => [])];
    [...heads.cells].forEach((head, at) => {
      if (head.classList.contains("graphic")) return;
      const name = [over[at], own(head), small(head)].filter(Boolean).join(", ");
      lines[0].push(name);
      body.forEach((row, index) => lines[index + 1].push(own(row.cells[at])));
      if (body.some((row) => small(row.cells[at]))) {
        lines[0].push(`${name}, below`);
        body.forEach((row, index) => lines[index + 1].push(small(row.cells[at])));
      }
    });
    return lines;
  }

  const csv = (lines) => lines.map((line) => line.map((cell) => `"${cell.replaceAll('"', '""')}"`).join(",")).join("\n");
  const special = { "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "−": "$-$", "–": "--" };
  const latex = (lines) => {
    const written = lines.map((line) =>
      `${line.map((cell) => cell.replace(/[\\~^−–&%$#_{}]/g, (sign) => special[sign] ?? `\\${sign}`)).join(" & ")} \\\\`);
    return [`\\begin{tabular}{l${"r".repeat(lines[0].length - 1)}}`, "\\hline", written[0], "\\hline", ...written.slice(1),
      "\\hline", "\\end{tabular}"].join("\n");
  };

  function value(cell) {
    const number = own(cell).replace("−", "-").replaceAll(",", "").match(/^[<+]?\s*(-?[\d.]+)\s*([kMGTP]?)/);
    return number ? Number(number[1]) * 1000 ** " kMGTP".indexOf(number[2] || " ") : own(cell);
  }

  function sortable(table) {
    const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
    heads.forEach((head, at) => {
      if (!head.textContent.trim() || head.classList.contains("graphic")) return;
      const sort = () => {
        const down = head.ariaSort !== "descending";
        heads.forEach((other) => { other.ariaSort = null; });
        head.ariaSort = down ? "descending" : "ascending";
        const ordered = [...table.tBodies[0].rows].sort((one, two) => {
          const [first, second] = [value(one.cells[at]), value(two.cells[at])];
          if (typeof first !== typeof second) return typeof first === "number" ? -1 : 1;  // what has no number is last
          const order = typeof first === "number" ? second - first : second.localeCompare(first);
          return down ? order : -order;
        });
        table.tBodies[0].append(...ordered);
      };
      head.tabIndex = 0;
      head.classList.add("sortable");
      head.onclick = sort;
      head.onkeydown = (event) => { if (event.key === "Enter") sort(); };
    });
  }

  const PAINT = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "stroke-linejoin", "paint-order",
    "opacity", "font-family", "font-size", "font-weight", "text-anchor"];
  function drawing(svg) {
    const whole = svg.cloneNode(true), parts = [svg, ...svg.querySelectorAll("*")];
    whole.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    whole.querySelectorAll("style").forEach((style) => style.remove());
    [whole, ...whole.querySelectorAll("*")].forEach((part, at) => {
      const look = getComputedStyle(parts.filter((one) => one.tagName !== "style")[at]);
      for (const name of PAINT) part.style.setProperty(name, look.getPropertyValue(name));
    });
    return whole.outerHTML;
  }

  for (const frame of document.querySelectorAll(".table")) {
    const table = frame.querySelector("table");
    sortable(table);
    tools(frame, [["CSV", "copy the table as CSV", () => csv(rows(table))],
      ["LaTeX", "copy the table as LaTeX", () => latex(rows(table))]]);
  }
  for (const svg of document.querySelectorAll(".panel > svg"))
    tools(svg, [["SVG", "copy the drawing as SVG", () => drawing(svg)]]);

  for (const fold of document.querySelectorAll(".strips")) {
    const chains = [...fold.querySelectorAll(".example")];
    if (chains.length < 2) continue;
    const label = made("label", "Chain ", { className: "picker" }), picker = label.appendChild(made("select", ""));
    picker.append(made("option", `all ${chains.length}`, { value: -1 }));
    chains.forEach((chain, at) => {
      const title = chain.querySelector(".small").textContent, question = chain.querySelector(".question").textContent;
      picker.append(made("option", `${at + 1} · ${title} · ${question.slice(0, 60)}`, { value: at }));
    });
    picker.onchange = () => chains.forEach((chain, at) => { chain.hidden = picker.value >= 0 && picker.value != at; });
    chains[0].before(label);
  }
})();
