// The list: filters, order, and the rows that are in sight

const ROW_HEIGHT = 76;
const GROUP_HEIGHT = 34; // of the question above its traces
const state = { shown: [], tops: [0], selected: -1, descending: false, hits: null };
let searchTexts = null; // lower-case texts by question, built by the first search

const option = (select, value, text) => select.append(Object.assign(make("option", "", text), { value }));
const fill = (select, choices) => {
  const before = select.value;
  select.replaceChildren();
  for (const [value, text] of choices) option(select, value, text);
  if (choices.some(([value]) => value === before)) select.value = before;
  select.hidden = choices.length < 2;
};
const distinct = (name) => [...new Set(col(name) || [])].filter((value) => value !== null);

const fillFilters = () => {
  const kinds = [["", "all traces"]];
  if (col("in_data_set")) kinds.push(["in", "in the data set"], ["out", "not in the data set"]);
  if (col("well_formed")) kinds.push(["good", "well-formed"], ["bad", "not well-formed"]);
  for (const flaw of distinct("flaw").sort()) kinds.push([`flaw:${flaw}`, `flaw: ${flaw}`]);
  for (const end of distinct("finish_reason").sort()) kinds.push([`end:${end}`, `finish reason: ${end}`]);
  fill($("kind"), kinds);
  const numbers = distinct("bucket").sort((a, b) => a - b);
  fill($("bucket"), [["", "all buckets"], ...numbers.map((n) => [String(n), `bucket ${n}`])]);
  const sources = head.sources.map((name, i) => [String(i), name]);
  fill($("source"), sources.length > 1 ? [["", "both runs"], ...sources] : []);
  const terms = TERMS.filter((name) => col(name));
  fill($("term"), [["", "any number"], ...terms.map((name) => [name, words(name)])]);
  const orders = [["question", "by question"], ["order", "order of the run"]];
  fill($("sort"), [...orders, ...["rank", ...terms].filter((name) => col(name)).map((name) => [name, `by ${words(name)}`])]);
};

const numberIn = (input) => input.value === "" ? null : Number(input.value);

// A test of rows for the chosen filters
const chosenFilter = () => {
  const kind = $("kind").value;
  const bucket = numberIn($("bucket"));
  const source = numberIn($("source"));
  const term = $("term").value;
  const [low, high] = [numberIn($("low")), numberIn($("high"))];
  const values = low !== null || high !== null ? col(term) : null;
  const [flaws, finishReasons, wellFormed, inDataSet] = ["flaw", "finish_reason", "well_formed", "in_data_set"].map(col);
  const ofKind = kind === "in" ? (i) => inDataSet[i] === true
    : kind === "out" ? (i) => inDataSet[i] === false
    : kind === "good" ? (i) => wellFormed[i]
    : kind === "bad" ? (i) => wellFormed[i] === false
    : kind.startsWith("flaw:") ? (i) => flaws[i] === kind.slice(5)
    : kind.startsWith("end:") ? (i) => finishReasons[i] === kind.slice(4)
    : () => true;
  return (i) => ofKind(i)
    && (bucket === null || at("bucket", i) === bucket)
    && (source === null || col("source")[i] === source)
    && (!values || (values[i] !== null && (low === null || values[i] >= low) && (high === null || values[i] <= high)))
    && (!state.hits || Boolean(state.hits[i]));
};

const byQuestion = (rows) => {
  const keys = new Map(rows.map((i) => [i, bestFirst((name) => at(name, i))]));
  const questions = col("question");
  const sign = state.descending ? -1 : 1;
  return rows.sort((a, b) => questions[a] - questions[b] || sign * compare(keys.get(a), keys.get(b)));
};

const applyFilters = () => {
  for (const id of ["low", "high"]) $(id).disabled = !$("term").value;
  const total = (col("question") || []).length;
  const passes = chosenFilter();
  const shown = [];
  for (let i = 0; i < total; i++) if (passes(i)) shown.push(i);
  const key = col($("sort").value);
  const sign = state.descending ? -1 : 1;
  if (grouped()) byQuestion(shown);
  else if (key) shown.sort((a, b) => key[a] === null ? 1 : key[b] === null ? -1 : sign * (key[a] - key[b]) || a - b);
  else if (state.descending) shown.reverse();
  state.shown = shown;
  state.positions = new Map(shown.map((i, position) => [i, position]));
  state.tops = [0]; // the top of each row and its group, and the bottom of the last one
  shown.forEach((_, position) => state.tops.push(state.tops[position] + ROW_HEIGHT + (startsGroup(position) ? GROUP_HEIGHT : 0)));
  $("direction").textContent = state.descending ? "↓" : "↑";
  const [ascending, descending] = grouped() ? ["Best first", "Worst first"] : ["Smallest first", "Largest first"];
  $("direction").title = state.descending ? descending : ascending;
  $("count").textContent = `${count(shown.length)} of ${count(total)}`;
  $("rows").style.height = `${state.tops.at(-1)}px`;
  for (const id of ["save-jsonl", "save-ids"]) $(id).disabled = !shown.length;
  draw();
};
const grouped = () => $("sort").value === "question" && Boolean(col("question"));
const startsGroup = (position) => grouped()
  && (position === 0 || col("question")[state.shown[position]] !== col("question")[state.shown[position - 1]]);

const groupItem = (number, position) => {
  const [, source, snippet] = index.questions[number];
  const node = make("div", "group");
  node.style.top = `${state.tops[position]}px`;
  node.setAttribute("role", "presentation");
  if (source !== null) node.append(make("b", "", visible(String(source))), " ");
  node.append(visible(snippet));
  return node;
};

