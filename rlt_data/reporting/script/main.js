// Theme and views

const root = document.documentElement;
const dark = matchMedia("(prefers-color-scheme: dark)");
const applyTheme = () => { root.dataset.theme = remembered("rlt-theme") || (dark.matches ? "dark" : "light"); };
applyTheme();
dark.addEventListener("change", applyTheme);
const toggleTheme = () => {
  root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
  remember("rlt-theme", root.dataset.theme);
};

let routed = null;
const go = (hash) => { // synchronous, so that the next key acts on the new view
  location.hash = hash;
  route();
};
const route = () => {
  if (routed === location.hash) return;
  routed = location.hash;
  const hash = routed.slice(1);
  const traces = hash.startsWith("traces") || hash.startsWith("trace=");
  $("view-overview").hidden = traces;
  $("view-traces").hidden = !traces;
  for (const name of ["overview", "traces"]) {
    if ((name === "traces") === traces) $(`tab-${name}`).setAttribute("aria-current", "page");
    else $(`tab-${name}`).removeAttribute("aria-current");
  }
  const key = hash.startsWith("trace=") ? hash.slice(6) : null; // hexadecimal, so never percent-encoded
  if (traces) draw();
  if (key) openTrace(key);
  else close();
};

// Pointer and keyboard

const tip = $("tip");
// The tooltip shows the values of the token or the meaning of the term under the pointer, else of the term with the focus.
let tipOf = null;
const showTip = (target) => {
  const token = target.token;
  const focused = document.activeElement.matches("[data-meaning]:focus-visible") ? document.activeElement : null;
  const explained = token ? null : target.closest?.("[data-meaning]") ?? focused;
  tipOf = token ? target : explained;
  tip.hidden = !tipOf;
  if (tip.hidden) return;
  if (explained) tip.textContent = explained.dataset.meaning;
  else {
    tip.replaceChildren(make("code", "", visible(JSON.stringify(token.piece).slice(0, 200))));
    for (const [name, value] of token.values) tip.append(make("div", "", `${name} ${value === null ? "–" : (value / 100).toFixed(2)}`));
  }
  const box = tipOf.getBoundingClientRect();
  if (box.bottom < 0 || box.top > innerHeight) tip.hidden = true;
  tip.style.left = `${Math.max(4, Math.min(box.left, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${box.bottom + tip.offsetHeight + 10 > innerHeight ? box.top - tip.offsetHeight - 6 : box.bottom + 6}px`;
};
document.addEventListener("mouseover", (event) => showTip(event.target));
document.addEventListener("focusin", (event) => { if (event.target.dataset.meaning) showTip(event.target); });
document.addEventListener("focusout", (event) => { if (event.target.dataset.meaning) tip.hidden = true; });
document.addEventListener("pointerdown", (event) => { if (event.pointerType !== "mouse") showTip(event.target); });
document.addEventListener("scroll", () => { // also happens when the focus moves to a term out of sight
  if (tipOf?.matches(":hover, :focus")) showTip(tipOf);
  else tip.hidden = true;
}, { capture: true, passive: true });

const inTraces = () => !$("view-traces").hidden;
const keys = {
  "/": () => { if (!inTraces()) go("traces"); $("search").focus(); },
  o: () => go("overview"),
  t: () => { go("traces"); $("list").focus(); },
  j: () => step(1), ArrowDown: () => step(1), k: () => step(-1), ArrowUp: () => step(-1),
  Enter: () => { if (inTraces() && state.selected >= 0) go(`trace=${at("trace_id", state.selected)}`); },
  "]": () => { if (inTraces()) walk(1); },
  "[": () => { if (inTraces()) walk(-1); },
  c: () => { if (state.current && inTraces()) setMode(modes()[(modes().indexOf(mode()) + 1) % modes().length]); },
  s: () => { if (state.current && inTraces()) toggleLayout(); },
  w: () => {
    const buttons = $("detail").querySelectorAll(".worst button");
    if (buttons.length) buttons[view.worst++ % buttons.length].click();
  },
  y: () => $("detail").querySelector(".trace.chosen .copy")?.click(),
  d: toggleTheme,
  "?": () => $("help").showModal(),
  Escape: () => {
    if (location.hash.startsWith("#trace=")) { go("traces"); $("list").focus(); }
  },
};
const step = (by) => {
  if (!inTraces()) return;
  $("list").focus(); // so that Enter opens the trace instead of activating a link or button that has the focus
  selectAt(positionOf(state.selected) + by);
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  if (typing && event.key !== "Escape") {
    if (event.target === $("search") && (event.key === "Enter" || event.key === "ArrowDown")) $("list").focus();
    if (event.target === $("search") && event.key === "Enter") event.preventDefault();
    return;
  }
  if (typing) { event.target.blur(); $("list").focus(); return; }
  const activates = event.key === "Enter" && /^(BUTTON|A|SUMMARY)$/.test(event.target.tagName);
  const scrolls = event.key.startsWith("Arrow") && $("detail").contains(event.target);
  if (keys[event.key] && !activates && !scrolls) {
    if (event.key.startsWith("Arrow") && !inTraces()) return;
    event.preventDefault();
    keys[event.key]();
  }
});

