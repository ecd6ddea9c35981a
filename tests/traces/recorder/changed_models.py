"""A model whose arguments, caches or experts another release of transformers might name in another way."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

transformers = pytest.importorskip("transformers", minversion="5", reason="transformers 5 is not installed")

from placement.errors import TraceError  # noqa: E402
from placement.traces.recorder import record  # noqa: E402
from placement.traces.trace import open_trace  # noqa: E402

Given = dict[str, Any]

NEW = 4


def make_model() -> Any:
    torch.manual_seed(0)
    config = transformers.OlmoeConfig(
        vocab_size=60, hidden_size=32, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_experts=8, num_experts_per_tok=3, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = transformers.OlmoeForCausalLM(config).eval()
    model.generation_config.eos_token_id = None
    return model


IDS = torch.randint(3, 60, (2, 6), generator=torch.Generator().manual_seed(1))

MASK = torch.ones_like(IDS)

PADDED = torch.ones_like(IDS)

PADDED[0, :2] = 0


def name_of_cache(model: Any) -> str:
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def change(module: Any, sent: Callable[[Given], Given], parameters: str = "", *, by_position: bool = False) -> None:
    """From now on `module` is called with what `sent` makes of its arguments, under these names; it works as before."""
    inner, names = module.forward, parameters.split()
    own = list(inspect.signature(inner).parameters)
    latest: list[Given] = []

    def call(_module: Any, args: tuple[Any, ...], kwargs: Given) -> tuple[tuple[Any, ...], Given]:
        latest[:] = [dict(zip(own, args, strict=False)) | kwargs]
        given = sent(dict(latest[0]))
        return (tuple(given[name] for name in names), {}) if by_position else ((), given)

    def forward(*_args: Any, **_kwargs: Any) -> Any:
        return inner(**latest[0])

    if names:
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        forward.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in names])  # type: ignore[attr-defined]
    else:
        forward.__signature__ = inspect.signature(inner)  # type: ignore[attr-defined]
    module.register_forward_pre_hook(call, with_kwargs=True)
    module.forward = forward


def change_output(model: Any, change_it: Callable[[Any], Any]) -> None:
    """What the decoder gives back looks to the recorder as `change_it` makes it, and to the model as before."""
    kept: list[Any] = []

    def before(_m: Any, _a: Any, output: Any) -> Any:
        kept[:] = [output]
        return change_it(output)

    model.model.register_forward_hook(before)
    head = model.model.__class__.__call__

    class Changed(type(model.model)):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            head(self, *args, **kwargs)
            return kept[0]

    model.model.__class__ = Changed


def generate(model: Any, folder: Path, mask: Any = MASK, **options: Any) -> dict[tuple[str, int], tuple[Any, ...]]:
    """Phase and ids of each token, by request and position, of two prompts with names and domains and what followed."""
    with record(model, folder) as recorder:
        recorder.requests(["a", "b"], domain=["x", "y"])
        options = {"max_new_tokens": NEW, "do_sample": False} | options
        model.generate(input_ids=IDS * mask, attention_mask=mask, **options)
    return rows(folder)


def rows(folder: Path) -> dict[tuple[str, int], tuple[Any, ...]]:
    trace, found = open_trace(folder), {}
    for block in trace.blocks():
        columns = zip(block.request_T, block.column_T("position"), block.column_T("phase"), strict=True)
        for at, (request, position, phase) in enumerate(columns):
            key = (trace.requests[request].id, int(position))
            assert key not in found
            ids = [block.ids_TK(layer)[at].tolist() for layer in range(2)]
            found[key] = (trace.requests[request].domain, int(phase), ids)
    return found


def stops(model: Any, folder: Path, words: str, mask: Any = MASK, **options: Any) -> None:
    """A TraceError of one line that names the library's version; what was written has the right names and positions."""
    with pytest.raises(TraceError, match=words) as error:
        generate(model, folder, mask, **options)
    assert "\n" not in str(error.value)
    if (folder / "trace.json").exists():
        assert all(name in ("a", "b") and domain for (name, _), (domain, *_) in rows(folder).items())


def without(*names: str) -> Callable[[Given], Given]:
    return lambda given: {name: value for name, value in given.items() if name not in names}
