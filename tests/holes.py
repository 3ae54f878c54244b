"""For each hole: plausible mistakes, and another way that is right.

A mistake is what its message must say (a pattern), and a change of the course's code: what
stands there, and what instead.
"""

# fmt: off
HOLES = {}

HOLES["single_head"] = {
    "attention_weights": (
        [
            ("not divided", " / math.sqrt(q.shape[-1])", ""),
            ("not by its square root", "math.sqrt(q.shape[-1])", "q.shape[-1]"),
            ("something else than D", "math.sqrt(q.shape[-1])", "math.sqrt(q.shape[-2])"),
            ("future leaks", "scores.masked_fill(~past, -math.inf)", "scores"),
            ("future leaks", ".tril(Tk - Tq)", ".tril(1)"),
            ("after the softmax", "scores.masked_fill(~past, -math.inf).softmax(dim=-1)", "scores.softmax(dim=-1).masked_fill(~past, 0.0)"),
            ("sums to one", "softmax(dim=-1)", "softmax(dim=-2)"),
            ("changed places", "q @ k.mT", "k @ q.mT"),
            ("at itself", ".tril(Tk - Tq)", ".tril(Tk - Tq - 1)"),
            ("further right", ".tril(Tk - Tq)", ".tril()"),
            ("itself was changed", "scores = q @ k.mT / math.sqrt(q.shape[-1])", "q /= math.sqrt(q.shape[-1])\n    scores = q @ k.mT"),
            ("stops at `scores = q @ k", "q @ k.mT", "q @ k"),
            ("`return` missing", "return scores", "scores"),
        ],
        """
def attention_weights(q, k):
    n_q, n_k = q.size(-2), k.size(-2)
    if n_q > n_k:
        raise ValueError("too many queries")
    places = torch.arange(n_k)
    e = torch.einsum("...qd,...kd->...qk", q, k).div(q.size(-1) ** 0.5).exp()
    e = e * (places[None] <= (places[-n_q:] if n_q else places[:0])[:, None])
    return e / e.sum(-1, keepdim=True)
""",
    ),
    "attention": (
        [
            ("equal weights", "attention_weights(q, k) @ v", "torch.ones(v.shape[-2], v.shape[-2]).tril().div(torch.arange(1, v.shape[-2] + 1)[:, None]) @ v"),
            ("unmixed", "attention_weights(q, k) @ v", "v"),
            ("expected", "attention_weights(q, k) @ v", "attention_weights(k, q) @ v"),
            ("expected", "attention_weights(q, k) @ v", "attention_weights(q, k).mT @ v"),
            ("expected", "attention_weights(q, k) @ v", "(q @ k.mT).softmax(-1) @ v"),
        ],
        """
def attention(q, k, v):
    weights = attention_weights(q, k)
    return torch.stack([(w[..., None] * v).sum(-2) for w in weights.unbind(-2)], -2)
""",
    ),
    "previous": (
        [
            ("looks at itself", "places[:n], places[1:]", "places[:n], places[:n]"),
            ("make the scores larger", "50 *", "5 *"),
            ("expected", "places[:n], places[1:]", "places[1:], places[:n]"),
        ],
        """
def previous(n):
    angle = torch.arange(n + 1) * (math.pi / (n + 2))
    places = 1000 * torch.stack([angle.cos(), angle.sin()], dim=1)
    return places[:n], places[1:]
""",
    ),
    "leaks": (
        [
            ("keys, too", "k2[j] += 1.0", "pass"),
            ("expected", "v2[j] += 1.0", "return []"),
            ("look back", "for i in range(j) if", "for i in range(j, 6) if"),
            ("came out", "[(i, j) for", "[(j, i) for"),
            ("this chapter's attention", "k2, v2 = k.clone(), v.clone()", "k2, v2 = k, v"),
        ],
        """
def leaks(attend):
    given = [torch.randn(6, 4, requires_grad=True) for _ in range(3)]
    found = set()
    for i in range(6):
        output = attend(*given)
        slopes = torch.autograd.grad(output[i].sum() + output[i].pow(2).sum(), given, allow_unused=True)
        for slope in slopes[1:]:
            if slope is not None:
                found |= {(i, j) for j in range(i + 1, 6) if slope[j].abs().sum() > 0}
    return sorted(found)
""",
    ),
}

HOLES["text"] = {
    "CharTokenizer.from_text": (
        [
            ("another order", "sorted(set(text))", "sorted(set(text), reverse=True)"),
            ("one for each time", "sorted(set(text))", "sorted(text)"),
            ("use that, not the class's name", "cls(", "CharTokenizer("),
            ("`return` missing", "return cls", "cls"),
        ],
        """
@classmethod
def from_text(cls, text):
    found = []
    for c in text:
        if c not in found:
            found.append(c)
    found.sort()
    return cls("".join(found))
""",
    ),
    "CharTokenizer.encode": (
        [
            ("needs? a tensor|need a tensor", "torch.tensor([self.number[c] for c in text], dtype=torch.int64)", "[self.number[c] for c in text]"),
            ("say dtype=torch.int64", ", dtype=torch.int64", ""),
            ("in Unicode", "self.number[c]", "ord(c)"),
            ("Count from 0", "self.number[c]", "self.number[c] + 1"),
        ],
        """
def encode(self, text):
    ids = torch.zeros(len(text)).long()
    for at, c in enumerate(text):
        ids[at] = self.characters.index(c)
    return ids
""",
    ),
    "CharTokenizer.decode": (
        [
            ("Put nothing between", '"".join', '" ".join'),
            ("glue them together", '"".join(self.characters[i] for i in ids)', "[self.characters[i] for i in ids]"),
            ("KeyError", "self.characters[i]", "self.number[i]"),
            ("in reverse", "for i in ids", "for i in list(ids)[::-1]"),
        ],
        """
def decode(self, ids):
    text = ""
    for c in map(self.characters.__getitem__, torch.as_tensor(ids).tolist()):
        text += c
    return text
""",
    ),
    "split": (
        [
            ("wrong order", "ids[:cut], ids[cut:]", "ids[cut:], ids[:cut]"),
            ("missing, or there twice", "ids[cut:]", "ids[cut + 1 :]"),
            ("rounded down", "int(fraction * len(ids))", "int(fraction * len(ids)) + 1"),
            ("rounded down", "int(fraction * len(ids))", "round(fraction * len(ids))"),
            ("expected", "ids[:cut], ids[cut:]", "ids[::2], ids[1::2]"),
        ],
        """
def split(ids, fraction=0.9):
    if fraction <= 0 or fraction >= 1:
        raise ValueError("no")
    first = math.floor(len(ids) * fraction)
    return tuple(ids[a:b] for a, b in ((0, first), (first, len(ids))))
""".replace("math.floor", "__import__('math').floor"),
    ),
    "get_batch": (
        [
            ("shift them by one", "ids[places + 1]", "ids[places]"),
            ("what came before", "ids[places + 1]", "ids[places - 1]"),
            ("never drawn", "torch.randint(last + 1", "torch.randint(last"),
            ("IndexError", "torch.randint(last + 1", "torch.randint(last + 2"),
            ("handed to randint", ", generator=generator", ""),
            ("random places", "(batch_size, 1), generator=generator)", "(1, 1), generator=generator).expand(batch_size, 1)"),
            ("look up what stands there", "return ids[places], ids[places + 1]", "return places, places + 1"),
            ("size of tensor a", "(batch_size, 1)", "(batch_size,)"),
            ("shape of the inputs", "ids[places], ids[places + 1]", "ids[places].T, ids[places + 1].T"),
        ],
        """
def get_batch(ids, batch_size, block_size, generator=None):
    if len(ids) <= block_size:
        raise ValueError("too short")
    windows = ids.unfold(0, block_size + 1, 1)
    drawn = windows[torch.randint(len(windows), (batch_size,), generator=generator)]
    return drawn[:, :-1], drawn[:, 1:]
""",
    ),
}

