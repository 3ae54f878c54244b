"""Logs to learn from: HDFS lines, cached or downloaded, or else made like them."""

import io
import random
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

from tinygpt_lib._corpus import CorpusError, download, fetch

RAW = "https://raw.githubusercontent.com"
LOGLEAD = f"{RAW}/EvoTestOps/LogLead/b40a56e562ddd3176b82b608368dcf51aa48b8a1"
EVENTS = "hdfs/loglead_hdfs_events_2percent.parquet"
LABELS = "hdfs/loglead_hdfs_seqs_2percent.parquet"
SOURCES = {  # name in the cache: (sha256, where it is downloaded from)
    EVENTS: (
        "187ab43302502048ad28a072a3da307f9e625b494efff9a906d70f76f7c4090c",
        f"{LOGLEAD}/demo/samples/hdfs_events_2percent.parquet",
    ),
    LABELS: (
        "f492e6bdfacd6b1ee13b009280b6e135a0f052db00e2929e7d809bc2d6a47cb8",
        f"{LOGLEAD}/demo/samples/hdfs_seqs_2percent.parquet",
    ),
}
ORIGIN = (
    "HDFS: 222,579 lines of a cluster of 200 machines, November 2008, a random 2 % of "
    "its blocks (Xu et al., 2009; from https://github.com/logpai/loghub by way of "
    "LogLead)"
)
SYNTHETIC = (
    "SYNTHETIC: lines made by a program like those of HDFS, because the real ones "
    "could not be had"
)


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of a log, taken apart as far as its format says how."""

    seconds: float  # since 1970
    session: str  # whose line it is: a block's name
    component: str  # the part of the program that wrote it
    text: str


@dataclass
class Log:
    """Lines in order of time, and what is known of their sessions."""

    lines: list[LogLine]
    anomalous: dict[str, bool]  # session: whether it was labelled so
    origin: str
    faults: dict[str, tuple[str, int]] = field(default_factory=dict)

    @property
    def synthetic(self) -> bool:
        """Whether a program of ours made it; then `faults` says what was put where."""
        return self.origin.startswith(SYNTHETIC)


def load_log() -> Log:
    """The lines of HDFS, or synthetic ones where those can't be had: see `origin`."""
    try:
        return load_hdfs()
    except CorpusError as error:
        log = synthetic_log()
        log.origin = f"{SYNTHETIC} ({error})"
        return log


def load_hdfs() -> Log:
    """222,579 lines of HDFS with labels for their 11,501 sessions, sha256-checked.

    Read from the folder hdfs in $TINYGPT_DATA, else in the user's cache folder;
    downloaded into it first, where absent. CorpusError as with `load_shakespeare`.
    """
    events, labels = table_of(EVENTS), table_of(LABELS)
    times = events["m_timestamp"].cast("int64").to_pylist()  # microseconds
    lines = [
        LogLine(time / 1e6, *parts)
        for time, *parts in zip(
            times,
            *(events[name].to_pylist() for name in ("seq_id", "component")),
            events["m_message"].to_pylist(),
            strict=True,
        )
    ]
    lines.sort(key=lambda line: line.seconds)  # stable: ties stay as they were
    labelled = zip(labels["seq_id"], labels["anomaly"], strict=True)
    return Log(lines, {s.as_py(): a.as_py() for s, a in labelled}, ORIGIN)


def table_of(name: str):
    """A data file in the parquet format, as pyarrow reads it."""
    sha256, url = SOURCES[name]
    data = fetch(name, sha256, {f"download of {url}": partial(download, url)})
    try:
        from pyarrow import parquet  # here, because few need it
    except ImportError as error:
        raise CorpusError(
            f"{name} is in the parquet format: `pip install pyarrow` reads it"
        ) from error
    return parquet.read_table(io.BytesIO(data))


# --- Lines of our own ---

FAULTS = ("truncated", "exception", "reordered", "repeated")


def synthetic_log(sessions: int = 6000, share: float = 0.03, seed: int = 0) -> Log:
    """Life cycles of blocks as HDFS tells them, a `share` of them with a known fault.

    A block is allocated, received by its machines (two to four of them), stored, read
    now and then, perhaps deleted by as many machines as have it. `faults` gives, for
    a faulty session, what was done to it and the place of the first wrong event.
    """
    rng = random.Random(seed)
    first = datetime(2008, 11, 9, 20, 35, tzinfo=UTC).timestamp()
    lines, anomalous, faults = [], {}, {}
    for _ in range(sessions):
        session = f"blk_{rng.randrange(-(2**63), 2**63)}"
        events = life_of(rng, session)
        anomalous[session] = rng.random() < share
        if anomalous[session]:
            events, *fault = broken(rng, session, events)
            faults[session] = tuple(fault)
        now = first + rng.random() * 36 * 3600
        for pause, component, text in events:
            now += pause
            lines.append(LogLine(now, session, component, text))
    lines.sort(key=lambda line: line.seconds)
    return Log(lines, anomalous, SYNTHETIC, faults)


