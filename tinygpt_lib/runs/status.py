"""What a detector has judged, kept beside it, and whether it kept its promise."""

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from tinygpt_lib.basics.files import (
    CheckpointError,
    json_file,
    read_json,
    write_atomically,
)
from tinygpt_lib.runs.alarms import Alarms, Tally

STATUS = "status.json"
RUNS = 100  # that are remembered


def now() -> str:
    """The time, as text."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class History:
    """What a detector has judged, run by run, in its folder.

    Where the folder can't be written, nothing is noted: judging goes on.
    """

    def __init__(self, folder: Path):
        self.path, self.began = Path(folder) / STATUS, now()

    def runs(self) -> list[dict]:
        """The runs so far, the oldest first; CheckpointError for nonsense."""
        if not self.path.exists():
            return []
        try:
            runs = read_json(self.path)["runs"]
            for run in runs:
                numbers = run["sessions"], run["with_news"], *run["alarms"].values()
                if any(not isinstance(n, int) or n < 0 for n in numbers):
                    raise ValueError("numbers that are none")
                ", ".join([run["began"], *run["logs"], *run["drift"]])
            return runs
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise CheckpointError(
                f"{self.path} is no history of a detector: delete it ({error})"
            ) from error

    def add(self, logs: list[str], tally: Tally, alarms: Alarms) -> None:
        """Notes what was judged, in place of what this run has noted before."""
        run = {"began": self.began, "until": now(), "logs": list(logs)}
        run |= tally.to_dict() | {"alarms": dict(alarms.kinds)}
        with suppress(OSError, CheckpointError):
            key = self.began, run["logs"]
            others = [r for r in self.runs() if (r["began"], r["logs"]) != key]
            data = json_file({"runs": [*others, run][-RUNS:]})
            write_atomically(self.path, data)

    def told(self, promised: float, foreseen: float) -> Iterator[str]:
        """What there is to say, in lines."""
        runs = self.runs()
        if not runs:
            yield "nothing was judged so far"
            return
        n = sum(run["sessions"] for run in runs)
        kinds: Counter[str] = Counter()
        for run in runs:
            kinds.update(run["alarms"])
        news = sum(run["with_news"] for run in runs)
        by_p = sum(number for kind, number in kinds.items() if kind != "new")
        yield f"{n:,} sessions in {len(runs):,} runs, since {runs[0]['began']}"
        yield "alarms: " + (
            ", ".join(f"{number:,} {kind}" for kind, number in sorted(kinds.items()))
            or "none"
        )
        for what, number, share in (
            ("alarms, news apart", by_p, promised),
            ("sessions with something new", news, foreseen),
        ):
            spread = math.sqrt(n * share * (1 - share))
            more = number > n * share + 4 * spread + 1
            yield (
                f"{what}: {number / max(1, n):.2%} of sessions, {share:.2%} promised"
                + (": more than by chance; look at them, then `update`" if more else "")
            )
        last = runs[-1]
        yield f"last: {', '.join(last['logs'])}, {last['sessions']:,} sessions"
        yield from (f"drift: {said}" for said in last["drift"])
