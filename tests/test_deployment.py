"""Dockerfile, compose file and Kubernetes example: valid by others' parsers, and what they say of `gpa serve`
is true: options, ports, paths, health, times. What the image would run is run here, without Docker."""

import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from gpa.cli import main
from gpa.serve import process
from gpa.serve.app import create_app

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = (ROOT / "docs/deploy/compose.yaml").read_text(encoding="utf-8")
KUBERNETES = (ROOT / "docs/deploy/kubernetes.yaml").read_text(encoding="utf-8")
SERVER = "server"  # the stage that both images are made of


def stages(text: str = DOCKERFILE) -> dict[str, list[tuple[str, str]]]:
    """Return the instructions of each stage by its name, as (KEYWORD, value)."""
    parser = pytest.importorskip("dockerfile_parse").DockerfileParser
    found: dict[str, list[tuple[str, str]]] = {"": []}
    name = ""
    for each in parser(fileobj=io.BytesIO(text.encode()), env_replace=False).structure:
        if each["instruction"] == "FROM":
            name = each["value"].split(" AS ")[1]
            found[name] = []
        if each["instruction"] != "COMMENT":
            found[name].append((each["instruction"], each["value"]))
    return found


def of(stage: str, keyword: str) -> list[str]:
    """Return what a stage says by an instruction."""
    return [value for word, value in stages()[stage] if word == keyword]


def environment() -> dict[str, str]:
    """Return what the image sets."""
    return dict(word.split("=", 1) for value in of(SERVER, "ENV") for word in value.split())


def entry() -> list[str]:
    """Return the command that the image runs, before options are added."""
    words: list[str] = json.loads(of(SERVER, "ENTRYPOINT")[0])
    return words


def check() -> list[str]:
    """Return the command that tells whether a container is healthy."""
    words: list[str] = json.loads(of(SERVER, "HEALTHCHECK")[0].split("CMD ")[1])
    return words


def services() -> dict[str, dict[str, Any]]:
    """Return the services of the compose file."""
    return yaml.safe_load(COMPOSE)["services"]


def objects() -> dict[str, dict[str, Any]]:
    """Return the objects of the Kubernetes example by kind."""
    return {each["kind"]: each for each in yaml.safe_load_all(KUBERNETES)}


def pod() -> dict[str, Any]:
    return objects()["Deployment"]["spec"]["template"]["spec"]


def container() -> dict[str, Any]:
    (found,) = pod()["containers"]
    return found


def seconds(text: str) -> float:
    assert re.fullmatch(r"\d+s", text), text
    return float(text[:-1])


# By others' parsers -----------------------------------------------------------------------------------------


def lint(text: str, tmp_path: Path) -> str:
    tool = Path(sys.executable).parent / "hadolint"
    found = str(tool) if tool.exists() else shutil.which("hadolint")
    if found is None:
        pytest.skip("needs hadolint (extra dev)")
    path = tmp_path / "Dockerfile"
    path.write_text(text, encoding="utf-8")
    return subprocess.run([found, "--no-color", str(path)], capture_output=True, text=True).stdout


def test_hadolint_finds_nothing(tmp_path: Path) -> None:
    assert lint(DOCKERFILE, tmp_path) == ""
    assert "DL3042" in lint(DOCKERFILE.replace("pip install --no-cache-dir", "pip install"), tmp_path)


def valid_compose(text: str) -> None:
    parser = pytest.importorskip("compose_spec").PyCompose
    resolved = yaml.safe_load(text)  # which merges what begins with <<
    parser.from_yaml(yaml.safe_dump({key: resolved[key] for key in ("services", "volumes")})).validate()


def test_the_compose_file_follows_the_specification() -> None:
    valid_compose(COMPOSE)
    for right, wrong in (
        ("stop_grace_period", "stop_grace"),
        ("\n  voices:\n", "\n"),
        ("127.0.0.1:8000:8000", "here"),
    ):
        with pytest.raises((ValueError, TypeError)):
            valid_compose(COMPOSE.replace(right, wrong))


@pytest.mark.parametrize("version", ["1.30", "1.34"])
def test_kubernetes_accepts_the_example(version: str) -> None:
    kubernetes = pytest.importorskip("kubernetes_validate")
    for each in objects().values():
        kubernetes.validate(each, version, strict=True)
    wrong = yaml.safe_load(KUBERNETES.split("---")[0].replace("failureThreshold", "failures"))
    with pytest.raises(kubernetes.ValidationError):
        kubernetes.validate(wrong, version, strict=True)


# What they say of the program -------------------------------------------------------------------------------


def parsed(words: list[str]) -> Any:
    """Return the arguments of a command of ours; a word that it does not know ends the test."""
    assert words[0] == "gpa"
    return main._parser().parse_args(words[1:])


