"""Running generated Python in a process of its own, with limits.

Meant against accidents and clumsy code, on top of whatever isolation the machine has; it is no
virtual machine. Layers: a new interpreter (`-I -S`) in a temporary folder with an empty
environment and no input; limits on processor time, memory, file size, open files and processes;
an unprivileged user where the caller is root; own network and process namespaces where the system
allows it; an audit hook that refuses to start processes, open sockets, load native libraries, and
write or delete outside the folder; a time limit on the whole process group.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from dllm_decode.errors import require_count, require_in_range

_NOBODY = 65534

# Runs inside the new interpreter: limits, guard, then the program.
_RUNNER = """
import os, resource, sys
folder, mark, cpu, memory, files, processes, user = sys.argv[1], *map(int, sys.argv[2:8])
def limit(kind, value):
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))
limit(resource.RLIMIT_CPU, cpu)
limit(resource.RLIMIT_AS, memory)
limit(resource.RLIMIT_FSIZE, files)
limit(resource.RLIMIT_NOFILE, 64)
limit(resource.RLIMIT_CORE, 0)
limit(resource.RLIMIT_NPROC, processes)
if user:
    # Another user who may read what the interpreter needs (CAP_DAC_READ_SEARCH), and nothing more.
    import ctypes, struct
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    header = struct.pack("Ii", 0x20080522, 0)
    libc.capset(header, struct.pack("IIIIII", 4, 4, 0, 0, 0, 0))
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    for name in [name for name in sys.modules if "ctypes" in name]:
        del sys.modules[name]
    del libc, ctypes
with open(os.path.join(folder, "program.py"), encoding="utf-8") as source:
    program = compile(source.read(), "program.py", "exec")
inside = os.path.realpath(folder) + os.sep
def allowed(path):
    if isinstance(path, int):
        return True
    return (os.path.realpath(os.fsdecode(path)) + os.sep).startswith(inside)
NEVER = ("os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn", "os.system",
         "subprocess.Popen", "pty.spawn", "socket.", "ctypes.", "os.kill", "os.killpg",
         "os.chown", "os.setxattr", "signal.pthread_kill", "resource.setrlimit")
PATHS = ("os.remove", "os.rmdir", "os.rename", "os.link", "os.symlink", "os.truncate",
         "os.mkdir", "os.chmod", "os.utime", "shutil.rmtree", "shutil.move")
def guard(event, arguments):
    if event.startswith(NEVER):
        raise PermissionError(f"{event} is not allowed in the sandbox")
    if event == "import" and arguments[0] in ("ctypes", "_ctypes", "_posixsubprocess"):
        raise ImportError(f"{arguments[0]} is not allowed in the sandbox")
    if event == "open":
        path, mode, flags = arguments
        writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        if flags & writes and not allowed(path):
            raise PermissionError("the sandbox writes into its own folder only")
    if event in PATHS and not all(allowed(p) for p in arguments if isinstance(p, (str, bytes))):
        raise PermissionError(f"{event} is not allowed outside the sandbox's folder")
sys.argv = ["program.py"]
sys.addaudithook(guard)
exec(program, {"__name__": "__main__"})
os.write(mark, b"passed")
"""


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    seconds: wall and processor time; memory: address space [bytes]; file_size: largest file
    [bytes]; processes: at once, threads included.
    """

    seconds: float = 30.0
    memory: int = 1 << 30
    file_size: int = 1 << 20
    processes: int = 16

    def __post_init__(self) -> None:
        require_in_range("seconds", self.seconds, 0, 3600, open_low=True, unit="seconds")
        for name in ("memory", "file_size", "processes"):
            require_count(name, getattr(self, name))


@dataclass(frozen=True)
class Verdict:
    """passed: the program ran to its end; reason: `passed`, `timed out`, or its last error line."""

    passed: bool
    reason: str


def run_python(program: str, limits: Limits | None = None) -> Verdict:
    """Run a program; it passes if it reaches its end without an exception.

    program: Python source; limits: see `Limits`. An early `exit()` is no pass.
    """
    limits = limits or Limits()
    with tempfile.TemporaryDirectory(prefix="sandbox-") as name:
        folder = Path(name)
        (folder / "program.py").write_text(program, encoding="utf-8", errors="replace")
        (folder / "runner.py").write_text(_RUNNER, encoding="utf-8")
        for path in folder.iterdir():
            path.chmod(0o644)
        folder.chmod(0o777 if os.geteuid() == 0 else 0o700)
        return _run(folder, limits)


def _run(folder: Path, limits: Limits) -> Verdict:
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as passes, tempfile.TemporaryFile() as errors:
        with open(writer, "wb") as mark:
            process = subprocess.Popen(
                _command(folder, limits, writer),
                cwd=folder,
                env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "PYTHONHASHSEED": "0"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=(mark.fileno(),),
                start_new_session=True,
            )
        in_time = _wait(process, limits.seconds)
        os.set_blocking(reader, False)
        passed = in_time and process.returncode == 0 and passes.read(16) == b"passed"
        if passed:
            return Verdict(True, "passed")
        errors.seek(0)
        lines = errors.read()[-4000:].decode("utf-8", "replace").strip().splitlines()
    if not in_time:
        return Verdict(False, "timed out")
    return Verdict(False, lines[-1] if lines else f"ended early, exit code {process.returncode}")


def _command(folder: Path, limits: Limits, writer: int) -> list[str]:
    """The command line. writer: where the pass mark is written, which an early exit never does."""
    user = _user()
    numbers = (int(limits.seconds) + 1, limits.memory, limits.file_size, _processes(limits), user)
    runner = [sys.executable, "-I", "-S", "runner.py", str(folder), str(writer)]
    return [*_wrapper(), *runner, *map(str, numbers)]


def _wait(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether the process ended in time; its whole group is killed in any case."""
    try:
        process.wait(timeout=seconds)
        return True
    except subprocess.TimeoutExpired:
        return False
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _processes(limits: Limits) -> int:
    """The process limit counts everything of the user, so that what runs already is added."""
    user = _user() or os.getuid()
    running = 0
    for entry in Path("/proc").glob("[0-9]*/task") if Path("/proc").is_dir() else ():
        with contextlib.suppress(OSError):
            if entry.stat().st_uid == user:
                running += len(os.listdir(entry))
    return running + limits.processes


@functools.cache
def _user() -> int:
    """The user a root caller becomes, 0 where the caller stays who it is."""
    if os.geteuid() != 0:
        return 0
    code = (
        f"import os; os.setgroups([]); os.setresgid(*3*[{_NOBODY}]); os.setresuid(*3*[{_NOBODY}])"
    )
    return _NOBODY if _succeeds([sys.executable, "-I", "-S", "-c", code]) else 0


@functools.cache
def _wrapper() -> tuple[str, ...]:
    """A command that gives its child own network and process namespaces, where that works."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return ()
    for flags in (("-n", "-p", "--fork", "--kill-child"), ("-n",)):
        command = (unshare, *(() if os.geteuid() == 0 else ("-r",)), *flags)
        # with the interpreter itself: a user namespace can make its folder unreadable
        if _succeeds([*command, sys.executable, "-I", "-S", "-c", ""]):
            return command
    return ()


def _succeeds(command: list[str]) -> bool:
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


def isolation() -> str:
    """What the system lets the sandbox have beyond limits and guard, in words."""
    names = {"-n": "no network", "-p": "own process namespace"}
    words = [text for flag, text in names.items() if flag in _wrapper()]
    if _user():
        words.append("unprivileged user")
    return ", ".join(words) if words else "limits and guard only"
