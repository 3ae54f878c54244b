"use strict";
// A GPT that reads: chapters 03 to 06 once more, with the cache of 08 and the switches
// of 10 to 12. Numbers lie in flat arrays, row after row: x (T, C) has T * C of them.

/** y (T, m) = x (T, n) times W (m, n) turned, plus b (m): a linear layer of torch's. */
function linear(x, W, b, T) {
  const [m, n] = W.shape, w = W.data, y = new Float32Array(T * m);
  // Four rows of W and two of x at a time: each number fetched is used more than once.
  // Where a row is missing, the last one is done again.
  for (let i = 0; i < m; i += 4) {
    const I = [i, Math.min(i + 1, m - 1), Math.min(i + 2, m - 1), Math.min(i + 3, m - 1)];
    const [b0, b1, b2, b3] = b ? I.map((row) => b.data[row]) : [0, 0, 0, 0];
    for (let t = 0; t < T; t += 2) {
      const u = Math.min(t + 1, T - 1);
      let s0 = b0, s1 = b1, s2 = b2, s3 = b3, z0 = b0, z1 = b1, z2 = b2, z3 = b3;
      let p = t * n, q = u * n, r0 = I[0] * n, r1 = I[1] * n, r2 = I[2] * n, r3 = I[3] * n;
      for (let k = 0; k < n; k++) {
        const v = x[p++], o = x[q++];
        const a0 = w[r0++], a1 = w[r1++], a2 = w[r2++], a3 = w[r3++];
        s0 += v * a0; s1 += v * a1; s2 += v * a2; s3 += v * a3;
        z0 += o * a0; z1 += o * a1; z2 += o * a2; z3 += o * a3;
      }
      y[t * m + I[0]] = s0; y[t * m + I[1]] = s1; y[t * m + I[2]] = s2; y[t * m + I[3]] = s3;
      y[u * m + I[0]] = z0; y[u * m + I[1]] = z1; y[u * m + I[2]] = z2; y[u * m + I[3]] = z3;
    }
  }
  return y;
}

/** Each row of x (T, n) at one scale: chapter 05's LayerNorm or chapter 10's RMSNorm. */
function normed(x, n, kind, weight, bias) {
  const y = new Float32Array(x.length);
  for (let p = 0; p < x.length; p += n) {
    let mean = 0, square = 0;
    if (kind === "layer") for (let k = 0; k < n; k++) mean += x[p + k] / n;
    for (let k = 0; k < n; k++) square += (x[p + k] - mean) ** 2 / n;
    const scale = 1 / Math.sqrt(square + 1e-5);
    for (let k = 0; k < n; k++)
      y[p + k] = (x[p + k] - mean) * scale * weight.data[k] + (bias ? bias.data[k] : 0);
  }
  return y;
}

/** The integral of the bell curve, to 2e-7. Abramowitz and Stegun, 1964, 7.1.26. */
function erf(x) {
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const sum = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 +
    t * (-1.453152027 + t * 1.061405429))));
  return Math.sign(x) * (1 - sum * Math.exp(-x * x));
}

const ACTIVATIONS = {
  gelu: (x) => x / (1 + Math.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x))),
  gelu_exact: (x) => 0.5 * x * (1 + erf(x / Math.SQRT2)),
  relu: (x) => Math.max(x, 0),
  relu2: (x) => Math.max(x, 0) ** 2,
  swiglu: (x) => x / (1 + Math.exp(-x)), // of the gate
};

class GPT {
  /** `config` as Python's FastConfig; `weights`: {name: {shape, data}}, by torch's names. */
  constructor(config, weights) {
    this.config = config;
    this.weights = weights;
    const { n_embd: C, n_head: H, n_kv_head, block_size, window, position } = config;
    this.D = C / H;
    this.kvHeads = n_kv_head || H;
    // A window that slides over places that need not be learnt has no end.
    this.endless = window > 0 && position !== "learned";
    this.room = this.endless ? Infinity : block_size;
    this.loud = config.tie_weights ? Math.sqrt(C) : 1;
  }

  /** What each token is plus where it stands: those of ids from `start` on, (T, C). */
  embed(ids, start) {
    const { n_embd: C, position, embedding } = this.config, w = this.weights;
    const x = new Float32Array((ids.length - start) * C);
    for (let t = start, p = 0; t < ids.length; t++, p += C) {
      const add = (table, row, factor) => {
        for (let k = 0; k < C; k++) x[p + k] += factor * table.data[row * C + k];
      };
      add(w["token_embedding.weight"], ids[t], this.loud);
      if (embedding === "ngrams") this.addNGrams(ids, t, add);
      if (position === "learned") add(w["position_embedding.weight"], t, 1);
      if (position === "sinusoidal")
        for (let k = 0; k < C / 2; k++) {
          const angle = t * 10000 ** ((-2 * k) / C);
          x[p + k] += Math.sin(angle);
          x[p + C / 2 + k] += Math.cos(angle);
        }
    }
    return x;
  }

