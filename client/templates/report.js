"use strict";
// Filters, keys and opinions. What a clinician notes stays in this browser until it is saved.
const page = document.querySelector("main");
const cases = [...document.querySelectorAll(".case")];
const status = document.getElementById("status");
const store = `rarefed-feedback/${page.dataset.study}/${page.dataset.site}/${page.dataset.model}`;
const said = new Map();

function sound(one) {
  const texts = ["task", "opinion", "label", "note", "time"];
  return one && /^[0-9a-f]{32}$/.test(one.case) && texts.every((key) => typeof one[key] === "string");
}

function kept() {
  try {
    const found = JSON.parse(localStorage.getItem(store) || "[]");
    return Array.isArray(found) ? found.filter(sound) : [];
  } catch {
    return [];
  }
}

function keep() {
  try {
    localStorage.setItem(store, JSON.stringify([...said.values()]));
  } catch {
    tell("This browser keeps nothing: save before you close the page.");
  }
}

function tell(text) {
  status.textContent = text;
}

function parts(article) {
  return {
    buttons: [...article.querySelectorAll("button[data-opinion]")],
    label: article.querySelector("select"),
    note: article.querySelector("textarea"),
    spoken: article.querySelector(".spoken"),
  };
}

function show(article, one) {
  const { buttons, label, note, spoken } = parts(article);
  for (const button of buttons) {
    button.setAttribute("aria-pressed", String(one.opinion === button.dataset.opinion));
  }
  label.value = one.label;
  note.value = one.note;
  const words = [one.opinion, one.label && `should be ${one.label}`, one.note].filter(Boolean);
  spoken.textContent = words.length ? `Clinician: ${words.join("; ")}` : "";
  article.dataset.opinion = one.opinion;
}

function note(article, change) {
  const id = article.dataset.case;
  const before = said.get(id) || { case: id, task: article.dataset.task, opinion: "", label: "", note: "" };
  const one = { ...before, ...change, time: new Date().toISOString() };
  said.set(id, one);
  show(article, one);
  keep();
  count();
}

function choose(article, opinion) {
  const now = article.dataset.opinion === opinion ? "" : opinion;
  note(article, { opinion: now });
  tell(`${article.getAttribute("aria-label")}: ${now || "no opinion"}.`);
}

function count() {
  const judged = (one) => one && (one.opinion || one.label || one.note);
  const here = cases.filter((article) => judged(said.get(article.dataset.case))).length;
  document.getElementById("counted").textContent = `${here} of ${cases.length} cases have an opinion.`;
}

function save() {
  const content = {
    format: "rarefed-feedback-1",
    study: page.dataset.study,
    model: page.dataset.model,
    site: page.dataset.site,
    cases: [...said.values()],
  };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 2)], { type: "application/json" }));
  link.download = `feedback-${page.dataset.name}-${page.dataset.site}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  tell(`${content.cases.length} cases are in ${link.download}.`);
}

function fits(article, filter) {
  const { kind } = filter.dataset;
  if (!filter.value) return true;
  if (kind === "warning") {
    const found = article.dataset.places.split(" ").filter(Boolean);
    if (filter.value === "any") return found.length > 0;
    return filter.value === "none" ? !found.length : found.includes(filter.value);
  }
  if (kind === "group") return JSON.parse(article.dataset.groups).includes(filter.value);
  if (kind === "opinion") return (article.dataset.opinion || "none") === filter.value;
  return article.dataset[kind] === filter.value;
}

function filter() {
  const filters = [...document.querySelectorAll("select[data-kind]")];
  for (const article of cases) article.hidden = !filters.every((one) => fits(article, one));
  for (const block of document.querySelectorAll(".kind")) {
    block.hidden = !block.querySelector(".case:not([hidden])");
  }
  const shown = cases.filter((article) => !article.hidden).length;
  document.getElementById("shown").textContent = `${shown} of ${cases.length} cases are shown.`;
}

function step(article, by) {
  const shown = cases.filter((one) => !one.hidden);
  const next = shown[shown.indexOf(article) + by];
  if (next) next.focus();
}

const KEYS = {
  ArrowRight: (article) => step(article, 1),
  ArrowDown: (article) => step(article, 1),
  ArrowLeft: (article) => step(article, -1),
  ArrowUp: (article) => step(article, -1),
  a: (article) => choose(article, "agree"),
  d: (article) => choose(article, "disagree"),
  u: (article) => choose(article, "unsure"),
  n: (article) => parts(article).note.focus(),
};

function pressed(event) {
  const article = event.target.closest(".case");
  if (!article || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("textarea, select")) {
    if (event.key === "Escape") article.focus();
    return;
  }
  const action = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action) return;
  event.preventDefault();
  action(article);
}

function begin() {
  const stored = cases.map((article) => JSON.parse(article.dataset.stored)).filter(Boolean);
  for (const one of [...stored, ...kept()]) {
    const other = said.get(one.case);
    // Of a case that this page does not show, too: an earlier one may have, and not been saved.
    if (!other || other.time < one.time) said.set(one.case, one);
  }
  for (const article of cases) {
    const { buttons, label, note: text } = parts(article);
    for (const button of buttons) button.addEventListener("click", () => choose(article, button.dataset.opinion));
    label.addEventListener("change", () => note(article, { label: label.value }));
    text.addEventListener("input", () => note(article, { note: text.value }));
    const one = said.get(article.dataset.case);
    if (one) show(article, one);
  }
  for (const one of document.querySelectorAll("select[data-kind]")) one.addEventListener("change", filter);
  document.getElementById("save").addEventListener("click", save);
  document.addEventListener("keydown", pressed);
  for (const one of document.querySelectorAll(".controls, .opinion")) one.hidden = false;
  filter();
  count();
}

function unfold() {
  for (const one of document.querySelectorAll("details")) one.open = true;
}

addEventListener("beforeprint", unfold);
if (cases.length) begin();
