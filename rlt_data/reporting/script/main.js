// Theme and parts of the page

const root = document.documentElement;
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
  const hash = routed.slice(1);
  const traces = hash.startsWith("traces") || hash.startsWith("trace=");
  $("view-overview").hidden = traces;
  $("view-traces").hidden = !traces;
  for (const name of ["overview", "traces"]) {
    if ((name === "traces") === traces) $(`tab-${name}`).setAttribute("aria-current", "page");
    else $(`tab-${name}`).removeAttribute("aria-current");
  }
  const key = hash.startsWith("trace=") ? hash.slice(6) : null; // hexadecimal digits, which no address encodes
  if (traces) draw();
  if (key) openTrace(key);
  else close();
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
  c: () => { if (state.current && inTraces()) setMode(modes()[(modes().indexOf(mode()) + 1) % modes().length]); },
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

// The beginning

loadIndex().then(() => {
  root.dataset.ready = "yes"; // for those who wait for the page
  routed = null;
  route();
}, (error) => $("view-overview").prepend(make("p", "note warn", `The traces cannot be shown: ${error.message}`)));
route();
if (head.live) fetched("live").then(showLive).finally(follow);
