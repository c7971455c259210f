"use strict";
// Every text of a model or a problem reaches the page as textContent alone.
const start = JSON.parse(document.getElementById("start").textContent);
const at = (id) => document.getElementById(id);
const frozen = start.frozen;
const SHOWN_FROM = 0.05;
const state = { problem: 0, other: 1, edits: [], own: null, now: null, selected: 0, key: "", rows: new Map() };

// --- elements --------------------------------------------------------------------------------------------------------

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function draw(name, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

const visible = (token) => token.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥") || "∅";
const decimal = (number, digits = 2) => number.toFixed(digits).replace("-", "−");
const named = (problem) => (typeof problem === "number" ? `problem ${problem}` : "the typed problem");

// --- what is computed ------------------------------------------------------------------------------------------------

async function computed(path, request) {
  if (frozen) return recorded(path, request);
  const headers = { "Content-Type": "application/json" };
  if (state.key) headers.Authorization = `Bearer ${state.key}`;
  const reply = await fetch(`explore/${path}`, { method: "POST", headers, body: JSON.stringify(request) });
  const content = await reply.json();
  if (reply.status === 401) { at("key").hidden = false; at("key-field").focus(); }
  if (!reply.ok) throw new Error(content.error.message);
  return content;
}

// A page without a server has its answers by what was asked; equal latents are stored once.
function recorded(path, request) {
  const key = JSON.stringify(path === "chain" ? [request.problem, request.edits] : [request.problem, request.other]);
  const found = frozen[path][key];
  if (!found) throw new Error("this change was not computed for this page; 'unspoken explore' computes every change");
  if (path !== "chain") return found;
  return { ...frozen.problems[request.problem], ...found, steps: found.steps.map((index) => frozen.steps[index]) };
}

let running = false, again = false;

async function refresh(focus = false) {
  again = true;
  if (running) return;
  running = true;
  document.body.classList.add("busy");
  while (again) {
    again = false;
    const { problem, edits } = state;
    try {
      if (state.own === null || state.own.problem !== problem) {
        state.own = { ...(await computed("chain", { problem, edits: [] })), problem };
      }
      const now = edits.length ? await computed("chain", { problem, edits }) : state.own;
      if (state.problem === problem) { state.now = now; state.good = edits; show(); }
    } catch (error) {
      if (state.edits === edits) state.edits = state.good ?? [];
      if (state.now) show();
      report(error.message, "alarm");
    }
  }
  document.body.classList.remove("busy");
  running = false;
  if (focus) at("question").focus();
}

// --- changes ---------------------------------------------------------------------------------------------------------

const restOf = () => document.querySelector("input[name=rest]:checked").value;

// A change of the same latent by the same control takes the place of the one before it.
function change(edit, replaces = () => false) {
  const before = frozen ? [] : state.edits;
  const last = before.at(-1);
  state.edits = last && last.kind === edit.kind && replaces(last) ? [...before.slice(0, -1), edit] : [...before, edit];
  refresh();
}

function act(action) {
  const step = state.selected, rest = restOf();
  if (action === "zero") change({ kind: "zero", step, rest });
  else if (action === "swap") change({ kind: "swap", step, problem: state.other, rest });
  else if (action === "earlier") change({ kind: "move", step, to: step - 1, rest });
  else if (action === "later") change({ kind: "move", step, to: step + 1, rest });
  else if (action === "delete") change({ kind: "delete", step });
  else change({ kind: "truncate", steps: step + 1 });
}

function described(edit) {
  const latent = `Latent ${edit.step + 1}`;
  const words = {
    weigh: () => `${latent}: ${visible(edit.token)} at ${decimal(edit.weight)}`,
    swap: () => `${latent} taken from ${named(edit.problem)}`,
    zero: () => `${latent} zeroed`,
    noise: () => `${latent} with noise ${decimal(edit.amount, 1)}`,
    move: () => `${latent} moved to place ${edit.to + 1}`,
    delete: () => `${latent} deleted`,
    truncate: () => `Chain cut after latent ${edit.steps}`,
    mix: () => `${decimal(edit.fraction)} of the way to ${named(edit.problem)}`,
  }[edit.kind]();
  return edit.rest === "write" ? `${words}, the rest written anew` : words;
}

// What an answer comes to: the value in its box, or all of it.
const short = (answer) => answer.value ?? (answer.text || "(no text)");

// --- the answer ------------------------------------------------------------------------------------------------------

function report(text, kind) {
  at("status").textContent = text;
  at("status").className = `status ${kind}`;
}

function showAnswer() {
  const { now, own, edits } = state;
  at("text").textContent = short(now);
  at("complete").textContent = now.value === null ? "" : now.text;
  at("complete").hidden = now.value === null;
  if (!edits.length) report("The model’s own chain.", "");
  else if (!now.changed) report("No change of the text.", "same");
  else if (short(own) !== short(now)) report(`The text changed from ${short(own)} to ${short(now)}.`, "changed");
  else report(`The text changed from ${own.text} to ${now.text}.`, "changed");
  const verdict = now.expected == null ? "" : now.correct ? "Right. " : `Wrong: right is ${now.expected}. `;
  at("facts-of-answer").textContent = `${verdict}${now.cost}.${now.stopped === "cap" ? " The chain was cut off at its cap." : ""}`;
}

// --- the chain -------------------------------------------------------------------------------------------------------

function tree(shape, step) {
  const { at: places, size, radius, names } = shape;
  const [width, height] = size;
  const value = (name) => (Math.abs(step.names[name] ?? 0) >= SHOWN_FROM ? decimal(step.names[name]) : "");
  const picture = draw("svg", { class: "tree", width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  for (let node = 0; 2 * node + 2 < names.length; node++) {
    const [x, y] = places[node], [left, below] = places[2 * node + 1], [right] = places[2 * node + 2];
    const from = y + radius + (value(names[node]) ? 17 : 0), to = below - radius;
    picture.append(draw("path", { class: "link", d: `M${x} ${from}V${to - 8}M${left} ${to}V${to - 8}H${right}V${to}` }));
  }
  names.forEach((name, node) => {
    const [cx, cy] = places[node], weight = Math.min(Math.max(step.names[name] ?? 0, 0), 1);
    const group = draw("g", {}, draw("circle", { class: "node", cx, cy, r: radius }));
    if (weight >= SHOWN_FROM) group.append(draw("circle", { class: "mass", cx, cy, r: radius, "fill-opacity": weight }));
    if (name === step.piece) group.append(draw("circle", { class: "right", cx, cy, r: radius + 2.5 }));
    const shade = weight > 0.7 ? "full" : weight >= SHOWN_FROM ? "some" : "none";
    group.append(draw("text", { class: shade, x: cx, y: cy, dy: ".36em" }, name));
    if (value(name)) group.append(draw("text", { class: "value", x: cx, y: cy + radius + 13 }, value(name)));
    if (name === step.decoded) group.append(draw("circle", { class: "spoken", cx: cx + radius - 1, cy: cy - radius + 1, r: 4.5 }));
    picture.append(group);
  });
  return picture;
}

// White space around a token is none of the word.
const pieceHas = (step, token) => step.piece !== null && token.trim() !== "" && step.piece.split(/\s+|(?=[.,?!])/).includes(token.trim());

function column(step) {
  const tokens = step.norm ? step.tokens.slice(0, 4).filter(([, weight], index) => !index || Math.abs(weight) >= 0.005) : [];
  return make("span", { class: "tokens" }, ...tokens.map(([token, weight]) => {
    const line = make("span", pieceHas(step, token) ? { class: "matching" } : {});
    line.style.setProperty("--w", `${Math.min(Math.max(weight, 0), 1) * 100}%`);
    line.append(make("code", {}, visible(token)), make("small", {}, decimal(weight)));
    return line;
  }));
}

const alike = (one, two) => one && two && JSON.stringify([one.tokens, one.rows, one.norm]) === JSON.stringify([two.tokens, two.rows, two.norm]);

function item(step, index) {
  const shape = state.now.tree, altered = state.edits.length && !alike(step, state.own.steps[index]);
  const top = step.norm ? step.tokens[0] ?? step.rows[0] : null;
  const summary = top ? `${visible(top[0])} ${decimal(top[1])}` : step.norm ? "" : "zeros";
  const aside = step.entropy === null ? (shape || !step.norm ? summary : `norm ${decimal(step.norm)}`) : `${decimal(step.entropy)} nats`;
  const button = make("button", { type: "button", "aria-pressed": String(index === state.selected), "data-step": index });
  if (altered) button.classList.add("altered");
  button.append(make("span", { class: "head" }, make("b", {}, `${index + 1}`), make("span", {}, aside)));
  button.append(shape ? tree(shape, step) : column(step));
  if (step.piece !== null && !shape) button.append(make("span", { class: "piece" }, "explicit ", make("code", {}, step.piece)));
  button.setAttribute("aria-label", `Latent ${index + 1}: ${summary}${altered ? ", changed" : ""}`);
  return make("li", {}, button);
}

function showStrip() {
  const { steps } = state.now, active = document.activeElement?.dataset?.step;
  state.selected = Math.max(0, Math.min(state.selected, steps.length - 1));
  at("strip").classList.toggle("trees", state.now.tree !== null);
  at("strip").replaceChildren(...steps.map(item));
  at("chain-title").replaceChildren("Chain ", make("span", {}, `${steps.length} ${start.silent ? "silent steps" : "steps"}`));
  at("legend").textContent = state.now.tree
    ? "Shade: coefficient of a name in the latent. Ring: right name. Dot: decoded name."
    : "Heaviest tokens of each latent, and its entropy. Blue: also in the explicit step.";
  if (active !== undefined) at("strip").querySelector(`[data-step="${state.selected}"]`)?.focus();
}

function select(index) {
  state.selected = Math.max(0, Math.min(index, state.now.steps.length - 1));
  state.rows.clear();
  showStrip();
  showLatent();
}

// --- one latent ------------------------------------------------------------------------------------------------------

function showReading(step) {
  const list = (pairs) => pairs.map(([token, value]) => `${visible(token)} ${decimal(value)}`).join("  ");
  const facts = [
    ["Nearest rows, by cosine", step.rows.length ? list(step.rows) : "none"],
    ["Entropy", step.entropy === null ? null : `${decimal(step.entropy)} nats`],
    ["Explicit step", step.piece],
    ["Distance to it", step.distance === null ? null : decimal(step.distance)],
    ["Decoded as", step.decoded],
    ["Length", decimal(step.norm)],
  ].filter(([, value]) => value !== null);
  at("reading").replaceChildren(...facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, make("code", {}, value)))));
}

