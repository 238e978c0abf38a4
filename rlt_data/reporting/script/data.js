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

const remember = (key, value) => { try { localStorage.setItem(key, value); } catch { /* a file may have no storage */ } };
const remembered = (key) => { try { return localStorage.getItem(key); } catch { return null; } };

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
const at = (name, i) => index.columns[name]?.[i] ?? null;
let rows = new Map(); // places of traces in the columns, by id
const rowOf = (id) => rows.get(id) ?? -1;

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
