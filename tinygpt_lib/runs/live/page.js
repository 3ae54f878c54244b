"use strict";
// The page of a model: what it reads, what it thinks comes next, where it looks, and what
// each of its layers would say. All text is set as text, never as HTML.

const $ = (id) => document.getElementById(id);

/** An element with attributes and children; a child that is text stays text. */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const SIGNS = { " ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍" };
/** A token as one can see it: no space without a sign, nothing that acts on the text. */
const visible = (text) =>
  text.replace(/[\p{C}\p{Z}]/gu, (c) => SIGNS[c] ?? "\\u{" + c.codePointAt(0).toString(16) + "}");
const percent = (share) =>
  share > 0 && share < 0.0005 ? "<0.1%" : (100 * share).toFixed(share < 0.0995 ? 1 : 0) + "%";

/** The models of the file, each with its numbers: {name: {shape, data}}. */
function unpacked(models, text) {
  const bytes = Uint8Array.fromBase64?.(text) ?? Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  // Doubles are a fourth faster, as JavaScript reckons with nothing else; but twice as many bytes.
  const Numbers = bytes.length < 80e6 ? Float64Array : Float32Array;
  const half = (h) => {
    const size = (h >> 10) & 31, rest = (h & 1023) / 1024;
    return (h >> 15 ? -1 : 1) * (size ? 2 ** (size - 15) * (1 + rest) : 2 ** -14 * rest);
  };
  const tensor = ({ type, start, shape }) => {
    const n = shape.reduce((a, b) => a * b, 1), part = bytes.slice(start, start + n * (type === "f16" ? 2 : 4)).buffer;
    return { shape, data: type === "f16" ? Numbers.from(new Uint16Array(part), half) : new Numbers(new Float32Array(part)) };
  };
  return models.map(({ config, weights }) => new GPT(
    config, Object.fromEntries(Object.entries(weights).map(([name, w]) => [name, tensor(w)]))));
}

/** What may be read as ids by a model, or an Error. */
function checked(ids, model) {
  const { vocab_size, block_size, position } = model.config, list = [...ids];
  if (!list.length) throw new Error("no tokens: give at least one");
  if (position === "learned" && list.length > block_size)
    throw new Error(`${list.length} tokens are more than block_size ${block_size}`);
  const bad = list.find((id) => !(Number.isInteger(id) && id >= 0 && id < vocab_size));
  if (bad !== undefined) throw new Error(`id ${bad} is not in the range 0..${vocab_size - 1}`);
  return list;
}

/** Rows of V numbers each. */
const rowsOf = (flat, V) => Array.from({ length: flat.length / V }, (_, t) => flat.slice(t * V, (t + 1) * V));

/** For tests and for the curious: in the console, tinygpt.logits(tinygpt.encode("To be")). */
const forTheCurious = (model, tokenizer) => ({
  logits: (ids) => rowsOf(model.look(checked(ids, model)).logits, tokenizer.size), // T of V
  encode: (text) => tokenizer.encode(text),
  decode: (ids) => tokenizer.decode([...ids]),
  attention: (ids) => model.look(checked(ids, model)).maps, // [layer][head][t]: t + 1 weights
});

