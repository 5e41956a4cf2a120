"use strict";
// One question: what was asked and said, its scores, the timeline and the frames.

/** Facts about the k-th thumbnail of a question, for its caption and for those who cannot see it. */
function frameFacts(question, k) {
  const video = DATA.videos[question.video];
  const index = video.index[k];
  const facts = { index, window: Boolean(question.picture.window[k]), emptied: false, J: null, loc: null };
  if (question.frames) {
    const place = question.frames.index.indexOf(index);
    facts.J = question.frames.J[place];
    facts.loc = question.frames.loc ? question.frames.loc[place] : null;
    facts.emptied = Boolean(question.frames.shown[place] && !question.frames.kept[place]);
  }
  const parts = [`frame ${index}`, facts.window ? "in the window" : "outside the window"];
  if (facts.J !== null) parts.push(`J ${number(facts.J, 2)}`);
  if (facts.loc !== null) parts.push(`[LOC] ${number(facts.loc, 2)}`);
  if (facts.emptied) parts.push("emptied by [LOC]");
  facts.text = parts.join(", ");
  return facts;
}

/** A frame with outlines, as wide as its place. */
function picture(question, k) {
  const video = DATA.videos[question.video];
  const [width, height] = video.grid;
  const box = make("span", { class: video.sharp ? "picture sharp" : "picture" });
  box.style.aspectRatio = `${width} / ${height}`;
  if (video.images[k] === null) box.append(make("span", { class: "lost" }, "this frame cannot be read"));
  else box.append(make("img", { src: `data:image/webp;base64,${video.images[k]}`, alt: "", decoding: "async" }));
  box.append(overlay(question, k, width, height));
  return box;
}

function overlay(question, k, width, height) {
  const { truth, masks, points, window } = question.picture;
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  const emptied = frameFacts(question, k).emptied ? " emptied" : "";
  if (masks && masks[k]) svg.append(draw("path", { class: `pred${emptied}`, d: masks[k] }));
  if (truth && truth[k]) {
    const outside = window[k] ? "" : " outside";
    svg.append(draw("path", { class: `truth-back${outside}`, d: truth[k] }));
    svg.append(draw("path", { class: `truth${outside}`, d: truth[k] }));
  }
  const [rows, columns] = DATA.videos[question.video].size;
  for (const [x, y] of points ? points[k] : []) {
    svg.append(draw("circle", { class: "pred point", cx: (x / columns) * width, cy: (y / rows) * height, r: width / 60 }));
  }
  return svg;
}

function frameCell(question, k) {
  const facts = frameFacts(question, k);
  const loc = facts.loc === null ? "" : `LOC ${number(facts.loc, 2)}`;
  const cell = make(
    "button",
    { class: "cell", "aria-label": `${facts.text}; enlarge`, "data-frame": k },
    picture(question, k),
    make("span", { class: facts.window ? "foot window" : "foot" }),
    make(
      "span",
      { class: "caption" },
      make("span", {}, `#${facts.index}`),
      make("span", {}, loc),
      make("span", {}, facts.J === null ? "" : `J ${number(facts.J, 2)}`),
    ),
  );
  cell.addEventListener("click", () => openViewer(question, k));
  return cell;
}

/** The [LOC] curve over the true window, what is true and what is shown on each frame, and J. */
function timeline(question) {
  const frames = question.frames;
  const count = frames.index.length;
  const box = make("div", { class: "timeline", role: "img", "aria-label": timelineText(question) });
  const lane = (name, height, label, ...shapes) => {
    const svg = draw("svg", { class: name, viewBox: `0 0 ${count} ${height}`, preserveAspectRatio: "none" });
    frames.window.forEach((inside, k) => {
      if (inside) svg.append(draw("rect", { class: "shade", x: k, width: 1, height }));
    });
    svg.append(draw("rect", { class: "now", x: -2, width: 1, height }), ...shapes);
    box.append(typeof label === "string" ? make("span", { class: "label" }, label) : label, svg);
  };
  const columns = (test, height = 1) => {
    const shapes = [];
    for (let k = 0; k < count; k += 1) {
      const kind = test(k);
      if (kind) shapes.push(draw("rect", { class: kind, x: k + 0.04, y: 0, width: 0.92, height }));
    }
    return shapes;
  };
  if (frames.loc) {
    const y = (value) => (1 - value) * 92 + 4;
    const points = frames.loc.map((value, k) => `${k + 0.5} ${y(value).toFixed(2)}`);
    const scale = make("span", { class: "label scale" });
    scale.append(make("span", {}, "1"), make("span", {}, `[LOC] ≥ ${DATA.threshold}`), make("span", {}, "0"));
    lane(
      "curve",
      100,
      scale,
      draw("path", { class: "threshold", d: `M0 ${y(DATA.threshold)}H${count}` }),
      draw("path", { class: "probability", d: `M${points.join("L")}` }),
      draw("path", { class: "dots", d: points.map((point) => `M${point}h0`).join("") }),
    );
  }
  lane("lane", 1, "truth", ...columns((k) => frames.visible[k] && (frames.window[k] ? "yes" : "faint")));
  lane("lane", 1, "shown", ...columns((k) => frames.shown[k] && (frames.kept[k] ? "mask" : "gone")));
  const bars = frames.J.map((value, k) =>
    draw("rect", { class: "height", x: k + 0.04, y: 1 - value, width: 0.92, height: value }),
  );
  lane("jaccard", 1, "J", ...bars);
  return box;
}

