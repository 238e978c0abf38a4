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
  if (state.current?.question === content && detail.querySelector(".trace")) {
    choose(id);
    return;
  }
  state.current = { question: content, id };
  showQuestion();
  detail.scrollTop = 0;
};

// A live page can show a trace that is not in the index; such a trace brings its numbers along.
const numberOf = (trace, name) => (trace.figures ? trace.figures[name] : at(name, rowOf(trace.trace_id))) ?? null;

// Numbers in the header of a trace
const SHOWN_TERMS = ["r_ss", "r_kl", "solution_logprob_mean", "solution_logprob_min", "kl_mean", "kl_max", "penalty", "thought_tokens"];
const MAX_KEPT = 400; // characters of a kept column

const traceCard = (trace) => {
  const get = (name) => numberOf(trace, name);
  const node = make("section", "trace");
  node.id = `trace-${trace.trace_id}`;
  const header = make("header");
  if (head.sources.length > 1) header.append(make("span", `chip s${trace.source}`, head.sources[trace.source]));
  const title = make("h3");
  title.append(get("rank") === null ? `sample ${get("sample_index") ?? ""}` : explain(make("span", "", `rank ${get("rank")}`), "rank"));
  header.append(title);
  const shown = mainColumn(get);
  if (shown) header.append(labelled(shown, figure(get(shown)), "figure"));
  const copy = makeButton("Copy", () => copyText(copy, trace), "Copy the explanation (y)");
  copy.classList.add("copy");
  header.append(copy);
  const chips = make("div", "chips");
  if (get("in_data_set")) chips.append(make("span", "chip good", "in the data set"));
  if (get("flaw")) chips.append(explain(make("span", "chip bad", `flaw: ${get("flaw")}`), "flaw"));
  const finishReason = get("finish_reason");
  if (finishReason) chips.append(explain(make("span", "chip", `finish reason: ${finishReason}`), "finish_reason"));
  if (chips.children.length) header.append(chips);
  const terms = make("div", "terms");
  for (const name of SHOWN_TERMS) {
    const value = get(name);
    if (value !== null && !(name === "penalty" && value === 0)) terms.append(labelled(name, figure(value)));
  }
  header.append(terms);
  node.append(header);
  return node;
};

// Where a trace is from: its id, author and kept columns
const origin = (trace) => {
  const node = make("dl", "origin");
  const add = (name, value) => {
    const pair = make("div");
    const text = typeof value === "string" ? value : JSON.stringify(value);
    pair.append(make("dt", "", visible(name)), make("dd", "", visible(text.slice(0, MAX_KEPT)) + (text.length > MAX_KEPT ? " …" : "")));
    node.append(pair);
  };
  add("trace", trace.trace_id);
  if (trace.origin) add("origin", trace.origin);
  const meta = trace.meta ?? state.current.question.meta;
  let kept = null;
  try { kept = JSON.parse(meta); } catch { /* shown as it is */ }
  if (kept && typeof kept === "object" && !Array.isArray(kept)) for (const [name, value] of Object.entries(kept)) add(name, value);
  else if (meta) add("meta", meta);
  return node;
};

