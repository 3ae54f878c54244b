"""How well surprise finds faults: three data sets, three seeds, simple rules beside.

    python benchmarks/anomalies.py            # writes anomalies.json, about 6 minutes

A: DeepLog's split of HDFS. C: LogLead's lines of HDFS, cut by time. ADFA: system calls.
No threshold looks at a label; the same rates are promised on all. Chapter 16 explains
the detector and shows the table.
"""

import argparse
import json
import time
from pathlib import Path
from random import Random

import harness
import numpy as np
import torch
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score

from course.logdata import (
    CUT,
    Trial,
    load_adfa,
    load_deeplog,
    load_hdfs,
    split_by_time,
    with_fault,
)
from tinygpt_lib.anomalies import (
    AnomalyDetector,
    apart,
    distances,
    known_ends,
    p_values,
    root_counts,
)
from tinygpt_lib.bigram import NGram
from tinygpt_lib.logs import (
    EventTokenizer,
    SessionFinder,
    group_lines,
    stream,
    surprisals,
)

OUT = Path(__file__).with_name("anomalies.json")
RATES = (0.002, 0.005, 0.05)  # where the training sessions are enough for it
FAULTS = ("insert", "delete", "swap", "shuffle")


class Judge:
    """What alarms and scores are worth on the labelled sessions of a trial."""

    def __init__(self, trial: Trial):
        self.anomalous = np.array(trial.anomalous)
        self.weights = np.where(self.anomalous, 1.0, trial.weight)

    def alarms(self, raised) -> dict:
        """Precision, recall, F1, and the false-alarm rate with its 95 % interval."""
        raised = np.asarray(raised, dtype=bool)
        hits = (raised & self.anomalous).sum()
        false = (raised & ~self.anomalous).sum()
        weighted = (raised * self.weights).sum()
        precision = hits / weighted if weighted else 0.0
        recall = hits / self.anomalous.sum()
        f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
        test = binomtest(int(false), int((~self.anomalous).sum()))
        interval = test.proportion_ci(method="exact")
        return {
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
            "false_alarms": test.statistic,
            "interval": [float(interval.low), float(interval.high)],
        }

    def ranking(self, scores) -> float:
        """Average precision of scores."""
        weights = self.weights
        return float(
            average_precision_score(self.anomalous, scores, sample_weight=weights)
        )


def timed_trial() -> tuple[Trial, np.ndarray, np.ndarray]:
    """Trial C, and of which sessions the end is known: to learn from, and to judge."""
    log = load_hdfs()
    found = group_lines((line.text for line in log.lines), SessionFinder(r"blk_-?\d+"))
    trial = split_by_time(log, found.values())
    before = trial.train, trial.train_times
    over = known_ends(*before, CUT)
    ended = known_ends(trial.test, trial.test_times, log.lines[-1].seconds, before)
    return trial, np.array(over), np.array(ended)


def trial_of(name: str) -> tuple[Trial, np.ndarray, np.ndarray, Judge]:
    """A trial, of which sessions the end is known, and who judges it.

    The first array is of the sessions to learn from, the second of those to judge.
    """
    if name == "C":
        trial, over, ended = timed_trial()
    else:
        trial = {"A": load_deeplog, "ADFA": load_adfa}[name]()
        over, ended = (np.ones(len(x), dtype=bool) for x in (trial.train, trial.test))
    return trial, over, ended, Judge(trial)


def rates_of(over: np.ndarray) -> list[float]:
    """The rates that so many sessions can promise."""
    return [rate for rate in RATES if rate * (1 + over.sum()) >= 2]


def simple_rules(trial: Trial, over: np.ndarray, ended: np.ndarray) -> dict:
    """Alarms of the rules that anybody could write.

    Of sessions that may go on, neither length nor counts nor the end are judged. Nor
    are those learned of them, where they stand in the training (are not `over`).
    """

    def pairs(session, over=True):
        after = [*session, ">"] if over else session
        return set(zip(["<", *session], after, strict=False))

    done = [session for session, e in zip(trial.train, over, strict=True) if e]
    events = {event for session in trial.train for event in session}
    lengths = {len(session) for session in done}
    vectors = {tuple(sorted(session)) for session in done}
    seen = set().union(*map(pairs, trial.train, over))
    unseen = np.array([not events.issuperset(s) for s in trial.test])
    length = ended & np.array([len(s) not in lengths for s in trial.test])
    vector = np.array([tuple(sorted(s)) not in vectors for s in trial.test])
    unseen_pair = np.array(
        [
            not seen.issuperset(pairs(s, e))
            for s, e in zip(trial.test, ended, strict=True)
        ]
    )
    return {
        "unseen event": unseen,
        "event or length": unseen | length,
        "pair or length": length | unseen_pair,
        "count vector": (ended & vector) | unseen,
    }


