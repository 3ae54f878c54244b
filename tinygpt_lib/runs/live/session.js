"use strict";
// The page of a detector: how much each event of a session surprises it, chapters 15, 16.

/** What the models say of each event of ids and its end, in windows of the size they see. */
function readSession(models, ids, price) {
  const { block_size: size, vocab_size: V } = models[0].config, n = ids.length - 1;
  const step = Math.floor(size / 2), windows = [[0, 0, Math.min(n, size)]];
  for (let s = step; s < n - size + step; s += step) windows.push([s, size - step, Math.min(n - s, size)]);
  return windows.flatMap(([s, first, end]) => {
    const logits = models.map((model) => model.look(ids.slice(s, s + end)).logits);
    return Array.from({ length: end - first }, (_, i) => {
      const t = first + i, id = ids[s + t + 1];
      const shares = logits.map((rows) => {
        const row = rows.slice(t * V, (t + 1) * V);
        row[1] = -Infinity; // <begin> never comes within a session
        return softmax(row);
      });
      // No event is dearer than an unknown one.
      const nats = shares.map((p) => (id === 0 ? price : Math.min(price, -Math.log(p[id]))));
      const mean = shares[0].map((_, k) => shares.reduce((sum, p) => sum + p[k], 0) / shares.length);
      const rank = 1 + mean.filter((p) => p > mean[id]).length;
      const expected = [...ranked(mean).subarray(0, 3)].map((k) => [k, mean[k]]);
      return { id, nats, surprisal: nats.reduce((a, b) => a + b) / nats.length, rank, expected };
    });
  });
}

/** What share of normal sessions is as odd by its surprise, at most the share that is kept. */
function pValue(events, detector) {
  let asOdd = 1, all = 1, whole = false;
  detector.tried.forEach((n, k) => {
    const own = events.map((event) => event.nats[k]), sum = own.reduce((a, b) => a + b, 0);
    const score = detector.score === "max" ? Math.max(...own) : sum / own.length;
    const odd = detector.oddest[k].filter((other) => other >= score - 1e-3).length;
    asOdd += odd;
    all += n;
    whole ||= odd === detector.oddest[k].length && odd < n; // there are more that aren't kept
  });
  return { share: asOdd / all, orMore: whole };
}

function showSession(models, tokenizer, detector) {
  const [model] = models, [UNKNOWN, BEGIN, END] = [0, 1, 2];

  // As `detect` reads a line: <*> in an event is any value. What is fixed most, comes first.
  const kinds = tokenizer.names.map((name, id) => {
    const parts = name.split(/<\*>|<new>/), fixed = parts.map((part) => part.replace(/[^\w\s]/g, "\\$&"));
    return { id, length: parts.join("").length, pattern: new RegExp(`^${fixed.join("\\S*")}$`) };
  }).slice(END + 1).sort((a, b) => b.length - a.length);

  /** A line with the masks of `detect fit` put in, as far as JavaScript can read them. */
  function masked(line) {
    try {
      for (const [word, pattern] of Object.entries(detector.masks))
        line = line.replace(new RegExp(pattern, "g"), () => word);
    } catch {} // a pattern of Python's alone
    return line.trim().split(/\s+/).join(" ");
  }

  function idOf(line) {
    const [id] = tokenizer.encode(line), whole = masked(line);
    return id > END ? id : (kinds.find(({ pattern }) => pattern.test(whole))?.id ?? UNKNOWN);
  }

  /** A session as the first model writes one. */
  function written() {
    const ids = [BEGIN];
    while (ids.length < 40) {
      const shares = chances(model.after(ids), { topP: 0.95 });
      shares[UNKNOWN] = shares[BEGIN] = 0;
      const id = pick(shares.map((p) => p / shares.reduce((a, b) => a + b)));
      if (id === END) break;
      ids.push(id);
    }
    $("session").value = tokenizer.decode(ids.slice(1)).trimEnd();
    show();
  }

  // What all events begin with, as the name of a host, says nothing: it is shown as "…".
  const brief = (name) =>
    visible(detector.prefix && name.startsWith(detector.prefix) ? name.replace(detector.prefix, "… ") : name).replaceAll("␣", " ");

  function show() {
    const lines = $("session").value.split("\n").filter((line) => line.trim());
    const events = readSession(models, [BEGIN, ...lines.map(idOf), END], detector.price);
    if (!$("ended").checked) events.pop();
    const highest = Math.max(1, ...events.map((event) => event.surprisal));
    const head = ["event", "nats", `0 to ${highest.toFixed(1)}`, "rank", "what it expected"];
    const rows = events.map(({ id, nats, surprisal, rank, expected }, t) => {
      const bar = element("i");
      bar.style.width = `${0.1 + (6 * surprisal) / highest}em`;
      const likely = expected.map(([k, share]) =>
        element("div", {}, element("bdi", {}, brief(tokenizer.name(k))), ` ${percent(share)}`));
      const event = brief(id === UNKNOWN ? lines[t] : tokenizer.name(id));
      const cells = [event, surprisal.toFixed(2), bar, id ? rank : "unknown"];
      const odd = !id || (detector.score === "max" && isAlarm(pValue([{ nats }], detector)));
      return element("tr", odd ? { class: "odd" } : {}, ...[...cells, likely].map((cell) => element("td", {}, ...[cell].flat())));
    });
    $("events").replaceChildren(element("tr", {}, ...head.map((name) => element("th", { scope: "col" }, name))), ...rows);
    $("verdict").textContent = events.length ? verdict(events) : "There is no event yet: put one in.";
  }

  /** By surprise alone. With "max" it is one of two reasons, and each has half of the rate. */
  const isAlarm = ({ share }) => share <= detector.rate / (detector.score === "max" ? 2 : 1);

  function verdict(events) {
    const unknown = events.filter((event) => event.id === UNKNOWN).length;
    if (unknown) return `${unknown} of the events never came in normal sessions: that alone is an alarm.`;
    const worst = Math.max(...events.map((event) => event.surprisal)), found = pValue(events, detector);
    return (
      `At its worst it is surprised by ${worst.toFixed(2)} nats; a certain event has 0. By its surprise it is as odd as ` +
      `${found.orMore ? "more than " : ""}${percent(found.share)} of the normal sessions: ` +
      `${isAlarm(found) ? "that alone is an alarm" : "no alarm"}. (detect score also judges how often each event comes.)`
    );
  }

  $("session-page").hidden = false;
  for (const name of tokenizer.names.slice(3))
    $("event").append(element("option", { value: name }, brief(name).slice(0, 80)));
  $("session").addEventListener("input", show);
  $("ended").addEventListener("change", show);
  $("another").addEventListener("click", written);
  $("put").addEventListener("click", () => {
    $("session").value = `${$("session").value}\n${$("event").value}`.trim();
    show();
  });
  written();
}
