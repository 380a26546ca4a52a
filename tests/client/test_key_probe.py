"""Laws of asking a real SuperLink for the site's key, and of a SuperNode behind a proxy."""

import asyncio
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.config import SiteConfig
from client.courier import courier_services
from client.enrol import join
from client.key_probe import probe_key
from server import flower
from server.config import ServerConfig, init_folder
from server.enrolment import invite
from server.flower_services import flower_services
from simulations.deployment import free_port

SECONDS = 40.0


def wait_for(log: Path, text: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not log.exists() or text not in log.read_text():
        assert time.monotonic() < deadline, log.read_text() if log.exists() else f"no {log}"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerConfig]:
    """A SuperLink that answers sites itself, under the name of a machine that is not there."""
    port = free_port()
    config = init_folder(
        tmp_path_factory.mktemp("coordinator") / "c",
        "trial",
        f"localhost:{port}",
        also=["coordinator.test"],
        superlink_port=port,
    )
    service = flower_services(config, front=False)[0]
    config.flower_home.mkdir(exist_ok=True)
    process = subprocess.Popen(service.argv, env=dict(service.env), cwd=service.cwd)
    try:
        deadline = time.monotonic() + SECONDS
        while not flower.is_up(config):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield config
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(SECONDS)


def joined(coordinator: ServerConfig, folder: Path, site: str) -> SiteConfig:
    invite(coordinator, site)
    join(coordinator.kit_file(site), folder)
    with (folder / "site.toml").open("a", encoding="utf-8") as file:
        file.write('[data.ct]\nmanifest = "labels.csv"\n')
    return SiteConfig.load(folder)


def register(coordinator: ServerConfig, config: SiteConfig) -> None:
    key = (config.courier / "node.pub").read_text().strip()
    flower.register_node(coordinator, key, config.name)


def node_of(coordinator: ServerConfig, site: str) -> flower.Node:
    return next(node for node in flower.list_nodes(coordinator) if node.name == site)


def test_a_key_is_green_once_it_is_registered_and_until_it_is_revoked(
    coordinator: ServerConfig, tmp_path: Path
) -> None:
    """The line follows what the coordinator does with the key, and asking never puts it online."""
    config = joined(coordinator, tmp_path / "site", "site-a")
    assert "does not know" in probe_key(coordinator.address, config.courier).message
    register(coordinator, config)
    assert probe_key(coordinator.address, config.courier).ok
    assert node_of(coordinator, "site-a").status == "registered"
    flower.unregister_node(coordinator, node_of(coordinator, "site-a").node_id)
    assert "revoked" in probe_key(coordinator.address, config.courier).message


def test_a_broken_key_is_red(coordinator: ServerConfig, tmp_path: Path) -> None:
    """A file that is no key, or is not there, is told without asking anybody."""
    config = joined(coordinator, tmp_path / "site", "site-b")
    (config.courier / "node.key").write_text("no key")
    assert "cannot be used" in probe_key(coordinator.address, config.courier).message
    (config.courier / "node.key").unlink()
    assert "cannot read" in probe_key(coordinator.address, config.courier).message


class Proxy:
    """A proxy that knows CONNECT alone, finds every name here, and writes down what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.port = free_port()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:  # noqa: D102 - says it all
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _run(self) -> None:
        self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", self.port))
        self._loop.run_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        method, target, _ = (await reader.readuntil(b"\r\n\r\n")).decode().split(maxsplit=2)
        self.asked.append(f"{method} {target}")
        port = int(target.rpartition(":")[2])
        there, back = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await asyncio.gather(_copy(reader, back), _copy(there, writer))


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
    except OSError:
        pass
    finally:
        target.close()


def test_a_supernode_goes_through_the_proxy(
    coordinator: ServerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower's client takes the proxy of the environment, and what is local does not go there.

    The coordinator has a name that this machine cannot find: only the proxy leads there. The
    SuperExec reaches the SuperNode although all proxies are set.
    """
    config = joined(coordinator, tmp_path / "site", "site-c")
    register(coordinator, config)
    outside = f"coordinator.test:{coordinator.superlink_port}"
    file = config.courier / "connection.json"
    file.write_text(file.read_text().replace(coordinator.address, outside))
    proxy = Proxy()
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
    processes = []
    try:
        for service in courier_services(config):
            log = service.log.open("wb")
            processes.append(
                subprocess.Popen(
                    service.argv, env=dict(service.env), cwd=service.cwd, stdout=log, stderr=log
                )
            )
        wait_for(config.courier / "logs/supernode.log", "SuperNode ID")
        assert node_of(coordinator, "site-c").status == "online"
        assert probe_key(outside, config.courier).ok
        assert node_of(coordinator, "site-c").status == "online"
        assert processes[1].poll() is None
        assert set(proxy.asked) == {f"CONNECT {outside}"}
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(SECONDS)
        proxy.close()
    # It has said goodbye: nobody waits a minute for it.
    assert node_of(coordinator, "site-c").status == "offline"
    assert not list((config.courier / "tmp").iterdir())
