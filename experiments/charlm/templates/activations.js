const bytes = (packed) => Uint8Array.from(atob(packed), (c) => c.charCodeAt(0)).buffer;
const values = new Int8Array(bytes(data.values));
const likeliest = new Uint32Array(bytes(data.likeliest));
const probabilities = new Uint16Array(bytes(data.probabilities));
const following = new Uint16Array(bytes(data.following));
const count = data.characters.length;
const likely = likeliest.length / count;


const characters = data.characters.map((character, k) => {
  const made = element("span", {}, shown(character));
  made.position = k;
  return made;
});
part("text").append(...characters);

let unit = 0;
let place = 0;

function value(k) {
  return values[unit * count + k] / 127;
}

function paint(k) {
  const line = data.characters[k] === "\n" ? " line" : "";
  characters[k].className = shade(value(k), 1) + line + (k === place ? " current" : "");
}

function choose(wanted) {
  unit = Math.min(Math.max(wanted, 0), data.units.length - 1);
  for (let k = 0; k < count; k += 1) paint(k);
  const { layer, unit: number } = data.units[unit];
  part("unit").replaceChildren(
    element("strong", {}, `Unit ${number} of layer ${layer}`), element("br"),
    element("span", { class: "muted small" }, `rank ${unit + 1} of ${data.units.length}`));
  part("slider").value = unit + 1;
  part("slider").setAttribute("aria-valuetext", `rank ${unit + 1}, unit ${number} of layer ${layer}`);
  part("before").disabled = unit === 0;
  part("after").disabled = unit === data.units.length - 1;
  tell();
}

function move(wanted) {
  const left = place;
  place = Math.min(Math.max(wanted, 0), count - 1);
  paint(left);
  paint(place);
  tell();
}

/* Show the predictions after the current character, and the one that follows. */
function tell() {
  const before = data.characters.slice(Math.max(0, place - 12), place).map(visible).join("");
  part("context").replaceChildren(
    "After ", element("code", {}, before, element("b", {}, visible(data.characters[place]))),
    ` (${signed(value(place))}) comes`);
  const rows = [];
  for (let k = 0; k < likely; k += 1) {
    const at = place * likely + k;
    rows.push([data.vocabulary[likeliest[at]], probabilities[at] / 65535]);
  }
  const next = data.tokens[place + 1];
  const others = rows.every(([character]) => character !== next);
  if (next !== undefined && others) rows.push([next, following[place] / 65535]);
  part("next").replaceChildren(...candidates(rows, next, "as in the text"));
}

part("before").addEventListener("click", () => choose(unit - 1));
part("after").addEventListener("click", () => choose(unit + 1));
part("slider").addEventListener("input", ({ target }) => choose(target.value - 1));
for (const event of ["pointerover", "click"]) {
  part("text").addEventListener(event, ({ target }) => {
    if (target.position !== undefined) move(target.position);
  });
}
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  // On the slider these keys are about units.
  const far = event.target !== part("slider") && { PageUp: -80, PageDown: 80, Home: -count, End: count }[event.key];
  if (!step && !far) return;
  event.preventDefault();
  if (step && !event.shiftKey) return choose(unit + step);
  move(place + (step || far));
  characters[place].scrollIntoView({ block: "center" });
});

part("model").textContent = data.model;
part("legend").append("\u22121", scale(), "+1");
part("slider").max = data.units.length;
part("ranking").textContent =
  `Shown are ${data.units.length} of ${data.of.toLocaleString("en")} units, by this score: ` +
  "from each activation the mean over all positions with the same character is subtracted, so that the residual depends on earlier characters; " +
  `the score is the mean of the residual times the residual ${data.lag} characters later (an autocovariance). ` +
  "It is large for a unit that varies a lot, and slowly.";
choose(0);
