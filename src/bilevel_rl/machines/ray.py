"""Jobs on a Ray cluster. Ray schedules; we say what a job is and carry its files.

The package must be installed on the cluster's machines, in the same version: each task compares before it begins. Machines
share no disk: a task does its job in a temporary folder, and every file that it writes comes home as it is written, so that
a job whose node is lost goes on elsewhere from its last checkpoint.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bilevel_rl import records, versions
from bilevel_rl.errors import InvalidConfig, StorageFailed, message, require
from bilevel_rl.machines import files
from bilevel_rl.machines.child import SCRATCH
from bilevel_rl.machines.job import BUSY, ClusterLost, Job, Needs, Outcome, Process, Tell, Worker

EXTRA = "ray"
REACH = 3.0  # seconds to reach a port
ANSWER = 8.0  # seconds for a cluster to say that it is one; a driver's own first try costs a minute and a stack trace
LOOK = 1.0  # seconds between looks at what a job has written
ASK = 2.0  # seconds after which a silent cluster is asked whether it is there
AHEAD = 2  # jobs given to Ray for each that fits: a node that is free or joins finds work
PROBE = 30.0  # seconds for a node to start a process and to say its versions; a busy one is asked by its first job
PREFIX = f"bilevel-rl-{socket.gethostname()}-"  # of temporary folders; the number of the process that will remove it follows


def connect(
    address: str, needs: Needs = Needs(), names: tuple[str, ...] = versions.OF_JAX
) -> tuple[Worker, Callable[[], int]]:
    """A worker that does jobs on the cluster, and how many of them it may be given at a time.

    Args:
        address: HOST:PORT of a running cluster, `auto` for the one that this machine belongs to, `local` to start one here.
        needs: of each job.
        names: packages whose versions must be those of this process.

    Raises:
        MissingDependency: without the extra `ray`.
        ClusterLost: nothing answers at the address.
        InvalidConfig: an address that is none, another version of Ray or Python there, or jobs that fit no node.
    """
    ray: Any = require("ray", EXTRA)
    place = _start(ray, address)
    for node, theirs in _asked(ray).items():
        versions.check(theirs, names, f"node {node}")
    most = _room(ray, needs)
    if most() == 0 and address == "local":
        raise _does_not_fit(needs, address)
    return Cluster(ray, place, needs, names), lambda: AHEAD * max(1, most())


class Cluster:
    """A worker (see `job.Worker`) of a cluster that this process is connected to.

    Args:
        ray: the module.
        place: HOST:PORT of the cluster's head.
        needs: of each job.
        names: packages whose versions are compared.
    """

    def __init__(self, ray: Any, place: str, needs: Needs, names: tuple[str, ...]):
        self.ray, self.place, self.names = ray, place, names
        resources: dict[str, Any] = {"num_cpus": needs.cpus, "num_gpus": needs.gpus}
        if needs.memory:
            resources["memory"] = int(needs.memory * 2**30)
        # a process for each job, so that its memory is its own; Ray tries nothing again, the pool does
        self.task = ray.remote(max_retries=0, max_calls=1, num_returns="streaming", **resources)(_do)
        self.lost = threading.Event()

    def __call__(self, job: Job, tell: Tell) -> Outcome:
        try:
            with records.locked(job.folder):  # against a second driver on this folder
                return Outcome(0, "") if job.done else self._follow(job, tell)
        except StorageFailed as error:
            return Outcome(BUSY if "another process" in str(error) else 1, str(error))

    def _follow(self, job: Job, tell: Tell) -> Outcome:
        """Give the job to the cluster and take home what it says, until it ends."""
        try:
            for kind, *said in self._told(self.task.remote(files.all_of(job.folder), job.words)):
                if kind == "begins":
                    where, theirs = said
                    versions.check(theirs, self.names, f"node {where}")
                    tell("running", f"on {where}")
                elif kind == "files":
                    said[0].apply(job.folder)
                else:
                    return Outcome(*said)
        except self.ray.exceptions.RayError as error:  # the job's process or node is gone, or all of the cluster
            if not self.there():
                raise self._gone() from error
            return Outcome(1, str(error).split("\n")[0])
        return Outcome(1, "its process ended without a word")

    def _told(self, stream: Any) -> Iterator[tuple]:
        """What a task yields, as it comes; a cluster that is lost is noticed while nothing comes."""
        while True:
            ready, _ = self.ray.wait([stream], timeout=ASK, fetch_local=False)
            if self.lost.is_set() or (not ready and not self.there()):
                raise self._gone()
            if ready:
                try:
                    reference = next(stream)
                except StopIteration:
                    return
                yield self.ray.get(reference)

    def there(self) -> bool:
        """Whether the cluster's head and this machine's part of it still answer; asked twice, for a busy one."""
        for _ in range(2):
            if reached(self.place, REACH) and _raylet_there(self.ray):
                return not self.lost.is_set()
            time.sleep(0.5)
        return False

    def _gone(self) -> ClusterLost:
        if not self.lost.is_set():
            self.lost.set()
            atexit.register(_leave)
        return ClusterLost(
            message("ray", f"no answer from the cluster at {self.place} any more", "it must run until the jobs are done",
                    "What came home is kept; start the cluster again and give the same command")
        )  # fmt: skip


def _leave() -> None:
    """End the program before Ray bids farewell to a cluster that is not there, which takes a minute or crashes."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(ClusterLost.code)


