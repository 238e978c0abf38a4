"""Training examples: token ids, and labels that mask the prompt.

Scoring uses the same views and the same tokenisation, so a student is trained on exactly the tokens on which it is
later scored and sampled.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from rlt_data.errors import InputError, ModelError
from rlt_data.formats import ChatTemplate, Tokenizer, encode
from rlt_data.formats.spans import unmarked
from rlt_data.formats.template import THOUGHT_KEYS
from rlt_data.inputs.files import find_sources
from rlt_data.inputs.read import read_records
from rlt_data.settings import InputSettings
from rlt_data.settings.base import name_of_input

logger = logging.getLogger(__name__)

#: Label of a token that the loss ignores, as in PyTorch's cross entropy.
IGNORED = -100
_BATCH = 256
_ROLES = {"human": "user", "gpt": "assistant"}


@dataclass(frozen=True)
class TrainingText:
    """A prompt, and the completion that is learned."""

    prompt: str
    completion: str


def read_conversations(input: str | tuple[str, ...], template: ChatTemplate) -> Iterator[TrainingText]:
    """Read a data set of chats; the completion is the text of the last message, and what ends the turn.

    The prompt is the template's generation prompt. ``prompt`` and ``completion`` that are texts are used as they are.

    Args:
        input: files, folders or a Hub id whose rows have messages, prompt and completion, or conversations.
        template: chat template that renders the messages.

    Raises:
        InputError: a row has none of these columns, its last message is not the assistant's, or the template has no
            place for its thought.
    """
    settings, name = InputSettings(input=input), name_of_input(input)
    sources = find_sources(settings)
    for notice in sources.notices:
        logger.info(notice)
    for record in read_records(settings, sources):
        if record.data is None:
            raise InputError(f"{name}: {record.location}: {record.reason}")
        prompt, completion = record.data.get("prompt"), record.data.get("completion")
        if isinstance(prompt, str) and isinstance(completion, str):
            yield TrainingText(prompt, completion)
            continue
        messages = _messages(record.data)
        if len(messages) < 2 or messages[-1]["role"] != "assistant":
            raise InputError(
                f"{name}: {record.location}: needs messages, prompt and completion, or conversations that end with "
                f"the assistant's message; its columns are {', '.join(record.data)}"
            )
        prompt = template.prompt([_without_thought(message) for message in messages[:-1]])
        try:
            yield TrainingText(prompt, template.assistant_text(messages[-1]) + template.end)
        except ModelError as error:
            raise InputError(f"{name}: {record.location}: {error}") from None


def _messages(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the messages of a row, empty if it has none."""
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
    messages = []
    for turn in turns:
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        thought = next((turn[key] for key in THOUGHT_KEYS if turn.get(key)), "")
        messages.append({"role": _ROLES.get(str(role), str(role)), "content": str(content), "thought": str(thought)})
    if messages and messages[0]["role"] == "system" and not messages[0]["content"].strip():
        del messages[0]
    return messages


def _without_thought(message: dict[str, str]) -> dict[str, str]:
    return {"role": message["role"], "content": message["content"]}


def tokenize_texts(texts: Iterable[TrainingText], tokenizer: Tokenizer) -> Iterator[dict[str, list[int]]]:
    """Yield ``input_ids`` and ``labels`` of each text; tokens with a character of the prompt are masked."""
    texts = iter(texts)
    while batch := list(islice(texts, _BATCH)):
        encodings = encode(tokenizer, [text.prompt + text.completion for text in batch])
        for text, encoding in zip(batch, encodings, strict=True):
            ids = encoding.ids.tolist()
            learned = encoding.offsets[:, 0] >= len(unmarked(text.prompt))
            yield {
                "input_ids": ids,
                "labels": [id if keep else IGNORED for id, keep in zip(ids, learned.tolist(), strict=True)],
            }