HOLES["bigram"] = {
    "SGD.zero_grad": (
        [
            ("not a copy", "p.grad = None", "grad = None"),
            ("not a copy", "p.grad = None", "p.grad = p.grad"),
            ("not a copy", "for p in self.parameters", "for p in self.parameters[:1]"),
        ],
        """
def zero_grad(self):
    for p in self.parameters:
        if p.grad is not None:
            p.grad.zero_()
""",
    ),
    "SGD.step": (
        [
            ("goes uphill", "p.sub_(", "p.add_("),
            ("rate is left out", "self.learning_rate * v", "v"),
            ("in place", "p.sub_(self.learning_rate * v)", "p = p - self.learning_rate * v"),
            ("first step is forgotten", "v.mul_(self.momentum).add_(p.grad)", "v.zero_().add_(p.grad)"),
            ("doesn't fade", "v.mul_(self.momentum).add_(p.grad)", "v.add_(p.grad)"),
            ("old rate", "v.mul_(self.momentum).add_(p.grad)\n            p.sub_(self.learning_rate * v)", "v.mul_(self.momentum).add_(self.learning_rate * p.grad)\n            p.sub_(v)"),
            ("NoneType", "if p.grad is not None", "if True"),
        ],
        """
@torch.no_grad()
def step(self):
    for i, p in enumerate(self.parameters):
        if p.grad is None:
            continue
        self.velocities[i] = self.momentum * self.velocities[i] + p.grad
        p += -self.learning_rate * self.velocities[i]
""",
    ),
    "training_step": (
        [
            ("is `zero_grad` called", "optimizer.zero_grad()", "pass"),
            ("`zero_grad` must come before", "optimizer.zero_grad()\n    loss.backward()", "loss.backward()\n    optimizer.zero_grad()"),
            ("step\\(\\)` called", "optimizer.step()", "pass"),
            ("a tensor\nexpected: a number", "loss.item()", "loss"),
            ("after the move", "return loss.item()", "return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).item()"),
            ("take the mean", "return loss.item()", "return loss.item() * targets.numel()"),
            ("stops at", "logits.flatten(0, 1)", "logits"),
        ],
        """
def training_step(model, optimizer, inputs, targets):
    optimizer.zero_grad()
    log_p = model(inputs).log_softmax(-1)
    loss = -log_p.gather(-1, targets[..., None]).mean()
    loss.backward()
    before = float(loss.detach())
    optimizer.step()
    return before
""",
    ),
    "evaluate": (
        [
            ("divide by those", "(len(ids) - 1)", "len(ids)"),
            ("divide by the number", "return total / (len(ids) - 1)", "return total"),
            ("reduction='sum'", 'reduction="sum"', 'reduction="mean"'),
            ("too much", "total / (len(ids) - 1)", "sum(F.cross_entropy(model(a).flatten(0, 1), b.flatten()).item() for a, b in windows_of(model, ids, block_size, 1)) / 3"),
            ("kind of thing|NaN|expected", "return total / (len(ids) - 1)", "return torch.tensor(total / (len(ids) - 1))"),
        ],
        """
@torch.no_grad()
def evaluate(model, ids, block_size=None, tokens_at_once=None):
    every = []
    with evaluating(model):
        for x, y in windows_of(model, ids, block_size, tokens_at_once):
            log_p = model(x).log_softmax(-1)
            every.append(-log_p.gather(-1, y[..., None]).flatten())
    return torch.cat(every).double().mean().item()
""",
    ),
}

HOLES["multi_head"] = {
    "fused_attention": (
        [
            ("may see every key", "is_causal=Tq > 1", "is_causal=True"),
            ("future leaks", "is_causal=Tq > 1", "is_causal=False"),
            ("further right", ".tril(Tk - Tq)", ".tril()"),
            ("further right|2 queries", "Tq == 1 or Tq == Tk", "True"),
            ("future leaks", "attn_mask=allowed", "attn_mask=None"),
            ("expected", "attn_mask=allowed", "attn_mask=~allowed"),
        ],
        """
def fused_attention(q, k, v):
    n, m = q.shape[-2], k.shape[-2]
    if n > m:
        raise ValueError("too many")
    late = torch.arange(m)[None] > torch.arange(m - n, m)[:, None]
    shift = torch.zeros(n, m).masked_fill(late, -torch.inf)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=shift)
""",
    ),
    "MultiHeadAttention.project": (
        [
            ("wrong numbers", "qkv = self.to_qkv(x).view(B, T, 3, self.n_head, C // self.n_head)\n    return qkv.permute(2, 0, 3, 1, 4).unbind()", "return [p.reshape(B, self.n_head, T, C // self.n_head) for p in self.to_qkv(x).chunk(3, -1)]"),
            ("the 3 before the heads", "3, self.n_head, C // self.n_head)\n    return qkv.permute(2, 0, 3, 1, 4)", "self.n_head, 3, C // self.n_head)\n    return qkv.permute(3, 0, 2, 1, 4)"),
            ("another order: each must be", "permute(2, 0, 3, 1, 4)", "permute(2, 0, 1, 3, 4)"),
            ("q, k, v", ".unbind()", ".flip(0).unbind()"),
            ("expected", "3, self.n_head, C // self.n_head", "3, C // self.n_head, self.n_head"),
        ],
        """
def project(self, x):
    heads = []
    for part in self.to_qkv(x).chunk(3, dim=-1):
        heads.append(torch.stack(part.chunk(self.n_head, dim=-1), dim=1))
    return tuple(heads)
""",
    ),
    "MultiHeadAttention.merge": (
        [
            ("swap H and T first", "y.transpose(1, 2).flatten(2)", "y.reshape(y.shape[0], y.shape[2], -1)"),
            ("matrix is left out", "self.output(y.transpose(1, 2).flatten(2))", "y.transpose(1, 2).flatten(2)"),
            ("shuffled", "y.transpose(1, 2)", "y.permute(0, 2, 3, 1)"),
            ("stops at", "y.transpose(1, 2).flatten(2)", "y.flatten(1)"),
            ("expected", "y.transpose(1, 2)", "y.flip(1).transpose(1, 2)"),
        ],
        """
def merge(self, y):
    return self.output(torch.cat([head for head in y.unbind(1)], dim=-1))
""",
    ),
    "MultiHeadAttention.forward": (
        [
            ("left out", "self.attend(*self.project(x))", "self.project(x)[2]"),
            ("not merged", "self.merge(self.attend(*self.project(x)))", "self.attend(*self.project(x))"),
            ("not merged", "self.merge(self.attend(*self.project(x)))", "self.attend(*self.project(x)).transpose(1, 2).flatten(2)"),
            ("changed places", "self.attend(*self.project(x))", "self.attend(self.project(x)[1], self.project(x)[0], self.project(x)[2])"),
            ("chapter 05", "return self", "return x + self"),
            ("future leaks", "self.attend(*self.project(x))", "F.scaled_dot_product_attention(*self.project(x))"),
        ],
        """
def forward(self, x):
    q, k, v = self.project(x)
    found = self.attend(q, k, v)
    return self.merge(found)
""",
    ),
}

