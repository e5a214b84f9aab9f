"""Weights by name, from a server on this machine in the place of the publishers'."""

import dataclasses
import hashlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from test_published import state_dict

import deqflow
from deqflow.model import hub
from deqflow.model.published import from_published


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "weights.pth"
    torch.save(state_dict("raft_small", ""), path)
    return path.read_bytes()


@pytest.fixture
def server(content):
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path == "/nothing":
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if self.path == "/cut" else content)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}", asked
        served.shutdown()


@pytest.fixture
def publish(tmp_path, monkeypatch, content):
    """Make an address that of "raft-small", and torch's cache an empty folder."""
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    digest = hashlib.sha256(content).hexdigest()[:12]

    def at(address, sha256=digest):
        there = dataclasses.replace(hub.PUBLISHED["raft-small"], address=address, sha256=sha256)
        monkeypatch.setitem(hub.PUBLISHED, "raft-small", there)
        return tmp_path / "hub" / "checkpoints" / there.file

    return at


@pytest.mark.parametrize("with_hash", [True, False])
def test_weights_are_fetched_once_and_their_licence_is_said_once(server, publish, capsys, with_hash):
    address, asked = server
    path = publish(f"{address}/whole") if with_hash else publish(f"{address}/whole", sha256="")
    estimator = deqflow.load("raft-small")
    said = capsys.readouterr().err
    assert f"Downloading raft-small (4 MB, licence: BSD-3, torchvision) to {path}." in said
    expected = from_published(state_dict("raft_small")).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in estimator.state_dict().items())
    assert deqflow.load("raft-small").config == estimator.config
    assert capsys.readouterr().err == ""
    assert asked == ["/whole"]


def test_another_file_than_was_published_is_not_kept(server, publish):
    path = publish(f"{server[0]}/whole", sha256="0123456789ab")
    with pytest.raises(deqflow.CheckpointError, match=r"raft-small is damaged, or another file .* put it at"):
        deqflow.load("raft-small")
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("with_hash", [True, False])
def test_a_download_that_is_cut_is_not_kept(server, publish, with_hash):
    path = publish(f"{server[0]}/cut") if with_hash else publish(f"{server[0]}/cut", sha256="")
    with pytest.raises(deqflow.CheckpointError, match=r"raft-small .* put it at"):
        deqflow.load("raft-small")
    assert list(path.parent.iterdir()) == []


def test_without_a_network_it_is_said_what_to_do(publish):
    with socket.socket() as unused:  # a port on which nobody answers
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/whole"
    path = publish(address)
    with pytest.raises(FileNotFoundError, match="No network for raft-small") as caught:
        deqflow.load("raft-small")
    assert str(caught.value).endswith(f": download {address} and put it at {path}.")


def test_an_address_that_is_gone_says_the_same(server, publish):
    publish(f"{server[0]}/nothing")
    with pytest.raises(FileNotFoundError, match=r"raft-small \(HTTP Error 404.*put it at"):
        deqflow.load("raft-small")


def test_a_file_put_there_by_hand_is_taken(publish, content):
    path = publish("http://127.0.0.1:9/whole")
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert deqflow.load("raft-small").origin == "RAFT-small"


def test_the_table_is_complete():
    for name, published in hub.PUBLISHED.items():
        assert published.address.startswith("https://"), name
        assert published.licence.startswith("BSD-3")
        assert published.megabytes > 1
    files = [published.file for published in hub.PUBLISHED.values()]
    assert len(set(files)) == len(files)
    for published in (hub.PUBLISHED["raft-large"], hub.PUBLISHED["raft-small"]):
        assert published.file.endswith(f"-{published.sha256[:8]}.pth")  # torchvision's names end in the hash
