"use strict";
// The page's data, and which questions are shown in which order. Nothing here touches the document but the helpers.

const DATA = JSON.parse(document.getElementById("data").textContent);
const QUESTIONS = DATA.questions;
const SVG = "http://www.w3.org/2000/svg";
const byId = (id) => document.getElementById(id);

QUESTIONS.forEach((question, place) => {
  question.place = place;
  question.hash = `#${encodeURIComponent(question.video)}/${encodeURIComponent(question.id)}`;
  const said = (question.said || []).join(" ");
  question.words = `${question.video} ${question.id} ${question.text} ${question.answer} ${said}`.toLowerCase();
});

const state = {
  text: "",
  types: new Set(),
  names: new Set(),
  picturedOnly: true,
  sort: "loss",
  current: null, // the question in the details
};

const ORDERS = {
  loss: (a, b) => a.place - b.place,
  score: (a, b) => a.loss - b.loss || a.place - b.place,
  video: (a, b) => compare(a.video, b.video) || compare(a.id, b.id),
};

/** Negative, 0 or positive; numbers inside texts compare as numbers. */
function compare(a, b) {
  return a.localeCompare(b, "en", { numeric: true });
}

/** Whether a question has every word of the search and passes the filters; `without` names a filter to leave out. */
function passes(question, without) {
  if (state.picturedOnly && !question.picture) return false;
  if (without !== "types" && state.types.size && !state.types.has(question.type)) return false;
  if (without !== "names" && state.names.size && !state.names.has(question.name)) return false;
  return state.text.split(/\s+/).every((word) => question.words.includes(word));
}

/** The questions of the list, in its order. */
function shownQuestions() {
  return QUESTIONS.filter((question) => passes(question)).sort(ORDERS[state.sort]);
}

/** The question that a deep link "#video/question" names, or undefined. */
function questionOf(hash) {
  const parts = hash.slice(1).split("/");
  if (parts.length !== 2) return undefined;
  try {
    const [video, id] = parts.map(decodeURIComponent);
    return QUESTIONS.find((question) => question.video === video && question.id === id);
  } catch {
    return undefined; // a malformed escape in the address
  }
}

/** An HTML element. Texts become text nodes, so nothing in the data can be markup. */
function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** An SVG element. */
function draw(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** A number with three decimals, or a dash. */
function number(value, digits = 3) {
  return value === null || value === undefined ? "–" : value.toFixed(digits);
}
