# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,jupyter,-all
#     formats: notebooks///ipynb,notebooks/text///py:percent
#     notebook_metadata_filter: kernelspec,jupytext,-jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 15 · Anomalies
# > Can surprise find faults?
#
# Where we are: a GPT that knows how the life of a block is told, to 0.345 bits per event. When
# something goes wrong, something else is told, and the model should be surprised. This chapter
# turns that into an alarm that one may believe: for each session a verdict, how often such a verdict
# is wrong, which line was the surprising one, and what had been expected there.
#
# No labelled faults are needed for it, only a time in which the system was well. (If faults hide in
# it, they count as normal, and the threshold rises.) Here labels stand in for that: they say which of
# the early sessions are normal. After that they only tell how good the alarm is, and once they play
# the person who looks at an alarm. The numbers to beat are those of two rules that anybody could write
# in a minute. An alarm for each session with a pair of events, or a length, that was never seen
# reaches an F1 of 68 on these sessions, 100 being perfect; one for each whose events were never seen
# in such numbers, 91.
#
# As before: if the first output says SYNTHETIC, the log was made by a program, and the numbers are
# others.

# %%
import json
import subprocess
import sys
import time
from tempfile import TemporaryDirectory

import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score

from course import BLUE, RED, plt, show
from course.logdata import CUT, load_log, split_by_time
from tinygpt_lib.logs import SessionFinder, group_lines, stream, surprisals

log = load_log()
found = group_lines((line.text for line in log.lines), SessionFinder(r"blk_-?\d+"))
log.origin

# %%
#| export
import math
from collections import Counter, deque
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Self

import torch
from torch import Tensor

from tinygpt_lib.basics.checks import check_choice, check_float, check_int
from tinygpt_lib.basics.devices import device_of
from tinygpt_lib.basics.files import CheckpointError, read_tensors, write_tensors
from tinygpt_lib.generation import KVCache
from tinygpt_lib.gpt import GPT
from tinygpt_lib.logs import END, EventTokenizer, in_windows, log_preset
from tinygpt_lib.runs.checkpoints import fingerprint, load_checkpoint, save_checkpoint
from tinygpt_lib.runs.run import train
from tinygpt_lib.speed import FastGPT

# %% [markdown]
# ## What may be learnt from, and what is judged
# A detector is used on days that come after those it has learnt from. So that is how it is tried. It
# is 18:00 of the second day, and it is fitted on what the log says by then: on the normal sessions that
# have begun, as far as they have come. It is tried on all that begin later. With a random cut the
# detector would know the future, and with a cut through windows of lines it would know half of each test
# session. (Sessions that were running at the cut are not judged for the same reason. And one thing is
# known of them that nobody could know at 18:00: that they are labelled normal as a whole.)

# %%
trial = split_by_time(log, found.values())
anomalous = np.array(trial.anomalous)
(
    f"{len(trial.train):,} normal sessions to learn from",
    f"{len(anomalous):,} to judge, {anomalous.sum()} of them labelled anomalous",
)

# %% [markdown]
# ## Has it ended?
# At the cut some sessions are in the middle of their lives, and the same is true when the log stops.
# Their "end" is then no event, only the edge of the file. A model that learns from it that sessions may
# end anywhere will miss those that break off; one that is surprised by it is right and useless. So of
# each session we must know whether it is over. How long must it be silent before it counts as ended?
# Longer than any normal one was silent after the same event, and then went on. (After an event that
# none went on from, it is over at once.)


# %%
#| export
def longest_pauses(
    sessions: Iterable[Sequence[str]], times: Iterable[Sequence[float]]
) -> dict[str, float]:
    """How long sessions were silent after each event at most, and then went on.

    In the units of `times`: seconds, or lines of the log.
    """
    pauses: dict[str, float] = {}
    for events, moments in zip(sessions, times, strict=True):
        for event, a, b in zip(events, moments, moments[1:], strict=False):
            pauses[event] = max(pauses.get(event, 0.0), b - a)
    return pauses


def has_ended(events: Sequence[str], silent: float, pauses: dict[str, float]) -> bool:
    """Whether a session that has been silent for some time is over."""
    return not events or silent > pauses.get(events[-1], -1.0)


# %%
tiny = longest_pauses([["open", "read", "close"]], [[0.0, 2.0, 9.0]])
assert has_ended(["open"], 3, tiny) and not has_ended(["open", "read"], 3, tiny)
assert has_ended(["close"], 0, tiny)
tiny

# %% [markdown]
# The rule, for the sessions to learn from at the time of the cut, and for those to judge when the log
# stops. Both times only by pauses from before the cut:

# %%
pauses = longest_pauses(trial.train, trial.train_times)


def over_at(moment, sessions, times):
    """Of which sessions the end is known at a moment."""
    return np.array(
        [
            has_ended(session, moment - own[-1], pauses)
            for session, own in zip(sessions, times, strict=True)
        ]
    )


over = over_at(CUT, trial.train, trial.train_times)
ended = over_at(log.lines[-1].seconds, trial.test, trial.test_times)
(
    f"{over.sum():,} of {len(over):,} are over at the cut",
    f"{ended.sum():,} of {len(ended):,} are when the log stops",
)

# %% [markdown]
# That this is no guess can be seen here, since the rest of the log is at hand: of the sessions that the
# rule says are over at the cut, how many have lines after it? And of the others?

# %%
sessions = sorted(
    found.values(), key=lambda s: log.lines[s.line_numbers[0] - 1].seconds
)
began = [log.lines[s.line_numbers[0] - 1].seconds for s in sessions]
whole = [
    s
    for s, moment in zip(sessions, began, strict=True)
    if moment < CUT and not log.anomalous[s.id]
]
went_on = np.array(
    [len(s.events) > len(told) for s, told in zip(whole, trial.train, strict=True)]
)
assert went_on[over].mean() < 0.01
{
    "over": f"{went_on[over].mean():.1%} went on",
    "others": f"{went_on[~over].mean():.1%}",
}

# %% [markdown]
# With what do those end that are over, how many of them, and for how many minutes may a session be
# silent after it?

# %%
done = [session for session, known in zip(trial.train, over, strict=True) if known]
ends = Counter(session[-1] for session in done).most_common(3)
{event[:40]: (n, round(pauses.get(event, 0) / 60)) for event, n in ends}

# %% [markdown]
# ## One session by hand
# Learn from four fifths of the early sessions that are over, with chapter 14's settings, and keep the
# last fifth back: what a model finds surprising in sessions that it knows by heart says nothing. (They
# are shuffled, so that the fifth is like the rest.)

# %%
order = torch.randperm(len(done), generator=torch.Generator().manual_seed(0))
shuffled = [done[i] for i in order]
cut = len(shuffled) * 4 // 5
tokenizer = EventTokenizer.from_sessions(shuffled[:cut])
model_config, train_config = log_preset(tokenizer.vocab_size)
torch.manual_seed(0)
model = FastGPT(model_config)
train_ids, rest_ids = (stream(s, tokenizer) for s in (shuffled[:cut], shuffled[cut:]))
plan = replace(train_config, eval_every=0)
history = train(model, train_ids, rest_ids, plan, progress=False)
f"{history.seconds:.0f} s"

# %% [markdown]
# Now two sessions that came later, one normal, one not, chosen so that the difference is plain; a
# picture of all of them follows below.

# %%
coded = [tokenizer.encode_session(session) for session in trial.test]
nats = surprisals(model, coded)
usual = [i for i in np.flatnonzero(~anomalous) if nats[i].max() < 4]
odd = [i for i in np.flatnonzero(anomalous) if nats[i].max() > 6 and len(nats[i]) > 12]
fig, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True)
for ax, i, color in zip(axes, (usual[0], odd[0]), (BLUE, RED), strict=True):
    ax.bar(range(len(nats[i])), nats[i], color=color)
    ax.set(xlabel="place in the session (the last one: its end)")
axes[0].set(ylabel="surprisal, nats", title="normal")
axes[1].set(title="labelled anomalous")
show(
    fig,
    alt="Bars of surprisal for each event of two sessions. In the normal one all stay below 4 "
    "nats; in the anomalous one one bar stands far above the others.",
)
worst = nats[odd[0]].argmax().item()
worst, tokenizer.names[coded[odd[0]][worst + 1]]

# %% [markdown]
# *In the normal session a few events are worth a nat or two, where the order is free. In the other,
# one event stands out.*
#
# So the simplest score of a session is its largest surprisal s: it holds an event to which the model
# gave a chance of exp(-s). It has a weakness. One rare event among a hundred is to be expected; among
# three it is not. The other extreme is the mean, for faults that are not one line but a whole other
# behaviour. Between the two lie *power means*: take the mean of the eighth powers, and of that the
# eighth root. Large surprisals still outweigh all others, but the same one counts for less in a
# longer session. The power 1 is the mean, and the higher the power, the more only the largest counts.


# %%
#| export
SCORES = {"max": math.inf, "power": 8.0, "mean": 1.0}  # name: power of the power mean