HOLES["blocks"] = {
    "FeedForward.forward": (
        [
            ("two matrices are just one", "self.activation(self.widen(x))", "self.widen(x)"),
            ("call `self.activation`", "self.activation(", "fast_gelu("),
            ("between the matrices", "self.output(self.activation(self.widen(x)))", "self.activation(self.output(self.widen(x)))"),
            ("second matrix is missing", "self.output(self.activation(self.widen(x)))", "self.activation(self.widen(x))"),
            ("from outside", "return ", "return x + "),
        ],
        """
def forward(self, x):
    wide = x @ self.widen.weight.T
    if self.widen.bias is not None:
        wide = wide + self.widen.bias
    return self.output(self.activation(wide))
""",
    ),
    "layer_norm": (
        [
            ("divided by C - 1", "((x - mean) ** 2).mean(dim=-1, keepdim=True)", "x.var(dim=-1, keepdim=True)"),
            ("mean is not taken away", "y = (x - mean)", "y = x"),
            ("something else", "mean = x.mean(dim=-1, keepdim=True)\n    variance = ((x - mean) ** 2).mean(dim=-1, keepdim=True)", "mean = x.mean(dim=0, keepdim=True)\n    variance = ((x - mean) ** 2).mean(dim=0, keepdim=True)"),
            ("root is missing", "torch.sqrt(variance + eps)", "(variance + eps)"),
            ("inside the root", "torch.sqrt(variance + eps)", "(torch.sqrt(variance) + eps)"),
            ("weight is left out", " * weight", ""),
            ("bias is left out|No bias", "return y if bias is None else y + bias", "return y"),
            ("eps is missing", "variance + eps", "variance"),
            ("stops at", "y if bias is None else y + bias", "y + bias"),
            ("itself was changed", "y = (x - mean)", "x -= mean\n    y = x"),
        ],
        """
def layer_norm(x, weight, bias, eps=1e-5):
    spread, middle = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
    out = torch.rsqrt(spread + eps) * (x - middle)
    out = torch.einsum("...c,c->...c", out, weight)
    if bias is not None:
        out = out.add(bias)
    return out
""",
    ),
    "Dropout.forward": (
        [
            ("ones to keep", ">= self.p", "< self.p"),
            ("scaled up", " / (1 - self.p)", ""),
            ("scaled down", "/ (1 - self.p)", "* (1 - self.p)"),
            ("not by p", "/ (1 - self.p)", "/ self.p"),
            ("together", "torch.rand_like(x)", "torch.rand(x.shape[-1])"),
            ("Nothing is dropped", "return x * kept / (1 - self.p)", "return x"),
            ("itself was changed", "return x * kept / (1 - self.p)", "return x.mul_(kept).div_(1 - self.p)"),
        ],
        """
def forward(self, x):
    if self.training and self.p:
        stays = torch.bernoulli(torch.full(x.shape, 1 - self.p))
        return torch.where(stays.bool(), x / (1 - self.p), 0.0)
    return x
""",
    ),
    "Block.forward": (
        [
            ("must add to it", "x = x + self.dropout(self.attention", "x = self.dropout(self.attention"),
            ("must add to it", "return x + self.dropout", "return self.dropout"),
            ("as it was before", "x = x + self.dropout(self.attention(self.attention_norm(x)))\n    return x +", "return x + self.dropout(self.attention(self.attention_norm(x))) +"),
            ("own norm", "self.feed_forward_norm(x)", "self.attention_norm(x)"),
            ("norms are left out", "self.attention(self.attention_norm(x)))\n    return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))", "self.attention(x))\n    return x + self.dropout(self.feed_forward(x))"),
            ("not to the stream", "return x +", "return self.feed_forward_norm(x) +"),
            ("How often dropout", "self.dropout(self.feed_forward(self.feed_forward_norm(x)))", "self.feed_forward(self.feed_forward_norm(x))"),
            ("never the stream", "return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))", "return self.dropout(x + self.feed_forward(self.feed_forward_norm(x)))"),
            ("post-norm", "x = x + self.dropout(self.attention(self.attention_norm(x)))\n    return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))", "x = self.attention_norm(x + self.dropout(self.attention(x)))\n    return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))"),
        ],
        """
def forward(self, x):
    pairs = (self.attention_norm, self.attention), (self.feed_forward_norm, self.feed_forward)
    for norm, part in pairs:
        x = torch.add(x, self.dropout(part(norm(x))))
    return x
""",
    ),
}

