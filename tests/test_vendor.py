"""What others wrote of the pages is what they published."""

import re
from hashlib import sha256
from pathlib import Path

VENDOR = Path(__file__).parent.parent / "router" / "board" / "vendor"
LINE = re.compile(r"^(\S+\.js) .* ([0-9.]+) .* ([0-9a-f]{64})$", re.MULTILINE)


def test_every_library_has_the_sum_version_and_licence_that_are_written_down() -> None:
    listed = {
        name: (version, told) for name, version, told in LINE.findall((VENDOR / "README.txt").read_text())
    }
    assert sorted(listed) == sorted(path.name for path in VENDOR.glob("*.js"))
    for name, (version, told) in listed.items():
        data = (VENDOR / name).read_bytes()
        assert sha256(data).hexdigest() == told, name
        assert version in data[:300].decode(), name
        assert (VENDOR / f"{name.partition('.')[0]}.LICENSE.txt").stat().st_size > 500
