"""Speeds fitted to step times are those that made the times; what the times do not tell is kept, and said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement import Cluster, Placement, evaluate_steps, open_trace, save_placement
from placement.core.topology import Level, Topology
from placement.cost.calibration.calibrate import KEYS, calibrate
from placement.cost.calibration.fit import fit_unit_times
from placement.cost.calibration.measured import read_measured
from placement.cost.step_time import Term
from placement.documents.cluster_yaml import cluster_from_yaml
from placement.documents.placement import PlacementFile
from placement.errors import ClusterError, InputError

TRUE = Cluster(
    num_nodes=2,
    gpus_per_node=2,
    slots_per_gpu=2,
    inter_gbps=100.0,
    gpu_tflops=200.0,
    memory_gbps=20_000.0,
    copy_us=0.03,
    latency_us=75.0,
    expert_bytes=10_000_000,
)
GIVEN = replace(TRUE, inter_gbps=400.0, gpu_tflops=400.0, memory_gbps=26_800.0, copy_us=0.0, latency_us=40.0)
SIZES = (1, 2, 8, 32, 128)


@pytest.fixture
def bench(tmp_path: Path, write_trace: Any) -> Any:
    """(trace, paths of three maps)."""
    trace = open_trace(write_trace(tmp_path / "trace", tokens=1200, requests=30, spread=2.0).folder)
    rng = np.random.default_rng(4)
    paths = []
    for number, slots in enumerate((2, 2, 3)):
        extra = np.stack([rng.permutation(8)[: 4 * slots - 8] for _ in range(2)])
        row_LP = np.concatenate([np.stack([rng.permutation(8) for _ in range(2)]), extra], axis=1)
        row_LP = row_LP.reshape(2, slots, 4).transpose(0, 2, 1).reshape(2, -1)
        one = Placement(model=trace.model, num_nodes=2, gpus_per_node=2, slots_per_gpu=slots, phy2log_LP=row_LP)
        paths.append(tmp_path / f"map{number}.json")
        save_placement(paths[-1], PlacementFile.of(one).document())
    return trace, paths


def times_of(trace: Any, path: Path, cluster: Cluster) -> dict[int, float]:
    """What the model says that steps of each size take."""
    placement = PlacementFile.read(path).placement()
    (rows,) = evaluate_steps(
        trace, [placement], step_tokens=SIZES, cluster=replace(cluster, slots_per_gpu=placement.slots_per_gpu)
    )
    return {row.tokens_per_gpu: row.figures.step_us.mean for row in rows}


def write_times(folder: Path, times: dict[Path, dict[int, float]]) -> Path:
    lines = [f"{path.name},{size},{time_us}" for path, sizes in times.items() for size, time_us in sizes.items()]
    (folder / "times.csv").write_text("\n".join(["map,step_tokens,time_us", *lines]) + "\n")
    return folder / "times.csv"


def test_speeds_that_made_the_times_are_found(bench: Any, tmp_path: Path) -> None:
    """From two maps, one with copies; the third map's times are then predicted. How the links of nodes compare stays as
    it was, and fan-out, which goes as the products do, is kept."""
    trace, paths = bench
    topology = Topology(levels=(Level(name="rack", nodes=1, gbps=50.0),))
    made = replace(TRUE, topology=topology)
    rows = read_measured(write_times(tmp_path, {path: times_of(trace, path, made) for path in paths[1:]}))
    started = replace(GIVEN, topology=Topology(levels=(Level(name="rack", nodes=1, gbps=200.0),)))
    answer = calibrate(rows, trace, started)
    assert np.abs(answer.error_R()).max() < 2e-3
    assert answer.cluster.topology.levels[0].gbps == pytest.approx(answer.cluster.inter_gbps / 2)
    for key in ("gpu_tflops", "memory_gbps", "latency_us"):
        assert answer.fitted[key] == pytest.approx(getattr(TRUE, key), rel=0.02)
    assert set(answer.fitted) | set(answer.kept) == set(KEYS.values())
    told, known = times_of(trace, paths[0], answer.cluster), times_of(trace, paths[0], made)
    assert told == {size: pytest.approx(time_us, rel=0.01) for size, time_us in known.items()}


def test_what_one_size_of_steps_does_not_tell_is_kept(bench: Any, tmp_path: Path) -> None:
    """All maps in steps of one size: most terms change alike or hardly, and the file's values stay."""
    trace, paths = bench
    times = {path: {8: times_of(trace, path, TRUE)[8]} for path in paths[:2]}
    answer = calibrate(read_measured(write_times(tmp_path, times)), trace, GIVEN)
    assert len(answer.fitted) <= 2 and len(answer.kept) == len(KEYS) - len(answer.fitted)
    for key in answer.kept:
        assert getattr(answer.cluster, key) == getattr(GIVEN, key)