const copyText = async (button, trace) => {
  const text = trace.thought ?? trace.completion;
  try {
    await navigator.clipboard.writeText(text.trim());
    button.textContent = "Copied";
  } catch { // no permission: select the text, so that the person can copy it
    getSelection().selectAllChildren($(`trace-${trace.trace_id}`).querySelector(".text"));
    button.textContent = "Press Ctrl+C";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
};

const fillCard = (node, trace, question) => {
  const body = make("div", "body");
  const text = explanationText(trace);
  const solution = trace.solution_tokens;
  node.querySelector("header").append(worstTokens(trace, text));
  const tokens = mode() === "KL" ? trace.kl_tokens : trace.thought_tokens;
  body.append(heading(trace.thought === undefined ? "Completion" : "Explanation", tokens ? mode() : "plain"), text);
  if (solution && mode() !== "plain") {
    body.append(heading("Solution, after this explanation", "log-prob"));
    const content = trace.content ?? question.contents[trace.source];
    body.append(colouredText(content, solution, solution, "log-prob", [["log-prob", solution.values]]));
  } else if (trace.solution !== undefined) {
    body.append(heading("Solution of this trace", "plain"), plainText(trace.solution));
  }
  if (trace.completion !== undefined && trace.thought !== undefined) {
    const raw = make("details");
    raw.append(make("summary", "", "Raw completion"), plainText(trace.completion));
    body.append(raw);
  }
  body.append(origin(trace));
  node.append(body);
};

// Buttons for all traces of the question, the best first; they stay visible while the traces scroll.
const rankButtons = (ranked) => {
  const row = make("nav", "ranks");
  row.setAttribute("aria-label", "Traces of the question");
  for (const trace of ranked) {
    const get = (name) => numberOf(trace, name);
    const [rank, shown] = [get("rank"), mainColumn(get)];
    const name = rank === null ? `sample ${get("sample_index") ?? ""}` : `rank ${rank}`;
    const button = makeButton(name, () => go(`trace=${trace.trace_id}`), head.sources.length > 1 ? head.sources[trace.source] : "");
    if (head.sources.length > 1) button.classList.add(`s${trace.source}`);
    if (shown) button.append(" ", make("span", "label", get(shown).toFixed(2)));
    button.dataset.trace = trace.trace_id;
    row.append(button);
  }
  return row;
};

const toolbar = (ranked, hasTokens) => {
  const tools = make("div", "tools");
  const row = make("div", "row");
  const back = makeButton("← List", () => go("traces"));
  back.classList.add("back");
  row.append(back, makeButton("‹", () => walk(-1), "Previous question ([)"), makeButton("›", () => walk(1), "Next question (])"));
  if (hasTokens) {
    const choice = make("span", "switch");
    choice.setAttribute("role", "group");
    choice.setAttribute("aria-label", "Colours");
    for (const name of modes()) {
      const button = makeButton(name, () => setMode(name), MODE_MEANINGS[name]);
      button.setAttribute("aria-pressed", String(name === mode()));
      choice.append(button);
    }
    row.append(choice);
  }
  const layout = makeButton(view.stacked ? "Side by side" : "Stacked", toggleLayout, "Change the layout (s)");
  layout.classList.add("layout");
  const traces = make("div", "row");
  traces.append(rankButtons(ranked), layout);
  tools.append(row, traces);
  return tools;
};

const showQuestion = () => {
  const { question, id } = state.current;
  const detail = $("detail");
  const hasTokens = question.traces.some((trace) => trace.thought_tokens);
  const order = new Map(question.traces.map((trace) => [trace, bestFirst((name) => name === "source" ? trace.source : numberOf(trace, name))]));
  const ranked = [...question.traces].sort((a, b) => compare(order.get(a), order.get(b)));
  const texts = make("div", "problem");
  texts.append(textBox(`Question ${visible(String(question.source_id ?? ""))}`, question.question), textBox("Solution", question.solution || "Unknown, or each trace has its own."));
  if (question.meta) texts.firstChild.append(make("p", "fine", visible(question.meta)));
  const traces = make("div", view.stacked ? "stacked" : "side-by-side");
  traces.tabIndex = 0;
  traces.setAttribute("aria-label", `${question.traces.length} traces`);
  const nodes = ranked.map((trace) => [traceCard(trace), trace]);
  traces.append(...nodes.map(([node]) => node));
  detail.replaceChildren(toolbar(ranked, hasTokens), texts);
  if (!hasTokens && question.traces.some((trace) => trace.thought !== undefined)) {
    detail.append(make("p", "fine", "To colour the tokens of each explanation, run rlt-data score with --per-token."));
  }
  detail.append(traces);
  // Fill the visible cards first, and the others after these are painted.
  const first = Math.max(0, ranked.findIndex((trace) => trace.trace_id === id));
  const waiting = [...nodes.slice(first), ...nodes.slice(0, first)];
  for (const [node, trace] of waiting.splice(0, 4)) fillCard(node, trace, question);
  const fillNext = () => {
    if (!waiting.length || !traces.isConnected) return;
    fillCard(...waiting.shift(), question);
    setTimeout(fillNext);
  };
  setTimeout(fillNext);
  choose(id);
};

// Mark a trace of the question that is shown, and scroll to it.
const choose = (id) => {
  state.current.id = id;
  view.worst = 0;
  for (const node of $("detail").querySelectorAll(".trace")) node.classList.toggle("chosen", node.id === `trace-${id}`);
  for (const button of $("detail").querySelectorAll(".ranks button")) {
    const chosen = button.dataset.trace === id;
    button.setAttribute("aria-current", String(chosen));
    if (chosen) button.parentNode.scrollLeft = button.offsetLeft - button.parentNode.clientWidth / 2;
  }
  const node = $(`trace-${id}`);
  if (!node) return;
  if (view.stacked) node.scrollIntoView({ block: "nearest" });
  else node.parentNode.scrollLeft = node.offsetLeft - node.parentNode.offsetLeft - 12;
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
