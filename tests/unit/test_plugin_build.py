"""Compiling the plugin, and the object itself inside a stand-in for QEMU's plugin interface."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from qemuglue.errors import EnvironmentFailure, UsageError, plain
from qemuglue.qemu.plugin import build
from qemuglue.qemu.plugin.build import library, plugin_argument, source
from qemuglue.qemu.plugin.records import LogEnd, end_of_log, parse

try:
    build._compiler()
    HAVE_COMPILER = True
except EnvironmentFailure:
    HAVE_COMPILER = False

needs_compiler = pytest.mark.skipif(not HAVE_COMPILER, reason="this host has no C compiler")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache, of mine"
    monkeypatch.setenv("QEMUGLUE_CACHE", str(folder))
    return folder


# Compiling


@needs_compiler
def test_the_object_is_compiled_once_and_kept(cache: Path) -> None:
    first = library()
    before = first.stat().st_mtime_ns
    assert first.parent == cache / "plugin"
    assert library() == library("10.0.2") == first
    assert first.stat().st_mtime_ns == before
    assert list(first.parent.iterdir()) == [first]


@needs_compiler
def test_only_qemu_11_0_has_an_object_of_its_own() -> None:
    assert len({library(v) for v in (None, "7.2.22", "10.0.2", "10.2.1", "11.1.3", "12.0.0")}) == 1
    assert library("11.0.1") != library("11.1.0")


@needs_compiler
def test_a_change_of_the_source_makes_another_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = library()
    changed = tmp_path / "access_log.c"
    changed.write_bytes(source().read_bytes() + b"\n/* changed */\n")
    monkeypatch.setattr(build, "source", lambda: changed)
    assert library() != first


@needs_compiler
def test_runs_side_by_side_get_one_whole_object(cache: Path) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(library())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(found) == 4 and len(set(found)) == 1
    assert list((cache / "plugin").iterdir()) == [found[0]]


def test_without_a_compiler_one_sentence_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentFailure, match="none of cc, gcc, clang is on PATH: install one"):
        plugin_argument("10.0.2")


def test_a_compiler_that_fails_leaves_nothing(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'x.c: error: no disk' >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}")
    with pytest.raises(EnvironmentFailure, match=r"\(exit 3\): x.c: error: no disk") as caught:
        library()
    assert "\n" not in str(caught.value)
    assert list((cache / "plugin").iterdir()) == []


@needs_compiler
def test_a_cache_that_cannot_be_written(cache: Path) -> None:
    cache.write_text("a file stands in the way")
    with pytest.raises(EnvironmentFailure, match="cannot be written") as caught:
        library()
    assert "QEMUGLUE_CACHE" in str(caught.value)


# The argument


@needs_compiler
def test_the_argument_carries_path_and_options(cache: Path) -> None:
    path = str(library())
    assert plugin_argument("7.2.22", limit=None) == path.replace(",", ",,")
    assert ",, of mine" in plugin_argument("7.2.22")
    whole = plugin_argument("11.1.3", io=True, addresses=(0x1000, 0x1FFF), limit=5)
    assert whole.endswith(".so,io=on,range=0x1000-0x1fff,limit=5")
    assert plugin_argument("11.1.3").endswith(f",limit={build.DEFAULT_LIMIT}")


@pytest.mark.parametrize(("version", "options"), [
    ("10.0.2", {"addresses": (2, 1)}),
    ("10.0.2", {"addresses": (-1, 1)}),
    ("10.0.2", {"addresses": (0, 1 << 64)}),
    ("10.0.2", {"limit": 0}),
    ("10.0.2", {"limit": 1 << 64}),
    ("newest", {}),
    ("11", {}),
    ("", {}),
])
def test_bad_input_is_refused(version: str, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        plugin_argument(version, **options)


def test_a_qemu_without_this_form_of_options_is_refused() -> None:
    with pytest.raises(EnvironmentFailure, match=r"6\.2 and later, not with 5\.2\.0"):
        plugin_argument("5.2.0")


# The object in a stand-in for QEMU. The generations of the interface are made by leaving functions
# out; what a QEMU of an API gives a plugin is in access_log.c.

STAND_IN = r"""
typedef unsigned long long u64;
typedef struct { int type; union { u64 number; struct { u64 low, high; } both; } data; } Value;
typedef struct { const char *target; int min, cur; _Bool whole; int cpus, most; } Info;
static char text[1 << 16];
static unsigned length;
static void (*translate)(void), (*at_exit)(void);
static void (*on_access)(unsigned, unsigned, u64, void *);
static void *user;
static int big, store, shift, known, io;
static u64 physical;
static const char *name;
static Value value;
static void *const GIVEN = &value;

