"""From a model file to an engine that can take requests. Runs on the engine thread; imports OpenCL."""

from __future__ import annotations

from typing import NamedTuple

import structlog

from engine_service.compute.device import Device
from engine_service.compute.kv_cache import KVCache
from engine_service.compute.kv_plan import KVCachePlan
from engine_service.compute.model_kernels import ModelKernels
from engine_service.compute.model_runner import ModelRunner
from engine_service.compute.operations import Operations
from engine_service.compute.sampler import Sampler
from engine_service.compute.self_test import choose_program
from engine_service.compute.step_inputs import StepInputs, StepLimits
from engine_service.compute.weights import Progress, Weights
from engine_service.config import EngineConfig
from engine_service.constraints.mask_threads import MaskThreads
from engine_service.constraints.token_bytes import TokenBytes
from engine_service.engine import Engine, StepObserver
from engine_service.models.hyperparameters import Hyperparameters
from engine_service.models.llama import LlamaModel
from engine_service.scheduling.block_manager import BlockManager
from engine_service.scheduling.drafter import Drafter
from engine_service.scheduling.scheduler import Scheduler, SchedulerConfig
from engine_service.served_model import ServedModel, numerics_id
from engine_service.token_search import TokenSearch
from service_common.gguf_reader import GGUFReader
from service_common.special_tokens import SpecialTokens

_NUM_MASK_THREADS = 2  # masks take little beside a forward pass, which wants all processors


class LoadedEngine(NamedTuple):
    """An engine, what clients may know of its model, and what computes the engine's steps."""

    engine: Engine
    model: ServedModel
    runner: ModelRunner


def load_engine(
    config: EngineConfig,
    reader: GGUFReader,
    hyperparameters: Hyperparameters,
    plan: KVCachePlan,
    vocab_sha256: str,
    progress: Progress,
    on_step: StepObserver = lambda step: None,
    drafter: Drafter | None = None,
) -> LoadedEngine:
    """Opens the device and puts the model on it. StartupError or DeviceError tells what does not fit.

    `drafter` as in Scheduler.
    """
    device = Device.open(config.device)
    eog_ids = tuple(sorted(SpecialTokens.from_gguf(reader).eog_ids))
    kernels = ModelKernels.of(
        reader, hyperparameters, block_size=config.block_size, kv_cache_type=config.kv_cache_type, eog_ids=eog_ids
    )
    program = choose_program(device, kernels, portable=config.portable_kernels)
    scheduler_config = _scheduler_config(config, plan)
    limits = _step_limits(config, plan, scheduler_config)
    inputs = StepInputs(device, limits)
    structlog.get_logger(__name__).info("KV cache planned", arithmetic=str(plan))
    cache = KVCache(device, plan.shape, plan.num_blocks)
    weights = Weights(program.library, reader, progress)
    operations = Operations(device, inputs)
    model = LlamaModel(hyperparameters, reader, weights, operations, cache, device, limits)
    sampler = Sampler(device, program.library, hyperparameters.vocab_size, limits.max_logit_rows)
    block_copies = operations.copy_blocks(cache, kernels.shape)
    runner = ModelRunner(program, block_copies, model, inputs, sampler, eog_ids, MaskThreads(_NUM_MASK_THREADS))
    blocks = BlockManager(plan.num_blocks, config.block_size)
    scheduler = Scheduler(scheduler_config, blocks, eog_token_ids=frozenset(eog_ids), drafter=drafter)
    served = ServedModel(
        name=reader.get_str("general.name", config.model.stem),
        architecture=hyperparameters.architecture,
        vocab_size=hyperparameters.vocab_size,
        context_length=plan.context_length,
        trained_context_length=hyperparameters.context_length,
        eog_token_ids=eog_ids,
        vocab_sha256=vocab_sha256,
        numerics_id=numerics_id(config.kv_cache_type),
        weight_bytes=weights.device_bytes,
        num_parameters=sum(tensor.num_elements for tensor in reader.tensors.values()),
        device=device.name,
        token_search=TokenSearch(TokenBytes.from_gguf(reader, hyperparameters.vocab_size).texts),
    )
    _log_loaded(served, cache)
    return LoadedEngine(Engine(scheduler, runner, on_step=on_step), served, runner)


def _log_loaded(served: ServedModel, cache: KVCache) -> None:
    """The arithmetic of the memory that is now taken."""
    structlog.get_logger(__name__).info(
        "model loaded",
        model=served.name,
        device=served.device,
        weight_bytes=served.weight_bytes,
        kv_cache_bytes=cache.nbytes,
        kv_blocks=cache.num_blocks,
        context_length=served.context_length,
    )


def _step_limits(config: EngineConfig, plan: KVCachePlan, scheduler_config: SchedulerConfig) -> StepLimits:
    return StepLimits(
        max_tokens=config.max_num_batched_tokens,
        max_seqs=config.max_num_seqs,
        max_logit_rows=scheduler_config.max_logit_rows,
        max_blocks_per_seq=-(-plan.context_length // config.block_size),
        block_size=config.block_size,
    )


def _scheduler_config(config: EngineConfig, plan: KVCachePlan) -> SchedulerConfig:
    return SchedulerConfig(
        context_length=plan.context_length,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_num_seqs=config.max_num_seqs,
        max_prefill_chunk=config.max_prefill_chunk or config.max_num_batched_tokens,
        max_queued_requests=config.max_queued_requests,
        max_queued_tokens=config.max_queued_tokens or max(1 << 20, plan.context_length),
        max_draft_tokens=config.max_draft_tokens,
        max_step_stretch=config.max_step_stretch,
        pause_timeout_seconds=config.pause_timeout_seconds,
    )
