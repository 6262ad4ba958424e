# SPDX-License-Identifier: Apache-2.0
"""Run the project's checks one after the other and close with one summary; exit status 0 only if all passed.

Called by the Makefile after tools/setup.sh, with the Python of .venv. A step that this machine cannot run is "left out"
with the reason and what to install; with CI=true it fails instead, so that CI never passes by not testing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
UNPACKED = BUILD / "unpacked"
# Code that threads share. The other layers have one thread and are tested under ASan and UBSan only.
TSAN_TARGETS = ("test_l2", "test_port", "test_worker", "test_datapath")
DOCTEST_HEADER = "usr/include/doctest/doctest.h"


class LeftOut(Exception):
    """This machine lacks what the step needs; the message says what to install."""


class Failed(Exception):
    pass


@dataclass
class Outcome:
    step: str
    verdict: str
    seconds: float


def environment() -> dict[str, str]:
    env = dict(os.environ)
    folders = [ROOT / ".venv/bin", UNPACKED / "usr/bin", UNPACKED / "bin"]
    env["PATH"] = ":".join([*map(str, folders), env.get("PATH", ""), "/usr/sbin", "/sbin"])
    env["CPLUS_INCLUDE_PATH"] = ":".join(filter(None, [str(UNPACKED / "usr/include"), env.get("CPLUS_INCLUDE_PATH")]))
    env["ASAN_OPTIONS"] = "detect_stack_use_after_return=1:strict_string_checks=1"
    env["UBSAN_OPTIONS"] = "print_stacktrace=1"
    env["TSAN_OPTIONS"] = "second_deadlock_stack=1:halt_on_error=1"
    return env


ENV = environment()


def find(program: str) -> str | None:
    return shutil.which(program, path=ENV["PATH"])


def run(*command: str | Path, timeout: float = 1800, quiet: bool = False) -> str:
    """Run it from the root of the project; quiet keeps the output for a failure. Returns the output when quiet."""
    text = [str(part) for part in command]
    try:
        done = subprocess.run(
            text, cwd=ROOT, env=ENV, timeout=timeout, check=False, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if quiet else None, stderr=subprocess.STDOUT if quiet else None,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise Failed(f"not done after {timeout:.0f} s: {' '.join(text)}") from error
    if done.returncode:
        if quiet:
            sys.stdout.write(done.stdout)
        raise Failed(f"status {done.returncode}: {shorten(' '.join(text), 160, placeholder=' ...')}")
    return done.stdout or ""


def unrandomised() -> list[str]:
    """Sanitizers of gcc 12 do not start under every kernel's address randomisation: switch it off where we may."""
    setarch = find("setarch")
    if setarch and subprocess.run([setarch, "-R", "true"], check=False, capture_output=True).returncode == 0:
        return [setarch, "-R"]
    return []


def need_clang() -> None:
    if not find("clang++-14"):
        raise LeftOut("clang is missing: apt-get install clang-14 libclang-rt-14-dev")


def need_doctest() -> None:
    if not (Path("/") / DOCTEST_HEADER).exists() and not (UNPACKED / DOCTEST_HEADER).exists():
        raise LeftOut("doctest is missing: apt-get install doctest-dev")


# What is built of which preset.
TARGETS = {"asan": ("all",), "tsan": TSAN_TARGETS, "gates": ("gate",)}


def build(preset: str, *targets: str) -> None:
    run("cmake", "--preset", preset, quiet=True)
    wanted = targets or TARGETS[preset]
    run("cmake", "--build", "--preset", preset, "--parallel", "2", "--target", *wanted, quiet=True)