function showText(model, tokenizer, run) {
  const { n_layer: L, n_head: H, block_size, vocab_size: V } = model.config;
  let ids = []; // the whole text
  let mine = ""; // what the reader wrote
  let shown = null; // what the model makes of the tokens that it sees
  let place = 0, head = [L - 1, 0]; // the token and the head that are chosen
  let writing = false, typing = 0; // typing: the timer that ends in `takeText`

  const settings = () => ({
    temperature: +$("temperature").value,
    topK: $("top-k").value === $("top-k").max ? Infinity : +$("top-k").value,
    topP: +$("top-p").value,
  });

  // --- The text ---

  function takeText() {
    clearTimeout(typing);
    typing = 0;
    const text = $("text").value, known = tokenizer.known(text);
    const missing = [...new Set([...text].filter((c) => !known.includes(c)))];
    $("left-out").textContent = missing.length
      ? `Not among the ${V} tokens of this model, so left out: ${missing.slice(0, 20).map(visible).join(" ")}`
      : "";
    ids = tokenizer.encode(known);
    // An empty text begins with a line break, as in `sample`, or the first token.
    if (!ids.length) ids = tokenizer.encode(tokenizer.known("\n"));
    if (!ids.length) ids = [tokenizer instanceof EventTokenizer ? 1 : 0];
    mine = text;
    look();
  }

  function look() {
    const from = Math.max(0, ids.length - block_size), seen = ids.slice(from);
    const { logits, states, maps } = model.look(seen);
    shown = { ids: seen, from, rows: rowsOf(logits, V), states, maps };
    place = seen.length - 1;
    drawTokens();
    drawHeads();
    drawPlace();
  }

  // --- Writing ---

  async function write(count) {
    if (writing) return void (writing = false);
    if (typing) takeText();
    isWriting(true);
    const before = performance.now();
    let n = 0, pause = before;
    while (writing && n < count) {
      const logits = model.after(ids);
      ids.push(pick(chances(logits, settings())));
      n++;
      if (performance.now() - pause < 30 && n < count) continue;
      showWritten();
      drawBars(null, logits);
      await new Promise((go) => setTimeout(go)); // clicks are heard, the page is drawn
      pause = performance.now();
    }
    isWriting(false);
    const rate = (1000 * n) / (performance.now() - before);
    const full = ids.length > model.room ? `; beyond ${block_size} tokens it reads all it sees anew for each` : "";
    $("speed").textContent = `${n} tokens, ${rate.toFixed(rate < 10 ? 1 : 0)} per second${full}`;
    if (typing) return; // the reader's text counts
    showWritten();
    look();
  }

  function isWriting(now) {
    writing = now;
    $("write").textContent = now ? "Stop" : "Write on";
    for (const id of ["tokens", "heads", "bars"]) $(id).inert = now;
  }

  const wanted = () => Math.min(10000, Math.max(1, Math.floor(+$("count").value) || 1));

  function showWritten() {
    $("text").value = tokenizer.decode(ids);
    $("text").scrollTop = $("text").scrollHeight;
  }

  /** Puts a token behind place t of what is shown, in the place of all that followed. */
  function take(id, t) {
    ids = [...ids.slice(0, shown.from + t + 1), id];
    showWritten();
    look();
  }

  // --- What it reads ---

  function drawTokens() {
    const n = shown.ids.length, left = ids.length - n;
    const unit = tokenizer instanceof CharTokenizer ? "characters" : "tokens";
    $("reads").textContent =
      `${n.toLocaleString("en")} ${unit}` +
      (left ? `, the last of ${ids.length.toLocaleString("en")}: it sees no more than ${block_size} at once` : "") +
      ". Point at one, or walk with the arrow keys: the page shows what the model thought there.";
    $("tokens").replaceChildren(
      ...shown.ids.map((id, t) =>
        element("span", { role: "option", id: `token-${t}` }, visible(tokenizer.name(id))),
      ),
    );
  }

  /** Everything that depends on the token and the head that are looked at. */
  function drawPlace(t = place, [layer, h] = head) {
    const weights = shown.maps[layer][h][t];
    [...$("tokens").children].forEach((chip, j) => {
      chip.setAttribute("aria-selected", j === t);
      chip.classList.toggle("later", j > t);
      chip.style.setProperty("--weight", `${100 * Math.sqrt(weights[j] ?? 0)}%`); // small ones are seen, too
      chip.title = j <= t ? `looked at: ${percent(weights[j])}` : "comes later: not seen from there";
    });
    $("tokens").setAttribute("aria-activedescendant", `token-${t}`);
    [...$("heads").querySelectorAll("button")].forEach((button, i) =>
      button.setAttribute("aria-pressed", i === layer * H + h));
    $("looking").textContent = `by layer ${layer + 1}, head ${h + 1}: how much “${nameAt(t)}” looks at each`;
    drawBars(t);
    drawLens(t);
  }

  const nameAt = (t) => visible(tokenizer.name(shown.ids[t]));
  const pointedAt = (event) => [...$("tokens").children].indexOf(event.target);
  const choose = (t) => drawPlace((place = t));

  $("tokens").addEventListener("pointerover", (event) => pointedAt(event) >= 0 && drawPlace(pointedAt(event)));
  $("tokens").addEventListener("pointerleave", () => drawPlace());
  $("tokens").addEventListener("click", (event) => pointedAt(event) >= 0 && choose(pointedAt(event)));
  $("tokens").addEventListener("keydown", (event) => {
    const last = shown.ids.length - 1;
    const to = { ArrowLeft: place - 1, ArrowRight: place + 1, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    choose(Math.min(last, Math.max(0, to)));
    $(`token-${place}`).scrollIntoView({ block: "nearest" });
  });

  // --- What comes next ---

  /** The ten likeliest tokens behind place t; while it writes (t is null), by logits. */
  function drawBars(t, logits = shown.rows[t]) {
    const plain = softmax(logits), drawn = chances(logits, settings());
    let longest = 0;
    const bar = (kind, share) => {
      const made = element("i", { class: kind });
      made.style.width = `${100 * share}%`;
      return made;
    };
    const rows = [...ranked(logits).subarray(0, 10)].map((id) => {
      const name = visible(tokenizer.name(id)), byModel = `by the model ${percent(plain[id])}`;
      longest = Math.max(longest, [...name].length);
      const button = element(
        "button",
        { "aria-label": `${name}: ${percent(drawn[id])}, ${byModel}; put it there`, title: `${byModel}; click to put it there` },
        element("span", { class: "token" }, name),
        element("span", { class: "track" }, bar("model", plain[id]), bar("drawn", drawn[id])),
        element("span", { class: "share" }, percent(drawn[id])),
      );
      button.addEventListener("click", () => typing || take(id, t));
      return element("li", {}, button);
    });
    $("bars").style.setProperty("--names", `${Math.min(14, longest + 1)}ch`);
    $("bars").replaceChildren(...rows);
    if (t === null) return;
    const next = shown.ids[t + 1], what = next === undefined ? "the text" : `“${nameAt(t)}”, the token looked at`;
    const came = next === undefined ? "" : ` There came “${nameAt(t + 1)}”, to which it gave ${percent(plain[next])}.`;
    $("next-place").textContent = `After ${what}.${came}`;
  }

  function showSettings() {
    const { temperature, topK, topP } = settings();
    $("temperature-value").textContent = temperature ? temperature.toFixed(2) : "0: always the likeliest";
    $("top-k-value").textContent = topK === Infinity ? "off" : topK;
    $("top-p-value").textContent = topP < 1 ? topP.toFixed(2) : "off";
    if (shown && !writing) drawBars(place);
  }

  // --- Where it looks ---

  function drawHeads() {
    const n = Math.min(shown.ids.length, 96), from = shown.ids.length - n;
    const colour = getComputedStyle(document.body).getPropertyValue("--map"); // #rrggbb
    const [red, green, blue] = colour.match(/[0-9a-f]{2}/g).map((two) => parseInt(two, 16));
    const rows = shown.maps.map((heads, layer) => {
      const buttons = heads.map((rows, h) => {
        const canvas = element("canvas", { width: n, height: n, "aria-hidden": "true" });
        const pen = canvas.getContext("2d"), image = pen.createImageData(n, n);
        for (let t = 0; t < n; t++)
          for (let j = 0; j <= t; j++)
            image.data.set([red, green, blue, 255 * Math.sqrt(rows[from + t][from + j])], 4 * (t * n + j));
        pen.putImageData(image, 0, 0);
        const name = `layer ${layer + 1}, head ${h + 1}`;
        const button = element("button", { "aria-label": name, title: name }, canvas);
        button.addEventListener("pointerenter", () => drawPlace(place, [layer, h]));
        button.addEventListener("pointerleave", () => drawPlace());
        button.addEventListener("click", () => drawPlace(place, (head = [layer, h])));
        return button;
      });
      return element("div", {}, element("b", {}, `layer ${layer + 1}`), ...buttons);
    });
    $("heads").replaceChildren(...rows);
  }

  // --- What each layer would already say ---

  function drawLens(t) {
    const C = model.config.n_embd;
    const rows = shown.states.map((state, layer) => {
      const shares = softmax(model.readOut(state.slice(t * C, (t + 1) * C)));
      const best = [...ranked(shares).subarray(0, 4)].map((id) =>
        element("td", {}, element("bdi", {}, visible(tokenizer.name(id))), ` ${percent(shares[id])}`),
      );
      const name = layer === 0 ? "at first" : `layer ${layer}`;
      return element("tr", {}, element("th", { scope: "row" }, name), ...best);
    });
    $("lens").replaceChildren(...rows);
    $("lens-place").textContent = `“${nameAt(t)}”`;
  }

  // --- Everything comes together ---

  $("text-page").hidden = false;
  $("top-k").max = $("top-k").value = Math.min(V, 100);
  $("text").addEventListener("input", () => {
    writing = false;
    clearTimeout(typing);
    typing = setTimeout(takeText, 100);
  });
  $("text").addEventListener("change", () => typing && takeText()); // the field is left
  $("text").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) write(wanted());
  });
  document.addEventListener("keydown", (event) => event.key === "Escape" && (writing = false));
  $("write").addEventListener("click", () => write(wanted()));
  $("back").addEventListener("click", () => {
    if (writing) return void (writing = false);
    $("text").value = mine;
    takeText();
  });
  for (const id of ["temperature", "top-k", "top-p"]) $(id).addEventListener("input", showSettings);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawHeads());
  $("text").value = tokenizer.known(run.prompt) === run.prompt ? run.prompt : "";
  showSettings();
  takeText();
  if (!$("text").value) write(60); // so that there is something to see
}

function startPage() {
  const run = JSON.parse($("run").textContent);
  const tokenizer = new TOKENIZERS[run.tokenizer.type](run.tokenizer);
  const models = unpacked(run.models, $("weights").textContent);
  $("weights").remove();
  $("name").textContent = run.name;
  $("about").textContent = run.about;
  window.tinygpt = forTheCurious(models[0], tokenizer);
  if (run.detector) showSession(models, tokenizer, run.detector);
  else showText(models[0], tokenizer, run);
}

addEventListener("DOMContentLoaded", () => {
  if (!$("run")) return; // the bare page, without a model
  try {
    startPage();
  } catch (error) {
    $("failed").textContent = `This browser can't show the model: ${error.message}`;
    throw error;
  }
});
