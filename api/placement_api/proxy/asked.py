"""What a request says that its home can be told from: the text or ids of its prompt, its conversation, its labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

PROMPT_PATHS = frozenset(
    (
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/generate",
        "/inference/v1/generate",
    )
)
PROMPT_KEYS = ("system", "instructions", "messages", "prompt", "input", "text")
ID_KEYS = ("prompt", "input_ids", "token_ids")
NEW_TOKENS_KEYS = ("max_completion_tokens", "max_tokens", "max_output_tokens", "max_new_tokens")
SESSION_HEADER, LABELS_HEADER = b"x-session-id", b"x-placement-labels"
SESSION_KEYS = ("prompt_cache_key", "conversation_id", "conversation", "user")
PREFIX_CHARS, PREFIX_IDS = 512, 128  # of a prompt without messages: what a later turn begins with, too


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request as far as its home is concerned.

    Attributes:
        text: The texts of its prompt, one below the other.
        ids: Ids of the tokens of its prompt, where the client gives ids.
        new_tokens: Tokens that its answers may have together; None: not said.
        answers: Answers that are asked for (`n`).
        session: Names its conversation, so that the next turn is known; None: too little is known.
        shared: Share of the prompt that an earlier request of the conversation had too, as far as can be seen.
        labels: Labels by name, from the header `X-Placement-Labels: domain=code, tenant=a`.
    """

    text: str
    ids: list[int]
    new_tokens: int | None
    answers: int
    session: str | None
    shared: float
    labels: dict[str, str]


def read_asked(body: Mapping[str, Any], headers: Mapping[bytes, bytes]) -> Asked:
    """What the JSON `body` and the headers (names in small letters) say; what is of no known form is left out."""
    texts = [text for key in PROMPT_KEYS for text in _texts(body.get(key))]
    ids = [one for key in ID_KEYS for one in _ids(body.get(key))]
    session, shared = _session(body, headers, texts, ids)
    answers = _whole(_first(body, ("n",))) or 1
    return Asked(
        text="\n".join(texts),
        ids=ids,
        new_tokens=_whole(_first(body, NEW_TOKENS_KEYS)),
        answers=answers,
        session=session,
        shared=shared,
        labels=_labels(headers.get(LABELS_HEADER, b"")),
    )


def _texts(content: object) -> Iterator[str]:
    """The texts of a string, a message, a part of one, or a list of such; pictures and sound have none."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            yield from _texts(part)
    elif isinstance(content, dict):
        yield from _texts(content.get("text") or content.get("content"))


def _ids(content: object) -> Iterator[int]:
    """The ids of a prompt or of a list of prompts."""
    if not isinstance(content, list):
        return
    for one in content:
        if isinstance(one, int) and not isinstance(one, bool):
            yield one
        elif isinstance(one, list):
            yield from _ids(one)


def _first(body: Mapping[str, Any], keys: tuple[str, ...]) -> object:
    """The value of the first of these keys that is given, in the body or in SGLang's `sampling_params`."""
    sampling = body.get("sampling_params")
    places = (body, sampling) if isinstance(sampling, dict) else (body,)
    return next((place[key] for key in keys for place in places if place.get(key) is not None), None)


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31 else None


def _session(
    body: Mapping[str, Any], headers: Mapping[bytes, bytes], texts: list[str], ids: list[int]
) -> tuple[str | None, float]:
    """The key of the conversation: as the client names it, else what its prompts begin with; and the shared part."""
    named = headers.get(SESSION_HEADER)
    if named is not None:
        return _key("header", named), 1.0
    parameters = body.get("session_params")
    if isinstance(parameters, dict) and isinstance(parameters.get("id"), str):
        return _key("session", parameters["id"].encode(errors="surrogatepass")), 1.0
    for key in SESSION_KEYS:
        value = body.get(key)
        if isinstance(value, str) and value:
            return _key(key, value.encode(errors="surrogatepass")), 1.0
    messages = body.get("messages")
    if not isinstance(messages, list):
        messages = body.get("input")
    if isinstance(messages, list):
        users = [at for at, one in enumerate(messages) if isinstance(one, dict) and one.get("role") == "user"]
        if users:
            begin = "\n".join(_texts(messages[: users[0] + 1]))
            return _key("messages", begin.encode(errors="surrogatepass")), 1.0
    if len(ids) >= PREFIX_IDS:
        return _key("ids", repr(ids[:PREFIX_IDS]).encode()), PREFIX_IDS / len(ids)
    text = "\n".join(texts)
    if len(text) >= PREFIX_CHARS:
        return _key("text", text[:PREFIX_CHARS].encode(errors="surrogatepass")), PREFIX_CHARS / len(text)
    return None, 0.0


def _key(kind: str, value: bytes) -> str:
    return blake2b(value, digest_size=16, person=kind.encode()).hexdigest()


def _labels(header: bytes) -> dict[str, str]:
    pairs = (pair.partition("=") for pair in header.decode("latin-1").split(","))
    return {name.strip(): value.strip() for name, found, value in pairs if found and name.strip()}
