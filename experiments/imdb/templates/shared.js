/* A word in the colour of its attribution. */
function coloured(word, value, largest, unknown) {
  return element("span", { class: `${shade(value, largest)} word${unknown ? " unknown" : ""}` }, word);
}

/* What is said of a word: its attribution to the class `target` against `against`. */
function described(word, value, unknown, { target, against }) {
  return [
    element("strong", {}, word), unknown ? " (unknown to the model) " : " ",
    element("span", { class: "number" }, signed(value)), " ",
    [`towards ${against}`, "no attribution", `towards ${target}`][Math.sign(value) + 1],
  ];
}
