"""Implementations of ``Bytes`` whose stream forms are damaged in one way each."""

from __future__ import annotations

from typing import Any

from bytes_damages import SLICE, damage
from bytes_reference import StreamFailed, StreamReference

from qemuglue.memory.guest_error import ErrorKind


def script(stream: Any) -> list[Any]:
    """What a stream of the rules is still going to do."""
    return list(getattr(stream, "script", ()))


def next_step(stream: Any) -> Any:
    return next(iter(script(stream)), None)


@damage("filling")
class ReadsOneByteMore(StreamReference):
    def read_volatile_from(self, addr: int, src: Any, count: int) -> int:
        done = super().read_volatile_from(addr, src, count)
        if count == 7:
            src.read(1)
        return done


@damage("ending_source")
class CountsWhatWasWanted(StreamReference):
    def read_volatile_from(self, addr: int, src: Any, count: int) -> int:
        done = super().read_volatile_from(addr, src, count)
        return count if count == 20 else done


@damage("short_source")
class ReadsUntilTheEnd(StreamReference):
    def read_volatile_from(self, addr: int, src: Any, count: int) -> int:
        done = super().read_volatile_from(addr, src, count)
        while 0 < done < count == self.contract.length:
            done += super().read_volatile_from(addr + done, src, count - done) or count
        return done


@damage("interrupted_source")
class MindsInterruptedReads(StreamReference):
    def read_volatile_from(self, addr: int, src: Any, count: int) -> int:
        if isinstance(next_step(src), InterruptedError):
            raise StreamFailed(ErrorKind.INTERRUPTED)
        return super().read_volatile_from(addr, src, count)


@damage("failing_source")
class TakesAnErrorForTheEnd(StreamReference):
    def read_volatile_from(self, addr: int, src: Any, count: int) -> int:
        try:
            return super().read_volatile_from(addr, src, count)
        except StreamFailed:
            return 0


@damage("filling_at_the_end")
class ReadsWhatHasNoRoom(StreamReference):
    def read_volatile_from(self, addr: int, src: Any, count: int) -> int:
        done = super().read_volatile_from(addr, src, count)
        if count == 12 and done == self.room(addr):
            src.read(count - done)
        return done


@damage("filling_outside")
class ReadsBeforeItLooks(StreamReference):
    def read_volatile_from(self, addr: int, src: Any, count: int) -> int:
        if not self.room(addr) and count:
            src.read(count)
        return super().read_volatile_from(addr, src, count)


@damage("exact", about=SLICE)
class ReadsZeroBytes(StreamReference):
    def read_exact_volatile_from(self, addr: int, src: Any, count: int) -> None:
        super().read_exact_volatile_from(addr, src, count)
        if count == 1:
            src.read(1)


@damage("exact_in_pieces", about=SLICE)
class ReadsTwiceAtMost(StreamReference):
    def read_exact_volatile_from(self, addr: int, src: Any, count: int) -> None:
        if len(script(src)) == 4:
            del src.script[2:]
        super().read_exact_volatile_from(addr, src, count)


@damage("exact_is_read_once")
class ReadsOn(StreamReference):
    def read_exact_volatile_from(self, addr: int, src: Any, count: int) -> None:
        if len(script(src)) == 2 and isinstance(next_step(src), bytes):
            src.script[:] = [b"".join(src.script)]
        super().read_exact_volatile_from(addr, src, count)


@damage("exact_from_a_short_stream", about=SLICE)
class IsContentWithLess(StreamReference):
    def read_exact_volatile_from(self, addr: int, src: Any, count: int) -> None:
        try:
            super().read_exact_volatile_from(addr, src, count)
        except StreamFailed as error:
            if error.kind is not ErrorKind.UNEXPECTED_EOF or not hasattr(src, "script"):
                raise


