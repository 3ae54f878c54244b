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
# # 16 · Anomalies
# > Can surprise find faults?
#
# *An hour to read, a minute of CPU to run. It uses the sessions and the GPT (15); figures on
# other data lie in a file.*
#
# Where we are: a GPT that knows what a block's log looks like, to 0.346 bits per event. When
# something goes wrong, other lines appear, and the model should be surprised. This chapter turns
# surprise into an alarm: for each session a verdict, how often such a verdict is wrong, which line was
# the surprising one, and what had been expected there.
#
# It needs no labelled faults, only a time in which the system was well. Here labels stand in for that:
# they say which of the early sessions are normal. After that they only tell how good the alarm is.
# The numbers to beat come from two rules that anybody could write in a minute. An alarm for each
# session with a pair of events, or a length, that was never seen reaches an F1 of 68 on these sessions,
# 100 being perfect; one for each session whose counts of events were never seen, 91.
#
# ![A log's way to a verdict, from top to bottom: lines lose what varies and become events, the events of one block a session; a delete where an arrival was due surprises the model, no normal session kept back is as surprising, so p is small and an alarm names the line.](drawings/verdict.svg)
#
# If the first output says SYNTHETIC, the log was made by a program, and the numbers differ.

# %%
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from scipy.stats import binomtest

from course import BLUE, RED, plt, show
from course.logdata import CUT, load_log, split_by_time, with_fault
from tinygpt_lib.logs import SessionFinder, group_lines, stream
from tinygpt_lib.runs.detectors import AnomalyDetector as SafeDetector

log = load_log()
found = group_lines((line.text for line in log.lines), SessionFinder(r"blk_-?\d+"))
log.origin

# %%
#| export
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass
from operator import itemgetter
from random import Random
from typing import Self

import torch
from torch import Tensor

from tinygpt_lib.basics.checks import each
from tinygpt_lib.basics.devices import device_of
from tinygpt_lib.gpt import GPT
from tinygpt_lib.logs import END, EventTokenizer, in_windows, learn, log_config

# %% [markdown]
# ## What may be learned from, and what is judged
# A detector is used on days that come after those it has learned from, so that is how it is tried. It is
# 18:00 of the second day, and it is fitted on what the log says by then: on the normal sessions that
# have begun, as far as they have come. It is tried on all that begin later. With a random cut the
# detector would know the future.

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
# Their "end" is then only the edge of the file. A model that learns from it that sessions may end
# anywhere will miss those that break off. So how long must a session be silent before it counts as
# over? Longer than any normal one was silent after the same event and then went on.


# %%
#| export
def known_ends(
    sessions: Sequence, times: Sequence, moment: float, normal: tuple | None = None
) -> list[bool]:
    """Of which sessions the end is known at a moment, in seconds or lines of the log.

    Those that have been silent for longer than any other was after the same event and
    then went on: any of these, or of `normal`, which are (sessions, times).
    """
    pauses: dict[str, float] = {}
    for events, own in zip(*(normal or (sessions, times)), strict=True):
        for event, a, b in zip(events, own, own[1:], strict=False):
            pauses[event] = max(pauses.get(event, 0.0), b - a)
    return [
        not events or moment - own[-1] > pauses.get(events[-1], -1.0)
        for events, own in zip(sessions, times, strict=True)
    ]


# %%
before = [["open", "read", "close"]], [[0.0, 2.0, 9.0]]
known_ends([["open"], ["read"]], [[10.0], [10.0]], 13.0, before)

# %% [markdown]
# One that has been opened was never silent for three seconds, one that reads was for seven. The rule is
# applied to the sessions to learn from at the time of the cut, and to those to judge when the log stops,
# both times by pauses from before the cut.

# %%
before = trial.train, trial.train_times
over = np.array(known_ends(*before, CUT))
ended = known_ends(trial.test, trial.test_times, log.lines[-1].seconds, before)
ended = np.array(ended)
(
    f"{over.sum():,} of {len(over):,} are over at the cut",
    f"{ended.sum():,} of {len(ended):,} are when the log stops",
)

# %% [markdown]
# ## What the model says
# Of each event we want its surprisal, as in chapter 15. We also want the likeliest events in its place,
# so that a report can say what had been expected, and its *rank*: 1 if nothing was likelier. Several
# models read the same; what they expected together is the mean of their probabilities.
#
# How surprising is an event that was never seen? Suppose it comes once in N + 1 events, and order says
# nothing. Then the chance that it is the last one is 1 / (N + 1), so its surprisal is log(N + 1). No
# event should cost more than that, so this is also the highest price.


# %%
#| export
@dataclass(slots=True)
class Reading:
    """What K models say of the events of a session, n with its end."""

    nats: Tensor  # (K, n): surprisal of each by each model
    rank: Tensor  # (n,): 1 and how many events were likelier, by all models together
    likeliest: Tensor  # (n, 3): ids that were expected most
    chances: Tensor  # (n, 3): and their probabilities


def weigh(logits: Tensor, ids: Tensor, price: float) -> Reading:
    """The reading of ids (...) that came, by logits (K, ..., V) of what might come.

    No event is dearer than `price`, which is what an unknown one costs. BEGIN gets no
    chance: it never comes within a session.
    """
    begin = torch.tensor(EventTokenizer.begin, device=ids.device)
    logs = logits.float().index_fill(-1, begin, -math.inf).log_softmax(-1)
    wanted = ids[..., None]  # (..., 1)
    nats = -logs.gather(-1, wanted.expand(len(logs), *wanted.shape))[..., 0]
    nats = nats.clamp(max=price).masked_fill(ids == EventTokenizer.unknown, price)
    chances = logs.exp().mean(0)  # (..., V)
    rank = 1 + (chances > chances.gather(-1, wanted)).sum(-1)
    best = chances.topk(min(3, chances.shape[-1]))
    return Reading(nats, rank, best.indices, best.values)