@given(seed=st.integers(0, 2**32), noise=st.sampled_from([0.0, 0.02]), absent=st.sampled_from(list(Term)))
def test_a_fit_is_no_worse_than_the_truth(seed: int, noise: float, absent: Term) -> None:
    """Without noise they are equal; with it the squares of the relative errors are at most those of the truth, but for
    what a value may add that the times do not refute. Nothing is below 0; a term that no row has is kept."""
    rng = np.random.default_rng(seed)
    true_us = rng.uniform(0.1, 10.0, len(Term))
    count_R6 = rng.uniform(1.0, 100.0, (40, len(Term)))
    count_R6[:, absent] = 0.0
    time_us_R = count_R6 @ true_us * rng.normal(1.0, noise, 40)
    fit = fit_unit_times(count_R6, time_us_R, np.full(len(Term), 7.0))
    assert (fit.unit_us >= 0).all() and fit.unit_us[absent] == 7.0 and absent in fit.kept
    if not noise:
        assert set(fit.kept) == {absent}
        assert np.delete(fit.unit_us, absent) == pytest.approx(np.delete(true_us, absent), rel=1e-6)
    if "the times do not grow with it" in fit.kept.values():
        return  # the given value is too high, and there is none to put in its place
    error, of_truth = (
        np.square(told_us_R / time_us_R - 1).sum() for told_us_R in (fit.modelled_us_R, count_R6 @ true_us)
    )
    assert error <= of_truth * (1 + 0.7 * (len(fit.kept) - 1)) + 1e-12  # values that the times do not refute are kept


def test_a_term_that_changes_as_another_does_or_shrinks_times_is_kept() -> None:
    count_R6 = np.ones((30, len(Term)))
    count_R6[:, Term.NETWORK] = np.linspace(1, 9, 30)
    count_R6[:, Term.FAN_OUT] = 3 * count_R6[:, Term.NETWORK]
    count_R6[:, Term.COMPUTE] = np.linspace(1, 5, 30) ** 2
    count_R6[:, Term.MEMORY] = count_R6[:, Term.PACKING] = 0
    fit = fit_unit_times(count_R6, 100 + 5 * count_R6[:, Term.NETWORK] - count_R6[:, Term.COMPUTE], np.zeros(len(Term)))
    assert "changes from row to row as others do" in fit.kept[Term.FAN_OUT]
    assert fit.kept[Term.MEMORY] == "no row has a part of this kind"
    assert fit.kept[Term.COMPUTE] == "the times do not grow with it"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is empty"),
        ("map,step_tokens\nm,4\nm,8\n", "lacks time_us"),
        ("map,step_tokens,time_us,speed\n", "has 'speed'"),
        ("map,step_tokens,time_us,map\n", "has 'map, step_tokens, time_us, map'"),
        ("map,step_tokens,time_us\nmap0,4,1.5\n", "measured times in .*: 1; 2 to"),
        ("map,step_tokens,time_us\nmap0,4,1.5\nmap0,4\n", "line 3 has 2 cells"),
        ("map,step_tokens,time_us\nmap0,4,1.5\nnowhere,4,2\n", "line 3: map='nowhere'"),
        ("map,step_tokens,time_us\nmap0,4,1.5\n,4,2\n", "line 3: map=''"),
        ("map,step_tokens,time_us\nmap0,many,1.5\nmap0,4,2\n", "line 2: step_tokens='many'"),
        ("map,step_tokens,time_us\nmap0,'4,8',1.5\nmap0,4,2\n", "line 2 has 4 cells"),
        ('map,step_tokens,time_us\nmap0,"4,8",1.5\nmap0,4,2\n', "line 2: step_tokens='4,8'"),
        ("map,step_tokens,time_us\nmap0,4,0\nmap0,4,2\n", "line 2: time_us='0'"),
        ("map,step_tokens,time_us\nmap0,4,nan\nmap0,4,2\n", "line 2: time_us='nan'"),
        ("map,step_tokens,time_us\nmap0,4,soon\nmap0,4,2\n", "line 2: time_us='soon'"),
        ("map,step_tokens,time_us,phase\nmap0,4,1,both\nmap0,4,2,\n", "line 2: phase='both'"),
        ('map,step_tokens,time_us\n"map0,4,1\n', "is not CSV"),
    ],
)
def test_a_table_that_is_none_is_refused(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "map0.json").write_text("{}")
    (tmp_path / "times.csv").write_text(text)
    with pytest.raises(InputError, match=told):
        read_measured(tmp_path / "times.csv")


