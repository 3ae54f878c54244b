"""Chapter 16's detector, safe to use: checked, kept in a folder, judging as it goes."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from tinygpt_lib import anomalies
from tinygpt_lib.anomalies import EventReport
from tinygpt_lib.basics.checks import check_choice, check_float, check_int, each
from tinygpt_lib.basics.files import (
    current,
    read_tensors,
    understood,
    write_tensors,
)
from tinygpt_lib.logs import END, learn
from tinygpt_lib.runs.checkpoints import (
    fingerprint,
    load_checkpoint,
    save_checkpoint,
)
from tinygpt_lib.runs.streams import EventStream
from tinygpt_lib.speed import FastConfig

SCORES = ("max", "mean")


def check_rate(false_alarms: float, n_normal: int | None = None) -> None:
    """ValueError for a rate that is none, or that n normal sessions can't promise."""
    allowed = "above 0 and below 1"
    check_float("false_alarms", false_alarms, allowed, lambda rate: 0 < rate < 1)
    if n_normal is not None and false_alarms * (n_normal + 1) < 2 - 1e-9:
        needed = math.ceil(2 / false_alarms - 1e-9) - 1
        least, unit = 2 / (n_normal + 1), 10 ** -len(str(n_normal + 1)) / 10
        advice = f", or allow a rate of {math.ceil(least / unit) * unit:.3g}"
        raise ValueError(
            f"a false-alarm rate of {false_alarms:g} needs at least {needed:,} normal "
            f"sessions, and there are {n_normal:,}: give more"
            f"{advice if n_normal > 1 else ''}"
        )


def check_session(session: Sequence) -> Sequence:
    """The session; ValueError for a text, which is none."""
    if isinstance(session, str):
        raise ValueError(
            f"a session is a list of events, and {session[:50]!r} is a text: split it"
        )
    return session


def weights_of(member) -> str:
    """A sha256 over a model's weights."""
    return fingerprint(*member.state_dict().values())


