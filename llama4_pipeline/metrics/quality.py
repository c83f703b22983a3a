"""The record of an engine's quality."""

from pydantic import BaseModel, ConfigDict


class QualityResult(BaseModel):
    """Quality of one engine. None: the data holds nothing to measure it with, or no reference was given.

    Standard errors stand beside their figures. Divergences are nats per token; agreement, ROUGE and accuracy are
    shares from 0 to 1.
    """

    model_config = ConfigDict(frozen=True)

    tokens: int | None = None
    """Tokens predicted, exactly: all of the texts but the first of each."""
    perplexity: float | None = None
    perplexity_stderr: float | None = None
    reference_perplexity: float | None = None
    perplexity_ratio: float | None = None
    """Perplexity over the reference's; its error is that of the paired differences."""
    perplexity_ratio_stderr: float | None = None
    kl_divergence: float | None = None
    kl_stderr: float | None = None
    kl_p99: float | None = None
    kl_max: float | None = None
    top1_agreement: float | None = None
    top1_stderr: float | None = None
    expert_change_share: float | None = None
    """Share of (token, MoE layer) pairs that go to other experts than in the reference; on the CPU alone."""
    summaries: int | None = None
    rouge1: float | None = None
    rouge1_stderr: float | None = None
    rouge2: float | None = None
    rouge2_stderr: float | None = None
    rougeL: float | None = None  # noqa: N815  the metric's name
    rougeL_stderr: float | None = None  # noqa: N815
    classifications: int | None = None
    accuracy: float | None = None
    accuracy_stderr: float | None = None