# -- connecting -----------------------------------------------------------------------------------------------------------


def _start(ray: Any, address: str) -> str:
    """Connect this process; returns HOST:PORT of the head."""
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if not ray.is_initialized():
        if address == "local":
            ray.init(include_dashboard=False, **quiet)
        else:
            place = _found(ray) if address == "auto" else _checked(address)
            _answers(place)
            try:
                ray.init(address=place, **quiet)
            except Exception as error:  # ConnectionError, RuntimeError, ValueError, by version and fault
                first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
                raise InvalidConfig(
                    message("--ray", f"{place!r}: {first}", "this process must be able to join the cluster",
                            "Use the cluster's versions of Ray and Python, on a machine that belongs to it (`ray start "
                            f"--address={place}`)")
                ) from error  # fmt: skip
    return str(ray.get_runtime_context().gcs_address)


def _found(ray: Any) -> str:
    """The address of this machine's cluster: what RAY_ADDRESS says, or what Ray wrote down when it was started."""
    given = os.environ.get("RAY_ADDRESS", "")
    if given and given not in ("auto", "local"):
        return _checked(given)
    with contextlib.suppress(Exception):
        found = ray._private.services.canonicalize_bootstrap_address("auto")
        if found:
            return str(found)
    raise _nobody("auto", "this machine belongs to no cluster")


def _checked(address: str) -> str:
    host, colon, port = address.rpartition(":")
    if "://" in address or not colon or not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise InvalidConfig(
            message("--ray", repr(address), "HOST:PORT, 'auto' or 'local' is expected",
                    "Give the address that `ray start --head` printed; from outside a cluster, start the command on it "
                    "with `ray job submit`")
        )  # fmt: skip
    return address


def reached(place: str, timeout: float) -> bool:
    """Whether something listens at HOST:PORT.

    Example:
        >>> reached("127.0.0.1:1", 1.0)
        False
    """
    host, _, port = place.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout):
            return True
    except (OSError, ValueError):
        return False


def _answers(place: str) -> None:
    """Raise unless a Ray cluster answers there, within seconds: asked by a process that may fail as it likes."""
    if not reached(place, REACH):
        raise _nobody(place, "nothing listens there")
    code = f"from ray._raylet import GcsClient; GcsClient(address={place!r})"
    environment = dict(os.environ) | {"RAY_gcs_rpc_server_connect_timeout_s": "3"}
    try:
        good = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, timeout=ANSWER).returncode
    except subprocess.TimeoutExpired:
        good = 1
    if good:
        raise _nobody(place, "what listens there is no cluster of this version of Ray")


