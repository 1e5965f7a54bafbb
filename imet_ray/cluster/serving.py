"""Taggers as Ray Serve replicas: each has the ensemble's models, and tags what waits for it in batches.

HTTP is not theirs: the process that starts them listens. So a request outlives the replica that had it: another one
tags its pictures.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from imet_ray.cluster.own_ray import LOOPBACK, resources_here
from imet_ray.cluster.session import ray_session
from imet_ray.errors import ConfigError, StoreError, telling_line
from imet_ray.prediction.prepared import Prepared, Preparer
from imet_ray.prediction.tagger import Tagger, device_of
from imet_ray.prediction.tagger_files import TaggerFiles
from imet_ray.prediction.view_sets import ViewSet
from imet_ray.search_space import Resources
from imet_ray.serving.batches import Batches
from imet_ray.serving.tagged import Tagged

logger = logging.getLogger(__name__)

APPLICATION = "imet-ray"
BATCH = 32  # pictures that a replica tags together
GIVEN = 2 * BATCH  # to a replica: one batch waits while the other is tagged
WAIT_S = 0.005  # for more pictures, while the models have nothing to do
TRIES = 6  # of a picture, each with another replica
PAUSE_S = 0.2  # before the next one
HEALTH_S = 1.0  # until it is noticed that a replica is dead, and a fresh one starts
ON_CPU = 2  # replicas: one answers while the other is replaced


class Model:
    """A replica: the models, and the batches that wait for them."""

    def __init__(self, files: TaggerFiles, views: ViewSet | None, cores: int) -> None:
        _listen_on_loopback()
        self.tagger = Tagger(files, device_of(None), views, cores=cores)
        self.batches = Batches(self._tag, most=BATCH, wait_s=WAIT_S)

    async def about(self) -> tuple[Preparer, str]:
        """How pictures are prepared, and how labels are decided."""
        return self.tagger.prepare, self.tagger.decided_by()

    async def tag(self, prepared: Prepared) -> Tagged:
        """Tag a picture, together with others that wait."""
        return await self.batches.ask(prepared)

    def _tag(self, prepared: list[Prepared]) -> list[Tagged]:
        started = time.monotonic()
        scores = self.tagger.scores(prepared)
        seconds = (time.monotonic() - started) / len(prepared)
        probs, chosen = self.tagger.calibrated(scores), self.tagger.decide(scores)
        return [Tagged(*one, seconds, 1 / len(prepared)) for one in zip(probs, chosen, strict=True)]


@dataclass(frozen=True)
class Replicas:
    """The replicas that run, as the HTTP interface asks them."""

    handle: DeploymentHandle
    turns: asyncio.Semaphore  # of as many pictures as the replicas take
    prepare: Preparer
    decided_by: str

    async def tag(self, prepared: Prepared) -> Tagged:
        """Tag a picture; if its replica dies, another one does.

        What the replicas do not take yet waits here, where the next one goes on as soon as one is done: Ray's router
        asks full replicas again every half a second.

        Raises:
            StoreError: if none can.
        """
        async with self.turns:
            return await self._tag(prepared)

    async def _tag(self, prepared: Prepared) -> Tagged:
        trouble = ""
        for _ in range(TRIES):
            try:
                found: Tagged = await self.handle.tag.remote(prepared)
                return found
            except (RayActorError, RayServeException) as error:  # it died, or none runs at the moment
                trouble = telling_line(error)
                logger.info("a picture is given to another replica: %s", trouble)
            except RayError as error:
                raise StoreError(f"the model failed: {telling_line(error)}") from None
            await asyncio.sleep(PAUSE_S)
        raise StoreError(f"{TRIES} replicas died with this picture, or could not start: {trouble}")

    async def ready(self) -> bool:
        """Whether a replica runs."""
        return await asyncio.to_thread(_runs)


@contextlib.contextmanager
def replicas(
    files: TaggerFiles, *, count: int | None = None, views: ViewSet | None = None
) -> Iterator[Replicas]:
    """Start a Ray of our own on this machine, and replicas on it, until the block ends.

    Args:
        count: how many; None: one per GPU, or two on a CPU of several cores.
        views: None: those that the ensemble was fitted on.

    Raises:
        StoreError: if the models cannot be loaded.
    """
    found = resources_here()
    cores, gpus = int(found["CPU"]), int(found["GPU"])
    count = count or gpus or min(ON_CPU, cores)
    if count > cores:
        raise ConfigError(
            f"--replicas {count}: each needs a core, and there are {cores}: give {cores} at most"
        )
    each = cores // count
    options = {"num_cpus": each, "num_gpus": 1 / math.ceil(count / gpus) if gpus else 0}
    with ray_session(Resources(), run="serve-tags"):
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        quiet = {"log_level": "ERROR", "enable_access_log": False}
        serve.start(proxy_location="Disabled", logging_config=quiet)  # we listen ourselves
        deployment = serve.deployment(Model).options(
            num_replicas=count,
            max_ongoing_requests=count * GIVEN,  # never too many: the router need not wait
            health_check_period_s=HEALTH_S,
            ray_actor_options=options,
            logging_config=quiet,
        )
        try:
            handle = serve.run(deployment.bind(files, views, each), name=APPLICATION, route_prefix=None)
            prepare, decided_by = handle.about.remote().result()
        except (RuntimeError, RayError) as error:
            raise StoreError(f"the models cannot be loaded: {telling_line(error)}") from None
        yield Replicas(handle, asyncio.Semaphore(count * GIVEN), prepare, decided_by)


def _runs() -> bool:
    """Whether a replica runs now."""
    status = serve.status().applications.get(APPLICATION)
    return status is not None and any(
        one.replica_states.get("RUNNING") for one in status.deployments.values()
    )


def _listen_on_loopback() -> None:
    """Open this replica's own port, which is for other replicas, on loopback alone: Serve has no setting."""
    from ray.serve._private import replica

    add = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: add(server, f"{LOOPBACK}:0")
