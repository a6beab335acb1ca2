"""To a Ray cluster and away from it, without noise and without news to Ray's makers."""

import contextlib
import os
import socket
from collections.abc import Iterator

from pipeline.errors import UserError

PATIENCE = 5.0  # seconds for a connection
INSTALL = "--ray: Ray is not installed here; `pip install -e '.[cluster]'` installs it"


def check(address: str) -> None:
    """`UserError` unless Ray is installed and somebody listens at `address` ("auto" or HOST:PORT)."""
    try:
        import ray  # noqa: F401
    except ImportError:
        raise UserError(INSTALL) from None
    if address.startswith("ray://"):
        raise UserError(f"--ray {address}: no client addresses; run this on a machine of the cluster, with --ray auto")
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"--ray {address}: must be auto, or HOST:PORT as `ray start --head` prints it")
    try:
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()
    except OSError as error:
        raise UserError(f"--ray {address}: no Ray cluster answers ({error.strerror or error})") from None


@contextlib.contextmanager
def to(address: str) -> Iterator[None]:
    """Be connected to the cluster; `UserError` where there is none, or this machine is not part of it."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"--ray {address}: cannot connect: {said[0]}") from None
    try:
        yield
    finally:
        ray.shutdown()