def _asked(ray: Any) -> dict[str, dict[str, str]]:
    """Versions by node, of those that answer in time. Sent by value: a node may have a version without this module."""

    def told() -> dict[str, str]:
        from importlib import metadata

        found = {}
        for package in ("jax", "jaxlib", "torch"):
            try:
                found[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                continue
        try:
            import bilevel_rl

            return found | {"bilevel-rl": bilevel_rl.__version__}
        except ImportError:
            return found | {"bilevel-rl": "none"}

    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    asked = {
        ray.remote(num_cpus=0, max_retries=0, max_calls=1)(told)
        .options(scheduling_strategy=strategy(node["NodeID"], soft=False)).remote(): node["NodeManagerHostname"]
        for node in ray.nodes() if node["Alive"]
    }  # fmt: skip
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=PROBE)
    for reference in late:
        ray.cancel(reference, force=True)
    found = {}
    for reference in ready:
        with contextlib.suppress(ray.exceptions.RayError):  # the node went in the meantime
            found[asked[reference]] = ray.get(reference)
    return found


def _nobody(address: str, why: str) -> ClusterLost:
    return ClusterLost(
        message("--ray", f"no cluster at {address!r}: {why}", "the address of a running Ray cluster is expected",
                "Start one with `ray start --head`, correct the address, or use --ray local")
    )  # fmt: skip


def _raylet_there(ray: Any) -> bool:
    """Whether this machine's part of the cluster still takes connections."""
    try:
        path = ray._private.worker.global_worker.node.raylet_socket_name
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(REACH)
            probe.connect(path)
            return True
    except (AttributeError, TypeError):  # another version of Ray
        return True
    except OSError:
        return False


def _room(ray: Any, needs: Needs) -> Callable[[], int]:
    """How many jobs fit the cluster as it is now: nodes join and go."""

    def most() -> int:
        return sum(_fit(node["Resources"], needs) for node in ray.nodes() if node["Alive"])

    return most


def _fit(resources: Mapping[str, float], needs: Needs) -> int:
    wanted = {"CPU": needs.cpus, "GPU": needs.gpus, "memory": needs.memory * 2**30}
    shares = [int(resources.get(name, 0) / each) for name, each in wanted.items() if each > 0]
    return min(shares) if shares else 1


def _does_not_fit(needs: Needs, address: str) -> InvalidConfig:
    return InvalidConfig(
        message("--ray", f"jobs of {needs.cpus:g} processors, {needs.gpus:g} GPUs and {needs.memory:g} GiB on {address!r}",
                "a job must fit a node", "Lower --cpus, --gpus or --memory")
    )  # fmt: skip


# -- on the cluster ---------------------------------------------------------------------------------------------------------


def _do(given: files.Changes, words: tuple[str, ...]) -> Iterator[tuple]:
    """A task: the job in a process of its own. Yields where it begins, what it writes as it is written, how it ends."""
    yield "begins", f"{socket.gethostname()} (process {os.getpid()})", versions.here()
    with _temporary() as scratch:
        folder = scratch / "job"
        folder.mkdir()
        given.apply(folder)
        watched = files.Watched(folder)
        watched.look()
        process = Process(words, folder, {SCRATCH: str(scratch)})
        try:
            while not process.ended(LOOK):
                changes = watched.look()
                if changes:
                    yield "files", changes
            yield "files", watched.look()
        except BaseException:  # the driver has gone, or wants no more
            process.terminate()
            raise
        yield ("ended", *process.outcome())


@contextlib.contextmanager
def _temporary() -> Iterator[Path]:
    """A folder that goes with this process; those that killed ones have left on this machine go too."""
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        if not records.alive(left.name.removeprefix(PREFIX).partition("-")[0]):
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-", ignore_cleanup_errors=True) as name:
        yield Path(name)
