"""What is to be said of one machine, from what was found on it (cluster/doctor_probe.py): each finding with the command
that mends it. Pure.

What lies between machines is cluster/doctor_pairs.py's matter; a host's way out, cluster/egress.py's.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["ok", "warn", "fail"]
Facts = Mapping[str, Any]

GIB = 2**30
PYTHON_LEAST = (3, 11)
SET_UP_BYTES = 3 * GIB // 2
"""Room that `.venv` takes while it is made."""
STATE_LEAST = 64 * 2**20
"""With less homeport does not start."""
STATE_BYTES = 10 * GIB
"""Less than a replica may park by default, and its logs."""
MEMORY_LEAST, MEMORY_AVAILABLE = GIB, GIB // 2
SWAP_FROM = 8 * GIB
"""With more memory a machine does without."""
SWAP = (
    "sudo fallocate -l 4G /swapfile && sudo chmod 600 /swapfile && sudo mkswap /swapfile && "
    "sudo swapon /swapfile"
)
NVIDIA = "0x10de"
SMI_LOST, SMI_TOO_LATE = 15, 124
"""What nvidia-smi returns for a GPU that is lost, as its manual says; what the probe says where it never returned."""
NOT_ASLEEP = "sudo systemctl mask sleep.target suspend.target hibernate.target hybrid-sleep.target"
OR_WAKE = "(or let it: its sessions wait, and a turn of theirs can wake it)"
SMOOTH = ("performance", "schedutil")
OWN_MIND = ("intel_pstate", "amd-pstate-epp", "amd_pstate_epp")
"""Drivers under which `powersave` goes up with the load."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about one machine. `remedy`: what to run or to change; "" where nothing is to be mended."""

    severity: Severity
    machine: str
    topic: str
    what: str
    remedy: str = ""

    def to_json(self) -> dict[str, str]:
        return {
            "severity": self.severity,
            "machine": self.machine,
            "topic": self.topic,
            "what": self.what,
            "remedy": self.remedy,
        }


@dataclass(frozen=True, slots=True)
class Seen:
    """One machine, as far as it was seen. Without facts `away` is what was told instead."""

    name: str
    address: str
    facts: Facts | None = None
    away: str = ""


def findings(seen: Seen, is_listed: bool) -> list[Finding]:
    """All that one machine's facts say. `is_listed`: it is one of several, which Ray sets up over SSH."""
    if seen.facts is None:
        return [_away(seen)]
    checks: list[Callable[[Facts], Iterator[Said]]] = [
        _system,
        _python,
        _compiler,
        _disk,
        _memory,
        _gpu,
        _governor,
        _sleep,
        _locks,
        _namespaces,
    ]
    if is_listed:
        checks += [_rsync, _linger]
    silent = [Finding("fail", seen.name, "ssh", _SILENT.format(seen.away), _AGAIN)] if seen.away else []
    return silent + [
        Finding(severity, seen.name, check.__name__.strip("_"), what, remedy)
        for check in checks
        for severity, what, remedy in check(seen.facts)
    ]


def worst(found: list[Finding]) -> Severity:
    """The gravest of them."""
    grades = {finding.severity for finding in found}
    return "fail" if "fail" in grades else "warn" if "warn" in grades else "ok"


Said = tuple[Severity, str, str]

_WINDOWS = (
    "this is Windows. homeport needs what it does not have: locks that outlive a program's start, process groups, "
    "CPU sets of child processes; and Ray makes no cluster there"
)
_WSL = "as administrator: wsl --install -d Debian; then set up SSH and homeport inside it (WSL2, mirrored networking)"
_SILENT = "fell silent while it was looked at ({})"
_AGAIN = "look at its load and its network, then run `homeport doctor` again"
_MACOS = (
    "macOS: Ray calls clusters with such machines untested, and so are they here; cores and memory are watched, not "
    "enforced, and engines keep their network"
)


def _away(seen: Seen) -> Finding:
    told, at = seen.away, seen.address
    lower = told.lower()
    if "is not recognized" in lower:
        return Finding("fail", seen.name, "system", _WINDOWS, _WSL)
    if told.startswith("no python"):
        found = told.removeprefix("no python").strip(" :")
        what = f"no Python that could look around ({found or 'none at all'}); homeport needs 3.11 or newer"
        return Finding("fail", seen.name, "python", what, "sudo apt-get install python3 python3-venv")
    for words, what, remedy in (
        (
            ("timed out", "no route", "unreachable", "host is down"),
            "does not answer over SSH: is it off?",
            f"switch it on, and look at `ping {at}`",
        ),
        (
            ("refused",),
            "answers, and has no SSH server on port 22",
            "on it: sudo apt-get install openssh-server",
        ),
        (
            ("permission denied", "publickey"),
            "lets this user and key not in over SSH",
            f"ssh-copy-id -i KEY.pub USER@{at} with ssh_private_key and ssh_user of the list",
        ),
        (("not known", "resolve"), "has a name that leads nowhere", "write its IPv4 address into the list"),
        (
            ("ssh: no such file",),
            "could not be asked: this machine has no ssh",
            "sudo apt-get install openssh-client",
        ),
        (
            ("no such identity", "identity file"),
            "could not be asked: the list's key is missing",
            "correct ssh_private_key in the list",
        ),
    ):
        if any(word in lower for word in words):
            return Finding("fail", seen.name, "ssh", f"{what} ({told})", remedy)
    return Finding(
        "fail",
        seen.name,
        "ssh",
        f"could not be looked at: {told or 'nothing was said'}",
        f"try `ssh USER@{at} true`",
    )


