"""How well surprise finds faults: three data sets, three seeds, simple rules beside.

    python benchmarks/anomalies.py            # writes anomalies.json, about 20 minutes

A: DeepLog's split of HDFS. C: LogLead's lines of HDFS, cut by time. ADFA: system calls.
No threshold looks at a label. Chapter 15 explains the detector and shows the table.
"""

import argparse
import json
import math
import time
from pathlib import Path
from random import Random

import numpy as np
import torch
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, roc_auc_score

from course.logdata import (
    CUT,
    Trial,
    load_adfa,
    load_deeplog,
    load_hdfs,
    split_by_time,
)
from tinygpt_lib.anomalies import (
    SCORES,
    AnomalyDetector,
    Panel,
    folds_of,
    has_ended,
    learnt_from,
    longest_pauses,
    p_values,
    read_events,
    score_of,
    session_scores,
    with_fault,
)
from tinygpt_lib.basics.files import write_atomically
from tinygpt_lib.bigram import NGram
from tinygpt_lib.logs import (
    EventTokenizer,
    SessionFinder,
    group_lines,
    surprisals,
)

OUT = Path(__file__).with_name("anomalies.json")
SEEDS = range(3)
RATES = {"A": (0.002, 0.005), "C": (0.002, 0.005), "ADFA": (0.01, 0.05)}
SHOWN = {"A": 0.002, "C": 0.005, "ADFA": 0.05}  # of these, the one that is compared
FAULTS = ("insert", "delete", "swap", "cut")


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

    def ranking(self, scores) -> dict:
        """Average precision and area under the ROC curve of scores."""
        return {
            "average_precision": float(
                average_precision_score(
                    self.anomalous, scores, sample_weight=self.weights
                )
            ),
            "auroc": float(
                roc_auc_score(self.anomalous, scores, sample_weight=self.weights)
            ),
        }


def timed_trial() -> tuple[Trial, np.ndarray, np.ndarray]:
    """Trial C, and of which sessions the end is known: to learn from, and to judge."""
    log = load_hdfs()
    found = group_lines((line.text for line in log.lines), SessionFinder(r"blk_-?\d+"))
    trial = split_by_time(log, found.values())
    pauses = longest_pauses(trial.train, trial.train_times)

    def over(moment, sessions, times):
        return np.array(
            [
                has_ended(session, moment - own[-1], pauses)
                for session, own in zip(sessions, times, strict=True)
            ]
        )

    return (
        trial,
        over(CUT, trial.train, trial.train_times),
        over(log.lines[-1].seconds, trial.test, trial.test_times),
    )


