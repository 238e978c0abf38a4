// The list

const state = { shown: [], chosen: -1, descending: false, hits: null };
let haystacks = null; // lower-case texts by trace, made at the first search

const option = (select, value, text) => select.append(Object.assign(make("option", "", text), { value }));
const fill = (select, choices) => {
  const before = select.value;
  select.replaceChildren();
  for (const [value, text] of choices) option(select, value, text);
  if (choices.some(([value]) => value === before)) select.value = before;
  select.hidden = choices.length < 2;
};
const different = (name) => [...new Set(col(name) || [])].filter((value) => value !== null);

const fillFilters = () => {
  const kinds = [["", "all traces"]];
  if (col("well_formed")) kinds.push(["good", "well-formed"], ["bad", "not well-formed"]);
  for (const flaw of different("flaw").sort()) kinds.push([`flaw:${flaw}`, flaw]);
  for (const end of different("finish_reason").sort()) kinds.push([`end:${end}`, `ended: ${end}`]);
  fill($("kind"), kinds);
  const numbers = different("bucket").sort((a, b) => a - b);
  fill($("bucket"), [["", "all buckets"], ...numbers.map((n) => [String(n), `bucket ${n}`])]);
  const sources = head.sources.map((name, i) => [String(i), name]);
  fill($("source"), sources.length > 1 ? [["", "all sources"], ...sources] : []);
  const terms = TERMS.filter((name) => col(name));
  fill($("term"), [["", "any term"], ...terms.map((name) => [name, words(name)])]);
  fill($("sort"), [["order", "as in the run"], ...["rank", ...terms].filter((name) => col(name)).map((name) => [name, words(name)])]);
};

const number = (input) => input.value === "" ? null : Number(input.value);

const apply = () => {
  const count = (col("question") || []).length;
  const kind = $("kind").value;
  const bucket = number($("bucket"));
  const source = number($("source"));
  const term = $("term").value;
  const low = number($("low"));
  const high = number($("high"));
  const [flaws, ends, goods, values] = [col("flaw"), col("finish_reason"), col("well_formed"), col(term)];
  const shown = [];
  for (let i = 0; i < count; i++) {
    if (kind === "good" && !goods[i]) continue;
    if (kind === "bad" && goods[i] !== false) continue;
    if (kind.startsWith("flaw:") && flaws[i] !== kind.slice(5)) continue;
    if (kind.startsWith("end:") && ends[i] !== kind.slice(4)) continue;
    if (bucket !== null && at("bucket", i) !== bucket) continue;
    if (source !== null && col("source")[i] !== source) continue;
    if (term && (low !== null || high !== null)) {
      const value = values[i];
      if (value === null || (low !== null && value < low) || (high !== null && value > high)) continue;
    }
    if (state.hits && !state.hits[i]) continue;
    shown.push(i);
  }
  const by = $("sort").value;
  const key = col(by);
  const sign = state.descending ? -1 : 1;
  if (key) {
    shown.sort((a, b) => key[a] === null ? 1 : key[b] === null ? -1 : sign * (key[a] - key[b]) || a - b);
  } else if (state.descending) shown.reverse();
  state.shown = shown;
  state.place = new Map(shown.map((i, place) => [i, place]));
  $("direction").textContent = state.descending ? "↓" : "↑";
  $("direction").title = state.descending ? "Largest first" : "Smallest first";
  $("count").textContent = `${shown.length.toLocaleString("en")} of ${count.toLocaleString("en")}`;
  $("rows").style.height = `${shown.length * ROW}px`;
  draw();
};

