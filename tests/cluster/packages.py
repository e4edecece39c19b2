"""`python -m tests.cluster.packages`: before `make test`, brings what tests of several machines need.

On Debian and its kin, as root: installed. Elsewhere it says what is missing and that those tests are skipped;
never a failure.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.cluster.lab import NAMESPACES, NEEDS, missing, program

INSTALL_S = 600
ALSO = {"dbus-daemon": "dbus-daemon", "prometheus": "prometheus"}
"""Programs that single tests need, which say so where they are missing, and Debian's packages that bring them."""
AT_BOOT = frozenset({"prometheus"})
"""Packages whose service of the same name would start at every boot from then on."""
POLICY = Path("/usr/sbin/policy-rc.d")
"""Debian asks it whether a service may start that has been installed."""


def main() -> int:
    """0 always: what is missing then is told by the skipped tests themselves, too."""
    lacks = missing()
    packages = sorted({NEEDS[name] for name in lacks if name in NEEDS} | _also())
    if packages and not {"root", NAMESPACES} & set(lacks) and program("apt-get"):
        print(f"Installing {', '.join(packages)}: tests need them.", flush=True)
        with nothing_starts():
            install(packages)
        not_at_boot(packages)
        lacks = missing()
    if lacks:
        needed = sorted({NEEDS[name] for name in lacks if name in NEEDS})
        remedy = f"; as root: apt-get install {' '.join(needed)}" if needed else ""
        print(
            f"The tests of several machines are skipped, for want of {', '.join(lacks)}{remedy}.", flush=True
        )
    return 0


def _also() -> set[str]:
    return {package for name, package in ALSO.items() if program(name) is None}


@contextlib.contextmanager
def nothing_starts() -> Iterator[None]:
    """Nothing of the machine itself is started, no sshd and no Prometheus: tests have their own. A policy that is there
    stays."""
    try:
        descriptor = os.open(POLICY, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o755)
    except OSError:
        yield
        return
    try:
        with os.fdopen(descriptor, "w") as policy:
            policy.write("#!/bin/sh\nexit 101\n")
        yield
    finally:
        POLICY.unlink(missing_ok=True)


def not_at_boot(packages: list[str]) -> None:
    """Who runs tests has not asked for more services on this machine."""
    for name in sorted(AT_BOOT & set(packages)):
        if program("systemctl"):
            command = ["systemctl", "disable", "--quiet", name]
            subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=INSTALL_S, check=False
            )


def install(packages: list[str]) -> None:
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (
        ["apt-get", "update", "-qq"],
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages],
    ):
        try:
            done = subprocess.run(
                command,
                env=env,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=INSTALL_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            print(f"{' '.join(command[:2])}: {error}", flush=True)
            return
        if done.returncode != 0:
            print(
                f"{' '.join(command[:2])}: {(done.stderr.strip() or done.stdout.strip())[-300:]}", flush=True
            )
            return


if __name__ == "__main__":
    sys.exit(main())
