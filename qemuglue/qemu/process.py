"""One running QEMU, owned from its start to its end.

The process is started in a session of its own with QMP and qtest on socket pairs, the
transcript and (where asked for) main memory in memfds of ours, and stdout and stderr in a
file that only we can read. It never outlives us: the kernel kills it when the thread that
started it ends for whatever reason, SIGKILL included, so start it from a thread that
stays (normally the main one).

Limits on the child: no core files, and ``RLIMIT_FSIZE``, which moves along with what has
been read of the transcript, so a device that floods a log is ended by SIGXFSZ before it
fills the host's memory.
"""

from __future__ import annotations

import contextlib
import enum
import os
import resource
import shutil
import signal
import socket
import subprocess
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType
from typing import Any, Final

from qemuglue.errors import LaunchError, QemuDied, QemuFailure, QemuHang, ResourceError
from qemuglue.qemu import images, libc, parked
from qemuglue.qemu.config import QemuConfig, VmMode
from qemuglue.qemu.guest_ram import SharedRam
from qemuglue.qemu.monitor import Monitor
from qemuglue.qemu.qtest import Qtest, QtestChannel, socket_pair
from qemuglue.qemu.quirks import prints_owners
from qemuglue.qemu.transcript import UNREAD_LIMIT_BYTES, Transcript, log_arguments

LAUNCH_TIMEOUT_S: Final = 60.0
"""QEMU is ready after 30 ms; a sanitizer build on a loaded machine takes seconds."""
EXIT_TIMEOUT_S: Final = 30.0
"""From a closed channel to the end: a sanitizer may write its report for seconds."""
SOFT_TIMEOUT_S: Final = 2.0
"""How long ``quit`` may take before SIGKILL; the usual is 20 ms."""
HARD_TIMEOUT_S: Final = 10.0
"""SIGKILL to reaped is 2 ms; more than this is a process stuck in the kernel."""
FILE_LIMIT_BYTES: Final = 1 << 30
"""How far a file the child writes may grow past what we have read of the transcript."""
OUTPUT_LIMIT_BYTES: Final = 64 << 20
"""stdout and stderr together; a warning in each of a million operations is half of it."""
STDERR_TAIL_BYTES: Final = 64 << 10
AUDIO_OPTION_SINCE: Final = (8, 2)
"""From here on a board with a sound chip refuses to start without a named backend when
``-nodefaults`` is given, and ``-audio none`` names one; before, that option wants a model
and the environment variable does the same."""

# Runs between setpriv and QEMU: a parent that ended before the kernel was asked to watch
# it would never be noticed, so its pid is compared afterwards.
_GUARD: Final = '[ "$PPID" = "$0" ] || exit 127; exec "$@"'


class ExitKind(enum.Enum):
    """How a process stands."""

    RUNNING = "running"
    EXITED = "exited"
    SIGNALED = "ended by a signal"


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How QEMU ended, if it did.

    ``code`` is set for EXITED, ``signal`` for SIGNALED. ``shutdown_reason`` and
    ``shutdown_guest`` are those of QMP's SHUTDOWN event where one was seen (``guest``:
    the guest asked for it). ``expected`` says that we had asked QEMU to end.
    """

    kind: ExitKind
    code: int | None = None
    signal: int | None = None
    shutdown_reason: str | None = None
    shutdown_guest: bool = False
    expected: bool = False

    @property
    def polite(self) -> bool:
        """The guest powered the machine off: an outcome, never a crash."""
        return self.kind is ExitKind.EXITED and self.code == 0 and self.shutdown_guest

    def __str__(self) -> str:
        if self.kind is ExitKind.RUNNING:
            return "QEMU is running"
        if self.polite:
            return f"the guest ended QEMU ({self.shutdown_reason})"
        died = QemuDied(exit_code=self.code, signal=self.signal)
        return f"{died} as asked" if self.expected else str(died)


@lru_cache(maxsize=1)
def _guard_command() -> tuple[str, ...] | None:
    """``setpriv`` and a shell (1 ms together), where the host has them.

    The way without them is a fork of this whole process (10 ms and more when it is large).
    """
    setpriv, shell = shutil.which("setpriv"), shutil.which("sh")
    if setpriv is None or shell is None:
        return None
    known = subprocess.run([setpriv, "--help"], capture_output=True, check=False).stdout
    if b"--pdeathsig" not in known:
        return None
    return (setpriv, "--pdeathsig", "KILL", "--", shell, "-c", _GUARD)


def _own_message(output: str) -> str:
    """The line of QEMU's output that says why it did not start; ``""`` when none does.

    Usually the last one with its program name in front; hints follow it, and warnings
    and complaints about modules that nobody asked for stand around it.
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()
             and "warning:" not in line and not line.startswith("qemu: module ")]
    named = [line for line in lines if line.startswith("qemu-system-")]
    return (named or lines or [""])[-1]


