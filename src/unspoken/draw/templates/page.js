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
    tools(svg.parentElement.lastElementChild, [["SVG", "copy the drawing as SVG", () => drawing(svg)]]);

  // Of several chains the one that is picked; without this script the first few are there to read, and the others below.
  for (const place of document.querySelectorAll(".examples")) {
    const chains = [...place.querySelectorAll(".example")], further = place.querySelector(".further");
    if (chains.length < 2) continue;
    const row = made("p", "", { className: "picker" }), picker = made("select", "", { ariaLabel: "Chain" });
    const first = chains.filter((chain) => !further?.contains(chain));
    picker.append(made("option", first.length < chains.length ? `the first ${first.length}` : `all ${first.length}`, { value: -1 }));
    chains.forEach((chain, at) => {
      const [kind, remark] = chain.querySelector(".small").childNodes, question = chain.querySelector(".question")?.textContent;
      const named = [`${at + 1}`, kind.textContent.trim(), question?.slice(0, 40) ?? remark.textContent];
      picker.append(made("option", named.join(" · "), { value: at }));
    });
    const scope = place.closest("details.strips") ?? place.closest("section, .more");
    const pick = (wanted) => {
      picker.value = wanted;
      chains.forEach((chain, at) => { chain.hidden = wanted < 0 ? !first.includes(chain) : at !== wanted; });
      if (further) further.open = wanted < 0 ? false : further.contains(chains[wanted]);
      further?.classList.toggle("picked", wanted >= 0);
      for (const path of scope.querySelectorAll(".path[data-chain]"))
        path.classList.toggle("shown", chains.some((chain) => !chain.hidden && chain.dataset.chain === path.dataset.chain));
    };
    const steps = [["‹", "previous chain", -1], ["›", "next chain", 1]].map(([name, title, step]) => {
      const button = made("button", name, { type: "button", title, ariaLabel: title });
      button.onclick = () => pick((Number(picker.value) + step + chains.length) % chains.length);
      return button;
    });
    picker.onchange = () => pick(Number(picker.value));
    const label = made("label", "Chain ");
    label.append(picker);
    row.append(label, ...steps);
    place.before(row);
    // A point of the plane opens its chain.
    const open = (event) => {
      const path = event.target.closest(".path[data-chain]");
      if (path) pick(chains.findIndex((chain) => chain.dataset.chain === path.dataset.chain));
    };
    scope.addEventListener("click", open);
    scope.addEventListener("keydown", (event) => { if (event.key === "Enter") open(event); });
    pick(0);
  }

  // Of several moments the one that the slider points at, the last one first.
  for (const place of document.querySelectorAll(".frames")) {
    const frames = [...place.children], last = frames.length - 1;
    const slider = made("input", "", { type: "range", min: 0, max: last, value: last, ariaLabel: place.dataset.name });
    const show = () => {
      frames.forEach((frame, at) => { frame.hidden = at !== Number(slider.value); });
      slider.ariaValueText = frames[slider.value].querySelector(".small").textContent;
    };
    slider.oninput = show;
    const row = made("p", "", { className: "picker" }), label = made("label", `${place.dataset.name} `);
    label.append(slider);
    row.append(label);
    place.before(row);
    show();
  }

  // One latent, wherever it is drawn: what is pointed at or focused in one place is marked in all of them.
  for (const place of document.querySelectorAll("section, .more")) {
    const drawn = [...place.querySelectorAll("[data-latent]")], groups = new Map();
    const mark = (event, on) => {
      const name = event.target.closest("[data-latent]")?.dataset.latent;
      for (const one of drawn) if (name && one.dataset.latent === name) one.classList.toggle("lit", on);
    };
    for (const [begin, end] of [["pointerover", "pointerout"], ["focusin", "focusout"]]) {
      place.addEventListener(begin, (event) => mark(event, true));
      place.addEventListener(end, (event) => mark(event, false));
    }
    // Each chain is one stop of the tab key; arrows go from latent to latent.
    for (const one of drawn) {
      if (one.parentElement.closest("[data-latent]")) continue;
      const group = groups.get(one.parentElement) ?? [];
      groups.set(one.parentElement, [...group, one]);
      one.tabIndex = group.length ? -1 : 0;
    }
    place.addEventListener("keydown", (event) => {
      const group = groups.get(event.target.parentElement), step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      const next = step && group?.[group.indexOf(event.target) + step];
      if (!next) return;
      event.preventDefault();
      event.target.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
  }
})();
