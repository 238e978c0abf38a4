// One question with all its traces

const look = { mode: remembered("rlt-mode") || "KL", stacked: remembered("rlt-stacked") === "yes", worst: 0 };

// Scores that were made without a teacher have no KL.
const modes = () => state.current.each.traces.some((trace) => trace.kl_tokens) ? MODES : MODES.slice(1);
const mode = () => modes().includes(look.mode) ? look.mode : modes()[0];

const close = () => {
  delete $("view-traces").dataset.open;
  $("tip").hidden = true;
};

const openTrace = async (id) => {
  const i = rowOf(id);
  const opening = state.opening = {};
  $("view-traces").dataset.open = "";
  const detail = $("detail");
  let each;
  try {
    if (i >= 0) {
      const number = col("question")[i];
      each = await question(number);
      if (each && !each.whole) {
        const tokens = await store.tokens(number);
        for (const trace of each.traces) Object.assign(trace, tokens[trace.trace_id]);
        each.whole = true;
      }
    }
    if (i < 0 && head.live) each = await fetched(`trace/${encodeURIComponent(id)}`);
  } catch (error) {
    detail.replaceChildren(make("p", "note warn", `Cannot be read: ${error.message}`));
    return;
  }
  if (opening !== state.opening) return;
  if (!each) {
    detail.replaceChildren(make("p", "fine empty", "This trace is not in this page."));
    return;
  }
  if (i >= 0 && i !== state.chosen) {
    const place = placeOf(i);
    if (place >= 0) choose(place); else state.chosen = i;
  }
  state.current = { each, id };
  show();
  detail.scrollTop = 0;
};

const textBox = (title, text) => {
  const box = make("section", "box");
  box.append(make("h3", "", title), shownText(text));
  return box;
};
const shownText = (text) => {
  const node = make("div", "text");
  node.dir = "auto";
  text = text.replace(/^\s*\n/, "").trimEnd();
  node.textContent = visible(text.slice(0, LONGEST));
  if (text.length > LONGEST) node.append(more(`show all ${text.length.toLocaleString("en")} characters`, () => { node.textContent = visible(text); }));
  return node;
};
const more = (label, action) => {
  const button = make("button", "", label);
  button.type = "button";
  button.addEventListener("click", action);
  return button;
};

const level = (value) => Math.min(6, Math.floor(Math.abs(value) / 100 / 0.75 + 0.34));
const coloured = (text, tokens, places, mode, values) => {
  const node = make("div", "text");
  node.dir = "auto";
  const letters = Array.from(text); // offsets count characters, not UTF-16 units
  let begin = (places.begin ?? tokens.begin) || 0;
  const lengths = places.lengths;
  // A format's empty lines around a text take no room.
  const inner = [letters.findIndex((c) => c.trim()), letters.findLastIndex((c) => c.trim())];
  const before = letters.slice(0, begin).join(""); // shares a token with a tag, so it has no value
  if (before.trim()) node.append(visible(before));
  const add = (from, to) => {
    const pieces = document.createDocumentFragment();
    for (let k = from; k < to; k++) {
      const piece = letters.slice(begin, begin + lengths[k]).join("");
      const around = begin + lengths[k] <= inner[0] || begin > inner[1];
      begin += lengths[k];
      const value = tokens.values[k];
      const span = make("span", "k", around ? "" : visible(piece));
      if (value !== null) {
        const strength = level(value);
        if (strength) span.className = `k ${mode === "log-prob" || value > 0 ? "h" : "c"}${strength}`;
        if (strength > 2 && !piece.trim()) span.textContent = (piece.includes("\n") ? "↵" : "␣") + (around ? "" : piece.slice(1));
      }
      span.token = { piece, values: values.map(([name, list]) => [name, list[k]]) };
      pieces.append(span);
    }
    node.append(pieces);
  };
  add(0, Math.min(TOKENS, lengths.length));
  if (lengths.length > TOKENS) {
    const button = more(`show all ${lengths.length.toLocaleString("en")} tokens`, () => { button.remove(); add(TOKENS, lengths.length); });
    node.append(button);
  }
  return node;
};