HOLES["text"] |= {
    "starts": (
        [
            ("needs a target", "len(text) - T", "len(text) - T + 1"),
            ("one too few", "len(text) - T", "len(text) - T - 1"),
            ("expected", "len(text) - T", "len(text) // T"),
        ],
        '''
def starts(text, T):
    return sum(1 for i in range(len(text)) if i + T < len(text))
''',
    ),
    "different": (
        [
            ("count equal ones once", "len({text[i : i + T] for i in range(starts(text, T))})", "starts(text, T)"),
            ("has no target", "range(starts(text, T))", "range(starts(text, T) + 1)"),
            ("expected", "text[i : i + T]", "text[i]"),
        ],
        '''
def different(text, T):
    found = []
    for i in range(len(text) - T):
        if text[i : i + T] not in found:
            found += [text[i : i + T]]
    return len(found)
''',
    ),
    "LowerTokenizer.from_text": (
        [
            ("lower the text first", "text.lower()", "text"),
            ("expected", "text.lower()", "text.upper()"),
            ("kind of tokenizer", "super().from_text(text.lower())", "CharTokenizer.from_text(text.lower())"),
        ],
        '''
@classmethod
def from_text(cls, text):
    return cls(sorted({c.lower() for c in text}))
''',
    ),
    "LowerTokenizer.encode": (
        [
            ("Error", "text.lower()", "text"),
            ("need a tensor", "super().encode(text.lower())", "[self.number[c] for c in text.lower()]"),
            ("Error", "text.lower()", "text.upper()"),
        ],
        '''
def encode(self, text):
    return torch.tensor([self.number[c.lower()] for c in text])
''',
    ),
    "bound": (
        [
            ("These are bits", "-log(share[c])", "-log(share[c]) / log(2)"),
            ("count in the first", "n / len(train_text) for c, n in Counter(train_text)", "n / len(val_text) for c, n in Counter(val_text)"),
            ("divide by the length", " / len(val_text)", ""),
            ("knowing nothing", "return sum(-log(share[c]) for c in val_text) / len(val_text)", "return log(len(share))"),
            ("second text", "for c in val_text) / len(val_text)", "for c in train_text) / len(train_text)"),
        ],
        '''
def bound(train_text, val_text):
    total, n = 0.0, len(train_text)
    for c, times in Counter(val_text).items():
        total += times * (log(n) - log(train_text.count(c)))
    return total / len(val_text)
''',
    ),
}

HOLES["bigram"] |= {
    "gradient": (
        [
            ("N-th of the slope", " / len(targets)", ""),
            ("take away what came", "slopes[torch.arange(len(targets)), targets] -= 1", "pass"),
            ("over each row", "softmax(dim=1)", "softmax(dim=0)"),
            ("prediction minus the truth", "return slopes / len(targets)", "return -slopes / len(targets)"),
            ("itself was changed|logits", "slopes = logits.softmax(dim=1)", "slopes = logits.exp_().div_(logits.sum(1, keepdim=True))"),
        ],
        '''
def gradient(logits, targets):
    came = F.one_hot(targets, logits.shape[1])
    p = logits.exp() / logits.exp().sum(1, keepdim=True)
    return (p - came).div(len(logits))
''',
    ),
    "gradient_lengths": (
        [
            ("not of its gradient", "model.table.grad.norm()", "model.table.norm()"),
            ("root of the sum", "model.table.grad.norm()", "model.table.grad.pow(2).sum()"),
            ("root of the sum", "model.table.grad.norm()", "model.table.grad.abs().max()"),
            ("table afterwards|came out", "for inputs, targets in batches:", "for inputs, targets in [*batches] * 2:"),
        ],
        '''
def gradient_lengths(model, optimizer, batches):
    found = []
    for batch in batches:
        training_step(model, optimizer, *batch)
        found.append((model.table.grad ** 2).sum().sqrt())
    return found
''',
    ),
    "occurring": (
        [
            ("count once", "{text[i : i + k] for i in range(len(text) - k + 1)}", "[text[i : i + k] for i in range(len(text) - k + 1)]"),
            ("left out", "len(text) - k + 1", "len(text) - k"),
            ("V \\*\\* k", "len(set(text)) ** k", "(len(set(text)) * k)"),
            ("not 65", "len(set(text))", "65"),
        ],
        '''
def occurring(text, k):
    pieces = set(zip(*(text[i:] for i in range(k))))
    possible = 1
    for _ in range(k):
        possible *= len(set(text))
    return len(pieces) / possible
''',
    ),
}

HOLES["multi_head"] |= {
    "without": (
        [
            ("second dimension", "found[:, heads]", "found[:, :, heads]"),
            ("itself was changed", ".clone()", ""),
            ("Nothing is missing", "found[:, heads] = 0.0", "pass"),
            ("Is what comes back a function", "return rest", "return rest(torch.ones(1, 4, 1, 1), 0, 0)"),
        ],
        '''
def without(attend, heads):
    def less(q, k, v):
        mask = torch.tensor([float(h not in heads) for h in range(q.shape[1])])
        return attend(q, k, v) * mask[:, None, None]
    return less
''',
    ),
    "by_hand": (
        [
            ("look at the token itself", "30 * quarter", "30 * torch.eye(2)"),
            ("wrong way|expected", "[[0.0, 1.0], [-1.0, 0.0]]", "[[0.0, -1.0], [1.0, 0.0]]"),
            ("expected", "30 * torch.eye(2)", "0.3 * torch.eye(2)"),
            ("changed places", "layer.output.weight.copy_(torch.eye(4))", "layer.output.weight.copy_(torch.eye(4).roll(2, 0))"),
        ],
        '''
def by_hand():
    layer = MultiHeadAttention(4, 2)
    with torch.no_grad():
        for p in layer.parameters():
            p.zero_()
        w = layer.to_qkv.weight
        w[4, 2] = w[5, 3] = w[6, 2] = w[7, 3] = 7
        w[0, 2] = w[1, 3] = w[2, 3] = 7
        w[3, 2] = -7
        for head in (0, 1):
            w[8 + 2 * head, 0] = w[9 + 2 * head, 1] = 0.5
        layer.output.weight.copy_(2 * torch.eye(4))
    return layer
''',
    ),
    "moved_by_last": (
        [
            ("not the last output alone", "return sorted({(h * n + n - 1) // heads for h in range(heads)})", "return [n - 1]"),
            ("expected", "// heads", "// n"),
            ("expected", "(h * n + n - 1) //", "(h * n) //"),
            ("expected", "for h in range(heads)", "for h in range(heads - 1)"),
        ],
        '''
def moved_by_last(n, heads):
    rows = torch.arange(heads * n).view(heads, n)
    lie = rows.reshape(n, heads)
    last = rows[:, -1].tolist()
    return [t for t in range(n) if any(r in last for r in lie[t].tolist())]
''',
    ),
}

