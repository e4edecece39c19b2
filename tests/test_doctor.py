"""What is said of one machine, from facts."""

import copy
from typing import Any

import pytest

from cluster.doctor import Finding, Seen, findings, worst

GIB = 2**30
WELL: dict[str, Any] = {
    "system": "Linux",
    "release": "6.12.0-amd64",
    "hostname": "den",
    "user": "ann",
    "uid": 1000,
    "clock": 1.0,
    "python": [3, 12, 4],
    "venv": True,
    "pythons": ["python3.12"],
    "programs": ["c++", "g++", "rsync", "sudo", "apt-get"],
    "wheelhouse": False,
    "free": {"home": 100 * GIB, "state": 100 * GIB},
    "memory": {"total": 32 * GIB, "available": 24 * GIB, "swap": 2 * GIB},
    "homeport": None,
    "gpus": {"nvidia_smi": None, "nvidia": [], "driver": "", "makers": []},
    "governors": ["performance"],
    "driver": "acpi-cpufreq",
    "sleep": {
        "targets": {"sleep": "masked", "suspend": "masked", "hibernate": "masked"},
        "idle": "ignore",
        "lid": False,
        "lid_switch": "suspend",
        "desktop": "",
    },
    "linger": True,
    "firewall": {"readable": True, "nft": "", "iptables": "", "ufw": False, "firewalld": False},
    "locks": {"there": True, "writable": True},
    "namespaces": {
        "why_not": None,
        "sysctl": {
            "user.max_user_namespaces": "60000",
            "kernel.unprivileged_userns_clone": "1",
            "kernel.apparmor_restrict_unprivileged_userns": "0",
        },
    },
}
STATIC = {
    "targets": {"sleep": "static"},
    "idle": "ignore",
    "lid": False,
    "lid_switch": "suspend",
    "desktop": "",
}


def facts(**change: Any) -> dict[str, Any]:
    return {**copy.deepcopy(WELL), **change}


def said(topic: str, listed: bool = True, **change: Any) -> list[Finding]:
    found = findings(Seen("den", "10.0.0.1", facts(**change)), listed)
    return [finding for finding in found if finding.topic == topic]


def grade(topic: str, **change: Any) -> str:
    return worst(said(topic, **change))


def test_of_a_machine_that_is_well_everything_is_ok() -> None:
    found = findings(Seen("den", "10.0.0.1", WELL), True)
    assert {finding.severity for finding in found} == {"ok"}
    assert {finding.machine for finding in found} == {"den"}
    assert {finding.topic for finding in found} == {
        *(
            "system",
            "python",
            "compiler",
            "disk",
            "memory",
            "gpu",
            "governor",
            "sleep",
            "locks",
            "namespaces",
        ),
        *("rsync", "linger"),
    }
    assert not any(finding.remedy for finding in found)


def test_of_a_machine_alone_nothing_is_asked_that_only_several_need() -> None:
    topics = {finding.topic for finding in findings(Seen("den", "127.0.0.1", facts(linger=False)), False)}
    assert not topics & {"rsync", "linger"}


