"""A task that takes all the CPU it gets, as a coding agent's does: a build, over and over.

`python -m router.bench_isolation_agent JOBS SECONDS FOLDER`: so many compilations at a time of one C++ file, where a
compiler is on PATH, else of Python's own library; for SECONDS at most, should whoever started it be gone. Prints BEGAN
once it works; what it builds lies in FOLDER. Whoever started it ends its process group.
"""

import compileall
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

BEGAN = "homeport: the work began"
COMPILERS = ("c++", "g++", "clang++")
SOURCE = """\
#include <algorithm>
#include <functional>
#include <iostream>
#include <map>
#include <regex>
#include <string>
#include <unordered_map>
#include <vector>
template <int N> struct Deep { static long run(std::vector<long> &v) {
    std::sort(v.begin(), v.end(), [](long a, long b) { return a % N < b % N; });
    return v[N] + Deep<N - 1>::run(v); } };
template <> struct Deep<0> { static long run(std::vector<long> &v) { return v[0]; } };
int main(int argc, char **argv) {
    std::regex words("([a-z]+)=([0-9]+)");
    std::map<std::string, std::function<long(long)>> by_name;
    std::unordered_map<std::string, std::vector<long>> found;
    for (int i = 0; i < argc; ++i) {
        std::smatch m; std::string s(argv[i]);
        if (std::regex_match(s, m, words)) found[m[1]].push_back(std::stol(m[2]));
        by_name[s] = [i](long n) { return n * i; };
    }
    std::vector<long> v(64, argc);
    std::cout << Deep<40>::run(v) << by_name.size() << found.size();
}
"""


def compiler() -> str | None:
    """The first C++ compiler on PATH; None: there is none."""
    return next((found for name in COMPILERS if (found := shutil.which(name))), None)


def what() -> str:
    """What the neighbour does, for a person."""
    found = compiler()
    return f"a build ({Path(found).name} -O2)" if found else "a build (Python's compileall)"


def main(jobs: int, seconds: float, folder: Path) -> None:
    """Work until the time is over."""
    until = time.monotonic() + seconds
    folders = [folder / f"build-{number}" for number in range(jobs)]
    threads = [threading.Thread(target=_work, args=(each, until)) for each in folders]
    for thread in threads:
        thread.start()
    print(BEGAN, flush=True)
    for thread in threads:
        thread.join()


def _work(folder: Path, until: float) -> None:
    folder.mkdir()
    found = compiler()
    source = folder / "build.cc"
    source.write_text(SOURCE)
    while time.monotonic() < until:
        if found is not None:
            subprocess.run([found, "-O2", "-c", "-o", str(folder / "build.o"), str(source)], check=True)
        else:
            library = Path(sysconfig.get_path("stdlib")) / "email"
            shutil.copytree(library, folder / "lib", dirs_exist_ok=True)
            compileall.compile_dir(folder / "lib", force=True, quiet=2)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]))
