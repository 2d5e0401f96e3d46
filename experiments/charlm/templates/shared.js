/* A token whose characters can be seen: control characters have pictures, and what
   stands for a byte is spelled as one. */
function visible(token) {
  return [...token].map(visibleCharacter).join("");
}

function visibleCharacter(character) {
  const code = character.codePointAt(0);
  if (character === "\n") return "\u21b5";
  if (character === " ") return "\u2423";
  if (code < 0x20) return String.fromCodePoint(0x2400 + code);
  if (code === 0x7f) return "\u2421";
  if (code >= 0x80 && (data.bytes || code < 0xa0)) return "\\x" + code.toString(16);
  return character;
}

/* The same in a text, where a space is one and a line ends. */
function shown(token) {
  return [...token].map((c) => (c === "\n" ? "\u21b5\n" : c === " " ? " " : visibleCharacter(c))).join("");
}

/* A line for each character and its probability; that of `own` is marked, and `note`
   says why. */
function candidates(rows, own, note) {
  return rows.map(([character, share]) => {
    const bar = element("span", {});
    bar.style.width = `${100 * share}%`;
    const mark = character === own ? { class: "true", "aria-label": `${visible(character)} ${percent(share)}, ${note}` } : {};
    return element("li", mark,
      element("code", {}, visible(character)),
      element("span", { class: "bar", "aria-hidden": "true" }, bar),
      element("span", { class: "number" }, percent(share)));
  });
}
