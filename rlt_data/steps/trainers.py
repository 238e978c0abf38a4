"""Files that lead other trainers to a distilled data set: LLaMA-Factory, axolotl and TRL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

#: Files that are written beside a data set.
FILES = ("dataset_info.json", "axolotl.yaml", "train_trl.py")


def _tags(role: str, content: str, user: str, assistant: str) -> dict[str, str]:
    return {
        "role_tag": role,
        "content_tag": content,
        "user_tag": user,
        "assistant_tag": assistant,
        "system_tag": "system",
    }


#: Entry of each shape in LLaMA-Factory's ``dataset_info.json``.
_LLAMA_FACTORY: dict[str, dict[str, Any]] = {
    "messages": {
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": _tags("role", "content", "user", "assistant"),
    },
    "sharegpt": {
        "formatting": "sharegpt",
        "columns": {"messages": "conversations"},
        "tags": _tags("from", "value", "human", "gpt"),
    },
    "bespoke": {
        "formatting": "sharegpt",
        "columns": {"messages": "conversations", "system": "system"},
        "tags": _tags("from", "value", "user", "assistant"),
    },
    "prompt-completion": {"columns": {"prompt": "prompt", "response": "completion"}},
    "preference": {
        "ranking": True,
        "columns": {"prompt": "user_text", "system": "system_text", "chosen": "chosen", "rejected": "rejected"},
    },
}

_AXOLOTL_CHAT = """\
    type: chat_template
    field_messages: {field}
    message_property_mappings:
      role: {role}
      content: {content}
    roles_to_train: [assistant]
    train_on_eos: turn
"""
#: What follows the file in axolotl's ``datasets``.
_AXOLOTL = {
    "messages": _AXOLOTL_CHAT.format(field="messages", role="role", content="content"),
    "sharegpt": _AXOLOTL_CHAT.format(field="conversations", role="from", content="value"),
    "bespoke": _AXOLOTL_CHAT.format(field="conversations", role="from", content="value") + "    field_system: system\n",
    "prompt-completion": """\
    type:
      field_instruction: prompt
      field_output: completion
      format: "{instruction}"
      no_input_format: "{instruction}"
""",
    "preference": """\
    type: user_defined.default
    field_prompt: prompt
    field_chosen: chosen
    field_rejected: rejected
    prompt_format: "{prompt}"
    chosen_format: "{chosen}"
    rejected_format: "{rejected}"
""",
}

_TRL_SFT = '''\
"""Fine-tune a student on this data set: python train_trl.py MODEL"""
import sys
from datasets import load_dataset
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])

def tokens(row):
{texts}
    encoded = tokenizer(prompt + answer, add_special_tokens=False, return_offsets_mapping=True)
    pairs = zip(encoded["input_ids"], encoded["offset_mapping"])
    labels = [token if start >= len(prompt) else -100 for token, (start, _) in pairs]  # -100: not learned
    return {{"input_ids": encoded["input_ids"], "labels": labels}}

rows = load_dataset("parquet", data_files="data/train-*.parquet", split="train")
rows = rows.map(tokens, remove_columns=rows.column_names)
settings = SFTConfig(output_dir="trained", max_length=None)
SFTTrainer(sys.argv[1], settings, train_dataset=rows, processing_class=tokenizer).train()
'''
_TRL_CHAT = """\
{turns}
    prompt = tokenizer.apply_chat_template(turns[:-1], add_generation_prompt=True, tokenize=False)
    text = tokenizer.apply_chat_template(turns, tokenize=False).rstrip("\\n")
    assert text.startswith(prompt), "the chat template writes the answer differently from its generation prompt"
    answer = text[len(prompt):]\
"""
_TRL_DPO = '''\
"""Train a student on the preferences of this data set: python train_trl.py MODEL"""
import sys
from datasets import load_dataset
from trl import DPOConfig, DPOTrainer

rows = load_dataset("parquet", data_files="data/train-*.parquet", split="train")
rows = rows.select_columns(["prompt", "chosen", "rejected"])
DPOTrainer(sys.argv[1], args=DPOConfig(output_dir="trained", max_length=None), train_dataset=rows).train()
'''
_TRL_SDFT = '''\
"""Teach a model by itself when it knows the solution: python train_trl.py MODEL [--learning_rate 1e-5 ...]

On-policy self-distillation: the model answers the prompt, and learns the probabilities that it gives to its answer when
the prompt also contains the solution. Flags, and --config FILE.yaml, are those of trl.experimental.sdft.SDFTConfig.
"""
import sys
from datasets import load_dataset
from trl import TrlParser
from trl.experimental.sdft import SDFTConfig, SDFTTrainer

parser = TrlParser(SDFTConfig)
parser.set_defaults(output_dir="trained", max_prompt_length=None)  # TRL's default cuts prompts to 512 tokens
[settings] = parser.parse_args_and_config(sys.argv[2:])
rows = load_dataset("parquet", data_files="data/train-*.parquet", split="train")
rows = rows.select_columns(["prompt", "privileged_context"])
trainer = SDFTTrainer(sys.argv[1], settings, train_dataset=rows)
trainer.train()
trainer.save_model()
'''
_TURNS = {
    "messages": '    turns = [{k: v for k, v in turn.items() if v is not None} for turn in row["messages"]]',
    "sharegpt": """\
    roles = {"system": "system", "human": "user", "gpt": "assistant"}
    turns = [{"role": roles[turn["from"]], "content": turn["value"]} for turn in row["conversations"]]""",
    "bespoke": """\
    turns = [{"role": "system", "content": row["system"]}] if row["system"] else []
    turns += [{"role": turn["from"], "content": turn["value"]} for turn in row["conversations"]]""",
}


def write_trainer_files(folder: Path, name: str, shape: str, thought_key: str) -> None:
    """Write :data:`FILES` into the folder of a data set; for ``privileged`` only TRL's, for a plug-in's shape nothing.

    LLaMA-Factory's loader drops a thought in a field of the message, and axolotl was not tried with one. Without their
    files, nobody trains without thoughts by accident; the shape ``sharegpt`` has the thoughts in the text.

    Args:
        folder: the folder.
        name: name of the data set in ``dataset_info.json``.
        shape: its shape.
        thought_key: key of the thought in its messages, or empty.
    """
    if shape not in (*_LLAMA_FACTORY, "privileged"):
        return
    (folder / "train_trl.py").write_text(_trl_script(shape), encoding="utf-8")
    if shape == "privileged" or (shape == "messages" and thought_key):
        return
    info = {name: {"file_name": "train.jsonl"} | _LLAMA_FACTORY[shape]}
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    kind = "rl: dpo\n" if shape == "preference" else ""
    datasets = f"{kind}datasets:\n  - path: train.jsonl\n    ds_type: json\n{_AXOLOTL[shape]}"
    (folder / "axolotl.yaml").write_text(datasets, encoding="utf-8")


def _trl_script(shape: str) -> str:
    if shape == "preference":
        return _TRL_DPO
    if shape == "privileged":
        return _TRL_SDFT
    if shape == "prompt-completion":
        return _TRL_SFT.format(texts='    prompt, answer = row["prompt"], row["completion"]')
    return _TRL_SFT.format(texts=_TRL_CHAT.format(turns=_TURNS[shape]))
