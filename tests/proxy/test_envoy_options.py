"""Endpoints that `placement envoy` cannot choose among are refused."""

from __future__ import annotations

import pytest
from route_front import Sample

from placement.cli import main

pytest.importorskip("grpc", reason="the external processor needs the extra envoy: grpcio")
pytest.importorskip("xds", reason="the external processor needs the extra envoy: xds-protos")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--endpoint", "10.0.0.1:80"], "leaves nothing to choose"),
        (["--endpoint", "a b:80", "--endpoint", "c:1"], "no HOST:PORT"),
        (["--endpoint", "a:80", "--endpoint", "c:70000"], "no HOST:PORT"),
        (["--endpoint", "a:80", "--endpoint", "b:80", "--endpoint", "c:80"], "3 backends"),
    ],
)
def test_bad_options_end_the_command(
    sample: Sample, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["envoy", "--map", str(sample.map_file), "--grouping", str(sample.grouping), *words])
    assert ended.value.code == 2
    assert told in capsys.readouterr().err
