"""How models are loaded and run."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, field_validator, model_validator

from rlt_data.errors import SettingsError
from rlt_data.plugins import ENGINES
from rlt_data.settings.base import ENGINE, MODEL, Settings, field

#: Settings that only one engine takes.
_FIELDS_OF = {
    "vllm": ("data_parallel", "tensor_parallel", "gpu_memory", "max_model_len"),
    "server": (
        "url",
        "served_model",
        "served_temperature",
        "api_key_env",
        "concurrency",
        "connect_timeout",
        "read_timeout",
        "retries",
    ),
}

EngineName = Annotated[str, AfterValidator(ENGINES.check)]
ENGINE_HELP = (
    "What runs the models: transformers, vllm, server (an OpenAI-compatible one, see --url), or a plugin's engine."
)


class ModelSettings(Settings):
    """How models are loaded and run."""

    engine: EngineName = field(  # other engines draw other samples from the same seed
        "transformers", MODEL, ENGINE_HELP, affects="rows", omit_default=True
    )
    device: str = field("auto", MODEL, "auto, cpu, cuda, cuda:1, mps, ...", affects="speed")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        "auto",
        MODEL,
        "auto: the checkpoint's, or float32 on a CPU without bfloat16 arithmetic.",
        affects="rows",
        by_content=True,
    )
    batch_size: int | None = field(
        None, MODEL, "Samples generated at a time; default: what fits, 32 on CPU.", affects="speed", ge=1
    )
    batch_tokens: int | None = field(
        None, MODEL, "Tokens scored at a time; default: 4096 on CPU, else 16384.", affects="speed", ge=1
    )
    chat_template: str | None = field(
        None, MODEL, "Jinja file, or 'plain' for ours; default: the model's own.", affects="rows", by_content=True
    )
    trust_remote_code: bool = field(False, MODEL, "Run Python code that comes with a checkpoint.", affects="speed")
    stall_timeout: float = field(
        900.0,
        ENGINE,
        "Seconds without any sign of life from an engine after which the run is ended.",
        affects="speed",
        gt=0,
    )
    data_parallel: int = field(1, ENGINE, "vllm: engine processes, each on GPUs of its own.", affects="speed", ge=1)
    tensor_parallel: int = field(1, ENGINE, "vllm: GPUs that share one engine.", affects="speed", ge=1)
    gpu_memory: float = field(
        0.9, ENGINE, "vllm: share of GPU memory to use, for all models together.", affects="speed", gt=0, lt=1
    )
    max_model_len: int | None = field(
        None, ENGINE, "vllm: longest text; default: the model's context.", affects="speed", ge=2
    )
    url: tuple[str, ...] = field(
        (),
        ENGINE,
        "server: base URL such as http://host:8000/v1; may be repeated, requests go to all.",
        affects="speed",
    )
    served_model: str | None = field(
        None, ENGINE, "server: the model's name there; default: the one it serves.", affects="speed"
    )
    api_key_env: str = field(
        "OPENAI_API_KEY", ENGINE, "server: environment variable that holds the key, if any.", affects="speed"
    )
    concurrency: int = field(64, ENGINE, "server: requests at a time to each URL.", affects="speed", ge=1)
    connect_timeout: float = field(10.0, ENGINE, "server: seconds for a connection.", affects="speed", gt=0)
    read_timeout: float = field(600.0, ENGINE, "server: seconds for an answer.", affects="speed", gt=0)
    retries: int = field(8, ENGINE, "server: tries of a request after the first.", affects="speed", ge=0)
    ray: str | None = field(
        None,
        ENGINE,
        "Run engines on a Ray cluster: its address, auto for the one of this machine, local to start one.",
        affects="speed",
    )
    engines: int | None = field(
        None,
        ENGINE,
        "With --ray: engines; default: as many as have GPUs, or one a machine without.",
        affects="speed",
        ge=1,
    )
    gpus_per_engine: float | None = field(
        None,
        ENGINE,
        "With --ray: GPUs of each engine; default: --tensor-parallel, or 0 without GPUs.",
        affects="speed",
        ge=0,
    )

    @field_validator("ray")
    @classmethod
    def _auto_local_or_address(cls, value: str | None) -> str | None:
        if value not in (None, "auto", "local") and not re.fullmatch(r"[^/\s]+:\d+", value):
            raise ValueError("takes auto, local, or the address of a cluster such as 10.0.0.1:6379")
        return value

    @field_validator("url", mode="before")
    @classmethod
    def _one_url_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("url")
    @classmethod
    def _plain_urls(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        urls = tuple(url.strip().rstrip("/") for url in urls)
        for number, url in enumerate(urls, 1):
            if problem := _problem_with_url(url):
                # Not a ValueError: pydantic shows the value with it, which may hold a password.
                raise SettingsError(f"--url: number {number} {problem}; takes URLs such as http://host:8000/v1")
        if len(set(urls)) < len(urls):
            raise ValueError("one URL is given twice; --concurrency says how many requests each gets at a time")
        return urls

    @model_validator(mode="after")
    def _options_fit_the_engine(self) -> ModelSettings:
        for engine, names in _FIELDS_OF.items():
            known = [name for name in names if name in type(self).model_fields]
            if self.engine in ENGINES.built_in and self.engine != engine and (wrong := self.not_default(*known)):
                raise ValueError(f"{wrong[0]}: goes with --engine {engine}, not with {self.engine}")
        if self.engine == "server" and not self.url:
            raise ValueError("url: is needed with --engine server")
        if self.engine == "server" and self.ray:
            raise ValueError("ray: goes with --engine transformers or vllm; servers run where they run")
        if not self.ray and (self.engines is not None or self.gpus_per_engine is not None):
            raise ValueError("ray: is needed with --engines and --gpus-per-engine")
        return self


def _problem_with_url(url: str) -> str | None:
    """Say why a text is not the base URL of a server, without any part of it; None if it is one."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "is no URL"
    if parts.scheme not in ("http", "https"):
        return "does not begin with http:// or https://"
    if not host or any(char.isspace() for char in url):
        return "is no URL"
    if parts.username or parts.password or "@" in parts.netloc:
        return "holds a user name or a password; keys come from the environment (--api-key-env)"
    if parts.query or parts.fragment or "?" in url or "#" in url:
        return "holds a query; keys come from the environment (--api-key-env)"
    return None
