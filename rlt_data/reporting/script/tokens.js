// Texts, and tokens coloured by their values

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
  if (text.length > MAX_CHARS) node.append(makeButton(`show all ${count(text.length)} characters`, () => { node.textContent = visible(text); }));
  return node;
};

// The colours of the levels: KL has two (h: likelier for the teacher, c: for the student), log-probs have one (u).
const LEGENDS = {
  "KL": [["likelier for the student", "c5 c3 c1"], ["for the teacher", "h1 h3 h5"]],
  "log-prob": [["likely", "u1"], ["unlikely", "u3 u5"]],
  "plain": [],
};
const legend = (mode) => {
  const box = make("span", "legend");
  for (const [label, levels] of LEGENDS[mode]) {
    const pair = make("span");
    pair.append(label, " ", ...levels.split(" ").map((level) => make("i", level)));
    box.append(pair);
  }
  return box;
};
const heading = (title, mode) => {
  const node = make("h4", "", title);
  node.append(legend(mode));
  return node;
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
        if (strength) span.className = `k ${mode === "log-prob" ? "u" : value > 0 ? "h" : "c"}${strength}`;
        if (strength > 2 && !piece.trim()) span.textContent = (piece.includes("\n") ? "↵" : "␣") + (isPadding ? "" : piece.slice(1));
      }
      span.token = { piece, values: values.map(([name, list]) => [name, list[k]]) };
      fragment.append(span);
    }
    node.append(fragment);
  };
  add(0, Math.min(MAX_TOKENS, lengths.length));
  if (lengths.length > MAX_TOKENS) {
    const button = makeButton(`show all ${count(lengths.length)} tokens`, () => { button.remove(); add(MAX_TOKENS, lengths.length); });
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
  const worst = tokens.values.map((value, k) => [badness(value), k]).sort((a, b) => b[0] - a[0]).slice(0, 3);
  for (const [bad, k] of worst.filter(([bad]) => bad >= 100)) {
    const span = text.children[k];
    if (!span || !span.token) continue;
    const value = ((tokens === trace.kl_tokens ? bad : -bad) / 100).toFixed(1);
    box.append(makeButton(`${visible(span.token.piece).trim() || "␣"} ${value}`, () => jumpTo(span), "Jump to this token"));
  }
  if (box.children.length) box.prepend(make("span", "label", tokens === trace.kl_tokens ? "largest KL" : "lowest log-prob"));
  return box;
};
const jumpTo = (span) => {
  for (const other of document.querySelectorAll(".k.found")) other.classList.remove("found");
  span.classList.add("found");
  span.scrollIntoView({ block: "center", inline: "center" });
};
