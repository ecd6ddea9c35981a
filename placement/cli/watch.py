"""`placement watch`."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from placement.cli.outputs import check_apart, output_file, output_folder
from placement.cli.shared import Engine, MapCluster, ReplicaChoice, Seed, Transport, Workers, print_json
from placement.core.choices import DRIFT_LEVEL, HORIZON_STEPS, MIN_EFFECT
from placement.errors import OptionError, PlacementError
from placement.support.atomic_files import make_folder, write_atomic

if TYPE_CHECKING:
    from placement.analysis.watch import Decision, Planner, Window
    from placement.analysis.watch.follower import Follower
    from placement.analysis.watch.homes import KeptHomes
    from placement.analysis.watch.planner import Solve
    from placement.analysis.watch.sglang_recorder import SGLangRecorder
    from placement.cli.watch_remote import Service


def watch_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder into which traces or recordings arrive.")],
    current: Annotated[str, typer.Option("--from", help="Placement file in use now; with --server the id of one.")],
    output: Annotated[
        Path, output_folder("-o", "--output", help="Folder for proposals: placement-1.json, migration-1.json, ...")
    ] = Path("proposals"),
    fitted_on: Annotated[
        list[str] | None, typer.Option(help="Traces that the map was fitted on. [default: unknown at first]")
    ] = None,
    cluster: MapCluster = None,
    window_tokens: Annotated[int, typer.Option(help="Newest tokens that are looked at.")] = 200_000,
    level: Annotated[float, typer.Option(help="Level of the test of drift: its false alarms a look.")] = DRIFT_LEVEL,
    min_effect: Annotated[float, typer.Option(help="Share of assignments that must have moved.")] = MIN_EFFECT,
    horizon_steps: Annotated[int, typer.Option(help="Steps in which a new map has to pay.")] = HORIZON_STEPS,
    homes_file: Annotated[
        Path | None,
        output_file(
            "--grouping", help="Grouping file to keep up to date with the map and the requests; a router takes it anew."
        ),
    ] = None,
    max_moves: Annotated[
        int | None, typer.Option(help="Slots whose weights may move at a time. [default: a third of all]")
    ] = None,
    serving: Engine = None,
    transport: Transport = "",
    replica_choice: ReplicaChoice = "",
    seed: Seed = 0,
    work_limit: Annotated[int | None, typer.Option(help="Moves that a search proposes per layer.")] = None,
    engine: Annotated[
        str | None,
        typer.Option(metavar="URL", help="SGLang server whose recorder dumps into DIR: asked to before every look."),
    ] = None,
    server: Annotated[
        str | None, typer.Option(metavar="URL", help="Have proposals made and kept by the service at URL.")
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(envvar="PLACEMENT_TOKEN", show_envvar=False, help="Token for --server, if it needs one."),
    ] = None,
    interval: Annotated[float, typer.Option(help="Seconds between looks into DIR.")] = 10.0,
    once: Annotated[bool, typer.Option("--once", help="Read what is there, decide, and end.")] = False,
    workers: Workers = None,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print one JSON document a line for every event.")
    ] = False,
) -> None:
    """Follow the traffic in DIR, and propose another map when the traffic has drifted and a change pays."""
    from placement.analysis.watch import Planner, Window
    from placement.analysis.watch.follower import Follower
    from placement.analysis.watch.sglang_recorder import SGLangRecorder
    from placement.cli.watch_remote import Service
    from placement.client import Client
    from placement.core.cluster import Cluster
    from placement.documents.cluster_yaml import cluster_from_yaml
    from placement.documents.placement import load_placement
    from placement.solvers.options import Options
    from placement.traces.trace import open_trace
    from placement.workload.count import count

    if not interval > 0:
        raise OptionError(f"interval={interval} must be more than 0 seconds")
    if server is None:
        check_apart({"--output": output} | ({} if homes_file is None else {"--grouping": homes_file}), [current])
    service = None if server is None else Service(Client(server, token), current)
    placement, file = load_placement(current) if service is None else service.placement()
    described = file.described_cluster() or Cluster(**file.cluster.sizes())
    planner = Planner(
        cluster=described if cluster is None else cluster_from_yaml(cluster, placement.model.num_experts),
        current=placement,
        reference=None if not fitted_on else count(open_trace(fitted_on), seed=seed),
        options=Options(
            objective="time",
            bound="none",
            engine=serving,
            transport=transport,
            replica_choice=replica_choice,
            seed=seed,
            work_limit=work_limit,
            max_moves=max_moves,
        ),
        horizon_steps=horizon_steps,
        level=level,
        min_effect=min_effect,
    )
    kept = None
    if homes_file is not None:
        from placement.analysis.watch.homes import KeptHomes

        kept = KeptHomes(homes_file, planner.cluster, planner.options)
    watch = _Watch(planner, Window(size_tokens=window_tokens), output, workers, json_output, service, kept)
    follower = Follower(folder, placement.model, seed=seed, scratch=None if kept is None else kept.newest.scratch)
    recorder = None if engine is None else SGLangRecorder(url=engine)
    if recorder is not None and not once:
        recorder.start()
    try:
        if once and recorder is not None:
            recorder.dump()
        watch.look(follower, None, settled=once)
        while not once:
            time.sleep(interval)
            watch.look(follower, recorder, settled=False)
    except KeyboardInterrupt:
        pass
    finally:
        if recorder is not None and not once:
            recorder.stop()
    watch.end()


class _Watch:
    """The loop's state: the planner, the window, and how much came since the last decision."""

    def __init__(
        self,
        planner: Planner,
        window: Window,
        output: Path,
        workers: int | None,
        json_output: bool,
        service: Service | None,
        homes: KeptHomes | None,
    ) -> None:
        self.planner, self.window, self.output, self.service = planner, window, output, service
        self.homes = homes
        self.workers, self.json_output = workers, json_output
        self.since = self.tokens = self.decisions = self.proposals = 0
        self.begun = planner.reference is not None  # else the first window has to fill

    def look(self, follower: Follower, recorder: SGLangRecorder | None, *, settled: bool) -> None:
        """Take in what came; decide whenever an eighth of the window is new, and once more at the end of all."""
        if recorder is not None:
            try:
                recorder.dump()
            except PlacementError as error:  # an engine that starts again may be back at the next look
                self._say({"event": "failed", "error": str(error)}, str(error))
        for arrival in follower.poll(settled=settled):
            if arrival.workload is None:
                self._say({"event": "unreadable", "path": str(arrival.path), "error": arrival.error}, arrival.error)
                continue
            self.window = self.window.push(arrival.workload)
            if self.homes is not None and arrival.trace is not None:
                self.homes.newest.push(arrival.trace)
                self.homes.newest.keep(self.window.num_tokens)
            tokens = arrival.workload.num_tokens
            self.since, self.tokens = self.since + tokens, self.tokens + tokens
            event = {"event": "read", "path": str(arrival.path), "tokens": tokens, "window": self.window.num_tokens}
            self._say(
                event | ({"notes": list(arrival.notes)} if arrival.notes else {}),
                "\n  note: ".join(
                    (
                        f"read {arrival.path}: {tokens:,} tokens, {self.window.num_tokens:,} in the window",
                        *arrival.notes,
                    )
                ),
            )
            if self.since >= self.window.stride_tokens:
                self._decide()
        if settled and self.since:
            self._decide()

    def end(self) -> None:
        event = {"event": "end", "tokens": self.tokens, "decisions": self.decisions, "proposals": self.proposals}
        waiting = "" if self.begun else f"; the window has {self.window.num_tokens:,} of {self.window.size_tokens:,}"
        words = f"{self.tokens:,} tokens, {self.decisions} decisions, {self.proposals} proposals{waiting}"
        self._say(event, words)

    def _decide(self) -> None:
        from placement.analysis.watch.planner import CHANGE

        if not self.begun and self.window.num_tokens < self.window.size_tokens:
            return
        self.begun, self.since = True, 0
        try:
            decision = self.planner.step(self.window, workers=self.workers, solve=self._solve_there())
        except PlacementError as error:  # the next window may be better
            self._say({"event": "failed", "error": str(error)}, str(error))
            return
        self.decisions += 1
        files = {}
        if decision.verdict == CHANGE:
            files = self._propose(decision)
        self.planner, self.window = self.planner.after(decision), decision.window
        self._say({"event": "decision", **decision.summary(), **files}, _words(decision, files))
        if self.homes is not None:
            self._regroup(decision, self.homes)

    def _regroup(self, decision: Decision, homes: KeptHomes) -> None:
        """Learn homes again where the requests or the map have changed."""
        from placement.analysis.watch.planner import CHANGE, STEADY

        homes.newest.keep(self.window.num_tokens)
        placement = self.planner.current
        if decision.verdict == STEADY and homes.good_for(placement):
            return
        copies = [self.output / f"grouping-{self.proposals}.json"] if decision.verdict == CHANGE else []
        try:
            homes.write(placement, *copies, workers=self.workers)
        except PlacementError as error:  # the old file stays; the next window may be better
            self._say({"event": "failed", "error": str(error)}, f"homes are not learned again: {error}")
            return
        written = [str(path) for path in (*copies, homes.path)]
        self._say({"event": "homes", "files": written}, f"homes: wrote {' and '.join(written)}")

    def _solve_there(self) -> Solve | None:
        service, planner = self.service, self.planner
        return None if service is None else lambda traffic: service.solve(traffic, planner.cluster, planner.search)

    def _propose(self, decision: Decision) -> dict[str, str]:
        from placement.documents.document import json_bytes
        from placement.documents.parts import ProvenancePart
        from placement.documents.placement import PlacementFile

        assert decision.placement is not None and decision.plan is not None
        self.proposals += 1
        make_folder(self.output)
        paths = {name: self.output / f"{name}-{self.proposals}.json" for name in ("migration", "placement")}
        planner = self.planner
        write_atomic(paths["migration"], json_bytes(decision.plan.document(), "copies"))
        input_hash = decision.window.workload().digest()
        provenance = ProvenancePart.of(asdict(planner.search), planner.cluster, input_hash)
        file = PlacementFile.of(decision.placement, migration=decision.plan.summary(), provenance=provenance)
        file.write(paths["placement"])
        posted = {} if self.service is None else {"id": self.service.follow()}
        return {name: str(path) for name, path in paths.items()} | posted

    def _say(self, event: dict[str, Any], words: str | None) -> None:
        if self.json_output:
            print_json(event)
        else:
            bad = event["event"] in ("unreadable", "failed")
            print(f"placement: warning: {words}" if bad else words, file=sys.stderr if bad else sys.stdout, flush=True)


def _words(decision: Decision, files: dict[str, str]) -> str:
    from placement.analysis.watch.planner import CHANGE, STEADY

    drift, told = decision.drift, ""
    if drift is not None:
        told = f" (p = {drift.p_value:.3f}, {max(drift.effect, 0.0):.1%} of assignments moved)"
    if decision.verdict == STEADY:
        return f"steady{told}"
    if decision.gain_ms is None:
        return f"the window's requests are too few to judge a map{told}"
    cost = "" if decision.cost_ms is None else f", copies take {decision.cost_ms:,.0f} ms"
    figures = f"step {decision.now_us:,.0f} -> {decision.new_us:,.0f} us, saves {decision.gain_ms:,.0f} ms{cost}{told}"
    if decision.verdict == CHANGE:
        assert decision.plan is not None
        return (
            f"change: {figures}; {decision.plan.num_moves:,} moves; wrote {files['placement']} and {files['migration']}"
            + (f"; {files['id']} on the service" if "id" in files else "")
        )
    return f"not worth it: {figures}"
