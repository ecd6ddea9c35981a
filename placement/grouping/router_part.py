"""The router in a grouping file."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from placement.documents.document import DocumentPart
from placement.errors import InputError
from placement.grouping.predictor import MOST_BUCKETS, Predictor
from placement.grouping.prices import Prices
from placement.grouping.router import Router


class PricesPart(DocumentPart):
    """What load costs; see `placement.grouping.prices`."""

    request_tokens: float = Field(description="Mean tokens of a request")
    horizon: float = Field(description="So many requests are to even the loads out")
    tolerance: float = Field(default=0.0, description="A node ahead of the mean by a larger share gets no request")
    ahead_tokens: float = Field(default=0.0, description="Tokens on top of that share: a mean request")
    scores: list[list[float]] = Field(
        description="[S][N]: what past requests save per token and layer at each home, as foretold"
    )

    @staticmethod
    def of(prices: Prices) -> PricesPart:
        return PricesPart(
            request_tokens=prices.request_tokens,
            horizon=prices.horizon,
            tolerance=prices.tolerance,
            ahead_tokens=prices.ahead_tokens,
            scores=[[round(float(x), 4) for x in row] for row in prices.score_SN],
        )

    def prices(self) -> Prices:
        return Prices(
            score_SN=_matrix(self.scores, "router.prices.scores"),
            request_tokens=self.request_tokens,
            horizon=self.horizon,
            tolerance=self.tolerance,
            ahead_tokens=self.ahead_tokens,
        )


class PredictorPart(DocumentPart):
    """A linear model over hashed n-grams of a prompt, and labels; see `placement.grouping.predictor`."""

    buckets: int = Field(description="F, a power of two", ge=1, le=MOST_BUCKETS)
    mean: list[float] = Field(description="[N]: what requests save per token and layer, of which nothing is known")
    worth_tokens: float = Field(description="So many observed tokens tell as much as the prompt")
    labels_worth_tokens: float | None = Field(
        default=None, description="So many tell as much as labels; null: as least"
    )
    least_worth_tokens: float = Field(description="So many tell as much as what all requests have in common")
    tables: str = Field(description="Base64 of zlib of float16, little-endian: idf [F], then weights [N][F]")

    @staticmethod
    def of(predictor: Predictor) -> PredictorPart:
        tables = np.concatenate([predictor.idf_F[None], predictor.weight_NF]).astype("<f2").tobytes()
        return PredictorPart(
            buckets=len(predictor.idf_F),
            mean=[float(x) for x in predictor.mean_N],
            worth_tokens=predictor.worth_tokens,
            labels_worth_tokens=predictor.labels_worth_tokens,
            least_worth_tokens=predictor.least_worth_tokens,
            tables=base64.b64encode(zlib.compress(tables, 9)).decode(),
        )

    def predictor(self) -> Predictor:
        size = 2 * self.buckets * (len(self.mean) + 1)
        try:
            unpacker = zlib.decompressobj()
            content = unpacker.decompress(base64.b64decode(self.tables, validate=True), size + 1)
        except (ValueError, zlib.error) as error:
            raise InputError(f"router.predictor.tables cannot be unpacked ({error}); write the file again") from None
        if len(content) != size:
            raise InputError(
                f"router.predictor.tables is not {size} bytes long, which {self.buckets} buckets and {len(self.mean)} "
                "nodes need; write the file again"
            )
        table_XF = np.frombuffer(content, "<f2").reshape(-1, self.buckets).astype(np.float16)
        return Predictor(
            idf_F=table_XF[0],
            weight_NF=table_XF[1:],
            mean_N=np.array(self.mean, dtype=np.float64),
            worth_tokens=self.worth_tokens,
            labels_worth_tokens=self.labels_worth_tokens,
            least_worth_tokens=self.least_worth_tokens,
        )


class RouterPart(DocumentPart):
    """What the online router needs; see `placement.grouping.Router`."""

    num_layers: int = Field(description="MoE layers of the model")
    top_k: int | float = Field(description="Experts that a token visits in one of the layers below, mean over tokens")
    layers: list[int] = Field(description="Positions of the layers that the router looks at, ascending")
    band: float = Field(description="Without prices: sends per token and layer; homes that differ by less are as good")
    slack_tokens: float = Field(description="Without prices: a node more ahead of the least loaded gets no request")
    keeps: float = Field(description="Share of what all layers together would save that these layers keep")
    counts_scale: float = Field(default=1.0, description="Sends saved in all layers for one saved in these, means")
    prefix_sends: float = Field(
        default=0.0, description="Sends in all layers that it is worth not to compute a token of a prompt again"
    )
    prices: PricesPart | None = Field(default=None, description="What load costs; none in version 1")
    predictor: PredictorPart | None = Field(default=None, description="None where no prompts were known")
    saved: list[list[list[float]]] = Field(
        description="[layers][E][N]: mean sends that an assignment of expert e saves if its home is node n"
    )

    @staticmethod
    def of(router: Router, *, keeps: float) -> RouterPart:
        return RouterPart(
            num_layers=router.num_layers,
            top_k=router.top_k,
            layers=list(router.layers),
            keeps=keeps,
            band=router.band,
            slack_tokens=router.slack_tokens,
            counts_scale=router.counts_scale,
            prefix_sends=router.prefix_sends,
            prices=None if router.prices is None else PricesPart.of(router.prices),
            predictor=None if router.predictor is None else PredictorPart.of(router.predictor),
            saved=[[[round(float(x), 4) for x in row] for row in layer] for layer in router.saved_MEN],
        )

    def router(self) -> Router:
        """Raises InputError."""
        return Router(
            num_layers=self.num_layers,
            top_k=self.top_k,
            layers=tuple(self.layers),
            saved_MEN=_matrix(self.saved, "router.saved"),
            band=self.band,
            slack_tokens=self.slack_tokens,
            prices=None if self.prices is None else self.prices.prices(),
            predictor=None if self.predictor is None else self.predictor.predictor(),
            counts_scale=self.counts_scale,
            prefix_sends=self.prefix_sends,
        )


def _matrix(rows: list[Any], what: str) -> npt.NDArray[np.float32]:
    try:
        with np.errstate(over="ignore"):  # infinite values are refused
            return np.array(rows, dtype=np.float32)
    except ValueError:
        raise InputError(f"{what}: every row must hold one number for each node") from None