CASES: list[tuple[str, dict[str, Any], str, str, str]] = [
    (
        "python",
        {"python": [3, 9, 2], "pythons": []},
        "fail",
        "3.9.2 is too old",
        "apt-get install python3.11",
    ),
    ("python", {"python": [3, 9, 2], "pythons": ["python3.11"]}, "ok", "python3.11 beside", ""),
    ("python", {"venv": False}, "fail", "virtual environments", "apt-get install python3-venv"),
    ("python", {"venv": False, "programs": ["dnf"]}, "fail", "virtual environments", "dnf install python3"),
    ("compiler", {"programs": ["apt-get"]}, "fail", "no C++ compiler", "apt-get install g++"),
    ("compiler", {"programs": ["dnf"]}, "fail", "no C++ compiler", "dnf install gcc-c++"),
    ("compiler", {"programs": ["zypper"]}, "fail", "no C++ compiler", "zypper install gcc-c++"),
    ("compiler", {"programs": ["pacman"]}, "fail", "no C++ compiler", "pacman -S gcc"),
    ("compiler", {"programs": []}, "fail", "no C++ compiler", "install g++"),
    ("compiler", {"programs": [], "wheelhouse": True}, "warn", "wheelhouse", "install g++"),
    ("compiler", {"programs": [], "homeport": {"build": "1"}}, "ok", "is set up", ""),
    ("rsync", {"programs": ["c++", "apt-get"]}, "fail", "no rsync", "apt-get install rsync"),
    ("disk", {"free": {"home": GIB, "state": 50 * GIB}}, "fail", "set-up needs", "du -xh"),
    ("disk", {"free": {"home": GIB, "state": 50 * GIB}, "homeport": {"build": "1"}}, "ok", "50.0 GiB", ""),
    ("disk", {"free": {"home": 9 * GIB, "state": 9 * GIB}}, "warn", "9.0 GiB", "parking.disk"),
    ("disk", {"free": {"home": 9 * GIB, "state": 2**20}}, "fail", "state", "HOMEPORT_HOME"),
    (
        "memory",
        {"memory": {"total": GIB // 2, "available": GIB // 4, "swap": GIB}},
        "fail",
        "0.5 GiB",
        "list",
    ),
    (
        "memory",
        {"memory": {"total": 8 * GIB, "available": GIB // 4, "swap": 0}},
        "warn",
        "are free",
        "ps aux",
    ),
    ("memory", {"memory": {"total": 4 * GIB, "available": 3 * GIB, "swap": 0}}, "warn", "no swap", "mkswap"),
    ("memory", {"memory": {"total": 64 * GIB, "available": 60 * GIB, "swap": 0}}, "ok", "no swap", ""),
    ("memory", {"memory": {"total": None, "available": None, "swap": None}}, "warn", "could not", ""),
    (
        "gpu",
        {"gpus": {"nvidia_smi": True, "nvidia": ["H200, 570, 143771 MiB"], "makers": []}},
        "ok",
        "H200",
        "",
    ),
    ("gpu", {"gpus": {"nvidia_smi": False, "nvidia": [], "makers": ["0x10de"]}}, "fail", "fails", "reboot"),
    (
        "gpu",
        {"gpus": {"nvidia_smi": False, "code": 124, "nvidia": [], "makers": []}},
        "fail",
        "hangs",
        "reboot",
    ),
    (
        "gpu",
        {"gpus": {"nvidia_smi": False, "code": 15, "nvidia": [], "makers": []}},
        "fail",
        "lost",
        "power",
    ),
    ("gpu", {"gpus": {"nvidia_smi": None, "nvidia": [], "makers": ["0x10de"]}}, "warn", "driver", "install"),
    ("gpu", {"gpus": {"nvidia_smi": None, "nvidia": [], "makers": ["0x1002"]}}, "ok", "no NVIDIA", ""),
    ("governor", {"governors": ["powersave"]}, "warn", "powersave", "tee"),
    ("governor", {"governors": ["ondemand", "powersave"]}, "warn", "slower", "tee"),
    ("governor", {"governors": ["powersave"], "driver": "intel_pstate"}, "ok", "powersave", ""),
    ("governor", {"governors": ["schedutil"]}, "ok", "schedutil", ""),
    ("governor", {"governors": []}, "ok", "not this system's", ""),
    ("sleep", {"sleep": None}, "ok", "no systemd", ""),
    ("sleep", {"sleep": STATIC}, "ok", "by itself", ""),
    ("sleep", {"sleep": {**STATIC, "lid": True}}, "warn", "lid", "systemctl mask"),
    ("sleep", {"sleep": {**STATIC, "lid": True, "lid_switch": "ignore"}}, "ok", "by itself", ""),
    ("sleep", {"sleep": {**STATIC, "idle": "suspend"}}, "warn", "IdleAction=suspend", "systemctl mask"),
    ("sleep", {"sleep": {**STATIC, "desktop": "suspend"}}, "warn", "desktop", "systemctl mask"),
    ("linger", {"linger": False}, "warn", "logged in", "loginctl enable-linger ann"),
    ("linger", {"linger": None}, "ok", "runs on", ""),
    ("locks", {"locks": {"there": True, "writable": False}}, "warn", "cannot be written", "install -d"),
    ("locks", {"locks": {"there": False, "writable": False}}, "warn", "no /run/lock", "install -d"),
    ("system", {"release": "5.15.153.1-microsoft-standard-WSL2"}, "warn", "WSL2", "mirrored"),
    ("system", {"release": "4.4.0-19041-Microsoft"}, "fail", "WSL1", "wsl --set-version"),
    ("system", {"system": "Darwin"}, "warn", "untested", "docs/operations.md"),
    ("system", {"system": "FreeBSD"}, "fail", "FreeBSD", "use Linux"),
]


@pytest.mark.parametrize(("topic", "change", "severity", "words", "remedy"), CASES)
def test_what_is_wrong_is_said_with_its_remedy(
    topic: str, change: dict[str, Any], severity: str, words: str, remedy: str
) -> None:
    found = said(topic, **change)
    (finding,) = [f for f in found if words in f.what]
    assert (finding.severity, remedy in finding.remedy) == (severity, True), finding
    assert bool(finding.remedy) == (severity != "ok") or finding.what.startswith("how much memory")


SWITCHED_OFF: list[tuple[str, str, str]] = [
    ("kernel.unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "apparmor_restrict_unprivileged_userns=0"),
    ("user.max_user_namespaces", "0", "user.max_user_namespaces=15000"),
]


@pytest.mark.parametrize(("name", "value", "remedy"), SWITCHED_OFF)
def test_the_kernels_switch_that_keeps_engines_their_network_is_named(
    name: str, value: str, remedy: str
) -> None:
    sysctl = {**WELL["namespaces"]["sysctl"], name: value}
    (found,) = said(
        "namespaces", namespaces={"why_not": "unshare: Operation not permitted", "sysctl": sysctl}
    )
    assert found.severity == "warn"
    assert "Operation not permitted" in found.what
    assert remedy in found.remedy
    assert found.remedy.count("=") == 1, "no other switch is touched"


def test_in_a_container_no_switch_is_at_fault() -> None:
    nothing = dict.fromkeys(WELL["namespaces"]["sysctl"])
    (found,) = said("namespaces", namespaces={"why_not": "unshare: no", "sysctl": nothing})
    assert "container" in found.remedy
    (found,) = said("namespaces", system="Darwin", namespaces={"why_not": "only Linux", "sysctl": nothing})
    assert (found.severity, "firewall" in found.remedy) == ("warn", True)


AWAY: list[tuple[str, str, str, str]] = [
    ("ssh: connect to host 10.0.0.1 port 22: Connection timed out", "ssh", "is it off?", "ping 10.0.0.1"),
    ("ssh: connect to host 10.0.0.1 port 22: No route to host", "ssh", "is it off?", "ping"),
    ("timed out: no answer within 45 s", "ssh", "is it off?", "ping"),
    ("ssh: connect to host 10.0.0.1 port 22: Connection refused", "ssh", "no SSH server", "openssh-server"),
    ("ann@10.0.0.1: Permission denied (publickey,password).", "ssh", "lets this user", "ssh-copy-id"),
    ("ssh: Could not resolve hostname x: Name or service not known", "ssh", "leads nowhere", "IPv4"),
    ("ssh: No such file or directory", "ssh", "has no ssh", "openssh-client"),
    (
        "Warning: Identity file /k not accessible: No such file or directory.",
        "ssh",
        "key is missing",
        "correct",
    ),
    (
        "'sh' is not recognized as an internal or external command,",
        "system",
        "this is Windows",
        "wsl --install",
    ),
    ("no python: Linux 6.1, sh: 1: python3: not found", "python", "no Python", "apt-get install python3"),
    ("no python: Linux 4.18, Python 3.6.8", "python", "Python 3.6.8", "python3"),
    ("", "ssh", "could not be looked at", "ssh USER@10.0.0.1"),
    ("Segmentation fault", "ssh", "Segmentation fault", "ssh USER@10.0.0.1"),
]


@pytest.mark.parametrize(("told", "topic", "words", "remedy"), AWAY)
def test_a_machine_that_could_not_be_seen_is_one_finding(
    told: str, topic: str, words: str, remedy: str
) -> None:
    (found,) = findings(Seen("10.0.0.1", "10.0.0.1", None, told), True)
    assert (found.severity, found.topic) == ("fail", topic)
    assert words in found.what
    assert remedy in found.remedy


def test_one_that_fell_silent_is_said_beside_what_was_seen() -> None:
    found = findings(Seen("den", "10.0.0.1", WELL, "timed out"), True)
    assert [f.topic for f in found if f.severity == "fail"] == ["ssh"]
    assert len(found) > 10


def test_the_worst_decides() -> None:
    def of(*grades: Any) -> str:
        return worst([Finding(each, "den", "x", "y") for each in grades])

    assert (of(), of("ok"), of("ok", "warn"), of("warn", "fail", "ok")) == ("ok", "ok", "warn", "fail")