def commands() -> dict[str, list[str]]:
    """Return the whole command of each way to start the image."""
    found = {"Dockerfile": entry(), "Kubernetes": entry() + container()["args"]}
    return found | {name: entry() + service["command"] for name, service in services().items()}


@pytest.mark.parametrize("name", ["Dockerfile", "Kubernetes", "cpu", "gpu"])
def test_options_are_those_of_the_command(name: str) -> None:
    args = parsed(commands()[name])
    assert (args.host, args.port) == ("0.0.0.0", 8000)
    assert args.device == ("cuda" if name == "gpu" else "auto")


def test_versions_are_those_of_the_package() -> None:
    makefile, package = ((ROOT / name).read_text(encoding="utf-8") for name in ("Makefile", "pyproject.toml"))
    torch = re.search(r"^TORCH \?= torch==(\S+)", makefile, re.MULTILINE)
    base, wanted = of("", "ARG")
    assert torch and wanted == f"TORCH={torch[1]}"
    for stage in ("cpu-packages", "cuda-packages"):  # an argument ends with its stage
        assert of(stage, "ARG") == ["TORCH"] and '"torch==${TORCH}"' in of(stage, "RUN")[0]
    python = re.fullmatch(r"BASE=python:3\.(\d+)-slim-bookworm", base)
    least = re.search(r'requires-python = ">=3\.(\d+)"', package)
    assert python and least and int(python[1]) >= int(least[1])
    extras = re.findall(r"\.whl\)\[([\w,]+)\]", DOCKERFILE)
    known = re.findall(r"^(\w+) = \[$", package.split("[project.optional-dependencies]")[1], re.MULTILINE)
    assert extras == ["cpu,serve", "serve"] and set("".join(extras).split(",")) <= {*known, "serveserve"}


def test_only_the_package_gets_into_the_image() -> None:
    """No stage copies anything but the context and other stages, and the context is what a wheel needs."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules == ["*", "!pyproject.toml", "!README.md", "!LICENSE", "!gpa", "**/__pycache__"]
    copied = [value for stage in stages() for value in of(stage, "COPY")]
    assert [value for value in copied if not value.startswith("--from=")] == [". /src"]
    assert of("wheel", "COPY") == [". /src"] and "ADD" not in dict(sum(stages().values(), []))
    names = " ".join(value for stage in stages() for word in ("ARG", "ENV") for value in of(stage, word))
    assert not re.search(r"(?i)key|token|secret|password", names)


def test_both_images_are_the_same_server() -> None:
    for name in ("cuda", "cpu"):
        assert of(name, "FROM") == [f"{SERVER} AS {name}"]
        assert of(name, "COPY") == [f"--from={name}-packages /opt/gpa /opt/gpa"]
        assert {word for word, _ in stages()[name]} == {"FROM", "COPY"}
    assert list(stages())[-1] == "cpu", "without --target"
    assert {service["build"]["target"] for service in services().values()} == {"cpu", "cuda"}
    assert {f"gpa:{each['build']['target']}" for each in services().values()} == {
        each["image"] for each in services().values()
    }
    assert container()["image"] == "gpa:cpu"


def test_users_are_not_root_and_may_write_where_they_must() -> None:
    (user,), (volumes,) = of(SERVER, "USER"), of(SERVER, "VOLUME")
    assert int(user) > 0 and f"--uid {user} " in of(SERVER, "RUN")[0]
    assert json.loads(volumes) == ["/models", "/voices"] and of(SERVER, "RUN")[0].endswith("/models /voices")
    assert environment()["HF_HOME"] == "/models" and str(parsed(entry()).voices) == "/voices"
    context = pod()["securityContext"]
    assert (context["runAsNonRoot"], str(context["runAsUser"]), str(context["fsGroup"])) == (True, user, user)
    for service in services().values():
        assert [each.split(":")[1] for each in service["volumes"]] == json.loads(volumes)
        assert service["read_only"] and service["tmpfs"] == ["/tmp"]
    mounted = {each["name"]: each["mountPath"] for each in container()["volumeMounts"]}
    assert mounted == {"voices": "/voices", "models": "/models", "keys": "/keys", "tmp": "/tmp"}
    assert set(mounted) == {each["name"] for each in pod()["volumes"]}
    assert container()["securityContext"]["readOnlyRootFilesystem"] is True
    keys = parsed(commands()["Kubernetes"]).keys
    assert str(keys.parent) == mounted["keys"] and f"--from-file={keys.name}" in KUBERNETES
    (claim,) = (each["persistentVolumeClaim"] for each in pod()["volumes"] if each["name"] == "voices")
    assert claim["claimName"] == objects()["PersistentVolumeClaim"]["metadata"]["name"]


def test_ports_and_health_are_those_of_the_server() -> None:
    port = parsed(entry()).port
    assert of(SERVER, "EXPOSE") == [str(port)] and f":{port}/health/ready" in check()[-1]
    assert all(each["ports"] == [f"127.0.0.1:{port}:{port}"] for each in services().values())
    (exposed,) = container()["ports"]
    assert exposed == {"name": "http", "containerPort": port}
    (served,) = objects()["Service"]["spec"]["ports"]
    assert served["targetPort"] == exposed["name"]
    assert (
        objects()["Service"]["spec"]["selector"] == objects()["Deployment"]["spec"]["selector"]["matchLabels"]
    )
    probes = {name: container()[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert {each["port"] for each in probes.values()} == {"http"}
    known = create_app().openapi()["paths"]
    assert {each["path"] for each in probes.values()} <= {path for path in known if "get" in known[path]}
    assert probes["startup"]["path"] == probes["readiness"]["path"] == "/health/ready"
    assert probes["liveness"]["path"] == "/health/live", "one that drains is not to be killed"


def test_there_is_time_to_drain() -> None:
    for name, service in services().items():
        drains = parsed(commands()[name]).drain_seconds + process.CLOSING
        assert seconds(service["stop_grace_period"]) >= drains + 5
    hook = container()["lifecycle"]["preStop"]["exec"]["command"]
    drains = parsed(commands()["Kubernetes"]).drain_seconds + process.CLOSING
    assert hook[0] == "sleep" and pod()["terminationGracePeriodSeconds"] >= int(hook[1]) + drains + 5
    stop = re.search(r"--stop-timeout (\d+)", DOCKERFILE)
    assert stop and int(stop[1]) >= parsed(entry()).drain_seconds + process.CLOSING + 5
    assert of(SERVER, "STOPSIGNAL") == ["SIGTERM"]


# What the image runs ----------------------------------------------------------------------------------------


def healthy(port: int) -> bool:
    """Whether the image's own check says so, of the server at a port of this machine."""
    words = [sys.executable, *(word.replace(":8000/", f":{port}/") for word in check()[1:])]
    return subprocess.run(words, capture_output=True, timeout=20).returncode == 0


