"use strict";
// The list, the filters, the large view, the keyboard and the address.

const items = new Map(); // question -> its entry in the list
let shown = []; // questions of the list, in its order
const viewer = { question: null, frame: 0, timer: null };

function listItem(question) {
  const link = make("a", { class: question.picture ? "item" : "item bare", href: question.hash });
  if (question.picture) {
    const inside = question.picture.window.flatMap((flag, k) => (flag ? [k] : []));
    link.append(picture(question, inside.length ? inside[Math.floor(inside.length / 2)] : 0));
  }
  link.append(
    make("span", { class: "text" }, question.text),
    make(
      "span",
      { class: "meta" },
      make("span", { class: "badge", "data-name": question.name }, question.name),
      make("b", {}, number(question.scores[DATA.measures[0][0]])),
      make("span", {}, question.type),
    ),
  );
  link.addEventListener("click", (event) => {
    if (event.metaKey || event.ctrlKey || event.shiftKey) return;
    event.preventDefault();
    select(question, { open: true });
  });
  return make("li", {}, link);
}

/** Show the list, the counts and the chips as the filters say; keep the question in the details if it is there. */
function refresh() {
  shown = shownQuestions();
  for (const question of shown) {
    if (!items.has(question)) items.set(question, listItem(question));
  }
  byId("list").replaceChildren(...shown.map((question) => items.get(question)));
  const all = QUESTIONS.length;
  byId("count").textContent = shown.length
    ? `${shown.length} of ${all} questions`
    : `none of ${all} questions; change the filters`;
  refreshChips("types", (question) => question.type);
  refreshChips("names", (question) => question.name);
}

function refreshChips(filter, keyOf) {
  const counts = new Map();
  for (const question of QUESTIONS) {
    if (passes(question, filter)) counts.set(keyOf(question), (counts.get(keyOf(question)) || 0) + 1);
  }
  for (const button of byId(filter).children) {
    button.setAttribute("aria-pressed", state[filter].has(button.dataset.key));
    button.querySelector("i").textContent = counts.get(button.dataset.key) || 0;
  }
}

function addChips(filter, keys) {
  for (const key of keys) {
    const button = make("button", { "aria-pressed": "false", "data-key": key }, key, make("i"));
    button.addEventListener("click", () => {
      if (!state[filter].delete(key)) state[filter].add(key);
      refresh();
    });
    byId(filter).append(button);
  }
}

/** Make a question the current one. `open`: the reader chose it, so bring it into view; `quiet`: leave the address. */
function select(question, { open = false, quiet = false } = {}) {
  if (state.current) items.get(state.current)?.firstChild.removeAttribute("aria-current");
  state.current = question;
  const item = items.get(question);
  if (item) {
    item.firstChild.setAttribute("aria-current", "true");
    if (!quiet) scrollInList(item);
  }
  showDetail(question);
  if (!quiet) history.replaceState(null, "", question.hash);
  if (open) {
    document.querySelector(".gallery").classList.add("reading");
    byId("detail").scrollIntoView({ block: "start" });
  }
}

/** Bring an entry into view without moving the page. */
function scrollInList(item) {
  const list = document.querySelector(".list");
  const box = list.getBoundingClientRect();
  const place = item.getBoundingClientRect();
  if (place.top < box.top) list.scrollTop += place.top - box.top - 8;
  else if (place.bottom > box.bottom) list.scrollTop += place.bottom - box.bottom + 8;
}

function move(step) {
  if (!shown.length) return;
  const place = shown.indexOf(state.current);
  const next = place < 0 ? 0 : Math.min(Math.max(place + step, 0), shown.length - 1);
  select(shown[next], { open: true });
}

/** On a narrow screen: back to the list. */
function closeDetail() {
  const gallery = document.querySelector(".gallery");
  if (!gallery.classList.contains("reading")) return;
  gallery.classList.remove("reading");
  items.get(state.current)?.firstChild.focus();
}

/** Open what the address names, whatever the filters are. */
function followAddress() {
  const question = questionOf(location.hash);
  if (!question) return;
  if (!passes(question)) clearFilters(question);
  select(question, { open: true });
}

function clearFilters(question) {
  state.text = byId("search").value = "";
  state.types.clear();
  state.names.clear();
  state.picturedOnly = byId("pictured").checked = state.picturedOnly && Boolean(question.picture);
  refresh();
}

function toggle(layer) {
  const hidden = document.body.classList.toggle(`no-${layer}`);
  byId(`toggle-${layer}`).setAttribute("aria-pressed", String(!hidden));
}

function openViewer(question, frame) {
  viewer.question = question;
  byId("viewer").showModal();
  showFrame(frame);
}

