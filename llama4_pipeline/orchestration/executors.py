"""Where steps run: in processes of this machine, or as jobs of a Ray cluster."""

import os

import dagster as dg

from llama4_pipeline.errors import InputError

EXECUTOR_VARIABLE = "LLAMA4_PIPELINE_EXECUTOR"
"""Environment variable: `local` (the default) or `ray`."""


def chosen_executor() -> dg.ExecutorDefinition:
    """The executor that $LLAMA4_PIPELINE_EXECUTOR names.

    Raises:
        InputError: There is none of that name, or its packages are not installed.
    """
    chosen = os.environ.get(EXECUTOR_VARIABLE) or "local"
    if chosen == "local":
        return dg.multiprocess_executor.configured({"max_concurrent": 2})
    if chosen != "ray":
        raise InputError(f"${EXECUTOR_VARIABLE} is {chosen!r}: let it be local or ray")
    try:
        from llama4_pipeline.orchestration.ray_executor import ray_steps
    except ImportError as error:
        raise InputError(
            f"{error}: pip install 'llama4-pipeline[ray]' for ${EXECUTOR_VARIABLE}=ray"
        ) from error
    return ray_steps
