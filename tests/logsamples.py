"""Logs of eight formats, written by a seeded program, with faults where wanted.

Jobs of a few steps each run beside each other, as requests, connections and pods do.
`sample("klog", faults=FAULTS)` plants each fault once, and says in which lines.
"""

import json
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random

FAULTS = ("new", "status", "exit", "missing", "swapped", "burst", "silence")
WITH_SESSIONS = ("postgresql", "klog", "cloudtrail", "journald", "logback", "rfc5424")
START = datetime(2026, 11, 25, 3, 12, tzinfo=UTC)
MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()

# Of each format: what starts how often, and its steps: "source level text".
JOBS = {
    "nginx": {
        20: ["access - GET /{page} HTTP/1.1"],
        3: ["access - POST /api/orders HTTP/1.1"],
        1: [
            "error notice signal 17 (SIGCHLD) received from {pid}",
            "error notice worker process {pid} exited with code {exit}",
            "error notice start worker process {pid2}",
        ],
    },
    "postgresql": {
        4: [
            "- LOG connection received: host={ip} port={port}",
            "- LOG connection authorized: user=app database=shop",
            "- LOG duration: {ms}.{port} ms  statement: SELECT id, total\n"
            "\t  FROM orders\n\t WHERE id = {number}",
            "- LOG duration: 0.{port} ms  execute <unnamed>: UPDATE orders "
            "SET seen = 1",
            "- LOG disconnection: session time: 0:00:0{digit}.{ms} user=app "
            "database=shop host={ip} port={port}",
        ],
        1: [
            "- LOG starting maintenance worker for database shop",
            '- LOG automatic vacuum of table "shop.public.orders": '
            "index scans: {digit}",
            '- LOG background worker "maintenance" (PID {pid}) '
            "exited with exit code {exit}",
        ],
    },
    "klog": {
        1: [
            'kubelet.go:2410 I "SyncLoop ADD" source="api" pods=["default/{pod}"]',
            'reconciler.go:224 I "MountVolume started" volumeName="token" '
            'pod="default/{pod}"',
            'kuberuntime.go:553 I "Container started" pod="default/{pod}" '
            'containerID="containerd://{hex}{hex}"',
            'prober.go:118 I "Probe answered" probeType="Readiness" '
            'pod="default/{pod}" status={status} took="{ms}.{port}ms"',
            'generic.go:334 I "Container exited" pod="default/{pod}" exitCode={exit}',
            'kubelet.go:2426 I "SyncLoop DELETE" source="api" pods=["default/{pod}"]',
        ]
    },
    "haproxy": {
        20: ["access - GET /{page} HTTP/1.1"],
        3: ["access - POST /api/orders HTTP/1.1"],
        1: [
            "worker - New worker ({pid}) forked",
            "worker - Loading success.",
            "worker - Former worker ({pid2}) exited with code {exit} (Exit)",
        ],
    },
    "cloudtrail": {
        1: [
            'sts AssumeRole {{"roleArn": "arn:aws:iam::123456789012:role/batch"}}',
            'ecs RunTask {{"cluster": "batch", "count": 1, "launchType": "FARGATE"}}',
            'ecs SubmitContainerStateChange {{"cluster": "batch", "status": "RUNNING", '
            '"runtimeId": "{hex}"}}',
            'lambda Invoke {{"functionName": "report", "statusCode": {status}}}',
            'ecs SubmitContainerStateChange {{"cluster": "batch", "status": "STOPPED", '
            '"runtimeId": "{hex}", "exitCode": {exit}}}',
            'ecs StopTask {{"cluster": "batch", "reason": "done"}}',
        ]
    },
    "journald": {
        1: [
            "systemd 6 Starting {unit}.service - Nightly {unit}...",
            "{unit} 6 reading {number} files below /srv/{unit}",
            "{unit} 6 upload of {number} bytes answered {status} after {ms} ms",
            "{unit} 6 child {pid2} exited with code {exit}",
            "systemd 6 {unit}.service: Deactivated successfully.",
            "systemd 6 {unit}.service: Consumed {digit}.{ms}s CPU time.",
        ]
    },
    "logback": {
        5: [
            "c.e.shop.Orders INFO order {number} of customer {user} received",
            "c.e.shop.Stock DEBUG {digit} articles reserved for order {number}",
            "c.e.shop.Payments INFO bank answered {status} after {ms} ms",
            "c.e.shop.Orders INFO order {number} sent to {user}",
        ],
        1: [
            "c.e.jobs.Runner INFO job {number} started by {user}",
            "c.e.jobs.Mailer WARN mail server is slow, trying again\n"
            "java.net.SocketTimeoutException: Read timed out\n"
            "\tat c.e.jobs.Mailer.send(Mailer.java:88)\n"
            "\tat c.e.jobs.Runner.run(Runner.java:41)\n\t... 12 more",
            "c.e.jobs.Runner INFO job {number} finished with exit code {exit}",
        ],
    },
    "rfc5424": {
        1: [
            "gateway 6 request for /{page} from {ip} port {port}",
            "auth 6 user {user} let in by token {hex}",
            "payments 6 bank answered {status} after {ms} ms",
            "payments 5 receipt {number} printed by process {pid2}, exit code {exit}",
            "gateway 6 request over: {number} bytes sent",
        ]
    },
}
NEW = {  # a line that no normal log has
    "nginx": "error crit accept4() failed (24: Too many open files)",
    "postgresql": "- PANIC could not write to file pg_wal: No space left on device",
    "klog": 'eviction.go:341 W "Eviction manager: reclaims" resource="memory"',
    "haproxy": "worker - Server app/app1 is DOWN, reason: Layer4 timeout",
    "cloudtrail": 'iam CreateAccessKey {{"userName": "root"}}',
    "journald": "kernel 3 Out of memory: Killed process {pid2} (python3)",
    "logback": "c.e.shop.Stock ERROR java.lang.OutOfMemoryError: Java heap space",
    "rfc5424": "auth 1 signature of token is wrong, somebody tries keys",
}
PAGES = [f"{a}/{b}" for a in ("shop", "help", "img") for b in ("a", "b", "c.png")]
USERS = "ann bob cho dan eve fay gil hal ida joe kim lea max nia ole pia".split()


