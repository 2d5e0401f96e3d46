"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const LEVELS = 8;
const part = (id) => document.getElementById(id);

/* An element with attributes and children. What is text stays text: nothing on a page
   is ever parsed as markup. */
function element(tag, attributes, ...children) {
  const svg = ["svg", "path", "rect", "line"].includes(tag);
  const made = document.createElementNS(
    svg ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml", tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/* The class that shows a value: its sign, and how large it is beside the largest. */
function shade(value, largest) {
  const level = Math.min(LEVELS, Math.round((LEVELS * Math.abs(value)) / largest));
  return level ? (value > 0 ? "more" : "less") + level : "none";
}

/* The colours from one end to the other. */
function scale() {
  const steps = element("i", { "aria-hidden": "true" });
  for (let level = -LEVELS; level <= LEVELS; level += 1) {
    steps.append(element("b", { class: shade(level, LEVELS) }));
  }
  return steps;
}

function signed(value, digits = 2) {
  return (value < 0 ? "\u2212" : "+") + Math.abs(value).toFixed(digits);
}

function percent(share) {
  const space = "\u00a0"; // a line does not end in it
  if (share > 0.999) return `>${space}99.9${space}%`;
  if (share < 0.001) return `<${space}0.1${space}%`;
  return `${(100 * share).toFixed(1)}${space}%`;
}
