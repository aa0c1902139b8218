"""What k8s/ says agrees with the code, without a cluster: each folder that can be applied is rendered and read."""

from __future__ import annotations

import copy
import tomllib

import pytest

from engine_service.config import EngineConfig
from engine_service.server import SERVICE as ENGINE_SERVICE
from service_common.addresses import check_target, parse_address, parse_target
from service_common.lifecycle import FLUSH_SECONDS
from tests.k8s.rendered import APPLIED, ROOT, Container, Pod, of_kind, render
from tokenizer_service.config import TokenizerConfig
from tokenizer_service.server import SERVICE as TOKENIZER_SERVICE

_PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
_OLDEST = "1.30"  # the first whose preStop can sleep without a feature gate
_MARGIN_SECONDS = 5.0  # for processes to end once they have drained

pytestmark = pytest.mark.parametrize("folder", APPLIED)


def _address(container: Container) -> str:
    """Where a service of ours listens."""
    config = container.config
    return config.engine if isinstance(config, EngineConfig) else config.grpc


@pytest.mark.parametrize("version", [_OLDEST, "latest"])
def test_every_object_is_valid(folder: str, version: str) -> None:
    """Kubernetes' own schemas take each object, from the oldest version that is supported to the newest one known."""
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate, of the extra dev, is absent")
    wanted = validator.latest_version() if version == "latest" else version
    for each in render(folder):
        validator.validate(each, wanted, strict=True)
    misspelt = copy.deepcopy(next(each for each in render(folder) if each["kind"] == "Deployment"))
    misspelt["spec"]["template"]["spec"]["terminationGracePeriod"] = 60
    with pytest.raises(validator.ValidationError):
        validator.validate(misspelt, wanted, strict=True)


def test_the_engine_starts_first_and_ends_last(folder: str) -> None:
    """It is the first of the init containers, and like each other of ours among them keeps running."""
    pod = Pod.of(folder)
    assert pod.spec["initContainers"][0]["name"] == "clforge-engine"
    assert all(each["restartPolicy"] == "Always" for each in pod.spec["initContainers"])


def test_arguments_are_read_by_the_services_themselves(folder: str) -> None:
    """Each container's arguments make the configuration of its service, and the tokenizer's engine is the one here."""
    pod = Pod.of(folder)
    engine, tokenizer = pod.engine.config, pod.tokenizer.config
    assert isinstance(engine, EngineConfig)
    assert isinstance(tokenizer, TokenizerConfig)
    assert tokenizer.engine == engine.engine
    check_target(parse_target(tokenizer.engine, "--engine"), insecure=False)
    assert not engine.insecure
    assert not tokenizer.insecure


def test_what_others_can_reach_is_secured(folder: str) -> None:
    """By TLS and keys, from Secrets that the service's user, and no other, may read; a Unix socket needs neither."""
    pod = Pod.of(folder)
    config = pod.tokenizer.config
    assert isinstance(config, TokenizerConfig)
    if config.grpc.startswith("unix:"):
        assert config.api_keys is None
        return
    volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
    for path in (config.tls_cert, config.tls_key, config.api_keys):
        assert path is not None
        name, mount = pod.tokenizer.volume_below(path)
        assert mount["readOnly"]
        assert volumes[name]["secret"]["defaultMode"] == 0o440
    assert pod.spec["securityContext"]["fsGroup"] == pod.tokenizer.security("runAsGroup")


def test_sockets_are_in_folders_that_the_service_makes_for_itself(folder: str) -> None:
    """Below an emptyDir in memory, which is open to all users, and is mounted at the same place wherever it is used."""
    pod = Pod.of(folder)
    volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
    sockets = [address for address in map(_address, (pod.engine, pod.tokenizer)) if address.startswith("unix:")]
    assert sockets
    for address in sockets:
        path = parse_address(address, "the address").path
        assert path is not None
        users = [
            each for each in pod.containers if any(path.is_relative_to(m["mountPath"]) for m in each.mounts.values())
        ]
        assert len(users) == 2, f"{address} is for a server and its client, and for nobody else"
        [name] = {user.volume_below(path.parent)[0] for user in users}
        assert volumes[name]["emptyDir"]["medium"] == "Memory"
        assert len({user.security("runAsUser") for user in users}) == 1, "the folder is its owner's alone"


def test_ports_are_those_that_are_listened_on(folder: str) -> None:
    """A TCP address of ours is reachable, declared as a port, and what each Service and the NetworkPolicy lead to."""
    address = parse_address(_address(Pod.of(folder).tokenizer), "--grpc")
    if address.path is not None:
        assert not of_kind(folder, "Service")
        return
    assert not address.is_loopback
    [port] = Pod.of(folder).tokenizer.spec["ports"]
    assert port["containerPort"] == address.port
    services = of_kind(folder, "Service")
    assert [service["spec"].get("clusterIP") for service in services].count("None") == 1
    for service in services:
        assert [(each["port"], each["targetPort"]) for each in service["spec"]["ports"]] == [
            (address.port, port["name"])
        ]
    [policy] = of_kind(folder, "NetworkPolicy")
    assert [each["ports"] for each in policy["spec"]["ingress"]] == [[{"port": port["name"]}]]