def nearest_counts(trial: Trial, over, ended, judge: Judge) -> dict:
    """Nearest neighbour by counts and by their roots, with the detector's p-values."""
    tokenizer = EventTokenizer.from_sessions(trial.train)
    V = tokenizer.vocab_size
    known, test = (
        root_counts([tokenizer.encode_session(s) for s in sessions], V)
        for sessions in (trial.train, trial.test)
    )
    news, result = (test[:, 0] > 0).numpy(), {}
    for name, power in (("nearest counts", 2), ("nearest root counts", 1)):
        p, far = np.zeros(len(test)), np.zeros(len(test))
        for end in {*ended.tolist()}:
            kept, held_out = apart(known[over if end else slice(None)] ** power, end)
            rows, place = (test[ended == end] ** power).unique(
                dim=0, return_inverse=True
            )
            nearest = distances(rows, kept, end).amin(1)[place].double()
            far[ended == end] = nearest
            scores = held_out.sort().values.double()
            p[ended == end] = p_values([scores], nearest[None])
        result[name] = {"average_precision": judge.ranking(far)} | {
            str(rate): judge.alarms((p <= rate) | news) for rate in rates_of(over)
        }
    return result


def counted(trial: Trial, over, ended, judge: Judge, n: int = 5) -> dict:
    """The largest surprisal, or the mean, by n-grams in place of the GPTs."""
    tokenizer = EventTokenizer.from_sessions(trial.train)
    size = tokenizer.vocab_size
    n = min(n, int(63 / np.log2(size)))
    folds = AnomalyDetector.deal(over.tolist(), 3, 0)
    places = {
        session: i for i, session in enumerate(dict.fromkeys(map(tuple, trial.test)))
    }
    coded = [tokenizer.encode_session(session) for session in places]
    place = np.array([places[tuple(session)] for session in trial.test])
    news = np.array([(ids == tokenizer.unknown).any().item() for ids in coded])[place]

    def model(fold, strength):
        left = {*range(len(trial.train))}.difference(fold)
        return NGram(
            stream([trial.train[i] for i in left], tokenizer), n, size, strength
        )

    first = [tokenizer.encode_session(trial.train[i]) for i in folds[0]]
    strength = min(
        (1.0, 3.0, 10.0, 30.0, 100.0),
        key=lambda s: torch.cat(surprisals(model(folds[0], s), first, 64)).sum(),
    )
    kept, scores = {}, {}
    for fold in folds:
        gram = model(fold, strength)
        own = [tokenizer.encode_session(trial.train[i]) for i in fold]
        for sessions, to in ((own, kept), (coded, scores)):
            nats = surprisals(gram, sessions, 64)
            for name, f in (("max", torch.max), ("mean", torch.mean)):
                for end in (True, False):
                    some = [
                        f(x if end or len(x) == 1 else x[:-1])
                        for i, x in enumerate(nats)
                        if to is scores or over[fold[i]] or not end
                    ]
                    to.setdefault((name, end), []).append(torch.stack(some).double())
    result = {}
    for name in ("max", "mean"):
        p, ranked = (np.zeros(len(place)) for _ in range(2))
        for end in (True, False):
            held_out = [x.sort().values for x in kept[name, end]]
            own, here = torch.stack(scores[name, end])[:, place], ended == end
            p[here] = p_values(held_out, own).numpy()[here]
            ranked[here] = own.mean(0).numpy()[here]
        result[f"{n}-grams, {name}"] = {"average_precision": judge.ranking(ranked)} | {
            str(rate): judge.alarms((p <= rate) | news) for rate in rates_of(over)
        }
    return result


