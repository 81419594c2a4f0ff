"""
An HTTP server that speaks OpenAI's completions API and restores documents, on Ray Serve.

    yan serve --model examples/models/yan-e2e --port 8000
    curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' -d '{"prompt": "name[Aromi]"}'

Prompts that arrive together are answered in one batch; a text depends on its prompt, options and seed alone. One
machine by default; `--address auto` deploys to the Ray cluster that this machine belongs to. SIGTERM and SIGINT let
requests in progress end. Needs the extra `serving`.
"""

import argparse
import contextlib
import importlib.util
import os
import signal
import threading
from pathlib import Path

import torch

from modeling_yan import YanConfig, YanForConditionalGeneration
from modeling_yan.common.arguments import check_positive, not_installed, run_script
from modeling_yan.common.help import ScriptHelp
from modeling_yan.common.hub import check_config_file, read_tokenizer, readable
from modeling_yan.serving.addresses import check_address, check_port_number
from modeling_yan.serving.engine import DTYPES, RUNTIMES
from modeling_yan.serving.graph_folder import Manifest

# Shared memory of a local Ray, in bytes: requests and answers are small.
OBJECT_STORE = 2**27
# Prompts that a replica holds. Ray Serve looks for one with room in growing intervals, so that few would leave gaps.
LEAST_ONGOING = 64


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=ScriptHelp)
    add = parser.add_argument
    add("--model", required=True, help="folder or Hub name; for --runtime onnx what `yan export` wrote")
    add("--served_model_name", help="what requests call it; the folder's name by default")
    add("--runtime", default="torch", choices=RUNTIMES, help="what computes the answers")
    add("--dtype", default="float32", choices=DTYPES, help="of the weights in torch; auto is that of their file")
    add("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in")
    add("--port", type=int, default=8000, help="where it listens")
    add("--replicas", type=int, default=1, help="copies of the model")
    add("--threads", type=int, help="of each replica; torch's number shared out among them by default")
    add("--gpus_per_replica", type=float, help="may be a fraction; 1 by default where torch sees a GPU, otherwise 0")
    add("--max_batch_size", type=int, default=32, help="prompts of a batch")
    add("--batch_wait_ms", type=float, default=5.0, help="how long a prompt waits for others")
    add("--max_ongoing_requests", type=int, help="prompts that a replica holds; two batches by default, at least 64")
    add("--max_queued_requests", type=int, default=256, help="prompts that wait for a replica; more get status 429")
    add("--max_prompts", type=int, default=64, help="prompts of one request")
    add("--max_candidates", type=int, default=16, help="texts that are written for one prompt")
    add("--max_inference_steps", type=int, default=32, help="steps that a request may ask for")
    add("--max_characters", type=int, default=200_000, help="characters of a document that is restored")
    add("--request_timeout_s", type=float, default=60.0, help="seconds until a request gets status 503")
    add("--address", help="of a Ray cluster, or auto; a Ray of its own by default")
    add("--trust_remote_code", action="store_true", help="run code that comes with the tokenizer")
    arguments = parser.parse_args()
    check_positive(
        arguments,
        *("replicas", "threads", "max_batch_size", "max_ongoing_requests", "max_queued_requests"),
        *("max_prompts", "max_candidates", "max_inference_steps", "max_characters", "request_timeout_s"),
    )
    for name in ("batch_wait_ms", "gpus_per_replica"):
        if (getattr(arguments, name) or 0) < 0:
            raise ValueError(f"--{name} {getattr(arguments, name)} must be 0 or more")
    check_port_number(arguments.port)
    if arguments.runtime == "onnx" and arguments.dtype != "float32":
        raise ValueError(
            f"--dtype {arguments.dtype} is for --runtime torch; graphs have the type that they were exported with, "
            "leave it out"
        )
    return arguments


def check_extra() -> None:
    """
    Raises:
        ValueError: where a package that the server needs is not installed.
    """
    for name in ("ray", "fastapi", "aiohttp", "prometheus_client"):
        if importlib.util.find_spec(name) is None:
            raise not_installed("the server", name, "serving")


def check_model(arguments: argparse.Namespace) -> None:
    """
    Finds out before anything is started whether there is such a model.

    Raises:
        ValueError: for a folder without a YAN, or for `--runtime onnx` without graphs.
        OSError: if there is no such model.
    """
    if arguments.runtime == "onnx":
        Manifest.read(Path(arguments.model))
    check_config_file(arguments.model, YanForConditionalGeneration)
    with readable(arguments.model):
        YanConfig.from_pretrained(arguments.model)
    read_tokenizer(arguments.model, trust_remote_code=arguments.trust_remote_code)