def _system(facts: Facts) -> Iterator[Said]:
    release = str(facts["release"])
    if facts["system"] == "Darwin":
        yield "warn", _MACOS, "what holds there: docs/operations.md, macOS"
    elif facts["system"] != "Linux":
        yield "fail", f"{facts['system']} is not supported", "use Linux"
    elif "microsoft" not in release.lower():
        yield "ok", f"Linux {release}", ""
    elif "wsl2" in release.lower():
        remedy = "in %UserProfile%\\.wslconfig: [wsl2] networkingMode=mirrored; then: wsl --shutdown"
        yield "warn", "WSL2: by default other machines do not reach it", remedy
    else:
        yield "fail", "WSL1 has no Linux kernel", "wsl --set-version DISTRIBUTION 2"


def _python(facts: Facts) -> Iterator[Said]:
    version = tuple(facts["python"])
    text = ".".join(map(str, version))
    others = facts["pythons"]
    if version < PYTHON_LEAST and others:
        yield "ok", f"{others[-1]} beside Python {text}: set-up takes it", ""
    elif version < PYTHON_LEAST:
        yield (
            "fail",
            f"Python {text} is too old: 3.11 or newer",
            _install(facts, "python3.11 python3.11-venv"),
        )
    elif not facts["venv"]:
        yield "fail", f"Python {text} cannot make virtual environments", _install(facts, "python3-venv")
    else:
        yield "ok", f"Python {text} with venv", ""


def _compiler(facts: Facts) -> Iterator[Said]:
    found = [name for name in ("c++", "g++", "clang++") if name in facts["programs"]]
    if found:
        yield "ok", f"C++ compiler {found[0]}", ""
    elif facts["homeport"]:
        yield "ok", "no C++ compiler, and homeport is set up", ""
    elif facts["wheelhouse"]:
        yield (
            "warn",
            "no C++ compiler: llama.cpp comes from wheelhouse/, which must be of this kind of processor",
            _install(facts, "g++"),
        )
    else:
        yield (
            "fail",
            "no C++ compiler, which builds llama.cpp",
            f"{_install(facts, 'g++')} (or `make wheelhouse` where the list is)",
        )


def _rsync(facts: Facts) -> Iterator[Said]:
    if "rsync" in facts["programs"]:
        yield "ok", "rsync", ""
    else:
        yield "fail", "no rsync, with which Ray copies homeport", _install(facts, "rsync")


def _disk(facts: Facts) -> Iterator[Said]:
    home, state = facts["free"]["home"], facts["free"]["state"]
    if home < SET_UP_BYTES and not facts["homeport"]:
        yield (
            "fail",
            f"{_gib(home)} free in the home folder; set-up needs {_gib(SET_UP_BYTES)}",
            "free some: du -xh ~ | sort -h | tail",
        )
    if state < STATE_LEAST:
        yield (
            "fail",
            f"{_gib(state)} free for homeport's state",
            "free some, or set HOMEPORT_HOME to another disk",
        )
    elif state < STATE_BYTES:
        yield (
            "warn",
            f"{_gib(state)} free for homeport's state; each replica may park 8 GiB",
            "free some, or lower parking.disk in the config",
        )
    else:
        yield "ok", f"{_gib(state)} free for state", ""


def _memory(facts: Facts) -> Iterator[Said]:
    total, available, swap = (facts["memory"][name] for name in ("total", "available", "swap"))
    if total is None:
        yield "warn", "how much memory there is could not be found out", ""
        return
    if total < MEMORY_LEAST:
        yield (
            "fail",
            f"{_gib(total)} of memory; the smallest model takes {_gib(MEMORY_LEAST)}",
            "leave it out of the list",
        )
    elif available is not None and available < MEMORY_AVAILABLE:
        yield (
            "warn",
            f"only {_gib(available)} of {_gib(total)} memory are free",
            "see what takes it: ps aux --sort -rss | head",
        )
    else:
        yield (
            "ok",
            f"{_gib(total)} of memory" + ("" if available is None else f", {_gib(available)} free"),
            "",
        )
    if swap == 0 and total < SWAP_FROM:
        yield "warn", "no swap: what needs a little too much memory is killed", SWAP
    elif swap is not None:
        yield "ok", f"{_gib(swap)} of swap" if swap else "no swap, with memory enough", ""