function slider(token) {
  const id = `weight-${state.rows.size}-${state.selected}`;
  const input = make("input", { id, type: "range", min: 0, max: 1, step: frozen ? 0.25 : 0.01, "aria-label": `Weight of ${visible(token)} in latent ${state.selected + 1}` });
  const output = make("span", { "aria-hidden": "true" });
  const row = make("div", { class: "slider" }, make("label", { for: id }, make("code", {}, visible(token))), input, output);
  input.addEventListener("input", () => {
    const edit = { kind: "weigh", step: state.selected, token, weight: Number(input.value), rest: restOf() };
    output.textContent = decimal(edit.weight);
    change(edit, (last) => last.step === edit.step && last.token === token && last.rest === edit.rest);
  });
  return { row, input, output };
}

// Sliders stay where they are while one of them is dragged; only their values change.
function showWeights(step) {
  const shown = new Map(step.norm ? step.tokens : []);
  at("weights").hidden = !start.weighs;
  at("add").hidden = Boolean(frozen);
  const dragged = [...state.rows.values()].find(({ input }) => input === document.activeElement);
  for (const [token, line] of [...state.rows]) if (!frozen && !shown.has(token) && line !== dragged) state.rows.delete(token);
  const offered = frozen ? state.own.steps[state.selected].tokens.slice(0, frozen.tokens) : shown;
  for (const [token] of offered) if (!state.rows.has(token)) state.rows.set(token, slider(token));
  for (const [token, { input, output }] of state.rows) {
    const weight = shown.get(token) ?? 0;
    if (input !== document.activeElement) input.value = Math.max(weight, 0);
    output.textContent = decimal(weight);
  }
  const lines = [...state.rows.values()].map(({ row }) => row);
  if (lines.some((row, index) => at("rows").children[index] !== row) || at("rows").children.length !== lines.length) {
    const focused = document.activeElement;
    at("rows").replaceChildren(...lines);
    if (at("rows").contains(focused)) focused.focus();
  }
  at("weights-note").textContent = lines.length ? "" : "This latent is no known mixture of tokens.";
}

