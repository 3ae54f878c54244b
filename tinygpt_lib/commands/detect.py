"""The command `detect`: a detector for logs in files, fitted, used, and kept up."""

import itertools
import math
import sys
from collections.abc import Iterator
from pathlib import Path

from tinygpt_lib.basics.checks import check_int
from tinygpt_lib.basics.devices import choose_device
from tinygpt_lib.basics.files import check_free, filling
from tinygpt_lib.basics.loglines import in_order, patience
from tinygpt_lib.commands import inspect
from tinygpt_lib.commands.common import add_command
from tinygpt_lib.commands.detect_options import (
    add_accept,
    add_fit,
    add_inspect,
    add_score,
    add_update,
)
from tinygpt_lib.commands.follow import follow
from tinygpt_lib.commands.reading import (
    Lines,
    check_kinds,
    going_on,
    grouping,
    known_ends,
    own_masks,
    read_log,
    rereadable,
    rules_of,
    told_in_order,
)
from tinygpt_lib.commands.report import (
    Listing,
    alarm_data,
    print_json,
    printable,
    session_data,
)
from tinygpt_lib.runs.alarms import Alarms, Judge, Judged, Tally
from tinygpt_lib.runs.detectors import AnomalyDetector, check_rate
from tinygpt_lib.runs.reading import LogReading
from tinygpt_lib.runs.status import History
from tinygpt_lib.runs.upkeep import Normal, accept, fitted, replace_detector, undo
from tinygpt_lib.runs.watch import cells_of

DECISIVE = "detector.safetensors"  # without it a folder holds no detector
AT_ONCE = 10_000  # sessions that are judged together
ALARMED = 3  # the exit status where --fail-on-alarm is asked and there was one


def say(text: str) -> None:
    """Tells people what is going on."""
    print(text, file=sys.stderr)


def run_inspect(options) -> int:
    """Says what a log is taken for; writes nothing."""
    rule = grouping(options, {})
    if rule.get("events"):
        raise ValueError("there is nothing to inspect in lines of event ids")
    with rereadable(in_order(options.files)) as files:
        lines = Lines(files)
        reading = LogReading.fit(lines, rule, own_masks(options), options.field)
        for text in inspect.report(lines, reading):
            print(printable(text))
    return 0


def read_normal(
    lines: Lines, reading: LogReading | None, rule: dict, options
) -> Normal:
    """What is normal by some logs."""
    sessions, times = read_log(lines, reading)
    ended = [True] * len(sessions)
    if options.open_ends:
        ended = known_ends(sessions, rule)
    if reading is not None:
        check_kinds(sessions)
    told = ((time, event) for _, time, event in told_in_order(times, sessions))
    return Normal([s.events for s in sessions], ended, *cells_of(told))


def run_fit(options) -> int:
    """Fits a detector on normal logs and writes it."""
    check_free(options.out, DECISIVE)
    check_int("folds", options.folds, low=2)
    check_int("seed", options.seed, low=0)
    rate = options.false_alarms
    if rate is not None:
        check_rate(rate)
    device = choose_device(options.device)
    rule, masks = grouping(options, {}), own_masks(options)
    about: dict = {"sessions": rule}
    with rereadable(in_order(options.normal)) as files:
        reading, lines = None, Lines(files)
        if not rule.get("events"):
            least = math.ceil(2 / rate) if rate else 0
            reading = LogReading.fit(lines, rule, masks, options.field, least)
            about, rule = reading.to_dict(), reading.rule
        normal = read_normal(lines, reading, rule, options)
    detector = fitted(
        normal,
        false_alarms=rate,
        tell=say,
        score=options.score,
        folds=options.folds,
        seed=options.seed,
        device=device,
        about={**about, "seed": options.seed},
        progress=say,
    )
    with filling(options.out, DECISIVE) as aside:
        detector.save(aside)
        normal.save(aside)
    if reading is not None:
        print(reading)
    describe(options.out, normal, detector)
    return 0


def describe(folder, normal: Normal, detector: AnomalyDetector) -> None:
    """Prints what a detector was fitted on, and what to expect of it."""
    lengths = sorted(map(len, normal.sessions))
    kinds = len(detector.tokenizer.events)
    print(
        f"{folder}: {len(lengths):,} sessions of {lengths[0]:,} to "
        f"{lengths[-1]:,} events, {kinds:,} kinds of events"
    )
    if watch := detector.about.get("watch"):
        print(
            f"bursts, silences and rates: by {watch['n']:,} windows of "
            f"{watch['seconds']:g} s"
        )
    if open_ended := normal.ended.count(False):
        print(f"{open_ended:,} may go on after the log: it has learned no end of them")
    if detector.news:
        print(
            f"about {detector.news:.2%} of normal sessions will hold events that are "
            "unknown; each raises an alarm, apart from the promised rate"
        )
    if detector.news > 0.1:
        print("so many mean that names or numbers vary in the lines: give a --mask")
    if long := sum(length >= detector.size for length in lengths):
        print(
            f"{long:,} are longer than what the models see at once "
            f"({detector.size} events)"
        )