const char *said(void) { text[length] = 0; return text; }
void qemu_plugin_outs(const char *s) { while (*s && length < sizeof text - 1) text[length++] = *s++; }
u64 qemu_plugin_tb_n_insns(void *tb) { return tb == GIVEN ? 1 : 0; }
void *qemu_plugin_tb_get_insn(void *tb, u64 index) { (void)index; return tb; }
u64 qemu_plugin_insn_vaddr(void *insn) { return insn == GIVEN ? 0xfff0 : 0; }
void qemu_plugin_register_atexit_cb(u64 id, void (*call)(void), void *u) { (void)u; at_exit = id == 9 ? call : 0; }
void qemu_plugin_register_vcpu_mem_cb(void *insn, void (*call)(unsigned, unsigned, u64, void *),
                                      int flags, int which, void *u)
{ if (insn == GIVEN && !flags && which == 3) { on_access = call; user = u; } }
unsigned qemu_plugin_mem_size_shift(unsigned info) { (void)info; return shift; }
_Bool qemu_plugin_mem_is_store(unsigned info) { (void)info; return store; }
_Bool qemu_plugin_mem_is_big_endian(unsigned info) { (void)info; return big; }
void *qemu_plugin_get_hwaddr(unsigned info, u64 at) { (void)info; (void)at; return known ? GIVEN : 0; }
_Bool qemu_plugin_hwaddr_is_io(void *at) { (void)at; return io; }
u64 qemu_plugin_hwaddr_phys_addr(void *at) { (void)at; return physical; }
const char *qemu_plugin_hwaddr_device_name(void *at) { (void)at; return name; }
#if API < 7
void qemu_plugin_register_vcpu_tb_trans_cb(u64 id, void (*call)(void)) { translate = id == 9 ? call : 0; }
static void run_translation(void) { ((void (*)(u64, void *))translate)(9, GIVEN); }
#else
void qemu_plugin_register_vcpu_tb_trans_cb(u64 id, void (*call)(void), void *u) { (void)u; translate = id == 9 ? call : 0; }
static void run_translation(void) { ((void (*)(void *, void *))translate)(GIVEN, 0); }
#endif
#if API >= 2
int qemu_plugin_num_vcpus(void) { return 1; }
#endif
#if API >= 4
Value qemu_plugin_mem_get_value(unsigned info) { (void)info; return value; }
#endif
#if API >= 5
void qemu_plugin_read_memory_hwaddr(void) {}
#endif
#if API >= 6
void qemu_plugin_set_pc(void) {}
#endif
int install(int (*call)(u64, const Info *, int, char **), int count, char **options)
{
    Info info = {"x86_64", 0, API, 1, 1, 1};
    int failed = call(9, &info, count, options);
    if (!failed) run_translation();
    return failed;
}
void run(u64 at, int size_shift, int is_store, int is_big, int is_known, int is_io, u64 phys,
         const char *region, int type, u64 low, u64 high)
{
    shift = size_shift; store = is_store; big = is_big; known = is_known; io = is_io;
    physical = phys; name = region; value.type = type; value.data.both.low = low;
    value.data.both.high = high;
    on_access(3, 0, at, user);
}
void finish(void) { at_exit(); }
"""  # noqa: E501 - as short as it can be

DRIVER = """
import ctypes, json, sys
host, plugin, options, accesses = sys.argv[1], sys.argv[2], *map(json.loads, sys.argv[3:])
host = ctypes.CDLL(host, mode=ctypes.RTLD_GLOBAL)
plugin = ctypes.CDLL(plugin)
host.said.restype = ctypes.c_char_p
array = (ctypes.c_char_p * (len(options) + 1))(*[o.encode() for o in options], None)
failed = host.install(plugin.qemu_plugin_install, len(options), array)
U = ctypes.c_uint64
if not failed:
    for at, shift, store, big, known, io, phys, name, kind, low, high in accesses:
        region = None if name is None else name.encode("latin-1")
        host.run(U(at), shift, store, big, known, io, U(phys), region, kind, U(low), U(high))
    host.finish()