HOLES["blocks"] |= {
    "either": (
        [
            ("fires for both", "[[1.0, -1.0], [-1.0, 1.0]]", "[[1.0, 0.0], [0.0, 1.0]]"),
            ("one of the two", "[[1.0, -1.0], [-1.0, 1.0]]", "[[1.0, -1.0], [0.0, 0.0]]"),
            ("expected", "layer.output.weight[2, :2] = 1", "layer.output.weight[2, :2] = 2"),
            ("expected", "layer.output.weight[2, :2] = 1", "layer.output.weight[:2, 2] = 1"),
        ],
        '''
def either():
    layer = FeedForward(4, activation=F.relu)
    with torch.no_grad():
        for p in layer.parameters():
            p.zero_()
        layer.widen.weight[5, :2] = 1.0
        layer.widen.weight[6, :2] = 1.0
        layer.widen.bias[6] = -1.0
        layer.output.weight[2, 5], layer.output.weight[2, 6] = 1.0, -2.0
    return layer
''',
    ),
    "quiet": (
        [
            ("still adds", "(block.attention.output, block.feed_forward.output)", "(block.attention.output,)"),
            ("still adds", "nn.init.zeros_(part.bias)", "pass"),
            ("Fewer are enough", "nn.init.zeros_(part.bias)", "nn.init.zeros_(part.bias)\n        nn.init.zeros_(block.attention_norm.weight)"),
            ("pass(es)? through", '("weight", "bias")\n    return {f"{part}.output.{kind}" for part in parts for kind in kinds}', "0\n    return {name for name, _ in block.named_parameters()}"),
        ],
        '''
def quiet(block):
    names = set()
    with torch.no_grad():
        for name, p in block.named_parameters():
            if ".output." in name:
                p.zero_()
                names.add(name)
    return names
''',
    ),
    "contribution": (
        [
            ("through its norm", "block.attention(block.attention_norm(x))", "block.attention(x)"),
            ("without the stream", "return block", "return x + block"),
            ("whole block", "block.attention(block.attention_norm(x))", "block(x) - x"),
            ("norm of its own", "block.attention_norm(x)", "block.feed_forward_norm(x)"),
        ],
        '''
def contribution(block, x):
    normed = F.layer_norm(x, x.shape[-1:]) * block.attention_norm.weight + block.attention_norm.bias
    q, k, v = block.attention.project(normed)
    return block.attention.merge(block.attention.attend(q, k, v))
''',
    ),
}

HOLES["gpt"] = {
    "draw_weights": (
        [
            ("2L additions is missing", "part.output.weight.mul_((2 * len(model.blocks)) ** -0.5)", "pass"),
            ("2L in all", "(2 * len(model.blocks)) ** -0.5", "len(model.blocks) ** -0.5"),
            ("not 1 / \\(2L\\)", "(2 * len(model.blocks)) ** -0.5", "(2 * len(model.blocks)) ** -1"),
            ("five times smaller", "nn.init.normal_(model.head.weight, std=0.2 * model.head.in_features**-0.5)", "pass"),
            ("deviation is its root", "nn.init.normal_(module.weight, std=module.in_features**-0.5)", "nn.init.normal_(module.weight, std=module.in_features**-1)"),
            ("not that of the outputs", "nn.init.normal_(module.weight, std=module.in_features**-0.5)", "nn.init.normal_(module.weight, std=module.out_features**-0.5)"),
            ("bias", "nn.init.zeros_(module.bias)", "pass"),
            ("It was not drawn", "nn.init.normal_(module.weight)", "pass"),
        ],
        '''
@torch.no_grad()
def draw_weights(model):
    for name, p in model.named_parameters():
        if "norm" in name:
            continue
        if p.dim() < 2:
            p.zero_()
            continue
        width = 1 if "embedding" in name else p.shape[1]
        size = 1 / math.sqrt(width)
        if name.endswith("output.weight"):
            size /= math.sqrt(2 * model.config.n_layer)
        elif name.startswith("head"):
            size /= 5
        p.copy_(size * torch.randn_like(p))
''',
    ),
    "GPT.__init__": (
        [
            ("ModuleList", "nn.ModuleList(\n        Block(c.n_embd, c.n_head, c.dropout, c.bias) for _ in range(c.n_layer)\n    )", "[Block(c.n_embd, c.n_head, c.dropout, c.bias) for _ in range(c.n_layer)]"),
            ("How many blocks", "range(c.n_layer)", "range(c.n_layer - 1)"),
            ("block_size rows", "nn.Embedding(c.block_size, c.n_embd)", "nn.Embedding(c.vocab_size, c.n_embd)"),
            ("head has no bias", "c.vocab_size, bias=False", "c.vocab_size"),
            ("that of the blocks", "c.n_head, c.dropout, c.bias", "c.n_head, bias=c.bias"),
            ("bias=False", "self.norm = LayerNorm(c.n_embd, c.bias)", "self.norm = LayerNorm(c.n_embd)"),
            ("missing", "self.norm = LayerNorm(c.n_embd, c.bias)", "self.last = LayerNorm(c.n_embd, c.bias)"),
            ("ModuleList", "Block(c.n_embd, c.n_head, c.dropout, c.bias) for _ in range(c.n_layer)", "[Block(c.n_embd, c.n_head, c.dropout, c.bias)] * c.n_layer"),
        ],
        '''
def __init__(self, config):
    super().__init__()
    self.config = config
    n, width = config.n_layer, config.n_embd
    self.head = nn.Linear(width, config.vocab_size, bias=False)
    self.norm = LayerNorm(width, bias=config.bias)
    self.blocks = nn.ModuleList()
    while len(self.blocks) < n:
        self.blocks.append(Block(width, config.n_head, dropout=config.dropout, bias=config.bias))
    self.dropout = Dropout(config.dropout)
    self.position_embedding = nn.Embedding(config.block_size, width)
    self.token_embedding = nn.Embedding(config.vocab_size, width)
    draw_weights(self)
''',
    ),
    "GPT.embed": (
        [
            ("positions are missing", " + self.places(start, ids.shape[1])", ""),
            ("keeps its place", "self.places(start, ids.shape[1])", "self.places(0, ids.shape[1] - start)"),
            ("asked for", "self.token_embedding(ids[:, start:]) + self.places(start, ids.shape[1])", "self.token_embedding(ids) + self.places(0, ids.shape[1])"),
            ("refuses too many|Error", "self.places(start, ids.shape[1])", "self.position_embedding.weight[start : ids.shape[1]]"),
        ],
        '''
def embed(self, ids, start=0):
    T = ids.shape[1]
    return (self.token_embedding(ids) + self.places(0, T))[:, start:]
''',
    ),
    "GPT.read_out": (
        [
            ("norm is left out", "self.head(self.norm(x))", "self.head(x)"),
            ("no logits yet", "self.head(self.norm(x))", "self.norm(x)"),
            ("taken by the loss", "self.head(self.norm(x))", "self.head(self.norm(x)).softmax(-1)"),
        ],
        '''
def read_out(self, x):
    return self.norm(x) @ self.head.weight.T
''',
    ),
    "GPT.forward": (
        [
            ("past no block", "x = block(x)", "block(x)"),
            ("Only one block", "for block in self.blocks", "for block in self.blocks[:1]"),
            ("`read_out` is missing", "self.read_out(x)", "x"),
            ("in reverse", "in self.blocks", "in reversed(self.blocks)"),
            ("add to the stream themselves", "x = block(x)", "x = x + block(x)"),
            ("How often", "self.dropout(self.embed(ids))", "self.embed(ids)"),
        ],
        '''
def forward(self, ids):
    stream = self.embed(ids)
    for part in [self.dropout, *self.blocks]:
        stream = part(stream)
    return self.read_out(stream)
''',
    ),
    "GPT.n_parameters": (
        [
            ("count the numbers", "sum(p.numel() for p in self.parameters())", "len(list(self.parameters()))"),
            ("first dimension", "p.numel()", "len(p)"),
            ("expected", "self.parameters()", "self.blocks.parameters()"),
        ],
        '''
def n_parameters(self):
    return sum(torch.cat([p.detach().flatten() for p in self.parameters()]).shape)
''',
    ),
    "share": (
        [
            ("Norms and biases", "(8 * C**2 + 5 * C) / (12 * C**2 + 13 * C)", "2 / 3"),
            ("attention's", "8 * C**2 + 5 * C", "4 * C**2 + 4 * C"),
            ("divide by the whole", "12 * C**2 + 13 * C", "4 * C**2 + 8 * C"),
            ("expected", "5 * C", "4 * C"),
        ],
        '''
def share(C):
    return (8 * C + 5) / (12 * C + 13)
''',
    ),
    "fits": (
        [
            ("counted once", "(vocab_size + 1024 + 2)", "(2 * vocab_size + 1024 + 2)"),
            ("\\*All\\*", "return False", "continue"),
            ("\\*All\\*", "    return True", "        return True"),
            ("counted once", "vocab_size + 1024 + 2", "vocab_size"),
        ],
        '''
def fits(vocab_size, shapes):
    def millions(L, C):
        return round((12 * L * C * C + 13 * L * C + vocab_size * C + 1026 * C) / 1_000_000)
    return all(millions(L, C) == m for L, C, m in shapes)
''',
    ),
    "flops": (
        [
            ("\\*and\\* an addition", "return 2 * config", "return config"),
            ("for one token", "2 * config.block_size", "2"),
            ("matrix, too", " + V * C", ""),
            ("looked up", "V * C)", "V * C + V * C + config.block_size * C)"),
            ("not for each block", "(L * 12 * C**2 + V * C)", "L * (12 * C**2 + V * C)"),
        ],
        '''
def flops(config):
    model = GPT(config)
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    return weights * config.block_size * 2
''',
    ),
}