def simple_rules(trial: Trial, over: np.ndarray, ended: np.ndarray) -> dict:
    """Alarms of the rules that anybody could write.

    Of sessions that may go on, neither length nor counts nor the end are judged. Nor
    are those learnt of them, where they stand in the training (are not `over`).
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
        "length": length,
        "event or length": unseen | length,
        "count vector": (ended & vector) | unseen,
        "pair or length": length | unseen_pair,
    }


def n_gram(*settings) -> NGram:
    """An NGram that knows that no session begins within another, as `Panel` does."""
    model, begin = NGram(*settings), torch.tensor([EventTokenizer.begin])
    model.register_forward_hook(
        lambda _, ids, logits: logits.index_fill(-1, begin, -math.inf)
    )
    return model


def counted(
    trial: Trial,
    judge: Judge,
    over: np.ndarray,
    ended: np.ndarray,
    rate: float,
    n: int = 5,
) -> dict:
    """The same test with n-gram models in place of the GPTs.

    Their strength is chosen on a fold, as chapter 14 does.
    """
    tokenizer = EventTokenizer.from_sessions(trial.train)
    size = tokenizer.vocab_size
    n = min(n, int(63 / np.log2(size)))
    coded = [tokenizer.encode_session(session) for session in trial.test]
    parts = folds_of(trial.train, over, 5, 0, rate)
    streams = [learnt_from(part, tokenizer) for part in parts]
    rest = torch.cat(streams[1:])
    kept_back = [tokenizer.encode_session(s) for s, done in parts[0] if done]
    strength = min(
        (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0),
        key=lambda one: sum(
            x.sum().item()
            for x in surprisals(n_gram(rest, n, size, one), kept_back, 64)
        ),
    )
    held_out = {(name, end): [] for name in SCORES for end in (True, False)}
    scores = {key: [] for key in held_out}
    for i, part in enumerate(parts):
        rest = torch.cat(streams[:i] + streams[i + 1 :])
        model = n_gram(rest, n, size, strength)
        own = [tokenizer.encode_session(s) for s, _ in part]
        for sessions, to, known in (
            (own, held_out, [over for _, over in part]),
            (coded, scores, [True] * len(coded)),
        ):
            nats = surprisals(model, sessions, 64)
            for (name, end), kept in to.items():
                pairs = zip(nats, known, strict=True)
                cut = [x for x, k in pairs if k] if end else [x[:-1] for x in nats]
                kept.append(torch.stack([score_of(name, x) for x in cut]))
    result = {}
    for name in SCORES:
        p, ranked = (np.zeros(len(coded)) for _ in range(2))
        for end in (True, False):
            kept = [x.sort().values for x in held_out[name, end]]
            own, here = torch.stack(scores[name, end]), ended == end
            p[here] = p_values(kept, own).numpy()[here]
            ranked[here] = own.mean(0).numpy()[here]
        result[f"{n}-gram, {name}"] = {
            "strength": strength,
            **judge.alarms(p <= rate),
            **judge.ranking(ranked),
        }
    return result


class Verdicts:
    """P-values, scores and alarms of a detector, from one reading of all sessions."""

    def __init__(self, detector: AnomalyDetector, sessions, ended: np.ndarray):
        self.detector, self.ended = detector, ended
        self.readings = detector.read(sessions)
        self.news = np.array([not r.known.any(0).all() for r in self.readings])

    def of(self, name: str, ended: np.ndarray | None = None):
        """P-values and scores by the score of a name."""
        ended = self.ended if ended is None else ended
        p, scores = np.zeros(len(self.readings)), np.zeros(len(self.readings))
        for over in {*ended.tolist()}:
            here = np.flatnonzero(ended == over)
            readings = [self.readings[i] for i in here]
            kept = [x.sort().values for x in self.detector.held_out[name, over]]
            p[here] = p_values(kept, session_scores(name, readings, over)).numpy()
            scores[here] = session_scores(name, readings, over, True).mean(0).numpy()
        return p, scores

    def alarms(self, name: str, rate: float, ended: np.ndarray | None = None):
        """Which sessions raise an alarm."""
        return (self.of(name, ended)[0] <= rate) | self.news


def whole(trial: Trial, over: np.ndarray) -> set[tuple]:
    """Sessions to learn from whose end is known: what is like them is no fault."""
    return {tuple(s) for s, done in zip(trial.train, over, strict=True) if done}


def localisation(
    detector: AnomalyDetector,
    trial: Trial,
    over: np.ndarray,
    fine: np.ndarray,
    seed: int,
) -> dict:
    """How often the worst place of a flagged session is where the fault was put.

    Faults go into normal sessions that have ended and raise no alarm without them.
    """
    rng, events = Random(seed), detector.tokenizer.events
    normal = [s for s, f in zip(trial.test, fine, strict=True) if f]
    normal = [session for session in normal if len(set(session)) > 1]
    known = whole(trial, over)
    results = {}
    for kind in FAULTS[:3]:
        made = []
        while len(made) < 1000:
            wrong, places = with_fault(rng.choice(normal), kind, events, rng)
            if wrong and tuple(wrong) not in known:
                made.append((wrong, places))
        reports = detector.score([wrong for wrong, _ in made])
        flagged = [
            (report, places)
            for report, (_, places) in zip(reports, made, strict=True)
            if report.anomalous
        ]
        hits = sum(report.worst.position in places for report, places in flagged)
        results[kind] = {"made": len(made), "flagged": len(flagged), "found": hits}
    return results


def chosen_without_labels(
    detector: AnomalyDetector, trial: Trial, over: np.ndarray, seed: int
) -> dict:
    """How each score ranks faults of our own above held-out normal sessions.

    The faults are put into the sessions of each fold that have ended, and judged by the
    member that has not learnt from it. Average precision, by the score's name.
    """
    rng, known = Random(seed), whole(trial, over)
    events = detector.tokenizer.events
    made: list = []
    parts = folds_of(
        trial.train, over, len(detector.members), seed, detector.false_alarms
    )
    for i, part in enumerate(parts):
        member = Panel(detector.members[i : i + 1], detector.panel.met[i : i + 1])
        wrong: list = []
        usable = [s for s, done in part if done and len(set(s)) > 1]
        while len(wrong) < 500:
            session, kind = rng.choice(usable), rng.choice(FAULTS)
            if kind == "cut":
                fault = session[: rng.randrange(1, len(session))]
            else:
                fault, _ = with_fault(session, kind, events, rng)
            if fault and tuple(fault) not in known:
                wrong.append(fault)
        made += read_events(member, detector.tokenizer, detector.n_events, wrong)
    result = {}
    for name in SCORES:
        kept = torch.cat(detector.held_out[name, True]).numpy()
        odd = session_scores(name, made, True)[0].numpy()
        truth = np.r_[np.zeros(len(kept)), np.ones(len(odd))]
        result[name] = float(average_precision_score(truth, np.r_[kept, odd]))
    return result


def traps(
    verdicts: Verdicts, trial: Trial, over: np.ndarray, judge: Judge, rate: float
) -> dict:
    """What the same detector seems to be worth when it is judged wrongly."""
    known = {(tuple(s), o) for s, o in zip(trial.train, over, strict=True)}
    pairs = zip(trial.test, verdicts.ended, strict=True)
    again = np.array([(tuple(s), o) in known for s, o in pairs])
    raised, scores = verdicts.alarms("max", rate), verdicts.of("max")[1]
    thresholds = np.quantile(scores[judge.anomalous], np.linspace(0, 1, 200))
    best = max(judge.alarms(scores >= t)["f1"] for t in thresholds)
    ranks = np.array(
        [
            max(r.rank[: len(r.rank) - (not over)].tolist(), default=1)
            for r, over in zip(verdicts.readings, verdicts.ended, strict=True)
        ]
    )
    short = np.array([len(s) <= 10 for s in trial.test])
    kept = Judge(trial)
    kept.anomalous = judge.anomalous & ~short
    kept.weights = judge.weights * ~short
    never = np.zeros(len(trial.test), dtype=bool)
    return {
        "normal sessions that stand in training": float(again[~judge.anomalous].mean()),
        "f1 at the best threshold": best,
        "f1 of top-g": {g: judge.alarms(ranks > g)["f1"] for g in (3, 5, 7, 9)},
        "f1 without ends": judge.alarms(verdicts.alarms("max", rate, never))["f1"],
        "anomalous sessions of at most 10 events": int((short & judge.anomalous).sum()),
        "f1 without short sessions": kept.alarms(raised & ~short)["f1"],
    }


def rolling(
    detector: AnomalyDetector, trial: Trial, judge: Judge, ended, rate: float
) -> dict:
    """Alarms where held-out scores are renewed every 500 sessions of the test.

    What raised no alarm, and what somebody found to be a false one, is normal by then.
    """
    raised = np.zeros(len(trial.test), dtype=bool)
    held_out, turn = detector.held_out, detector.turn
    detector.false_alarms = rate
    size = 500
    for start in range(0, len(trial.test), size):
        here = slice(start, start + size)
        reports = detector.score(trial.test[here], ended[here].tolist())
        raised[here] = [r.anomalous for r in reports]
        normal = ~(raised[here] & judge.anomalous[here])
        fine = [s for s, n in zip(trial.test[here], normal, strict=True) if n]
        over = [bool(e) for e, n in zip(ended[here], normal, strict=True) if n]
        detector.recalibrate(fine, over)
    detector.held_out, detector.turn = held_out, turn
    return judge.alarms(raised)


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


def rules(name: str) -> dict:
    """What needs no GPT."""
    trial, over, ended, judge = trial_of(name)
    simple = {n: judge.alarms(x) for n, x in simple_rules(trial, over, ended).items()}
    return simple | counted(trial, judge, over, ended, SHOWN[name])


def run(name: str) -> dict:
    """All that is measured of one trial."""
    trial, over, ended, judge = trial_of(name)
    result = {
        "origin": trial.origin,
        "train": len(trial.train),
        "over": int(over.sum()),
        "normal": int((~judge.anomalous).sum()),
        "anomalous": int(judge.anomalous.sum()),
        "weight": trial.weight,
        "rate": SHOWN[name],
        "rules": rules(name),
        "seeds": [],
    }
    for seed in SEEDS:
        start = time.perf_counter()
        detector = AnomalyDetector.fit(
            trial.train, ended=over, seed=seed, false_alarms=RATES[name][0]
        )
        row: dict = {"fit_seconds": time.perf_counter() - start}
        highest = torch.cat(detector.held_out["max", True])
        row["headroom"] = (highest.median() / np.log(detector.n_events + 1)).item()
        row["news"] = detector.news
        row["injected"] = chosen_without_labels(detector, trial, over, seed)
        start = time.perf_counter()
        verdicts = Verdicts(detector, trial.test, ended)
        row["read_seconds"] = time.perf_counter() - start
        for score in SCORES:
            detector.score_name = score
            for rate in RATES[name]:
                row[f"{score} {rate}"] = judge.alarms(verdicts.alarms(score, rate))
                if name == "C":
                    row[f"{score} {rate} rolling"] = rolling(
                        detector, trial, judge, ended, rate
                    )
            p, ranked = verdicts.of(score)
            row[score] = {**judge.ranking(ranked), "by_p": judge.ranking(-p)}
        rate = RATES[name][0]
        detector.score_name, detector.false_alarms = "max", rate
        fine = ended & ~judge.anomalous & ~verdicts.alarms("max", rate)
        row["localisation"] = localisation(detector, trial, over, fine, seed)
        if name != "ADFA":
            row["traps"] = traps(verdicts, trial, over, judge, rate)
        if name == "C":
            every = np.ones(len(ended), dtype=bool)
            row["all ends counted"] = judge.alarms(verdicts.alarms("max", rate, every))
        result["seeds"].append(row)
        print(name, seed, json.dumps(row), flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=["A", "C", "ADFA"])
    parser.add_argument(
        "--rules", action="store_true", help="only what needs no GPT, once more"
    )
    options = parser.parse_args()
    results = json.loads(OUT.read_text()) if OUT.exists() else {}
    for name in options.names:
        if options.rules:
            anew = {"rate": SHOWN[name], "rules": rules(name)}
            results[name] = {**results[name], **anew}
        else:
            results[name] = run(name)
        write_atomically(OUT, (json.dumps(results, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