def run_score(options) -> int:
    """Judges the sessions of logs, or of a log that grows."""
    detector = AnomalyDetector.load(options.folder, choose_device(options.device))
    if options.false_alarms is not None:
        detector.false_alarms = options.false_alarms
    rule, reading = rules_of(detector, options)
    before = options.before
    if before and (options.follow or rule.get("events")):
        why = "--follow" if options.follow else "--events"
        raise ValueError(f"--before can't be used with {why}")
    if twice := {*before} & {*options.files}:
        raise ValueError(f"{min(twice)} can't be before itself")
    if options.state and not options.follow:
        raise ValueError("--state is for --follow: it keeps where that has come to")
    judge = Judge(detector)
    if options.follow:
        if len(options.files) > 1:
            raise ValueError("--follow reads one file; start a process for each")
        alarms = follow(judge, reading, options)
    else:
        alarms = score_files(judge, reading, options)
    return ALARMED if options.fail_on_alarm and alarms.kinds else 0


def score_files(judge: Judge, reading: LogReading | None, options) -> Alarms:
    """Judges the sessions of logs, and their windows."""
    names = [*options.before, *in_order(options.files)]
    alarms, tally, windowed = Alarms(), Tally(judge), 0
    with rereadable(names) as files:
        lines = Lines(files)
        sessions, times = read_log(lines, reading)
        chosen = sessions
        if options.before:
            chosen = going_on(iter(sessions), lines, len(options.before))
        for judged in judged_sessions(judge, chosen, not options.open_ends):
            tally.add(judged)
            windowed += bool(judged.report and judged.report.windowed)
            for alarm in judge.alarms(judged):
                alarms.add(alarm)
            if options.json:
                print_session(judge, judged, lines, names)
        if judge.watch is not None:
            told = told_in_order(times, sessions)
            watch_windows(judge, told, lines.starts[len(options.before)], alarms)
        if not options.json:
            listing = Listing(lines, names, options.all)
            listing.show(alarms, tally, windowed)
        else:
            for alarm in alarms.worst_first():
                judge.expect(alarm)
                print_json(alarm_data(alarm, **placed(alarm.line, lines, names)))
    History(options.folder).add(names, tally, alarms)
    return alarms


def judged_sessions(judge: Judge, sessions, ended: bool) -> Iterator[Judged]:
    """Sessions, judged some thousands at a time."""
    sessions = iter(sessions)
    while batch := list(itertools.islice(sessions, AT_ONCE)):
        yield from judge.judge(batch, ended)


def placed(number: int, lines: Lines, names: list[str]) -> dict:
    """Where a line is, where there are several files: its file, and number there."""
    if len(names) == 1:
        return {}
    file, number = lines.where(number)
    return {"file": names[file], "line": number}


def print_session(judge: Judge, judged: Judged, lines: Lines, names: list[str]) -> None:
    """A session as a line of JSON."""
    data = session_data(judged, judge)
    if data["worst"]:
        place = placed(data["worst"]["line"], lines, names)
        data["worst"]["line"] = place.pop("line", data["worst"]["line"])
        data |= place
    print_json(data)


def watch_windows(judge: Judge, told, first: int, alarms: Alarms) -> None:
    """Adds the alarms of the windows of a log after its first lines."""
    watching = judge.watching()
    for number, time, event in told:
        if number > first:
            for odd in watching.take(time, event, number):
                alarms.add(judge.of_odd(odd))


def run_accept(options) -> int:
    """Takes events for normal from now on."""
    if bool(options.event) == bool(options.files):
        raise ValueError("give either --event or --from, with what is normal")
    detector = AnomalyDetector.load(options.folder, choose_device(options.device))
    _, reading = rules_of(detector, options)
    events = list(options.event)
    if options.files:
        sessions, _ = read_log(Lines(options.files), reading)
        events = [event for session in sessions for event in session.events]
    elif reading is not None:
        events = [event_in(reading, event) for event in events]
    unknown = [event for event in events if event not in detector.tokenizer]
    new = accept(options.folder, unknown)
    for event in new:
        print(printable(f"accepted: {event}"))
    known = len(set(events)) - len(set(unknown))
    print(
        f"{len(new):,} events accepted, {known:,} known before. Sessions are judged by "
        "their other events: the promised rate stands. `detect update` learns where "
        "and how often they come; `detect undo` takes this back."
    )
    return 0


