// One question with all its traces

const view = { mode: remembered("rlt-mode") || "KL", stacked: remembered("rlt-stacked") === "yes", worst: 0 };

// Without a teacher there is no KL.
const modes = () => state.current.question.traces.some((trace) => trace.kl_tokens) ? MODES : MODES.slice(1);
const mode = () => modes().includes(view.mode) ? view.mode : modes()[0];

const close = () => {
  delete $("view-traces").dataset.open;
  $("tip").hidden = true;
};

const openTrace = async (id) => {
  const i = rowOf(id);
  const opening = state.opening = {};
  $("view-traces").dataset.open = "";
  const detail = $("detail");
  let content;
  try {
    if (i >= 0) {
      const number = col("question")[i];
      content = await question(number);
      if (content && !content.hasTokens) {
        const tokens = await store.tokens(number);
        for (const trace of content.traces) Object.assign(trace, tokens[trace.trace_id]);
        content.hasTokens = true;
      }
    }
    if (i < 0 && head.live) content = await fetchJson(`trace/${encodeURIComponent(id)}`);
  } catch (error) {
    detail.replaceChildren(make("p", "note warn", `This trace cannot be loaded: ${error.message}`));
    return;
  }
  if (opening !== state.opening) return;
  if (!content) {
    detail.replaceChildren(make("p", "fine empty", "This page does not have this trace."));
    return;
  }
  if (i >= 0 && i !== state.selected) {
    const position = positionOf(i);
    if (position >= 0) selectAt(position); else state.selected = i;
  }
  state.current = { question: content, id };
  showQuestion();
  detail.scrollTop = 0;
};

const textBox = (title, text) => {
  const box = make("section", "box");
  box.append(make("h3", "", title), plainText(text));
  return box;
};
const plainText = (text) => {
  const node = make("div", "text");
  node.dir = "auto";
  text = text.replace(/^\s*\n/, "").trimEnd();
  node.textContent = visible(text.slice(0, MAX_CHARS));
  if (text.length > MAX_CHARS) node.append(makeButton(`show all ${text.length.toLocaleString("en")} characters`, () => { node.textContent = visible(text); }));
  return node;
};
const makeButton = (label, action) => {
  const button = make("button", "", label);
  button.type = "button";
  button.addEventListener("click", action);
  return button;
};

const level = (value) => Math.min(6, Math.floor(Math.abs(value) / 100 / 0.75 + 0.34));
// A text as spans of tokens, each coloured by its value.
// tokens: the values that colour; spans: begin and lengths of the tokens; values: [name, list] pairs of the tooltip.
const colouredText = (text, tokens, spans, mode, values) => {
  const node = make("div", "text");
  node.dir = "auto";
  const chars = Array.from(text); // offsets count code points, not UTF-16 units
  let begin = (spans.begin ?? tokens.begin) || 0;
  const lengths = spans.lengths;
  // Hide the empty lines that a format puts around a text.
  const inner = [chars.findIndex((c) => c.trim()), chars.findLastIndex((c) => c.trim())];
  const before = chars.slice(0, begin).join(""); // without a value, because it shares a token with a tag
  if (before.trim()) node.append(visible(before));
  const add = (from, to) => {
    const fragment = document.createDocumentFragment();
    for (let k = from; k < to; k++) {
      const piece = chars.slice(begin, begin + lengths[k]).join("");
      const isPadding = begin + lengths[k] <= inner[0] || begin > inner[1];
      begin += lengths[k];
      const value = tokens.values[k];
      const span = make("span", "k", isPadding ? "" : visible(piece));
      if (value !== null) {
        const strength = level(value);
        if (strength) span.className = `k ${mode === "log-prob" || value > 0 ? "h" : "c"}${strength}`;
        if (strength > 2 && !piece.trim()) span.textContent = (piece.includes("\n") ? "↵" : "␣") + (isPadding ? "" : piece.slice(1));
      }
      span.token = { piece, values: values.map(([name, list]) => [name, list[k]]) };
      fragment.append(span);
    }
    node.append(fragment);
  };
  add(0, Math.min(MAX_TOKENS, lengths.length));
  if (lengths.length > MAX_TOKENS) {
    const button = makeButton(`show all ${lengths.length.toLocaleString("en")} tokens`, () => { button.remove(); add(MAX_TOKENS, lengths.length); });
    node.append(button);
  }
  return node;
};

