"""What the whole thing costs while nobody asks anything: CPU of all processes, and memory without the models."""

import time

import psutil

from benchmarks.report import Figure
from benchmarks.streams import running
from cluster.processes import ours

SETTLE_S = 15.0
WATCH_S = 60.0
TARGET_CPU = 3.0
TARGET_GIB = 1.2


def measure() -> list[Figure]:
    """CPU seconds of all of our processes over a minute, and their proportional memory (PSS)."""
    with running() as homeport:
        time.sleep(SETTLE_S)
        processes = {p.pid: (p.role, psutil.Process(p.pid)) for p in ours(homeport.paths)}
        before = {pid: _cpu_s(process) for pid, (_, process) in processes.items()}
        time.sleep(WATCH_S)
        spent: dict[str, float] = {}
        memory: dict[str, float] = {}
        for pid, (role, process) in processes.items():
            spent[role] = spent.get(role, 0.0) + (_cpu_s(process) - before[pid]) / WATCH_S * 100
            memory[role] = memory.get(role, 0.0) + process.memory_full_info().pss / 1024**3
    percent = sum(spent.values())
    gib = sum(size for role, size in memory.items() if role != "host")
    return [
        Figure(
            "idle cost, CPU",
            f"<= {TARGET_CPU:.0f} % of one core",
            f"{percent:.1f} % ({_shares(spent, '.1f')})",
            percent <= TARGET_CPU,
            f"CPU time of all processes over {WATCH_S:.0f} s, two hosts, `up --detach`",
        ),
        Figure(
            "idle cost, memory without the hosts",
            f"<= {TARGET_GIB} GiB",
            f"{gib:.2f} GiB ({_shares({k: v for k, v in memory.items() if k != 'host'}, '.2f')}); "
            f"two hosts with their models {memory.get('host', 0.0):.2f} GiB",
            gib <= TARGET_GIB,
            "proportional set size",
        ),
    ]


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _shares(parts: dict[str, float], form: str) -> str:
    return ", ".join(f"{role} {value:{form}}" for role, value in sorted(parts.items()))