function showLatent() {
  const step = state.now.steps[state.selected];
  at("latent").hidden = !step;
  if (!step) return;
  at("latent-title").textContent = `Latent ${state.selected + 1} of ${state.now.steps.length}`;
  at("picture").replaceChildren(...(state.now.tree ? [tree(state.now.tree, step)] : []));
  showReading(step);
  showWeights(step);
  const last = state.edits.at(-1);
  if (document.activeElement !== at("noise")) {
    at("noise").value = last && last.kind === "noise" && last.step === state.selected ? last.amount : 0;
  }
  at("noise-amount").textContent = decimal(Number(at("noise").value), 1);
  const button = (action) => document.querySelector(`[data-action="${action}"]`);
  button("swap").textContent = `Swap with ${named(state.other)}’s`;
  button("earlier").disabled = state.selected === 0;
  button("later").disabled = state.selected === state.now.steps.length - 1;
}

function showChanges() {
  at("changes").replaceChildren(...state.edits.map((edit) => make("li", {}, make("span", {}, described(edit)))));
  at("no-changes").hidden = state.edits.length > 0;
  at("undo").disabled = at("reset").disabled = !state.edits.length;
  const mixed = state.edits.find((edit) => edit.kind === "mix");
  if (document.activeElement !== at("fraction")) at("fraction").value = mixed ? mixed.fraction : 0;
  at("fraction-amount").textContent = decimal(Number(at("fraction").value));
}

