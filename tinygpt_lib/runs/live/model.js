"use strict";
// A GPT that reads: chapters 03 to 06 once more, with the cache of 08 and the switches
// of 10 to 12. Numbers lie in flat arrays, row after row: x (T, C) has T * C of them.

const ACTIVATIONS = {
  gelu: (x) => x / (1 + Math.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x))),
  gelu_exact: (x) => 0.5 * x * (1 + erf(x / Math.SQRT2)),
  relu: (x) => Math.max(x, 0),
  relu2: (x) => Math.max(x, 0) ** 2,
  swiglu: (x) => x / (1 + Math.exp(-x)), // of the gate
};

/** The integral of the bell curve, to 2e-7. Abramowitz and Stegun, 1964, 7.1.26. */
function erf(x) {
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const a = [1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592];
  return Math.sign(x) * (1 - a.reduce((sum, factor) => sum * t + factor) * t * Math.exp(-x * x));
}

class GPT {
  /** `config` as Python's FastConfig; `weights`: {name: {shape, data}}, by torch's names. */
  constructor(config, weights) {
    const { n_embd, n_head, n_kv_head, window, position, block_size } = config;
    Object.assign(this, { config, weights });
    this.D = n_embd / n_head; // numbers of a head
    this.K = n_kv_head || n_head; // heads with keys and values
    // A window that slides over places that need not be learnt has no end.
    this.endless = window > 0 && position !== "learned";
    this.room = this.endless ? Infinity : block_size;
  }

  /** y (T, m) = x (T, n) times W (m, n) turned, plus b (m): a linear layer of torch's. */
  linear(x, name) {
    const { shape: [m, n], data: w } = this.weights[`${name}.weight`];
    const b = this.weights[`${name}.bias`]?.data, T = x.length / n, y = new Float64Array(T * m);
    // Four rows of W and two of x at a time: each number fetched is used more than once.
    // Where a row is missing, the last one is done again.
    for (let i = 0; i < m; i += 4) {
      const i1 = Math.min(i + 1, m - 1), i2 = Math.min(i + 2, m - 1), i3 = Math.min(i + 3, m - 1);
      for (let t = 0; t < T; t += 2) {
        const u = Math.min(t + 1, T - 1);
        let s0 = 0, s1 = 0, s2 = 0, s3 = 0, z0 = 0, z1 = 0, z2 = 0, z3 = 0;
        let p = t * n, q = u * n, r0 = i * n, r1 = i1 * n, r2 = i2 * n, r3 = i3 * n;
        for (let k = 0; k < n; k++) {
          const v = x[p++], o = x[q++];
          const a0 = w[r0++], a1 = w[r1++], a2 = w[r2++], a3 = w[r3++];
          s0 += v * a0; s1 += v * a1; s2 += v * a2; s3 += v * a3;
          z0 += o * a0; z1 += o * a1; z2 += o * a2; z3 += o * a3;
        }
        y[t * m + i] = s0; y[t * m + i1] = s1; y[t * m + i2] = s2; y[t * m + i3] = s3;
        y[u * m + i] = z0; y[u * m + i1] = z1; y[u * m + i2] = z2; y[u * m + i3] = z3;
      }
    }
    if (b) for (let p = 0; p < y.length; p++) y[p] += b[p % m];
    return y;
  }

  /** Each row of x (T, n) at one scale: chapter 05's LayerNorm or chapter 10's RMSNorm. */
  norm(x, name, kind = this.config.norm) {
    const { data: weight } = this.weights[`${name}.weight`], n = weight.length;
    const bias = this.weights[`${name}.bias`]?.data, y = new Float64Array(x.length);
    for (let p = 0; p < x.length; p += n) {
      let mean = 0, square = 0;
      if (kind === "layer") for (let k = 0; k < n; k++) mean += x[p + k] / n;
      for (let k = 0; k < n; k++) square += (x[p + k] - mean) ** 2 / n;
      const scale = 1 / Math.sqrt(square + 1e-5);
      for (let k = 0; k < n; k++)
        y[p + k] = (x[p + k] - mean) * scale * weight[k] + (bias ? bias[k] : 0);
    }
    return y;
  }

  /** What each token is plus where it stands: those of ids from `start` on, (T, C). */
  embed(ids, start) {
    const { n_embd: C, position, embedding, tie_weights } = this.config;
    const loud = tie_weights ? Math.sqrt(C) : 1, x = new Float64Array((ids.length - start) * C);
    for (let t = start, p = 0; t < ids.length; t++, p += C) {
      const add = (name, row, factor) => {
        const { data } = this.weights[name];
        for (let k = 0; k < C; k++) x[p + k] += factor * data[row * C + k];
      };
      add("token_embedding.weight", ids[t], loud);
      if (embedding === "ngrams")
        this.nGrams(ids, t).forEach((row, i) => add(`token_embedding.tables.${i}`, row, loud));
      if (position === "learned") add("position_embedding.weight", t, 1);
      if (position === "sinusoidal")
        for (let k = 0; k < C / 2; k++) {
          const angle = t * 10000 ** ((-2 * k) / C);
          x[p + k] += Math.sin(angle);
          x[p + C / 2 + k] += Math.cos(angle);
        }
    }
    return x;
  }