const explanationText = (trace) => {
  const [tokens, kl] = [trace.thought_tokens, trace.kl_tokens];
  if (trace.thought === undefined) return plainText(trace.completion);
  if (mode() === "plain" || !tokens) return plainText(trace.thought);
  const sameSpans = kl && !kl.lengths;
  const values = [["log-prob", tokens.values], ...(sameSpans ? [["KL", kl.values]] : [])];
  if (mode() === "KL" && kl) return colouredText(trace.thought, kl, sameSpans ? tokens : kl, "KL", sameSpans ? values : [["KL", kl.values]]);
  return colouredText(trace.thought, tokens, tokens, "log-prob", values);
};

const worstTokens = (trace, text) => {
  const box = make("span", "worst");
  const tokens = mode() === "KL" && trace.kl_tokens ? trace.kl_tokens : trace.thought_tokens;
  if (!tokens || mode() === "plain") return box;
  const badness = (value) => value === null ? -Infinity : tokens === trace.kl_tokens ? value : -value;
  const order = tokens.values.map((value, k) => [badness(value), k]).sort((a, b) => b[0] - a[0]).slice(0, 3);
  for (const [bad, k] of order.filter(([bad]) => bad >= 100)) {
    const span = text.children[k];
    if (!span || !span.token) continue;
    const button = makeButton(`${visible(span.token.piece).trim() || "␣"} ${(bad / 100).toFixed(1)}`, () => jumpTo(span));
    button.title = "Jump to this token";
    box.append(button);
  }
  return box;
};
const jumpTo = (span) => {
  for (const other of document.querySelectorAll(".k.found")) other.classList.remove("found");
  span.classList.add("found");
  span.scrollIntoView({ block: "center", inline: "center" });
};

// A live page can show a trace that is not in the index; such a trace brings its numbers along.
const numberOf = (trace, name) => (trace.figures ? trace.figures[name] : at(name, rowOf(trace.trace_id))) ?? null;

const traceCard = (trace, selectedId) => {
  const get = (name) => numberOf(trace, name);
  const node = make("section", "trace");
  node.id = `trace-${trace.trace_id}`;
  if (trace.trace_id === selectedId) node.classList.add("chosen");
  const header = make("header");
  if (head.sources.length > 1) header.append(make("span", `chip s${trace.source}`, head.sources[trace.source]));
  const rank = get("rank");
  header.append(rank === null ? make("b", "", `sample ${get("sample_index") ?? ""}`) : explain(make("b", "", `rank ${rank}`), "rank"));
  const shown = get("reward") === null ? "reward_without_entropy" : "reward";
  if (get(shown) !== null) header.append(explain(make("b", "", `${words(shown)} ${figure(get(shown))}`), shown));
  if (get("flaw")) header.append(explain(make("span", "chip bad", get("flaw")), "flaw"));
  const finishReason = get("finish_reason");
  if (finishReason) header.append(explain(make("span", "chip", finishReason), "finish_reason"));
  const terms = make("div", "terms");
  for (const name of ["r_ss", "r_kl", "solution_logprob_mean", "solution_logprob_min", "kl_mean", "kl_max", "penalty", "thought_tokens"]) {
    const value = get(name);
    if (value === null || (name === "penalty" && value === 0)) continue;
    terms.append(explain(make("span", "", `${words(name)} ${figure(value)}`), name));
  }
  terms.append(make("span", "", `trace ${trace.trace_id.slice(0, 12)}`));
  const meta = [trace.origin, trace.meta].filter(Boolean).join(" · ");
  if (meta) terms.append(make("span", "", visible(meta)));
  header.append(terms);
  node.append(header);
  return node;
};

const fillCard = (node, trace, question) => {
  const body = make("div", "body");
  const text = explanationText(trace);
  const solution = trace.solution_tokens;
  node.querySelector(".terms").before(worstTokens(trace, text));
  body.append(make("h4", "", trace.thought === undefined ? "Completion" : "Explanation"), text);
  if (solution && mode() !== "plain") {
    body.append(make("h4", "", "Solution, coloured by the student's log-probs after this explanation"));
    body.append(colouredText(question.contents[trace.source], solution, solution, "log-prob", [["log-prob", solution.values]]));
  }
  if (trace.completion !== undefined && trace.thought !== undefined) {
    const raw = make("details");
    raw.append(make("summary", "", "Raw completion"), plainText(trace.completion));
    body.append(raw);
  }
  node.append(body);
};