function show() {
  at("question").textContent = state.now.question;
  showAnswer();
  showStrip();
  showLatent();
  showChanges();
}

// --- between two problems --------------------------------------------------------------------------------------------

function showTrace(trace) {
  const texts = [...new Set(trace.points.map(({ text }) => text))], colour = (text) => `c${(texts.indexOf(text) % 6) + 1}`;
  at("track").replaceChildren(...trace.points.map(({ text }) => make("span", { class: colour(text) })));
  at("track").setAttribute("aria-label", `Answers from ${named(state.problem)} on the left to ${named(state.other)} on the right`);
  at("track").hidden = false;
  const lines = texts.map((text) => {
    const point = trace.points.find((one) => one.text === text);
    const fractions = trace.points.filter((one) => one.text === text).map(({ fraction }) => fraction);
    const [low, high] = [Math.min(...fractions), Math.max(...fractions)].map((fraction) => decimal(fraction));
    return make("li", { class: colour(text) }, make("span", {}, `${short(point)}: ${low === high ? `at ${low}` : `${low} to ${high}`}`));
  });
  const flips = trace.flips.map(({ low, high }) => `between ${decimal(low)} and ${decimal(high)}`);
  lines.push(make("li", { class: "plain" }, flips.length ? `The answer flips ${flips.join(", and ")}.` : "The answer never flips."));
  const [mine, theirs] = trace.lengths;
  if (mine !== theirs) lines.push(make("li", { class: "plain" }, `The chains have ${mine} and ${theirs} latents; further latents are those of the nearer chain.`));
  at("flips").replaceChildren(...lines);
}