# %% [markdown]
# And for many sessions, cut into chapter 15's windows:


# %%
#| export
@torch.no_grad()
def read_sessions(
    members: Sequence[GPT], sessions: Sequence[Tensor], price: float
) -> list[Reading]:
    """Readings of sessions of ids (N,), each with its begin and end."""
    config, device = members[0].config, device_of(members[0])
    readings: list = [[] for _ in sessions]
    at_once = 2**22 // config.vocab_size // len(members)  # logits of 16 MB
    for ids, rows in in_windows(sessions, config.block_size, min(16_384, at_once)):
        ids = ids.to(device)
        logits = torch.stack([member(ids[:, :-1]) for member in members])
        found = weigh(logits, ids[:, 1:], price)
        nats, *rest = (part.cpu() for part in astuple(found))
        for row, (i, start, first, end) in enumerate(rows):
            own = [nats[:, row, first:end], *(part[row, first:end] for part in rest)]
            readings[i].append((start, own))
    for i, parts in enumerate(readings):
        parts = [own for _, own in sorted(parts, key=itemgetter(0))]
        nats, *rest = zip(*parts, strict=True)
        readings[i] = Reading(torch.cat(nats, 1), *map(torch.cat, rest))
    return readings


# %% [markdown]
# Two models, five kinds of events (1 is BEGIN), and event 3 came.

# %%
chances = torch.tensor([[0, 0, 0.7, 0.2, 0.1], [0, 0, 0.5, 0.1, 0.4]])
reading = weigh(chances.log(), torch.tensor(3), price=11.0)
assert reading.rank == 3 and reading.likeliest.tolist() == [2, 4, 3]
reading.nats.neg().exp(), reading.chances

# %% [markdown]
# Let one GPT learn from four fifths of the early sessions that are over. Then look at two sessions that
# came later, one normal and one not, chosen so that the difference is plain.