version = ctypes.c_int.in_dll(plugin, "qemu_plugin_version").value
print(json.dumps([version, failed, host.said().decode("latin-1")]))
"""

#: vaddr, size shift, store, big, known, io, paddr, name, value type, low half, high half
ONE = (0xFED0_0010, 2, 0, 0, 1, 1, 0x10, "hpet", 2, 0xAABB_CCDD, 0)


class Host:
    """Loads the plugin into a stand-in of one API version, in a Python of its own."""

    def __init__(self, folder: Path, api: int) -> None:
        self.path = folder / f"host-{api}.so"
        self.plugin = library("11.0.0" if api == 6 else None)
        code = folder / "host.c"
        code.write_text(STAND_IN)
        subprocess.run(
            [str(build._compiler()), "-shared", "-fPIC", "-O1", "-ffreestanding", "-nostdlib",
             "-fno-stack-protector", f"-DAPI={api}", "-o", str(self.path), str(code)],
            check=True, timeout=60,
        )

    def run(
        self, options: Sequence[str] = (), accesses: Sequence[tuple[Any, ...]] = (ONE,),
    ) -> tuple[int, int, bytes]:
        """(version the plugin declares, what its install returns, its lines)."""
        done = subprocess.run(
            [sys.executable, "-c", DRIVER, str(self.path), str(self.plugin),
             json.dumps(list(options)), json.dumps(list(accesses))],
            check=True, capture_output=True, timeout=60,
        )
        version, failed, text = json.loads(done.stdout)
        return version, failed, text.encode("latin-1")


@needs_compiler
@pytest.mark.parametrize("api", [1, 2, 4, 5, 6, 7])
def test_each_api_version_gets_its_declaration_and_its_callbacks(api: int, tmp_path: Path) -> None:
    version, failed, text = Host(tmp_path, api).run()
    assert (version, failed) == (api, 0)
    assert text.startswith(b"qg_plugin api %d target 'x86_64'\n" % api)
    assert end_of_log(text) == LogEnd(None, 1, 1)
    (record,) = parse(text)
    assert (record.cpu, record.instruction, record.virtual) == (3, 0xFFF0, 0xFED0_0010)
    assert (record.physical, record.is_io, record.name) == (0x10, True, "hpet")
    assert record.value == (0xAABB_CCDD if api >= 4 else None)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    folder = tmp_path_factory.mktemp("host")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QEMUGLUE_CACHE", str(folder))
        return Host(folder, 4)


@needs_compiler
def test_every_kind_of_access_and_name_comes_back(host: Host) -> None:
    top = (1 << 64) - 1
    hostile = "a'b\\c\n\x01\x7f\xff qg_access"
    accesses = [
        (top, 0, 1, 1, 1, 0, top, "RAM", 0, 0xAB, 0),
        (0, 1, 0, 0, 1, 1, 0, hostile, 1, 0xABCD, 0),
        (8, 3, 0, 0, 1, 1, 8, None, 3, top, 0),
        (16, 4, 1, 0, 0, 0, 0, "lost", 4, 0xF, 0xE),
        (32, 0, 0, 0, 1, 1, 0, "n" * 2000, 0, 0, 0),
    ]
    ram, odd, wide, lost, long = parse(host.run(accesses=accesses)[2])
    assert (ram.virtual, ram.physical, ram.size, ram.store) == (top, top, 1, True)
    assert (ram.big_endian, ram.is_io, ram.value) == (True, False, 0xAB)
    assert odd.name == plain(hostile.replace("\xff", "\\xff")) and odd.value == 0xABCD
    assert (wide.name, wide.value, wide.size) == (None, top, 8)
    assert (lost.physical, lost.is_io, lost.name) == (None, None, None)
    assert (lost.size, lost.value) == (16, 0xE << 64 | 0xF)
    assert long.name == "n" * 160


@needs_compiler
def test_the_longest_possible_line_is_whole(host: Host) -> None:
    top = (1 << 64) - 1
    worst = (top, 7, 1, 0, 1, 1, top, "\x01" * 2000, 4, top, top)
    (record,) = parse(host.run(accesses=[worst])[2])
    assert record.name == plain("\x01" * 160) and record.value == (1 << 128) - 1


@needs_compiler
def test_io_keeps_devices_and_what_cannot_be_told(host: Host) -> None:
    ram = (0, *ONE[1:5], 0, *ONE[6:])
    lost = (1, *ONE[1:4], 0, 0, *ONE[6:])
    text = host.run(["io=on"], [ram, lost, ONE])[2]
    assert [r.virtual for r in parse(text)] == [1, ONE[0]]
    assert len(parse(host.run(["io=off"], [ram, lost, ONE])[2])) == 3


@needs_compiler
@pytest.mark.parametrize(("bounds", "kept"), [
    ("0x100-0x1ff", [0xFD, 0xFF, 0x100, 0x1FF]),
    ("256-256", [0xFD, 0xFF, 0x100]),
    ("0x0-0x0", [0]),
    ("0xfffffffffffffffe-0xffffffffffffffff", [(1 << 64) - 4]),
])
def test_a_range_keeps_what_touches_it(host: Host, bounds: str, kept: list[int]) -> None:
    starts = [0, 0xFC, 0xFD, 0xFF, 0x100, 0x1FF, 0x200, (1 << 64) - 4]
    text = host.run([f"range={bounds}"], [(at, *ONE[1:]) for at in starts])[2]
    assert [r.virtual for r in parse(text)] == kept


@needs_compiler
def test_after_the_limit_it_is_quiet_and_says_so_once(host: Host) -> None:
    text = host.run(["limit=2"], [ONE] * 5)[2]
    assert len(parse(text)) == 2
    assert text.count(b"qg_limit") == 1
    assert end_of_log(text) == LogEnd(2, 5, 2)
    assert end_of_log(host.run(["limit=2"], [ONE] * 2)[2]) == LogEnd(None, 2, 2)


@needs_compiler
@pytest.mark.parametrize("option", [
    "io=maybe", "io=", "io=once", "range=1", "range=2-1", "range=1-", "range=-1", "range=0x-5",
    "range=1-2x", "limit=", "limit=-1", "limit=18446744073709551616",
    "range=0-0x10000000000000000", "unknown=1", "", "limit",
])
def test_an_option_that_cannot_be_read_stops_the_load(host: Host, option: str) -> None:
    _, failed, text = host.run(["io=on", option])
    assert failed and text == b""