@dataclass
class Job:
    """What one job's lines have in common."""

    random: Random
    values: dict = field(init=False)

    def __post_init__(self):
        pick, hexes = self.random.randrange, f"{self.random.getrandbits(128):032x}"
        self.values = {
            "job": hexes[:8],
            "hex": hexes,
            "pid": pick(2000, 32_000),
            "pid2": pick(2000, 32_000),
            "ip": f"10.0.{pick(256)}.{pick(256)}",
            "port": pick(32_768, 61_000),
            "ms": pick(100, 1000),
            "digit": pick(1, 10),
            "number": pick(1000, 10**6),
            "page": self.random.choice(PAGES),
            "user": self.random.choice(USERS),
            "pod": f"web-{hexes[8:16]}-{hexes[16:21]}",
            "unit": self.random.choice(["backup", "report", "rotate"]),
            "uuid": str(uuid.UUID(int=self.random.getrandbits(128), version=4)),
            "status": self.random.choices([200, 304, 404], [30, 3, 1])[0],
            "exit": 0,
        }


@dataclass
class Sample:
    """Lines, and where each fault is: {fault: numbers of its lines, from 1}."""

    lines: list[str]
    planted: dict[str, list[int]]


def sample(name: str, jobs: int = 150, seed: int = 0, faults=(), start=START) -> Sample:
    """The log of so many jobs, with each of `faults` once, in this order of time.

    A silence is planted in the first line after it, a missing line in the job's next.
    """
    random = Random(f"{name} {seed}")
    kinds = [steps for often, steps in JOBS[name].items() for _ in range(often)]
    long = max(JOBS[name].values(), key=len)
    places = {
        fault: jobs * (i + 1) // (len(faults) + 1) for i, fault in enumerate(faults)
    }
    told, clock = [], 0.0  # (seconds, step, job, fault)
    for number in range(jobs):
        clock += random.uniform(1, 5)
        fault = next(
            (fault for fault, place in places.items() if place == number), None
        )
        steps = list(random.choice(kinds))
        if fault in ("missing", "swapped"):
            steps = list(long)
        elif fault in ("status", "exit"):
            steps = list(with_place(name, fault))
        faulty, job = {}, Job(random)
        if fault in ("status", "exit"):
            # Web servers and PostgreSQL write the status in every line of a job.
            bad = [i for i, s in enumerate(steps) if f"{{{fault}}}" in s] or [
                *range(len(steps))
            ]
            faulty = dict.fromkeys(bad, fault)
            job.values[fault] = {"status": 500, "exit": 137}[fault]
        if fault == "missing":
            del steps[1]
            faulty = {min(1, len(steps) - 1): fault}
        elif fault == "swapped" and len(steps) > 2:
            steps[1:3] = steps[2:0:-1]
            faulty = {1: fault, 2: fault}
        if fault == "silence":
            clock += 600
        moment = clock
        for i, step in enumerate(steps):
            mark = fault if fault == "silence" and i == 0 else faulty.get(i)
            told.append((moment, step, job, mark))
            moment += random.uniform(0.2, 1.5)
        if fault == "new":
            told.append((clock, NEW[name], Job(random), fault))
        if fault == "burst":
            moment = clock
            for _ in range(60):
                moment += 0.02
                told.append((moment, steps[0], Job(random), fault))
    lines: list[str] = []
    planted: dict[str, list[int]] = {fault: [] for fault in faults}
    for seconds, step, job, fault in sorted(told, key=lambda x: x[0]):
        if fault:
            planted[fault].append(len(lines) + 1)
        moment = start + timedelta(seconds=seconds)
        lines += rendered(name, moment, step, job.values).split("\n")
    return Sample(lines, planted)