async function trace() {
  at("track").hidden = true;
  at("flips").replaceChildren(make("li", { class: "plain" }, "The model is computing."));
  try {
    showTrace(await computed("between", { problem: state.problem, other: state.other }));
  } catch (error) {
    at("flips").replaceChildren(make("li", { class: "plain" }, error.message));
  }
}

// --- problems --------------------------------------------------------------------------------------------------------

// A whole number is a test problem's; anything else is a problem as it is typed.
const read = (text) => (start.numbered && /^\d+$/.test(text.trim()) ? Number(text) : text);

function chooser(id, value) {
  if (!frozen) {
    const field = make("input", { id, type: "text", autocomplete: "off", spellcheck: "false" });
    field.value = value;
    return field;
  }
  const field = make("select", { id });
  frozen.problems.forEach(({ question }, index) => field.append(make("option", { value: index }, `${index}: ${question}`)));
  field.value = value;
  return field;
}

function open(problem) {
  Object.assign(state, { problem, edits: [], good: [], selected: 0 });
  if (at("problem")) at("problem").value = problem;
  state.rows.clear();
  at("track").hidden = true;
  at("flips").replaceChildren();
  refresh(true);
}

function setUp() {
  at("problem-place").append(chooser("problem", start.numbered ? 0 : ""));
  at("other-place").append(chooser("other", start.numbered ? 1 : ""));
  const how = frozen ? "" : start.numbered ? ": number of a test problem, or its text" : ": its text";
  at("problem-label").textContent = `Problem${how}`;
  at("other-label").textContent = `Other problem${how}`;
  at("facts").textContent = `Latents: ${start.latents}. ${frozen
    ? "This page is a record without a model: every change was computed before, and starts from the model’s own chain."
    : "Each change is answered anew by the model."}`;
  at("previous").hidden = at("next").hidden = !start.numbered || Boolean(frozen);
  at("answer-it").hidden = at("trace").hidden = Boolean(frozen);
  if (frozen) at("noise").step = 0.5;

  at("ask").addEventListener("submit", (event) => { event.preventDefault(); open(read(at("problem").value)); });
  at("key").addEventListener("submit", (event) => {
    event.preventDefault();
    state.key = at("key-field").value;
    at("key").hidden = true;
    refresh(true);
  });
  at("previous").addEventListener("click", () => open(typeof state.problem === "number" ? Math.max(0, state.problem - 1) : 0));
  at("next").addEventListener("click", () => open(typeof state.problem === "number" ? state.problem + 1 : 0));
  const choose = () => {
    state.other = read(at("other").value);
    if (state.now) showLatent();
    if (frozen) trace();
  };
  at("other").addEventListener("change", choose);
  if (frozen) at("problem").addEventListener("change", () => { open(Number(at("problem").value)); trace(); });
  at("between").addEventListener("submit", (event) => { event.preventDefault(); choose(); if (!frozen) trace(); });
  at("strip").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) select(Number(button.dataset.step));
  });
  at("strip").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (step) { event.preventDefault(); select(state.selected + step); }
  });
  document.querySelectorAll("[data-action]").forEach((button) => button.addEventListener("click", () => act(button.dataset.action)));
  at("noise").addEventListener("input", () => {
    const edit = { kind: "noise", step: state.selected, amount: Number(at("noise").value), rest: restOf() };
    change(edit, (last) => last.step === edit.step);
  });
  at("fraction").addEventListener("input", () => {
    const edit = { kind: "mix", problem: state.other, fraction: Number(at("fraction").value) };
    change(edit, (last) => last.problem === edit.problem);
  });
  const add = () => {
    const token = at("token").value;
    if (token) change({ kind: "weigh", step: state.selected, token, weight: 0.5, rest: restOf() });
  };
  at("add-token").addEventListener("click", add);
  at("token").addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); add(); } });
  at("undo").addEventListener("click", () => { state.edits = state.edits.slice(0, -1); state.rows.clear(); refresh(); });
  at("reset").addEventListener("click", () => { state.edits = []; state.rows.clear(); refresh(); });
  if (start.numbered || frozen) { refresh(); if (frozen) trace(); } else report("Type a problem.", "");
}

setUp();
