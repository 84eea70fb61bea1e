"""The contracts of a whole machine, asked in QEMUs that are thrown away.

A QEMU that dies, hangs or floods while a region is asked costs that region (its row says why,
with the last access), never the rest: a fresh QEMU goes on behind it.
"""

from __future__ import annotations

from collections.abc import Sequence

from qemuglue.campaign.settings import DEFAULT_RAM, ask_ram_id
from qemuglue.campaign.starting import start_machine
from qemuglue.errors import QemuFailure
from qemuglue.qemu.builds import Build
from qemuglue.qemu.config import QemuConfig, VmMode, machine_name
from qemuglue.witness.contract_table import Access, ContractRow, ContractSizes, ContractTable
from qemuglue.witness.judge import Scene
from qemuglue.witness.probe import learn_missing
from qemuglue.witness.session import Knowledge, Session

#: QEMUs that may be lost over one machine: with more, something other than a region is wrong.
MAX_RESTARTS = 200


def probe_machine(build: Build, machine: str, args: Sequence[str] = ()) -> ContractTable:
    """Ask every device region in view of ``TARGET/NAME``.

    :raise UsageError: ``machine`` is no such name.
    :raise LaunchError: the machine does not start; the reason is QEMU's.
    :raise QemuFailure: it starts, and then ends before anything is asked.
    """
    target, name = machine_name(machine)
    build.binary(target)
    ram_id = ask_ram_id(build, target, name) or None
    config, mirror = start_machine(QemuConfig(
        build=build, target=target, machine=name, args=tuple(args),
        ram=DEFAULT_RAM if ram_id else None, ram_id=ram_id, mode=VmMode.STOPPED,
    ))
    names = {region.name for region in mirror.regions}
    scene = Scene(config, Knowledge(), "pci" if "pci-conf-data" in names else "")
    notes: list[str] = []
    rows: tuple[ContractRow, ...] = ()
    for _ in range(MAX_RESTARTS):
        with scene.session() as session:
            try:
                learn_missing(session)
            except QemuFailure:
                continue
            rows = tuple(_rows(session))
            break
    return ContractTable(machine, build.name, build.version, tuple(args), rows, tuple(notes))


def _rows(session: Session) -> list[ContractRow]:
    rows = []
    seen = set()
    for space in session.spaces():
        for section in space.view.sections:
            region = section.region
            if region in seen or region not in set(session.device_regions()):
                continue
            seen.add(region)
            learned = session.knowledge.contracts.get(session.contract_key(region))
            if learned is None:
                reads = Access(unknown=session.unjudgeable(region) or "not asked")
            else:
                order = learned.contract.endian.value if learned.endian_known else ""
                reads = Access(ContractSizes.of(learned.contract), order)
            rows.append(ContractRow(
                region=str(region.key), name=region.name, owner=str(region.key.owner),
                size=region.size, kind=region.kind.value, space=space.name,
                address=section.start, reads=reads, writes=Access(unknown="not asked"),
            ))
    return rows
