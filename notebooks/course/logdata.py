"""Logs to learn from: cached or downloaded, or else made like them."""

import csv
import gzip
import io
import random
import re
import zipfile
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

from tinygpt_lib.basics.corpus import CorpusError, data_folder, download, fetch
from tinygpt_lib.basics.extras import analysis

RAW = "https://raw.githubusercontent.com"
LOGLEAD = f"{RAW}/EvoTestOps/LogLead/b40a56e562ddd3176b82b608368dcf51aa48b8a1"
EVENTS = "hdfs/loglead_hdfs_events_2percent.parquet"
LABELS = "hdfs/loglead_hdfs_seqs_2percent.parquet"
DEEPLOG = f"{RAW}/wuyifan18/DeepLog/f3ba44dd4008a7d4606a1d3b324d4eb7c73ff5f9/data"
TRAIN, ABNORMAL = "hdfs/hdfs_train", "hdfs/hdfs_test_abnormal"
NORMAL, SAMPLE = "hdfs/hdfs_test_normal", "hdfs/hdfs_normal_sample.csv.gz"
ADFA = "adfa/ADFA-LD.zip"
ALL_NORMAL = 553_366  # sessions in NORMAL, of which SAMPLE holds a random part
SOURCES = {  # name in the cache: (checksum, where it is downloaded from)
    EVENTS: (
        "187ab43302502048ad28a072a3da307f9e625b494efff9a906d70f76f7c4090c",
        f"{LOGLEAD}/demo/samples/hdfs_events_2percent.parquet",
    ),
    LABELS: (
        "f492e6bdfacd6b1ee13b009280b6e135a0f052db00e2929e7d809bc2d6a47cb8",
        f"{LOGLEAD}/demo/samples/hdfs_seqs_2percent.parquet",
    ),
    TRAIN: (
        "55cb65a39728b0d21ab95d0bb44a586e79e27993d7a799e2f42e8a5d7fb20d49",
        f"{DEEPLOG}/hdfs_train",
    ),
    ABNORMAL: (
        "a1e6c2706bd4df4b068f4b5a06dc1425bfd8d90e68905998d51825dedc563dd0",
        f"{DEEPLOG}/hdfs_test_abnormal",
    ),
    NORMAL: (
        "d2a9825a9438843098898317daabf4f049f89f22",
        f"{DEEPLOG}/hdfs_test_normal",
    ),
    ADFA: (
        "58d625470749344843a7f730b0875ce9b8769f6fa48f18dc4a92bd07c342ead5",
        f"{RAW}/verazuo/a-labelled-version-of-the-ADFA-LD-dataset/"
        "68bedf561f7b7abe9954a3ddc22dbf24c0d42372/ADFA-LD.zip",
    ),
}
SAMPLE_SHA256 = "aa13714a555d843c8ae1af53d1aa40c368bf337a394f5395c8d9e294736b2046"
ORIGIN = (
    "HDFS: 222,579 lines of a cluster of 200 machines, November 2008, a random 2 % of "
    "its blocks (Xu et al., 2009; from https://github.com/logpai/loghub by way of "
    "LogLead)"
)
DEEPLOG_ORIGIN = (
    "HDFS in the coding of DeepLog (Du et al., 2017; logs of Xu et al., 2009, from "
    "https://github.com/logpai/loghub)"
)
ADFA_ORIGIN = (
    "ADFA-LD: system calls of a Linux server, and of attacks on it (Creech and Hu, "
    "2013)"
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


def bytes_of(name: str) -> bytes:
    """A data file, from the cache or its home."""
    checksum, url = SOURCES[name]
    return fetch(name, checksum, {f"download of {url}": partial(download, url)})


def table_of(name: str):
    """A data file in the parquet format, as pyarrow reads it."""
    data = bytes_of(name)
    with analysis():
        from pyarrow import parquet  # here, because few need it
    return parquet.read_table(io.BytesIO(data))


# --- Sessions to learn from, and sessions to judge ---


@dataclass
class Trial:
    """Normal sessions to fit a detector on, and labelled ones to try it on."""

    train: list[list[str]]
    test: list[list[str]]
    kinds: list[str]  # of each test session: "" is normal, else what is wrong
    origin: str
    weight: float = 1.0  # normal sessions that each normal one of the test stands for
    # Seconds since 1970 of the events, where they are known.
    train_times: list[list[float]] = field(default_factory=list)
    test_times: list[list[float]] = field(default_factory=list)
    # Of each test session, which run of an attack it is of, where that is known.
    groups: list[str] = field(default_factory=list)

    @property
    def anomalous(self) -> list[bool]:
        """Of each test session, whether something is wrong with it."""
        return [bool(kind) for kind in self.kinds]


def load_deeplog() -> Trial:
    """DeepLog's split of HDFS: 4,855 sessions to learn from, 16,838 anomalous ones.

    Of 553,366 normal ones for the test, a sample takes the place where the cache holds
    one instead. CorpusError where the files can't be had.
    """
    train, abnormal = (
        [line.split() for line in bytes_of(name).decode().splitlines()]
        for name in (TRAIN, ABNORMAL)
    )
    cached = [name for name in (NORMAL, SAMPLE) if (data_folder() / name).exists()]
    if cached == [SAMPLE]:
        text = gzip.decompress(fetch(SAMPLE, SAMPLE_SHA256, {})).decode()
        normal = [row["sequence"].split() for row in csv.DictReader(text.splitlines())]
    else:
        normal = [line.split() for line in bytes_of(NORMAL).decode().splitlines()]
    kinds = [""] * len(normal) + ["anomalous"] * len(abnormal)
    weight = ALL_NORMAL / len(normal)
    return Trial(train, normal + abnormal, kinds, DEEPLOG_ORIGIN, weight)


def load_adfa() -> Trial:
    """ADFA-LD: 833 traces to learn from, 4,372 normal ones, 746 of six attacks.

    Events are numbers of system calls, `kinds` the attacks, `groups` their sixty runs.
    CorpusError as above.
    """
    train, test, kinds, groups = [], [], [], []
    with zipfile.ZipFile(io.BytesIO(bytes_of(ADFA))) as archive:
        for name in sorted(archive.namelist()):
            _, part, *rest = f"{name}//".split("/")
            attack = part == "Attack_Data_Master"
            normal = part in ("Training_Data_Master", "Validation_Data_Master")
            trace = archive.read(name).decode().split() if attack or normal else []
            if not trace:
                continue
            if part == "Training_Data_Master":
                train.append(trace)
            else:
                test.append(trace)
                groups.append(rest[0] if attack else "")
                kinds.append(groups[-1].rsplit("_", 1)[0])
    return Trial(train, test, kinds, ADFA_ORIGIN, groups=groups)


CUT = datetime(2008, 11, 10, 18, tzinfo=UTC).timestamp()  # of the two days of HDFS


def split_by_time(log: Log, sessions: Sequence, cut: float = CUT) -> Trial:
    """What normal sessions told before the cut, and all sessions that began after it.

    `sessions` are those of the log's lines, as `group_lines` finds them. To learn from
    there is only what stood in the log at the cut: of sessions that went on, their
    first part. The test is in the order in which they began.
    """
    times = {s.id: [log.lines[n - 1].seconds for n in s.line_numbers] for s in sessions}
    ordered = sorted(sessions, key=lambda session: times[session.id][0])
    early = [s for s in ordered if times[s.id][0] < cut and not log.anomalous[s.id]]
    late = [s for s in ordered if times[s.id][0] >= cut]
    told = [bisect_left(times[s.id], cut) for s in early]  # events before the cut
    return Trial(
        [s.events[:n] for s, n in zip(early, told, strict=True)],
        [s.events for s in late],
        ["anomalous" if log.anomalous[s.id] else "" for s in late],
        log.origin,
        train_times=[times[s.id][:n] for s, n in zip(early, told, strict=True)],
        test_times=[times[s.id] for s in late],
    )


def with_fault(
    session: Sequence[str], kind: str, events: Sequence[str], rng: random.Random
) -> tuple[list[str], set[int]]:
    """A session with an event of `events` inserted, or one deleted or swapped.

    And the places where it is wrong, more than one where that can't be told. `kind` is
    "insert", "delete" or "swap"; the session has to hold two different events.
    """
    wrong, place = list(session), rng.randrange(len(session))
    if kind == "swap":
        unlike = [i for i in range(len(wrong) - 1) if wrong[i] != wrong[i + 1]]
        place = rng.choice(unlike)
        wrong[place : place + 2] = wrong[place + 1], wrong[place]
        return wrong, {place, place + 1}
    if kind == "insert":
        wrong.insert(place, rng.choice(events))
    first = last = place
    while first > 0 and wrong[first - 1] == wrong[place]:
        first -= 1
    while last + 1 < len(wrong) and wrong[last + 1] == wrong[place]:
        last += 1
    if kind == "insert":
        return wrong, set(range(first, last + 1))
    del wrong[place]
    return wrong, {last}  # where the last of the row should be


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
    reads = rng.choice((0, 0, 0, 1, 2, 5))
    for _ in range(reads):
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
    job = job_of(block, copies, reads)
    return [
        (pause, part, text.replace("/rand/", f"/{job}/"))
        for pause, part, text in events
    ]


def job_of(block: str, copies: int, reads: int) -> str:
    """The job that wrote a block: what is read often, or kept in other numbers."""
    likely = 1 if reads > 1 else 2 if copies != 3 else 0
    weights = [4 if i == likely else 1 for i in range(3)]
    # By its own dice: those of the life itself must not fall otherwise.
    return random.Random(block).choices(("rand", "randtxt", "sortrand"), weights)[0]


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