def with_place(name: str, fault: str) -> list[str]:
    """Steps of a job in which a status, or an exit code, stands."""
    found = [s for s in JOBS[name].values() if f"{{{fault}}}" in "".join(s)]
    return (found or list(JOBS[name].values()))[0]


def rendered(name: str, moment: datetime, step: str, values: dict) -> str:
    """A step as the format writes it."""
    source, level, text = step.format(**values).split(" ", 2)
    v = values | {"source": source, "level": level, "text": text}
    iso, micro = moment.isoformat(" ", "seconds")[:19], f"{moment.microsecond:06d}"
    web = f"{moment.day:02d}/{MONTHS[moment.month - 1]}/{moment:%Y:%H:%M:%S}"
    bsd = f"{MONTHS[moment.month - 1]} {moment.day:2d} {moment:%H:%M:%S}"
    if name == "nginx" and source == "error":
        return f"{moment:%Y/%m/%d %H:%M:%S} [{level}] 77#77: {text}"
    if name == "nginx":
        size, browser = v["number"] % 5000, v["digit"]
        return (
            f'{v["ip"]} - - [{web} +0000] "{text}" {v["status"]} {size} "-" '
            f'"Mozilla/5.0 (X11; Linux x86_64; rv:13{browser}.0)"'
        )
    if name == "postgresql":
        state = f"{'57014' if v['status'] == 500 else '00000'} {level}:  {text}"
        return f"{iso}.{micro[:3]} UTC [{v['pid']}] app@shop {state}"
    if name == "klog":
        return f"{level}{moment:%m%d %H:%M:%S}.{micro}    1187 {source}] {text}"
    if name == "haproxy" and source == "worker":
        return f"{bsd} lb1 haproxy[2201]: {text}"
    if name == "haproxy":
        return (
            f"{bsd} lb1 haproxy[2201]: {v['ip']}:{v['port']} [{web}.{micro[:3]}] web "
            f"app/app{1 + v['digit'] % 2} 0/0/{v['digit']}/{v['ms']}/{v['ms'] + 3} "
            f"{v['status']} {v['number'] % 5000} - - ---- {v['digit']}/4/0/0/0 0/0 "
            f'"{text}"'
        )
    if name == "cloudtrail":
        user = {"type": "AssumedRole", "accessKeyId": f"ASIA{v['job'].upper()}"}
        event = {
            "eventVersion": "1.08",
            "userIdentity": user | {"arn": f"arn:aws:sts::123456789012:{v['user']}"},
            "eventTime": f"{moment:%Y-%m-%dT%H:%M:%SZ}",
            "eventSource": f"{source}.amazonaws.com",
            "eventName": level,
            "awsRegion": "eu-west-1",
            "sourceIPAddress": v["ip"],
            "requestParameters": json.loads(text),
            "eventID": f"{micro}-{v['uuid']}",
            "eventType": "AwsApiCall",
        }
        return json.dumps(event)
    if name == "journald":
        event = {
            "__REALTIME_TIMESTAMP": str(int(moment.timestamp() * 1e6)),
            "_HOSTNAME": "gate",
            "PRIORITY": level,
            "SYSLOG_IDENTIFIER": source,
            "_PID": str(1 if source in ("systemd", "kernel") else v["pid"]),
            "INVOCATION_ID": v["hex"],
            "MESSAGE": text,
        }
        return json.dumps(event)
    if name == "logback":
        where = f"[exec-{v['digit']}] {level:5} {source} - [{v['job']}]"
        return f"{iso},{micro[:3]} {where} {text}"
    stamp = f"{moment:%Y-%m-%dT%H:%M:%S}.{micro[:3]}Z"
    where = f"<{16 * 8 + int(level)}>1 {stamp} host1 {source} {v['pid']} ID47"
    return f'{where} [req@32473 id="{v["job"]}"] {text}'
