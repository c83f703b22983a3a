"""Steps as jobs of a Ray cluster, by dagster-ray; each asks for what its stage needs for its model."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import dagster as dg
from dagster._core.execution.retries import RetryMode
from dagster._core.executor.step_delegating import (
    CheckStepHealthResult,
    StepDelegatingExecutor,
    StepHandlerContext,
)
from dagster_ray.core.executor import RayStepHandler
from ray.job_submission import JobStatus, JobSubmissionClient

from llama4_pipeline.artifacts.location import ARTIFACTS_VARIABLE
from llama4_pipeline.catalog import USER_CATALOG_VARIABLE, ModelSpec, find_model
from llama4_pipeline.device import DEVICE_VARIABLE, missing_cuda_build
from llama4_pipeline.orchestration.resources import PAGES_VARIABLE
from llama4_pipeline.stages import STAGES, Stage

_PARTITION_TAG = "dagster/partition"


@dataclass(frozen=True)
class Request:
    """What a step asks of a Ray node before it starts there."""

    num_cpus: float
    num_gpus: float
    memory: int | None


def request_of(stage: Stage, model: ModelSpec) -> Request:
    """A core, the memory that the catalog computes, and a GPU where the stage uses one and the packages are for CUDA.

    Dagster's own machine needs no GPU, but the same packages as the nodes.

    Args:
        stage: What runs.
        model: What it runs for; one that only its checkpoint describes asks for no memory.
    """
    on_gpu = stage.may_use_gpu and missing_cuda_build() is None
    needed = model.needs(stage.name)
    if needed and on_gpu:
        needed = needed.on_gpu()
    return Request(num_cpus=1, num_gpus=float(on_gpu), memory=needed.memory_bytes if needed else None)


class _StageHandler(RayStepHandler):
    """Submits, watches and stops the Ray job of a step."""

    def launch_step(self, step_handler_context: StepHandlerContext) -> Iterator[dg.DagsterEvent]:
        stage = STAGES[self._get_step_key(step_handler_context)]
        model = find_model(step_handler_context.dagster_run.tags[_PARTITION_TAG])
        request = request_of(stage, model)
        self.num_cpus, self.num_gpus, self.memory = request.num_cpus, request.num_gpus, request.memory
        yield from super().launch_step(step_handler_context)

    def check_step_health(self, step_handler_context: StepHandlerContext) -> CheckStepHealthResult:
        health: CheckStepHealthResult = super().check_step_health(step_handler_context)
        job = self._get_ray_job_submission_id(step_handler_context)
        if health.is_healthy and self.client.get_job_status(job) is JobStatus.STOPPED:
            return CheckStepHealthResult.unhealthy(f"Ray job {job} was stopped")
        return health


@dg.executor(name="ray", requirements=dg.multiple_process_executor_requirements())
def ray_steps(context: dg.InitExecutorContext) -> dg.Executor:
    """A Ray job per step, on the cluster that $RAY_ADDRESS names."""
    handler = _StageHandler(
        client=JobSubmissionClient(),
        env_vars=[
            ARTIFACTS_VARIABLE,
            USER_CATALOG_VARIABLE,
            PAGES_VARIABLE,
            # A step that needs no GPU may be where none is, and makes its graph for those that have one.
            f"{DEVICE_VARIABLE}={os.environ.get(DEVICE_VARIABLE) or ('cpu' if missing_cuda_build() else 'cuda')}",
        ],
        runtime_env=None,
        num_cpus=None,
        num_gpus=None,
        memory=None,
        resources=None,
    )
    return StepDelegatingExecutor(handler, retries=RetryMode.DISABLED, should_verify_step=True)