def _gpu(facts: Facts) -> Iterator[Said]:
    gpus = facts["gpus"]
    has_card = NVIDIA in gpus["makers"]
    if gpus["nvidia"]:
        yield "ok", f"GPU {'; '.join(gpus['nvidia'])}", ""
    elif gpus.get("code") == SMI_TOO_LATE:
        yield "fail", "nvidia-smi does not answer: the driver hangs", "sudo reboot"
    elif gpus.get("code") == SMI_LOST:
        yield (
            "fail",
            "a GPU is lost: it fell off the bus, or does not work any more",
            "sudo reboot; where it comes back, see to its seat, its power and its heat (dmesg | grep Xid)",
        )
    elif gpus["nvidia_smi"] is False:
        yield (
            "fail",
            "nvidia-smi fails: the driver is not loaded, or not that of its library",
            "sudo reboot (after an update of the driver), or install it anew",
        )
    elif has_card:
        yield (
            "warn",
            "an NVIDIA card without its driver: it is not used",
            "sudo apt-get install nvidia-driver (Ubuntu: sudo ubuntu-drivers install)",
        )
    else:
        yield "ok", "no NVIDIA GPU", ""


def _governor(facts: Facts) -> Iterator[Said]:
    found = facts["governors"]
    if not found:
        yield "ok", "CPU clock is not this system's to set", ""
    elif set(found) <= set(SMOOTH) or (found == ["powersave"] and facts["driver"] in OWN_MIND):
        yield "ok", f"CPU governor {', '.join(found)}", ""
    else:
        remedy = "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
        yield "warn", f"CPU governor {', '.join(found)}: answers come slower", remedy


def _sleep(facts: Facts) -> Iterator[Said]:
    sleep = facts["sleep"]
    if sleep is None:
        yield "ok", "no systemd that would send it to sleep", ""
        return
    if all(state == "masked" for state in sleep["targets"].values()):
        yield "ok", "never sleeps", ""
        return
    reasons = []
    if sleep["idle"] not in ("ignore", "lock", ""):
        reasons.append(f"when nobody is there (logind: IdleAction={sleep['idle']})")
    if sleep["lid"] and sleep["lid_switch"] not in ("ignore", "lock"):
        reasons.append("when its lid is closed")
    if sleep["desktop"] in ("suspend", "hibernate"):
        reasons.append("by its desktop's settings")
    if reasons:
        yield "warn", f"goes to sleep {' and '.join(reasons)}", f"{NOT_ASLEEP} {OR_WAKE}"
    else:
        yield "ok", "does not go to sleep by itself", ""


def _linger(facts: Facts) -> Iterator[Said]:
    if facts["linger"] is False:
        yield (
            "warn",
            "what runs for this user ends when nobody is logged in",
            f"sudo loginctl enable-linger {facts['user']}",
        )
    else:
        yield "ok", "runs on while nobody is logged in", ""


def _locks(facts: Facts) -> Iterator[Said]:
    locks = facts["locks"]
    if locks["writable"]:
        yield "ok", "/run/lock", ""
    elif facts["system"] == "Linux":
        what = "/run/lock cannot be written" if locks["there"] else "there is no /run/lock"
        remedy = "sudo install -d -m 1777 /run/lock/homeport"
        yield "warn", f"{what}: two users' homeports could take one core twice", remedy


def _namespaces(facts: Facts) -> Iterator[Said]:
    """Whether engines can have their network taken away."""
    why_not, sysctl = facts["namespaces"]["why_not"], facts["namespaces"]["sysctl"]
    if why_not is None:
        yield "ok", "engines have no way out (network namespaces work)", ""
        return
    switches = []
    if sysctl["kernel.unprivileged_userns_clone"] == "0":
        switches.append("kernel.unprivileged_userns_clone=1")
    if sysctl["kernel.apparmor_restrict_unprivileged_userns"] == "1":
        switches.append("kernel.apparmor_restrict_unprivileged_userns=0")
    if sysctl["user.max_user_namespaces"] == "0":
        switches.append("user.max_user_namespaces=15000")
    if switches:
        lines = "\\n".join(switches)
        remedy = f"printf '{lines}\\n' | sudo tee /etc/sysctl.d/60-homeport.conf && sudo sysctl --system"
    elif facts["system"] == "Linux":
        remedy = "if it is a container, give it the right (--cap-add SYS_ADMIN) or run homeport beside it"
    else:
        remedy = "a firewall for what goes out can do it there"
    yield "warn", f"engines keep their network: {why_not}", remedy


def _install(facts: Facts, packages: str) -> str:
    """The command for Debian's packages of these names, or the like elsewhere."""
    elsewhere = {"python3-venv": "python3", "python3.11 python3.11-venv": "python3.11", "g++": "gcc-c++"}
    for manager, words in (
        ("apt-get", "sudo apt-get install {0}"),
        ("dnf", "sudo dnf install {1}"),
        ("zypper", "sudo zypper install {1}"),
        ("pacman", "sudo pacman -S {2}"),
        ("brew", "brew install {3}"),
    ):
        if manager in facts["programs"]:
            arch = {"g++": "gcc", "rsync": "rsync"}.get(packages, "python")
            apple = {"g++": "gcc", "rsync": "rsync"}.get(packages, "python@3.12")
            return words.format(packages, elsewhere.get(packages, packages), arch, apple)
    return f"install {packages}"


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"
