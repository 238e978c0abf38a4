const $ = (id) => document.getElementById(id);
const head = JSON.parse($("head").textContent);
const MAX_CHARS = 50000; // characters of a text that are shown before "show all"
const MAX_TOKENS = 20000; // likewise tokens
const MODES = ["KL", "log-prob", "plain"];
const MODE_MEANINGS = {
  "KL": "colour tokens by the KL between teacher and student",
  "log-prob": "colour tokens by their log-prob under the student",
  "plain": "no colours",
};
const TERMS = ["value", "reward", "reward_without_entropy", "r_ss", "r_kl", "solution_logprob_mean",
  "solution_logprob_min", "kl_mean", "kl_max", "penalty", "thought_tokens", "solution_tokens", "completion_tokens"];

const make = (tag, cls, text) => {
  const node = document.createElement(tag);
  if (cls) node.className = cls;
  if (text !== undefined) node.textContent = text;
  return node;
};
const makeButton = (label, action, title) => {
  const button = make("button", "", label);
  button.type = "button";
  if (title) button.title = title;
  button.addEventListener("click", action);
  return button;
};
// A name of a column in words, and its meaning, which the tooltip shows
const words = (name) => name.startsWith("r_") ? name : name.replaceAll("_", " ");
const explain = (node, name) => {
  const meaning = head.meanings[name];
  if (!meaning) return node;
  node.dataset.meaning = `${words(name)}: ${meaning}`;
  node.setAttribute("aria-description", meaning);
  return node;
};
// A value with its name in front
const labelled = (name, value, cls = "") => {
  const node = explain(make("span", `labelled ${cls}`), name);
  node.append(make("span", "label", words(name)), " ", make("b", "", value));
  return node;
};
const count = (number) => number.toLocaleString("en");
const figure = (value, digits = 3) => value === null || value === undefined ? "–"
  : Number.isInteger(value) ? count(value) : value.toFixed(digits);

const remember = (key, value) => { try { localStorage.setItem(key, value); } catch { /* pages opened from a file may have no storage */ } };
const remembered = (key) => { try { return localStorage.getItem(key); } catch { return null; } };

// Replace invisible characters, and those that change the direction of text, by their code points.
const INVISIBLE = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;
const visible = (text) => text.replaceAll("\r\n", "\n")
  .replace(INVISIBLE, (c) => `⟨U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);

// Data sources: blocks in this file, or the server of a live page

const unpack = async (block) => {
  const binary = atob(block.textContent.trim());
  const bytes = Uint8Array.from(binary, (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
};
const documentLoaded = new Promise((resolve) => {
  if (document.readyState !== "loading") resolve();
  else document.addEventListener("DOMContentLoaded", resolve);
});
const embedded = {
  index: () => unpack($("index")),
  blockOf: (question) => {
    let low = 0;
    let high = head.blocks.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (head.blocks[middle] <= question) low = middle; else high = middle - 1;
    }
    return low;
  },
  block: async (number) => {
    await documentLoaded;
    return unpack($(`texts-${number}`));
  },
  tokens: async (number) => $(`tokens-${number}`) ? unpack($(`tokens-${number}`)) : {},
};
const fetchJson = async (path) => {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
};
const served = {
  index: () => fetchJson("index"),
  blockOf: (question) => question,
  block: async (number) => [await fetchJson(`question/${encodeURIComponent(index.questions[number][0])}`)],
  tokens: async () => ({}), // part of the texts
};
const store = head.live ? served : embedded;

let index = { questions: [], columns: {}, paddings: [] };
const col = (name) => index.columns[name];
const at = (name, i) => index.columns[name]?.[i] ?? null;
let rows = new Map(); // row of each trace in the columns, by id
const rowOf = (id) => rows.get(id) ?? -1;
// The column that a trace is judged by: the value it was ranked by, which usually is a reward
const mainColumn = (get) => {
  const value = get("value");
  const equal = ["reward", "reward_without_entropy"].find((name) => get(name) !== null && (value === null || get(name) === value));
  return equal ?? (value === null ? null : "value");
};
// A key that sorts the traces of a question, the best first. The argument returns a number of a trace by its name.
const bestFirst = (get) => {
  const rank = get("rank");
  const value = get("value") ?? get("reward") ?? get("reward_without_entropy") ?? -Infinity;
  return [rank ?? Infinity, rank === null ? -value : get("source"), get("sample_index") ?? 0];
};
const compare = (one, other) => {
  const k = one.findIndex((value, i) => value !== other[i]);
  return k < 0 ? 0 : one[k] < other[k] ? -1 : 1;
};

const blocks = new Map(); // cache of the last few
const question = async (number) => {
  const id = index.questions[number][0];
  const block = store.blockOf(number);
  if (!blocks.has(block)) {
    blocks.set(block, store.block(block));
    if (blocks.size > 8) blocks.delete(blocks.keys().next().value);
  }
  try {
    return (await blocks.get(block)).find((candidate) => candidate.question_id === id);
  } catch (error) {
    blocks.delete(block);
    throw error;
  }
};