const showQuestion = () => {
  const { question, id } = state.current;
  const detail = $("detail");
  const hasTokens = question.traces.some((trace) => trace.thought_tokens);
  const tools = make("div", "tools");
  const back = makeButton("← List", () => go("traces"));
  back.classList.add("back");
  const step = (by, label, title) => Object.assign(makeButton(label, () => walk(by)), { title });
  tools.append(back, step(-1, "‹", "Previous question ([)"), step(1, "›", "Next question (])"));
  if (hasTokens) {
    const choice = make("span", "switch");
    choice.setAttribute("role", "group");
    choice.setAttribute("aria-label", "Colours");
    for (const name of modes()) {
      const button = makeButton(name, () => setMode(name));
      button.title = MODE_MEANINGS[name];
      button.setAttribute("aria-pressed", String(name === mode()));
      choice.append(button);
    }
    tools.append(choice, legend());
  }
  const layout = makeButton(view.stacked ? "side by side" : "stacked", toggleLayout);
  layout.classList.add("spread");
  tools.append(layout);
  const texts = make("div", "problem");
  texts.append(textBox(`Question ${visible(String(question.source_id ?? ""))}`, question.question), textBox("Solution", question.solution));
  if (question.meta) texts.firstChild.append(make("p", "fine", visible(question.meta)));
  const traces = make("div", view.stacked ? "stacked" : "side-by-side");
  traces.tabIndex = 0;
  traces.setAttribute("aria-label", `${question.traces.length} traces`);
  const rank = (trace) => numberOf(trace, "rank") ?? Infinity;
  const ranked = [...question.traces].sort((a, b) => (rank(a) === rank(b) ? a.source - b.source : rank(a) - rank(b)));
  const nodes = ranked.map((trace) => [traceCard(trace, id), trace]);
  traces.append(...nodes.map(([node]) => node));
  detail.replaceChildren(tools, texts);
  if (!hasTokens && question.traces.some((trace) => trace.thought !== undefined)) {
    detail.append(make("p", "fine", "To colour the tokens of each explanation, run rlt-data score with --per-token."));
  }
  detail.append(traces);
  const selected = $(`trace-${id}`);
  if (selected) traces.scrollLeft = selected.offsetLeft - traces.offsetLeft - 12;
  // Fill the visible cards first, and the others after these are painted.
  const first = Math.max(0, nodes.findIndex(([node]) => node === selected));
  const order = [...nodes.slice(first), ...nodes.slice(0, first)];
  for (const [node, trace] of order.splice(0, 4)) fillCard(node, trace, question);
  const fillNext = () => {
    if (!order.length || !traces.isConnected) return;
    fillCard(...order.shift(), question);
    setTimeout(fillNext);
  };
  setTimeout(fillNext);
  view.worst = 0;
};

const legend = () => {
  const box = make("span", "legend");
  const scale = mode() === "KL"
    ? [["likelier for the student", "c5 c3 c1"], ["likelier for the teacher", "h1 h3 h5"]]
    : mode() === "log-prob" ? [["likely", "h1"], ["unlikely", "h3 h5"]] : [];
  for (const [label, levels] of scale) {
    box.append(make("span", "", label));
    for (const level of levels.split(" ")) box.append(make("i", level));
  }
  return box;
};
const setMode = (name) => {
  view.mode = name;
  remember("rlt-mode", name);
  keepingScroll(showQuestion);
};
const toggleLayout = () => {
  view.stacked = !view.stacked;
  remember("rlt-stacked", view.stacked ? "yes" : "no");
  showQuestion();
};
const keepingScroll = (action) => {
  const detail = $("detail");
  const [top, left] = [detail.scrollTop, detail.querySelector(".side-by-side")?.scrollLeft];
  action();
  detail.scrollTop = top;
  if (left !== undefined && detail.querySelector(".side-by-side")) detail.querySelector(".side-by-side").scrollLeft = left;
};
const walk = (by) => {
  const current = state.selected < 0 ? -1 : col("question")[state.selected];
  let position = positionOf(state.selected);
  while (position >= -1 && position < state.shown.length) {
    position += by;
    const i = state.shown[position];
    if (i !== undefined && col("question")[i] !== current) {
      go(`trace=${at("trace_id", i)}`);
      return;
    }
    if (i === undefined) return;
  }
};