const listItem = (i, position) => {
  const item = make("div", "item");
  item.id = `item-${i}`;
  item.setAttribute("role", "option");
  item.setAttribute("aria-selected", String(i === state.selected));
  item.setAttribute("aria-posinset", position + 1);
  item.setAttribute("aria-setsize", state.shown.length);
  item.style.top = `${state.tops[position + 1] - ROW_HEIGHT}px`;
  const top = make("div", "top");
  if (head.sources.length > 1) top.append(make("span", `chip s${col("source")[i]}`, head.sources[col("source")[i]]));
  const rank = at("rank", i);
  top.append(rank === null ? labelled("sample", at("sample_index", i)) : labelled("rank", rank));
  const bucket = at("bucket", i);
  if (bucket !== null && bucket !== rank) top.append(explain(make("span", "chip", `bucket ${bucket}`), "bucket"));
  const flaw = at("flaw", i);
  if (flaw) top.append(explain(make("span", "chip bad", flaw), "flaw"));
  if (at("in_data_set", i)) top.append(make("span", "chip good", "in the data set"));
  const sortedBy = $("sort").value;
  const shown = col(sortedBy) && !["rank", "question"].includes(sortedBy) ? sortedBy : mainColumn((name) => at(name, i));
  if (shown) top.append(labelled(shown, figure(at(shown, i)), "figure"));
  const text = make("div", "snippet");
  const source = index.questions[col("question")[i]][1];
  if (!grouped() && source !== null) text.append(make("b", "", visible(String(source))), " ");
  text.append(visible(at("start", i) || "(no text)"));
  item.append(top, text);
  item.addEventListener("click", () => go(`trace=${at("trace_id", i)}`));
  return item;
};

const draw = () => {
  const list = $("list");
  if ($("view-traces").hidden || !list.clientHeight) return;
  const first = Math.max(0, positionAt(list.scrollTop) - 6);
  const last = Math.min(state.shown.length, positionAt(list.scrollTop + list.clientHeight) + 6);
  const items = [];
  for (let position = first; position < last; position++) {
    if (startsGroup(position)) items.push(groupItem(col("question")[state.shown[position]], position));
    items.push(listItem(state.shown[position], position));
  }
  $("rows").replaceChildren(...items);
  if (state.selected >= 0) list.setAttribute("aria-activedescendant", `item-${state.selected}`);
};
// The position of the row at a height, by bisection
const positionAt = (height) => {
  let [low, high] = [0, state.shown.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (state.tops[middle + 1] <= height) low = middle + 1; else high = middle;
  }
  return low;
};

const selectAt = (position) => {
  if (!state.shown.length) return;
  position = Math.max(0, Math.min(state.shown.length - 1, position));
  state.selected = state.shown[position];
  const list = $("list");
  const [top, bottom] = [state.tops[position], state.tops[position + 1]];
  if (top < list.scrollTop) list.scrollTop = top;
  if (bottom > list.scrollTop + list.clientHeight) list.scrollTop = bottom - list.clientHeight;
  draw();
};
const positionOf = (i) => state.positions?.get(i) ?? -1;

// Search in all texts, which are unpacked once. Matches appear while the search runs.

let lastSearch = 0;
const search = async () => {
  const query = $("search").value.trim().toLowerCase();
  const thisSearch = ++lastSearch;
  if (!query) {
    state.hits = null;
    applyFilters();
    return;
  }
  const rowsOf = rowsByQuestion();
  const hits = new Uint8Array((col("question") || []).length);
  searchTexts ||= new Array(index.questions.length).fill(null);
  let lastDraw = performance.now();
  for (let number = 0; number < index.questions.length; number++) {
    if (!searchTexts[number]) {
      const content = await question(number);
      if (thisSearch !== lastSearch) return;
      if (!content) continue;
      const texts = new Map(content.traces.map((trace) => [trace.trace_id, `${trace.trace_id}\n${trace.meta ?? ""}\n${trace.solution ?? ""}\n${trace.thought ?? ""}\n${trace.completion ?? ""}`.toLowerCase()]));
      const common = [content.question_id, content.source_id, content.question, content.solution, content.answer, content.meta].join("\n").toLowerCase();
      searchTexts[number] = [common, rowsOf[number].map((i) => texts.get(at("trace_id", i)) || "")];
    }
    const [common, texts] = searchTexts[number];
    const matchesAll = common.includes(query);
    rowsOf[number].forEach((i, k) => { hits[i] = matchesAll || (texts[k] || "").includes(query) ? 1 : 0; });
    if (performance.now() - lastDraw > 150) {
      state.hits = hits;
      applyFilters();
      $("count").textContent += ` … ${Math.round(100 * number / index.questions.length)} %`;
      await new Promise((resolve) => setTimeout(resolve));
      if (thisSearch !== lastSearch) return;
      lastDraw = performance.now();
    }
  }
  state.hits = hits;
  applyFilters();
};
const rowsByQuestion = () => {
  const rowsOf = index.questions.map(() => []);
  (col("question") || []).forEach((number, i) => rowsOf[number].push(i));
  return rowsOf;
};

const loadIndex = async () => {
  const selectedId = state.selected >= 0 ? at("trace_id", state.selected) : null;
  const newIndex = await store.index();
  if (newIndex.stamp && newIndex.stamp === index.stamp) return;
  index = newIndex;
  blocks.clear();
  searchTexts = null;
  rows = new Map((col("trace_id") || []).map((id, i) => [id, i]));
  state.selected = rowOf(selectedId);
  fillFilters();
  if (state.hits) await search(); else applyFilters();
};
