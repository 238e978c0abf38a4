"use strict";
// Everything that comes from models or data is put into the page as text, never as markup.
(() => {
  const $ = (id) => document.getElementById(id);
  const head = JSON.parse($("head").textContent);
  const ROW = 58;
  const LONGEST = 50000; // characters of a text that are shown at once
  const TOKENS = 20000;
  const MODES = ["KL", "log-prob", "plain"];
  const TERMS = ["value", "reward", "reward_without_entropy", "r_ss", "r_kl", "solution_logprob_mean",
    "solution_logprob_min", "kl_mean", "kl_max", "penalty", "thought_tokens", "solution_tokens", "completion_tokens"];

  const make = (tag, cls, text) => {
    const node = document.createElement(tag);
    if (cls) node.className = cls;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const words = (name) => name.startsWith("r_") ? name : name.replaceAll("_", " ");
  const figure = (value, digits = 3) => value === null || value === undefined ? "–"
    : Number.isInteger(value) ? value.toLocaleString("en") : value.toFixed(digits);

  // Characters that turn the direction of text, or cannot be seen, are named.
  const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;
  const visible = (text) => text.replaceAll("\r\n", "\n")
    .replace(UNSEEN, (c) => `⟨U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);

  // Where data comes from: blocks of this file, or the server that shows it live

  const unpacked = async (block) => {
    const binary = atob(block.textContent.trim());
    const bytes = Uint8Array.from(binary, (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return JSON.parse(await new Response(stream).text());
  };
  const whole = new Promise((done) => {
    if (document.readyState !== "loading") done();
    else document.addEventListener("DOMContentLoaded", done);
  });
  const embedded = {
    index: () => unpacked($("index")),
    chunkOf: (question) => {
      let low = 0;
      let high = head.chunks.length - 1;
      while (low < high) {
        const middle = (low + high + 1) >> 1;
        if (head.chunks[middle] <= question) low = middle; else high = middle - 1;
      }
      return low;
    },
    chunk: async (number) => {
      await whole;
      return unpacked($(`texts-${number}`));
    },
    tokens: async (number) => $(`tokens-${number}`) ? unpacked($(`tokens-${number}`)) : {},
  };
  const fetched = async (path) => {
    const answer = await fetch(path);
    if (!answer.ok) throw new Error(await answer.text());
    return answer.json();
  };
  const served = {
    index: () => fetched("index"),
    chunkOf: (question) => question,
    chunk: async (number) => [await fetched(`question/${encodeURIComponent(index.questions[number][0])}`)],
    tokens: async () => ({}), // they come with the texts
  };
  const store = head.live ? served : embedded;

  let index = { questions: [], columns: {} };
  const col = (name) => index.columns[name];
  const at = (name, i) => index.columns[name] ? index.columns[name][i] : null;

  const chunks = new Map(); // the last few, as they are
  const question = async (number) => {
    const id = index.questions[number][0];
    const place = store.chunkOf(number);
    if (!chunks.has(place)) {
      chunks.set(place, store.chunk(place));
      if (chunks.size > 8) chunks.delete(chunks.keys().next().value);
    }
    try {
      return (await chunks.get(place)).find((each) => each.question_id === id);
    } catch (error) {
      chunks.delete(place);
      throw error;
    }
  };

  // Theme and parts of the page

  const root = document.documentElement;
  const remember = (key, value) => { try { localStorage.setItem(key, value); } catch { /* a file may have no storage */ } };
  const remembered = (key) => { try { return localStorage.getItem(key); } catch { return null; } };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const paint = () => { root.dataset.theme = remembered("rlt-theme") || (dark.matches ? "dark" : "light"); };
  paint();
  dark.addEventListener("change", paint);
  const turnTheme = () => {
    root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
    remember("rlt-theme", root.dataset.theme);
  };

  let routed = null;
  const go = (hash) => { // at once, so that the next key finds the part it is for
    location.hash = hash;
    route();
  };
  const route = () => {
    if (routed === location.hash) return;
    routed = location.hash;
    const hash = decodeURIComponent(routed.slice(1));
    const traces = hash.startsWith("traces") || hash.startsWith("trace=");
    $("view-overview").hidden = traces;
    $("view-traces").hidden = !traces;
    for (const name of ["overview", "traces"]) {
      if ((name === "traces") === traces) $(`tab-${name}`).setAttribute("aria-current", "page");
      else $(`tab-${name}`).removeAttribute("aria-current");
    }
    const key = hash.startsWith("trace=") ? hash.slice(6) : null;
    if (traces) draw();
    if (key) openTrace(key);
    else close();
  };

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
    fill($("source"), [["", "all sources"], ...head.sources.map((name, i) => [String(i), name])].slice(0, head.sources.length > 1 ? 9 : 1));
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
    const shown = col(by) && by !== "rank" ? by : col("value") ? "value" : "reward";
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
    const rows = rowsByQuestion();
    const hits = new Uint8Array((col("question") || []).length);
    haystacks ||= new Array(index.questions.length).fill(null);
    let told = performance.now();
    for (let start = 0; start < index.questions.length; start++) {
      if (!haystacks[start]) {
        const each = await question(start);
        if (mine !== searching) return;
        if (!each) continue;
        const texts = new Map(each.traces.map((trace) => [trace.trace_id, `${trace.trace_id}\n${trace.thought ?? ""}\n${trace.completion ?? ""}`.toLowerCase()]));
        const common = [each.question_id, each.source_id, each.question, each.solution, each.answer, each.meta].join("\n").toLowerCase();
        haystacks[start] = [common, rows[start].map((i) => texts.get(at("trace_id", i)) || "")];
      }
      const [common, texts] = haystacks[start];
      const all = common.includes(wanted);
      rows[start].forEach((i, k) => { hits[i] = all || (texts[k] || "").includes(wanted) ? 1 : 0; });
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
  let grouped = null;
  const rowsByQuestion = () => {
    if (!grouped) {
      grouped = index.questions.map(() => []);
      (col("question") || []).forEach((q, i) => grouped[q].push(i));
    }
    return grouped;
  };

  // One question with all its traces

  const look = { mode: remembered("rlt-mode") || "KL", stacked: remembered("rlt-stacked") === "yes", worst: 0 };

  const close = () => {
    delete $("view-traces").dataset.open;
    $("tip").hidden = true;
  };

  const openTrace = async (id) => {
    const i = (col("trace_id") || []).indexOf(id);
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

  const textBox = (title, text, full) => {
    const box = make("section", "box");
    box.append(make("h3", "", title), shownText(text, full));
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
    if (look.mode === "plain" || !tokens) return shownText(trace.thought);
    const same = kl && !kl.lengths;
    const values = [["log-prob", tokens.values], ...(same ? [["KL", kl.values]] : [])];
    if (look.mode === "KL" && kl) return coloured(trace.thought, kl, same ? tokens : kl, "KL", same ? values : [["KL", kl.values]]);
    return coloured(trace.thought, tokens, tokens, "log-prob", values);
  };

  const worst = (trace, body) => {
    const box = make("span", "worst");
    const of = look.mode === "KL" && trace.kl_tokens ? trace.kl_tokens : trace.thought_tokens;
    if (!of || look.mode === "plain") return box;
    const badness = (value) => value === null ? -Infinity : look.mode === "KL" && trace.kl_tokens ? value : -value;
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

  const card = (trace, chosen) => {
    const i = (col("trace_id") || []).indexOf(trace.trace_id);
    const get = (name) => trace.figures ? trace.figures[name] : i >= 0 ? at(name, i) : null;
    const node = make("section", "trace");
    node.id = `trace-${trace.trace_id}`;
    if (trace.trace_id === chosen) node.classList.add("chosen");
    const header = make("header");
    if (head.sources.length > 1) header.append(make("span", `chip s${trace.source}`, head.sources[trace.source]));
    const rank = get("rank");
    header.append(make("b", "", rank === null ? `sample ${get("sample_index") ?? ""}` : `rank ${rank}`));
    const value = get("reward") ?? get("reward_without_entropy");
    if (value !== null && value !== undefined) header.append(make("b", "", figure(value)));
    if (get("flaw")) header.append(make("span", "chip bad", get("flaw")));
    const end = get("finish_reason");
    if (end) header.append(make("span", "chip", end));
    const terms = make("div", "terms");
    for (const name of ["r_ss", "r_kl", "solution_logprob_mean", "solution_logprob_min", "kl_mean", "kl_max", "penalty", "thought_tokens"]) {
      const found = get(name);
      if (found !== null && found !== undefined && !(name === "penalty" && found === 0)) terms.append(make("span", "", `${words(name)} ${figure(found)}`));
    }
    terms.append(make("span", "", `trace ${trace.trace_id.slice(0, 12)}`));
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
    if (solution && look.mode !== "plain") {
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
      for (const mode of MODES) {
        const button = more(mode, () => setMode(mode));
        button.setAttribute("aria-pressed", String(mode === look.mode));
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
    const place = (trace) => { const i = col("trace_id")?.indexOf(trace.trace_id) ?? -1; return [trace.figures?.rank ?? (i < 0 ? null : at("rank", i)) ?? 1e9, trace.source]; };
    const cards = each.traces.map((trace) => [place(trace), trace]).sort(([a], [b]) => a[0] - b[0] || a[1] - b[1]);
    const nodes = cards.map(([, trace]) => [card(trace, id), trace]);
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
    const scale = look.mode === "KL"
      ? [["student expects it more", "c5 c3 c1"], ["less than the teacher", "h1 h3 h5"]]
      : look.mode === "log-prob" ? [["expected", "h1"], ["surprising", "h3 h5"]] : [];
    for (const [label, levels] of scale) {
      box.append(make("span", "", label));
      for (const each of levels.split(" ")) box.append(make("i", each));
    }
    return box;
  };
  const setMode = (mode) => {
    look.mode = mode;
    remember("rlt-mode", mode);
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

  // Pointer and keys

  const tip = $("tip");
  document.addEventListener("mouseover", (event) => {
    const { token } = event.target;
    tip.hidden = !token;
    if (!token) return;
    tip.replaceChildren(make("code", "", visible(JSON.stringify(token.piece).slice(0, 200))));
    for (const [name, value] of token.values) tip.append(make("div", "", `${name} ${value === null ? "–" : (value / 100).toFixed(2)}`));
    const box = event.target.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(box.left, innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${box.bottom + tip.offsetHeight + 10 > innerHeight ? box.top - tip.offsetHeight - 6 : box.bottom + 6}px`;
  });

  const inTraces = () => !$("view-traces").hidden;
  const keys = {
    "/": () => { if (!inTraces()) go("traces"); $("search").focus(); },
    o: () => go("overview"),
    t: () => { go("traces"); $("list").focus(); },
    j: () => step(1), ArrowDown: () => step(1), k: () => step(-1), ArrowUp: () => step(-1),
    Enter: () => { if (inTraces() && state.chosen >= 0) go(`trace=${at("trace_id", state.chosen)}`); },
    "]": () => { if (inTraces()) walk(1); },
    "[": () => { if (inTraces()) walk(-1); },
    c: () => { if (state.current && inTraces()) setMode(MODES[(MODES.indexOf(look.mode) + 1) % MODES.length]); },
    s: () => { if (state.current && inTraces()) turnLayout(); },
    w: () => {
      const buttons = $("detail").querySelectorAll(".worst button");
      if (buttons.length) buttons[look.worst++ % buttons.length].click();
    },
    d: turnTheme,
    "?": () => $("help").showModal(),
    Escape: () => {
      if (location.hash.startsWith("#trace=")) { go("traces"); $("list").focus(); }
    },
  };
  const step = (by) => { if (inTraces()) choose(placeOf(state.chosen) + by); };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (typing && event.key !== "Escape") {
      if (event.target === $("search") && (event.key === "Enter" || event.key === "ArrowDown")) $("list").focus();
      if (event.target === $("search") && event.key === "Enter") event.preventDefault();
      return;
    }
    if (typing) { event.target.blur(); $("list").focus(); return; }
    const onButton = event.key === "Enter" && /^(BUTTON|A|SUMMARY)$/.test(event.target.tagName);
    const scrolls = event.key.startsWith("Arrow") && $("detail").contains(event.target);
    if (keys[event.key] && !onButton && !scrolls) {
      if (event.key.startsWith("Arrow") && !inTraces()) return;
      event.preventDefault();
      keys[event.key]();
    }
  });

  let waiting = 0;
  $("search").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(search, 120); });
  for (const id of ["kind", "bucket", "source", "term", "low", "high"]) $(id).addEventListener("input", apply);
  $("sort").addEventListener("input", () => { state.descending = !["rank", "order"].includes($("sort").value); apply(); });
  $("direction").addEventListener("click", () => { state.descending = !state.descending; apply(); });
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("filters").addEventListener("reset", () => setTimeout(() => { state.descending = false; search(); }));
  $("list").addEventListener("scroll", draw, { passive: true });
  new ResizeObserver(draw).observe($("list"));
  $("theme").addEventListener("click", turnTheme);
  $("help-button").addEventListener("click", () => $("help").showModal());
  addEventListener("hashchange", route);

  const loadIndex = async () => {
    const chosen = state.chosen >= 0 ? at("trace_id", state.chosen) : null;
    const fresh = await store.index();
    if (fresh.stamp && fresh.stamp === index.stamp) return;
    index = fresh;
    chunks.clear();
    haystacks = grouped = null;
    state.chosen = chosen ? (col("trace_id") || []).indexOf(chosen) : -1;
    fillFilters();
    if (state.hits) await search(); else apply();
  };

  // Live

  const duration = (seconds) => seconds < 90 ? `${Math.round(seconds)} s` : seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
  const showLive = (now) => {
    const lines = now.steps.map((each) => {
      const node = make("div", "step");
      const bar = make("progress");
      bar.max = each.total || 1;
      bar.value = each.done;
      bar.setAttribute("aria-label", each.step);
      const parts = [`${each.done.toLocaleString("en")} of ${each.total.toLocaleString("en")}`];
      if (each.failed) parts.push(`${each.failed} failed`);
      if (each.tokens_per_second) parts.push(`${Math.round(each.tokens_per_second).toLocaleString("en")} tokens/s`);
      if (each.seconds_left !== null) parts.push(`${duration(each.seconds_left)} left`);
      parts.push(each.state);
      node.append(make("b", "", each.step), bar, make("span", "", parts.join(" · ")));
      return node;
    });
    const newest = make("ul");
    newest.setAttribute("aria-label", "Newest traces");
    for (const trace of now.newest) {
      const link = make("a", "", visible(trace.text));
      link.href = `#trace=${encodeURIComponent(trace.trace_id)}`;
      const item = make("li");
      item.append(link);
      newest.append(item);
    }
    $("live").replaceChildren(...lines, newest);
  };
  const follow = async () => {
    let stamp = head.stamp;
    for (;;) {
      await new Promise((done) => setTimeout(done, 2000));
      if (document.hidden) continue;
      try {
        const now = await fetched("live");
        showLive(now);
        if (now.stamp !== (inTraces() ? index.stamp : stamp)) {
          // What is costly the server makes anew only now and then; its stamp says whether it has.
          if (inTraces()) {
            await loadIndex();
          } else {
            const answer = await fetch("overview");
            const made = answer.headers.get("X-Stamp");
            if (answer.ok && made !== stamp) {
              stamp = made;
              $("view-overview").innerHTML = await answer.text(); // of texts that the server has escaped
            }
          }
        }
      } catch (error) {
        $("live").replaceChildren(make("p", "note warn", `The server does not answer (${error.message}); trying again.`));
      }
    }
  };
  loadIndex().then(() => {
    root.dataset.ready = "yes"; // for those who wait for the page
    routed = null;
    route();
  }, (error) => $("view-overview").prepend(make("p", "note warn", `The traces cannot be shown: ${error.message}`)));
  route();
  if (head.live) fetched("live").then(showLive).finally(follow);
})();
