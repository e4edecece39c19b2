"""cluster/cpu.py: what the kernel says of the CPU."""

from pathlib import Path

from cluster.cpu import cpu_flags, cpu_model


def test_x86_and_arm_are_read(tmp_path: Path) -> None:
    x86, arm = tmp_path / "x86", tmp_path / "arm"
    x86.write_text(
        "processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\nflags\t\t: fpu avx2\n\nprocessor : 1\nflags : no\n"
    )
    arm.write_text("processor\t: 0\nFeatures\t: fp asimddp\n")
    assert (cpu_model(x86), cpu_flags(x86)) == ("Some CPU @ 3 GHz", frozenset({"fpu", "avx2"}))
    assert (cpu_model(arm), cpu_flags(arm)) == ("", frozenset({"fp", "asimddp"}))


def test_without_the_file_nothing_is_known(tmp_path: Path) -> None:
    assert (cpu_model(tmp_path / "none"), cpu_flags(tmp_path / "none")) == ("", frozenset())