def until(server: subprocess.Popen, true: Any, limit: float = 60) -> None:
    end = time.monotonic() + limit
    while not true():
        assert server.poll() is None, server.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.1)


def test_what_the_image_runs(tiny: Path, tmp_path: Path, wav_file: Path) -> None:
    """Its entry, in its environment, under a root of our own: healthy when it is ready, voices in their
    volume, and after SIGTERM no longer healthy, though what is on its way is answered; then it ends with 0.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = Path(sysconfig.get_path("scripts")) / "gpa"
    assert command.exists(), "the package is not installed"
    words = [str(tmp_path / word[1:]) if word == "/voices" else word for word in entry()[1:]]
    words = [str(port) if word == "8000" else word for word in words]
    own = environment() | {"HF_HOME": str(tmp_path / "models")}
    own["PATH"] = (
        own["PATH"].replace("/opt/gpa/bin", str(command.parent)).replace("$PATH", os.environ["PATH"])
    )
    more = [str(tiny), "--speechop", "none", "--threads", "1", "--drain-seconds", "30"]
    server = subprocess.Popen(
        ["gpa", *words, *more],
        env=own | {"OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert not healthy(port)
        until(server, lambda: healthy(port))
        url = f"http://127.0.0.1:{port}"
        given = {"files": {"audio_sample": wav_file.read_bytes()}, "data": {"name": "zoe"}}
        made = httpx.post(f"{url}/v1/audio/voices", **given, timeout=60).json()
        assert (tmp_path / "voices" / f"{made['id']}.json").is_file()

        said = {"input": "this is a sentence. " * 150, "voice": "zoe", "response_format": "pcm"}
        answers: list[httpx.Response] = []
        asked = {"json": said | {"max_new_tokens": 12, "stream": False}, "timeout": 60}
        client = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{url}/v1/audio/speech", **asked))
        )
        client.start()
        until(server, lambda: "gpa_requests_in_flight 1.0" in httpx.get(f"{url}/metrics", timeout=10).text)
        began = time.monotonic()
        server.send_signal(signal.SIGTERM)
        until(server, lambda: httpx.get(f"{url}/health/ready", timeout=10).status_code == 503)
        assert not healthy(port)
        client.join(60)
        assert [answer.status_code for answer in answers] == [200] and len(answers[0].content) > 10_000
        out, errors = server.communicate(timeout=30)
        assert server.returncode == 0, errors
        assert time.monotonic() - began < pod()["terminationGracePeriodSeconds"]
        assert any(json.loads(line)["path"] == "/v1/audio/speech" for line in out.splitlines())
    finally:
        server.kill()
        server.communicate()