def test_selectors_find_the_pod(folder: str) -> None:
    """What selects pods selects those of the Deployment."""
    labels = Pod.of(folder).template["metadata"]["labels"].items()
    selectors = [each["spec"]["selector"]["matchLabels"] for each in of_kind(folder, "Deployment")]
    selectors += [each["spec"]["selector"] for each in of_kind(folder, "Service")]
    selectors += [each["spec"]["selector"]["matchLabels"] for each in of_kind(folder, "PodDisruptionBudget")]
    selectors += [each["spec"]["podSelector"]["matchLabels"] for each in of_kind(folder, "NetworkPolicy")]
    assert all(selector and selector.items() <= labels for selector in selectors)


@pytest.mark.parametrize(("name", "service"), [("engine", ENGINE_SERVICE), ("tokenizer", TOKENIZER_SERVICE)])
def test_probes_ask_for_what_health_answers(folder: str, name: str, service: str) -> None:
    """Start and readiness ask for the service, liveness for the process, each where the service listens."""
    container: Container = getattr(Pod.of(folder), name)
    for probe in _PROBES:
        spec, expected = container.spec[probe], "" if probe == "livenessProbe" else service
        program, *flags = spec["exec"]["command"]
        given = dict(flag.lstrip("-").partition("=")[::2] for flag in flags)
        assert program == "grpc-health-probe"
        assert (given["addr"].replace("127.0.0.1", "0.0.0.0"), given.get("service", "")) == (
            _address(container),
            expected,
        )
        assert ("tls" in given) == (container.config.tls_cert is not None)
        waits = [float(given.get(flag, "1s").removesuffix("s")) for flag in ("connect-timeout", "rpc-timeout")]
        assert spec["timeoutSeconds"] >= sum(waits)


def test_the_pod_is_given_time_to_drain(folder: str) -> None:
    """Its grace period holds the longest preStop and all drains of ours, which follow one another."""
    pod = Pod.of(folder)
    sleeps = [each.spec.get("lifecycle", {}).get("preStop", {}).get("sleep", {"seconds": 0}) for each in pod.containers]
    drains = [service.config.drain_seconds + 2 * FLUSH_SECONDS for service in (pod.tokenizer, pod.engine)]
    needed = max(sleep["seconds"] for sleep in sleeps) + sum(drains) + _MARGIN_SECONDS
    assert pod.spec["terminationGracePeriodSeconds"] >= needed


def test_containers_may_do_nothing_that_they_need_not(folder: str) -> None:
    """The user of the image, no other rights, a root file system that is read-only, and no account of the cluster's."""
    pod = Pod.of(folder)
    [image_user] = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("USER ")]
    assert pod.spec["automountServiceAccountToken"] is False
    for container in pod.containers:
        assert image_user == f"USER {container.security('runAsUser')}:{container.security('runAsGroup')}"
        assert container.security("runAsNonRoot") is True
        assert container.security("allowPrivilegeEscalation") is False
        assert container.security("readOnlyRootFilesystem") is True
        assert container.security("capabilities") == {"drop": ["ALL"]}
        assert container.security("seccompProfile") == {"type": "RuntimeDefault"}


def test_what_is_written_and_read_is_on_a_volume(folder: str) -> None:
    """Each volume is mounted and each mount has one; kernels are the engine's alone, a model is only read."""
    pod = Pod.of(folder)
    volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
    assert volumes.keys() == {name for container in pod.containers for name in container.mounts}
    engine = pod.engine.config
    assert isinstance(engine, EngineConfig)
    assert engine.cache_dir is not None
    name, _ = pod.engine.volume_below(engine.cache_dir)
    assert "emptyDir" in volumes[name]
    assert [container.name for container in pod.containers if name in container.mounts] == ["clforge-engine"]
    if folder == "own-model":
        _, mount = pod.engine.volume_below(engine.model)
        assert mount["readOnly"]


def test_the_engine_has_its_processors_and_memory_for_itself(folder: str) -> None:
    """It requests what it is limited to, and whole CPUs, since it starts a thread for each."""
    resources = Pod.of(folder).engine.spec["resources"]
    assert resources["requests"] == resources["limits"]
    assert resources["limits"]["cpu"].isdigit()


def test_images_are_of_this_version(folder: str) -> None:
    """The tag is the package's version."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {container.spec["image"] for container in Pod.of(folder).containers} == {f"clforge:{version}"}