Event = tuple[float, str, str]  # seconds since the one before, component, text


def life_of(rng: random.Random, block: str) -> list[Event]:
    """What the log says of a block to which nothing bad happens."""
    copies = rng.choices((2, 3, 4), (1, 8, 1))[0]
    machines = [address(rng) for _ in range(copies)]
    size = rng.choice((67_108_864, rng.randrange(1000, 67_108_864)))
    receiving = [
        entry(rng, "DataXceiver", f"Receiving block {block} src: {a} dest: {b}")
        for a, b in zip([address(rng), *machines], machines, strict=False)
    ]
    path = f"/user/root/rand/_temporary/part-{rng.randrange(10_000):05}"
    allocated = f"BLOCK* NameSystem.allocateBlock: {path}. {block}"
    receiving.insert(rng.randrange(copies), entry(rng, "FSNamesystem", allocated))
    ends = []
    for i, machine in enumerate(machines):
        done = f"Received block {block} of size {size} from {machine}"
        over = f"PacketResponder {i} for block {block} terminating"
        ends += [entry(rng, "PacketResponder", text) for text in (done, over)]
    stored = [
        entry(
            rng,
            "FSNamesystem",
            f"BLOCK* NameSystem.addStoredBlock: blockMap updated: {machine} is added "
            f"to {block} size {size}",
        )
        for machine in machines
    ]
    # The name node hears of the copies before, among or after the last packets.
    place = rng.choice((0, 2, len(ends)))
    events = receiving + ends[:place] + stored + ends[place:]
    for _ in range(rng.choice((0, 0, 0, 1, 2, 5))):
        a, b = rng.choice(machines), address(rng)
        events.append(entry(rng, "DataXceiver", f"{a} Served block {block} to {b}"))
        if rng.random() < 0.3:
            text = f"{a}:Got exception while serving {block} to {b}:"
            events.append(entry(rng, "DataXceiver", text))
    if rng.random() < 0.2:
        text = f"Verification succeeded for {block}"
        events.append(entry(rng, "DataBlockScanner", text))
    if rng.random() < 0.6:
        events += deletion(rng, block, machines)
    return events


def deletion(rng: random.Random, block: str, machines: list[str]) -> list[Event]:
    """The name node tells every machine to delete its copy, then each does."""
    told = [
        entry(
            rng,
            "FSNamesystem",
            f"BLOCK* NameSystem.delete: {block} is added to invalidSet of {machine}",
        )
        for machine in machines
    ]
    path = "/mnt/hadoop/dfs/data/current"
    done = [
        entry(rng, "FSDataset", f"Deleting block {block} file {path}/{block}")
        for _ in machines
    ]
    pause, *rest = told[0]
    return [(pause + rng.random() * 3600, *rest), *told[1:], *done]


def broken(
    rng: random.Random, block: str, events: list[Event]
) -> tuple[list[Event], str, int]:
    """The events with a fault in them, its kind, and the first place that is wrong."""
    kind = rng.choice(FAULTS)
    if kind == "truncated":  # before the last copy is in place
        place = rng.randrange(2, 8)
        return events[:place], kind, place
    place = rng.randrange(5, 9)  # all machines were told to receive it
    if kind == "exception":
        why = rng.choice(("Could not read from stream", "Connection reset by peer"))
        text = f"writeBlock {block} received exception java.io.IOException: {why}"
        new = entry(rng, "DataXceiver", text)
        return [*events[:place], new, *events[place:]], kind, place
    if kind == "repeated":  # once more what happened two events ago
        new = [*events[:place], events[place - 2], *events[place:]]
        # If the same was due there, the first wrong event is a later one.
        while place < len(events) and kind_of(new[place]) == kind_of(events[place]):
            place += 1
        return new, kind, place
    moved = [events[0], events[place], *events[1:place], *events[place + 1 :]]
    return moved, kind, 1


def kind_of(event: Event) -> str:
    """An event's text without what varies in it."""
    return re.sub(r"\S*\d\S*", "", event[2])


def entry(rng: random.Random, component: str, text: str) -> Event:
    """An event a moment after the one before it."""
    return rng.random() * 2, f"dfs.{component}:", text


def address(rng: random.Random) -> str:
    """A machine of the cluster, and a port on it."""
    return f"/10.250.{rng.randrange(10, 20)}.{rng.randrange(1, 255)}:50010"
