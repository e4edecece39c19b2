"""Two machines have the same build where they run the same, whatever else lies on their disks."""

import sys
from collections import namedtuple
from pathlib import Path

import pytest

from cluster.build import PACKAGES, ROOT, build_id, sources

SETS_UP = {"cluster/bootstrap.py", "cluster/fill_wheelhouse.py"}
"""What only `make` runs."""
TEXTS = {
    "router/cli.py": "from cluster import (\n    a,\n    b as other,\n)\nimport cluster.c",
    "cluster/a.py": 'SERVICE = ("-m", "cluster.d")\ndef f() -> None:\n    from serving.e import x\n',
    "cluster/b.py": "",
    "cluster/c.py": "# router.listen is no module",
    "cluster/d.py": "",
    "serving/e.py": "",
}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for name, text in TEXTS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_what_the_command_leads_to_is_the_build(clone: Path) -> None:
    assert {name: text.decode() for name, text in sources(clone).items()} == TEXTS
    seen = {build_id(clone)}
    for name, text in TEXTS.items():
        (clone / name).write_text(f"{text}\n# changed")
        seen.add(build_id(clone))
    (clone / "serving" / "e.py").unlink()
    seen.add(build_id(clone))
    assert len(seen) == len(TEXTS) + 2


def test_what_an_earlier_version_left_changes_nothing(clone: Path) -> None:
    before = build_id(clone)
    (clone / "cluster" / "__pycache__").mkdir()
    (clone / "cluster" / "__pycache__" / "a.pyc").write_text("")
    (clone / "serving" / "old.py").write_text("import cluster.older")
    (clone / "cluster" / "older.py").write_text("")
    assert build_id(clone) == before


def test_all_of_homeport_is_in_it_but_what_sets_it_up() -> None:
    all_ = {
        file.relative_to(ROOT).as_posix() for package in PACKAGES for file in (ROOT / package).rglob("*.py")
    }
    assert all_ - set(sources()) == SETS_UP


def test_pythons_version_is_told_as_far_as_ray_compares_it(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = namedtuple("version", "major minor micro")
    ids = []
    for numbers in ((3, 11, 2), (3, 11, 7), (3, 12, 2)):
        monkeypatch.setattr(sys, "version_info", version(*numbers))
        ids.append(build_id(clone))
    assert ids[0] == ids[1] != ids[2]
    assert ids[0].startswith("0.1.0+")
    assert ids[2].endswith(".py3.12")