function timelineText(question) {
  const { window, shown, kept, loc } = question.frames;
  const total = (flags) => flags.filter(Boolean).length;
  const active = shown.map((value, k) => value && kept[k]);
  const curve = loc ? `, [LOC] from ${number(Math.min(...loc), 2)} to ${number(Math.max(...loc), 2)}` : "";
  return `Timeline: ${total(window)} of ${window.length} frames in the window, a mask on ${total(active)}${curve}`;
}

function scoreList(question) {
  const items = DATA.measures.map(([key, label, format]) => {
    const value = question.scores[key];
    if (format === "?" && typeof value !== "number") return null;
    return make("li", {}, make("b", {}, format === "?" ? (value ? "yes" : "no") : number(value)), label);
  });
  return make("ul", { class: "scores" }, ...items);
}

/** A bar of what was lost to timing and to masks. */
function lossBar(question) {
  const svg = draw("svg", { viewBox: "0 0 1 1", preserveAspectRatio: "none", "aria-hidden": "true" });
  const line = make("p", { class: "loss" }, make("span", {}, `lost ${number(question.loss)}`), svg);
  if (question.name === "failed" || !DATA.timed) {
    svg.append(draw("rect", { class: "rest", width: question.loss, height: 1 }));
    if (question.name === "failed") line.append(make("span", {}, "no prediction"));
    return line;
  }
  const timing = Math.min(Math.max(question.timing, 0), question.loss);
  svg.append(draw("rect", { class: "timing", width: timing, height: 1 }));
  svg.append(draw("rect", { class: "masks", x: timing, width: question.loss - timing, height: 1 }));
  for (const part of ["timing", "masks"]) {
    line.append(make("span", {}, make("i", { class: part }), `${part} ${number(question[part])}`));
  }
  return line;
}

function dialogue(question) {
  const list = make("dl", { class: "dialogue" });
  list.append(make("dt", {}, "answer"), make("dd", {}, question.answer || "(unnamed object)"));
  if (question.said) {
    const forced = question.forced.map((token) => `[${token.toUpperCase()}] appended`).join(", ");
    const said = make("dd", { class: "said" }, question.said.join(" / "));
    if (forced) said.append(make("small", {}, ` (${forced})`));
    list.append(make("dt", {}, "model"), said);
  }
  list.append(make("dt", {}, question.name === "failed" ? "reason" : "verdict"), make("dd", {}, question.why));
  return list;
}

/** Everything about a question, in place of what the details showed before. */
function showDetail(question) {
  const detail = byId("detail");
  const back = make("button", { class: "back" }, "← all questions");
  back.addEventListener("click", closeDetail);
  const span = question.span ? `window: frames ${question.span[0]}–${question.span[1]}` : "";
  const total = question.picture ? ` of ${DATA.videos[question.video].total}` : "";
  detail.replaceChildren(
    make(
      "div",
      { class: "where" },
      back,
      make("span", { class: "badge", "data-name": question.name }, question.name),
      make("span", {}, question.type),
      make("a", { href: question.hash, title: "link to this question" }, `${question.video} / ${question.id}`),
      make("span", {}, span + (span ? total : "")),
    ),
    make("h3", {}, question.text),
    dialogue(question),
    scoreList(question),
    lossBar(question),
  );
  if (question.frames) detail.append(timeline(question));
  if (question.picture) {
    const cells = DATA.videos[question.video].index.map((_, k) => frameCell(question, k));
    detail.append(make("div", { class: "frames" }, ...cells));
  } else {
    const command = `python -m evaluation.report.page … --video ${question.video} --question ${question.id}`;
    const note = make("p", { class: "bare-note" }, "This page holds no frames of this question; remake it with ");
    note.append(make("code", {}, command));
    detail.append(note);
  }
}
