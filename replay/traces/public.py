"""Where public traces of requests come from: origin, licence, format, and what each is good for."""

from typing import NamedTuple


class Public(NamedTuple):
    """One public trace. `form` is the name of its format here; "" = it holds no single requests."""

    name: str
    form: str
    origin: str
    licence: str
    about: str


PUBLIC: tuple[Public, ...] = (
    Public(
        "Mooncake conversation, tool and agent, synthetic", "mooncake",
        "github.com/kvcache-ai/Mooncake, FAST25-release/traces", "Apache-2.0",
        "an hour of Kimi each: lengths, times, prefixes in blocks of 512 tokens. Qin et al., FAST 2025.",
    ),
    Public(
        "Azure LLM inference 2023, 2024", "azure",
        "github.com/Azure/AzurePublicDataset, data/AzureLLMInferenceTrace_*.csv", "CC-BY-4.0",
        "chat and code: lengths and times, no prefixes. Name Patel et al., \"Splitwise\", ISCA 2024.",
    ),
    Public(
        "coding-agent sessions", "weka",
        "github.com/callanjfox/kv-cache-tester, traces/trace_*.json, one to a line", "Apache-2.0",
        "Claude Code sessions recorded at WEKA: turns with think times, 64-token blocks, half of the prompts over 100K "
        "tokens. A session's ids are its own, its begin is not known.",
    ),
    Public(
        "LMCache agents", "lmcache",
        "github.com/LMCache/lmcache-agent-trace", "Apache-2.0",
        "web tasks, mini-SWE-agent, tau-bench with the text of prompts and answers.",
    ),
    Public(
        "arXiv summarization", "",
        "github.com/microsoft/vidur, data/processed_traces", "MIT",
        "pairs of lengths, no times.",
    ),
    Public(
        "ServeGen", "",
        "github.com/alibaba/ServeGen, data", "Apache-2.0",
        "rates and histograms of lengths per client, no single requests. arXiv 2505.09999.",
    ),
)  # fmt: skip
"""No public trace with embedding requests is known to us: embedding load is drawn, and a result says so."""