# %%
done = [s for s, known in zip(trial.train, over, strict=True) if known]
order = torch.randperm(len(done), generator=torch.Generator().manual_seed(0))
known = [done[i] for i in order[: len(done) * 4 // 5]]
tokenizer = EventTokenizer.from_sessions(known)
train_ids = stream(known, tokenizer)
model = learn(train_ids, log_config(tokenizer.vocab_size))
price = math.log(len(train_ids) + 1)
coded = [tokenizer.encode_session(session) for session in trial.test]
nats = [reading.nats[0] for reading in read_sessions([model], coded, price)]

# %%
usual = [i for i in np.flatnonzero(~anomalous) if nats[i].max() < 4]
odd = [i for i in np.flatnonzero(anomalous) if nats[i].max() > 6 and len(nats[i]) > 12]
fig, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True)
for ax, i, color in zip(axes, (usual[0], odd[0]), (BLUE, RED), strict=True):
    ax.bar(range(len(nats[i])), nats[i], color=color)
    ax.xaxis.get_major_locator().set_params(integer=True)
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
# one event stands out.* So the simplest score of a session is its largest surprisal.
#
# ## What the counts say
# A GPT that expects each event in its turn can miss something that a child would see: there are nine
# of them, and there should be three. Each of the nine is only a little surprising. So look at the
# counts too, in the plainest way: how far is the session from the *nearest* normal one? A vector holds
# how often each event came; the L1 distance of two vectors adds up their differences.
#
# One more change often helps. A fourth read after three says less than a first error after
# none, though both differ by one. Counts that vary by chance spread as their square root does (a
# Poisson count of n has the deviation √n), and roots of counts spread alike whatever n is (Anscombe,
# 1948). So take roots first: from none to one is then a distance of 1, from three to four one of 0.27.
# On the sessions of DeepLog, below, that alone moves average precision from 97.5 to 99.0, with the same F1
# (98.6 and 98.4 at 0.2 %); where the log is cut by time it moves F1 from 69 to 91, with the same average
# precision (85).
#
# Of a session that may go on, what is missing may still come. Only what there is too much of counts.


# %%
#| export
def root_counts(sessions: Sequence[Tensor], vocab_size: int) -> Tensor:
    """Square roots of how often each event comes in sessions of ids: (N, V)."""
    rows = [torch.bincount(ids[1:-1], minlength=vocab_size) for ids in sessions]
    return torch.stack(rows).float().sqrt()


def distances(rows: Tensor, others: Tensor, ended: bool = True) -> Tensor:
    """L1 distances of root counts (N, V) from those of others (R, V): (N, R).

    Of a session that may go on, only what it has too much: the rest may still come.
    """
    found = torch.cdist(rows, others, p=1)
    if not ended:
        found = (found + rows.sum(1, keepdim=True) - others.sum(1)) / 2
    return found


def apart(rows: Tensor, ended: bool, most: int = 4096) -> tuple[Tensor, Tensor]:
    """The different rows (R, V), commonest first; how far each row is from another."""
    kinds, place, times = rows.unique(dim=0, return_inverse=True, return_counts=True)
    kept = kinds[times.argsort(descending=True, stable=True)[:most]]
    nearest = torch.zeros(len(kinds))  # where there are two of a kind
    for i in (times == 1).nonzero()[:, 0].split(1024):
        found = distances(kinds[i], kept, ended)
        itself = (kinds[i, None] == kept).all(-1)
        nearest[i] = found.masked_fill(itself, math.inf).amin(1)
    return kept, nearest[place]


# %%
tiny = EventTokenizer(["error", "read"])
normal = [["read"] * 3, ["read"] * 2]
two = [["read"] * 4, ["error", *["read"] * 3], ["read"]]
rows, others = (
    root_counts([tiny.encode_session(s) for s in sessions], tiny.vocab_size)
    for sessions in (two, normal)
)
whole, going_on = (distances(rows, others, e).amin(1) for e in (True, False))
assert going_on[2] == 0 < whole[2]  # a second read may come
whole, going_on

# %% [markdown]
# Each normal session can be compared with all others in this way, itself left out. How far are they
# from each other, and how far are the sessions after the cut that are over?

# %%
coded_done = [tokenizer.encode_session(session) for session in done]
kinds, far = apart(root_counts(coded_done, tokenizer.vocab_size), True)
late = root_counts([coded[i] for i in np.flatnonzero(ended)], tokenizer.vocab_size)
late = distances(late, kinds).amin(1).numpy()
bad = anomalous[ended]
{
    "kinds of counts": len(kinds),
    "normal, before the cut": f"{(far > 0).float().mean():.1%} at a distance",
    "normal, after it": f"{(late[~bad] > 0).mean():.1%}",
    "anomalous, after it": f"{(late[bad] > 0).mean():.1%}",
}

# %% [markdown]
# ## Where does an alarm begin?
# At 5 nats? At 10? Anyone who tries thresholds on labelled faults and reports the best one has cheated:
# on the day it is needed there are no labels. But normal sessions that were kept back say what
# normal scores look like. They are the *calibration set*. If a new session is normal too, and nothing
# tells it from them but chance (they are *exchangeable*: any order of them is as likely as any other),
# its score may land anywhere among theirs, each place equally likely. So count how many of the n
# kept-back scores are at least as large:
#
# $$p = \frac{1 + \#\{\text{kept-back scores} \ge s\}}{n + 1}$$
#
# This is a *conformal p-value* (Vovk and others, 2005). For a new normal session it is at most 0.01 in
# at most one case of a hundred, no matter how bad the model is; a bad one only finds fewer faults. An
# alarm at p <= 0.002 promises at most two false ones in a thousand. By hand, with nine scores:

# %% tags=["nbval-check-output"]
kept = [1, 1, 2, 2, 2, 3, 4, 5, 7]
[(1 + sum(k >= s for k in kept)) / (len(kept) + 1) for s in (2, 6, 9)]

# %% [markdown]
# The last score is larger than all that were seen, and still p is 0.1: of ten draws, one must be the
# largest. So a rate of 0.002 needs at least 499 normal sessions; given fewer, a detector must refuse.
#
# What is kept back is not learned from. The way out is to deal the sessions into three *folds* and to
# fit three models, each on two of the folds. Then every session was kept back from one model. A new
# session is scored by all three, and each model's score is compared with that model's scores of the
# fold it never saw. (Vovk, 2015, calls this *cross-conformal*.) One model alone is a matter of luck at
# such rates, since its threshold hangs on two or three scores.


# %%
#| export
def p_values(held_out: Sequence[Tensor], scores: Tensor) -> Tensor:
    """Conformal p-values (N,) of scores (K, N) by K models, each with its own fold.

    `held_out` are, for each model, the scores of normal sessions it has not learned
    from, in rising order. Scores that differ by rounding tie. Vovk, 2015.
    """
    at_least = torch.zeros(scores.shape[1:], dtype=torch.int64)
    for kept, own in zip(held_out, scores, strict=True):
        at_least += len(kept) - torch.searchsorted(kept, own.contiguous() - 1e-3)
    return (1 + at_least).double() / (1 + sum(map(len, held_out)))


# %% tags=["nbval-check-output"]
fold = torch.tensor([1.0, 1, 2, 2, 2, 3, 4, 5, 7])
assert (
    p_values([fold], torch.tensor([[2.0, 6, 9]])).tolist()
    == p_values([fold[:4], fold[4:]], torch.tensor([[2.0, 6, 9]] * 2)).tolist()
)
p_values([fold], torch.tensor([[2.0, 6, 9]]))

# %% [markdown]
# What is proven of cross-conformal p-values is weaker than the rate itself. For a rate a, K folds and n
# sessions the share of false alarms is at most 2a + 2(1 - 1/K) / (n/K + 1) (Barber and others, 2021).
# In practice the rate itself is usually met. For the distances the rate itself is proven: one more
# session can only bring the others nearer to each other, never move them apart. Below, each witness
# gets half of the rate. What is proven of both together here, at 0.5 %?

# %%
a, K, n = 0.005, 3, int(over.sum())
bound = a / 2 + 2 * a / 2 + 2 * (1 - 1 / K) / (n / K + 1)
f"promised {a:.1%}, proven {bound:.2%} with {n:,} sessions"

# %% [markdown]
# ## The detector
# Two witnesses, one verdict: how are they joined? By "or". Each gets half of the promised rate, so the
# p-value of a session is twice the smaller one of
#
# - the p-value of its largest surprisal, among those of sessions that the model has not learned from, and
# - that of its distance, among the distances of normal sessions from each other.
#
# Were the two added up instead, the few normal sessions with odd counts would set a threshold that no
# surprise of order ever passes. The halves cost sessions: 0.2 % needs 999 of them.
#
# In its barest form that is one model, the fifth of the sessions that it has not learned from, and the
# sessions that are over. *Precision*: of the alarms, how many were faults. *Recall*: of the faults, how many
# raised an alarm. *F1* is high only if both are: 2PR / (P + R). The share of false alarms comes with its 95 %
# interval, which takes sessions for independent.


# %%
def quality(raised, bad=anomalous):
    """Precision, recall, F1, and the false-alarm rate with its interval."""
    raised = np.array(raised)
    hits = (raised & bad).sum()
    precision, recall = hits / max(1, raised.sum()), hits / bad.sum()
    false = binomtest(int((raised & ~bad).sum()), int((~bad).sum()))
    low, high = false.proportion_ci(method="exact")
    return {
        "precision": round(float(precision), 3),
        "recall": round(float(recall), 3),
        "F1": round(float(2 * precision * recall / max(1e-9, precision + recall)), 3),
        "false alarms": f"{false.statistic:.2%} ({low:.2%} to {high:.2%})",
    }


kept_back = [coded_done[i] for i in order[len(known) :]]
kept = [reading.nats.max() for reading in read_sessions([model], kept_back, price)]
largest = torch.stack([nats[i].max() for i in np.flatnonzero(ended)])
p_order = p_values([torch.stack(kept).sort().values], largest[None])
p_counts = p_values([far.sort().values], torch.tensor(late)[None])
p = (2 * torch.minimum(p_order, p_counts)).clamp(max=1)
quality((p <= 0.005).numpy(), bad)

# %% [markdown]
# Those are the figures of the counts alone: of 431 kept-back sessions, half of 0.5 % allows for none that is as
# odd. The class keeps back all 2,152, by folds, and judges sessions that may go on.
#
# To *rank* sessions a sum is right, since it lets both witnesses speak. An event that was never seen
# costs the GPT log(N + 1) nats and moves the counts by 1, so that is what a distance of 1 is worth:
#
# $$\text{score} = \text{largest surprisal} + \log(N + 1) \cdot \text{distance of the counts}$$
#
# New kinds of line are kept apart. A session with an event that no normal one had always raises an
# alarm. How often normal sessions bring news is up to the system, and nobody can promise a rate for it;
# but it can be foreseen: it is the share of normal sessions that hold an event which no *other* session
# has. Such events are left out of the kept-back scores, so that they don't blunt the rest.
#
# A report says all of that, of a session and of an event:


# %%
#| export
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

    score: float  # nats; a distance of 1 is worth log(N + 1)
    p_value: float  # what share of normal sessions is as odd
    anomalous: bool  # p_value is within the promised rate, or an event is unknown
    n_events: int
    n_unknown: int
    worst: EventReport | None  # an unknown event, else the most surprising one
    counts: tuple[tuple[str, int, int], ...]  # events, how often, how often elsewhere
    windowed: bool  # longer than what the models see at once
    by: str = "order"  # the witness with the smaller p-value, or "counts"


# %% [markdown]
# And the detector. `fit` counts, deals, learns, and keeps the scores of what was not learned; `score` judges
# sessions.


# %%
#| export
class AnomalyDetector:
    """Finds sessions that are unlike normal ones, and says what is odd about them.

    `normal` are root counts of normal sessions (R, V), {whether only of those that have
    ended}; `far` how far those were from another; `held_out` the surprise, by each
    member, at the sessions that it has not learned from, {whether their ends count}.
    `news`: what share of normal sessions will hold unknown events; `about`: plain data.
    """

    most = 4096  # kinds of events, and of their counts, that are kept

    def __init__(
        self,
        members: Sequence[GPT],
        tokenizer: EventTokenizer,
        normal: dict[bool, Tensor],
        far: dict[bool, Tensor],
        held_out: dict[bool, list[Tensor]],
        *,
        n_events: int,
        false_alarms: float,
        score: str = "max",
        news: float = 0.0,
        about: dict | None = None,
    ):
        self.members, self.tokenizer, self.n_events = list(members), tokenizer, n_events
        self.normal, self.far, self.held_out = normal, far, held_out
        self.price = math.log(n_events + 1)  # of an event that was never seen
        self.false_alarms, self.score_name, self.news = false_alarms, score, news
        self.about = dict(about or {})

    @staticmethod
    def deal(ended: Sequence[bool], folds: int, seed: int) -> list[list[int]]:
        """Places of sessions in folds, by chance; those that have ended are even."""
        order = list(range(len(ended)))
        Random(seed).shuffle(order)
        order.sort(key=lambda i: not ended[i])
        folds = min(folds, sum(ended))
        return [sorted(order[k::folds]) for k in range(folds)]

    @classmethod
    def fit(
        cls,
        sessions: Iterable[Sequence],
        *,
        ended: bool | Sequence[bool] = True,
        false_alarms: float = 0.002,
        score: str = "max",
        folds: int = 3,
        seed: int = 0,
        learn: Callable = learn,
        about: dict | None = None,
    ) -> Self:
        """A detector that knows normal sessions, of events (strings or ids).

        `ended` says of which the end is known; of the others it learns no end. It
        raises alarms for about a share `false_alarms` of sessions like these; those for
        unknown events come on top. ValueError where too few have ended.
        """
        sessions = [tuple(map(str, session)) for session in sessions]
        over = torch.tensor(each(ended, len(sessions)))
        if false_alarms * (1 + over.sum()) < 2 - 1e-9:
            raise ValueError(f"{over.sum()} sessions can't promise {false_alarms:g}")
        # 1. What there is to know.
        seen = Counter(event for session in sessions for event in {*session})
        often = sorted(seen, key=lambda event: (-seen[event], event))[: cls.most]
        tokenizer = EventTokenizer(sorted(often))
        coded = [tokenizer.encode_session(session) for session in sessions]
        new = {event for event in seen if seen[event] == 1} | {*seen} - {*often}
        news = sum(not new.isdisjoint(session) for session in sessions) / len(sessions)
        # 2. Counts, and how far each session is from another one.
        rows = root_counts(coded, tokenizer.vocab_size)
        # What would have been news raises an alarm of its own, and is left out here.
        extra = rows[:, [name in new for name in tokenizer.names]].sum(1)
        known = [tuple(e for e in session if e not in new) for session in sessions]
        normal, far = {}, {}
        for end, there in ((True, over), (False, torch.ones_like(over))):
            normal[end], distance = apart(rows[there], end, cls.most)
            far[end] = (distance - extra[there]).double().sort().values
        # 3. Models, each of which never sees one fold, and what they say of that.
        n_events = sum(map(len, sessions))
        parts = normal, far, {True: [], False: []}
        settings = {"n_events": n_events, "false_alarms": false_alarms, "score": score}
        detector = cls([], tokenizer, *parts, **settings, news=news, about=about)
        for k, fold in enumerate(cls.deal(over.tolist(), folds, seed)):
            rest = {*range(len(coded))}.difference(fold)
            stream = torch.cat([coded[i][: None if over[i] else -1] for i in rest])
            stream = stream[stream != tokenizer.unknown]
            model = learn(stream, log_config(tokenizer.vocab_size), seed + k)
            readings = detector.read([known[i] for i in fold], [model])
            for end, kept in detector.held_out.items():
                pairs = zip(fold, readings, strict=True)
                own = [reading for i, reading in pairs if over[i] or not end]
                scores = torch.cat([detector.surprise(one, end) for one in own])
                kept.append(scores.sort().values)
            detector.members.append(model)
        return detector

    def read(self, sessions: Sequence[tuple], members=None) -> list[Reading]:
        """What the members say of each event, and end, of sessions; equal ones once."""
        places = {session: i for i, session in enumerate(dict.fromkeys(sessions))}
        coded = [self.tokenizer.encode_session(session) for session in places]
        readings = read_sessions(members or self.members, coded, self.price)
        return [readings[places[session]] for session in sessions]

    def surprise(self, reading: Reading, ended: bool) -> Tensor:
        """The largest surprisal of a session, or the mean, by each member: (K,)."""
        nats = reading.nats if ended else reading.nats[:, :-1]
        if not nats.shape[1]:
            return torch.zeros(len(nats)).double()
        return (nats.mean(1) if self.score_name == "mean" else nats.amax(1)).double()

    def score(
        self, sessions: Iterable[Sequence], ended: bool | Sequence[bool] = True
    ) -> list[SessionReport]:
        """A report of each session; `ended` says of which the end is known."""
        sessions = [tuple(map(str, session)) for session in sessions]
        keys = list(zip(sessions, each(ended, len(sessions)), strict=True))
        different = list(dict.fromkeys(keys))
        readings = self.read([session for session, _ in different])
        read = dict(zip(different, readings, strict=True))
        done = {}
        for end in (True, False):
            own = [key for key in different if key[1] == end]
            for part in (own[i : i + 1000] for i in range(0, len(own), 1000)):
                known = [read[key] for key in part]
                found = self.reports([session for session, _ in part], known, end)
                done.update(zip(part, found, strict=True))
        return [done[key] for key in keys]

    def reports(
        self, sessions: Sequence, readings: Sequence[Reading], ended: bool = True
    ) -> list[SessionReport]:
        """The reports of sessions, which have ended or may go on, from readings."""
        coded = [self.tokenizer.encode_session(session) for session in sessions]
        worst: list[EventReport | None] = []
        for events, ids, reading in zip(sessions, coded, readings, strict=True):
            nats = reading.nats.mean(0)[: len(events) + ended]
            nats[ids[1 : len(nats) + 1] == self.tokenizer.unknown] += math.inf
            place = nats.argmax().item() if len(nats) else 0
            event = self.report_event((*events, END)[place], reading, place)
            worst.append(event if len(nats) else None)
        nats = torch.stack([self.surprise(reading, ended) for reading in readings], 1)
        rows = root_counts(coded, self.tokenizer.vocab_size)
        return self.verdicts(nats, rows, worst, ended)

    def report_event(
        self, event: str, reading: Reading, t: int, position: int | None = None
    ) -> EventReport:
        """The report of an event from place t of a reading."""
        names = [self.tokenizer.names[i] for i in reading.likeliest[t].tolist()]
        expected = tuple(zip(names, reading.chances[t].tolist(), strict=True))
        nats, rank = reading.nats[:, t].mean().item(), reading.rank[t].item()
        known = event == END or event in self.tokenizer
        place = t if position is None else position
        return EventReport(place, event, nats, rank, expected, known)

    def verdicts(
        self, nats: Tensor, rows: Tensor, worst, ended: bool, among: bool | None = None
    ) -> list[SessionReport]:
        """The reports, judged among sessions that have ended, or among all.

        By surprise (K, N), root counts (N, V), and reports of their worst events.
        """
        among, kinds = ended if among is None else among, self.normal[ended]
        # 1. How odd are they, by their order and by their counts?
        far, nearest = distances(rows, kinds, ended).min(1)
        p, scores = p_values(self.held_out[among], nats), nats.mean(0)
        by_counts = torch.zeros_like(p, dtype=torch.bool)
        if self.score_name == "max":
            q = p_values([self.far[among]], far[None].double())
            by_counts, p = q < p, (2 * torch.minimum(p, q)).clamp(max=1)
            scores = scores + self.price * far.double()
        # 2. Which counts are odd?
        usual = kinds[nearest]
        gaps = (rows - usual).abs() if ended else (rows - usual).clamp(min=0)
        gaps, places = gaps.topk(min(3, gaps.shape[1]))
        often, normally = (x.square().round().int() for x in (rows, usual))
        columns = scores, p, by_counts, often[:, 0], often.sum(1), places, gaps
        columns += often.gather(1, places), normally.gather(1, places)
        reports, size = [], self.members[0].config.block_size
        for event, *row in zip(worst, *(x.tolist() for x in columns), strict=True):
            score, p_value, counted, unknown, n, *most = row
            odd = [x for x in zip(*most, strict=True) if x[1] > 0]
            counts = tuple((self.tokenizer.names[i], a, b) for i, _, a, b in odd)
            alarm, by = p_value <= self.false_alarms, "counts" if counted else "order"
            how = n, unknown, event, counts, n >= size, by
            reports.append(SessionReport(score, p_value, alarm or unknown > 0, *how))
        return reports


# %% [markdown]
# From a session that was cut off its events are learned, but no END. In the stream the next session's
# BEGIN comes then; `weigh` takes that chance away and shares it out, so what is left is what comes
# next if the session goes on.
#
# ## Is the promise kept?
# Fit, then look at two rates.

# %%
detector = AnomalyDetector.fit(trial.train, ended=over, false_alarms=0.005)
judged = {}
for rate in (0.002, 0.005):
    detector.false_alarms = rate
    reports = detector.score(trial.test, ended)
    judged[rate] = quality([report.anomalous for report in reports])
assert judged[0.005]["F1"] > 0.75
judged

# %% [markdown]
# Two kinds of alarm are in there. Only those by p were promised a rate.

# %%
normal = [r for r, bad in zip(reports, anomalous, strict=True) if not bad]
shares = {
    "by p": np.mean([r.p_value <= detector.false_alarms for r in normal]),
    "by news": np.mean([r.n_unknown > 0 for r in normal]),
    "news foreseen": detector.news,
}
{name: f"{share:.2%}" for name, share in shares.items()}

# %% [markdown]
# On the real log neither is met. The sessions after the cut are not exchangeable with those before it:
# the cluster now does things that it did rarely or never. That is what time does to every detector, and
# why a rate has to be watched. And what if all ends had been counted, those that the log cut off too?

# %%
quality([report.anomalous for report in detector.score(trial.test)])

# %% [markdown]
# On the real log that raises some two thousand false alarms more, with one cause for all of them:
# blocks that were written and not yet deleted when the log stopped.

# %%
scores = np.array([report.score for report in reports])
bins = np.linspace(0, scores.max(), 60)
fig, ax = plt.subplots(figsize=(7, 3))
ax.hist(scores[~anomalous], bins, color=BLUE, alpha=0.7, label="normal")
ax.hist(scores[anomalous], bins, color=RED, alpha=0.7, label="labelled anomalous")
ax.set(xlabel="score of a session, nats", ylabel="sessions", yscale="log")
ax.legend()
show(
    fig,
    alt="Histogram of the scores of normal and anomalous sessions on a logarithmic axis. Normal ones "
    "pile up at the left; nearly all anomalous ones lie to the right of them.",
)

# %% [markdown]
# *Blue to the right of about 15 are, roughly, the false alarms; some lie further out than most faults. What
# lies at the far right has counts that no normal session comes near.*
#
# ## Which line, and why
# An alarm that only says "session 4711" will be switched off within a week. This is what the operator
# gets: the raw lines around the worst place, how unlikely it was, what had been expected there, and
# which counts differ from those of the nearest normal session.

# %%
tested = {tuple(s.events): s for s in found.values()}
alarms = [i for i, report in enumerate(reports) if report.anomalous and anomalous[i]]
shown = next(i for i in alarms if reports[i].n_events > 8)
session, worst = tested[tuple(trial.test[shown])], reports[shown].worst
for t in range(
    max(0, worst.position - 3), min(len(session.events), worst.position + 2)
):
    number = session.line_numbers[t]
    mark = ">" if t == worst.position else " "
    print(mark, number, log.lines[number - 1].text[:90])
print(f"{worst.surprisal:.1f} nats, p {reports[shown].p_value:.4f}; expected instead:")
for event, chance in worst.expected:
    print(f"  {chance:6.1%}  {event[:80]}")
for event, times, elsewhere in reports[shown].counts:
    print(f"  {times} times, elsewhere {elsewhere}: {event[:70]}")

# %% [markdown]
# ## What each of the two sees
# Take normal sessions that raise no alarm, and
# insert, delete or swap one event in each (`with_fault`). A swap
# leaves all counts as they are, so counts can't see it. A model of order can, the GPT as well as 5-grams. A
# stronger fault leaves them as they are, too: all events of the session shuffled. The table gives the share that raises an alarm at either rate, the share whose counts differ from the nearest
# normal session's, and the share where the most surprising event is the wrong one, alarm or not.

# %%
rng, known = Random(0), {tuple(session) for session in done}
quiet = ended & ~anomalous & [not report.anomalous for report in reports]
quiet = [s for s, q in zip(trial.test, quiet, strict=True) if q and len({*s}) > 1]
table = {}
for kind in ("insert", "delete", "swap", "shuffle"):
    made = []
    while len(made) < 300:
        session = list(rng.choice(quiet))
        if kind == "shuffle":
            wrong, places = rng.sample(session, len(session)), set()
        else:
            wrong, places = with_fault(session, kind, detector.tokenizer.events, rng)
        if wrong and tuple(wrong) not in known:
            made.append((wrong, places))
            if kind in ("swap", "shuffle"):  # of these no count can tell
                assert sorted(wrong) == sorted(session)
    judgements = detector.score([wrong for wrong, _ in made])
    at = [r.worst.position in p for r, (_, p) in zip(judgements, made, strict=True)]
    p = np.array([r.p_value for r in judgements])
    shares = {f"alarm at {rate:.1%}": np.mean(p <= rate) for rate in judged}
    shares["counts differ"] = np.mean([bool(r.counts) for r in judgements])
    shares |= {} if kind == "shuffle" else {"place found": np.mean(at)}
    table[kind] = {name: f"{share:.0%}" for name, share in shares.items()}
table

# %% [markdown]
# The same on two data sets, a column for each seed (C are the sessions of this chapter, A those of
# DeepLog, see below):

# %%
results = json.loads(Path("../benchmarks/anomalies.json").read_text())
for name in ("C", "A"):
    for kind in table:
        planted = [seed["planted"][kind] for seed in results[name]["seeds"]]
        shares = {
            f"{float(rate):.1%}": " ".join(
                f"{p['flagged'][rate] / p['made']:4.0%}" for p in planted
            )
            for rate in ("0.002", "0.005")
        }
        print(name, f"{kind:8}", shares)

# %% [markdown]
# The counts see what is missing or too much, and say nothing of order. The GPT sees order. At 0.5 % nearly every
# shuffled session raises an alarm, and about a third of the swaps, though the place is found in eight of ten:
# a swap seldom surprises more than the oddest of the normal sessions do, and not every swap is a fault: much of the
# order is free. At 0.2 % order is all or nothing. Half of that is 0.1 %, which allows for one of C's 2,152 kept-back sessions. Where two of these surprise as
# much as a shuffled session, none gets through: so with one of the three detectors of C,
# and two of A.
#
# ## Against rules that anybody could write
# One run on one log proves little. `benchmarks/anomalies.py` does the same with three seeds. **A** is HDFS as DeepLog (Du et al., 2017) split it: 16,838 anomalous test sessions and
# 553,366 normal ones (here a sample of 22,059, weighted to stand for them). **C** are the sessions of
# this chapter. **ADFA** are the system calls of a Linux server and of six attacks on it (Creech and Hu,
# 2013). Beside the detector stand rules that take a minute to write, nearest neighbour on counts and
# on their roots alone, and 5-grams in place of the GPTs, all under the same p-values and the same rates:
# 0.2 %, 0.5 % and 5 %, where there are sessions enough to promise them. Five is a short memory: chapter 15's
# tables improved up to fifteen, so these rows are not the best that counting can do. (ADFA's figures stand in
# `benchmarks/LOG.md`.)

# %%
keys = ("f1", "recall", "precision", "false_alarms")


def row(name, parts):
    """F1, recall, precision, false alarms in percent, means over what is given."""
    means = [100 * np.mean([part[k] for part in parts]) for k in keys]
    print(f"  {name:26}" + "".join(f"{mean:9.2f}" for mean in means))


for name, result in results.items():
    print(
        f"{name}, {len(result['seeds'])} seeds: F1, recall, precision, false alarms (%)"
    )
    for rule, value in result["rules"].items():
        row(rule, [value])
    for rate in result["rates"]:
        print(f" promised {rate:.1%}")
        for rule, value in result["calibrated rules"].items():
            row(rule, [value[str(rate)]])
        for score in ("max", "mean"):
            row(
                f"the detector, {score}",
                [s[f"{score} {rate}"] for s in result["seeds"]],
            )

# %% [markdown]
# How well do scores *rank* all sessions, whatever the threshold? *Average precision*: sort by score,
# and take the mean of the precision at each fault found.

# %%
for name, result in results.items():
    ranks = {
        rule: f"{100 * value['average_precision']:.1f}"
        for rule, value in result["calibrated rules"].items()
    }
    for score in ("max", "mean"):
        values = [100 * s[f"{score} average_precision"] for s in result["seeds"]]
        ranks[f"detector, {score}"] = ", ".join(f"{value:.1f}" for value in values)
    print(name, ranks)

# %% [markdown]
# Honestly: for order, promise 0.5 % or more; at 0.2 % it depends on the seed whether any is seen. On A
# at 0.2 % the detector is ahead of the rules of a minute, 98 against 95 and 96, and nearest neighbour on
# counts, without any GPT, is as good. On C the counts alone are ahead at both rates, 91 against 89 and 87: they have found
# every fault already, so all that the GPTs can add there is false alarms, and C's promise is broken by either.
# A block's log in HDFS is nearly settled by how often each line comes, and no label here asks for more. What
# the GPT adds is in the tables of planted faults, the order, and with each alarm a line and what had been
# expected.
#
# Average precision on C stays at 84. After the cut 26 normal sessions hold four lines that were never seen
# before it, and 33 of the labelled ones hold the same four: blocks that are copied once more. No score that we tried without
# looking at labels tells them apart (`benchmarks/LOG.md`).
#
# ADFA is hard for all of them. An attack there is a program that behaves differently for hundreds of calls,
# while nearly every normal trace has counts of its own: of 833 training traces, 753. So the nearest
# neighbour says little, and neither does the largest surprisal. Only the *mean* surprisal ranks the
# attacks above the rest; the detector judges by it alone if told so (`score="mean"`). Which of the two
# fits a log can be read off its normal sessions: where most have no other session at distance 0, counts
# are no witness.
#
# ## How to fool oneself
# Published figures on this data are often obtained in other ways, and can't be compared with ours. Le and
# Zhang (2022) show how much random cuts, leaked test data and thresholds chosen by labels lend to deep
# detectors. Landauer and others (2024) find that simple rules like those above solve most of these
# data sets. LightAD (Yu and others, 2024) sets a nearest neighbour on counts beside deep models, and it
# wins often. Two such temptations, by our own detector: the threshold that is best on the labelled
# test, and not to say how many normal test sessions stand, event for event, in the training. A third we have not
# escaped ourselves. Roots, the largest surprisal and the "or" were each chosen for the reason given above, but all
# of them had been tried on these same labelled sessions, beside others that did worse
# ([benchmarks/LOG.md](../benchmarks/LOG.md)). So our own figures may be a little too good.

# %%
for name in ("A", "C"):
    print(name)
    for key in ("normal sessions that stand in training", "f1 at the best threshold"):
        values = [row["traps"][key] for row in results[name]["seeds"]]
        print(f"  {key}: {np.mean(values):.3f}")
    rates = results[name]["rates"]
    promised = [row[f"max {rates[0]}"]["f1"] for row in results[name]["seeds"]]
    print(f"  f1 at the promised {rates[0]:.1%}: {np.mean(promised):.3f}")

# %% [markdown]
# The best threshold would have gained half a point on A and a point on C: there is little to steal. The other
# number is the warning: four of five normal test sessions, or nine of ten, were in the training.
#
# ## One event at a time
# A log comes line by line, many sessions mixed, and an alarm should be raised at the line, not the next
# day. With chapter 08's cache each event costs one step. The score fits that: neither the largest
# surprisal nor what there is too much of can shrink while a session goes on. So an alarm raised on the
# way is one at the end, and the promise holds for the session as a whole. The library's own detector does
# it (`from tinygpt_lib import AnomalyDetector`, in `runs/detectors.py`; here `SafeDetector`): it is this
# chapter's class with checked arguments, files and streams. A stream says what a batch says:

# %%
parts = detector.members, detector.tokenizer, detector.normal, detector.far
settings = {"n_events": detector.n_events, "false_alarms": 0.005}
safe = SafeDetector(*parts, detector.held_out, **settings, news=detector.news)
one = trial.test[shown]
events = safe.stream()
early = None
for place, event in enumerate(one):
    events.push("block", event)
    if early is None and events.report("block", as_ended=True).anomalous:
        early = place
report = events.close("block")
assert abs(report.score - reports[shown].score) < 1e-3
f"alarm at event {early} of {len(one)}; at the end p {report.p_value:.4f}"

# %% [markdown]
# ## What the command adds
# The command line does the same for files (`python -m tinygpt_lib detect fit`, `score`, `--follow`), and
# adds what a night on call asks for. A line that is new raises an alarm *once*, and then only counts ("and 212
# more like it"). Until somebody says what it is (`detect accept`, `detect update`), sessions are judged by
# their other lines. Alarms of one cause are one alarm.
#
# Sessions can't see everything. A thousand good logins in a second are each normal, and a server that
# has died writes no line at all. So the log as a whole is cut into windows, and three more questions are
# asked of each: how far does any event beat its record of the normal windows (a *burst*), for how long has
# it been missing (a *silence*), and does it come at another *rate*? The largest answer is a score like any
# other: normal windows, each compared with the rest, give it its p-value. Sessions then have two
# thirds of the promised rate and the windows one third. A detector is kept
# as plain data; loading one never runs code.

# %%
with TemporaryDirectory() as folder:
    safe.save(folder)
    again = SafeDetector.load(folder)
assert [r.anomalous for r in again.score(trial.test[:500], ended[:500])] == [
    r.anomalous for r in reports[:500]
]

# %% [markdown]
# ## Summary
# A session is unlike normal ones if an event in it is very surprising, or if its counts are far from all
# normal ones. Each has half of a promised rate, and conformal p-values over sessions that were kept
# back turn it into an alarm: proven at about twice the rate, met where the times don't change. On HDFS, at
# a promised 0.2 %, the detector reaches an F1 of 98.4 on DeepLog's split and 89 where the log is cut by time
# (at 0.5 %, 87 there). Counts alone do as well, or better. The GPT sees what counts can't, the order, and
# names the line; at 0.2 % not with every seed. On the log that is cut by time the promise was not kept: 0.6 %
# and 0.8 %, because times change. On system calls neither does well.
#
# ## Exercises
# **1.** Which is the smallest rate that the 833 traces of ADFA can promise by the two witnesses together?
# Give it as `smallest`.
# ```python
# assert math.isclose(smallest, 2 / 834)
# ```
# **2.** Twelve reads where two or three are normal: how far is that by roots, and how far by counts? Give
# both distances as `by_roots` and `by_counts`, with `normal` as in "What the counts say".
# ```python
# assert by_roots < 2 < by_counts
# ```
# **3.** What does the GPT add? Judge the late sessions that are over by the distance of their counts alone
# (`late`, with `far` as the calibration set), at 0.5 %, and give the F1 of that as `alone`; ask the detector
# about the same sessions.
# ```python
# assert alone > 0.7
# ```

# %% [markdown]
# ## Solutions

# %% jupyter={"source_hidden": true}
smallest = 2 / (833 + 1)
assert math.isclose(smallest, 2 / 834)
smallest

# %% jupyter={"source_hidden": true}
few = [["read"] * 3, ["read"] * 2]
many, others = (
    root_counts([tiny.encode_session(s) for s in x], tiny.vocab_size)
    for x in ([["read"] * 12], few)
)
by_roots = distances(many, others).min().item()
by_counts = distances(many**2, others**2).min().item()
assert by_roots < 2 < by_counts
by_roots, by_counts

# %% jupyter={"source_hidden": true}
p = p_values([far.sort().values], torch.tensor(late)[None]).numpy()
alone = quality(p <= 0.005, bad)["F1"]
both = quality([r.anomalous for r, e in zip(reports, ended, strict=True) if e], bad)
assert alone > 0.7
{"counts alone": alone, "the detector": both["F1"]}

# %% [markdown]
# Nothing that shows in F1, where it costs a few false alarms; what it adds is order and a line.