let searchTimer = 0;
$("search").addEventListener("input", () => { clearTimeout(searchTimer); searchTimer = setTimeout(search, 120); });
for (const id of ["kind", "bucket", "source", "term", "low", "high"]) $(id).addEventListener("input", applyFilters);
$("sort").addEventListener("input", () => { state.descending = !["question", "rank", "order"].includes($("sort").value); applyFilters(); });
$("direction").addEventListener("click", () => { state.descending = !state.descending; applyFilters(); });
$("filters").addEventListener("submit", (event) => event.preventDefault());
$("filters").addEventListener("reset", () => setTimeout(() => { state.descending = false; search(); }));
$("save-jsonl").addEventListener("click", saveJsonl);
$("save-ids").addEventListener("click", saveIds);
$("list").addEventListener("scroll", draw, { passive: true });
new ResizeObserver(draw).observe($("list"));
$("theme").addEventListener("click", toggleTheme);
$("help-button").addEventListener("click", () => $("help").showModal());
addEventListener("hashchange", route);

// Live page

const duration = (seconds) => seconds < 90 ? `${Math.round(seconds)} s` : seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
const showProgress = (progress) => {
  const steps = progress.steps.map((step) => {
    const node = make("div", "step");
    const bar = make("progress");
    bar.max = step.total || 1;
    bar.value = step.done;
    bar.setAttribute("aria-label", step.step);
    const parts = [`${count(step.done)} of ${count(step.total)}`];
    if (step.failed) parts.push(`${step.failed} failed`);
    if (step.tokens_per_second) parts.push(`${count(Math.round(step.tokens_per_second))} tokens/s`);
    if (step.seconds_left !== null) parts.push(`${duration(step.seconds_left)} left`);
    parts.push(step.state);
    node.append(make("b", "", step.step), bar, make("span", "", parts.join(" · ")));
    return node;
  });
  const newest = make("ul");
  newest.setAttribute("aria-label", "Newest traces");
  for (const trace of progress.newest) {
    const link = make("a", "", visible(trace.text));
    link.href = `#trace=${encodeURIComponent(trace.trace_id)}`;
    const item = make("li");
    item.append(link);
    newest.append(item);
  }
  $("live").replaceChildren(...steps, newest);
};
const follow = async () => {
  let stamp = head.stamp;
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, 2000));
    if (document.hidden) continue;
    try {
      const progress = await fetchJson("live");
      showProgress(progress);
      if (progress.stamp !== (inTraces() ? index.stamp : stamp)) {
        // The server recomputes costly answers only now and then, so they may have an older stamp.
        if (inTraces()) {
          await loadIndex();
        } else {
          const answer = await fetch("overview");
          const newStamp = answer.headers.get("X-Stamp");
          if (answer.ok && newStamp !== stamp) {
            stamp = newStamp;
            const glossaryOpen = $("glossary")?.open;
            $("view-overview").innerHTML = await answer.text(); // escaped by the server
            $("glossary").open = glossaryOpen;
          }
        }
      }
    } catch (error) {
      $("live").replaceChildren(make("p", "note warn", `No answer from the server (${error.message}); retrying.`));
    }
  }
};

// Start

loadIndex().then(() => {
  root.dataset.ready = "yes"; // for tests and tools that wait for the page
  routed = null;
  route();
}, (error) => $("view-overview").prepend(make("p", "note warn", `The traces cannot be loaded: ${error.message}`)));
route();
if (head.live) fetchJson("live").then(showProgress).finally(follow);