HOLES["training"] = {
    "AdamW.step": (
        [
            ("ZeroDivision", "self.steps += 1", "pass"),
            ("divide by 1 - beta", "start1, start2 = 1 - beta1**self.steps, 1 - beta2**self.steps", "start1, start2 = 1.0, 1.0"),
            ("decay is left out", "p.mul_(1 - self.learning_rate * self.weight_decay)", "pass"),
            ("not by an amount", "p.mul_(1 - self.learning_rate * self.weight_decay)", "p.sub_(self.learning_rate * self.weight_decay)"),
            ("two or more dimensions", "if p.dim() >= 2:", "if True:"),
            ("by the rate, too", "1 - self.learning_rate * self.weight_decay", "1 - self.weight_decay"),
            ("part of the slope", "m.lerp_(p.grad, 1 - beta1)", "p.grad = p.grad + self.weight_decay * p * (p.dim() >= 2)\n        p.data.div_(1 - self.learning_rate * self.weight_decay) if p.dim() >= 2 else 0\n        m.lerp_(p.grad, 1 - beta1)"),
            ("goes uphill", "value=-self.learning_rate / start1", "value=self.learning_rate / start1"),
            ("rate is left out", "value=-self.learning_rate / start1", "value=-1 / start1"),
            ("corrected averages back", "scale = (v / start2).sqrt_().add_(self.eps)\n        p.addcdiv_(m, scale, value=-self.learning_rate / start1)", "m.div_(start1)\n        v.div_(start2)\n        p.addcdiv_(m, v.sqrt(), value=-self.learning_rate)"),
            ("not under it", "(v / start2).sqrt_().add_(self.eps)", "(v / start2).add_(self.eps).sqrt_()"),
            ("in place", "p.addcdiv_(m, scale, value=-self.learning_rate / start1)", "p = p - self.learning_rate / start1 * m / scale"),
            ("square|step", "addcmul_(p.grad, p.grad, value=1 - beta2)", "add_(p.grad.abs(), alpha=1 - beta2)"),
            ("stops at", "if p.grad is None:", "if False:"),
        ],
        '''
@torch.no_grad()
def step(self):
    self.steps = t = self.steps + 1
    b1, b2 = self.betas
    for i, p in enumerate(self.parameters):
        g = p.grad
        if g is not None:
            self.means[i] = b1 * self.means[i] + (1 - b1) * g
            self.squares[i] = b2 * self.squares[i] + (1 - b2) * g**2
            m, v = self.means[i] / (1 - b1**t), self.squares[i] / (1 - b2**t)
            shrink = self.weight_decay if p.ndim > 1 else 0.0
            p -= self.learning_rate * (m / (v**0.5 + self.eps) + shrink * p)
''',
    ),
    "learning_rate_at": (
        [
            ("stands still", "(step + 1) / config.steps", "step / config.steps"),
            ("not to 1", "config.learning_rate * done", "done"),
            ("begun with the run", "shape(left / config.cooldown)", "shape(left)"),
            ("other shape", "COOLDOWNS[config.cooldown_shape]", 'COOLDOWNS["cosine"]'),
            ("One step off", "(config.steps - step) / config.steps", "(config.steps - step - 1) / config.steps"),
            ("warm-up is left out", "if done < config.warmup:", "if False:"),
            ("cool-down is left out", "if left < config.cooldown:", "if False:"),
        ],
        '''
def learning_rate_at(step, config):
    up = config.steps * config.warmup
    if step + 1 < up:
        return config.learning_rate * (step + 1) / up
    down = config.steps * config.cooldown
    if config.steps - step >= down:
        return config.learning_rate
    x = (config.steps - step) / down
    return config.learning_rate * (x if config.cooldown_shape == "linear" else math.sin(math.pi * x / 2) ** 2)
''',
    ),
    "clip_gradients": (
        [
            ("sum of the lengths", "torch.stack([g.norm() for g in gradients]).norm()", "torch.stack([g.norm() for g in gradients]).sum()"),
            ("root is missing", "torch.stack([g.norm() for g in gradients]).norm()", "torch.stack([g.norm() ** 2 for g in gradients]).sum()"),
            ("longest of them", "torch.stack([g.norm() for g in gradients]).norm()", "torch.stack([g.norm() for g in gradients]).max()"),
            ("short enough stay", "if length > longest:", "if True:"),
            ("longest / length", "longest / length", "1 / length"),
            ("in place", "g.mul_(longest / length)", "g = g * longest / length"),
            ("one pass", "for g in gradients:", "for g in [p.grad for p in parameters if p.grad is not None]:"),
            ("by itself", "g.mul_(longest / length)", "g.mul_(min(1.0, longest / g.norm().item()))"),
            ("length afterwards", "return length", "return min(length, longest)"),
            ("not of their gradients", "[p.grad for p in parameters if p.grad is not None]", "[p.data for p in parameters]"),
            ("Error", " if p.grad is not None", ""),
        ],
        '''
@torch.no_grad()
def clip_gradients(parameters, longest):
    some = [p for p in parameters if p.grad is not None]
    length = float(sum((p.grad**2).sum() for p in some)) ** 0.5
    factor = longest / length if length > longest else 1.0
    for p in some:
        p.grad = factor * p.grad
    return length
''',
    ),
    "Trainer.take_step": (
        [
            ("before the step", "self.optimizer.learning_rate = learning_rate_at(self.step, self.config)", "pass"),
            ("rate of another step", "learning_rate_at(self.step, self.config)", "learning_rate_at(self.step + 1, self.config)"),
            ("own generator", "*size, self.batches", "*size"),
            ("own generator", "self.config.batch_size, self.context", "self.context, self.config.batch_size"),
            ("goes on", 'self.check_finite("the loss", loss)', "pass"),
            ("before you keep it", 'self.check_finite("the loss", loss)\n    self.history.losses.append(loss)', 'self.history.losses.append(loss)\n    self.check_finite("the loss", loss)'),
            ("kept", "self.history.losses.append(loss)", "pass"),
        ],
        '''
def take_step(self):
    c = self.config
    inputs, targets = get_batch(self.train_ids, c.batch_size, self.context, generator=self.batches)
    self.optimizer.learning_rate = learning_rate_at(len(self.history.losses), c)
    loss = self.learn(inputs, targets)
    self.check_finite("this loss", loss)
    self.history.losses += [loss]
''',
    ),
    "Trainer.learn": (
        [
            ("clear them before", "self.optimizer.zero_grad()", "pass"),
            ("step\\(\\)` called", "self.optimizer.step()", "pass"),
            ("How often `self.brake", "self.brake()", "pass"),
            ("a tensor\nexpected: a number", "loss.item()", "loss"),
            ("loss after the step", "return loss.item()", "return F.cross_entropy(self.model(inputs).flatten(0, 1), targets.flatten()).item()"),
            ("take the mean", "F.cross_entropy(logits.flatten(0, 1), targets.flatten())", 'F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")'),
            ("between `backward`", "self.brake()\n    self.optimizer.step()", "self.optimizer.step()\n    self.brake()"),
        ],
        '''
def learn(self, inputs, targets):
    self.optimizer.zero_grad()
    log_p = self.model(inputs).log_softmax(-1)
    loss = -log_p.gather(-1, targets.unsqueeze(-1)).mean()
    loss.backward()
    self.brake()
    self.optimizer.step()
    return float(loss.detach())
''',
    ),
    "train_simply": (
        [
            ("end is looked at, too", "due or trainer.step == config.steps", "due"),
            ("ZeroDivision", "config.eval_every and ", ""),
            ("looked at once", "history.evaluations.append((trainer.step, evaluate(model, val_ids)))", "history.evaluations.append((trainer.step, evaluate(model, val_ids)))\n            if due and trainer.step == config.steps:\n                history.evaluations.append((trainer.step, evaluate(model, val_ids)))"),
            ("on val_ids", "evaluate(model, val_ids)", "evaluate(model, train_ids)"),
            ("Steps \\*done\\*", "(trainer.step, evaluate", "(trainer.step - 1, evaluate"),
            ("evaluations", "if due or trainer.step == config.steps:", "if trainer.step == config.steps:"),
        ],
        '''
def train_simply(model, train_ids, val_ids, config):
    trainer = Trainer(model, train_ids, config)
    began = time.perf_counter()
    model.train()
    for n in range(1, config.steps + 1):
        trainer.take_step()
        if n == config.steps or (config.eval_every > 0 and not n % config.eval_every):
            trainer.history.evaluations += [(n, evaluate(model, val_ids))]
    trainer.history.seconds = time.perf_counter() - began
    model.eval()
    return trainer.history
''',
    ),
    "first_step": (
        [
            ("where is the root", "(1 - beta2) ** 0.5", "(1 - beta2)"),
            ("m is \\(1 - beta1\\)", "(1 - beta1) / (1 - beta2) ** 0.5", "beta1 / beta2 ** 0.5"),
            ("with the correction", "(1 - beta1) / (1 - beta2) ** 0.5", "1.0"),
        ],
        '''
def first_step(beta1, beta2):
    slope = -3.0
    m, v = (1 - beta1) * slope, (1 - beta2) * slope**2
    return abs(m) / v**0.5
''',
    ),
    "penalized": (
        [
            ("That is AdamW", "weight_decay=0.0)\n    p.grad = torch.tensor([[slope + 0.1 * weight]])", "weight_decay=0.1)\n    p.grad = torch.tensor([[slope]])"),
            ("it is added", "slope + 0.1 * weight", "slope"),
            ("it is added", "slope + 0.1 * weight", "slope - 0.1 * weight"),
            ("plain gradient descent", "optimizer.step()", "p.data -= 0.1 * p.grad"),
        ],
        '''
def penalized(weight, slope):
    whole = slope + 0.1 * weight
    return weight - 0.1 * whole / (abs(whole) + 1e-8)
''',
    ),
    "forgetful": (
        [
            ("healthy run", "loss.backward()", "optimizer.zero_grad()\n        loss.backward()"),
            ("expected", "optimizer.step()", "pass"),
            ("expected", "losses.append(loss.item())", "losses = [loss.item()]"),
        ],
        '''
def forgetful(model, optimizer, batches):
    def one(x, y):
        loss = F.nll_loss(model(x).log_softmax(-1).flatten(0, 1), y.flatten())
        loss.backward()
        optimizer.step()
        return loss.item()
    return [one(x, y) for x, y in batches]
''',
    ),
}

