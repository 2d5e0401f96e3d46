const largest = Math.max(1e-9, ...data.reviews.flatMap((review) => review.attributions.map(Math.abs)));

function show(review, number) {
  const words = [];
  const text = element("div", {
    class: "words", tabindex: 0, role: "group", dir: "auto",
    "aria-label": `Text ${number}: arrow keys move from word to word`,
  });
  review.pieces.forEach(([before, word], k) => {
    const made = coloured(word, review.attributions[k], largest, review.unknown[k]);
    made.position = k;
    words.push(made);
    text.append(before, made);
  });
  text.append(review.rest);

  const told = element("p", { class: "told small", "aria-live": "polite" },
    "Point at a word, or use the arrow keys, to see its attribution.");
  const [chart, mark] = draw(review, select);
  let current = -1;

  function select(k) {
    if (k < 0 || k >= words.length || k === current) return;
    if (current >= 0) words[current].classList.remove("current");
    current = k;
    words[k].classList.add("current");
    mark(k);
    told.replaceChildren(
      ...described(review.pieces[k][1], review.attributions[k], review.unknown[k], review),
      element("br"),
      `probability of ${review.target} up to here ${percent(review.forward[k])}, from here on ${percent(review.backward[k])}`,
    );
  }

  for (const event of ["pointerover", "click"]) {
    text.addEventListener(event, ({ target }) => {
      if (target.position !== undefined) select(target.position);
    });
  }
  text.addEventListener("keydown", (event) => {
    const goal = {
      ArrowRight: current + 1, ArrowLeft: Math.max(current, 1) - 1,
      Home: 0, End: words.length - 1,
    }[event.key];
    if (goal === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    select(goal);
    words[current].scrollIntoView({ block: "nearest" });
  });

  const side = element("span", { class: review.label === review.target ? "more" : "less" });
  side.style.width = `${100 * review.probability}%`;
  const sum = review.attributions.reduce((total, word) => total + word, 0);
  return element("section", { class: "review", "aria-label": `Text ${number}` },
    element("p", { class: "verdict" }, review.label,
      element("span", { class: "number" }, percent(review.probability))),
    element("div", { class: "gauge", "aria-hidden": "true" }, side),
    text, told,
    element("h2", {}, `Probability of ${review.target} as the model reads`), chart,
    element("p", { class: "keys" }, element("span", {}, "forward: up to a word"),
      element("span", {}, "backward: from a word on")),
    element("h2", {}, "Strongest words"), strongest(review),
    element("p", { class: "sum small muted" },
      `Baseline ${signed(review.baseline)} + attributions ${signed(sum)} = `,
      element("span", { class: "number" }, signed(review.baseline + sum)),
      `; the model’s log-odds of ${review.target} are ${signed(review.logit)} (residual ${signed(review.residual, 4)}, ${review.steps} integration steps).`));
}

/* The two running probabilities, and a function that marks a word. */
function draw(review, select) {
  const count = review.attributions.length;
  const steps = (values) => values.map((p, k) => `${k ? "L" : "M"}${k} ${1 - p}H${k + 1}`).join("");
  const band = element("rect", { x: 0, y: 0, width: 1, height: 1, visibility: "hidden" });
  const lines = [0, 0.5, 1].map((y) => element("line", { x1: 0, x2: count, y1: y, y2: y }));
  const chart = element("div", { class: "chart", role: "img", "aria-label": "Running probability" },
    element("svg", { viewBox: `0 0 ${count} 1`, preserveAspectRatio: "none" },
      ...lines, band,
      element("path", { class: "backward", d: steps(review.backward) }),
      element("path", { class: "forward", d: steps(review.forward) })));
  for (const share of [0, 0.5, 1]) {
    const label = element("span", {}, `${100 * share} %`);
    label.style.top = `${100 * (1 - share)}%`;
    chart.append(label);
  }
  const point = (event) => {
    const box = chart.getBoundingClientRect();
    select(Math.floor((count * (event.clientX - box.left)) / box.width));
  };
  chart.addEventListener("pointermove", point);
  chart.addEventListener("click", point);
  return [chart, (k) => {
    band.setAttribute("x", k);
    band.setAttribute("visibility", "visible");
  }];
}

function strongest(review) {
  const order = review.attributions.map((_, k) => k);
  order.sort((a, b) => Math.abs(review.attributions[b]) - Math.abs(review.attributions[a]));
  const top = Math.abs(review.attributions[order[0]]) || 1;
  return element("ol", { class: "strongest" }, ...order.slice(0, 6).map((k) => {
    const value = review.attributions[k];
    const bar = element("span", { class: value > 0 ? "more" : "less" });
    bar.style.width = `${(50 * Math.abs(value)) / top}%`;
    return element("li", {},
      element("span", { class: "name" }, review.pieces[k][1]),
      element("span", { class: "bar", "aria-hidden": "true" }, bar),
      element("span", { class: "number" }, signed(value)));
  }));
}

part("model").textContent = data.model;
part("legend").append(
  `− ${data.ends[0]}`, scale(), `+ ${data.ends[1]}`, element("span", {}, `up to ${largest.toFixed(2)} log-odds`));
part("reviews").append(...data.reviews.map((review) => show(review, review.number)));
