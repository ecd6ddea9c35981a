"""`placement traces synth`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from placement.cli.outputs import new_folder
from placement.cli.shared import Json, Seed, Workers, open_any, report_trace, stdout_console
from placement.errors import OptionError
from placement.traces.synthetic.presets import PRESETS, QWEN3_30B, TraceShape, custom_shape, preset

if TYPE_CHECKING:
    from placement.traces.synthetic.likeness import Likeness


def synth_command(
    output: Annotated[Path, new_folder("-o", "--output", help="Folder to make; nothing is overwritten.")],
    tokens: Annotated[int, typer.Option(help="Tokens, those of prompts included.")] = 100_000,
    requests: Annotated[int, typer.Option(help="Requests that they belong to.")] = 400,
    preset_name: Annotated[
        str | None, typer.Option("--preset", help=f"Shape of a known model: {', '.join(PRESETS)}.")
    ] = None,
    layers: Annotated[int | None, typer.Option(help="MoE layers, instead of --preset.")] = None,
    experts: Annotated[int | None, typer.Option(help="Experts of a layer, instead of --preset.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Experts that a token visits, instead of --preset.")] = None,
    like: Annotated[
        Path | None,
        typer.Option(help="Trace, counts or pair file that it resembles in its model, loads and pairs of experts."),
    ] = None,
    group_limit: Annotated[
        bool, typer.Option("--group-limit/--no-group-limit", help="Keep the group limit of a preset that has one.")
    ] = True,
    weights: Annotated[bool, typer.Option("--weights", help="Also write router weights.")] = False,
    seed: Seed = 0,
    workers: Workers = None,
    json_output: Json = False,
) -> None:
    """Make a synthetic trace that resembles real ones in load, co-activation, domains and persistence."""
    from placement.support.parallel import make_executor
    from placement.traces.synth import write_synthetic

    resembled = None
    if like is None:
        shape = _shape(preset_name, layers, experts, top_k)
    else:
        if any(given is not None for given in (preset_name, layers, experts)):
            raise OptionError(f"{like} says what the model is; leave --preset, --layers and --experts out")
        resembled = _likeness(like, top_k, workers)
        shape = TraceShape(model=resembled.model, strengths=QWEN3_30B)
    with make_executor(workers) as executor:
        num_tokens = write_synthetic(
            output,
            shape if group_limit else shape.without_group_limit(),
            num_tokens=tokens,
            num_requests=requests,
            seed=seed,
            weights=weights,
            like=resembled,
            executor=executor,
        )
    report_trace(output, num_tokens, json_output)
    if resembled is not None and not json_output:
        pairs = sum(len(one.share_M) for one in resembled.pairs_L or ())
        stdout_console().print(
            f"its loads of experts and {pairs:,} pairs of experts are those of {like}; its requests, domains and order "
            f"of tokens are not{_shorter(resembled)}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def _shorter(like: Likeness) -> str:
    """Where sets of what is resembled are not full, that those of the trace are."""
    top_k, size = like.model.top_k, round(like.set_size, 2)
    return "" if size >= top_k else f"; a token has {top_k} experts in every layer, there {size} on average"


def _likeness(path: Path, top_k: int | None, workers: int | None) -> Likeness:
    """What is known of the routing to resemble."""
    from placement.documents.pair_file import read_pairs
    from placement.support.parallel import make_executor
    from placement.traces.synthetic.likeness import Likeness
    from placement.traces.trace import Trace
    from placement.workload.as_likeness import likeness_of
    from placement.workload.count import count
    from placement.workload.counts_file import ExpertCounts

    if path.suffix == ".json":
        if top_k is not None:
            raise OptionError(f"--top-k {top_k} is for files of counts; a pair file says it; leave it out")
        return Likeness.of(read_pairs(path))
    source = open_any([str(path)], top_k)
    if isinstance(source, ExpertCounts):
        return likeness_of(source)
    if isinstance(source, Trace):
        with make_executor(workers) as executor:
            return likeness_of(count(source, executor=executor))
    return likeness_of(source.split(0)[0])


def _shape(name: str | None, layers: int | None, experts: int | None, top_k: int | None) -> TraceShape:
    sizes = {"--layers": layers, "--experts": experts, "--top-k": top_k}
    given = [option for option, value in sizes.items() if value is not None]
    if name is not None and given:
        raise OptionError(f"{', '.join(given)} and --preset both describe the model; give either")
    if name is not None:
        return preset(name)
    if layers is None or experts is None or top_k is None:
        raise OptionError(
            f"the model's shape is missing; give --preset ({', '.join(PRESETS)}) or --layers, --experts and --top-k"
        )
    return custom_shape(layers, experts, top_k)