def settings_of(arguments: argparse.Namespace):
    """
    `ServerSettings` of a command line.

    Raises:
        ValueError: for a request that would never fit into the queue.
    """
    from modeling_yan.serving.api import Limits
    from modeling_yan.serving.deployments import ServerSettings

    has_gpu = torch.cuda.is_available() and arguments.runtime == "torch"
    gpus = float(has_gpu) if arguments.gpus_per_replica is None else arguments.gpus_per_replica
    ongoing = arguments.max_ongoing_requests or max(LEAST_ONGOING, 2 * arguments.max_batch_size)
    if arguments.max_prompts > arguments.max_queued_requests + arguments.replicas * ongoing:
        raise ValueError(
            f"--max_prompts {arguments.max_prompts} are more than replicas hold and --max_queued_requests "
            f"{arguments.max_queued_requests} let wait; lower it or raise --max_queued_requests"
        )
    folder = Path(arguments.model)
    return ServerSettings(
        model=str(folder.resolve()) if folder.is_dir() else arguments.model,
        name=arguments.served_model_name or (folder.resolve().name if folder.is_dir() else arguments.model),
        runtime=arguments.runtime,
        dtype=arguments.dtype,
        trust_remote_code=arguments.trust_remote_code,
        replicas=arguments.replicas,
        threads=arguments.threads or max(1, torch.get_num_threads() // arguments.replicas),
        gpus=gpus,
        max_batch_size=arguments.max_batch_size,
        batch_wait_ms=arguments.batch_wait_ms,
        max_ongoing_requests=ongoing,
        max_queued_requests=arguments.max_queued_requests,
        request_timeout_s=arguments.request_timeout_s,
        limits=Limits(
            prompts=arguments.max_prompts,
            candidates=arguments.max_candidates,
            steps=arguments.max_inference_steps,
            characters=arguments.max_characters,
        ),
    )


def start_ray(arguments: argparse.Namespace, cpus: int) -> None:
    """A Ray of its own with so many CPUs, or a connection to a cluster; and Ray Serve on it."""
    import ray
    from ray import serve

    # Nothing is reported to anybody unless its user says so.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if arguments.address is None:
        ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE,
            log_to_driver=False,
        )
    else:
        ray.init(address=arguments.address, log_to_driver=False)
    serve.start(
        proxy_location="HeadOnly" if arguments.address is None else "EveryNode",
        http_options={"host": arguments.host, "port": arguments.port},
    )


def stop(arguments: argparse.Namespace) -> None:
    """Lets requests in progress end. Of a cluster, only what this server deployed goes."""
    import ray
    from ray import serve
    from ray.serve.exceptions import RayServeException

    from modeling_yan.serving.deployments import APPLICATION

    if not ray.is_initialized():
        return
    # Without Ray Serve there is nothing to delete.
    with contextlib.suppress(TimeoutError, RayServeException):
        serve.delete(APPLICATION)
    if arguments.address is None:
        serve.shutdown()
    ray.shutdown()


def main() -> None:
    """Serves until SIGTERM or SIGINT."""
    arguments = parse()
    check_model(arguments)
    check_extra()
    if arguments.address is None:
        check_address(arguments.host, arguments.port)
    settings = settings_of(arguments)
    from ray import serve

    from modeling_yan.serving.deployments import APPLICATION, application

    ended = threading.Event()
    try:
        try:
            start_ray(arguments, settings.replicas * settings.threads)
        except (ValueError, ConnectionError):
            raise
        except Exception as error:
            # Ray's own are of no type that tells them from others.
            raise ValueError(
                f"Ray did not start in time; the machine may be busy, try again ({error!s:.200})"
            ) from error
        # Ray has handlers of its own, which let nothing end.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ended.set())
        try:
            serve.run(
                application(settings), name=APPLICATION, route_prefix="/", logging_config={"enable_access_log": False}
            )
        except RuntimeError as error:
            raise ValueError(f"{arguments.model} cannot be served: {error}") from error
        print(f"{settings.name} answers at http://{arguments.host}:{arguments.port}/v1", flush=True)
        ended.wait()
    finally:
        stop(arguments)


if __name__ == "__main__":
    run_script(main)
