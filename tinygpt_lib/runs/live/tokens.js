"use strict";
// Text to numbers and back: chapters 01, 09 and 15 once more. Each tokenizer has `size`,
// `encode(text)` -> ids, `decode(ids)` -> text and `name(id)`: one token, to be shown.
// What a tokenizer can't take in is an Error; `known(text)` is the text without it.

const utf8 = new TextEncoder();
const fromUtf8 = new TextDecoder("utf-8", { ignoreBOM: true });
const places = (list) => new Map(list.map((item, i) => [item, i]));
const joined = (lists) => Uint8Array.from(lists.flatMap((list) => [...list]));

/** The bytes of a text; half of a surrogate pair has none. */
function bytesOf(text) {
  const place = [...text].findIndex((c) => /^\p{Surrogate}$/u.test(c));
  if (place >= 0) throw new Error(`half of a surrogate pair at position ${place}`);
  return utf8.encode(text);
}

/** Bytes as text, or as \xe2 where they are only a part of a character. */
function shownBytes(bytes) {
  const text = fromUtf8.decode(bytes);
  if (!text.includes("\ufffd")) return text;
  return [...bytes]
    .map((b) => (b < 128 ? String.fromCharCode(b) : "\\x" + b.toString(16)))
    .join("");
}

/** One token per character. */
class CharTokenizer {
  constructor({ characters, unk }) {
    this.characters = [...characters];
    this.size = this.characters.length;
    this.number = places(this.characters);
    this.unknown = this.number.get(unk);
  }
  encode(text) {
    return [...text].map((c, place) => {
      const id = this.number.get(c) ?? this.unknown;
      if (id === undefined)
        throw new Error(`character ${JSON.stringify(c)} at position ${place} is not known`);
      return id;
    });
  }
  decode(ids) {
    return ids.map((id) => this.characters[id]).join("");
  }
  name(id) {
    return this.characters[id];
  }
  known(text) {
    if (this.unknown !== undefined) return text;
    return [...text].filter((c) => this.number.has(c)).join("");
  }
}

/** One token per byte of the text in UTF-8; and what all tokens of bytes share. */
class ByteTokenizer {
  constructor() {
    this.tokens = Array.from({ length: 256 }, (_, i) => Uint8Array.of(i));
    this.size = 256;
  }
  encode(text) {
    return [...bytesOf(text)];
  }
  decode(ids) {
    return fromUtf8.decode(joined(ids.map((id) => this.tokens[id])));
  }
  name(id) {
    return shownBytes(this.tokens[id]);
  }
  known(text) {
    return text.replace(/\p{Surrogate}/gu, "\ufffd");
  }
}

// Python's \s is another set than JavaScript's, and has U+FEFF in none of its sets. (Of
// characters that are younger than one of the two, they may think differently.)
const SPACE = "\\t-\\r \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const GPT2_PATTERN = new RegExp(
  "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+" +
    `| ?[^${SPACE}\\p{L}\\p{N}]+|[${SPACE}]+(?![^${SPACE}])|[${SPACE}]+`,
  "gu",
);

/** Bytes, and what merging their most frequent pairs makes. */
class BPETokenizer extends ByteTokenizer {
  constructor({ merges, byte_order, special }) {
    super();
    if (byte_order) this.tokens = byte_order.map((byte) => Uint8Array.of(byte));
    this.ofByte = [];
    this.tokens.forEach(([byte], id) => (this.ofByte[byte] = id));
    for (const [a, b] of merges) this.tokens.push(joined([this.tokens[a], this.tokens[b]]));
    for (const text of special ?? []) this.tokens.push(utf8.encode(text));
    this.size = this.tokens.length;
    this.merge = new Map(merges.map(([a, b], i) => [a * this.size + b, 256 + i]));
  }
  encode(text) {
    bytesOf(text); // says what is none
    return (text.match(GPT2_PATTERN) ?? []).flatMap((chunk) => this.merged(chunk));
  }
  /** One chunk's ids: the earliest merge first, everywhere and from left to right. */
  merged(chunk) {
    let ids = [...utf8.encode(chunk)].map((byte) => this.ofByte[byte]);
    const made = (i) => this.merge.get(ids[i] * this.size + ids[i + 1]) ?? Infinity;
    for (;;) {
      let first = Infinity;
      for (let i = 0; i + 1 < ids.length; i++) first = Math.min(first, made(i));
      if (first === Infinity) return ids;
      const shorter = [];
      for (let i = 0; i < ids.length; i++)
        shorter.push(made(i) === first ? (i++, first) : ids[i]);
      ids = shorter;
    }
  }
}

const PYTHON_SPACE = SPACE + "\\x1c-\\x1f";
const WORD_PATTERN = new RegExp(
  ` ?[\\p{L}\\p{N}_]+|'[\\p{L}\\p{N}_]+| ?[^\\p{L}\\p{N}_${PYTHON_SPACE}]|[${PYTHON_SPACE}]`,
  "gu",
);

/** One token per word or sign, with the space before it; <unk> for the rest. */
class WordTokenizer {
  constructor({ words }) {
    this.words = ["<unk>", ...words];
    this.size = this.words.length;
    this.number = places(this.words);
  }
  encode(text) {
    bytesOf(text);
    const afterSpace = this.number.get(" <unk>") ?? 0;
    return (text.match(WORD_PATTERN) ?? []).map(
      (word) => this.number.get(word) ?? (word[0] === " " ? afterSpace : 0),
    );
  }
  decode(ids) {
    return ids.map((id) => this.words[id]).join("");
  }
  name(id) {
    return this.words[id];
  }
  known(text) {
    return text.replace(/\p{Surrogate}/gu, "\ufffd");
  }
}

/** One token per event, each a line; 0 is an unknown one, 1 and 2 begin and end. */
class EventTokenizer {
  constructor({ events }) {
    this.names = ["<unknown>", "<begin>", "<end>", ...events];
    this.size = this.names.length;
    this.number = places(this.names);
    this.number.delete("<unknown>");
  }
  encode(text) {
    const lines = text.split("\n").filter((line) => line);
    return lines.map((line) => this.number.get(line) ?? 0);
  }
  decode(ids) {
    return ids.map((id) => this.names[id] + "\n").join("");
  }
  name(id) {
    return this.names[id];
  }
  known(text) {
    return text;
  }
}

const TOKENIZERS = {
  char: CharTokenizer,
  byte: ByteTokenizer,
  bpe: BPETokenizer,
  word: WordTokenizer,
  events: EventTokenizer,
};
