"""What an exported model and the server that runs it must agree on."""

from typing import Final

from runtime.errors import UsageError

SHA256_KEY: Final = "brats_deploy.sha256"
"""The parameter of a server's model that holds the SHA-256 of the graph or engine it runs."""
PRECISION_KEY: Final = "brats_deploy.precision"
"""The one that holds its arithmetic."""


def split_address(address: str) -> tuple[str, str]:
    """HOST:PORT/MODEL taken apart: where the server is, and its model's name.

    Raises:
        UsageError: it is neither.
    """
    host, _, model = address.partition("/")
    name, _, port = host.rpartition(":")
    port_fits = port.isdecimal() and len(port) < 6 and 0 < int(port) < 65536
    if not (name and port_fits and model) or "/" in model:
        raise UsageError(
            "--device",
            found=address,
            expected="HOST:PORT/MODEL of a Triton server's gRPC service for --backend triton",
            remedy="name it, such as localhost:8001/reference",
        )
    return host, model
