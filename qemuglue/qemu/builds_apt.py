"""A private apt: read a Debian suite's packages without root and without touching the host's.

apt keeps all it knows in four places that are plain configuration: the sources, the state, the
cache and dpkg's status file. This module points all four into a folder of our own (the status
file empty, so that the whole dependency closure comes, libc included) and takes only two facts
from the host: which mirror it uses and which keyring signs it. Signatures are checked as ever.

It knows nothing of QEMU and unpacks nothing; see :mod:`qemuglue.qemu.builds_install`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qemuglue.errors import BuildError

#: One apt command may take this long; a slow mirror brings 60 MB in a few minutes.
APT_TIMEOUT_S = 1200

#: Suites whose names say nothing of a release: a host on one of them has no codename entry.
ROLLING_SUITES = frozenset({"stable", "testing", "unstable", "sid", "oldstable"})

#: Fields of a source that pick what to fetch; ours replace them. All others are kept as they are.
REPLACED_FIELDS = frozenset({
    "types", "uris", "suites", "components", "enabled", "architectures", "languages", "targets",
    "pdiffs", "by-hash", "x-repolib-name",
})

WANTED_COMPONENTS = ("main", "universe")  # QEMU is in main; Ubuntu keeps rare targets in universe


@dataclass(frozen=True, slots=True)
class Source:
    """One archive the host uses: its address, suites, components and trust (``options``)."""

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    options: tuple[tuple[str, str], ...] = ()

    def stanza(self, suites: Iterable[str]) -> str:
        """This archive as a deb822 source that offers ``suites`` only."""
        components = [c for c in WANTED_COMPONENTS if c in self.components] or ["main"]
        lines = [
            "Types: deb", f"URIs: {self.uri}", f"Suites: {' '.join(suites)}",
            f"Components: {' '.join(components)}",
            *(f"{name}: {value}" for name, value in self.options),
        ]
        return "\n".join(lines) + "\n"


# Section: the host's own configuration


def parse_deb822(text: str) -> list[Source]:
    """Sources of a ``.sources`` file (deb822: stanzas of ``Field: value``, folded lines)."""
    found: list[Source] = []
    for stanza in re.split(r"\n[ \t]*\n", text):
        fields: list[tuple[str, str]] = []
        for line in stanza.splitlines():
            if line.startswith("#"):
                continue
            if line[:1] in (" ", "\t") and fields:
                name, value = fields[-1]
                fields[-1] = (name, f"{value}\n{line}")
            elif ":" in line:
                name, _, value = line.partition(":")
                fields.append((name.strip(), value.strip()))
        known = {name.lower(): value for name, value in fields}
        if "deb" not in known.get("types", "").split():
            continue
        if known.get("enabled", "yes").lower() in ("no", "false", "0", "off"):
            continue
        options = tuple((n, v) for n, v in fields if n.lower() not in REPLACED_FIELDS)
        for uri in known.get("uris", "").split():
            found.append(Source(uri, tuple(known.get("suites", "").split()),
                                tuple(known.get("components", "").split()), options))
    return found


def parse_one_line(text: str) -> list[Source]:
    """Sources of a ``.list`` file: ``deb [option=value …] URI SUITE COMPONENT…``."""
    found: list[Source] = []
    pattern = re.compile(r"^\s*deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)((?:\s+[^\s#]+)*)")
    for line in text.splitlines():
        match = pattern.match(line)
        if not match:
            continue
        options = []
        for word in (match[1] or "").split():
            name, _, value = word.partition("=")
            title = "-".join(part.capitalize() for part in name.split("-"))
            if title.lower() not in REPLACED_FIELDS and title.lower() not in ("arch", "lang"):
                options.append((title, value.replace(",", " ")))
        found.append(Source(match[2], (match[3],), tuple(match[4].split()), tuple(options)))
    return found


def host_sources(config: dict[str, str] | None = None) -> list[Source]:
    """The sources in the host's apt configuration, in the order apt reads them.

    Files that this user may not read are left out: another one may still serve.
    """
    config = apt_paths() if config is None else config
    files = [Path(config["sourcelist"])]
    parts = Path(config["sourceparts"])
    if parts.is_dir():
        files += sorted(p for p in parts.iterdir() if p.suffix in (".list", ".sources"))
    found: list[Source] = []
    for file in files:
        try:
            text = file.read_text(errors="replace")
        except OSError:
            continue
        found += parse_deb822(text) if file.suffix == ".sources" else parse_one_line(text)
    return found


def apt_paths() -> dict[str, str]:
    """Where apt keeps its sources on this host.

    :raise BuildError: apt is not on this host.
    """
    missing = [tool for tool in ("apt-get", "apt-config", "dpkg-deb") if not shutil.which(tool)]
    if missing:
        raise BuildError(
            f"managed builds need apt and this host has no {missing[0]}: "
            "give a QEMU of your own with --build PATH (a qemu-system binary or a build tree)"
        )
    done = subprocess.run(
        ["apt-config", "shell", "sourcelist", "Dir::Etc::sourcelist/f",
         "sourceparts", "Dir::Etc::sourceparts/d"],
        capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL,
    )
    found = dict(re.findall(r"^(\w+)='(.*)'$", done.stdout, re.MULTILINE))
    usual = {"sourcelist": "/etc/apt/sources.list", "sourceparts": "/etc/apt/sources.list.d"}
    return usual | found


def candidates(suite: str, sources: Sequence[Source], codename: str) -> list[Source]:
    """Archives that may serve ``suite``, the likeliest first; one entry an address.

    An archive that the host uses for this very suite, then the one of the host's own release
    (a mirror of Debian carries every suite), then one of a rolling suite. Third parties' archives
    and the security archive list none of these under the release's plain name.
    """
    base = suite.removesuffix("-backports")

    def rank(source: Source) -> int:
        for place, names in enumerate(({suite}, {base}, {codename}, ROLLING_SUITES)):
            if names & set(source.suites):
                return place
        return 9

    likeliest: dict[str, Source] = {}
    for source in sorted((s for s in sources if "main" in s.components), key=rank):
        if rank(source) < 9:
            likeliest.setdefault(source.uri.rstrip("/"), source)
    return list(likeliest.values())


def host_codename() -> str:
    """The release this host runs (``VERSION_CODENAME``), or an empty string."""
    try:
        text = Path("/etc/os-release").read_text(errors="replace")
    except OSError:
        return ""
    match = re.search(r'^VERSION_CODENAME="?([\w.-]+)', text, re.MULTILINE)
    return match[1] if match else ""


# Section: the private apt


@dataclass(slots=True)
class PrivateApt:
    """An apt whose sources, state, cache and status live in ``folder`` (made if needed)."""

    folder: Path
    _env: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for part in ("state/lists/partial", "cache/archives/partial", "etc"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        (self.folder / "status").write_bytes(b"")
        (self.folder / "apt.conf").write_text(self._configuration())
        self._env = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
        self._env.pop("APT_CONFIG", None)

    def _configuration(self) -> str:
        # Read after the host's own files, so proxies, certificates and time-outs stay the host's.
        # Its hooks go: they belong to the system (and one common in containers wipes the cache).
        def quoted(*parts: str) -> str:
            path = str(self.folder.joinpath(*parts))
            if re.search(r'["\\\n]', path):
                raise BuildError(f"the cache folder's name cannot be told to apt: {path}")
            return f'"{path}"'

        return "\n".join([
            "#clear APT::Update;", "#clear DPkg::Pre-Invoke;", "#clear DPkg::Post-Invoke;",
            "#clear DPkg::Pre-Install-Pkgs;", "#clear APT::Default-Release;",
            f"Dir::State {quoted('state')};",
            f"Dir::State::status {quoted('status')};",
            f"Dir::Cache {quoted('cache')};",
            'Dir::Cache::pkgcache "";', 'Dir::Cache::srcpkgcache "";',
            f"Dir::Etc::sourcelist {quoted('etc', 'apt.sources')};",
            'Dir::Etc::sourceparts "/dev/null";',
            'Dir::Etc::preferences "/dev/null";', 'Dir::Etc::preferencesparts "/dev/null";',
            'Acquire::Languages "none";', 'Acquire::Retries "2";', 'Acquire::PDiffs "false";',
            # Else root's download runs as a user who may not write here.
            'APT::Sandbox::User "root";',
            'APT::Install-Recommends "false";', 'APT::Get::List-Cleanup "false";',
            # Else apt calls an index it could not fetch a warning and exits with 0.
            'APT::Update::Error-Mode "any";', 'APT::Keep-Downloaded-Packages "true";', "",
        ])

    def run(self, *arguments: str, tool: str = "apt-get") -> str:
        """Run apt and return its stdout.

        :raise BuildError: with apt's own reason, or after :data:`APT_TIMEOUT_S` seconds.
        """
        command = [tool, "-c", str(self.folder / "apt.conf"), "-q", *arguments]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", env=self._env,
                stdin=subprocess.DEVNULL, timeout=APT_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            raise BuildError(f"apt did not finish within {APT_TIMEOUT_S} s") from None
        except OSError as error:
            raise BuildError(f"{tool} cannot be run: {error}") from None
        if done.returncode:
            raise BuildError(_reason(done.stderr) or f"{tool} exited with {done.returncode}")
        return done.stdout

    def use(self, source: Source, suite: str) -> None:
        """Read the index of ``suite`` (for backports: of its base suite too) from ``source``.

        :raise BuildError: the archive has no such suite, cannot be reached or is not trusted.
        """
        base = suite.removesuffix("-backports")
        (self.folder / "etc" / "apt.sources").write_text(
            source.stanza(dict.fromkeys((base, suite))))
        self.run("update")

    def fetch(self, suite: str, packages: Sequence[str]) -> list[Path]:
        """Download ``packages`` and all they depend on; the archives, in name order."""
        archives = self.folder / "cache" / "archives"
        for stale in archives.glob("*.deb"):
            stale.unlink()
        self.run("install", "--yes", "--download-only", f"--target-release={suite}", *packages)
        return sorted(archives.glob("*.deb"))

    def names(self, pattern: str) -> list[str]:
        """Names of packages that match the regular expression ``pattern``."""
        text = self.run("--names-only", "search", pattern, tool="apt-cache")
        return sorted(line.split(" ", 1)[0] for line in text.splitlines() if line)


def _reason(stderr: str) -> str:
    """The first error apt printed, as one line."""
    errors = [line[3:].strip() for line in stderr.splitlines() if line.startswith(("E: ", "Err:"))]
    return errors[0] if errors else ""
