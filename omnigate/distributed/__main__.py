"""The command `python -m omnigate.distributed ADDRESS`: runs a `PacerServer` until it is interrupted."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence

import anyio

from omnigate.distributed._address import SECRET_VARIABLE
from omnigate.distributed._server import PacerServer
from omnigate.exceptions import InvalidArgumentError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, or 2 if it could not start."""
    parser = argparse.ArgumentParser(
        prog="python -m omnigate.distributed",
        description="Share one rate limit of the gateway among many processes.",
        epilog=f"The secret is taken from ${SECRET_VARIABLE}. Stops at SIGINT or SIGTERM.",
    )
    parser.add_argument("address", help="unix:/path/of/a.sock, or tcp://host:port; port 0 for any free one")
    parser.add_argument("--secret-file", metavar="PATH", help="a file that has the secret, in place of that")
    parser.add_argument("--max-connections", metavar="N", type=int, default=1_024, help="1,024 by default")
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    try:
        secret: str | None = None
        if options.secret_file is not None:
            with open(options.secret_file, encoding="utf-8") as file:
                secret = file.read(4096).strip()
        server = PacerServer(options.address, secret=secret, max_connections=options.max_connections)
        anyio.run(_serve, server)
    except (InvalidArgumentError, OSError, UnicodeDecodeError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return 0


async def _serve(server: PacerServer) -> None:
    stops = [signal.SIGINT] if sys.platform == "win32" else [signal.SIGINT, signal.SIGTERM]
    with anyio.open_signal_receiver(*stops) as signals:
        async with server:
            print(f"Listening at {server.address}", flush=True)
            async for _ in signals:
                return


if __name__ == "__main__":
    sys.exit(main())
