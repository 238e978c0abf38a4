"""Word-level tokenizer for Countdown, with one token for each integer from 0 to 120 and each fixed phrase.

White space is dropped, so ``(3*4)-5`` and ``(3 * 4) - 5`` have the same ids. Decoding joins tokens with spaces.
"""

from __future__ import annotations

from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlt_data.tasks.countdown import question_text

#: Largest integer in the vocabulary, and largest value of a computation.
LARGEST_VALUE = 120

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
TAGS = tuple(f"<{slash}{name}>" for name in ("question", "thought", "solution", "explanation") for slash in ("", "/"))
SYMBOLS = ("+", "-", "*", "/", "(", ")", "=", ",", "and", "yes", "no")

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'user' %}<question> {{ message.content }} </question>"
    "{% elif message.role == 'assistant' %} {{ message.content }} {{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %} {% endif %}"
)


def phrases() -> tuple[str, ...]:
    """Return the fixed parts of a Countdown question, around its numbers."""
    before, _, rest = question_text((1, 2), 3).partition(" 1 and 2 ")
    middle, _, after = rest.partition(" 3")
    return before, middle, after


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer, chat template included."""
    words = [*SPECIAL, *TAGS, *phrases(), *SYMBOLS, *map(str, range(LARGEST_VALUE + 1))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    word = Regex(r"\d+|[^\W\d]+|[^\w\s]")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(word, behavior="removed", invert=True)
    # Added tokens match before the text is split into words: tags contain punctuation, and phrases contain spaces.
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in (*TAGS, *phrases())])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
