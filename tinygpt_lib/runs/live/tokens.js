"use strict";
// Text to numbers and back: chapters 01, 09 and 15 once more. Each tokenizer has `size`,
// `encode(text)` -> ids, `decode(ids)` -> text and `name(id)`: one token, to be shown.
// What a tokenizer can't take in is an Error; `known(text)` is the text without it.

const utf8 = new TextEncoder();
const fromUtf8 = new TextDecoder("utf-8", { ignoreBOM: true });
const joined = (lists) => Uint8Array.from(lists.flatMap((list) => [...list]));

/** The bytes of a text; half of a surrogate pair has none. */
function bytesOf(text) {
  const place = [...text].findIndex((c) => /^\p{Surrogate}$/u.test(c));
  if (place >= 0) throw new Error(`half of a surrogate pair at position ${place}`);
  return [...utf8.encode(text)];
}

/** What all have in common whose tokens are pieces of text. */
class Tokenizer {
  constructor(names) {
    this.names = names;
    this.size = names.length;
    this.number = new Map(names.map((name, id) => [name, id]));
  }
  name(id) {
    return this.names[id];
  }
  decode(ids) {
    return ids.map((id) => this.names[id]).join("");
  }
  known(text) {
    return text.replace(/\p{Surrogate}/gu, "\ufffd");
  }
}

/** One token per character. */
class CharTokenizer extends Tokenizer {
  constructor({ characters, unk }) {
    super([...characters]);
    this.unknown = this.number.get(unk);
  }
  encode(text) {
    return [...text].map((c, place) => {
      const id = this.number.get(c) ?? this.unknown;
      if (id !== undefined) return id;
      throw new Error(`character ${JSON.stringify(c)} at position ${place} is not known`);
    });
  }
  known(text) {
    return [...text].filter((c) => this.unknown !== undefined || this.number.has(c)).join("");
  }
}

/** One token per byte of the text in UTF-8; and what all tokens of bytes share. */
class ByteTokenizer extends Tokenizer {
  constructor() {
    super(Array.from({ length: 256 }, (_, byte) => [byte]));
  }
  encode(text) {
    return bytesOf(text);
  }
  decode(ids) {
    return fromUtf8.decode(joined(ids.map((id) => this.names[id])));
  }
  /** As text, or as \xe2 what is only a part of a character. */
  name(id) {
    const text = this.decode([id]), code = (b) => "\\x" + b.toString(16);
    if (!text.includes("\ufffd")) return text;
    return [...this.names[id]].map((b) => (b < 128 ? String.fromCharCode(b) : code(b))).join("");
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
    const bytes = byte_order ?? this.names.flat();
    this.names = bytes.map((byte) => [byte]);
    this.ofByte = new Map(bytes.map((byte, id) => [byte, id]));
    for (const [a, b] of merges) this.names.push(joined([this.names[a], this.names[b]]));
    for (const text of special ?? []) this.names.push(utf8.encode(text));
    this.size = this.names.length;
    this.merge = new Map(merges.map(([a, b], i) => [a * this.size + b, 256 + i]));
  }
  encode(text) {
    bytesOf(text); // says what is none
    return (text.match(GPT2_PATTERN) ?? []).flatMap((chunk) => this.merged(chunk));
  }
  /** One chunk's ids: the earliest merge first, everywhere and from left to right. */
  merged(chunk) {
    let ids = bytesOf(chunk).map((byte) => this.ofByte.get(byte));
    const made = (i) => this.merge.get(ids[i] * this.size + ids[i + 1]) ?? Infinity;
    for (;;) {
      let first = Infinity;
      for (let i = 0; i + 1 < ids.length; i++) first = Math.min(first, made(i));
      if (first === Infinity) return ids;
      const shorter = [];
      for (let i = 0; i < ids.length; i++) shorter.push(made(i) === first ? (i++, first) : ids[i]);
      ids = shorter;
    }
  }
}

const WORD = "\\p{L}\\p{N}_", PYTHON_SPACE = SPACE + "\\x1c-\\x1f";
const WORD_PATTERN = new RegExp(
  ` ?[${WORD}]+|'[${WORD}]+| ?[^${WORD}${PYTHON_SPACE}]|[${PYTHON_SPACE}]`,
  "gu",
);

/** One token per word or sign, with the space before it; <unk> for the rest. */
class WordTokenizer extends Tokenizer {
  constructor({ words }) {
    super(["<unk>", ...words]);
  }
  encode(text) {
    bytesOf(text); // says what is none
    const unknown = (word) => (word[0] === " " && this.number.get(" <unk>")) || 0;
    return (text.match(WORD_PATTERN) ?? []).map((word) => this.number.get(word) ?? unknown(word));
  }
}

/** One token per event, each a line; 0 is an unknown one, 1 and 2 begin and end. */
class EventTokenizer extends Tokenizer {
  constructor({ events }) {
    super(["<unknown>", "<begin>", "<end>", ...events]);
  }
  encode(text) {
    return text.split("\n").filter(Boolean).map((line) => this.number.get(line) ?? 0);
  }
  decode(ids) {
    return ids.map((id) => this.names[id] + "\n").join("");
  }
}

const TOKENIZERS = {
  char: CharTokenizer, byte: ByteTokenizer, bpe: BPETokenizer, word: WordTokenizer, events: EventTokenizer,
};
