"""Recording a trace from a Hugging Face model while it runs (extra `[runtime]`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from placement.core.huggingface import ExpertModules, argument_names, find_experts, library, named, read_experts_call
from placement.errors import InputError, TraceError
from placement.support.atomic_files import check_free, make_folder
from placement.traces.format import SHARD_TOKENS, RequestEntry, write_manifest
from placement.traces.recording.recorded_batch import ForwardBatch
from placement.traces.recording.recorded_cache import Caches
from placement.traces.recording.recorded_ends import Ends
from placement.traces.recording.recorded_routing import Chosen, RoutingBuffer
from placement.traces.recording.recorded_step import NAME_IT, ForwardStep
from placement.traces.storage.shard_writer import ShardWriter
from placement.traces.write import make_manifest

T = TypeVar("T")


@contextmanager
def record(
    model: Any,
    path: str | Path,
    *,
    name: str | None = None,
    weights: bool = True,
    tokens: bool = False,
    shard_tokens: int = SHARD_TOKENS,
) -> Iterator[Recorder]:
    """Record the experts of every token that `model` sees in this block to a new folder.

    Example::

        with record(model, "trace") as recorder:
            recorder.requests(["q1", "q2"], domain="code")
            model.generate(**tokenizer(prompts, padding=True, return_tensors="pt"))

    Every token that is fed is recorded once: prompts as prefill, single tokens after them as decode; padding and what
    `generate` feeds to rows that have ended are left out.

    Args:
        model: A Mixture-of-Experts model of transformers 5, with its head or without; it is left as it was.
        path: The folder to make, in the format expert-trace/1.
        name: Name of the model in the trace; None: the name of its configuration.
        weights: Also write the router's weights of the chosen experts.
        tokens: Also write the ids of the tokens, from which the texts can be read; homes of new requests can then be
            foretold from their prompts. -1 where a forward was given embeddings.
        shard_tokens: Tokens that are collected before they are written; what was written stays readable if the process
            is killed, the rest is written when the block ends, by an exception too.

    Raises:
        InputError: The model is not understood.
        OutputError: `path` exists already, or cannot be written.
        TraceError: By a forward that cannot be recorded, or does not say which request its tokens are of.
    """
    modules = find_experts(model)
    if shard_tokens < 1:
        raise InputError(f"shard_tokens={shard_tokens} must be 1 or more")
    check_free(path)
    make_folder(path)
    log = RoutingBuffer(modules.num_experts, weights=weights, ids=tokens, most_tokens=shard_tokens)
    recorder = Recorder(
        model,
        modules,
        Path(path),
        log,
        name=_name_of(model) if name is None else name,
        shard_tokens=shard_tokens,
    )
    hooks = [
        modules.decoder.register_forward_pre_hook(recorder._before, with_kwargs=True),
        modules.decoder.register_forward_hook(recorder._after),
        *(
            module.register_forward_pre_hook(recorder._collector(layer), with_kwargs=True)
            for layer, module in enumerate(modules.experts_L)
        ),
    ]
    try:
        with recorder._ends.watching():
            yield recorder
    finally:
        for hook in hooks:
            hook.remove()
        recorder._close()
    if not recorder.num_tokens:
        raise TraceError(f"nothing was recorded to {path}: no forward of the model ran inside of the block")


class Recorder:
    """What `record` gives: names requests, and writes on demand."""

    def __init__(
        self,
        model: Any,
        modules: ExpertModules,
        folder: Path,
        log: RoutingBuffer,
        *,
        name: str,
        shard_tokens: int,
    ) -> None:
        self._modules, self._folder, self._log = modules, folder, log
        self._name, self._shard_tokens = name, shard_tokens
        self._ends, self._ended_by = Ends(model), frozenset[int]()
        self._entries: list[RequestEntry] = []
        self._named: list[RequestEntry] | None = None
        self._given: list[RequestEntry] | None = None  # the names of the forward that runs
        self._batch: ForwardBatch | None = None
        self._caches = Caches()
        self._step: ForwardStep | None = None
        self._chosen_L: list[Chosen | None] = []
        self._names = argument_names(modules.decoder.forward)
        self._writer: ShardWriter | None = None

    def requests(
        self,
        ids: Sequence[str],
        *,
        domain: str | Sequence[str | None] | None = None,
        category: str | Sequence[str | None] | None = None,
    ) -> None:
        """Name the rows of the next batch: one id a row, and a domain and a category for all rows or one for each.

        Rows of a batch that nobody named become requests `request-0`, `request-1` and so on.
        """
        entries: list[dict[str, str | None]] = [{"id": str(name)} for name in ids]
        for what, values in (("domain", domain), ("category", category)):
            column = [values] * len(ids) if values is None or isinstance(values, str) else list(values)
            if len(column) != len(ids):
                raise InputError(f"{len(column)} values of {what} for {len(ids)} requests; give one, or one for each")
            for entry, value in zip(entries, column, strict=True):
                entry |= {} if value is None else {what: value}
        self._named = [RequestEntry.model_validate(entry) for entry in entries]

    @property
    def num_tokens(self) -> int:
        """Tokens that were written so far."""
        return 0 if self._writer is None else self._writer.num_tokens

    def flush(self) -> None:
        """Write what was recorded so far as a shard, so that it outlives this process."""
        self._write()
        if self._writer is not None:
            self._writer.flush()
            self._commit(recording=True)

    def _before(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._step = None
        step = ForwardStep.of(_told(named, self._names, args, kwargs))
        self._given, self._named = self._named, None
        if self._given is not None and len(self._given) != step.rows:
            raise TraceError(
                f"{len(self._given)} requests were named for a batch of {step.rows} rows; name one for each row"
            )
        self._batch = None if self._given is not None else self._caches.batch_of(step)
        self._step, self._chosen_L = step, [None] * len(self._modules.experts_L)

    def _new_batch(self, step: ForwardStep) -> ForwardBatch:
        first = len(self._entries)
        self._entries += self._given or [RequestEntry(id=f"request-{first + row}") for row in range(step.rows)]
        self._ended_by = self._ends.now()
        return ForwardBatch(step, first, named=self._given is not None)

    def _collector(self, layer: int) -> Any:
        names = argument_names(self._modules.experts_L[layer].forward)

        def collect(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # outside of a forward there are recomputations of gradient checkpointing: their tokens were recorded
            if self._step is None:
                return
            if self._chosen_L[layer] is not None:
                raise TraceError(f"layer {self._modules.layer_ids[layer]} ran its experts twice in one forward")
            call = _told(read_experts_call, names, args, kwargs)
            # detached, or the log would keep the activations of a training step alive
            self._chosen_L[layer] = (call.ids_TK, call.weights_TK.detach())

        return collect

    def _after(self, _module: Any, _args: Any, output: Any) -> None:
        step, chosen_L = self._step, [pair for pair in self._chosen_L if pair is not None]
        self._step, self._chosen_L = None, []
        if step is None:
            return
        tokens = step.rows * step.length
        if len(chosen_L) < len(self._modules.experts_L) or any(ids.shape[0] != tokens for ids, _ in chosen_L):
            raise TraceError(
                f"not every layer sent all {tokens} tokens of a forward to its experts; it cannot be recorded"
            )
        cache = step.check_after(output)
        if cache is None and not step.uncached and step.length == 1 and self._given is None and self._batch is None:
            raise TraceError(
                f"{library()} fed one token a row and showed no cache: prompts of one token, or the next tokens of "
                f"requests, cannot be told apart; give use_cache=False for prompts, or {NAME_IT}"
            )
        batch = self._batch or self._new_batch(step)
        fed = batch.take(step, self._ended_by)
        self._caches.keep(cache, batch)
        if self._log.add(chosen_L, fed, step.ids):
            self._write()

    def _write(self) -> None:
        """Hand the log over to the shards; the manifest follows whenever one was written."""
        piece = self._log.drain()
        if piece is None:
            return
        if self._writer is None:
            model = self._modules.model(self._name, piece.ids_LTK.shape[2])
            self._writer = ShardWriter(self._folder, model, shard_tokens=self._shard_tokens)
        if self._writer.add(piece):
            self._commit(recording=True)

    def _commit(self, *, recording: bool) -> None:
        assert self._writer is not None
        manifest = make_manifest(
            self._writer.model,
            self._writer.num_tokens,
            self._entries[: self._writer.num_requests],
            {"recording": True} if recording else None,
        )
        write_manifest(self._folder, manifest)

    def _close(self) -> None:
        self._step = self._batch = None
        self._caches.forget()
        self._write()
        if self._writer is not None:
            self._writer.flush()
            self._commit(recording=False)


def _told(read: Callable[..., T], *given: Any) -> T:
    """What `read` finds in a call. Raises TraceError where it raises InputError."""
    try:
        return read(*given)
    except InputError as error:
        raise TraceError(str(error)) from None


def _name_of(model: Any) -> str:
    return str(getattr(model.config, "_name_or_path", "") or getattr(model.config, "model_type", type(model).__name__))