def score_of(name: str, nats: Tensor) -> Tensor:
    """The score called `name` of surprisals (..., n); 0 where there is no event."""
    if not nats.shape[-1]:
        return nats.new_zeros(nats.shape[:-1])
    power = SCORES[name]
    if power == math.inf:
        return nats.amax(-1)
    return (nats**power).mean(-1) ** (1 / power)


# %% [markdown]
# One large surprisal among three events, and the same among thirty:

# %%
short, long = torch.full((3,), 0.1), torch.full((30,), 0.1)
short[1] = long[1] = 9
{n: [round(score_of(n, x).item(), 2) for x in (short, long)] for n in SCORES}

# %% [markdown]
# ## Where does an alarm begin?
# At 5 nats? At 10? Nobody can know that from the number. Whoever tries thresholds on labelled faults
# and reports the best one has cheated: on the day it is needed there are no labels. But the normal
# sessions that were kept back say what normal scores look like. If a new session is normal too, its
# score is one more draw from the same hat. It may land anywhere in their order, each place equally
# likely. So count how many of the n kept-back scores are at least as large:
#
# $$p = \frac{1 + \#\{\text{kept-back scores} \ge s\}}{n + 1}$$
#
# This is a *conformal p-value* (Vovk and others, 2005). If new normal sessions come from the same hat,
# it is at most 0.01 in at most one of a hundred cases, on average over which sessions happen to be
# kept back. That holds no matter how bad the model is; a bad one only finds fewer faults. An alarm at
# p <= 0.002 promises at most two false ones in a thousand normal sessions, on average. By hand, with
# nine kept-back scores:

# %% tags=["nbval-check-output"]
kept = [1, 1, 2, 2, 2, 3, 4, 5, 7]
[(1 + sum(k >= s for k in kept)) / (len(kept) + 1) for s in (2, 6, 9)]

# %% [markdown]
# Look at the last one. The score is larger than all that were seen, and still p is 0.1: of ten
# draws, one must be the largest. So nine normal sessions can promise no better rate than one in
# ten, and 0.002 needs at least 499. A detector that is asked for more has to refuse.
#
# At that limit the threshold hangs on the largest score alone, which is a matter of luck: with 499
# sessions and a rate of 0.002, one detector in twenty has a true rate above 0.006. More kept-back
# sessions make it steadier, but what is kept back is not learnt from.
#
# The way out is old: deal the sessions into *folds*, ten of them, say, and fit ten models, each on
# nine of the folds. Then every session has been kept back from one model, and its score by that model
# is a fair one. A new session is scored by all ten, and each model's score of it is compared with
# that model's scores of the fold it never saw. (Vovk, 2015, calls that *cross-conformal*. What is
# proven is weaker: about twice the rate, and a bit more that shrinks as sessions outnumber folds. In
# practice the rate itself is usually met; we shall check.) And ten models together know more than one.


# %%
#| export
TIE = 1e-4  # nats: equal sessions must tie, however a batch rounds their scores


def p_values(held_out: Sequence[Tensor], scores: Tensor) -> Tensor:
    """Conformal p-values (N,) of scores (K, N) by K models, each with its own folds.

    `held_out` are, for each model, the scores of normal sessions it has not learnt
    from, in rising order; what is less by no more than TIE counts. Vovk, 2015.
    """
    at_least = torch.zeros(scores.shape[1:], dtype=torch.int64)
    for kept, own in zip(held_out, scores, strict=True):
        at_least += len(kept) - torch.searchsorted(kept, own - TIE)
    return (1 + at_least).double() / (1 + sum(map(len, held_out)))


# %% tags=["nbval-check-output"]
fold = torch.tensor([1.0, 1, 2, 2, 2, 3, 4, 5, 7])
assert (
    p_values([fold], torch.tensor([[2.0, 6, 9]])).tolist()
    == p_values([fold[:4], fold[4:]], torch.tensor([[2.0, 6, 9]] * 2)).tolist()
)
p_values([fold], torch.tensor([[2.0, 6, 9]]))

# %% [markdown]
# ## Several models, one reading
# Of each event we want to know how surprised each model was (for the p-value), and, by all of them
# together, the likeliest events in its place, so that a report can say what had been expected
# instead. And its *rank*: 1 if nothing was likelier.


# %%
#| export
@dataclass(slots=True)
class Reading:
    """What K models say of the events of a session, n with its end."""

    nats: Tensor  # (K, n): surprisal of each by each model
    rank: Tensor  # (n,): 1 and how many events were likelier, by all models together
    likeliest: Tensor  # (n, 3): ids that were expected most
    chances: Tensor  # (n, 3): and their probabilities
    known: Tensor  # (K, n): whether it has learnt from such an event

    def at(self, place: int) -> Self:
        """The reading of a single event: the same without n."""
        rest = (self.rank, self.likeliest, self.chances)
        return type(self)(
            self.nats[:, place], *(part[place] for part in rest), self.known[:, place]
        )


def weigh(logits: Tensor, ids: Tensor) -> Reading:
    """The reading of ids (...) that came, by logits (K, ..., V) of what might come."""
    logs = logits.float().log_softmax(-1)
    wanted = ids[..., None]  # (..., 1)
    nats = -logs.gather(-1, wanted.expand(len(logs), *wanted.shape))[..., 0]
    chances = logs.exp().mean(0)  # (..., V)
    rank = 1 + (chances > chances.gather(-1, wanted)).sum(-1)
    best = chances.topk(min(3, chances.shape[-1]))
    known = torch.ones_like(nats, dtype=torch.bool)
    return Reading(nats, rank, best.indices, best.values, known)


# %% [markdown]
# Two models, four events, and the second event came:

# %%
chances = torch.tensor([[0.7, 0.2, 0.1, 0.0], [0.5, 0.1, 0.4, 0.0]])
reading = weigh(chances.log(), torch.tensor(1))
assert reading.rank == 3 and reading.likeliest.tolist() == [0, 2, 1]
reading.nats.neg().exp(), reading.chances

# %% [markdown]
# The rest of this section is only about speed; "What was never seen" goes on with the story. Asking
# ten models one after the other takes ten times as long, and with models as small as these nearly all
# of that time goes not into arithmetic but into calling torch. Yet they are all of one shape. So
# stack their weights, as chapter 04 made one matrix of all heads: a product of K matrices with K
# others is one call. The twin below is built of the same parts as a GPT, only that each linear layer,
# norm and embedding holds the weights of all K. Rows of a batch that belong to one model stand
# together.


# %%
#| export
class Panel:
    """K GPTs of one shape that read the same: ids (B, T) -> logits (K, B, T, V).

    BEGIN is given no chance: it never follows. For reading only; what they learn later
    is not seen. `met` (K, V)
    says which tokens each has learnt from: all but UNKNOWN, unless given.
    """

    def __init__(self, members: Sequence[GPT], met: Tensor | None = None):
        self.members = [member.eval() for member in members]
        self.config, self.device = members[0].config, device_of(members[0])
        shape = (len(members), self.config.vocab_size)
        if met is None:
            met = torch.arange(shape[1]).expand(shape) != EventTokenizer.unknown
        if met.shape != shape or met.dtype != torch.bool:
            raise ValueError(
                f"met must be {shape} of bool, got {tuple(met.shape)} of {met.dtype}"
            )
        self.met = met

    def cache(self) -> list[KVCache]:
        """An empty cache for each of them."""
        return [KVCache(member) for member in self.members]

    @torch.no_grad()
    def __call__(self, ids: Tensor) -> Tensor:
        return self.without_begin([member(ids) for member in self.members])

    @torch.no_grad()
    def read(self, ids: Tensor, caches: list[KVCache]) -> Tensor:
        """Logits (K, V) after ids (N,), by caches that have read all but the end."""
        return self.without_begin([cache.read(ids[None]) for cache in caches])[:, 0]

    def without_begin(self, logits: list[Tensor]) -> Tensor:
        logits = torch.stack(logits)
        logits[..., EventTokenizer.begin] = -math.inf
        return logits

    def price(self, reading: Reading, ids: Tensor, n_events: int) -> None:
        """Puts log(n_events + 1) where a member has not learnt from what came: ids."""
        reading.known = self.met[:, ids]
        reading.nats[~reading.known] = math.log(n_events + 1)


# %% [markdown]
# Now for many sessions, in chapter 14's windows:


# %%
#| export
def read_sessions(panel: Panel, sessions: Sequence[Tensor]) -> list[Reading]:
    """Readings of sessions of ids (N,), each with begin and end, by several models."""
    K, config = len(panel.members), panel.config
    top, readings = min(3, config.vocab_size), []
    for n in (len(ids) - 1 for ids in sessions):
        rank = torch.zeros(n, dtype=torch.int64)
        best = torch.zeros(n, top, dtype=torch.int64)
        known = torch.ones(K, n, dtype=torch.bool)
        chances = torch.zeros(n, top)
        readings.append(Reading(torch.zeros(K, n), rank, best, chances, known))
    # So many that the logits, K * V for each token, stay within 64 MB.
    at_once = min(16_384, 2**24 // config.vocab_size) // K
    for ids, rows in in_windows(sessions, config.block_size, at_once):
        ids = ids.to(panel.device)
        found = weigh(panel(ids[:, :-1]), ids[:, 1:])
        names = ("rank", "likeliest", "chances")
        nats, *rest = (getattr(found, name).cpu() for name in ("nats", *names))
        for row, (i, s, first, end) in enumerate(rows):
            to, here = readings[i], slice(s + first, s + end)
            to.nats[:, here] = nats[:, row, first:end]
            for name, part in zip(names, rest, strict=True):
                getattr(to, name)[here] = part[row, first:end]
    return readings


# %%
reading = read_sessions(Panel([model]), coded[:1])[0]
assert torch.allclose(reading.nats[0], nats[0], atol=0.01)  # BEGIN had next to nothing
f"{(reading.rank == 1).float().mean():.0%} of the events were the likeliest one"

# %% [markdown]
# ## What was never seen
# An event that a model has not learnt from has no row in it that means anything, so what the model says
# of it means nothing either. How surprising is such an event, honestly? Suppose it comes once in
# N + 1 events. If order says nothing, it is as likely to be at any of the N + 1 places, so the
# chance that it is the last is 1 / (N + 1). That makes its surprisal log(N + 1).
#
# If no model knows the event, it is *unknown*. The models read on as if it had not been there. It always
# raises an alarm, and is counted apart: a new kind of line is news, even where no one is to blame. But
# who raises an alarm for each new kind of line can't promise a rate; how often normal sessions
# bring news is up to the system. So the two are kept apart: the p-value is that of the known events
# alone.
#
# In between are events that stood in one fold only. All models know them but one, the one that was kept
# from that fold. That model leaves them out of its score, as it did with the sessions of its own fold.
# (There it also read on as if they had not been there; now all models read them, since they read in
# step. So what it says of the events after them may be too much, and it is one voice of ten.)


# %%
#| export
def read_events(
    panel: Panel,
    tokenizer: EventTokenizer,
    n_events: int,
    sessions: Sequence[Sequence[str]],
) -> list[Reading]:
    """Readings of sessions of events, ends included, by models of `n_events` events.

    What a model has not learnt from is worth log(n_events + 1) to it. What none has
    learnt from has the last rank, and they read on as if it had not been there. Equal
    sessions are read once.
    """
    sessions = [tuple(session) for session in sessions]
    places = {session: i for i, session in enumerate(dict.fromkeys(sessions))}
    whole = [tokenizer.encode_session(session) for session in places]
    met = panel.met.any(0)
    given = [met[ids] for ids in whole]
    kept = [ids[there] for ids, there in zip(whole, given, strict=True)]
    readings = read_sessions(panel, kept)
    for i, there in enumerate(given):
        panel.price(readings[i], kept[i][1:], n_events)
        if not there.all():
            readings[i] = with_unknown(readings[i], there[1:], tokenizer, n_events)
    return [readings[places[session]] for session in sessions]


def with_unknown(
    reading: Reading, given: Tensor, tokenizer: EventTokenizer, n_events: int
) -> Reading:
    """The reading of all events, from that of those that were `given` (n,)."""
    place = given.cumsum(0) - given.long()  # of an unknown event: the next known one
    nats, rank = reading.nats[:, place], reading.rank[place]
    nats[:, ~given] = math.log(n_events + 1)
    rank[~given] = tokenizer.vocab_size
    known = reading.known[:, place] & given
    likeliest, chances = reading.likeliest[place], reading.chances[place]
    return Reading(nats, rank, likeliest, chances, known)


# %% [markdown]
# A line that nobody has seen, put in the middle of a session: it costs log(N + 1), and the events
# after it cost what they did before.

# %%
session = trial.test[0]
broken = [*session[:4], "kernel panic", *session[4:]]
N = len(train_ids)
before, after = read_events(Panel([model]), tokenizer, N, [session, broken])
assert torch.equal(before.nats[0], torch.cat([after.nats[0, :4], after.nats[0, 5:]]))
assert math.isclose(after.nats[0, 4].item(), math.log(N + 1), rel_tol=1e-6)
after.nats[0, 2:7], after.rank[2:7]

# %% [markdown]
# ## The detector
# Now all together. First the folds: each model learns from all but one of them and scores that one,
# with the ends of sessions counted, and without them, for sessions that may go on.
#
# What is learnt from a session that was cut off? Its events, but no END. In the stream the next
# session's BEGIN comes then, and the model learns that a BEGIN may follow. Within a session none
# ever does; so `Panel` takes that chance away and shares it out among the rest. What is left is
# what comes next if the story is not cut off, which is what we want to know. (That holds as long as
# the cut has nothing to do with what comes next. It has a little: that a session goes on is known
# at once, that it has ended only after some silence. Here, as printed above, ends follow deletions,
# and some minutes of silence are enough; where ends are known only after hours, the last hours
# would make them look rare.)
#
# A session would have brought news if it holds an event of no *other* session; the share of such
# sessions is what to expect later. (Every event gets a row in the models, so a log whose lines
# nobody has masked could fill the memory. Then the events that stand in the fewest sessions stay
# unknown.)


# %%
#| export
MOST_EVENTS = 4096  # different ones that a detector knows


def deal(sessions: Sequence, folds: int, seed: int) -> list[list]:
    """Sessions dealt into folds of about the same size, by chance, in their order."""
    order = list(range(len(sessions)))
    Random(seed).shuffle(order)
    return [[sessions[i] for i in sorted(order[k::folds])] for k in range(folds)]


def folds_of(
    sessions: Sequence, ended: Sequence[bool], folds: int, seed: int, rate: float
) -> list[list[tuple]]:
    """Folds of sessions in their order, each with whether it has ended.

    Those that have ended are dealt apart from the others, so that each fold has some.
    ValueError where too few have ended to promise a rate, or to keep one back.
    """
    over, going_on = (
        [i for i, e in enumerate(ended) if bool(e) is kind] for kind in (True, False)
    )
    try:
        check_rate(rate, len(over))
        if len(over) < 2:
            raise ValueError("one session is not enough: none would be kept back")
    except ValueError as error:
        if not going_on:
            raise
        raise ValueError(
            f"of {len(sessions):,} sessions {len(going_on):,} may go on, and only the "
            f"others tell of ends: {error}"
        ) from error
    count = min(folds, len(over))
    parts = zip(deal(over, count, seed), deal(going_on, count, seed), strict=True)
    return [[(sessions[i], bool(ended[i])) for i in sorted(a + b)] for a, b in parts]


# %% [markdown]
# What a fold teaches, how often each event stands in it, and the share of sessions with news:


# %%
#| export
def learnt_from(part: Sequence[tuple], tokenizer: EventTokenizer) -> Tensor:
    """The known events of a fold as a stream of ids (N,), without ends not known."""
    ids = []
    for session, over in part:
        whole = tokenizer.encode_session([e for e in session if e in tokenizer])
        ids.append(whole if over else whole[:-1])
    return torch.cat(ids)


def seen_in(sessions: Iterable[Sequence[str]]) -> Counter[str]:
    """In how many sessions each event stands."""
    return Counter(event for session in sessions for event in {*session})


def share_with_news(sessions: Sequence[Sequence[str]], known: Container[str]) -> float:
    """Of all sessions, those with an event that is unknown or stands in no other."""
    counts = seen_in(sessions)
    news = {event for event, n in counts.items() if n == 1 or event not in known}
    return sum(not news.isdisjoint(session) for session in sessions) / len(sessions)


# %%
#| export
def fit_member(
    ids: Tensor, kept_back: Tensor, size: int, preset: Callable, seed: int, device
) -> GPT:
    """A GPT that has learnt from a stream of ids (N,), by the settings of a preset."""
    model_config, train_config = preset(size)
    least = model_config.block_size + 1  # a short log is read several times
    ids, kept_back = (t.repeat(-(-least // len(t))) for t in (ids, kept_back))
    plan = replace(train_config, seed=seed, eval_every=0)
    gpu = [device] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(gpu):  # the caller's random numbers stay as they are
        torch.manual_seed(seed)
        model = FastGPT(model_config).to(device)
        train(model, ids, kept_back, plan, progress=False)
    return model.eval()


def session_scores(
    name: str, readings: Sequence[Reading], ended: bool, unknown: bool = False
) -> Tensor:
    """Scores (K, N) of N sessions by K models: with their ends, with unknown events.

    Unknown is to each model what it has not learnt from.
    """
    scores = []
    for reading in readings:
        n = reading.nats.shape[1] - (not ended)
        nats, known = reading.nats[:, :n], reading.known[:, :n]
        if unknown or known.all():
            scores.append(score_of(name, nats))
        else:
            rows = zip(nats, known, strict=True)
            scores.append(torch.stack([score_of(name, own[k]) for own, k in rows]))
    return torch.stack(scores, dim=1).double()


# %%
#| export
def events_of(session: Sequence) -> list[str]:
    """The events of a session as strings; ValueError for a text, which is none."""
    if isinstance(session, str):
        raise ValueError(
            f"a session is a list of events, and {session[:50]!r} is a text: split it"
        )
    return [str(event) for event in session]


def each(value: bool | Sequence[bool], count: int) -> list[bool]:
    """One value for each of `count` things, from one for all or from as many."""
    values = [value] * count if isinstance(value, bool) else [*map(bool, value)]
    if len(values) != count:
        raise ValueError(f"{len(values)} values were given for {count} sessions")
    return values


# %% [markdown]
# What a rate needs, as a sentence that names the way out:


# %%
#| export
def check_rate(false_alarms: float, n_normal: int | None = None) -> None:
    """ValueError for a rate that is none, or that n normal sessions can't promise."""
    allowed = "above 0 and below 1"
    check_float("false_alarms", false_alarms, allowed, lambda rate: 0 < rate < 1)
    if n_normal is not None and false_alarms * (n_normal + 1) < 1 - 1e-9:
        needed = math.ceil(1 / false_alarms - 1e-9) - 1
        least, unit = 1 / (n_normal + 1), 10 ** -len(str(n_normal + 1)) / 10
        advice = f", or allow a rate of {math.ceil(least / unit) * unit:.3g}"
        raise ValueError(
            f"a false-alarm rate of {false_alarms:g} needs at least {needed:,} normal "
            f"sessions, and there are {n_normal:,}: give more"
            f"{advice if n_normal else ''}"
        )


# %%
try:
    check_rate(0.002, 17)
except ValueError as error:
    print(error)

# %% [markdown]
# What a user sees are reports, of a session and of an event:


# %%
#| export
def weights_of(member: GPT) -> str:
    """A sha256 over a model's weights."""
    return fingerprint(*member.state_dict().values())


@dataclass(frozen=True, slots=True)
class EventReport:
    """What a detector says of one event."""

    position: int  # in its session, from 0; its end has the place after the last
    event: str
    surprisal: float  # nats
    rank: int  # 1: nothing was likelier
    expected: tuple[tuple[str, float], ...]  # likeliest events, with probabilities
    known: bool


@dataclass(frozen=True, slots=True)
class SessionReport:
    """What a detector says of one session."""

    score: float  # nats, unknown events counted
    p_value: float  # what share of normal sessions scores as much; by known events
    anomalous: bool  # p_value is within the promised rate, or an event is unknown
    n_events: int
    n_unknown: int
    worst: EventReport | None  # an unknown event, else the most surprising one
    windowed: bool  # longer than what the models see at once


# %% [markdown]
# Then the promise: the held-out scores, and the rate that they allow. Here the p-values come from,
# and here new scores take the place of old ones when the times change.


# %%
#| export
class Calibrated:
    """Promises a rate of false alarms, by the scores of normal sessions.

    `held_out` are scores by each member, those of longest ago first: {(name of the
    score, are ends counted): [(n,), ...]}. It, `score_name` and `false_alarms` can be
    set anew. ValueError for a rate that so few can't promise.
    """

    def __init__(
        self,
        held_out: dict[tuple[str, bool], list[Tensor]],
        *,
        score: str,
        false_alarms: float,
        turn: int = 0,
    ):
        self._held_out = self._sorted = {}
        self._score_name, self._false_alarms = score, false_alarms
        self.held_out, self.score_name = held_out, score
        K = len(held_out[score, True])
        check_int("turn", turn, low=0, high=K - 1)
        self.turn = turn  # whose held-out scores are renewed next

    @property
    def held_out(self) -> dict[tuple[str, bool], list[Tensor]]:
        """Scores of normal sessions by members that have not learnt from them."""
        return self._held_out

    @held_out.setter
    def held_out(self, held_out: dict[tuple[str, bool], list[Tensor]]) -> None:
        check_rate(self.false_alarms, sum(map(len, held_out[next(iter(SCORES)), True])))
        self._held_out = held_out
        self._sorted = {
            key: [scores.sort().values for scores in by_member]
            for key, by_member in held_out.items()
        }

    @property
    def score_name(self) -> str:
        """The score of a session by its events: a name in SCORES."""
        return self._score_name

    @score_name.setter
    def score_name(self, name: str) -> None:
        check_choice("score", name, SCORES)
        self._score_name = name

    @property
    def false_alarms(self) -> float:
        """The share of normal sessions that may raise an alarm by their p-value."""
        return self._false_alarms

    @false_alarms.setter
    def false_alarms(self, rate: float) -> None:
        check_rate(rate, self.n_held_out)
        self._false_alarms = rate

    @property
    def n_held_out(self) -> int:
        """How many normal sessions stand behind the p-value of one that has ended."""
        return sum(map(len, self.held_out[self.score_name, True]))

    def p_value(self, scores: Tensor, ended: bool, name: str | None = None) -> float:
        """The p-value of a session from its scores (K, 1), its end counted or not.

        `name` says which scores they are (default: the detector's own).
        """
        held_out = self._sorted[name or self.score_name, ended]
        return p_values(held_out, scores).item()

    def renew(self, readings: Sequence[Reading], ended: Sequence[bool]) -> None:
        """Puts the scores of normal sessions in the place of the oldest ones."""
        K, anew = len(self.held_out[self.score_name, True]), {}
        for (name, with_end), by_member in self.held_out.items():
            anew[name, with_end] = kept = list(by_member)
            for k in range(K):
                own = [
                    reading
                    for i, reading in enumerate(readings)
                    if (i + self.turn) % K == k and (ended[i] or not with_end)
                ]
                if own:
                    new = session_scores(name, own, with_end)[k]
                    kept[k] = torch.cat([kept[k], new])[len(new) :]
        self.turn = (self.turn + len(readings)) % K
        self.held_out = anew


# %% [markdown]
# And the class that makes reports. It is long; on a first reading take `fit` and `report`. `fit`
# deals, learns and keeps the scores; `read` and `score` make readings and reports of them; `save`
# and `load` keep it all.


# %%
#| export
class AnomalyDetector(Calibrated):
    """Finds sessions that are unlike normal ones, and the event that makes them so.

    Made by `fit` or `load`; the rate and the score can be set anew, see `Calibrated`.
    `news`: what share of normal sessions will hold unknown events; `about`: plain data
    that is kept with it.
    """

    def __init__(
        self,
        members: Sequence[GPT],
        tokenizer: EventTokenizer,
        held_out: dict[tuple[str, bool], list[Tensor]],
        *,
        met: Tensor,
        n_events: int,
        false_alarms: float,
        score: str,
        news: float = 0.0,
        turn: int = 0,
        about: dict | None = None,
    ):
        check_int("n_events", n_events, low=1)
        check_float("news", news, "from 0 to 1", lambda share: 0 <= share <= 1)
        super().__init__(held_out, score=score, false_alarms=false_alarms, turn=turn)
        if any(len(kept) != len(members) for kept in held_out.values()):
            raise ValueError(f"held_out must hold scores of {len(members)} members")
        self.members, self.panel = list(members), Panel(members, met)
        always = met[:, [tokenizer.begin, tokenizer.end]]
        if met[:, tokenizer.unknown].any() or not always.all():
            raise ValueError("met must hold begin and end for all, UNKNOWN for none")
        if not met[:, tokenizer.unknown + 1 :].any(0).all():
            raise ValueError("met has an event of the tokenizer that no member has met")
        self.tokenizer, self.n_events, self.news = tokenizer, n_events, news
        self.about = dict(about or {})

    @classmethod
    def fit(
        cls,
        sessions: Iterable[Sequence],
        *,
        ended: bool | Sequence[bool] = True,
        false_alarms: float = 0.002,
        score: str = "max",
        folds: int = 10,
        seed: int = 0,
        preset: Callable = log_preset,
        device: str | torch.device = "cpu",
        about: dict | None = None,
        progress: Callable[[str], None] = lambda text: None,
    ) -> Self:
        """A detector that knows normal sessions, of events (strings or ids).

        `ended` says of which the end is known; of the others it learns no end. (What
        cuts them off must have nothing to do with what they would have told next.) By
        p-value it raises alarms for about a share `false_alarms` of sessions like
        these, or fewer; those for unknown events come on top. `progress` is told of
        each model. ValueError where the sessions that have ended are too few.
        """
        check_choice("score", score, SCORES)
        check_int("folds", folds, low=2)
        sessions = [events_of(session) for session in sessions]
        parts = folds_of(
            sessions, each(ended, len(sessions)), folds, seed, false_alarms
        )
        counts = seen_in(sessions)
        often = sorted(counts, key=lambda event: (-counts[event], event))
        if not often:
            raise ValueError("the sessions hold no event: there is nothing to know")
        tokenizer = EventTokenizer(sorted(often[:MOST_EVENTS]))
        streams = [learnt_from(part, tokenizer) for part in parts]
        n_events = max(1, sum(map(len, streams)) * (len(parts) - 1) // len(parts))
        kinds = (True, False)  # with the ends of sessions, and without
        held_out = {(name, with_end): [] for name in SCORES for with_end in kinds}
        members, size = [], tokenizer.vocab_size
        met = torch.zeros(len(parts), size, dtype=torch.bool)
        for i, part in enumerate(parts):
            progress(f"model {i + 1} of {len(parts)}")
            rest = torch.cat(streams[:i] + streams[i + 1 :])
            met[i, rest] = True
            members.append(fit_member(rest, streams[i], size, preset, seed + i, device))
            panel = Panel(members[-1:], met[i : i + 1])
            own = [session for session, _ in part]
            readings = read_events(panel, tokenizer, n_events, own)
            whole = [r for r, (_, over) in zip(readings, part, strict=True) if over]
            for (name, with_end), scores in held_out.items():
                some = whole if with_end else readings
                scores.append(session_scores(name, some, with_end)[0])
        return cls(
            members,
            tokenizer,
            held_out,
            met=met,
            n_events=n_events,
            false_alarms=false_alarms,
            score=score,
            news=share_with_news(sessions, tokenizer),
            about=about,
        )

    def read(self, sessions: Iterable[Sequence]) -> list[Reading]:
        """What the members say of each event, and end, of sessions."""
        sessions = [events_of(session) for session in sessions]
        return read_events(self.panel, self.tokenizer, self.n_events, sessions)

    def score(
        self, sessions: Iterable[Sequence], ended: bool | Sequence[bool] = True
    ) -> list[SessionReport]:
        """A report of each session; `ended` says of which the end is known."""
        sessions = [tuple(events_of(session)) for session in sessions]
        given = each(ended, len(sessions))
        readings, done = self.read(sessions), {}
        for key, reading in zip(
            zip(sessions, given, strict=True), readings, strict=True
        ):
            if key not in done:
                done[key] = self.report(key[0], reading, key[1])
        return [done[key] for key in zip(sessions, given, strict=True)]

    def explain(self, session: Sequence) -> list[EventReport]:
        """A report of each event of a session, and of its end."""
        events = events_of(session)
        reading = self.read([events])[0]
        return [
            self.report_event(t, event, reading.at(t))
            for t, event in enumerate([*events, END])
        ]

    def report(
        self, events: Sequence[str], reading: Reading, ended: bool = True
    ) -> SessionReport:
        """The report of a session from its reading."""
        unknown = [t for t, event in enumerate(events) if event not in self.tokenizer]
        worst = None
        if ended or events:
            nats = reading.nats if ended else reading.nats[:, :-1]
            place = unknown[0] if unknown else nats.mean(0).argmax().item()
            event = events[place] if place < len(events) else END
            worst = self.report_event(place, event, reading.at(place))
        own, whole = (
            session_scores(self.score_name, [reading], ended, with_unknown)
            for with_unknown in (False, True)
        )
        score = whole.mean().item()
        return self.verdict(own, score, ended, len(events), len(unknown), worst)

    def report_event(self, place: int, event: str, reading: Reading) -> EventReport:
        """The report of one event from its reading, of nats (K,)."""
        names = [self.tokenizer.names[i] for i in reading.likeliest.tolist()]
        return EventReport(
            position=place,
            event=event,
            surprisal=reading.nats.mean().item(),
            rank=reading.rank.item(),
            expected=tuple(zip(names, reading.chances.tolist(), strict=True)),
            known=bool(reading.known.any()),
        )

    def verdict(
        self,
        scores: Tensor,
        score: float,
        ended: bool,
        n_events: int,
        n_unknown: int,
        worst: EventReport | None,
        name: str | None = None,
    ) -> SessionReport:
        """The report of a session from the scores (K, 1) of its known events."""
        p_value = self.p_value(scores, ended, name)
        return SessionReport(
            score=score,
            p_value=p_value,
            anomalous=p_value <= self.false_alarms or n_unknown > 0,
            n_events=n_events,
            n_unknown=n_unknown,
            worst=worst,
            windowed=n_events - n_unknown + 1 > self.panel.config.block_size,
        )

    def recalibrate(
        self, sessions: Sequence[Sequence], ended: bool | Sequence[bool] = True
    ) -> None:
        """Puts sessions known to be normal in the place of the oldest held-out ones."""
        self.renew(self.read(sessions), each(ended, len(sessions)))

    def stream(self, **settings) -> "EventStream":
        """Judges events as they come; settings as for EventStream."""
        return EventStream(self, **settings)

    def save(self, folder: str | Path) -> None:
        """Writes the detector into a folder: JSON and safetensors, nothing else."""
        folder = Path(folder)
        for i, member in enumerate(self.members):
            save_checkpoint(folder / f"member-{i}", member, self.tokenizer)
        tensors = {
            f"{name}-{'ended' if ended else 'open'}-{i}": scores
            for (name, ended), by_member in self.held_out.items()
            for i, scores in enumerate(by_member)
        }
        tensors["met"] = self.panel.met
        settings = {
            "members": [weights_of(member) for member in self.members],
            "n_events": self.n_events,
            "false_alarms": self.false_alarms,
            "score": self.score_name,
            "news": self.news,
            "turn": self.turn,
            "about": self.about,
        }
        write_tensors(folder / "detector.safetensors", tensors, settings)

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu") -> Self:
        """The detector that `save` wrote; CheckpointError for anything else."""
        path = Path(folder) / "detector.safetensors"
        tensors, settings = read_tensors(path)
        try:
            digests = settings.pop("members")
            count = len(digests)
            check_int("members", count, low=1, high=len(tensors))
            held_out = {
                (name, ended): [
                    tensors[f"{name}-{'ended' if ended else 'open'}-{i}"]
                    for i in range(count)
                ]
                for name in SCORES
                for ended in (True, False)
            }
            loaded = [
                load_checkpoint(Path(folder) / f"member-{i}", device)
                for i in range(count)
            ]
            members, tokenizers = zip(*loaded, strict=True)
            if any(t.to_dict() != tokenizers[0].to_dict() for t in tokenizers):
                raise ValueError("its members have different tokenizers")
            if [weights_of(member) for member in members] != digests:
                raise ValueError("its members are not those that it was saved with")
            return cls(members, tokenizers[0], held_out, met=tensors["met"], **settings)
        except CheckpointError:
            raise
        except KeyError as error:
            raise CheckpointError(
                f"{path} lacks {error}: no detector, or of another version; fit anew"
            ) from error
        except (ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise CheckpointError(f"{path} is no detector: {error}") from error


# %% [markdown]
# ## Is the promise kept?
# Three models (not ten, to save you more than a minute), and the verdicts at two rates.
# *Precision*: of the alarms, how many were faults. *Recall*: of the faults, how many raised an
# alarm. *F1* is high only if both are: 2PR / (P + R). And of the normal sessions, how many raised
# an alarm? That share comes with its interval of 95 %, since it is counted on a few thousand
# sessions only. (It takes sessions for independent; where one new kind of line strikes many at
# once, the truth may lie further off.)

# %%
start = time.perf_counter()
detector = AnomalyDetector.fit(trial.train, ended=over, false_alarms=0.005, folds=3)
f"{len(detector.members)} models in {time.perf_counter() - start:.0f} s"


# %%
def quality(raised):
    """Precision, recall, F1, and the false-alarm rate with its interval."""
    raised = np.array(raised)
    hits = (raised & anomalous).sum()
    precision, recall = hits / max(1, raised.sum()), hits / anomalous.sum()
    false = binomtest(int((raised & ~anomalous).sum()), int((~anomalous).sum()))
    low, high = false.proportion_ci(method="exact")
    return {
        "precision": round(float(precision), 3),
        "recall": round(float(recall), 3),
        "F1": round(float(2 * precision * recall / max(1e-9, precision + recall)), 3),
        "false alarms": f"{false.statistic:.2%} ({low:.2%} to {high:.2%})",
    }


judged = {}
for rate in (0.002, 0.005):
    detector.false_alarms = rate
    reports = detector.score(trial.test, ended)
    judged[rate] = quality([report.anomalous for report in reports])
assert judged[0.005]["F1"] > 0.75
judged

# %% [markdown]
# Two kinds of alarm are in there. Only those by p were promised a rate; those by unknown events were
# only estimated. Of the normal sessions, at the larger rate:

# %%
normal = [r for r, bad in zip(reports, anomalous, strict=True) if not bad]
shares = {
    "by p": np.mean([r.p_value <= detector.false_alarms for r in normal]),
    "by news": np.mean([r.n_unknown > 0 for r in normal]),
    "news expected": detector.news,
}
{name: f"{share:.2%}" for name, share in shares.items()}

# %% [markdown]
# (They overlap: on the real log each normal session with news raised an alarm by its known events too.)
#
# On the real log neither is met: 0.8 % by p where 0.5 % was promised, and 0.37 % with news where none
# was expected. The sessions after the cut are not draws from the hat of those before it: the cluster
# now does things that it did rarely or never. That is what time does to every detector, and why a rate
# has to be watched.

# %% [markdown]
# What if all ends had been counted?

# %%
quality([report.anomalous for report in detector.score(trial.test)])

# %% [markdown]
# On the real log that raises some two thousand false alarms more, with one cause for all of them:
# blocks that were written and not yet deleted when the log stopped. In the training, what ended had
# been deleted.
#
# A picture of all scores, and roughly where alarms begin at each rate:

# %%
scores = np.array([report.score for report in reports])
kept_back = torch.cat(detector.held_out["max", True]).sort().values
bins = np.linspace(0, max(scores.max(), 15), 60)
fig, ax = plt.subplots(figsize=(7, 3))
ax.hist(scores[~anomalous], bins, color=BLUE, alpha=0.7, label="normal")
ax.hist(scores[anomalous], bins, color=RED, alpha=0.7, label="labelled anomalous")
for rate, style in ((0.005, "--"), (0.002, ":")):
    place = len(kept_back) - max(1, int(rate * (len(kept_back) + 1)))
    label = f"alarms at {rate:.1%} begin"
    ax.axvline(kept_back[place], color="black", ls=style, lw=1, label=label)
ax.set(xlabel="largest surprisal of a session, nats", ylabel="sessions", yscale="log")
ax.legend()
show(
    fig,
    alt="Histogram of the scores of normal and anomalous sessions on a logarithmic axis. Normal ones "
    "pile up below 7 nats, where one threshold is; anomalous ones lie above 8, the other threshold "
    "among the lowest of them.",
)

# %% [markdown]
# *Blue to the right of a line are, about, the false alarms at that rate. An event that was never seen
# is worth some 11 nats here; what lies further right are known events, or ends, in a wrong place. The
# dotted line cuts off some of the red.*
#
# ## Which line, and why
# An alarm that only says "session 4711" will be switched off within a week. This is what the operator
# gets: the raw lines around the worst place, how unlikely it was, and what had been expected there. (If
# the event is unknown, that is the reason for the alarm, whatever p is.)

# %%
tested = [s for s, moment in zip(sessions, began, strict=True) if moment >= CUT]
assert [s.events for s in tested] == trial.test
alarms = [i for i, report in enumerate(reports) if report.anomalous]
shown = next(i for i in alarms if anomalous[i] and reports[i].n_events > 8)
worst = reports[shown].worst
for t in range(
    max(0, worst.position - 3), min(len(tested[shown].events), worst.position + 2)
):
    number = tested[shown].line_numbers[t]
    mark = ">" if t == worst.position else " "
    print(mark, number, log.lines[number - 1].text[:90])
print(f"{worst.surprisal:.1f} nats, p {reports[shown].p_value:.4f}; expected instead:")
for event, chance in worst.expected:
    print(f"  {chance:6.1%}  {event[:80]}")

# %% [markdown]
# ## Are the explanations right?
# That can be checked where it is known what is wrong. Take normal sessions, and insert, delete or
# swap one event in each. Of those that raise an alarm, how often is the worst place the one where it
# was done? (Where an event stands in a row of equal ones, nobody can tell which was
# inserted; any place of that row is right then. Where one is missing, right is the place where it
# should have been.)


# %%
#| export
def with_fault(
    session: Sequence[str], kind: str, events: Sequence[str], rng: Random
) -> tuple[list[str], set[int]]:
    """A session with an event of `events` inserted, or one deleted or swapped.

    And the places where it is wrong, more than one where that can't be told. `kind` is
    "insert", "delete" or "swap"; the session has to hold two different events.
    """
    wrong, place = list(session), rng.randrange(len(session))
    if kind == "swap":
        unlike = [i for i in range(len(wrong) - 1) if wrong[i] != wrong[i + 1]]
        place = rng.choice(unlike)
        wrong[place : place + 2] = wrong[place + 1], wrong[place]
        return wrong, {place, place + 1}
    if kind == "insert":
        wrong.insert(place, rng.choice(events))
        return wrong, set(row_of(wrong, place))
    row = row_of(wrong, place)
    del wrong[place]
    return wrong, {row.stop - 1}  # where the last of the row should be


def row_of(events: Sequence[str], place: int) -> range:
    """The places around one that hold the same event."""
    first = last = place
    while first > 0 and events[first - 1] == events[place]:
        first -= 1
    while last + 1 < len(events) and events[last + 1] == events[place]:
        last += 1
    return range(first, last + 1)


# %% tags=["nbval-check-output"]
rng = Random(1)
[with_fault("abbbc", kind, "x", rng) for kind in ("insert", "delete", "swap")]

# %% [markdown]
# Three times 500 faults, in sessions that the detector has not learnt from, that were over, and
# that raised no alarm before. What comes out as a session of the training is no fault, and left
# out. (What is not flagged is not always missed: many swaps make only another normal order.)

# %%
rng, known = Random(0), {tuple(session) for session in done}
quiet = [
    session
    for session, bad, over, report in zip(
        trial.test, anomalous, ended, reports, strict=True
    )
    if over and not bad and not report.anomalous
]
located = {}
for kind in ("insert", "delete", "swap"):
    made = [
        with_fault(rng.choice(quiet), kind, tokenizer.events, rng) for _ in range(500)
    ]
    made = [(wrong, places) for wrong, places in made if tuple(wrong) not in known]
    verdicts = detector.score([wrong for wrong, _ in made])
    hits = [
        verdict.worst.position in places
        for verdict, (_, places) in zip(verdicts, made, strict=True)
        if verdict.anomalous
    ]
    located[kind] = hits, len(made)
assert np.mean(located["insert"][0] + located["swap"][0]) > 0.5  # by chance: 0.05
{
    kind: f"{len(hits)} of {n} flagged, {np.mean(hits):.0%} of these right"
    for kind, (hits, n) in located.items()
}

# %% [markdown]
# An event too many, or two in the wrong order, are found where they are. One that is missing is found
# less surely: if two machines of three report, the surprise often comes later, when something is told
# that needed the third. (With ten folds and 0.2 %, of all three kinds together 95 to 97 % are right on A
# below, and 82 to 85 % on C: `localisation` in `benchmarks/anomalies.json`.)
#
# ## When the times change
# A threshold ages. So let the kept-back scores be renewed, as a window that moves along: after every
# 500 sessions, those that are normal by then take the place of the oldest. Which are? All that raised
# no alarm, and those whose alarm somebody has looked at and found to be a false one; that is what
# alarms are for. No other label is used. Only the threshold moves: new kinds of lines stay unknown,
# and raise alarms until one fits anew.

# %%
first = detector.held_out
raised = []
for start in range(0, len(trial.test), 500):
    here = slice(start, start + 500)
    batch = detector.score(trial.test[here], ended[here])
    raised += [report.anomalous for report in batch]
    fine = [
        i
        for i, report in enumerate(batch, start)
        if not (report.anomalous and anomalous[i])
    ]
    detector.recalibrate([trial.test[i] for i in fine], [ended[i] for i in fine])
detector.held_out = first
{"as fitted": judged[0.005], "rolling": quality(raised)}

# %% [markdown]
# On the real log false alarms come down towards the promise, and recall with them: many of these
# faults are no rarer than what the new times bring, and a threshold that follows the times passes
# both. Which of the two one wants is no question of statistics.
#
# ## Against rules that anybody could write
# One run on one log proves little. `benchmarks/anomalies.py` does the same with three seeds and ten
# folds on three sets of data: **A**, HDFS as DeepLog (Du et al., 2017) has split it, 553,366 normal
# test sessions (here a sample of 22,059, weighted to stand for them) and 16,838 anomalous ones;
# **C**, the sessions of this chapter; **ADFA**, the system calls of a Linux server and of six
# attacks on it (Creech and Hu, 2013). Beside them: rules that take a minute to write ("count
# vector" is an alarm for any session whose events were never seen in these numbers, in whatever
# order), and 5-grams in place of the GPTs. No threshold has seen a label. Two rates were promised
# on each; the 5-grams have the one that is marked. At 0.5 % there would be some 2,800 false alarms
# on A; on C, 0.2 % hangs on four sessions; ADFA has only 833 traces to learn from. (The results are
# committed; this notebook reads them.)

# %%
folder = Path("../benchmarks")
results = json.loads((folder / "anomalies.json").read_text())


def spread(rows, key, width):
    """Mean over seeds, with their standard deviation, in percent."""
    values = [100 * row[key] for row in rows]
    return f"{np.mean(values):{width}.2f} ({np.std(values, ddof=1):.1f})"


rates = {name: str(result["rate"]) for name, result in results.items()}
keys = ("f1", "recall", "precision", "false_alarms")
for name, rate in rates.items():
    print(f"{name}, marked {float(rate):.1%}: F1, recall, precision, false alarms (%)")
    for rule, value in results[name]["rules"].items():
        print(f"  {rule:16}" + "".join(f"{100 * value[k]:8.2f}" for k in keys))
    for score in SCORES:
        for at in (0.002, 0.005) if name != "ADFA" else (0.01, 0.05):
            rows = [row[f"{score} {at}"] for row in results[name]["seeds"]]
            values = "".join(spread(rows, k, 8) for k in keys)
            print(f"  GPTs, {score:5} {at:.1%}{values}")

# %% [markdown]
# And how well do scores *rank* all sessions, whatever the threshold? *Average precision*: sort by
# score, and take the mean of the precision at each fault found, in percent.

# %%
for name in rates:
    row = {}
    for rule, value in results[name]["rules"].items():
        if "gram" in rule:
            row[rule] = f"{100 * value['average_precision']:.1f}"
    for score in SCORES:
        rows = [seed[score] for seed in results[name]["seeds"]]
        row[f"GPTs, {score}"] = spread(rows, "average_precision", 0)
    print(name, row)

# %% [markdown]
# An honest reading. On A at 0.2 % two rules of a minute, "pair or length" and "count vector", are as
# good as the GPTs, all near an F1 of 95. On C at 0.5 % the GPTs are well ahead of pairs and of 5-grams
# (not so with the mean), but the count vector is ahead of the GPTs: what is told of a block in HDFS is
# nearly settled by how often each line comes. So the rules win by turns, and nobody knows beforehand
# which; the GPTs are near the best both times. And they give what a count vector does not: a rate to
# choose, a ranking, a line and what had been expected there. (5-grams give that too, with a lower F1.)
# An alarm may also come while the session is running; here most come only with its end.
#
# ADFA is hard for all of them. An alarm for one normal trace in twenty was promised. The mean raises one
# for one in seven, the GPTs' other two scores for more than one in five, by very different shares from
# seed to seed; two of the 5-grams' scores come near the promise. More than a quarter of the normal test
# traces hold a call that one training trace of 833 held; how much that does depends on the model and the
# score. Only the mean ranks the attacks well above the rest: the GPTs' mean a little better than that of
# the 5-grams by average precision, and as well by F1.
#
# Which score is the right one? On HDFS a fault is often one wrong line in a session of twenty, and
# a mean can drown it: it costs less than two points of F1 on A, and eighteen on C. On ADFA an
# attack is a program that behaves otherwise for hundreds of calls, while every normal trace holds
# some rare call, so the largest says nothing. Which kind of fault will come can't be known from
# normal data. One sign can: how near the largest surprisal of a typical normal session comes to
# log(N + 1), the price of an event that was never seen. Where it is near, no room is left for
# faults to stand out, and the mean is the better bet. (I saw the sign after the results, on three
# sets of which two are one log; a fourth could refute it.)

# %%
{
    name: f"{np.mean([row['headroom'] for row in results[name]['seeds']]):.0%} of log(N + 1)"
    for name in rates
}

# %% [markdown]
# ## How to fool oneself
# Published figures on this data are often got otherwise, and can't be compared with ours. What some of
# these ways do to F1, on A and C, by the same detectors at 0.2 %:
# - the threshold that is best on the labelled test, instead of one that was promised;
# - an alarm for any event that is not among the g likeliest (DeepLog's rule), and g chosen likewise;
# - the ends of sessions not counted (a mistake, not a trick: what was cut short is not seen then);
# - sessions that are shorter than a window dropped, as whoever cuts windows of ten events does without
#   noticing;
# - and not to say how many normal test sessions stand, event for event, in the training.

# %%
for name in ("A", "C"):
    promised = [row["max 0.002"]["f1"] for row in results[name]["seeds"]]
    print(f"{name}\n  f1 as promised: {np.mean(promised):.3f}")
    for key, value in results[name]["seeds"][0]["traps"].items():
        values = [row["traps"][key] for row in results[name]["seeds"]]
        if isinstance(value, dict):
            means = {g: np.mean([v[g] for v in values]) for g in value}
            print(f"  {key}:", ", ".join(f"{g}: {m:.3f}" for g, m in means.items()))
        else:
            print(f"  {key}: {np.mean(values):.3f}")

# %% [markdown]
# Thresholds first. The best one on the test is worth 0.01 on A, where the promised one is already near
# it, and 0.15 on C. With g = 5 the rank does nearly as well on A; with g = 3 too many normal sessions
# raise an alarm, with g = 7 faults are missed, and who has no labels can't know. Without ends A loses a
# quarter of F1, since thousands of its anomalous sessions are blocks whose story stops short; C gains a
# little. Just these are gone if short sessions are dropped; whoever drops them from the test as well
# reports a recall of what is left. And nine of ten normal test sessions of A stand in its training, so
# even an alarm for whatever was never seen before is quiet for most of them; on C, cut by time, it is
# four of five.

# %% [markdown]
# ## One event at a time
# A log does not come as a list of finished sessions. It comes line by line, many sessions mixed,
# and an alarm should be raised at the line, not the next day. With chapter 08's cache each event
# costs one step: the members have already said what they expect, the event is weighed against that,
# then it is read. When a window is full, the last half of it is read again into a new cache, just
# as `in_windows` does; so a stream says what a batch says.
#
# Memory has to be bounded, since sessions whose last line never comes would stay forever. Sessions
# that were silent too long are closed, their ends counted. And if there are too many, the one that
# has been silent longest goes, its end not counted, since nobody knows whether it was over.


# %%
#| export
@dataclass(slots=True)
class Running:
    """A session that is not over, as far as it was read."""

    cache: list[KVCache]
    logits: Tensor  # (K, V): of the next event, by each member
    recent: deque[int]  # the tokens that the next window begins with
    ids: list[int]  # the tokens of this window
    seen: float  # when the last event came
    # Of known events, and of all, (2, K): largest surprisal or sum of powers.
    totals: Tensor
    counts: Tensor  # (2, K): of how many events
    n_events: int = 0
    n_unknown: int = 0
    worst: EventReport | None = None


def worse(first: EventReport | None, second: EventReport) -> EventReport:
    """The worse of two events: the first unknown one, else the more surprising one."""
    if first is None:
        return second
    later = not second.known or second.surprisal > first.surprisal
    return second if first.known and later else first


# %%
#| export
class EventStream:
    """Judges events as they come, of up to `max_sessions` sessions at a time.

    `on_close` is called for each session that is closed because it was silent for more
    than `max_age` (in the units of `now`), or because there was no more room: with its
    name, its report, and whether its end was counted. With `count_ends` off it never
    is. A running session takes about 64 kB for each member, however long it is.
    """

    def __init__(
        self,
        detector: AnomalyDetector,
        max_sessions: int = 1000,
        max_age: float = math.inf,
        count_ends: bool = True,
        on_close: Callable[[str, SessionReport, bool], None] = lambda *told: None,
    ):
        check_int("max_sessions", max_sessions, low=1)
        if not max_age >= 0:  # nor NaN
            raise ValueError(f"max_age is {max_age}; it must be at least 0")
        self.detector, self.on_close = detector, on_close
        self.max_sessions, self.max_age = max_sessions, max_age
        self.count_ends = count_ends
        self.score_name = detector.score_name  # it may be set anew there, not here
        self.power = SCORES[self.score_name]
        self.running: dict[str, Running] = {}  # the one silent longest comes first
        self.panel, self.block_size = detector.panel, detector.panel.config.block_size

    @torch.no_grad()
    def push(self, name: str, event: str, now: float = 0.0) -> EventReport:
        """Takes in the next event of a session, and says what it thinks of it."""
        self.expire(now)
        detector, event = self.detector, str(event)
        session = self.running.pop(name, None) or self.begin(now)
        while len(self.running) >= self.max_sessions:
            oldest = next(iter(self.running))
            report = self.report(oldest)
            del self.running[oldest]
            self.on_close(oldest, report, False)
        self.running[name] = session
        token = detector.tokenizer.encode_session([event])[1]
        reading = self.weigh(session, token)
        if event in detector.tokenizer:
            self.feed(session, token.item())
        else:
            reading.rank.fill_(detector.tokenizer.vocab_size)
            session.n_unknown += 1
        report = detector.report_event(session.n_events, event, reading)
        session.worst = worse(session.worst, report)
        session.n_events += 1
        session.seen = now
        return report

    def report(self, name: str, as_ended: bool = False) -> SessionReport:
        """The report of a running session; KeyError if it is none.

        Its end is not counted. It is judged among sessions whose end was not, either,
        or `as_ended` among those whose end was, as it will be: whose largest surprisal
        raises an alarm there will still raise it when it ends.
        """
        return self.verdict(self.running[name], as_ended)

    @torch.no_grad()
    def close(self, name: str) -> SessionReport:
        """Ends a session and gives its report; KeyError if it is not running."""
        session = self.running.pop(name)
        if not self.count_ends:
            return self.verdict(session, False)
        reading = self.weigh(session, torch.tensor(self.detector.tokenizer.end))
        report = self.detector.report_event(session.n_events, END, reading)
        session.worst = worse(session.worst, report)
        return self.verdict(session, True)

    def expire(self, now: float) -> None:
        """Closes the sessions that have been silent for more than `max_age`."""
        while self.running:
            name, session = next(iter(self.running.items()))
            if now - session.seen <= self.max_age:
                break
            self.on_close(name, self.close(name), self.count_ends)

    def weigh(self, session: Running, token: Tensor) -> Reading:
        """The reading of the token that came, and the session's totals with it."""
        reading = weigh(session.logits, token.to(self.panel.device))
        self.panel.price(reading, token, self.detector.n_events)
        counted = torch.stack([reading.known, torch.ones_like(reading.known)])
        nats = reading.nats.cpu().double() * counted
        if self.power == math.inf:
            session.totals = torch.maximum(session.totals, nats)
        else:
            session.totals = session.totals + nats**self.power
        session.counts = session.counts + counted
        return reading

    def verdict(self, session: Running, ended: bool) -> SessionReport:
        """The report of a session among those whose end was counted, or was not."""
        scores = session.totals
        if self.power != math.inf:
            means = session.totals / session.counts.clamp(min=1)
            scores = means ** (1 / self.power)
        return self.detector.verdict(
            scores[0, :, None],
            scores[1].mean().item(),
            ended,
            session.n_events,
            session.n_unknown,
            session.worst,
            self.score_name,
        )

    def begin(self, now: float) -> Running:
        """A session of which only the begin was read."""
        recent: deque[int] = deque(maxlen=self.block_size - self.block_size // 2)
        none = torch.zeros(2, len(self.panel.members), dtype=torch.float64)
        cache, logits = self.panel.cache(), torch.empty(0)
        session = Running(cache, logits, recent, [], now, none, none)
        self.feed(session, self.detector.tokenizer.begin)
        return session

    def feed(self, session: Running, token: int) -> None:
        """Lets the members read a token, in a new window if the last one is full."""
        session.ids.append(token)
        if len(session.ids) > self.block_size:
            session.cache, session.ids = self.panel.cache(), [*session.recent, token]
        session.recent.append(token)
        ids = torch.tensor(session.ids, device=self.panel.device)
        session.logits = self.panel.read(ids, session.cache)


# %% [markdown]
# Fifty sessions, and a fifty-first glued together from two of them so that it outgrows the window,
# mixed event by event. What to look at: worst surprisal and p-value are those of the batch (the
# asserts), and how soon the alarms come. The largest surprisal may be looked at after every line,
# since it only rises: measured by the scores of whole sessions, an alarm on the way is one that
# would come at the end. (On the real log, most come only with the end.) A mean can be high early
# and fall again, so looking often would break its promise.

# %%
chosen = [trial.test[i] for i in [*alarms[:10], *range(40)]]
chosen.append(2 * max(chosen, key=len) + chosen[0] * 4)
running = detector.stream()
start, count, told = time.perf_counter(), 0, {}
for place in range(max(map(len, chosen))):
    for i, session in enumerate(chosen):
        if place < len(session):
            running.push(f"session {i}", session[place])
            count += 1
            if i not in told and running.report(f"session {i}", True).anomalous:
                told[i] = (place + 1, len(session))
took = (time.perf_counter() - start) / count
closed = [running.close(f"session {i}") for i in range(len(chosen))]
whole = detector.score(chosen)
for one, other in zip(closed, whole, strict=True):
    assert math.isclose(one.worst.surprisal, other.worst.surprisal, abs_tol=1e-5)
    assert abs(one.p_value - other.p_value) <= 3 / detector.n_held_out
assert whole[-1].windowed
print(f"{1000 * took:.1f} ms an event, {len(detector.members)} members")
"alarm after event, of:", list(told.values())

# %% [markdown]
# In batches, with equal sessions read once, it is much more:

# %%
events = sum(len(session) + 1 for session in trial.test)
start = time.perf_counter()
detector.score(trial.test)
f"{events / (time.perf_counter() - start):,.0f} events a second"

# %% [markdown]
# ## Kept, and used on one's own logs
# A detector is a folder of checkpoints and one file of kept-back scores, without any code in it.

# %%
with TemporaryDirectory() as place:
    detector.save(place)
    again = AnomalyDetector.load(place)
    names = sorted(p.name for p in Path(place).iterdir())
assert [r.p_value for r in again.score(chosen)] == [r.p_value for r in whole]
names

# %% [markdown]
# The command line does all of this on files. Here is a made-up log of an SSH server, 600 connections
# in which all is well, and then ten more: one guesses passwords, and of one the end is missing. Two
# should raise an alarm. (With only two kinds of normal connection this shows how to use it, not how
# good it is. Two folds, to save a minute and a half.)

# %%
rng = Random(0)


def connection(number, attempts, accepted=True, closed=True):
    """Lines of one connection."""
    host = f"203.0.113.{rng.randrange(1, 255)}"
    yield f"Connection from {host} port {rng.randrange(1024, 65536)}"
    for _ in range(attempts):
        yield f"Failed password for deploy from {host} port 51022 ssh2"
    if accepted:
        yield f"Accepted publickey for deploy from {host} port 51022 ssh2"
        yield "pam_unix(sshd:session): session opened for user deploy"
        if closed:
            yield "pam_unix(sshd:session): session closed for user deploy"
            yield f"Disconnected from user deploy {host} port 51022"


def write(path, connections):
    """A log of connections, each with the number of its process."""
    with open(path, "w") as file:
        for number, given in enumerate(connections, start=4000):
            for text in connection(number, *given):
                print(f"Nov 25 03:12:01 gate sshd[{number}]: {text}", file=file)


# %% [markdown]
# Both logs, and then the two commands, as they would be typed:

# %%
calm = [(rng.choice([0, 0, 0, 0, 1]),) for _ in range(600)]
with TemporaryDirectory() as place:
    write(f"{place}/old.log", calm)
    write(
        f"{place}/new.log",
        [*calm[:3], (0, True, False), *calm[:3], (7, False), *calm[:2]],
    )
    for command in (
        r"fit --normal old.log --out gate --session-regex sshd\[(\d+)\] --folds 2",
        "score gate new.log",
    ):
        told = subprocess.run(
            [sys.executable, "-m", "tinygpt_lib", "detect", *command.split()],
            cwd=place,
            capture_output=True,
            text=True,
        )
        print(
            f"$ python -m tinygpt_lib detect {command}",
            told.stderr,
            told.stdout,
            sep="\n",
        )
        assert told.returncode == 0

# %% [markdown]
# 4003 is the connection whose end is missing. 4007 guesses passwords; the report names the one
# thing that was most surprising, and that the connection stops after a failure was more so than
# each failure before. (`explain` shows them all.)
#
# Each alarm gives the line, why it raised an alarm, and what had been expected there. `--json`
# prints every session for a program to read, `--follow` stays with a file as it grows,
# `--open-ends` says (to both commands) that sessions may go on after the log, `--mask WORD=RE` adds
# a mask for names that the usual ones don't find, and without `--session-regex` the lines of a
# minute are a session.
#
# ## Summary
# Surprise finds what is unusual; here that was mostly faults. A session's score is its largest
# surprisal, or a mean where faults are whole behaviours. Normal sessions that were kept back say
# how rare a score is, and that promises a rate of false alarms, for lines of known kinds, before
# any fault was seen. On the sessions of this chapter that gives an F1 of 86 at a promised 0.5 %;
# the count vector, a rule of a minute, has 91. On A it is 95 at 0.2 %, where the best rule has 96.
# An alarm also names a line. Of the injected faults that raised one, it was the right one in 95 to
# 97 of 100 on A, and in 82 to 85 on C. Where what is normal changes, as after the cut and on ADFA,
# the promise may not hold, and has to be watched.
#
# ## Exercises
# **1.** How many normal sessions does a promise of one false alarm in a million need? And what does
# `AnomalyDetector.fit` say when it is asked for that here? Give its sentence as `refusal`.
# ```python
# assert "normal sessions" in refusal
# ```
# **2.** DeepLog raises an alarm if any event is not among the g likeliest. From `detector.read`,
# get for each session the worst rank (that of its end only if it has `ended`), and give the F1 for
# g = 1, 3, 5, 7 and 9 as a list `by_rank`. Which g would you have chosen without the labels?
# ```python
# assert len(by_rank) == 5 and max(by_rank) > 0.3
# ```
# **3.** Does the mean find what the largest does? Set `detector.score_name` to "mean", compare the
# average precision of both as a dict `precisions`, and set it back.
# ```python
# assert precisions["max"] >= precisions["mean"] > 0
# ```

# %% [markdown]
# ## Solutions

# %% jupyter={"source_hidden": true}
try:
    AnomalyDetector.fit(trial.train, ended=over, false_alarms=1e-6)
except ValueError as error:
    refusal = str(error)
assert "normal sessions" in refusal
refusal

# %% jupyter={"source_hidden": true}
ranks = np.array(
    [
        max(reading.rank[: len(session) + over].tolist(), default=1)
        for session, over, reading in zip(
            trial.test, ended, detector.read(trial.test), strict=True
        )
    ]
)
by_rank = [quality(ranks > g)["F1"] for g in (1, 3, 5, 7, 9)]
assert len(by_rank) == 5 and max(by_rank) > 0.3
# Without labels no g can be preferred: only what share of normal sessions each one flags.
by_rank, [f"{np.mean(ranks[~anomalous] > g):.1%}" for g in (1, 3, 5, 7, 9)]

# %% jupyter={"source_hidden": true}
precisions = {}
for name in ("mean", "max"):
    detector.score_name = name
    values = [report.score for report in detector.score(trial.test, ended)]
    precisions[name] = float(average_precision_score(anomalous, values))
assert precisions["max"] >= precisions["mean"] > 0
precisions
