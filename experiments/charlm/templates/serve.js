const SURPRISE = 8; // bits of the darkest colour

/* Name, label, smallest, largest, step and first value of each slider. */
const SLIDERS = [
  ["temperature", "Temperature", 0, 2, 0.05, 0.5],
  ["temperature2", "Second temperature", 0, 2, 0.05, 1],
  ["top_p", "Top-p", 0.05, 1, 0.05, 1],
  ["min_p", "Min-p", 0, 0.5, 0.01, 0],
  ["seed", "Seed", 0, 999, 1, 0],
  ["length", data.units[0].toUpperCase() + data.units.slice(1), 50, data.limits.length, 50, 400],
];
for (const [name, label, min, max, step, value] of SLIDERS) {
  const input = element("input", { type: "range", id: name, min, max, step, value });
  const shown = element("output", { for: name }, input.value);
  input.addEventListener("input", () => { shown.textContent = input.value; });
  part("sliders").append(element("label", {}, element("span", {}, label), shown, input));
}
const setting = (name) => Number(part(name).value);


let current = null;
let running = null; // what stops the texts being written

function makePane(temperature, prompt) {
  const text = element("div", {
    class: "text", tabindex: 0, role: "group", dir: "auto",
    "aria-label": `Text at temperature ${temperature}: arrow keys move from character to character`,
  }, element("span", { class: "given" }, prompt));
  const pane = element("section", { class: "pane" }, element("h2", {}, `Temperature ${temperature}`), text);
  const drawn = [];
  for (const event of ["pointerover", "click"]) {
    text.addEventListener(event, ({ target }) => { if (target.alternatives) tell(target); });
  }
  text.addEventListener("keydown", (event) => {
    const at = drawn.indexOf(current);
    const goal = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: drawn.length - 1 }[event.key];
    if (goal === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    if (!drawn[goal]) return;
    tell(drawn[goal]);
    drawn[goal].scrollIntoView({ block: "nearest" });
  });
  const add = ({ text: more, words, probabilities, alternatives }) => {
    const spans = (words || [...more]).map((written, k) => {
      const character = words ? word(written) : written;
      const bits = -Math.log2(Math.max(probabilities[k], 1e-4));
      const line = written === "\n" ? " line" : "";
      const made = element("span", { class: `${shade(-bits, SURPRISE)} drawn${line}` }, shown(written));
      Object.assign(made, { character, probability: probabilities[k], alternatives: alternatives[k] });
      return made;
    });
    drawn.push(...spans);
    text.append(...spans);
  };
  return [pane, add];
}

/* The word of the vocabulary that was written, with a space before it or as a line's end. */
function word(written) {
  return written === "\n" ? "<eos>" : written.replace(/^ /, "");
}

/* Show what else could stand in the place of a character. */
function tell(chosen) {
  if (current) current.classList.remove("current");
  current = chosen;
  current.classList.add("current");
  part("context").replaceChildren("In the place of ", element("code", {}, visible(chosen.character)));
  const rows = [...chosen.alternatives];
  if (rows.every(([character]) => character !== chosen.character)) {
    rows.push([chosen.character, chosen.probability]);
  }
  part("next").replaceChildren(...candidates(rows, chosen.character, "as written"));
}

/* Ask for a text, and add it to a pane as it comes. */
async function stream(body, add, signal) {
  const answer = await fetch("generate", {
    method: "POST", signal, body: JSON.stringify(body),
    headers: { "Content-Type": "application/json" },
  });
  if (!answer.ok) throw new Error((await answer.json()).error);
  const decoder = new TextDecoder();
  const reader = answer.body.getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (rest + decoder.decode(value, { stream: true })).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const [line, name] = event.split("\n").reverse();
      const told = JSON.parse(line.slice("data: ".length));
      if (name === "event: error") throw new Error(told.error);
      if (!name) add(told);
    }
  }
}

async function write() {
  if (running) running.abort();
  const stop = new AbortController();
  running = stop;
  current = null;
  const names = part("both").checked ? ["temperature", "temperature2"] : ["temperature"];
  const prompt = part("prompt").value;
  const options = { alternatives: data.limits.alternatives, stream: true, prompt };
  for (const name of ["top_p", "min_p", "seed", "length"]) options[name] = setting(name);
  const panes = names.map((name) => [setting(name), ...makePane(setting(name), prompt)]);
  part("panes").replaceChildren(...panes.map(([, pane]) => pane));
  part("stop").disabled = false;
  part("told").textContent = "writing\u2026";
  let told = "";
  try {
    await Promise.all(panes.map(([temperature, , add]) => stream({ ...options, temperature }, add, stop.signal)));
  } catch (error) {
    told = stop.signal.aborted ? "stopped" : error.message;
    stop.abort();
  }
  if (running !== stop) return; // another text is being written
  running = null;
  part("stop").disabled = true;
  part("told").textContent = told;
}

part("form").addEventListener("submit", (event) => { event.preventDefault(); write(); });
part("stop").addEventListener("click", () => running && running.abort());
part("both").addEventListener("change", ({ target }) => {
  part("temperature2").disabled = !target.checked;
});
part("model").textContent = data.model;
part("prompt").maxLength = data.limits.prompt;
part("prompt").placeholder = `empty: ${data.beginning === "\n" ? "the beginning of a line" : `after ${visible(data.beginning)}`}`;
const steps = element("i", { "aria-hidden": "true" });
for (let level = 0; level <= LEVELS; level += 1) steps.append(element("b", { class: shade(-level, LEVELS) }));
part("legend").append("likely", steps, `1 in ${2 ** SURPRISE}`);
