"""Training examples: token ids, and which of them count.

Texts are rendered by the same views and tokenised by the same function as in scoring, so that a student is trained on
exactly the tokens on which it will be scored and sampled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from rlt_data.errors import InputError
from rlt_data.formats import ChatTemplate, Tokenizer, encode
from rlt_data.inputs.read import read_records
from rlt_data.settings import InputSettings

#: Label of a token that does not count (what PyTorch's cross entropy leaves out).
IGNORED = -100
_AT_A_TIME = 256
_ROLES = {"human": "user", "gpt": "assistant"}


@dataclass(frozen=True)
class Text:
    """A text to train on: what is given, and what is learned."""

    given: str
    learned: str


def conversations(input: str, template: ChatTemplate) -> Iterator[Text]:
    """Read a distilled data set, or any other in its shapes, as texts whose last message is learned.

    Args:
        input: file, folder or Hub id with messages, prompt and completion, or conversations.
        template: renders the messages; what ends the assistant's message is learned too.

    Raises:
        InputError: a row has another shape.
    """
    for record in read_records(InputSettings(input=input)):
        if record.data is None:
            raise InputError(f"{input}: {record.place}: {record.problem}")
        messages = _messages(record.data)
        if len(messages) < 2 or messages[-1]["role"] != "assistant":
            raise InputError(
                f"{input}: {record.place}: a row needs messages, prompt and completion, or conversations, and ends "
                f"with the assistant's message; its columns are {', '.join(record.data)}"
            )
        before, after = template.split(messages[:-1])
        yield Text(before, messages[-1]["content"] + after)


def _messages(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the messages of a row of any shape; none where it has none."""
    if "messages" in row:
        turns = row["messages"]
    elif isinstance(row.get("prompt"), list) and isinstance(row.get("completion"), list):
        turns = [*row["prompt"], *row["completion"]]
    else:
        turns = row.get("conversations")
        if row.get("system"):
            turns = [{"from": "system", "value": row["system"]}, *(turns or [])]
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        return []
    found = [(turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))) for turn in turns]
    return [{"role": _ROLES.get(str(role), str(role)), "content": str(content)} for role, content in found]


def tokenised(texts: Iterable[Text], tokenizer: Tokenizer) -> Iterator[dict[str, list[int]]]:
    """Turn texts into ``input_ids`` and ``labels``; a token counts if none of its characters is given."""
    rest = iter(texts)
    while few := list(islice(rest, _AT_A_TIME)):
        for text, encoding in zip(few, encode(tokenizer, [each.given + each.learned for each in few]), strict=True):
            ids = encoding.ids.tolist()
            counts = encoding.offsets[:, 0] >= len(text.given)
            yield {
                "input_ids": ids,
                "labels": [token if count else IGNORED for token, count in zip(ids, counts.tolist(), strict=True)],
            }
