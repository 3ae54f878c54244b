"""The options of `detect`, command by command."""

import argparse
from pathlib import Path

from tinygpt_lib.runs.detectors import SCORES


def add_grouping(command: argparse.ArgumentParser, default: str) -> None:
    """The options that say which lines belong together."""
    group = command.add_argument_group(f"which lines belong together ({default})")
    how = group.add_mutually_exclusive_group()
    how.add_argument(
        "--session-regex",
        metavar="RE",
        help=r"lines in which it finds the same, as 'blk_-?\d+'; of groups, the first",
    )
    how.add_argument(
        "--seconds", type=float, metavar="S", help="lines of the same S seconds"
    )
    how.add_argument(
        "--events",
        action="store_true",
        help="each line is a session already: event ids with blanks between them",
    )
    group.add_argument(
        "--time-regex", metavar="RE", help="finds a line's time, for --seconds"
    )
    group.add_argument(
        "--time-format", metavar="F", help="how the time is written, as for strptime"
    )


def add_finding(command: argparse.ArgumentParser) -> None:
    """The options that stand in place of what is found in a log."""
    add_grouping(command, "default: an id that comes again, else time")
    command.add_argument(
        "--field", metavar="NAME", help="that holds the message, in lines of fields"
    )
    command.add_argument(
        "--mask",
        action="append",
        default=[],
        metavar="WORD=RE",
        help="put WORD in place of what RE finds, before all else; repeatable",
    )


def add_inspect(command: argparse.ArgumentParser) -> None:
    """The options of `detect inspect`."""
    command.add_argument(
        "files", nargs="+", metavar="FILE", help="logs; may be packed; - is stdin"
    )
    add_finding(command)


def add_fit(command: argparse.ArgumentParser) -> None:
    """The options of `detect fit`."""
    command.add_argument(
        "--normal",
        nargs="+",
        required=True,
        metavar="FILE",
        help="logs of a time in which nothing was wrong; may be gzipped; - is stdin",
    )
    command.add_argument(
        "--out", type=Path, required=True, help="folder for the detector: new, or empty"
    )
    add_finding(command)
    command.add_argument(
        "--open-ends",
        action="store_true",
        help="sessions may go on after the log: learn no end of those that are silent, "
        "when it stops, for no more lines than one that went on after the same event",
    )
    command.add_argument(
        "--false-alarms",
        type=float,
        metavar="SHARE",
        help="alarms for a normal session, of all kinds together, that may be raised "
        "(default: 0.002, or as few as the sessions can promise)",
    )
    command.add_argument(
        "--score",
        choices=sorted(SCORES),
        default="max",
        help="of a session: largest surprisal and counts, or the mean surprisal "
        "alone, for logs whose sessions are all different (default: max)",
    )
    command.add_argument(
        "--folds", type=int, default=3, help="models to fit (default: 3)"
    )
    command.add_argument("--seed", type=int, default=0, help="(default: 0)")


def add_score(command: argparse.ArgumentParser) -> None:
    """The options of `detect score`."""
    command.add_argument(
        "files", nargs="+", metavar="FILE", help="logs; may be gzipped; - is stdin"
    )
    command.add_argument(
        "--before",
        action="append",
        default=[],
        metavar="FILE",
        help="a log of the time before: sessions that began there and go on are judged "
        "whole, those that ended there are not judged; repeatable, the oldest first",
    )
    add_grouping(command, "default: as `detect fit` was told")
    command.add_argument(
        "--false-alarms", type=float, metavar="SHARE", help="(default: as fitted)"
    )
    command.add_argument(
        "--open-ends",
        action="store_true",
        help="sessions may go on after the log: don't judge where they end",
    )
    command.add_argument(
        "--json", action="store_true", help="sessions and alarms as lines of JSON"
    )
    command.add_argument(
        "--all", action="store_true", help="all causes of alarm, not a screen of them"
    )
    command.add_argument(
        "--fail-on-alarm",
        action="store_true",
        help="end with the exit status 3 if there was an alarm",
    )
    command.add_argument(
        "--follow", action="store_true", help="go on reading as the (one) file grows"
    )
    command.add_argument(
        "--idle",
        type=float,
        metavar="S",
        help="with --follow: a session that is silent for S seconds is over "
        "(default: what `detect fit` found in the log, else 600)",
    )
    command.add_argument(
        "--max-sessions",
        type=int,
        default=1000,
        metavar="N",
        help="with --follow: sessions that are kept in memory; when there are more, "
        "the one that has been silent longest is closed, its end not judged "
        "(default: 1000)",
    )
    command.add_argument(
        "--state",
        type=Path,
        metavar="FILE",
        help="with --follow: keep in FILE how far it has come, and go on from there",
    )


def add_accept(command: argparse.ArgumentParser) -> None:
    """The options of `detect accept`."""
    command.add_argument(
        "--event",
        action="append",
        default=[],
        metavar="LINE",
        help="an event as a report shows it, or a line; repeatable",
    )
    command.add_argument(
        "--from",
        dest="files",
        action="append",
        default=[],
        metavar="FILE",
        help="a log: all that is new in it is normal; repeatable",
    )


def add_update(command: argparse.ArgumentParser) -> None:
    """The options of `detect update`."""
    command.add_argument(
        "files", nargs="+", metavar="FILE", help="normal logs; may be gzipped"
    )
    command.add_argument(
        "--open-ends",
        action="store_true",
        help="sessions may go on after the log: learn no end of those, as for `fit`",
    )