const thought = (trace) => {
  const [tokens, kl] = [trace.thought_tokens, trace.kl_tokens];
  if (trace.thought === undefined) return shownText(trace.completion);
  if (mode() === "plain" || !tokens) return shownText(trace.thought);
  const same = kl && !kl.lengths;
  const values = [["log-prob", tokens.values], ...(same ? [["KL", kl.values]] : [])];
  if (mode() === "KL" && kl) return coloured(trace.thought, kl, same ? tokens : kl, "KL", same ? values : [["KL", kl.values]]);
  return coloured(trace.thought, tokens, tokens, "log-prob", values);
};

const worst = (trace, body) => {
  const box = make("span", "worst");
  const of = mode() === "KL" && trace.kl_tokens ? trace.kl_tokens : trace.thought_tokens;
  if (!of || mode() === "plain") return box;
  const badness = (value) => value === null ? -Infinity : of === trace.kl_tokens ? value : -value;
  const order = of.values.map((value, k) => [badness(value), k]).sort((a, b) => b[0] - a[0]).slice(0, 3);
  for (const [bad, k] of order.filter(([bad]) => bad >= 100)) {
    const span = body.children[k];
    if (!span || !span.token) continue;
    const button = more(`${visible(span.token.piece).trim() || "␣"} ${(bad / 100).toFixed(1)}`, () => find(span));
    button.title = "To this token";
    box.append(button);
  }
  return box;
};
const find = (span) => {
  for (const other of document.querySelectorAll(".k.found")) other.classList.remove("found");
  span.classList.add("found");
  span.scrollIntoView({ block: "center", inline: "center" });
};

// Of a trace beyond the index, which a live page may show, the figures come with it.
const figureOf = (trace, name) => (trace.figures ? trace.figures[name] : at(name, rowOf(trace.trace_id))) ?? null;

const card = (trace, chosen) => {
  const get = (name) => figureOf(trace, name);
  const node = make("section", "trace");
  node.id = `trace-${trace.trace_id}`;
  if (trace.trace_id === chosen) node.classList.add("chosen");
  const header = make("header");
  if (head.sources.length > 1) header.append(make("span", `chip s${trace.source}`, head.sources[trace.source]));
  const rank = get("rank");
  header.append(make("b", "", rank === null ? `sample ${get("sample_index") ?? ""}` : `rank ${rank}`));
  const value = get("reward") ?? get("reward_without_entropy");
  if (value !== null) header.append(make("b", "", figure(value)));
  if (get("flaw")) header.append(make("span", "chip bad", get("flaw")));
  const end = get("finish_reason");
  if (end) header.append(make("span", "chip", end));
  const terms = make("div", "terms");
  for (const name of ["r_ss", "r_kl", "solution_logprob_mean", "solution_logprob_min", "kl_mean", "kl_max", "penalty", "thought_tokens"]) {
    const found = get(name);
    if (found !== null && !(name === "penalty" && found === 0)) terms.append(make("span", "", `${words(name)} ${figure(found)}`));
  }
  terms.append(make("span", "", `trace ${trace.trace_id.slice(0, 12)}`));
  const meta = trace.meta ?? state.current.each.meta;
  if (meta) terms.append(make("span", "", visible(meta)));
  header.append(terms);
  node.append(header);
  return node;
};

const fillCard = (node, trace, each) => {
  const body = make("div", "body");
  const text = thought(trace);
  const solution = trace.solution_tokens;
  node.querySelector(".terms").before(worst(trace, text));
  body.append(make("h4", "", trace.thought === undefined ? "Completion" : "Explanation"), text);
  if (solution && mode() !== "plain") {
    body.append(make("h4", "", "Solution, as the student expects it after this explanation"));
    body.append(coloured(each.contents[trace.source], solution, solution, "log-prob", [["log-prob", solution.values]]));
  }
  if (trace.completion !== undefined && trace.thought !== undefined) {
    const raw = make("details");
    raw.append(make("summary", "", "Raw completion"), shownText(trace.completion));
    body.append(raw);
  }
  node.append(body);
};

