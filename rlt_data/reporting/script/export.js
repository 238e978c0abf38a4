// Save the traces that the filters leave

const saveFile = (suffix, type, parts) => {
  const link = make("a");
  link.href = URL.createObjectURL(new Blob(parts, { type }));
  link.download = `${head.sources.join("-against-").replace(/[^\p{L}\p{N}._-]+/gu, "_")}-${suffix}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
};

const saveIds = () => saveFile("ids.txt", "text/plain", state.shown.map((i) => `${at("trace_id", i)}\n`));

// The columns of the tables, as far as the page has them
const record = (i, content) => {
  const { traces, contents, ...of_question } = content;
  const { source, trace_id, thought, completion, meta, answer, solution } = traces.find((trace) => trace.trace_id === at("trace_id", i));
  const numbers = Object.entries(index.columns).filter(([name]) => !["question", "source", "start"].includes(name));
  return {
    ...(head.sources.length > 1 && { run: head.sources[source] }),
    ...of_question,
    ...(thought !== undefined && { explanation: thought.slice(index.paddings[source].length) }),
    ...(completion !== undefined && { completion }),
    ...Object.fromEntries(numbers.map(([name, values]) => [name, values[i]])),
    meta: meta ?? of_question.meta,
    answer: answer ?? of_question.answer,
    solution: solution ?? of_question.solution,
  };
};

let saving = false;
const saveJsonl = async () => {
  if (saving) return;
  saving = true;
  const status = $("save-status");
  const lines = [];
  let lastBreak = performance.now();
  try {
    const questions = col("question");
    const rows = [...state.shown].sort((a, b) => questions[a] - questions[b]); // so that each block is unpacked once
    for (const i of rows) {
      lines.push(`${JSON.stringify(record(i, await question(questions[i])))}\n`);
      if (performance.now() - lastBreak < 150) continue;
      status.textContent = `${Math.round(100 * lines.length / rows.length)} %`;
      await new Promise((resolve) => setTimeout(resolve));
      lastBreak = performance.now();
    }
    saveFile("traces.jsonl", "application/jsonl", lines);
    status.textContent = "";
  } catch (error) {
    status.textContent = `cannot be saved: ${error.message}`;
  } finally {
    saving = false;
  }
};
