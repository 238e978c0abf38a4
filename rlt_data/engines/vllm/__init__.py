"""The vLLM engine. No other package uses vLLM's API.

vLLM is imported only in the processes of a pool. The process that starts them reads only its version.

Reading order: ``version`` (which vLLM is installed), ``loading`` (processes, and arguments of ``vllm.LLM``),
``requests`` (sampling parameters), ``core`` (runs the requests of a process).
"""
