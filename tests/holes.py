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
            ("before_step", "optimizer.zero_grad()\n    loss.backward()", "optimizer.zero_grad()\n    loss.backward()\n    optimizer.step()\n    optimizer.step = lambda: None"),
            ("a tensor\nexpected: a number", "loss.item()", "loss"),
            ("after the move", "return loss.item()", "return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).item()"),
            ("take the mean", "return loss.item()", "return loss.item() * targets.numel()"),
            ("stops at", "logits.flatten(0, 1)", "logits"),
        ],
        """
def training_step(model, optimizer, inputs, targets, before_step=None):
    optimizer.zero_grad()
    log_p = model(inputs).log_softmax(-1)
    loss = -log_p.gather(-1, targets[..., None]).mean()
    loss.backward()
    before = float(loss.detach())
    if before_step:
        before_step()
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