def test_rows_that_do_not_fit_are_refused(bench: Any, tmp_path: Path, write_trace: Any) -> None:
    """A phase that is not said or not there, a cluster of another shape; and tables that cannot be read."""
    trace, paths = bench
    table = write_times(tmp_path, {paths[0]: {8: 100.0, 16: 150.0}})
    with pytest.raises(ClusterError, match="2 nodes x 2 GPUs, the cluster file has 1 x 4"):
        calibrate(read_measured(table), trace, replace(GIVEN, num_nodes=1, gpus_per_node=4))
    phase_T = np.repeat([0, 1], [200, 1000])
    both = open_trace(write_trace(tmp_path / "both", tokens=1200, requests=30, phase_T=phase_T).folder)
    with pytest.raises(InputError, match="line 2 does not say its phase and the trace has prefill and decode"):
        calibrate(read_measured(table), both, GIVEN)
    table.write_text("map,step_tokens,time_us,phase\nmap0,100,5,prefill\nmap0,2,5,decode\n")
    with pytest.raises(InputError, match="line 2: the trace has no full step of 100 tokens a GPU of prefill"):
        calibrate(read_measured(table), both, GIVEN)
    for path, told in ((tmp_path, "cannot read"), (tmp_path / "none.csv", "cannot read")):
        with pytest.raises(InputError, match=told):
            read_measured(path)
    table.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not text"):
        read_measured(table)


def test_the_command_writes_a_cluster_file(bench: Any, tmp_path: Path, run_cli: Any) -> None:
    """The file is read back as the fitted cluster, says what was fitted and kept, and keeps what it said before."""
    trace, paths = bench
    table = write_times(tmp_path, {path: times_of(trace, path, TRUE) for path in paths[:2]})
    (tmp_path / "c.yaml").write_text("num_nodes: 2\ngpus_per_node: 2\nexpert_bytes: 10000000\n")
    words = ("calibrate", table, tmp_path / "trace", "--cluster", tmp_path / "c.yaml")
    done = run_cli(*words, "-o", tmp_path / "new.yaml")
    assert done.code == 0 and "measured times" in done.stdout and "largest" in done.stdout
    cluster = cluster_from_yaml(tmp_path / "new.yaml", 8)
    assert cluster.latency_us == pytest.approx(75, rel=0.02) and cluster.expert_bytes == 10_000_000
    text = (tmp_path / "new.yaml").read_text()
    assert "latency_us: 75 # fitted to 10 measured steps\n" in text
    refused = run_cli(*words, "-o", table)
    assert refused.code == 2 and "would overwrite the input" in refused.stderr