const line = (i, place) => {
  const item = make("div", "item");
  item.id = `item-${i}`;
  item.setAttribute("role", "option");
  item.setAttribute("aria-selected", String(i === state.chosen));
  item.setAttribute("aria-posinset", place + 1);
  item.setAttribute("aria-setsize", state.shown.length);
  item.style.top = `${place * ROW}px`;
  const top = make("div", "top");
  if (head.sources.length > 1) top.append(make("span", `chip s${col("source")[i]}`, head.sources[col("source")[i]]));
  const rank = at("rank", i);
  top.append(make("span", "", rank === null ? `sample ${at("sample_index", i)}` : `rank ${rank}`));
  const bucket = at("bucket", i);
  if (bucket !== null && bucket !== rank) top.append(make("span", "chip", `bucket ${bucket}`));
  const flaw = at("flaw", i);
  if (flaw) top.append(make("span", "chip bad", flaw));
  const by = $("sort").value;
  const shown = col(by) && by !== "rank" ? by : ["value", "reward", "reward_without_entropy"].find(col);
  top.append(make("b", "", figure(at(shown, i))));
  const [, source, snippet] = index.questions[col("question")[i]];
  item.append(top, make("div", "what", visible(`${source ?? ""} · ${snippet}`.replaceAll("\n", " "))));
  item.addEventListener("click", () => go(`trace=${at("trace_id", i)}`));
  return item;
};

const draw = () => {
  const list = $("list");
  if ($("view-traces").hidden || !list.clientHeight) return;
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 6);
  const last = Math.min(state.shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 6);
  const items = [];
  for (let place = first; place < last; place++) items.push(line(state.shown[place], place));
  $("rows").replaceChildren(...items);
  if (state.chosen >= 0) list.setAttribute("aria-activedescendant", `item-${state.chosen}`);
};

const choose = (place) => {
  if (!state.shown.length) return;
  place = Math.max(0, Math.min(state.shown.length - 1, place));
  state.chosen = state.shown[place];
  const list = $("list");
  if (place * ROW < list.scrollTop) list.scrollTop = place * ROW;
  if ((place + 1) * ROW > list.scrollTop + list.clientHeight) list.scrollTop = (place + 1) * ROW - list.clientHeight;
  draw();
};
const placeOf = (i) => state.place?.get(i) ?? -1;

// Search: through all texts, which are unpacked once; what is found shows while it goes on

let searching = 0;
const search = async () => {
  const wanted = $("search").value.trim().toLowerCase();
  const mine = ++searching;
  if (!wanted) {
    state.hits = null;
    apply();
    return;
  }
  const grouped = rowsByQuestion();
  const hits = new Uint8Array((col("question") || []).length);
  haystacks ||= new Array(index.questions.length).fill(null);
  let told = performance.now();
  for (let start = 0; start < index.questions.length; start++) {
    if (!haystacks[start]) {
      const each = await question(start);
      if (mine !== searching) return;
      if (!each) continue;
      const texts = new Map(each.traces.map((trace) => [trace.trace_id, `${trace.trace_id}\n${trace.meta ?? ""}\n${trace.thought ?? ""}\n${trace.completion ?? ""}`.toLowerCase()]));
      const common = [each.question_id, each.source_id, each.question, each.solution, each.answer, each.meta].join("\n").toLowerCase();
      haystacks[start] = [common, grouped[start].map((i) => texts.get(at("trace_id", i)) || "")];
    }
    const [common, texts] = haystacks[start];
    const all = common.includes(wanted);
    grouped[start].forEach((i, k) => { hits[i] = all || (texts[k] || "").includes(wanted) ? 1 : 0; });
    if (performance.now() - told > 150) {
      state.hits = hits;
      apply();
      $("count").textContent += ` … ${Math.round(100 * start / index.questions.length)} %`;
      await new Promise((done) => setTimeout(done));
      if (mine !== searching) return;
      told = performance.now();
    }
  }
  state.hits = hits;
  apply();
};
const rowsByQuestion = () => {
  const grouped = index.questions.map(() => []);
  (col("question") || []).forEach((q, i) => grouped[q].push(i));
  return grouped;
};

const loadIndex = async () => {
  const chosen = state.chosen >= 0 ? at("trace_id", state.chosen) : null;
  const fresh = await store.index();
  if (fresh.stamp && fresh.stamp === index.stamp) return;
  index = fresh;
  chunks.clear();
  haystacks = null;
  rows = new Map((col("trace_id") || []).map((id, i) => [id, i]));
  state.chosen = rowOf(chosen);
  fillFilters();
  if (state.hits) await search(); else apply();
};