const show = () => {
  const { each, id } = state.current;
  const detail = $("detail");
  const coloursThere = each.traces.some((trace) => trace.thought_tokens);
  const tools = make("div", "tools");
  const back = more("← List", () => go("traces"));
  back.classList.add("back");
  const step = (by, label, title) => Object.assign(more(label, () => walk(by)), { title });
  tools.append(back, step(-1, "‹", "Previous question ([)"), step(1, "›", "Next question (])"));
  if (coloursThere) {
    const choice = make("span", "switch");
    choice.setAttribute("role", "group");
    choice.setAttribute("aria-label", "Colours");
    for (const each of modes()) {
      const button = more(each, () => setMode(each));
      button.setAttribute("aria-pressed", String(each === mode()));
      choice.append(button);
    }
    tools.append(choice, legend());
  }
  const layout = more(look.stacked ? "side by side" : "one below the other", turnLayout);
  layout.classList.add("spread");
  tools.append(layout);
  const problem = make("div", "problem");
  problem.append(textBox(`Question ${visible(String(each.source_id ?? ""))}`, each.question), textBox("Solution", each.solution));
  const traces = make("div", look.stacked ? "stacked" : "side-by-side");
  traces.tabIndex = 0;
  traces.setAttribute("aria-label", `${each.traces.length} traces`);
  const rank = (trace) => figureOf(trace, "rank") ?? Infinity;
  const ranked = [...each.traces].sort((a, b) => (rank(a) === rank(b) ? a.source - b.source : rank(a) - rank(b)));
  const nodes = ranked.map((trace) => [card(trace, id), trace]);
  traces.append(...nodes.map(([node]) => node));
  detail.replaceChildren(tools, problem);
  if (!coloursThere && each.traces.some((trace) => trace.thought !== undefined)) {
    detail.append(make("p", "fine", "Scored with --per-token, each explanation is coloured token by token."));
  }
  detail.append(traces);
  const chosen = $(`trace-${id}`);
  if (chosen) traces.scrollLeft = chosen.offsetLeft - traces.offsetLeft - 12;
  // What is in sight first, the rest after it has been painted.
  const first = Math.max(0, nodes.findIndex(([node]) => node === chosen));
  const order = [...nodes.slice(first), ...nodes.slice(0, first)];
  for (const [node, trace] of order.splice(0, 4)) fillCard(node, trace, each);
  const rest = () => {
    if (!order.length || !traces.isConnected) return;
    fillCard(...order.shift(), each);
    setTimeout(rest);
  };
  setTimeout(rest);
  look.worst = 0;
};

const legend = () => {
  const box = make("span", "legend");
  const scale = mode() === "KL"
    ? [["student expects it more", "c5 c3 c1"], ["less than the teacher", "h1 h3 h5"]]
    : mode() === "log-prob" ? [["expected", "h1"], ["surprising", "h3 h5"]] : [];
  for (const [label, levels] of scale) {
    box.append(make("span", "", label));
    for (const each of levels.split(" ")) box.append(make("i", each));
  }
  return box;
};
const setMode = (each) => {
  look.mode = each;
  remember("rlt-mode", each);
  keepingPlace(show);
};
const turnLayout = () => {
  look.stacked = !look.stacked;
  remember("rlt-stacked", look.stacked ? "yes" : "no");
  show();
};
const keepingPlace = (work) => {
  const detail = $("detail");
  const [top, left] = [detail.scrollTop, detail.querySelector(".side-by-side")?.scrollLeft];
  work();
  detail.scrollTop = top;
  if (left !== undefined && detail.querySelector(".side-by-side")) detail.querySelector(".side-by-side").scrollLeft = left;
};
const walk = (by) => {
  const from = state.chosen < 0 ? -1 : col("question")[state.chosen];
  let place = placeOf(state.chosen);
  while (place >= -1 && place < state.shown.length) {
    place += by;
    const i = state.shown[place];
    if (i !== undefined && col("question")[i] !== from) {
      go(`trace=${at("trace_id", i)}`);
      return;
    }
    if (i === undefined) return;
  }
};