function showFrame(frame) {
  const count = DATA.videos[viewer.question.video].index.length;
  viewer.frame = (frame + count) % count;
  const large = picture(viewer.question, viewer.frame);
  const [width, height] = DATA.videos[viewer.question.video].grid;
  large.style.width = `min(100%, ${Math.round((80 * width) / height)}vh)`;
  document.querySelector("#viewer .stage").replaceChildren(large);
  byId("viewer-note").textContent = frameFacts(viewer.question, viewer.frame).text;
}

function play(start) {
  clearInterval(viewer.timer);
  viewer.timer = start ? setInterval(() => showFrame(viewer.frame + 1), 300) : null;
  byId("play").textContent = start ? "Pause" : "Play";
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const field = event.target.closest("input, select");
  if (event.key === "Escape") {
    if (field) field.blur();
    else if (!document.querySelector("dialog[open]")) closeDetail();
    return;
  }
  if (field && field.type !== "checkbox") return;
  const large = byId("viewer").open;
  const step = (amount) => (large ? showFrame(viewer.frame + amount) : move(amount));
  const keys = {
    j: () => step(1),
    k: () => step(-1),
    ArrowRight: () => step(1),
    ArrowLeft: () => step(-1),
    g: () => toggle("truth"),
    p: () => toggle("prediction"),
    f: () => toggle("frame"),
    "/": () => byId("search").focus(),
    "?": () => byId("help").showModal(),
    v: () => state.current?.picture && openViewer(state.current, Math.max(0, state.current.picture.window.indexOf(1))),
  };
  if (large) keys[" "] = () => play(!viewer.timer);
  const blocked = byId("help").open || (large && ["/", "?", "v"].includes(event.key));
  if (!(event.key in keys) || blocked) return;
  event.preventDefault();
  keys[event.key]();
}

/** The list's own arrows: up and down move while the focus is in it. */
function onListKey(event) {
  const steps = { ArrowDown: 1, ArrowUp: -1 };
  if (!(event.key in steps)) return;
  event.preventDefault();
  const place = shown.findIndex((question) => items.get(question).contains(document.activeElement));
  const next = shown[Math.min(Math.max(place + steps[event.key], 0), shown.length - 1)];
  items.get(next).firstChild.focus();
  select(next);
}

function start() {
  addChips("types", [...new Set(QUESTIONS.map((question) => question.type))].sort(compare));
  const named = new Set(QUESTIONS.map((question) => question.name));
  addChips("names", DATA.names.filter((name) => named.has(name)));
  byId("only-pictures").hidden = QUESTIONS.every((question) => question.picture);
  if (!QUESTIONS.some((question) => question.picture)) state.picturedOnly = byId("pictured").checked = false;
  byId("search").addEventListener("input", (event) => {
    state.text = event.target.value.trim().toLowerCase();
    refresh();
  });
  byId("sort").addEventListener("change", (event) => {
    state.sort = event.target.value;
    refresh();
  });
  byId("pictured").addEventListener("change", (event) => {
    state.picturedOnly = event.target.checked;
    refresh();
  });
  for (const layer of ["truth", "prediction", "frame"]) {
    byId(`toggle-${layer}`).addEventListener("click", () => toggle(layer));
  }
  for (const button of document.querySelectorAll(".failures button")) {
    button.addEventListener("click", () => {
      state.names = new Set([button.dataset.name]);
      if (!shownQuestions().length) state.picturedOnly = byId("pictured").checked = false;
      refresh();
      byId("questions").scrollIntoView();
    });
  }
  for (const button of document.querySelectorAll("#viewer [data-step]")) {
    button.addEventListener("click", () => showFrame(viewer.frame + Number(button.dataset.step)));
  }
  byId("play").addEventListener("click", () => play(!viewer.timer));
  byId("close-viewer").addEventListener("click", () => byId("viewer").close());
  byId("viewer").addEventListener("close", () => play(false));
  byId("open-help").addEventListener("click", () => byId("help").showModal());
  byId("close-help").addEventListener("click", () => byId("help").close());
  // What sticks below the bar must know its height, which depends on how its buttons wrap.
  const bar = document.querySelector(".gallery > .bar");
  const measure = () => document.body.style.setProperty("--bar-height", `${bar.offsetHeight}px`);
  new ResizeObserver(measure).observe(bar);
  measure();
  byId("list").addEventListener("keydown", onListKey);
  document.addEventListener("keydown", onKey);
  window.addEventListener("hashchange", followAddress);
  refresh();
  if (questionOf(location.hash)) followAddress();
  else if (shown.length) select(shown[0], { quiet: true });
}

start();