@contextmanager
def builds_beside() -> Iterator[None]:
    """Compile with what the body leaves of the CPUs, until it ends: an emulated machine is mostly one thread.

    The scheduler's idle class takes nothing from others; the session is its own because autogroups share CPUs by
    session. A step that needs a build builds what is left of it, and reports its errors; here nobody looks. ninja, and
    a shell with a trap that waits for it, because cmake would end at once and leave ninja to finish.
    """
    script = "; ".join(
        ["trap exit TERM"]
        + [f"cmake --preset {name} && ninja -C build/{name} -j 2 {' '.join(made)}" for name, made in TARGETS.items()]
    )
    builder = subprocess.Popen(
        ["chrt", "--idle", "0", "sh", "-c", script], cwd=ROOT, env=ENV, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    with suppress(OSError):
        Path(f"/proc/{builder.pid}/autogroup").write_text("19")
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(builder.pid, signal.SIGTERM)
        builder.wait()


def cpp_asan() -> None:
    need_doctest()
    need_clang()
    build("asan")
    run(*unrandomised(), "ctest", "--preset", "asan", "--parallel", "2")


def cpp_tsan() -> None:
    need_doctest()
    build("tsan")
    names = "|".join(name.removeprefix("test_") for name in TSAN_TARGETS)
    run(*unrandomised(), "ctest", "--preset", "tsan", "-R", f"^({names})$")


def gates() -> None:
    """Instructions of the hot path against tests/gates/limits.json."""
    if not find("addr2line"):
        raise LeftOut("addr2line is missing: apt-get install binutils")
    build("gates")
    run(ROOT / ".venv/bin/python", "-m", "tests.gates", "check")


def fuzz(seconds: int) -> None:
    """Every target for so long, two at a time, from its kept corpus. What crashes one is left in build/fuzz-found."""
    need_clang()
    stems = {path.stem: path for path in sorted((ROOT / "tests/fuzz").glob("*/fuzz_*.cc"))}
    if not stems:
        raise Failed("no fuzz target below tests/fuzz")
    build("asan", *stems)
    found = BUILD / "fuzz-found"
    found.mkdir(exist_ok=True)
    waiting = list(stems)
    running: dict[str, tuple[subprocess.Popen[bytes], Path]] = {}
    bad = []
    while waiting or running:
        while waiting and len(running) < 2:
            stem = waiting.pop(0)
            corpus = BUILD / "fuzz-corpus" / stem
            corpus.mkdir(parents=True, exist_ok=True)
            seeds = [str(folder) for folder in (stems[stem].parent / "corpus" / stem,) if folder.is_dir()]
            log = found / f"{stem}.log"
            command = [
                *unrandomised(), str(BUILD / "asan" / stem), f"-max_total_time={seconds}", "-rss_limit_mb=2048",
                "-timeout=20", "-print_final_stats=1", f"-artifact_prefix={found}/{stem}-", str(corpus), *seeds,
            ]  # fmt: skip
            with log.open("wb") as sink:
                process = subprocess.Popen(command, cwd=ROOT, env=ENV, stdout=sink, stderr=subprocess.STDOUT)
            running[stem] = (process, log)
        for stem, (process, log) in list(running.items()):
            try:
                status = process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                continue
            del running[stem]
            lines = log.read_text(errors="replace").splitlines()
            units = next((line.split()[-1] for line in lines if "number_of_executed_units" in line), "?")
            print(f"{stem}: {'ok' if status == 0 else 'FAILED'}, {units} inputs", flush=True)
            if status:
                print("\n".join(lines[-60:]))
                bad.append(stem)
    if bad:
        raise Failed(f"{', '.join(bad)} (inputs and logs in build/fuzz-found)")


def lint() -> None:
    run("ruff", "check", "--quiet")
    run("ruff", "format", "--check", "--quiet")
    sources = run("git", "ls-files", "*.h", "*.cc", quiet=True).split()
    run("clang-format", "--dry-run", "-Werror", *sources)
    run("mypy", "--no-error-summary")


def pytest(*arguments: str, most: int) -> Callable[[], None]:
    def step() -> None:
        run(ROOT / ".venv/bin/python", "-m", "pytest", "-q", *arguments, timeout=most)

    return step


def emulated(*arguments: str) -> Callable[[], None]:
    run_tests = pytest("-m", "emulated", *arguments, most=1800)

    def step() -> None:
        with builds_beside():
            run_tests()

    return step


def steps(goal: str, seconds: int) -> dict[str, Callable[[], None]]:
    check = {"lint": lint}
    cpp = {"C++ under ASan and UBSan": cpp_asan}
    units = {"pytest unit": pytest("-n", "2", "tests/unit", most=900)}
    # Side by side, by file: daemons come up and go down much of the time. The long ones, in interop, begin.
    pair = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")
    if goal == "check":
        return check
    if goal == "unit":
        return {**cpp, **units, "pytest system": pytest(*pair, "tests/system", most=900)}
    if goal == "fuzz":
        return {"fuzz": lambda: fuzz(seconds)}
    # Has a C++ test with it, so it cannot begin.
    with_cpp = "tests/interop/test_vhost_net.py"
    return {
        **check,
        "pytest emulated machines": emulated("tests/interop", f"--ignore={with_cpp}"),
        **cpp,
        f"fuzz, {seconds} s a target": lambda: fuzz(seconds),
        "pytest emulated vhost-net": emulated(with_cpp),
        "C++ threads under TSan": cpp_tsan,
        "instruction gates": gates,
        **units,
        "pytest system, interop": pytest(*pair, "-m", "not emulated", "tests/interop", "tests/system", most=1800),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("goal", choices=["all", "unit", "check", "fuzz"])
    parser.add_argument("--seconds", type=int, default=10, help="per fuzz target")
    options = parser.parse_args()
    ci = os.environ.get("CI") == "true"
    outcomes = []
    for name, step in steps(options.goal, options.seconds).items():
        print(f"\n== {name}", flush=True)
        began = time.monotonic()
        try:
            step()
            verdict = "passed"
        except LeftOut as error:
            verdict = f"{'FAILED' if ci else 'left out'}: {error}"
        except (Failed, OSError) as error:
            verdict = f"FAILED: {error}"
        outcomes.append(Outcome(name, verdict, time.monotonic() - began))
        print(f"== {name}: {verdict}", flush=True)
    print("\n== summary")
    for outcome in outcomes:
        print(f"{outcome.seconds:7.0f} s  {outcome.step}: {outcome.verdict}")
    return 1 if any("FAILED" in outcome.verdict for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