HOLES["generation"] = {
    "pick": (
        [
            ("does not multiply", "logits / temperature", "logits * temperature"),
            ("temperature is left out", "logits / temperature", "logits"),
            ("Nothing is cut off", "ordered[:, top_k:] = 0.0", "pass"),
            ("likeliest must stay|crosses", "before >= top_p", "ordered.cumsum(-1) >= top_p"),
            ("put back in its place", "probabilities.scatter(-1, order, ordered)", "ordered"),
            ("One too few", "ordered[:, top_k:]", "ordered[:, top_k - 1 :]"),
            ("expected|Error", "if temperature == 0:", "if False:"),
            ("as a column|shape", "keepdim=True)", "keepdim=False)"),
            ("expected|Nothing", "order = logits.argsort(dim=-1, descending=True, stable=True)", "order = logits.argsort(dim=-1, stable=True)"),
        ],
        '''
def pick(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    if not temperature:
        return logits.max(-1, keepdim=True).indices
    p = torch.softmax(logits / temperature, -1)
    ordered, order = p.sort(-1, descending=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if top_k is not None:
        keep &= torch.arange(p.shape[-1]) < top_k
    if top_p is not None and top_p < 1:
        keep &= torch.cat([torch.zeros_like(ordered[:, :1]), ordered.cumsum(-1)[:, :-1]], -1) < top_p
    chosen = torch.multinomial(ordered * keep, 1, generator=generator)
    return order.gather(-1, chosen)
''',
    ),
    "KVCache.join": (
        [
            ("Only the new ones", "return self.past[i][:, :, :, :end].unbind()", "return k, v"),
            ("whole room", "self.past[i][:, :, :, :end].unbind()", "self.past[i].unbind()"),
            ("overwritten", "self.length : end] =", "0 : T] ="),
            ("changed places", "stack([k, v])", "stack([v, k])"),
            ("expected", "self.past[i][:, :, :, self.length : end] = torch.stack([k, v])", "pass"),
            ("came out", ":end].unbind()", ": self.length].unbind()"),
        ],
        '''
def join(self, i, k, v):
    if self.past[i] is not None:
        k, v = (torch.cat(pair, dim=2) for pair in zip(self.past[i], (k, v)))
    self.past[i] = (k, v)
    return k, v
''',
    ),
    "KVCache.read": (
        [
            ("is `start` given", ", start=self.length", ""),
            ("is `start` given|is `join` asked", "*self.join(i, k, v)", "k, v"),
            ("length", "self.length = ids.shape[1]", "pass"),
            ("last token alone", "self.model.read_out(x[:, -1:])[:, 0]", "self.model.read_out(x)"),
            ("first token's|isn't", "x[:, -1:]", "x[:, :1]"),
            ("expected", "x = x + block.feed_forward(block.feed_forward_norm(x))", "pass"),
            ("expected", "x + block.attention.merge(heads)", "block.attention.merge(heads)"),
            ("Only what was not read", "x = self.model.embed(ids, start=self.length)", "self.length = 0\n    x = self.model.embed(ids)"),
        ],
        '''
def read(self, ids):
    new = ids[:, self.length :]
    x = self.model.token_embedding(new) + self.model.places(self.length, ids.shape[1])
    for i, block in enumerate(self.model.blocks):
        part = block.attention
        q, k, v = part.project(block.attention_norm(x))
        k, v = self.join(i, k, v)
        x = x + part.merge(part.attend(q, k, v))
        x = x + block.feed_forward(block.feed_forward_norm(x))
    self.length += new.shape[1]
    return self.model.read_out(x)[:, -1]
''',
    ),
    "generate": (
        [
            ("reads the last block_size|Error", "if memory and ids.shape[1] <= memory.room:", "if memory:"),
            ("does the work", "if memory and ids.shape[1] <= memory.room:", "if False:"),
            ("Error", "ids[:, -model.config.block_size :]", "ids"),
            ("take its logits|expected", ")[:, -1]", ")[:, 0]"),
            ("handed to `pick`", "temperature, top_k, top_p, generator)", "temperature, top_k, top_p)"),
            ("handed to `pick`", "temperature, top_k, top_p, generator)", "temperature, top_k, None, generator)"),
            ("expected", "torch.cat([ids, choice], dim=1)", "torch.cat([choice, ids], dim=1)"),
            ("prompt is missing", "return ids", "return ids[:, -n_tokens:]"),
        ],
        '''
@torch.no_grad()
def generate(model, ids, n_tokens, *, temperature=1.0, top_k=None, top_p=None, cache=KVCache, generator=None):
    memory = cache(model) if cache else None
    size, was = model.config.block_size, model.training
    model.eval()
    for _ in range(n_tokens):
        if memory is not None and ids.size(1) <= size:
            logits = memory.read(ids)
        else:
            logits = model(ids[:, max(0, ids.size(1) - size) :])[:, -1, :]
        ids = torch.hstack([ids, pick(logits, temperature, top_k=top_k, top_p=top_p, generator=generator)])
    model.train(was)
    return ids
''',
    ),
    "own_cost": (
        [
            ("judged at 1: the cost", "logits.log_softmax(dim=-1)", "(logits / temperature).log_softmax(dim=-1)"),
            ("only judged at 1", "(logits / temperature).softmax(dim=-1)", "logits.softmax(dim=-1)"),
            ("positive", "return -(", "return ("),
            ("not over all tokens alike", "(drawn * logits.log_softmax(dim=-1)).sum()", "logits.log_softmax(dim=-1).mean()"),
        ],
        '''
def own_cost(logits, temperature):
    p, drawn = logits.exp() / logits.exp().sum(), logits.exp() ** (1 / temperature)
    return float(sum(-(d / drawn.sum()) * q.log() for d, q in zip(drawn, p)))
''',
    ),
    "min_p": (
        [
            ("sum to one again", " / (probabilities * enough).sum(-1, keepdim=True)", ""),
            ("not a probability", "m * probabilities.amax(-1, keepdim=True)", "m"),
            ("of each row", "probabilities.amax(-1, keepdim=True)", "probabilities.max()"),
            ("equal is enough", ">=", ">"),
            ("not the smallest", ">=", "<"),
        ],
        '''
def min_p(probabilities, m):
    rows = []
    for row in probabilities:
        kept = torch.where(row < m * row.max(), 0.0, row)
        rows.append(kept / kept.sum())
    return torch.stack(rows)
''',
    ),
}
