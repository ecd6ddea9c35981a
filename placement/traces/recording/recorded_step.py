"""What one forward of a Hugging Face decoder was given; what is not understood stops the recording.

transformers renames arguments between versions, so a cache is known by what it can do, not by its name, and all that
says how many tokens were fed before must agree: the cache, the mask, the positions and the cache that comes out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.core.huggingface import library
from placement.errors import TraceError

READ = frozenset(("input_ids", "inputs_embeds", "attention_mask", "position_ids", "cache_position", "use_cache"))
# tensors that say nothing about which request a token is of
APART = frozenset(
    (
        "labels",
        "shift_labels",
        "num_items_in_batch",
        "logits_to_keep",
        "token_type_ids",
        "mm_token_type_ids",
        "moe_mm_token_type_ids",
        "visual_pos_masks",
        "deepstack_visual_embeds",
        "per_layer_inputs",
        "pixel_values",
        "pixel_values_videos",
        "image_grid_thw",
        "video_grid_thw",
    )
)
NAME_IT = "name the batch with recorder.requests() to record it as new requests"
REPORT = "record with a version that was tested, and report this"


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardStep:
    """What one forward was given.

    rows, length  shape of its tokens
    past          tokens a row that are in the cache already, padding included
    cache         that cache, or None where none was given
    uncached      the caller said that no cache is kept
    ids, mask     tensors [rows, length] and [rows, past + length], or None
    """

    rows: int
    length: int
    past: int
    cache: Any
    uncached: bool
    ids: Any
    mask: Any

    @staticmethod
    def of(given: Mapping[str, Any]) -> ForwardStep:
        """From the named arguments of a decoder. Raises TraceError."""
        given = {name: value for name, value in given.items() if not _says_nothing(value) or name == "use_cache"}
        caches = {name: value for name, value in given.items() if name not in READ and is_cache(value)}
        if len(caches) > 1:
            raise TraceError(f"{library()} gives the model {len(caches)} caches, {', '.join(caches)}; give one")
        for name, value in given.items():
            if not (name in READ or name in APART or name in caches):
                raise TraceError(
                    f"{library()} gives the model {name} ({type(value).__name__}), which the recorder does not know: "
                    f"it may be a cache, or say which request a token is of; leave it out, or {REPORT}"
                )
        ids, mask = given.get("input_ids"), given.get("attention_mask")
        fed = given.get("inputs_embeds") if ids is None else ids
        if fed is None:
            raise TraceError("a forward without input_ids or inputs_embeds cannot be recorded")
        rows, length = int(fed.shape[0]), int(fed.shape[1])
        cache = next(iter(caches.values()), None)
        past = 0 if cache is None else cache_length(cache)
        step = ForwardStep(
            rows=rows,
            length=length,
            past=past,
            cache=cache,
            uncached=given.get("use_cache") is False,
            ids=ids,
            mask=mask,
        )
        step._check_mask()
        # a token behind a cache is certain already; to read positions would make a GPU wait
        if length > 1 or not past:
            step._check_positions(given.get("position_ids"), given.get("cache_position"))
        return step

    def check_after(self, output: Any) -> Any:
        """The cache after the forward, or None. Raises TraceError where it does not hold what `past` and `length` say.

        This finds a cache that came in unseen, whatever way it took.
        """
        values = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple) else (output,)
        found = {id(one): one for one in (self.cache, *values) if is_cache(one)}
        if len(found) > 1:
            raise TraceError(f"{library()} went on with another cache than it was given; {REPORT}")
        cache = next(iter(found.values()), None)
        if cache is not None and cache_length(cache) != self.past + self.length:
            raise TraceError(
                f"the cache holds {cache_length(cache)} tokens after a forward of {self.length} on top of {self.past}: "
                f"{library()} has a way to give a cache that the recorder does not see; {REPORT}"
            )
        return cache

    def _check_mask(self) -> None:
        mask, whole = self.mask, self.past + self.length
        if mask is None:
            return
        shape = tuple(getattr(mask, "shape", ()))
        if len(shape) != 2 or shape[0] != self.rows or shape[1] < self.length:
            raise TraceError(
                f"an attention_mask of shape {shape} does not say which of {self.rows} x {self.length} tokens are "
                "padding; give one of a row a request, and use the default (dynamic) cache"
            )
        if shape[1] != whole:
            raise TraceError(
                f"an attention_mask of {shape[1]} columns says that {shape[1] - self.length} tokens came before, and "
                f"the cache that {library()} gives the model holds {self.past}; give a mask of cache and tokens, "
                f"{whole} columns; if you do, {REPORT}"
            )

    def _check_positions(self, positions: Any, cache_position: Any) -> None:
        """Raise TraceError if they say that other tokens came before, or that a row has several requests."""
        kept_BS = self.kept_BS()
        if cache_position is not None and int(cache_position.reshape(-1)[0]) != self.past:
            raise TraceError(self._other_past(f"cache_position begins at {int(cache_position.reshape(-1)[0])}"))
        if positions is None or positions.ndim > 2:  # three axes: of images, where tokens share positions
            return
        if positions.shape[-1] != self.length or positions.numel() not in (self.length, kept_BS.size):
            raise TraceError(
                f"position_ids of shape {tuple(positions.shape)} are not of {self.rows} x {self.length} tokens"
            )
        position_BS = np.broadcast_to(positions.detach().cpu().numpy(), kept_BS.shape)
        for position_S, kept_S in zip(position_BS, kept_BS, strict=True):
            columns = np.flatnonzero(kept_S)
            if not len(columns):
                continue
            first, step_S = position_S[columns[0]], np.diff(position_S[columns])
            # positions count padding, as columns do, or leave it out
            if not min(self.past, 1) <= first <= self.past + columns[0]:
                raise TraceError(self._other_past(f"position_ids begin at {first}"))
            if not ((step_S == 1) | (step_S == np.diff(columns))).all():
                raise TraceError(
                    "position_ids do not go up by one within a row: several requests are packed into it, and which "
                    "token is of which cannot be told; give a row a request, padding with an attention_mask"
                )

    def kept_BS(self) -> npt.NDArray[np.bool_]:
        """False for padding. Raises TraceError for a mask of other values than 0 and 1."""
        if self.mask is None:
            return np.ones((self.rows, self.length), dtype=bool)
        mask_BS = self.mask[:, -self.length :].float().cpu().numpy()
        if not ((mask_BS == 0) | (mask_BS == 1)).all():
            raise TraceError(
                "the attention_mask has other values than 0 and 1: several requests are packed into a row, or they are "
                "biases; give 1 for a token and 0 for padding, a row a request"
            )
        return mask_BS != 0  # type: ignore[no-any-return]

    def _other_past(self, what: str) -> str:
        return (
            f"{what}, and the cache that {library()} gives the model holds {self.past} tokens; give positions that go "
            f"on from the cache; if you do, {REPORT}"
        )


def is_cache(value: Any) -> bool:
    return callable(getattr(value, "get_seq_length", None))


def cache_length(cache: Any) -> int:
    """Tokens a row that `cache` holds. Raises TraceError."""
    try:
        return int(cache.get_seq_length())
    except (TypeError, ValueError, NotImplementedError, IndexError) as error:
        raise TraceError(
            f"{type(cache).__name__} of {library()} does not say how many tokens it holds: {error}"
        ) from None


def _says_nothing(value: Any) -> bool:
    """A single value holds no cache and tells no rows apart."""
    return value is None or isinstance(value, (bool, int, float, str)) or getattr(value, "ndim", 1) == 0