  /** Chapter 12's tables: the rows of the pair, the triple, ... that end at place t. */
  addNGrams(ids, t, add) {
    const nothing = this.config.vocab_size; // the id of what is before the text
    let number = BigInt(ids[t]);
    for (let n = 1; n <= 3; n++) {
      const table = this.weights[`token_embedding.tables.${n - 1}`];
      const rows = BigInt(table.shape[0]);
      number = number * BigInt(nothing + 1) + BigInt(ids[t - n] ?? nothing);
      number = BigInt.asIntN(64, number); // as torch counts
      add(table, Number(((number % rows) + rows) % rows), this.loud);
    }
  }

  norm(x, name, n = this.config.n_embd, kind = this.config.norm) {
    return normed(x, n, kind, this.weights[`${name}.weight`], this.weights[`${name}.bias`]);
  }

  linear(x, name, T) {
    return linear(x, this.weights[`${name}.weight`], this.weights[`${name}.bias`], T);
  }

  /** An empty memory: for each layer the keys and values of the tokens read so far. */
  newMemory(length = this.config.block_size) {
    const rows = this.endless ? this.config.window : length;
    const empty = () =>
      Array.from({ length: this.config.n_layer }, () => new Float32Array(rows * this.kvHeads * this.D));
    return { ids: [], rows, keys: empty(), values: empty() };
  }

  /**
   * Logits after ids: of the last one, (1, V), or of `every` token that memory has not
   * read, (T, V). `watch` gets the states (T, C) before each block and after the last, and
   * for each layer and head how much each token looked at those before: arrays of 1 to T.
   */
  read(ids, memory, every = false, watch = null) {
    const start = memory.ids.length, T = ids.length - start, C = this.config.n_embd;
    let x = this.embed(ids, start);
    for (let i = 0; i < this.config.n_layer; i++) {
      watch?.states.push(x.slice());
      const block = `blocks.${i}`, add = (y) => y.forEach((v, k) => (x[k] += v));
      const maps = watch && Array.from({ length: this.config.n_head }, () => []);
      watch?.maps.push(maps);
      // Of the last layer only what the last token takes in is asked for.
      const from = i === this.config.n_layer - 1 && !every ? T - 1 : 0;
      const heard = this.attend(i, this.norm(x, `${block}.attention_norm`), start, from, memory, maps);
      x = x.subarray(from * C);
      add(heard);
      add(this.think(`${block}.feed_forward`, this.norm(x, `${block}.feed_forward_norm`)));
    }
    watch?.states.push(x);
    memory.ids = ids.slice();
    return this.readOut(x);
  }

  /** Communication: what the heads of layer i bring to tokens x (T, C), the first `from` left out. */
  attend(i, x, start, from, memory, maps) {
    const { n_embd: C, n_head: H, window, position, qk_norm } = this.config;
    const { D, kvHeads: K } = this, T = x.length / C, name = `blocks.${i}.attention`;
    const keys = memory.keys[i], values = memory.values[i], rows = memory.rows;
    const qkv = this.linear(x, `${name}.to_qkv`, T), wide = (H + 2 * K) * D;
    const y = new Float32Array((T - from) * C), scores = new Float64Array(start + T);
    for (let t = 0; t < T; t++) {
      // 1. Queries and keys as the switches want them; the key and value are remembered.
      const place = start + t, row = qkv.subarray(t * wide, (t + 1) * wide);
      for (let h = 0; h < H + K; h++) {
        const head = row.subarray(h * D, (h + 1) * D), which = h < H ? "query" : "key";
        if (qk_norm !== "none") head.set(this.norm(head, `${name}.${which}_norm`, D, qk_norm));
        if (position === "rotary") this.turn(head, place);
      }
      keys.set(row.subarray(C, C + K * D), (place % rows) * K * D);
      values.set(row.subarray(C + K * D), (place % rows) * K * D);
      if (t < from) continue;
      // 2. Each head asks every place in sight, and takes in a mean of what they say.
      const first = window ? Math.max(0, place + 1 - window) : 0;
      for (let h = 0; h < H; h++) {
        const q = h * D, kv = Math.floor((h * K) / H) * D;
        let highest = -Infinity, total = 0;
        for (let j = first; j <= place; j++) {
          let score = 0;
          for (let k = 0, p = (j % rows) * K * D + kv; k < D; k++) score += row[q + k] * keys[p + k];
          scores[j] = score / Math.sqrt(D);
          highest = Math.max(highest, scores[j]);
        }
        for (let j = first; j <= place; j++) total += scores[j] = Math.exp(scores[j] - highest);
        for (let j = first; j <= place; j++) {
          const weight = (scores[j] /= total);
          for (let k = 0, o = (t - from) * C + q, p = (j % rows) * K * D + kv; k < D; k++)
            y[o + k] += weight * values[p + k];
        }
        maps?.[h].push(Float32Array.from(scores.subarray(0, place + 1), (w, j) => (j < first ? 0 : w)));
      }
    }
    return this.linear(y, `${name}.output`, T - from);
  }

