import json
import subprocess

import torch

from deqflow.evidence.provenance import PACKAGES, provenance


def test_provenance_names_commit_versions_and_hardware(tmp_path):
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", *identity, "commit", "-q", "--allow-empty", "-m", "x"], cwd=tmp_path, check=True)
    origin = provenance(tmp_path)
    assert len(origin["commit"]) == 40
    assert origin["modified"] is False
    (tmp_path / "new").touch()
    assert provenance(tmp_path)["modified"] is True
    assert set(origin["versions"]) == {"python", *PACKAGES}
    assert origin["hardware"]["threads"] == torch.get_num_threads()
    assert json.loads(json.dumps(origin)) == origin


def test_outside_of_a_checkout_there_is_no_commit(tmp_path):
    origin = provenance(tmp_path)
    assert origin["commit"] is None
    assert origin["modified"] is None
