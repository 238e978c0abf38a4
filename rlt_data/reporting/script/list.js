// The list

const state = { shown: [], selected: -1, descending: false, hits: null };
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
  if (col("well_formed")) kinds.push(["good", "well-formed"], ["bad", "not well-formed"]);
  for (const flaw of distinct("flaw").sort()) kinds.push([`flaw:${flaw}`, flaw]);
  for (const end of distinct("finish_reason").sort()) kinds.push([`end:${end}`, `finish reason: ${end}`]);
  fill($("kind"), kinds);
  const numbers = distinct("bucket").sort((a, b) => a - b);
  fill($("bucket"), [["", "all buckets"], ...numbers.map((n) => [String(n), `bucket ${n}`])]);
  const sources = head.sources.map((name, i) => [String(i), name]);
  fill($("source"), sources.length > 1 ? [["", "both runs"], ...sources] : []);
  const terms = TERMS.filter((name) => col(name));
  fill($("term"), [["", "any number"], ...terms.map((name) => [name, words(name)])]);
  fill($("sort"), [["order", "order of the run"], ...["rank", ...terms].filter((name) => col(name)).map((name) => [name, words(name)])]);
};

const numberIn = (input) => input.value === "" ? null : Number(input.value);

const applyFilters = () => {
  const count = (col("question") || []).length;
  const kind = $("kind").value;
  const bucket = numberIn($("bucket"));
  const source = numberIn($("source"));
  const term = $("term").value;
  const low = numberIn($("low"));
  const high = numberIn($("high"));
  const [flaws, finishReasons, wellFormed, values] = [col("flaw"), col("finish_reason"), col("well_formed"), col(term)];
  const shown = [];
  for (let i = 0; i < count; i++) {
    if (kind === "good" && !wellFormed[i]) continue;
    if (kind === "bad" && wellFormed[i] !== false) continue;
    if (kind.startsWith("flaw:") && flaws[i] !== kind.slice(5)) continue;
    if (kind.startsWith("end:") && finishReasons[i] !== kind.slice(4)) continue;
    if (bucket !== null && at("bucket", i) !== bucket) continue;
    if (source !== null && col("source")[i] !== source) continue;
    if (term && (low !== null || high !== null)) {
      const value = values[i];
      if (value === null || (low !== null && value < low) || (high !== null && value > high)) continue;
    }
    if (state.hits && !state.hits[i]) continue;
    shown.push(i);
  }
  const key = col($("sort").value);
  const sign = state.descending ? -1 : 1;
  if (key) {
    shown.sort((a, b) => key[a] === null ? 1 : key[b] === null ? -1 : sign * (key[a] - key[b]) || a - b);
  } else if (state.descending) shown.reverse();
  state.shown = shown;
  state.positions = new Map(shown.map((i, position) => [i, position]));
  $("direction").textContent = state.descending ? "↓" : "↑";
  $("direction").title = state.descending ? "Largest first" : "Smallest first";
  $("count").textContent = `${shown.length.toLocaleString("en")} of ${count.toLocaleString("en")}`;
  $("rows").style.height = `${shown.length * ROW_HEIGHT}px`;
  draw();
};

const listItem = (i, position) => {
  const item = make("div", "item");
  item.id = `item-${i}`;
  item.setAttribute("role", "option");
  item.setAttribute("aria-selected", String(i === state.selected));
  item.setAttribute("aria-posinset", position + 1);
  item.setAttribute("aria-setsize", state.shown.length);
  item.style.top = `${position * ROW_HEIGHT}px`;
  const top = make("div", "top");
  if (head.sources.length > 1) top.append(make("span", `chip s${col("source")[i]}`, head.sources[col("source")[i]]));
  const rank = at("rank", i);
  top.append(rank === null ? make("span", "", `sample ${at("sample_index", i)}`) : explain(make("span", "", `rank ${rank}`), "rank"));
  const bucket = at("bucket", i);
  if (bucket !== null && bucket !== rank) top.append(explain(make("span", "chip", `bucket ${bucket}`), "bucket"));
  const flaw = at("flaw", i);
  if (flaw) top.append(explain(make("span", "chip bad", flaw), "flaw"));
  const sortedBy = $("sort").value;
  const shown = col(sortedBy) && sortedBy !== "rank" ? sortedBy : ["value", "reward", "reward_without_entropy"].find(col);
  top.append(explain(make("b", "", figure(at(shown, i))), shown));
  const [, source, snippet] = index.questions[col("question")[i]];
  item.append(top, make("div", "snippet", visible(`${source ?? ""} · ${snippet}`.replaceAll("\n", " "))));
  item.addEventListener("click", () => go(`trace=${at("trace_id", i)}`));
  return item;
};

const draw = () => {
  const list = $("list");
  if ($("view-traces").hidden || !list.clientHeight) return;
  const first = Math.max(0, Math.floor(list.scrollTop / ROW_HEIGHT) - 6);
  const last = Math.min(state.shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW_HEIGHT) + 6);
  const items = [];
  for (let position = first; position < last; position++) items.push(listItem(state.shown[position], position));
  $("rows").replaceChildren(...items);
  if (state.selected >= 0) list.setAttribute("aria-activedescendant", `item-${state.selected}`);
};

const selectAt = (position) => {
  if (!state.shown.length) return;
  position = Math.max(0, Math.min(state.shown.length - 1, position));
  state.selected = state.shown[position];
  const list = $("list");
  const [top, bottom] = [position * ROW_HEIGHT, (position + 1) * ROW_HEIGHT];
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
      const texts = new Map(content.traces.map((trace) => [trace.trace_id, `${trace.trace_id}\n${trace.meta ?? ""}\n${trace.thought ?? ""}\n${trace.completion ?? ""}`.toLowerCase()]));
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
