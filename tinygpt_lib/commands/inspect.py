"""The command `detect inspect`: what a log is taken for, before anything is fitted."""

from collections import Counter
from datetime import UTC, datetime
from itertools import islice
from statistics import median

from tinygpt_lib.basics.logformats import Reader
from tinygpt_lib.runs.reading import LogReading, event_of

MINUTES = 1.2e6  # lines that a fit reads in a minute, of two cores
SHOWN, RARE = 20, 10  # kinds of lines


def report(lines, reading: LogReading) -> list[str]:
    """What `detect inspect` prints of a log, a line each."""
    reader, events, shown = Reader(reading.form), Counter(), []
    for line in lines:
        record = reader(line)
        if record.goes_on:
            continue
        event = event_of(record, reading.kinds)
        events[event] += 1
        if len(shown) < 3:
            shown.append(record)
    found = reading.sessions(lines)
    lengths = [len(session.events) for session in found]
    told = [str(reading), "", "Three lines, taken apart:"]
    for record in shown:
        when = "no time"
        if record.time is not None:
            when = f"{datetime.fromtimestamp(record.time, UTC):%Y-%m-%d %H:%M:%S}"
        told += [
            f"  {record.text[:200]}",
            f"    time {when}, level {record.level or '-'}",
        ]
        told[-1] += f", source {record.source or '-'}"
        told.append(f"    message {record.message[:160]}")
    told += ["", f"Sessions: {len(lengths):,}"]
    if lengths:
        told[-1] += (
            f", of {min(lengths):,} to {max(lengths):,} lines, {median(lengths):g} "
        )
        told[-1] += "in the middle"
    if found.alone:
        told.append(
            f"  {found.alone:,} lines have no id; they are in windows of their own"
        )
    common = events.most_common()
    told += ["", f"Kinds of lines: {len(events):,}; the most frequent:"]
    told += [f"{n:9,}  {event[:150]}" for event, n in common[:SHOWN]]
    if len(common) > SHOWN:
        told.append("the rarest:")
        rare = common[SHOWN:][-RARE:]
        told += [f"{n:9,}  {event[:150]}" for event, n in rare]
    counts = reader.counts
    told += [
        "",
        f"Read: {counts['read']:,} lines; {counts['joined']:,} more belong to the",
    ]
    told[-1] += f" line before them; not read: {counts['not read']:,}"
    told += [f"  {line[:160]}" for line in islice(reader.unread, 3)]
    once = sum(n for n in events.values() if n == 1)
    told += ["", *advice(counts.total(), len(lengths), len(events), once)]
    return told


def advice(lines: int, sessions: int, kinds: int, once: int) -> list[str]:
    """What a fit would need, and what it could promise."""
    told = []
    if once > events_allowed(lines):
        told.append(
            f"{once:,} kinds were seen once: names or numbers may vary that were not "
            "found; see the rarest, and give a --mask for them"
        )
    if sessions < 999:
        rate = min(1.0, 2 / (sessions + 1))
        told.append(
            f"So few sessions can promise a false-alarm rate of {rate:.2g} at best; "
            "0.002 takes 999: give a longer log, or shorter windows (--seconds)"
        )
    minutes = 0.5 + lines / MINUTES
    memory = 350 + lines * 250 / 1e6
    told.append(
        f"A fit would take about {minutes:.1f} minutes and {memory:,.0f} MB, and learn "
        f"from {sessions:,} sessions of {kinds:,} kinds of lines"
    )
    return told


def events_allowed(lines: int) -> float:
    """Kinds that may be seen once before that is worth a word."""
    return max(20, 0.05 * lines)