  /** Turns each pair (k, k + D/2) of a head by an angle that grows with the place. */
  turn(head, place) {
    const { rotary_base, rotary_scale } = this.config, half = this.D / 2;
    for (let k = 0; k < half; k++) {
      const angle = (place / rotary_scale) * rotary_base ** (-k / half);
      const cos = Math.cos(angle), sin = Math.sin(angle), a = head[k], b = head[k + half];
      head[k] = a * cos - b * sin;
      head[k + half] = a * sin + b * cos;
    }
  }

  /** Computation: each token by itself is widened, bent and narrowed. */
  think(name, x) {
    const T = x.length / this.config.n_embd, kind = this.config.feed_forward;
    const wide = this.linear(x, `${name}.widen`, T), n = wide.length / T, bend = ACTIVATIONS[kind];
    if (kind !== "swiglu") return this.linear(wide.map((v) => bend(v)), `${name}.output`, T);
    const gated = new Float32Array((T * n) / 2);
    for (let t = 0, p = 0; t < T; t++)
      for (let k = 0; k < n / 2; k++, p++) gated[p] = bend(wide[t * n + k]) * wide[t * n + n / 2 + k];
    return this.linear(gated, `${name}.output`, T);
  }

  /** What the stream says of the next token: (T, C) -> (T, V). Any layer's, too. */
  readOut(x) {
    const head = this.config.tie_weights ? "token_embedding" : "head";
    return linear(this.norm(x, "norm"), this.weights[`${head}.weight`], null, x.length / this.config.n_embd);
  }

  /** Everything about ids (T): logits of every token, states, attention maps. */
  look(ids) {
    const watch = { states: [], maps: [] };
    const logits = this.read(ids, this.newMemory(ids.length), true, watch);
    return { logits, ...watch };
  }

  /** Logits of what follows a text: what was read last time and is still so, stays read. */
  after(ids) {
    if (ids.length > this.room) // every position changes, and with it every key
      return this.read(ids.slice(-this.config.block_size), this.newMemory());
    const read = this.memory?.ids ?? [];
    const goesOn = read.length < ids.length && read.every((id, i) => id === ids[i]);
    if (!this.memory || !goesOn) this.memory = this.newMemory();
    return this.read(ids, this.memory);
  }
}

/** Logits (V) as probabilities. */
function softmax(logits) {
  const highest = logits.reduce((a, b) => Math.max(a, b));
  const weights = Float64Array.from(logits, (x) => Math.exp(x - highest));
  const total = weights.reduce((a, b) => a + b);
  return weights.map((w) => w / total);
}

/** Places of the numbers, the largest first; among equals the first one. */
function ranked(numbers) {
  return Uint32Array.from(numbers.keys()).sort((a, b) => numbers[b] - numbers[a] || a - b);
}

/** Chapter 08's chances of each next token: logits (V) at a temperature, the tail cut. */
function chances(logits, { temperature = 1, topK = Infinity, topP = 1 } = {}) {
  const order = ranked(logits);
  if (temperature === 0) return new Float64Array(logits.length).fill(1, order[0], order[0] + 1);
  const all = softmax(Float64Array.from(logits, (x) => x / Math.max(temperature, 1e-30)));
  let sum = 0;
  const kept = new Float64Array(all.length);
  for (let rank = 0; rank < order.length && rank < topK && (sum < topP || topP >= 1); rank++)
    sum += kept[order[rank]] = all[order[rank]];
  return kept.map((p) => p / sum);
}

/** A token drawn by its chance; `random` lies between 0 and 1. */
function pick(chances, random = Math.random()) {
  let last = 0;
  for (let id = 0; id < chances.length; id++)
    if (chances[id] > 0 && (random -= chances[(last = id)]) < 0) return id;
  return last; // what rounding has left over
}