def event_in(reading: LogReading, text: str) -> str:
    """The event of a line; of what tells no time, as reports show events, itself."""
    reader = reading.lines()
    _, event = reader(text)
    return event if reader.time is not None and event else text


def run_update(options) -> int:
    """Fits a detector anew, on what it has learned from and on more normal logs."""
    detector = AnomalyDetector.load(options.folder, choose_device(options.device))
    old = Normal.load(options.folder)
    rule, reading = rules_of(detector, options)
    with rereadable(in_order(options.files)) as files:
        more = read_normal(Lines(files), reading, rule, options)
    judge = Judge(detector)
    raised = sum(report.anomalous for report in detector.score(more.sessions))
    normal = old + more
    kept = {k: v for k, v in detector.about.items() if k not in ("watch", "accepted")}
    new = fitted(
        normal,
        false_alarms=judge.promised,
        tell=say,
        score=detector.score_name,
        folds=len(detector.members),
        seed=kept.get("seed", 0),
        device=choose_device(options.device),
        about={**kept, "accepted": sorted(judge.accepted - normal.events())},
        progress=say,
    )
    replace_detector(options.folder, new, normal)
    learned = sorted(more.events() - old.events())
    print(
        f"{len(more.sessions):,} sessions learned, beside {len(old.sessions):,} from "
        f"before; {raised:,} of them would have raised an alarm"
    )
    print(f"{len(learned):,} new kinds of events{':' if learned else ''}")
    for event in learned[:10]:
        print(printable(f"    {event[:150]}"))
    if len(learned) > 10:
        print(f"    ... and {len(learned) - 10:,} more")
    print(
        f"calibrated anew, on all of them: {new.false_alarms:g} is promised as before; "
        f"news foreseen in {new.news:.2%} of sessions, {detector.news:.2%} before"
    )
    return 0


def run_undo(options) -> int:
    """Takes back the last `accept` or `update`."""
    device = choose_device(options.device)
    undo(options.folder)
    detector = AnomalyDetector.load(options.folder, device)
    accepted = len(detector.about.get("accepted", []))
    print(
        f"{options.folder} is as it was before: {len(detector.tokenizer.events):,} "
        f"kinds of events, {accepted:,} accepted"
    )
    return 0


def run_status(options) -> int:
    """Tells what a detector has judged, and whether it kept its promise."""
    device = choose_device(options.device)
    judge = Judge(AnomalyDetector.load(options.folder, device))
    for line in History(options.folder).told(judge.promised, judge.p_news):
        print(printable(line))
    return 0


def add_detect(commands) -> None:
    detect = commands.add_parser(
        "detect",
        help="find what is unlike normal in logs",
        description="Find what is unlike normal in logs.",
        epilog="example: python -m tinygpt_lib detect score runs/gate auth.log",
    ).add_subparsers(required=True, metavar="COMMAND")
    for name, run, options, does, example in (
        (
            "inspect",
            run_inspect,
            add_inspect,
            "say what a log is taken for: format, sessions, kinds of lines; write "
            "nothing",
            "auth.log",
        ),
        (
            "fit",
            run_fit,
            add_fit,
            "learn what is normal from logs of a time in which nothing was wrong",
            "--normal auth.log.1 --out runs/gate --session-regex 'sshd\\[(\\d+)'",
        ),
        (
            "score",
            run_score,
            add_score,
            "judge the sessions of logs, and show the lines that raise an alarm",
            "runs/gate auth.log",
        ),
        (
            "accept",
            run_accept,
            add_accept,
            "take events for normal that were never seen before",
            "runs/gate --event 'Accepted keyboard-interactive for <user>'",
        ),
        (
            "update",
            run_update,
            add_update,
            "learn from more normal logs, without forgetting the ones before",
            "runs/gate auth.log.1",
        ),
        (
            "undo",
            run_undo,
            None,
            "take the last `accept` or `update` back",
            "runs/gate",
        ),
        (
            "status",
            run_status,
            None,
            "tell what was judged, and whether the promised rate was kept",
            "runs/gate",
        ),
    ):
        example = f"detect {name} {example}"
        command = add_command(detect, name, patience()(run), does, example)
        if name not in ("inspect", "fit"):
            command.add_argument("folder", type=Path, help="what `detect fit` made")
        if options:
            options(command)
