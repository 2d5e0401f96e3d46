const PAUSE = 150; // milliseconds without typing before the server is asked

let asking = null; // what stops the last questions
let timer = 0;

async function ask(path, text, signal) {
  const answer = await fetch(path, {
    method: "POST", signal, body: JSON.stringify({ text }),
    headers: { "Content-Type": "application/json" },
  });
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error);
  return found;
}

/* The label, or all that the text has where it may have several; the bar is the likeliest. */
function tellVerdict({ label, labels, probability, probabilities }) {
  if (labels) {
    part("label").textContent = labels.join(", ") || "no label";
    part("probability").textContent = labels.map((name) => percent(probabilities[name])).join(", ");
  } else {
    part("label").textContent = label;
    part("probability").textContent = percent(probability);
  }
  const first = !labels && data.classes.length === 2 && label === data.classes[0];
  part("share").className = first ? "less" : "more";
  part("share").style.width = `${100 * probability}%`;
}

function tellNothing(message) {
  part("label").textContent = "";
  part("probability").textContent = "";
  part("share").style.width = "0";
  part("words").replaceChildren();
  part("legend").replaceChildren();
  part("told").textContent = message;
}

function tellWords(found) {
  const largest = Math.max(1e-9, ...found.attributions.map(Math.abs));
  const children = found.pieces.flatMap(([before, word], k) => {
    const value = found.attributions[k];
    const unknown = found.unknown_words[k];
    const made = coloured(word, value, largest, unknown);
    made.told = described(word, value, unknown, found);
    return [before, made];
  });
  part("words").replaceChildren(...children, found.rest);
  part("words").classList.remove("old");
  part("told").textContent = "Point at a word to see its attribution.";
  part("legend").replaceChildren(`\u2212 ${found.against}`, scale(), `+ ${found.target}`,
    element("span", {}, `up to ${largest.toFixed(2)} log-odds`));
}

/* The verdict first: the words take longer. */
async function classify() {
  if (asking) asking.abort();
  const text = part("text").value;
  if (!text.trim()) return tellNothing("Type a text: label and word colours follow.");
  const stop = new AbortController();
  asking = stop;
  part("words").classList.add("old");
  try {
    tellVerdict(await ask("classify", text, stop.signal));
    tellWords(await ask("explain", text, stop.signal));
  } catch (error) {
    if (!stop.signal.aborted) tellNothing(error.message);
  }
}

part("text").addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(classify, PAUSE);
});
for (const event of ["pointerover", "click"]) {
  part("words").addEventListener(event, ({ target }) => {
    if (target.told) part("told").replaceChildren(...target.told);
  });
}
part("model").textContent = data.model;
part("text").maxLength = data.limits.characters;
