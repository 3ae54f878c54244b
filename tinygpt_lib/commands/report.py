"""What `detect` tells: alarms in words, at most a screen, and as lines of JSON."""

import json
import shutil
import sys
from collections.abc import Sequence

from tinygpt_lib.anomalies import SessionReport
from tinygpt_lib.commands.reading import Lines
from tinygpt_lib.runs.alarms import Alarm, Alarms, Judge, Judged, Tally, worst_line
from tinygpt_lib.runs.watch import ALL

WIDE = 300  # characters of a line that are shown
SCREEN = (100, 40)  # columns and rows, where there is no terminal


def printable(text: str) -> str:
    """The text with escapes for what could act on a terminal: logs hold anything."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shown(event: str) -> str:
    """An event in words."""
    return "any line" if event == ALL else event[:150]


def reason(alarm: Alarm) -> str:
    """Why there is an alarm, in words that go on after the number of its line."""
    if alarm.kind == "new":
        return "was never seen before"
    if alarm.kind in ("order", "counts"):
        worst = alarm.report.worst
        if alarm.kind == "counts":
            _, often, usual = alarm.report.counts[0]
            how = "more often" if often > usual else "less often"
            return f"is of a session that holds an event {how} than normal ones"
        if worst.position == alarm.report.n_events:
            return (
                f"is the last one, and an end there is worth {worst.surprisal:.1f} nats"
            )
        return f"is worth {worst.surprisal:.1f} nats (rank {worst.rank})"
    odd = alarm.odd
    low, high = odd.usual
    return {
        "burst": f"begins a burst: {odd.number:,} in {odd.seconds:g} s, where at most "
        f"{high:,} are normal, of {shown(odd.event)}",
        "silence": f"is the last one before a silence: for {odd.number:,} s there was "
        f"none, where at most {high:,} s are normal, of {shown(odd.event)}",
        "rate": f"is of a time with another rate: {odd.number:,} in {odd.seconds:g} s, "
        f"where {low:,} to {high:,} are normal, of {shown(odd.event)}",
    }[alarm.kind]


def described(alarm: Alarm, place: str, around: Sequence[str], more: int = 0) -> str:
    """An alarm in words: where, what, and what had been expected instead.

    `around` are lines, the one that raised it marked by ">" at its beginning.
    """
    who = alarm.session if alarm.session is not None else "log"
    again = f", and {more:,} more like it" if more else ""
    text = [f"{who}: p {alarm.p_value:.2g}; {place} {reason(alarm)}{again}"]
    text += [f"  {line[: WIDE + 2]}" for line in around]
    text += [f"    expected {c:6.1%}  {e[:150]}" for e, c in alarm.expected]
    if alarm.report:
        counts = alarm.report.counts
        text += [f"    {n} times, normally {m}: {e[:150]}" for e, n, m in counts]
    return "\n".join(map(printable, text))


def alarm_data(alarm: Alarm, record: str = "alarm", **more) -> dict:
    """An alarm as plain data."""
    data = {
        "record": record,
        "kind": alarm.kind,
        "event": alarm.event,
        "id": alarm.session,
        "p_value": alarm.p_value,
        "score": alarm.score,
        "line": alarm.line,
        "count": alarm.count,
        "last": alarm.last,
        "expected": alarm.expected,
    }
    if odd := alarm.odd:
        data |= {"number": odd.number, "usual": odd.usual, "seconds": odd.seconds}
    return data | more


def session_data(judged: Judged, judge: Judge, **more) -> dict:
    """A session as plain data."""
    report, session, news = judged.report, judged.session, judged.news
    price, p_value = judge.detector.price, report.p_value if report else 1.0
    data = {
        "record": "session",
        "id": session.id,
        "score": (report.score if report else 0.0) + price * len({x[1] for x in news}),
        "p_value": min(p_value, judge.p_news) if news else p_value,
        "anomalous": bool(news) or bool(report and report.anomalous),
        "events": (report.n_events if report else 0) + len(news),
        "unknown": len(news),
        "windowed": bool(report and report.windowed),
        "counts": report.counts if report else (),
        "worst": None,
    }
    if news:
        number, event, _ = news[0]
        data["worst"] = {
            "position": None,
            "event": event,
            "line": number,
            "surprisal": price,
            "rank": None,
            "expected": (),
        }
    elif report:
        data["worst"] = worst_data(report, worst_line(session, report.worst))
    return data | more


def worst_data(report: SessionReport, line: int) -> dict:
    """The worst event of a session as plain data."""
    worst = report.worst
    return {
        "position": worst.position,
        "event": worst.event,
        "line": line,
        "surprisal": worst.surprisal,
        "rank": worst.rank,
        "expected": worst.expected,
    }


def print_json(data: dict) -> None:
    """A line of JSON."""
    print(json.dumps(data))


class Listing:
    """A report for people: the causes, the worst first, with the lines around them."""

    def __init__(self, lines: Lines, names: list[str], everything: bool):
        self.lines, self.names = lines, names
        rows = shutil.get_terminal_size(SCREEN).lines
        self.rows = sys.maxsize if everything else max(10, rows - 4)

    def show(self, alarms: Alarms, tally: Tally, windowed: int) -> None:
        """Prints it all; the lines are read again, since they may be many."""
        causes = alarms.worst_first()
        fit = causes if self.rows == sys.maxsize else causes[: self.rows // 2]
        texts = self.texts({a.line + i for a in fit for i in (-1, 0, 1)})
        left, told = self.rows, 0
        for alarm in fit:
            tally.judge.expect(alarm)
            text = described(
                alarm,
                self.place(alarm.line),
                self.around(alarm.line, texts),
                alarm.count - 1,
            )
            height = text.count("\n") + 1
            if told and height > left:
                break
            print(text)
            told, left = told + 1, left - height
        if rest := causes[told:]:
            count = sum(alarm.count for alarm in rest)
            print(f"... and {len(rest):,} other causes ({count:,} alarms): --all")
        print(summary(alarms, tally))
        if windowed:
            size = tally.judge.detector.size
            print(
                f"{windowed:,} are longer than the {size} events that the models see "
                "at once, and were read in windows"
            )

    def texts(self, wanted: set[int]) -> dict[int, str]:
        """What lines of some numbers say."""
        if not wanted:
            return {}
        lines = enumerate(self.lines, start=1)
        return {number: line for number, line in lines if number in wanted}

    def around(self, number: int, texts: dict[int, str]) -> list[str]:
        """A line between those before and after it, in the same file."""
        file = self.lines.where(number)[0]
        return [
            f"{'>' if i == number else ' '} {texts[i].strip()[:WIDE]}"
            for i in (number - 1, number, number + 1)
            if i in texts and self.lines.where(i)[0] == file
        ] or ["(the line is no longer there)"]

    def place(self, number: int) -> str:
        """Where a line is, in words."""
        file, number = self.lines.where(number)
        of = f" of {self.names[file]}" if len(self.names) > 1 else ""
        return f"line {number:,}{of}"


def summary(alarms: Alarms, tally: Tally) -> str:
    """How many alarms there are, of which kinds, and how many were to be expected."""
    kinds = ", ".join(f"{n:,} {kind}" for kind, n in sorted(alarms.kinds.items()))
    number = sum(alarms.kinds.values())
    text = (
        f"{tally.sessions:,} sessions, alarms: {number:,} of "
        f"{len(alarms.causes):,} causes{f' ({kinds})' if kinds else ''}. If all were "
        f"normal, about {tally.judge.promised * tally.sessions:.1f} would be raised, "
        f"and {tally.judge.p_news:.2%} of sessions would hold something new."
    )
    return "\n".join([text, *(f"drift: {said}" for said in tally.drift())])