class AnomalyDetector(anomalies.AnomalyDetector):
    __doc__ = anomalies.AnomalyDetector.__doc__

    def __init__(self, members, tokenizer, normal, far, held_out, **settings):
        check_int("n_events", settings["n_events"], low=1)
        share = settings.get("news", 0.0)
        check_float("news", share, "from 0 to 1", lambda share: 0 <= share <= 1)
        check_choice("score", settings.get("score", "max"), SCORES)
        check_rate(settings["false_alarms"])
        super().__init__(members, tokenizer, normal, far, held_out, **settings)

    @property
    def size(self) -> int:
        """How many events the models see at once."""
        return self.members[0].config.block_size

    @property
    def false_alarms(self) -> float:
        """The share of normal sessions that may raise an alarm by their p-value."""
        return self._false_alarms

    @false_alarms.setter
    def false_alarms(self, rate: float) -> None:
        kept = self.held_out[True]
        check_rate(rate, sum(map(len, kept)) if kept else None)
        self._false_alarms = rate

    @classmethod
    def fit(
        cls,
        sessions,
        *,
        ended: bool | Sequence[bool] = True,
        false_alarms: float = 0.002,
        folds: int = 3,
        seed: int = 0,
        learn: Callable = learn,
        device: str | torch.device = "cpu",
        progress: Callable[[str], None] = lambda text: None,
        **settings,
    ) -> Self:
        """As chapter 16's; `progress` is told of each model, learned on a device."""
        check_int("folds", folds, low=2)
        check_int("seed", seed, low=0)
        check_choice("score", settings.get("score", "max"), SCORES)
        sessions = list(map(check_session, sessions))
        if not any(map(len, sessions)):
            raise ValueError("the sessions hold no event: there is nothing to know")
        over = each(ended, len(sessions))
        n, k = sum(over), min(folds, sum(over))
        try:
            check_rate(false_alarms, n)
        except ValueError as error:
            if n == len(sessions):
                raise
            raise ValueError(
                f"of {len(sessions):,} sessions {len(sessions) - n:,} may go on, and "
                f"only the others tell of ends: {error}"
            ) from error

        def told(ids: Tensor, config: FastConfig, own_seed: int):
            progress(f"model {own_seed - seed + 1} of {k}")
            return learn(ids.to(device), config, own_seed)

        return super().fit(
            sessions,
            ended=over,
            false_alarms=false_alarms,
            folds=folds,
            seed=seed,
            learn=told,
            **settings,
        )

    def score(self, sessions, ended: bool | Sequence[bool] = True):
        return super().score(map(check_session, sessions), ended)

    def explain(self, session: Sequence) -> list[EventReport]:
        """A report of each event of a session, and of its end."""
        events = tuple(map(str, check_session(session)))
        (reading,) = self.read([events])
        return [
            self.report_event(event, reading, t)
            for t, event in enumerate((*events, END))
        ]

    def stream(self, **settings) -> EventStream:
        """Judges events as they come; settings as for EventStream."""
        return EventStream(self, **settings)

    def save(self, folder: str | Path) -> None:
        """Writes the detector into a folder: JSON and safetensors, nothing else."""
        folder = Path(folder)
        for i, member in enumerate(self.members):
            save_checkpoint(folder / f"member-{i}", member, self.tokenizer)
        tensors = {}
        for ended, name in ((True, "ended"), (False, "open")):
            tensors[f"normal-{name}"] = self.normal[ended].contiguous()
            tensors[f"far-{name}"] = self.far[ended]
            for i, scores in enumerate(self.held_out[ended]):
                tensors[f"held-out-{name}-{i}"] = scores
        settings = {
            "members": [weights_of(member) for member in self.members],
            "n_events": self.n_events,
            "false_alarms": self.false_alarms,
            "score": self.score_name,
            "news": self.news,
            "about": self.about,
        }
        write_tensors(folder / "detector.safetensors", tensors, settings)

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu") -> Self:
        """The detector that `save` wrote; CheckpointError for anything else."""
        folder = current(Path(folder))
        path = folder / "detector.safetensors"
        tensors, settings = read_tensors(path)
        otherwise = f"{path} is no detector, or one of another version: fit anew"
        with understood(otherwise):
            digests = settings.pop("members")
            check_int("members", len(digests), low=1, high=len(tensors))
            normal, far, held_out = {}, {}, {}
            for ended, name in ((True, "ended"), (False, "open")):
                normal[ended] = tensors[f"normal-{name}"]
                far[ended] = tensors[f"far-{name}"]
                held_out[ended] = [
                    tensors[f"held-out-{name}-{i}"] for i in range(len(digests))
                ]
            loaded = [
                load_checkpoint(folder / f"member-{i}", device)
                for i in range(len(digests))
            ]
            members, tokenizers = zip(*loaded, strict=True)
            if any(t.to_dict() != tokenizers[0].to_dict() for t in tokenizers):
                raise ValueError("its members have different tokenizers")
            if [weights_of(member) for member in members] != digests:
                raise ValueError("its members are not those that it was saved with")
            check_numbers(normal, far, held_out, tokenizers[0].vocab_size)
            if not isinstance(settings["about"], dict):
                raise TypeError(f"about is {settings['about']!r}")
            return cls(members, tokenizers[0], normal, far, held_out, **settings)


def check_numbers(normal: dict, far: dict, held_out: dict, vocab_size: int) -> None:
    """ValueError for counts or scores that are none."""
    for rows in normal.values():
        if rows.dtype != torch.float32 or rows.shape[1:] != (vocab_size,):
            raise ValueError(f"counts must be (R, {vocab_size}), got {rows.shape}")
        if not len(rows) or not (rows.isfinite() & (rows >= 0)).all():
            raise ValueError("counts must be some, finite, and not below 0")
    for ended, by_member in held_out.items():
        for scores in (far[ended], *by_member):
            if scores.dtype != torch.float64 or scores.dim() != 1:
                raise ValueError("held-out scores must be (n,) of float64")
            if scores.isnan().any() or (scores.diff() < 0).any():
                raise ValueError("held-out scores are no numbers in rising order")