def machine_arguments(config: QemuConfig) -> list[str]:
    """The words that make the guest's machine, without any channel of ours.

    ``-nodefaults`` drops the devices QEMU adds for a person (never ``-no-reboot``: a
    reset is an outcome, not an end). ``-no-user-config`` keeps the host's own
    configuration files out.
    """
    words = ["-no-user-config", "-display", "none", "-accel", "tcg"]
    if config.nodefaults:
        words.append("-nodefaults")
    own_audio = any(word.lstrip("-").startswith("audio") for word in config.args)
    if config.build.version_tuple >= AUDIO_OPTION_SINCE and not own_audio:
        words += ["-audio", "none"]
    if config.mode is VmMode.STOPPED:
        words.append("-S")
    else:
        words += parked.arguments(config)
    backend = f",memory-backend={config.ram_id}" if config.has_shared_ram else ""
    words += ["-machine", config.machine + backend]
    if config.ram is not None:
        words += ["-m", f"{config.ram_bytes}B"]
    if config.plugin is not None:
        words += ["-plugin", config.plugin]
    return [*words, *config.args]


class QemuProcess:
    """A context manager: QEMU is up and answering inside, gone and reaped after.

    ``monitor``, ``channel`` (batches), ``qtest`` (one at a time), ``transcript`` and
    ``ram`` (``None`` unless the configuration shares it) are there once
    :meth:`launch` returned. Not for use by two threads at once.
    """

    def __init__(
        self, config: QemuConfig, *, launch_timeout_s: float = LAUNCH_TIMEOUT_S,
        transcript_limit_bytes: int = UNREAD_LIMIT_BYTES,
        file_limit_bytes: int = FILE_LIMIT_BYTES,
    ) -> None:
        self.config = config
        self.command: tuple[str, ...] = ()
        """The whole command line, our channels included, as it was started; a generated image
        stands in it by its name."""
        self.endianness: str = ""
        self.launch_s: float = 0.0
        self._launch_timeout_s = launch_timeout_s
        self._transcript_limit = transcript_limit_bytes
        self._file_limit = max(file_limit_bytes, 2 * (config.ram_bytes or 0))
        self._child: subprocess.Popen[bytes] | None = None
        self._status: ExitStatus | None = None
        self._expected = False
        self._open = contextlib.ExitStack()
        self._images = contextlib.ExitStack()
        self._finalizer: weakref.finalize[Any, Any] | None = None
        self._monitors: list[Monitor] = []
        self.ram: SharedRam | None = None

    monitor: Monitor
    channel: QtestChannel
    qtest: Qtest
    transcript: Transcript

    # --- starting ----------------------------------------------------------------------

    def __enter__(self) -> QemuProcess:
        return self.launch()

    def launch(self) -> QemuProcess:
        """Start QEMU and wait until QMP and qtest both answer.

        Raises :class:`LaunchError` with QEMU's own message when it ends or does not come
        up in time: a machine that fails to initialise still accepts the QMP connection,
        so only an answer on both channels counts.
        """
        assert self._child is None, "a QemuProcess is launched once"
        start = time.monotonic()
        try:
            ours, theirs = self._prepare()
            self._spawn(theirs)
            self._connect(*ours, deadline=start + self._launch_timeout_s)
            self._images.close()
            if self.config.mode is VmMode.PARKED:
                parked.verify(self.config.full_name, self.pid, self.monitor, self.transcript)
        except BaseException as error:
            failure = self._launch_failure(error)
            self.kill()
            self._release()
            if failure is not None:
                raise failure from None
            raise
        self.launch_s = time.monotonic() - start
        return self

    def _prepare(self) -> tuple[tuple[socket.socket, socket.socket], list[int]]:
        """Make every channel; our sockets, and the descriptors QEMU inherits."""
        keep = self._open
        self._output_fd = os.memfd_create("qemuglue-output", os.MFD_CLOEXEC)
        keep.callback(os.close, self._output_fd)
        self.transcript = Transcript(
            limit_bytes=self._transcript_limit, on_release=self._on_release)
        keep.callback(self.transcript.close)
        qmp, qmp_theirs = socket_pair()
        qtest, qtest_theirs = socket_pair()
        self._theirs = (qmp_theirs, qtest_theirs)
        for sock in (qmp, qtest, *self._theirs):
            keep.callback(sock.close)
        config = self.config
        words = [*config.build.command(config.target), *machine_arguments(config)]
        inherited = [qmp_theirs.fileno(), qtest_theirs.fileno()]
        if config.has_shared_ram:
            assert config.ram_bytes is not None and config.ram_id is not None
            self.ram = SharedRam(config.ram_bytes)
            keep.callback(self.ram.close)
            words += self.ram.arguments(config.ram_id)
            inherited.append(self.ram.fd)
        if config.transcript or config.plugin is not None:
            words += log_arguments(
                config.build, config.target, self.transcript.path,
                extra_trace=config.extra_trace, plugin=config.plugin is not None)
            inherited.append(self.transcript.fd)
        # The id "qtest" is not free to choose: QEMU 7.2 looks for a chardev of that name.
        words += [
            "-chardev", f"socket,id=qmp,fd={qmp_theirs.fileno()}", "-qmp", "chardev:qmp",
            "-chardev", f"socket,id=qtest,fd={qtest_theirs.fileno()}",
            "-qtest", "chardev:qtest", "-qtest-log", "none",
        ]
        self.command = tuple(words)
        return (qmp, qtest), inherited

    def _spawn(self, inherited: list[int]) -> None:
        guard = _guard_command()
        me = os.getpid()
        words, made = images.bring(self.command, self._images)
        if guard:
            words = [*guard, str(me), *words]
        try:
            # restore_signals (the default) matters: Python ignores SIGXFSZ and SIGPIPE.
            self._child = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=self._output_fd,
                stderr=self._output_fd,
                # The same as -audio none, for the versions before it.
                env={"QEMU_AUDIO_DRV": "none", **self.config.build.environment()},
                pass_fds=[*inherited, *made], start_new_session=True,
                preexec_fn=None if guard else lambda: libc.die_with_parent(me))
        except OSError as error:
            raise LaunchError(f"cannot start {self.command[0]}: {error.strerror}",
                              command=self.command) from error
        self._finalizer = weakref.finalize(self, _forgotten, self._child, me, self._monitors)
        with contextlib.suppress(OSError):  # it may have ended already
            resource.prlimit(self._child.pid, resource.RLIMIT_CORE, (0, 0))
        self._limit_files(self._file_limit)
        for sock in self._theirs:
            sock.close()

    def _connect(self, qmp: socket.socket, qtest: socket.socket, *, deadline: float) -> None:
        on_eof = _weakly(self)
        self.monitor = Monitor(qmp, on_eof=on_eof, timeout_s=deadline - time.monotonic())
        self.monitor.owners = prints_owners(self.config)
        self._monitors.append(self.monitor)
        self._open.callback(self.monitor.close)
        self.channel = QtestChannel(qtest, on_eof=on_eof)
        self.qtest = Qtest(self.channel, timeout_s=max(0.0, deadline - time.monotonic()))
        self.endianness = self.qtest.endianness()
        self.qtest.timeout_s = Qtest(self.channel).timeout_s

    def _launch_failure(self, error: BaseException) -> LaunchError | None:
        """The launch error that an exception stands for; ``None``: let it through."""
        if not isinstance(error, QemuFailure) or self._child is None:
            return None
        said = self.stderr_tail()
        code = self._child.returncode
        if isinstance(error, QemuHang):
            why = f"it did not come up within {self._launch_timeout_s:g} s"
        elif isinstance(error, QemuDied):
            told = _own_message(said)
            why = told or str(error)
            if error.signal is not None and told:
                why = f"{error}; its last words: {why}"
        else:
            why = str(error)
        return LaunchError(f"QEMU did not start {self.config.full_name}: {why}",
                           command=self.command, exit_code=code, stderr=said)

    # --- looking -----------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """QEMU's process id; also its process group's and session's."""
        assert self._child is not None, "not launched"
        return self._child.pid

    def poll(self) -> bool:
        """Whether QEMU is running. Reaps it, and what it started, when it is not."""
        return not self._wait(0.0)

    def exit_status(self) -> ExitStatus:
        """How QEMU stands now, without waiting."""
        if self._status is not None:
            return self._status
        if self.poll():
            return ExitStatus(ExitKind.RUNNING)
        assert self._child is not None
        code = self._child.returncode
        event = None
        if hasattr(self, "monitor"):
            self.monitor.drain()
            event = self.monitor.shutdown
        self._status = ExitStatus(
            ExitKind.SIGNALED if code < 0 else ExitKind.EXITED,
            code=None if code < 0 else code, signal=-code if code < 0 else None,
            shutdown_reason=None if event is None else str(event.data.get("reason")),
            shutdown_guest=event is not None and event.data.get("guest") is True,
            expected=self._expected)
        return self._status

    def stderr_tail(self, size: int = STDERR_TAIL_BYTES) -> str:
        """The last ``size`` bytes QEMU wrote to stdout and stderr, in order."""
        if self._output_fd < 0:
            return self._last_words
        end = os.fstat(self._output_fd).st_size
        start = max(0, end - size)
        return os.pread(self._output_fd, end - start, start).decode("utf-8", "backslashreplace")

    _output_fd = -1
    _last_words = ""

    def failure(self) -> QemuFailure:
        """What became of a QEMU that closed a channel: waits for its end, kills a stuck one.

        :class:`QemuDied`, :class:`ResourceError` when it ran into a limit of ours, or
        :class:`QemuHang` when it closed its channel and does not end.
        """
        if not self._wait(EXIT_TIMEOUT_S):
            self.kill()
            return QemuHang(channel="exit", timeout_s=EXIT_TIMEOUT_S)
        status = self.exit_status()
        if status.signal == signal.SIGXFSZ:
            return ResourceError(what="a file QEMU writes", limit=self._file_limit)
        return QemuDied(exit_code=status.code, signal=status.signal, stderr=self.stderr_tail())

    # --- limits ------------------------------------------------------------------------

    @contextlib.contextmanager
    def without_file_limit(self) -> Iterator[None]:
        """For a command that makes QEMU write a file larger than its limit (a dump)."""
        self._limit_files(resource.RLIM_INFINITY)
        try:
            yield
        finally:
            self._limit_files(self._file_limit + self._released)

    _released = 0

    def _on_release(self, released: int) -> None:
        self._released = released
        self._limit_files(self._file_limit + released)
        if os.fstat(self._output_fd).st_size > OUTPUT_LIMIT_BYTES:
            raise ResourceError(what="QEMU's stderr", limit=OUTPUT_LIMIT_BYTES)

    def _limit_files(self, soft: int) -> None:
        """Only the soft limit: the hard one stays, so it can be raised again without root."""
        assert self._child is not None
        if self._child.returncode is not None:
            return
        with contextlib.suppress(OSError, ValueError):
            hard = resource.prlimit(self._child.pid, resource.RLIMIT_FSIZE)[1]
            if hard != resource.RLIM_INFINITY and (soft == resource.RLIM_INFINITY or soft > hard):
                soft = hard
            resource.prlimit(self._child.pid, resource.RLIMIT_FSIZE, (soft, hard))

    # --- ending ------------------------------------------------------------------------

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(soft=kind is None)

    def kill(self) -> None:
        """SIGKILL to the whole process group, and reap it; idempotent."""
        if self._child is None or self._child.returncode is not None:
            return
        if not self._wait(0.0):
            self._expected = True
            _end(self._child)
            # Its last events are still in the socket.
            self.exit_status()

    def close(self, *, soft: bool = True) -> None:
        """End QEMU (``quit``, then SIGKILL) and close every channel; idempotent.

        A QEMU that is out of step on a channel is killed without being asked.
        """
        if soft and self._child is not None and self.poll() and not self.channel.broken:
            self._expected = True
            with contextlib.suppress(QemuFailure):
                self.monitor.execute("quit", timeout_s=SOFT_TIMEOUT_S)
            self._wait(SOFT_TIMEOUT_S)
        self.kill()
        self._release()

    def _release(self) -> None:
        if self._child is not None:
            self.exit_status()
        if self._output_fd >= 0:
            self._last_words = self.stderr_tail()
            self._output_fd, closing = -1, self._output_fd
            assert closing >= 0
        if hasattr(self, "channel"):
            self.channel.close()
        self._images.close()
        self._open.close()
        if self._finalizer is not None:
            self._finalizer.detach()

    def _wait(self, timeout_s: float) -> bool:
        """Wait for the end and reap; ``False`` when QEMU still runs after ``timeout_s``."""
        assert self._child is not None, "not launched"
        return _reap(self._child, timeout_s)


