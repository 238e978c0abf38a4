"""How models are loaded and run."""

from __future__ import annotations

import json
import re
from datetime import date
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, field_validator, model_validator
from pydantic.fields import FieldInfo

from rlt_data.errors import SettingsError
from rlt_data.plugins import ENGINES
from rlt_data.settings.base import (
    CLUSTER,
    ENGINE,
    MODEL,
    SERVER,
    VLLM,
    Settings,
    declared,
    field,
    flag_of,
    parse_settings,
)

#: The engines that run models on this machine.
_LOCAL = ("transformers", "vllm")

EngineName = Annotated[str, AfterValidator(ENGINES.check)]
ENGINE_HELP = (
    "Engine that runs the models: transformers, vllm, server (an OpenAI-compatible server at --url), or a plug-in's. "
    "auto: the engine of the run that is continued; else vllm if it is installed and there is a GPU, else transformers."
)


#: Names that mean something to the function that renders templates.
_RESERVED = (
    "messages",
    "tools",
    "documents",
    "tokenize",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template",
    "strftime_now",
    "plain_bos",
)


class TemplateSettings(Settings):
    """How conversations are rendered."""

    chat_template: str | None = field(
        None,
        MODEL,
        "Jinja file, or plain for a minimal template. Default: the model's own template.",
        affects="rows",
        by_content=True,
    )
    template_option: tuple[str, ...] = field(
        (),
        MODEL,
        "Variable for the chat template as KEY=VALUE, such as enable_thinking=false; repeatable.",
        affects="rows",
        by_content=True,
    )
    template_date: str = field(
        "2025-01-01",
        MODEL,
        "Date that chat templates see instead of today's, as YYYY-MM-DD.",
        affects="rows",
        by_content=True,
    )

    control_tokens: Literal["refuse", "text"] = field(
        "refuse",
        MODEL,
        "Control tokens of the model inside questions, solutions and traces: refuse such rows, or encode the tokens as "
        "text where the tokenizer can.",
        affects="rows",
        omit_default=True,
    )

    @field_validator("template_option", mode="before")
    @classmethod
    def _one_option_or_several(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return tuple(f"{key}={json.dumps(item)}" for key, item in value.items())
        return (value,) if isinstance(value, str) else value

    @field_validator("template_option")
    @classmethod
    def _are_options(cls, options: tuple[str, ...]) -> tuple[str, ...]:
        keys = [option.partition("=")[0] for option in options]
        for key, option in zip(keys, options, strict=True):
            if "=" not in option or not key.isidentifier():
                raise ValueError(f"{option!r} is not of the form KEY=VALUE, such as enable_thinking=false")
            if key in _RESERVED:
                raise ValueError(f"{key!r} is set by rlt-data")
            if keys.count(key) > 1:
                raise ValueError(f"{key!r} is given twice")
        return options

    @field_validator("template_date")
    @classmethod
    def _is_date(cls, value: str) -> str:
        try:
            return date.fromisoformat(value).isoformat()
        except ValueError:
            raise ValueError("must be a date such as 2025-01-01") from None

    @property
    def template_options(self) -> dict[str, Any]:
        """The variables for the chat template; values are JSON or else text, and True and False are read too."""
        parts = (option.partition("=") for option in self.template_option)
        return {key: _option_value(text) for key, _, text in parts}


def _option_value(text: str) -> Any:
    try:
        return json.loads(text.lower() if text in ("True", "False") else text)
    except ValueError:
        return text


class ModelSettings(TemplateSettings):
    """How models are loaded and run."""

    engine: EngineName = field(  # other engines draw other samples from the same seed
        "auto", MODEL, ENGINE_HELP, affects="rows"
    )
    device: str = field(
        "auto", MODEL, "Device: auto, cpu, cuda, cuda:1, mps.", affects="speed", engines=("transformers",)
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        "auto",
        MODEL,
        "Data type of the weights. auto: the checkpoint's, or float32 on a CPU without bfloat16 arithmetic.",
        affects="rows",
        by_content=True,
        engines=_LOCAL,
    )
    batch_size: int | None = field(
        None,
        MODEL,
        "Sequences generated at a time. Default: as many as fit in memory, at most 32 on CPU.",
        affects="speed",
        ge=1,
        engines=_LOCAL,
    )
    batch_tokens: int | None = field(
        None,
        MODEL,
        "Tokens per forward pass. Default: 4096 on CPU, 16384 on GPU.",
        affects="speed",
        ge=1,
        engines=_LOCAL,
    )
    trust_remote_code: bool = field(False, MODEL, "Run Python code from the checkpoint.", affects="speed")
    stall_timeout: float = field(
        900.0, ENGINE, "Stop if an engine makes no progress for this many seconds.", affects="speed", gt=0
    )
    data_parallel: int = field(
        1, VLLM, "Number of engine processes, each on separate GPUs.", affects="speed", ge=1, engines=("vllm",)
    )
    tensor_parallel: int = field(1, VLLM, "GPUs per engine process.", affects="speed", ge=1, engines=("vllm",))
    gpu_memory: float = field(
        0.9,
        VLLM,
        "Share of GPU memory to use, for all models together.",
        affects="speed",
        gt=0,
        lt=1,
        engines=("vllm",),
    )
    max_model_len: int | None = field(
        None,
        VLLM,
        "Maximum sequence length in tokens. Default: the model's context.",
        affects="speed",
        ge=2,
        engines=("vllm",),
    )
    url: tuple[str, ...] = field(
        (),
        SERVER,
        "Base URL such as http://host:8000/v1; repeatable, requests are spread over all URLs.",
        affects="speed",
        engines=("server",),
    )
    served_model: str | None = field(
        None, SERVER, "Model name on the server. Default: the one it serves.", affects="speed", engines=("server",)
    )
    api_key_env: str = field(
        "OPENAI_API_KEY",
        SERVER,
        "Environment variable that contains the API key, if the server requires one.",
        affects="speed",
        engines=("server",),
    )
    concurrency: int = field(64, SERVER, "Concurrent requests per URL.", affects="speed", ge=1, engines=("server",))
    connect_timeout: float = field(
        10.0, SERVER, "Connection timeout in seconds.", affects="speed", gt=0, engines=("server",)
    )
    read_timeout: float = field(
        600.0, SERVER, "Response timeout in seconds.", affects="speed", gt=0, engines=("server",)
    )
    retries: int = field(8, SERVER, "Retries per request.", affects="speed", ge=0, engines=("server",))
    ray: str | None = field(
        None,
        CLUSTER,
        "Run the engines on a Ray cluster: its address, auto (the cluster of this machine), or local (start one).",
        affects="speed",
        engines=_LOCAL,
    )
    engines: int | None = field(
        None,
        CLUSTER,
        "Number of engines. Default: as many as have GPUs, or one per machine without GPUs.",
        affects="speed",
        ge=1,
    )
    gpus_per_engine: float | None = field(
        None,
        CLUSTER,
        "GPUs per engine. Default: --tensor-parallel, or 0 on a cluster without GPUs.",
        affects="speed",
        ge=0,
    )

    @field_validator("ray")
    @classmethod
    def _is_cluster(cls, value: str | None) -> str | None:
        if value not in (None, "auto", "local") and not re.fullmatch(r"[^/\s]+:\d+", value):
            raise ValueError("must be auto, local, or the address of a cluster such as 10.0.0.1:6379")
        return value

    @field_validator("url", mode="before")
    @classmethod
    def _one_url_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("url")
    @classmethod
    def _are_base_urls(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        return base_urls(urls, "--url")

    @model_validator(mode="after")
    def _engine_reads_settings(self) -> ModelSettings:
        possible = _LOCAL if self.engine == "auto" else (self.engine,)
        for name, info in type(self).model_fields.items():
            readers = _readers(info)
            # a plug-in's engine may read any setting
            if readers and {*possible} <= {*ENGINES.built_in} - {*readers} and self.not_default(name):
                raise ValueError(f"{name}: has no effect with --engine {self.engine}, only with {' or '.join(readers)}")
        if self.engine == "server" and not self.url:
            raise ValueError("url: is required with --engine server")
        if not self.ray and (self.engines is not None or self.gpus_per_engine is not None):
            raise ValueError("ray: is required with --engines and --gpus-per-engine")
        return self

    @property
    def needs_transformers(self) -> str | None:
        """The first flag that only the transformers engine takes, as the user would write it; None if there is none."""
        names = [name for name, info in type(self).model_fields.items() if _readers(info) == ["transformers"]]
        return next((f"{flag_of(name)} {getattr(self, name)}" for name in self.not_default(*names)), None)

    def with_engine(self, engine: str) -> Self:
        """Return the same settings with the engine that ``auto`` stands for.

        Raises:
            SettingsError: a setting has no effect with this engine, or is missing.
        """
        return parse_settings(type(self), self.model_dump(by_alias=True) | {"engine": engine}, flags=True)

    def depends_on(self, **content: Any) -> dict[str, Any]:
        """Return what the step's rows depend on, without the engine transformers, because older rows lack it."""
        values = super().depends_on(**content)
        return {key: value for key, value in values.items() if (key, value) != ("engine", "transformers")}


def base_urls(urls: tuple[str, ...], flag: str) -> tuple[str, ...]:
    """Return the base URLs of servers in their usual form.

    Raises:
        SettingsError: a text is not a base URL.
        ValueError: a URL is repeated.
    """
    urls = tuple(url.strip().rstrip("/") for url in urls)
    for number, url in enumerate(urls, 1):
        if reason := _why_not_base_url(url):
            # Not a ValueError: pydantic shows the value with it, which may contain a password.
            raise SettingsError(f"{flag}: number {number} {reason}; use a URL such as http://host:8000/v1")
    if len(set(urls)) < len(urls):
        raise ValueError("the same URL is given twice; --concurrency sets the number of requests per URL")
    return urls


def _readers(info: FieldInfo) -> list[str]:
    """Return the engines that read a setting; empty: all of them."""
    return list(declared(info).get("engines", ()))


def _why_not_base_url(url: str) -> str | None:
    """Return why a text is not the base URL of a server, without quoting it; None if it is one."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "is not a URL"
    if parts.scheme not in ("http", "https"):
        return "does not begin with http:// or https://"
    if not host or any(char.isspace() for char in url):
        return "is not a URL"
    if parts.username or parts.password or "@" in parts.netloc:
        return "contains a user name or a password; the API key comes from the environment (--api-key-env)"
    if parts.query or parts.fragment or "?" in url or "#" in url:
        return "contains a query; the API key comes from the environment (--api-key-env)"
    return None
