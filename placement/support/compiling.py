"""Kernels compiled before they are needed, side by side.

numba compiles one kernel at a time in a process, so further processes take part beside this one: what they compile lies
in numba's cache on disk, where this one finds it. Two commands that begin at once share the work: a piece has a lock
beside its compiled code, and who finds a piece locked takes another first. Compiled code changes no result, so whatever
fails here is left for the first call to compile, as numba does.
"""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from placement.support.file_lock import file_lock
from placement.support.parallel import check_workers
from placement.support.progress import Listener, Progress, ignore

DONE = "done"
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompilePiece:
    """A tiny run that has numba compile a part of the kernels.

    run      a function of a module: other processes find it by its name
    arguments  what the function is called with, words without spaces
    kernels  the largest that it compiles: if numba's cache holds them the piece need not be run
    types    a type among those of their arguments, where pieces differ by it
    """

    run: Callable[..., None]
    kernels: tuple[Any, ...]
    types: str = ""
    arguments: tuple[str, ...] = ()

    def is_compiled(self) -> bool:
        return all(is_compiled(kernel, self.types) for kernel in self.kernels)

    @property
    def lock(self) -> Path | None:
        """Held by who compiles it; None: its kernels have no cache."""
        try:
            folder = Path(self.kernels[0].stats.cache_path)
        except (AttributeError, TypeError):
            return None
        return folder / f"{'-'.join((self.run.__name__, *self.arguments))}.lock"

    def is_taken(self) -> bool:
        """True while somebody compiles it."""
        with file_lock(self.lock, wait=False) as free:
            return not free


@dataclass(frozen=True, slots=True)
class _Missing:
    """Pieces to compile. Each goes to one who asks, here or in another process, and is locked until the next is asked.

    told  gets True for a piece that somebody else has compiled meanwhile
    """

    pieces: list[CompilePiece]
    told: SimpleQueue[bool]
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self) -> Iterator[CompilePiece]:
        while (piece := self._next()) is not None:
            with file_lock(piece.lock):
                if not piece.is_compiled():
                    yield piece
                    continue
            self.told.put(True)

    def _next(self) -> CompilePiece | None:
        """The first that nobody compiles; else the first, which is to be waited for."""
        with self._lock:
            if not self.pieces:
                return None
            piece = next((one for one in self.pieces if not one.is_taken()), self.pieces[0])
            self.pieces.remove(piece)
            return piece


def compile_pieces(pieces: Sequence[CompilePiece], *, workers: int | None = None, listener: Listener = ignore) -> int:
    """Compile those of the pieces, the largest first, that numba's cache lacks.

    Args:
        pieces: what will be needed.
        workers: processes at once; None: one for each core that this process may use.
        listener: told the stage "compile", but only where there is something to compile.

    Returns:
        How many pieces were compiled.

    Raises:
        OptionError: workers is less than 1.
    """
    most = check_workers(workers)
    missing = [piece for piece in pieces if not piece.is_compiled()]
    if not missing:
        return 0
    listener(Progress(stage="compile", done=0, total=len(missing)))
    others, done = sum(piece.is_taken() for piece in missing), 0
    width = max(min(most, len(missing)) - others, 1)
    told: SimpleQueue[bool] = SimpleQueue()  # True: a piece is done; False: a helping process has ended
    shared = _Missing(list(missing), told)
    with ThreadPoolExecutor(width) as threads:
        threads.submit(_run_here, shared.take(), told)  # first: the largest need not be read from the cache
        for _ in range(width - 1):
            threads.submit(_feed, shared.take(), told)
        while width:
            if told.get():
                done += 1
                listener(Progress(stage="compile", done=done, total=len(missing)))
            else:
                width -= 1
    return done


def is_compiled(kernel: Any, types: str = "") -> bool:
    """True if this process has the kernel, or numba's cache holds it for this processor, from its source as it is."""
    if any(types in str(signature) for signature in kernel.signatures):
        return True
    try:  # numba has no public way to ask; should a version of it lack these, the pieces are run once more
        cache = kernel._cache
        known = cache._index_key(None, kernel.targetctx.codegen())[1:]
        return any(key[1:] == known and types in str(key[0]) for key in cache._cache_file._load_index())
    except Exception:
        return False


def _run_here(pieces: Iterator[CompilePiece], told: SimpleQueue[bool]) -> None:
    """Run pieces in this process."""
    with seldom_collected():
        for piece in pieces:
            try:
                piece.run(*piece.arguments)
                told.put(True)
            except Exception as error:
                log.info("%s failed: its kernels are compiled at their first call: %s", piece.run.__qualname__, error)
    told.put(False)


@contextmanager
def seldom_collected() -> Iterator[None]:
    """numba makes very many objects that live long: to look for garbage among them takes a twentieth of its time."""
    thresholds = gc.get_threshold()
    gc.set_threshold(100_000, 50, 50)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)


def _feed(pieces: Iterator[CompilePiece], told: SimpleQueue[bool]) -> None:
    """Have one further process run the pieces."""
    command = [sys.executable, "-P", "-m", __name__]  # -P: no module of the working directory
    env = os.environ | {"PYTHONPATH": os.pathsep.join(part for part in sys.path if part)}
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    try:
        with subprocess.Popen(command, env=env, text=True, stdin=pipe, stdout=pipe, stderr=nowhere) as process:
            for piece in pieces:
                words = (piece.run.__module__, piece.run.__qualname__, *piece.arguments)
                print(*words, file=process.stdin, flush=True)
                if process.stdout is None or process.stdout.readline().strip() != DONE:
                    log.info("%s failed: its kernels are compiled at their first call", piece.run.__qualname__)
                    return
                told.put(True)
    except OSError as error:
        log.info("kernels are compiled at their first call: %s", error)
    finally:
        told.put(False)


def main() -> None:
    """Run the pieces that the process that started this one names, a line each."""
    answers = os.dup(sys.stdout.fileno())  # answers get a stream of their own: what a piece prints is no answer
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with seldom_collected():
        for line in sys.stdin:
            module, name, *arguments = line.split()
            getattr(import_module(module), name)(*arguments)
            os.write(answers, f"{DONE}\n".encode())


if __name__ == "__main__":
    main()
