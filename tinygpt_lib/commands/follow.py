"""`detect score --follow`: lines judged as they come, over days and restarts."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tinygpt_lib.anomalies import SessionReport
from tinygpt_lib.basics.files import (
    CheckpointError,
    json_file,
    read_json,
    write_atomically,
)
from tinygpt_lib.basics.growing import (
    Batch,
    GrowingFile,
    Place,
    arriving,
    growing,
    is_stream,
)
from tinygpt_lib.basics.interrupts import held_interrupt
from tinygpt_lib.commands.reading import event_sessions
from tinygpt_lib.commands.report import (
    alarm_data,
    described,
    print_json,
    session_data,
    worst_data,
)
from tinygpt_lib.logs import Session
from tinygpt_lib.runs.alarms import Alarm, Alarms, Judge, Judged, Tally
from tinygpt_lib.runs.detectors import weights_of
from tinygpt_lib.runs.reading import LogReading
from tinygpt_lib.runs.status import History
from tinygpt_lib.runs.streams import TOGETHER

IDLE = 600.0  # seconds after which a session is over, where the log doesn't tell
SINGLY = 8  # lines that came at once and are judged one by one: quicker
LATE = 10.0  # seconds that lines may come late, before a window is judged
NOTED = 10.0  # seconds between two notes of what was judged
SAVED = 2.0  # seconds between two states that are kept, where nothing is told


def follow(judge: Judge, reading: LogReading | None, options) -> Alarms:
    """Judges lines as they come, until standard input ends or Ctrl-C."""
    path = options.files[0]
    follower = Follower(judge, reading, options)
    place = follower.go_on() if options.state else None
    file, batches = batches_of(path, place)
    with held_interrupt() as pressed:  # not in the middle of an event
        for batch in batches:
            follower.take(batch)
            follower.note(file.place if file else None)
            if pressed():
                follower.stop(file.place if file else None)
                raise KeyboardInterrupt
    follower.finish()
    return follower.alarms


def batches_of(
    path: str, place: Place | None
) -> tuple[GrowingFile | None, Iterator[Batch]]:
    """Lines as they come, and the file that they are of, if it is one."""
    if is_stream(path):
        return None, arriving(path)
    file = GrowingFile(path, place, lambda text: print(text, file=sys.stderr))
    return file, growing(file)


class Follower:
    """Tells of causes of alarm at once; with --json of sessions at their end too."""

    def __init__(self, judge: Judge, reading: LogReading | None, options):
        self.judge, self.options = judge, options
        self.reader = None if reading is None else reading.lines()
        self.idle = options.idle
        if self.idle is None:
            silence = reading and reading.rule.get("silence")
            self.idle = silence or IDLE
        self.stream = judge.detector.stream(
            max_sessions=options.max_sessions,
            max_age=self.idle,
            count_ends=not options.open_ends,
            on_close=self.closed,
        )
        self.watching = judge.watching() if reading else None
        # The largest surprisal can only grow; any mean of a session that has just
        # begun is not like those of whole sessions, which the p-values are made of.
        self.grows = judge.detector.score_name == "max"
        self.alarms, self.tally = Alarms(), Tally(judge)
        self.history = History(options.folder)
        self.open: dict[str, Open] = {}
        self.arrived: dict[str, list[str]] = {}  # events that are not judged yet
        self.most = min(TOGETHER, options.max_sessions)  # sessions that they are of
        self.clock = self.pushed = 0.0  # by the log, and between two lines by ours
        self.looked = self.noted = self.saved = time.monotonic()
        self.drifted = self.told = False

    # --- Lines ---

    def take(self, batch: Batch) -> None:
        """Takes in lines that came together, if any."""
        now = time.monotonic()
        self.advance(self.clock + now - self.looked)
        self.looked = now
        for number, line in batch:
            if self.reader is None:
                self.whole(number, line)
            else:
                self.one(number, line)
        self.push()
        if not batch and self.watching and self.watching.window is not None:
            for odd in self.watching.until(self.clock - LATE):
                self.raise_(self.judge.of_odd(odd))
        self.forget()

    def advance(self, now: float) -> None:
        """Sets the clock, unless back, and closes sessions that are silent by then."""
        if now > self.clock:
            if now - self.pushed > self.idle / 4:
                self.push()
            self.clock = now
            self.stream.expire(now)

    def one(self, number: int, line: str) -> None:
        """Takes in a line, which is judged with others that come with it."""
        name, event = self.reader(line)
        if name is None:
            return
        moment = self.reader.time
        if moment is not None:
            self.advance(moment)
            for odd in (
                self.watching.take(moment, event, number) if self.watching else ()
            ):
                self.raise_(self.judge.of_odd(odd), line)
        if event in self.judge.accepted:
            return
        if event not in self.judge.detector.tokenizer:
            self.news(name, number, line, event)
            return
        if name not in self.arrived and len(self.arrived) >= self.most:
            self.push()
        self.arrived.setdefault(name, []).append(event)
        self.known(name).arrived.append((number, line))

    def known(self, name: str) -> "Open":
        """What is remembered of a session."""
        known = self.open.setdefault(name, Open())
        known.seen = self.clock
        return known

    def forget(self) -> None:
        """Closes sessions that are silent and in which all was new."""
        running, late = self.stream.running, self.clock - self.idle
        only_news = [name for name in self.open if name not in running]
        over = [name for name in only_news if self.open[name].seen < late]
        for name in over or only_news[: -self.options.max_sessions]:
            self.end_of_news(name)

    def whole(self, number: int, line: str) -> None:
        """Judges a line that is a session already."""
        for session in event_sessions([line]):
            session.id, session.line_numbers = str(number), [number]
            ended = not self.options.open_ends
            for judged in self.judge.judge([session], ended):
                for alarm in self.judge.alarms(judged):
                    self.raise_(alarm, line)
                self.over(judged, session_data(judged, self.judge))

    def news(self, name: str, number: int, line: str, event: str) -> None:
        """Tells of an event that was never seen; the session is judged without it."""
        alarm, worst = self.judge.of_news(name, number, event), None
        if alarm.cause not in self.alarms.causes:
            self.push()  # what came before it
            worst = self.stream.look(name, event)
        alarm.worst = worst
        self.raise_(alarm, line)
        running = self.stream.running.get(name)
        place = (running.n if running else 0) + len(self.arrived.get(name, ()))
        self.known(name).news.append((number, event, place))

    def push(self) -> None:
        """Judges what has come of sessions since."""
        arrived, running, self.arrived = self.arrived, self.stream.running, {}
        self.pushed = self.clock
        before = {name: running[name].n if name in running else 0 for name in arrived}
        if sum(map(len, arrived.values())) > SINGLY:
            self.stream.push_many(arrived, self.clock)
        else:
            for name, events in arrived.items():
                for event in events:
                    self.stream.push(name, event, self.clock)
        # By the scores that ends will be judged by: an alarm now is one then.
        reports = self.stream.reports(before, self.stream.count_ends)
        for (name, number), report in zip(before.items(), reports, strict=True):
            self.open[name].last = arrived[name][-1]
            self.look_at(name, number, report)

    def look_at(self, name: str, before: int, report: SessionReport) -> None:
        """Raises an alarm for a running session, once it is one."""
        known = self.open[name]
        if report.worst.position >= before:
            known.worst = known.arrived[report.worst.position - before]
        known.newest, known.arrived = known.arrived[-1], []
        odd = self.judge.is_odd(report, known.news)
        if self.grows and odd and not known.told:
            known.told = True
            number, line = known.worst
            self.raise_(self.judge.of_report(name, report, number, ""), line)

    # --- What is told ---

    def raise_(self, alarm: Alarm, line: str = "") -> None:
        """Tells of a cause of alarm when it comes first, and then of its number."""
        cause = self.alarms.add(alarm)
        if cause.count > 1 and cause.count not in (10, 100, 1000, 10_000, 100_000):
            return
        self.told = True
        if self.options.json:
            record = "alarm" if cause is alarm else "count"
            print_json(alarm_data(cause, record, text=line))
        elif cause is alarm:
            around = [f"> {line.strip()}"] if line else []
            print(described(alarm, f"line {alarm.line:,}", around))
        else:
            what = described(alarm, f"line {alarm.line:,}", []).split("\n")[0]
            print(f"{what}, the {cause.count:,}th like it")
        sys.stdout.flush()

    def closed(self, name: str, report: SessionReport, ended: bool) -> None:
        """A session is over: raises its alarm, unless that is told already."""
        known = self.open.pop(name)
        at_end = report.worst.position == report.n_events
        number, line = known.newest if at_end else known.worst
        if self.judge.is_odd(report, known.news) and not known.told:
            alarm = self.judge.of_report(name, report, number, known.last)
            self.raise_(alarm, line)
        judged = Judged(Session(name, [], [number]), report, known.news)
        data = session_data(judged, self.judge)
        if not known.news:
            data["worst"] = worst_data(report, number)
        self.over(judged, {**data, "ended": ended})

    def over(self, judged: Judged, data: dict) -> None:
        """Counts a session that is over, and tells programs of it."""
        self.tally.add(judged)
        if self.options.json:
            print_json(data)

    def finish(self, stopped: bool = False) -> None:
        """Closes all sessions, when there is no more to read."""
        self.stream.count_ends &= not stopped
        for name in list(self.stream.running):
            self.closed(name, self.stream.close(name), self.stream.count_ends)
        for name in list(self.open):
            self.end_of_news(name)
        self.history.add(self.options.files, self.tally, self.alarms)
        sys.stdout.flush()

    def end_of_news(self, name: str) -> None:
        """A session of which nothing was known is over."""
        judged = Judged(Session(name), None, self.open.pop(name).news)
        ended = self.stream.count_ends
        self.over(judged, {**session_data(judged, self.judge), "ended": ended})

    # --- What is kept ---

    def note(self, place: Place | None) -> None:
        """Keeps how far it has come, at once if something was told."""
        now = time.monotonic()
        if self.options.state and (self.told or now - self.saved >= SAVED):
            self.save(place)
            self.saved, self.told = now, False
        if now - self.noted >= NOTED:
            self.history.add(self.options.files, self.tally, self.alarms)
            self.noted, drift = now, self.tally.drift()
            if drift and not self.drifted:
                print(f"drift: {'; '.join(drift)}", file=sys.stderr)
            self.drifted = bool(drift)

    def stop(self, place: Place | None) -> None:
        """Told to stop: with a state, sessions stay open in it."""
        if self.options.state:
            self.save(place)
            self.history.add(self.options.files, self.tally, self.alarms)
        else:
            self.finish(stopped=True)

    def save(self, place: Place | None) -> None:
        """Writes the state."""
        data = {
            "detector": self.fingerprint(),
            "place": (place or Place()).to_dict(),
            "clock": self.clock,
            "ids": self.ids(),
            "sessions": self.stream.state(),
            "open": {name: known.state() for name, known in self.open.items()},
            "watching": self.watching.state() if self.watching else None,
            "alarms": self.alarms.state(),
            "tally": self.tally.state(),
        }
        write_atomically(self.options.state, json_file(data))

    def ids(self) -> dict:
        """When ids came last, and how often each was over: of the latest ones."""
        if self.reader is None:
            return {}
        return dict(list(self.reader.latest.items())[-2 * self.options.max_sessions :])

    def fingerprint(self) -> str:
        """Which detector it is."""
        return weights_of(self.judge.detector.members[0])

    def go_on(self) -> Place | None:
        """Goes on from the state, if there is one; gives how far the file was read."""
        path = Path(self.options.state)
        if not path.exists():
            return None
        data = read_json(path)
        try:
            place = Place.from_dict(data["place"])
            self.alarms.go_on(data["alarms"])
            self.tally.go_on(data["tally"])
            if data["detector"] != self.fingerprint():
                print(
                    "the detector is another one since: sessions begin anew",
                    file=sys.stderr,
                )
                return place
            self.clock = self.pushed = float(data["clock"])
            if self.reader:
                for name, (when, times) in data["ids"].items():
                    self.reader.latest[name] = float(when), int(times)
            self.stream.go_on(data["sessions"])
            self.open = {name: Open.of(d) for name, d in data["open"].items()}
            if self.watching and data["watching"]:
                self.watching.go_on(data["watching"])
            return place
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise CheckpointError(
                f"{path} is not the state of --follow: delete it to begin anew "
                f"({type(error).__name__}: {error})"
            ) from error


class Open:
    """What is remembered of the lines of a session that is not over."""

    def __init__(self):
        self.arrived: list[tuple[int, str]] = []  # that are not judged yet
        self.newest = self.worst = (0, "")
        self.news: list[tuple[int, str, int]] = []
        self.told, self.seen, self.last = False, 0.0, ""  # the event that came last

    def state(self) -> list:
        """All of it, as plain data."""
        return [self.newest, self.worst, self.news, self.told, self.last]

    @classmethod
    def of(cls, data: list) -> "Open":
        """What `state` told."""
        known = cls()
        newest, worst, news, known.told, known.last = data
        known.newest, known.worst = tuple(newest), tuple(worst)
        known.news = [tuple(new) for new in news]
        return known