@damage("exact_from_too_few_bytes", about=SLICE)
class ReadsTheFewThereAre(StreamReference):
    def read_exact_volatile_from(self, addr: int, src: Any, count: int) -> None:
        try:
            super().read_exact_volatile_from(addr, src, count)
        except StreamFailed:
            if not hasattr(src, "script"):
                self.read_volatile_from(addr, src, count)
            raise


@damage("exact_into_short_memory", about=SLICE)
class FillsWhatItCan(StreamReference):
    def read_exact_volatile_from(self, addr: int, src: Any, count: int) -> None:
        if 0 < self.room(addr) < count:
            self.read_volatile_from(addr, src, count)
        super().read_exact_volatile_from(addr, src, count)


@damage("filling_across_the_seam")
class LeavesAGap(StreamReference):
    """What vm-memory 0.18 does with a source that gives less than the first region holds."""

    def read_volatile_from(self, addr: int, src: Any, count: int) -> int:
        before = self.to_seam(addr, count)
        if before == count or count > 12:
            return super().read_volatile_from(addr, src, count)
        done = super().read_volatile_from(addr, src, before)
        return done + super().read_volatile_from(addr + before, src, count - before)


@damage("emptying")
class SkipsTheFirstByte(StreamReference):
    def write_volatile_to(self, addr: int, dst: Any, count: int) -> int:
        skip = count == self.contract.length
        return super().write_volatile_to(addr + skip, dst, count - skip) + skip


@damage("emptying_at_the_end")
class CountsWhatIsNotThere(StreamReference):
    def write_volatile_to(self, addr: int, dst: Any, count: int) -> int:
        done = super().write_volatile_to(addr, dst, count)
        return count if count == 12 else done


@damage("emptying_outside")
class GivesNothingOutside(StreamReference):
    def write_volatile_to(self, addr: int, dst: Any, count: int) -> int:
        if count and not self.room(addr):
            dst.write(b"")
        return super().write_volatile_to(addr, dst, count)


@damage("short_sink", about=SLICE)
class GivesTheRest(StreamReference):
    def write_volatile_to(self, addr: int, dst: Any, count: int) -> int:
        n = self.stream_room(addr, count, write=False)
        if dst.script and dst.script[0] == 3:
            return self.give(dst, self.get(addr, n))
        return super().write_volatile_to(addr, dst, count)


@damage("sink_in_pieces", about=SLICE)
class GivesOnce(StreamReference):
    def write_all_volatile_to(self, addr: int, dst: Any, count: int) -> None:
        if dst.script[:1] == [3] and dst.script[1] != 0:
            self.write_volatile_to(addr, dst, count)
            return
        super().write_all_volatile_to(addr, dst, count)


@damage("full_sink")
class IsContentWhenFull(StreamReference):
    def full(self) -> Any:
        raise StreamFailed(ErrorKind.OTHER)


@damage("interrupted_sink")
class MindsInterruptedWrites(StreamReference):
    def write_volatile_to(self, addr: int, dst: Any, count: int) -> int:
        if dst.script and isinstance(dst.script[0], InterruptedError):
            raise StreamFailed(ErrorKind.INTERRUPTED)
        return super().write_volatile_to(addr, dst, count)


@damage("failing_sink")
class TriesAFailedWriteAgain(StreamReference):
    def write_volatile_to(self, addr: int, dst: Any, count: int) -> int:
        try:
            return super().write_volatile_to(addr, dst, count)
        except StreamFailed as error:
            if error.kind is not ErrorKind.OTHER:
                raise
            return super().write_volatile_to(addr, dst, count)


@damage("emptying_across_the_seam")
class StopsAtTheSeam(StreamReference):
    def write_all_volatile_to(self, addr: int, dst: Any, count: int) -> None:
        part = self.to_seam(addr, count)
        super().write_all_volatile_to(addr, dst, part if part == 5 else count)


@damage("no_count")
class ReadsForACountOf0(StreamReference):
    def read_volatile_from(self, addr: int, src: Any, count: int) -> int:
        if not count:
            src.read(1)
        return super().read_volatile_from(addr, src, count)
