"""Tokens that end a row in the `generate` that runs: it feeds such a row padding until the others have ended too."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from placement.core.huggingface import argument_names, library, named
from placement.errors import TraceError

EOS, CONFIG = "eos_token_id", "generation_config"


class Ends:
    """An argument of the call comes before the configuration that the call is given, both before the model's own."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._calls: list[dict[str, Any]] = []

    def now(self) -> frozenset[int]:
        """Raises TraceError where the model does not tell."""
        call = self._calls[-1] if self._calls else {}
        ends: Any = call[EOS] if EOS in call else getattr(call.get(CONFIG), EOS, None)
        if ends is None and EOS not in call:
            ends = self._of_model()
        if hasattr(ends, "tolist"):
            ends = ends.tolist()
        return frozenset() if ends is None else frozenset(ends if isinstance(ends, (list, tuple)) else [ends])

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Sees the arguments of every `generate` of the model and of what is inside of it."""
        with ExitStack() as undo:
            for module in self._model.modules():
                if callable(getattr(module, "generate", None)):
                    before = module.__dict__.get("generate")
                    undo.callback(_restore, module, before)
                    module.generate = self._seen(module.generate)
            yield

    def _seen(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        names = argument_names(generate)

        @functools.wraps(generate)
        def seen(*args: Any, **kwargs: Any) -> Any:
            self._calls.append(named(names, args, kwargs))
            try:
                return generate(*args, **kwargs)
            finally:
                self._calls.pop()

        return seen

    def _of_model(self) -> Any:
        modules = list(self._model.modules())
        found = (getattr(module, CONFIG, None) for module in modules)
        config = next((config for config in found if config is not None), None)
        if config is None and not any(callable(getattr(module, "generate", None)) for module in modules):
            return getattr(self._model.config, EOS, None)
        if not hasattr(config, EOS):
            raise TraceError(
                f"{library()} does not say which tokens end a request, so that padding behind them would be recorded: "
                f"the model's {CONFIG} has no {EOS}; set it"
            )
        return getattr(config, EOS)


def _restore(module: Any, generate: Any) -> None:
    if generate is None:
        del module.generate
    else:
        module.generate = generate