  /** The rows of chapter 12's tables: of the pair, the triple, ... that end at place t. */
  nGrams(ids, t) {
    const nothing = this.config.vocab_size; // the id of what is before the text
    let number = BigInt(ids[t]);
    return [1, 2, 3].map((n) => {
      const rows = BigInt(this.weights[`token_embedding.tables.${n - 1}`].shape[0]);
      number = BigInt.asIntN(64, number * BigInt(nothing + 1) + BigInt(ids[t - n] ?? nothing));
      return Number(((number % rows) + rows) % rows); // as torch counts
    });
  }

  /** An empty memory: for each layer the keys and values of the tokens read so far. */
  newMemory(length = this.config.block_size) {
    const rows = this.endless ? this.config.window : length, size = rows * this.K * this.D;
    const empty = () => Array.from({ length: this.config.n_layer }, () => new Float64Array(size));
    return { ids: [], rows, keys: empty(), values: empty() };
  }

  /**
   * Logits after ids, (1, V). With `watch`, of every token that memory has not read, (T, V);
   * it gets the states (T, C) before each block and after the last, and for each layer and
   * head how much each token looked at those before: arrays of 1 to T.
   */
  read(ids, memory, watch = null) {
    const { n_layer: L, n_head: H, n_embd: C } = this.config;
    const start = memory.ids.length, T = ids.length - start, plus = (x, y) => x.map((v, k) => v + y[k]);
    let x = this.embed(ids, start);
    for (let i = 0; i < L; i++) {
      const block = `blocks.${i}`, maps = watch && Array.from({ length: H }, () => []);
      watch?.states.push(x);
      watch?.maps.push(maps);
      // Of the last layer only what the last token takes in is asked for.
      const from = i === L - 1 && !watch ? T - 1 : 0;
      const heard = this.attend(i, this.norm(x, `${block}.attention_norm`), start, from, memory, maps);
      x = plus(x.subarray(from * C), heard);
      x = plus(x, this.think(`${block}.feed_forward`, this.norm(x, `${block}.feed_forward_norm`)));
    }
    watch?.states.push(x);
    memory.ids = ids.slice();
    return this.readOut(x);
  }

  /** Communication: what layer i's heads bring to tokens x (T, C), the first `from` left out. */
  attend(i, x, start, from, memory, maps) {
    const { n_embd: C, n_head: H, window, position, qk_norm } = this.config;
    const { D, K } = this, T = x.length / C, name = `blocks.${i}.attention`;
    const keys = memory.keys[i], values = memory.values[i], rows = memory.rows;
    const qkv = this.linear(x, `${name}.to_qkv`), wide = (H + 2 * K) * D;
    const y = new Float64Array((T - from) * C), scores = new Float64Array(start + T);
    for (let t = 0; t < T; t++) {
      // 1. Queries and keys as the switches want them; the key and value are remembered.
      const place = start + t, row = qkv.subarray(t * wide, (t + 1) * wide);
      for (let h = 0; h < H + K; h++) {
        const head = row.subarray(h * D, (h + 1) * D), which = h < H ? "query" : "key";
        if (qk_norm !== "none") head.set(this.norm(head, `${name}.${which}_norm`, qk_norm));
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
        maps?.[h].push(scores.slice(0, place + 1).fill(0, 0, first));
      }
    }
    return this.linear(y, `${name}.output`);
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
    const wide = this.linear(x, `${name}.widen`), kind = this.config.feed_forward;
    let bent = wide.map(ACTIVATIONS[kind]);
    if (kind === "swiglu") {
      const n = this.weights[`${name}.output.weight`].shape[1], place = (k) => k + n * Math.floor(k / n);
      bent = new Float64Array(wide.length / 2).map((_, k) => bent[place(k)] * wide[place(k) + n]);
    }
    return this.linear(bent, `${name}.output`);
  }

  /** What the stream says of the next token: (T, C) -> (T, V). Any layer's, too. */
  readOut(x) {
    return this.linear(this.norm(x, "norm"), this.config.tie_weights ? "token_embedding" : "head");
  }

  /** Everything about ids (T): logits of every token, states, attention maps. */
  look(ids) {
    const watch = { states: [], maps: [] };
    return { logits: this.read(ids, this.newMemory(ids.length), watch), ...watch };
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
  const order = ranked(logits), kept = new Float64Array(logits.length);
  if (temperature === 0) return kept.fill(1, order[0], order[0] + 1);
  const all = softmax(Float64Array.from(logits, (x) => x / Math.max(temperature, 1e-30)));
  let sum = 0;
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
