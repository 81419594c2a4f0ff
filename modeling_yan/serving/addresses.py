"""Where a server or a demo listens: what is refused before anything is started."""

import socket


def check_port_number(port: int | None) -> None:
    """
    Raises:
        ValueError: for a port that is none; None stands for one that is chosen later.
    """
    if port is not None and not 0 < port < 2**16:
        raise ValueError(f"--port {port} must be between 1 and {2**16 - 1}")


def check_address(host: str, port: int) -> None:
    """
    Raises:
        OSError: if nothing can listen there.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except socket.gaierror:
            raise OSError(
                f"--host {host} is no IPv4 address of this machine and no name of one; choose 127.0.0.1 for this "
                "machine alone, 0.0.0.0 for others, too"
            ) from None
        except OSError as error:
            raise OSError(f"--host {host} --port {port}: {error.strerror}; choose another port") from None
