"""The peers of rlt-data on the unmodified model, and the limit of the machine.

Each runs in a process of benchmarks/worker.py. Texts are pairs of token ids: a prompt, and the tokens after it, which
are scored, at temperature 1. ``score`` returns one list of log-probs per text.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache

from benchmarks.operations import Decoder, matmul_rate

Texts = list[list[list[int]]]

#: Sampling temperature; no top-p, no top-k.
TEMPERATURE = 0.7
#: Context length of vLLM, in tokens.
_CONTEXT = 8192


class Script:
    """What a competent engineer writes with Transformers: batches by length, LM head only where it is needed."""

    #: Tokens of a batch, and rows of logits that are in memory together.
    _BATCH_TOKENS, _HEAD_ROWS = 4096, 512

    def __init__(self, folder: str, dtype: str) -> None:
        self._model = unmodified(folder, dtype)
        self._head = self._model.get_output_embeddings()

    @torch.inference_mode()
    def score(self, texts: Texts) -> list[list[float]]:
        """Score texts."""
        rows = [torch.tensor(prompt + text) for prompt, text in texts]
        logprobs: list[list[float]] = [[] for _ in texts]
        waiting = sorted(range(len(texts)), key=lambda index: len(rows[index]))
        while waiting:
            longest = len(rows[waiting[-1]])
            size = max(1, self._BATCH_TOKENS // longest)
            batch, waiting = waiting[-size:], waiting[:-size]
            ids = torch.nn.utils.rnn.pad_sequence([rows[index] for index in batch], batch_first=True)
            lengths = torch.tensor([len(rows[index]) for index in batch])
            mask = (torch.arange(longest) < lengths[:, None]).long()
            hidden = self._model.base_model(ids, attention_mask=mask, use_cache=False).last_hidden_state
            for states, index in zip(hidden, batch, strict=True):
                first = len(texts[index][0])
                before, tokens = states[first - 1 : len(rows[index]) - 1], rows[index][first:]
                for piece in zip(before.split(self._HEAD_ROWS), tokens.split(self._HEAD_ROWS), strict=True):
                    logprobs[index] += self._logprobs(*piece)
        return logprobs

    def _logprobs(self, states: torch.Tensor, tokens: torch.Tensor) -> list[float]:
        logits = self._head(states).float()
        return (-torch.nn.functional.cross_entropy(logits, tokens, reduction="none")).tolist()

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], samples: int, tokens: int) -> int:
        """Draw samples with ``model.generate``.

        Several prompts are padded on the left. The keys and values of a single prompt are computed once and copied.
        """
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        inputs = {"input_ids": ids, "attention_mask": (torch.arange(longest) >= longest - lengths[:, None]).long()}
        if len(prompts) == 1:
            cache = DynamicCache(config=self._model.config)
            self._model(ids[:, :-1], past_key_values=cache, logits_to_keep=1)
            cache.batch_repeat_interleave(samples)
            inputs["past_key_values"] = cache
        self._model.generation_config.eos_token_id = None
        output = self._model.generate(
            **inputs,
            do_sample=True,
            temperature=TEMPERATURE,
            top_p=1.0,
            top_k=0,
            max_new_tokens=tokens,
            num_return_sequences=samples,
            pad_token_id=0,
        )
        return int(output[:, longest:].numel())


class LmEval:
    """HFLM of lm-eval. It returns one number per text, the sum of the log-probs; here it is divided by their number."""

    def __init__(self, folder: str, dtype: str) -> None:
        from lm_eval.models.huggingface import HFLM

        tokenizer = AutoTokenizer.from_pretrained(folder)
        self._lm = HFLM(unmodified(folder, dtype), tokenizer=tokenizer, device="cpu", batch_size=1)

    def score(self, texts: Texts) -> list[list[float]]:
        """Score texts; return the mean log-prob of each."""
        requests = [(("", ""), prompt, text) for prompt, text in texts]
        sums = self._lm._loglikelihood_tokens(requests, disable_tqdm=True)
        return [[total / len(text)] for (total, _), (_, text) in zip(sums, texts, strict=True)]


class Vllm:
    """vLLM's ``LLM.generate``, with the engine in this process."""

    def __init__(self, folder: str, dtype: str, use: str) -> None:
        os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
        from vllm import LLM

        self._llm = LLM(
            folder,
            dtype=dtype,
            enforce_eager=use == "score",  # compiled, it scores slower and generates faster
            max_model_len=min(_CONTEXT, AutoConfig.from_pretrained(folder).get_text_config().max_position_embeddings),
            max_num_batched_tokens=2048,
            enable_prefix_caching=use == "generate",  # it has no log-probs
            kv_cache_memory_bytes=2**30,
        )

    def score(self, texts: Texts) -> list[list[float]]:
        """Score texts."""
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False, flat_logprobs=True)
        prompts = [{"prompt_token_ids": prompt + text} for prompt, text in texts]
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        logprobs = []
        for output, (prompt, _) in zip(outputs, texts, strict=True):
            flat = output.prompt_logprobs
            bounds = zip(flat.start_indices, flat.end_indices, strict=True)
            logprobs.append([flat.logprobs[start] for start, end in list(bounds)[len(prompt) :] if end > start])
        return logprobs

    def generate(self, prompts: list[list[int]], samples: int, tokens: int, logprobs: bool) -> int:
        """Draw samples, with their log-probs or without."""
        from vllm import SamplingParams

        self._llm.reset_prefix_cache()
        params = SamplingParams(
            n=samples,
            max_tokens=tokens,
            temperature=TEMPERATURE,
            ignore_eos=True,
            logprobs=0 if logprobs else None,
        )
        outputs = self._llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
        return sum(len(sample.token_ids) for output in outputs for sample in output.outputs)


class Limit:
    """The rate of matrix products, and the operations that a model needs."""

    def __init__(self, folder: str, dtype: str) -> None:
        self._dtype = getattr(torch, dtype)
        self._decoder = Decoder.of(AutoConfig.from_pretrained(folder).get_text_config())

    def seconds(self, texts: Texts) -> float:
        """Return the CPU seconds that scoring texts with one prompt would take at the rate of matrix products."""
        [prompt] = {len(prompt) for prompt, _ in texts}
        operations = self._decoder.scoring_operations(prompt, [len(text) for _, text in texts])
        return operations / matmul_rate(self._decoder, self._dtype)


def unmodified(folder: str, dtype: str) -> Any:
    """Load a checkpoint as Transformers loads it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