def planted(detector, trial: Trial, over, fine, seed: int) -> dict:
    """Of faults put into normal sessions: how many raise an alarm, and where it points.

    "shuffle" leaves all counts as they are, and so does "swap". Only sessions that have
    ended and raise no alarm without the fault; none that stands in the training.
    """
    rng, events = Random(seed), detector.tokenizer.events
    normal = [s for s, f in zip(trial.test, fine, strict=True) if f and len({*s}) > 1]
    known = {tuple(s) for s, done in zip(trial.train, over, strict=True) if done}
    results = {}
    for kind in FAULTS:
        made = []
        while len(made) < 500:
            session = list(rng.choice(normal))
            if kind == "shuffle":
                wrong, places = rng.sample(session, len(session)), set()
            else:
                wrong, places = with_fault(session, kind, events, rng)
            if wrong and tuple(wrong) not in known:
                made.append((wrong, places))
        reports = detector.score([wrong for wrong, _ in made])
        at = [
            report.worst.position in places
            for report, (_, places) in zip(reports, made, strict=True)
        ]
        p = np.array([report.p_value for report in reports])
        results[kind] = {
            "made": len(made),
            "found": sum(at),
            "flagged": {str(rate): int((p <= rate).sum()) for rate in rates_of(over)},
        }
    return results


def traps(reports, trial: Trial, over, ended, judge: Judge) -> dict:
    """What the same detector seems to be worth when it is judged wrongly."""
    known = {(tuple(s), o) for s, o in zip(trial.train, over, strict=True)}
    pairs = zip(trial.test, ended, strict=True)
    again = np.array([(tuple(s), o) in known for s, o in pairs])
    scores = np.array([report.score for report in reports])
    thresholds = np.quantile(scores[judge.anomalous], np.linspace(0, 1, 200))
    short = np.array([len(s) <= 10 for s in trial.test])
    return {
        "normal sessions that stand in training": float(again[~judge.anomalous].mean()),
        "f1 at the best threshold": max(
            judge.alarms(scores >= t)["f1"] for t in thresholds
        ),
        "anomalous sessions of at most 10 events": int((short & judge.anomalous).sum()),
    }


def run(name: str, seeds: int) -> None:
    """All that is measured of one trial, kept after each seed."""
    trial, over, ended, judge = trial_of(name)
    rules = {n: judge.alarms(x) for n, x in simple_rules(trial, over, ended).items()}
    result = {
        "origin": trial.origin,
        "train": len(trial.train),
        "over": int(over.sum()),
        "normal": int((~judge.anomalous).sum()),
        "anomalous": int(judge.anomalous.sum()),
        "weight": trial.weight,
        "rates": rates_of(over),
        "rules": rules,
        "calibrated rules": nearest_counts(trial, over, ended, judge)
        | counted(trial, over, ended, judge),
        "seeds": [],
    }
    for seed in range(seeds):
        began = time.process_time()
        detector = AnomalyDetector.fit(
            trial.train, ended=over, seed=seed, false_alarms=rates_of(over)[0]
        )
        row: dict = {"fit_seconds": time.process_time() - began, "news": detector.news}
        different = list(dict.fromkeys(map(tuple, trial.test)))
        began = time.process_time()
        readings = dict(zip(different, detector.read(different), strict=True))
        row["read_seconds"] = time.process_time() - began
        row["events_read"] = sum(map(len, different))
        for score in ("max", "mean"):
            if score == "mean":  # the same models, judged by their mean surprisal
                detector = by_mean(detector, trial, over, seed)
            cases = list(zip(map(tuple, trial.test), ended.tolist(), strict=True))
            done = {}
            for end in {*ended.tolist()}:
                own = list({s for s, e in cases if e == end})
                found = detector.reports(own, [readings[s] for s in own], end)
                done |= {(s, end): report for s, report in zip(own, found, strict=True)}
            reports = [done[case] for case in cases]
            p = np.array([report.p_value for report in reports])
            news = np.array([report.n_unknown > 0 for report in reports])
            for rate in rates_of(over):
                row[f"{score} {rate}"] = judge.alarms((p <= rate) | news)
            ranking = judge.ranking([report.score for report in reports])
            row[f"{score} average_precision"] = ranking
            if score == "max":
                quiet = [not report.anomalous for report in reports]
                fine = ended & ~judge.anomalous & quiet
                row["planted"] = planted(detector, trial, over, fine, seed)
                row["traps"] = traps(reports, trial, over, ended, judge)
        result["seeds"].append(row)
        harness.keep(OUT, name, result)
        print(name, seed, json.dumps(row), flush=True)


def by_mean(detector, trial: Trial, over, seed: int) -> AnomalyDetector:
    """A detector of the same models that judges by their mean surprisal."""
    models = iter(detector.members)
    return AnomalyDetector.fit(
        trial.train,
        ended=over,
        seed=seed,
        score="mean",
        false_alarms=detector.false_alarms,
        learn=lambda *given: next(models),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=["A", "C", "ADFA"])
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    for name in options.names:
        run(name, options.seeds)


if __name__ == "__main__":
    main()
