"""What `yan serve` refuses before Ray is started, and what it says where Ray does not start."""

import sys

import pytest

from modeling_yan.serving import server
from modeling_yan.serving.addresses import check_address

from ..helpers import YAN_E2E, flags


def start(monkeypatch, **options) -> None:
    monkeypatch.setattr(sys, "argv", ["yan serve", *flags(model=YAN_E2E, **options)])
    server.main()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"port": 70000}, "--port 70000 must be between 1 and 65535"),
        ({"port": 0}, "--port 0 must be between 1 and 65535"),
        ({"runtime": "onnx", "dtype": "bfloat16"}, "--dtype bfloat16 is for --runtime torch"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(monkeypatch, options, message):
    with pytest.raises(ValueError, match=message):
        start(monkeypatch, **options)


def test_a_host_of_another_kind_is_told_apart_from_a_port_that_is_taken():
    with pytest.raises(OSError, match="--host ::1 is no IPv4 address"):
        check_address("::1", 8000)


def test_a_ray_that_does_not_start_is_said_in_one_line(monkeypatch):
    pytest.importorskip("ray")
    pytest.importorskip("aiohttp")
    pytest.importorskip("prometheus_client")

    def start_ray(arguments, cpus):
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(server, "start_ray", start_ray)
    monkeypatch.setattr(server, "check_address", lambda host, port: None)
    with pytest.raises(ValueError, match="Ray did not start in time; the machine may be busy, try again"):
        start(monkeypatch)