def _reap(child: subprocess.Popen[bytes], timeout_s: float) -> bool:
    """Wait for ``child``, end what is left of its process group, then reap it.

    In that order: the group's number is safe to use only until the child is reaped.
    """
    if child.returncode is not None:
        return True
    deadline = time.monotonic() + timeout_s
    pause = 0.0005
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while os.waitid(os.P_PID, child.pid, options) is None:
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause)
        pause = min(2 * pause, 0.01)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    return True


def _weakly(process: QemuProcess) -> Callable[[], QemuFailure]:
    """``process.failure`` for its channels, without keeping a forgotten process alive."""
    known = weakref.ref(process)

    def failure() -> QemuFailure:
        still = known()
        return QemuDied(signal=signal.SIGKILL) if still is None else still.failure()

    return failure


def _forgotten(child: subprocess.Popen[bytes], owner: int, monitors: list[Monitor]) -> None:
    """Run when a QemuProcess is forgotten unclosed, and when Python ends.

    In a forked copy of this process it does nothing: the QEMU is the parent's, and so is
    the event loop's epoll descriptor, which both share.
    """
    if os.getpid() == owner:
        _end(child)
        for monitor in monitors:
            monitor.close()


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill and reap."""
    if _reap(child, 0.0):
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    _reap(child, HARD_TIMEOUT_S)
