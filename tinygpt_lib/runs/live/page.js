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

/** The numbers of all models in the file: {name: {shape, data}} for each. */
function unpacked(models, text) {
  const bytes = Uint8Array.fromBase64?.(text) ?? Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const half = (h) => {
    const size = (h >> 10) & 31, rest = (h & 1023) / 1024;
    return (h >> 15 ? -1 : 1) * (size ? 2 ** (size - 15) * (1 + rest) : 2 ** -14 * rest);
  };
  const numbers = ({ type, start, shape }) => {
    const n = shape.reduce((a, b) => a * b, 1), part = bytes.slice(start, start + n * (type === "f16" ? 2 : 4));
    return type === "f16" ? Float32Array.from(new Uint16Array(part.buffer), half) : new Float32Array(part.buffer);
  };
  return models.map(({ config, weights }) => {
    const list = Object.entries(weights).map(([name, w]) => [name, { shape: w.shape, data: numbers(w) }]);
    return new GPT(config, Object.fromEntries(list));
  });
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
  let pinned = { token: null, head: [L - 1, 0] }, hovered = {};
  let writing = false, typing = 0; // typing: the timer that ends in `takeText`

  const view = (what) => hovered[what] ?? pinned[what];
  const place = () => view("token") ?? shown.ids.length - 1;
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
    if (!ids.length) ids = begin();
    mine = text;
    pinned.token = null;
    look();
  }

  /** What stands for an empty text: a line break, as in `sample`, or the first token. */
  function begin() {
    const line = tokenizer.known("\n") ? tokenizer.encode("\n") : [];
    return line.length ? line : [tokenizer instanceof EventTokenizer ? 1 : 0];
  }

  function look() {
    const from = Math.max(0, ids.length - block_size), seen = ids.slice(from);
    const { logits, states, maps } = model.look(seen);
    shown = { ids: seen, from, rows: rowsOf(logits, V), states, maps };
    drawTokens();
    drawHeads();
    drawPlace();
  }

  // --- Writing ---

  async function write(count) {
    if (writing) return void (writing = false);
    if (typing) takeText();
    writing = true;
    $("write").textContent = "Stop";
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
    writing = false;
    $("write").textContent = "Write on";
    const rate = (1000 * n) / (performance.now() - before);
    const full = ids.length > model.room ? `; beyond ${block_size} tokens it reads all it sees anew for each` : "";
    $("speed").textContent = `${n} tokens, ${rate.toFixed(rate < 10 ? 1 : 0)} per second${full}`;
    if (typing) return; // the reader's text counts
    showWritten();
    look();
  }

  const wanted = () => Math.min(10000, Math.max(1, Math.floor(+$("count").value) || 1));

  function showWritten() {
    $("text").value = tokenizer.decode(ids);
    $("text").scrollTop = $("text").scrollHeight;
    pinned.token = null;
    hovered = {};
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
  function drawPlace() {
    const t = place(), [layer, head] = view("head"), weights = shown.maps[layer][head][t];
    [...$("tokens").children].forEach((chip, j) => {
      chip.setAttribute("aria-selected", j === t);
      chip.classList.toggle("later", j > t);
      chip.style.setProperty("--weight", `${100 * Math.sqrt(weights[j] ?? 0)}%`); // small ones are seen, too
      chip.title = j <= t ? `looked at: ${percent(weights[j])}` : "comes later: not seen from there";
    });
    $("tokens").setAttribute("aria-activedescendant", `token-${t}`);
    drawBars(t);
    drawLens(t);
    $("head-hint").textContent =
      `A picture for each head, with a row for each token: coloured where it looks. The tokens above are coloured ` +
      `by layer ${layer + 1}, head ${head + 1}: how much “${nameAt(t)}” looks at each. Point at another head.`;
    [...$("heads").querySelectorAll("button")].forEach((button) => {
      const chosen = +button.dataset.layer === layer && +button.dataset.head === head;
      button.setAttribute("aria-pressed", chosen);
    });
  }

  const nameAt = (t) => visible(tokenizer.name(shown.ids[t]));

  $("tokens").addEventListener("pointerover", (event) => {
    const t = [...$("tokens").children].indexOf(event.target);
    if (t >= 0 && !writing) (hovered.token = t), drawPlace();
  });
  $("tokens").addEventListener("pointerleave", () => {
    delete hovered.token;
    if (!writing) drawPlace();
  });
  $("tokens").addEventListener("click", () => ((pinned.token = view("token")), drawPlace()));
  $("tokens").addEventListener("keydown", (event) => {
    const last = shown.ids.length - 1, t = place();
    const to = { ArrowLeft: t - 1, ArrowRight: t + 1, Home: 0, End: last }[event.key];
    if (to === undefined || writing) return;
    event.preventDefault();
    hovered = {};
    pinned.token = Math.min(last, Math.max(0, to));
    $(`token-${pinned.token}`).scrollIntoView({ block: "nearest" });
    drawPlace();
  });

  // --- What comes next ---

  /** The ten likeliest tokens behind place t; while it writes (t is null), by logits. */
  function drawBars(t, logits = shown.rows[t]) {
    const plain = softmax(logits), drawn = chances(logits, settings());
    const rows = [...ranked(logits).subarray(0, 10)].map((id) => {
      const name = visible(tokenizer.name(id));
      const model_bar = element("i", { class: "model" }), drawn_bar = element("i", { class: "drawn" });
      model_bar.style.width = `${100 * plain[id]}%`;
      drawn_bar.style.width = `${100 * drawn[id]}%`;
      const label = `${name}: ${percent(drawn[id])}, by the model ${percent(plain[id])}; put it there`;
      const button = element(
        "button",
        { "aria-label": label, title: `by the model ${percent(plain[id])}; click to put it there` },
        element("span", { class: "token" }, name),
        element("span", { class: "track" }, model_bar, drawn_bar),
        element("span", { class: "share" }, percent(drawn[id])),
      );
      button.addEventListener("click", () => writing || typing || take(id, t));
      return element("li", {}, button);
    });
    const longest = Math.max(...rows.map((row) => [...row.querySelector(".token").textContent].length));
    $("bars").style.setProperty("--names", `${Math.min(14, longest + 1)}ch`);
    $("bars").replaceChildren(...rows);
    if (t === null) return;
    const next = shown.ids[t + 1], what = next === undefined ? "the text" : `“${nameAt(t)}”, the token looked at`;
    const came = next === undefined ? "" : ` There came “${nameAt(t + 1)}”, to which it gave ${percent(plain[next])}.`;
    $("next-hint").textContent =
      `After ${what}.${came} Outlined: what the model thinks. Filled: the chance of being drawn. Click one to take it.`;
  }

  function showSettings() {
    const { temperature, topK, topP } = settings();
    $("temperature-value").textContent = temperature ? temperature.toFixed(2) : "0: always the likeliest";
    $("top-k-value").textContent = topK === Infinity ? "off" : topK;
    $("top-p-value").textContent = topP < 1 ? topP.toFixed(2) : "off";
    if (shown && !writing) drawBars(place());
  }

  // --- Where it looks ---

  function drawHeads() {
    const n = Math.min(shown.ids.length, 96), from = shown.ids.length - n;
    const colour = getComputedStyle(document.body).getPropertyValue("--map"); // #rrggbb
    const [red, green, blue] = colour.match(/[0-9a-f]{2}/g).map((two) => parseInt(two, 16));
    const rows = shown.maps.map((heads, layer) => {
      const buttons = heads.map((rows, head) => {
        const canvas = element("canvas", { width: n, height: n, "aria-hidden": "true" });
        const pen = canvas.getContext("2d");
        const image = pen.createImageData(n, n);
        for (let t = 0; t < n; t++)
          for (let j = 0; j <= t; j++)
            image.data.set([red, green, blue, 255 * Math.sqrt(rows[from + t][from + j])], 4 * (t * n + j));
        pen.putImageData(image, 0, 0);
        const name = `layer ${layer + 1}, head ${head + 1}`;
        const button = element("button", { "aria-label": name, title: name }, canvas);
        Object.assign(button.dataset, { layer, head });
        const see = () => writing || ((hovered.head = [layer, head]), drawPlace());
        const leave = () => writing || (delete hovered.head, drawPlace());
        button.addEventListener("pointerenter", see);
        button.addEventListener("pointerleave", leave);
        button.addEventListener("click", () => ((pinned.head = [layer, head]), drawPlace()));
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
    $("lens-hint").textContent =
      `What would come after “${nameAt(t)}” if the model stopped thinking early: each layer's state, read out by the ` +
      "model's own last norm and head. “At first” is the token's own vector. The last layer's word is the model's.";
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
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") writing = false;
  });
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
  const [{ config, weights }] = models;
  const numbers = Object.values(weights).reduce((sum, w) => sum + w.data.length, 0);
  $("name").textContent = run.name;
  $("about").textContent =
    (run.detector ? `A detector of ${models.length} GPTs, each of ` : "A GPT of ") +
    `${numbers.toLocaleString("en")} numbers: ${config.n_layer} layers with ${config.n_head} heads each, ` +
    `${config.vocab_size.toLocaleString("en")} kinds of tokens, of which it sees up to ${config.block_size.toLocaleString("en")} at once. ` +
    "It runs here, in this page.";
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
