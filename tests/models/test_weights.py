"""Weights by name, from servers on this machine that behave as the hub of Hugging Face and torchvision's do."""

import enum
import hashlib
import http.server
import random
import subprocess
import sys
import threading
import time
import types

import pytest

from pipeline.errors import CheckpointError, PipelineError, SpecError
from pipeline.models.hub import hub_token
from pipeline.models.weights import fetch_weights, weights_facts, weights_path
from pipeline.spec import ModelSpec
from pipeline.storage.files import read_json
from tests.cells import jobs, packed_project
from tests.conftest import ROOT

BODY = random.Random(0).randbytes(300_000)
DIGEST = hashlib.sha256(BODY).hexdigest()
NAME = "resnet50.a1_in1k"


class Server(http.server.BaseHTTPRequestHandler):
    """`/files/...` has the bytes, as a store of the hub; every other address says their digest and sends one there."""

    def do_GET(self):
        server = self.server
        is_file = self.path.startswith("/files/")
        server.seen.append((is_file, self.path, self.headers.get("Authorization"), self.headers.get("Range")))
        if server.status:
            self.send_response(server.status)
            self.send_header("X-Error-Code", server.code)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif not is_file:
            self.send_response(302)
            self.send_header("x-linked-etag", f'"{server.announced}"')
            self.send_header("Location", f"{server.store}/files/x")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            server.goes_on.wait(60)
            wanted = self.headers.get("Range")
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
            part = server.body[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            self.wfile.write(part[: server.cuts.pop(0) if server.cuts else None])

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    """A hub, and a store on another host (a name and a number of this machine are two)."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        running.seen, running.cuts, running.status, running.code = [], [], 0, ""
        running.body, running.announced = BODY, DIGEST
        running.goes_on = threading.Event()
        running.goes_on.set()
        running.url = f"http://127.0.0.1:{running.server_port}"
        running.store = f"http://localhost:{running.server_port}"
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", running.url + "/")
        monkeypatch.setenv("HF_TOKEN", "secret")
        yield running
        running.shutdown()


def of_timm(name=NAME, weights="pretrained"):
    return ModelSpec.model_construct(name=f"timm/{name}", weights=weights)


def fetch(folder, model=None):
    return fetch_weights(model or of_timm(), folder, pause_s=0)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------- timm


def test_a_file_of_the_hub_arrives_under_its_name_with_its_digest_beside_it(hub, tmp_path):
    path = fetch(tmp_path / "weights")
    assert path == weights_path(of_timm(), tmp_path / "weights")
    assert path.read_bytes() == BODY
    assert names(path.parent) == [f"{NAME}.safetensors", f"{NAME}.safetensors.sha256"]
    assert path.with_name(path.name + ".sha256").read_text() == f"{DIGEST}  {path.name}\n"
    assert hub.seen[0][1] == f"/timm/{NAME}/resolve/main/model.safetensors"
    assert fetch(path.parent) == path
    assert len(hub.seen) == 2
    facts = {"file": path.name, "sha256": DIGEST, "licence": "apache-2.0"}
    assert weights_facts(of_timm(), path) == facts


def test_the_token_goes_to_the_hub_and_not_to_the_store_it_names(hub, tmp_path):
    fetch(tmp_path / "a")
    assert [(is_file, token) for is_file, _, token, _ in hub.seen] == [(False, "Bearer secret"), (True, None)]
    hub.seen.clear()
    hub.store = ""  # a repository with a new name: the same server
    fetch(tmp_path / "b")
    assert [token for _, _, token, _ in hub.seen] == ["Bearer secret"] * 2


def test_the_token_of_a_login_is_found(tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert hub_token() == ""
    (tmp_path / "token").write_text("hf_x\n")
    assert hub_token() == "hf_x"
    monkeypatch.setenv("HF_TOKEN", "hf_y")
    assert hub_token() == "hf_y"


def test_an_architecture_alone_means_timm_s_default_weights(hub, tmp_path):
    assert fetch(tmp_path, of_timm("resnet50")).name == "resnet50.a1_in1k.safetensors"


def test_a_file_of_another_digest_than_the_hub_announces_is_refused(hub, tmp_path):
    hub.body = BODY[:-1] + b"x"
    with pytest.raises(CheckpointError, match=rf"is not what its name promises .*announced {DIGEST}"):
        fetch(tmp_path)
    assert names(tmp_path) == []


def test_a_transfer_that_is_cut_off_goes_on_where_it_broke(hub, tmp_path):
    hub.cuts += [100_000, 50_000]
    assert fetch(tmp_path).read_bytes() == BODY
    assert [wanted for is_file, _, _, wanted in hub.seen if is_file] == [
        *(None, "bytes=100000-", "bytes=150000-")
    ]


def test_a_part_of_another_version_of_the_file_is_fetched_anew(hub, tmp_path):
    (tmp_path / f"{NAME}.safetensors.part").write_bytes(b"of last year" * 100)
    assert fetch(tmp_path).read_bytes() == BODY


def test_a_server_that_breaks_off_for_good_leaves_no_file_but_what_came(hub, tmp_path):
    hub.cuts += [1000] * 9
    with pytest.raises(CheckpointError, match=r"cannot be fetched \(.*5,000 bytes are kept\)"):
        fetch(tmp_path)
    assert names(tmp_path) == [f"{NAME}.safetensors.part"]


def test_a_full_disk_is_not_taken_for_the_network(hub, tmp_path):
    (tmp_path / f"{NAME}.safetensors.part").symlink_to("/dev/full")
    with pytest.raises(PipelineError, match=r"safetensors: cannot be written: No space left"):
        fetch(tmp_path)
    assert len(hub.seen) == 2


@pytest.mark.parametrize("status", [401, 403])
def test_weights_behind_a_licence_say_where_it_is_accepted(hub, tmp_path, status):
    hub.status, hub.code = status, "GatedRepo"
    with pytest.raises(CheckpointError, match=rf"accept its licence at {hub.url}/timm/{NAME}, set HF_TOKEN"):
        fetch(tmp_path)
    assert len(hub.seen) == 1


@pytest.mark.parametrize(("status", "code"), [(404, "EntryNotFound"), (401, "RepoNotFound")])
def test_what_the_hub_does_not_have_is_not_there(hub, tmp_path, status, code):
    hub.status, hub.code = status, code
    with pytest.raises(
        CheckpointError, match=rf"model.safetensors: is not there \(.*{status}.*name other weights"
    ):
        fetch(tmp_path)


def test_without_internet_the_error_says_where_and_how(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        CheckpointError, match=r"cannot be fetched \(.*refused\); run this verb on a login node"
    ) as e:
        fetch(tmp_path)
    url = f"http://127.0.0.1:9/timm/{NAME}/resolve/main/model.safetensors"
    file = f"{NAME}.safetensors"
    assert f"put the file at {tmp_path / file} (where there is internet: `curl -fL -o {file} {url}`)" in str(
        e.value
    )
    assert names(tmp_path) == []


def test_what_a_person_puts_there_gets_a_digest_and_may_not_change_after_that(tmp_path):
    path = tmp_path / f"{NAME}.safetensors"
    path.write_bytes(BODY)
    assert fetch(tmp_path) == path
    assert path.with_name(path.name + ".sha256").read_text().startswith(DIGEST)
    path.write_bytes(BODY[:-1])
    with pytest.raises(CheckpointError, match=r"differs from its digest in .*sha256; delete both"):
        fetch(tmp_path)


def test_a_network_without_published_weights_is_named(tmp_path):
    with pytest.raises(SpecError, match=r"timm publishes no weights of timm/botnet50ts_256"):
        fetch(tmp_path, of_timm("botnet50ts_256"))


@pytest.mark.slow
def test_a_name_that_neither_the_catalogue_nor_timm_knows_is_refused(tmp_path):
    with pytest.raises(
        SpecError, match=r"timm has no timm/resnet50.a1_in1q; did you mean `timm/resnet50.a1_in1k`"
    ):
        fetch(tmp_path, of_timm("resnet50.a1_in1q"))


def test_weights_that_are_on_no_hub_have_an_address_of_their_own(tmp_path):
    path = weights_path(of_timm("gcvit_base.in1k"), tmp_path)
    assert path == tmp_path / "gcvit_base_224_nvidia-f009139b.pth"


def test_it_reports_what_has_come(hub, tmp_path, told):
    fetch(tmp_path)
    assert {(state.doing, state.unit) for state in told} == {(f"downloading {NAME}.safetensors, MB", "MB")}


FETCH = f"""
import sys
from pathlib import Path
from pipeline.models.weights import fetch_weights
from pipeline.spec import ModelSpec
model = ModelSpec(name="timm/{NAME}")
print("begun", flush=True)
print(fetch_weights(model, Path(sys.argv[1]), pause_s=0))
"""


@pytest.mark.slow
def test_two_processes_fetch_one_file_once(hub, tmp_path):
    hub.goes_on.clear()
    command = [sys.executable, "-c", FETCH, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)]
    assert [process.stdout.readline() for process in processes] == ["begun\n"] * 2
    time.sleep(0.5)  # the second asks for it too
    hub.goes_on.set()
    said = [process.communicate(timeout=60)[0].splitlines()[-1] for process in processes]
    path = tmp_path / f"{NAME}.safetensors"
    assert said == [str(path)] * 2
    assert path.read_bytes() == BODY
    assert sum(is_file for is_file, *_ in hub.seen) == 1
    assert names(tmp_path) == [f"{NAME}.safetensors", f"{NAME}.safetensors.sha256"]


@pytest.mark.slow
def test_a_grid_fetches_the_weights_once_and_its_cells_say_which(hub, tmp_path, drawn_zip):
    import safetensors.torch
    import timm

    name = "test_resnet.r160_in1k"
    state = timm.create_model("test_resnet", pretrained=False).state_dict()
    hub.body = safetensors.torch.save(state)
    hub.announced = hashlib.sha256(hub.body).hexdigest()
    text = "run: {threads: 1}\ngrid: {seeds: [0, 1]}\n"
    spec = packed_project(tmp_path, drawn_zip, text, model={"name": f"timm/{name}"}, epochs=1)
    status, printed = jobs("grid", spec, cwd=tmp_path)
    assert status == 0, printed
    assert sum(is_file for is_file, *_ in hub.seen) == 1
    found = [read_json(path)["weights"] for path in tmp_path.glob("experiments/x/*/provenance.json")]
    assert found == [{"file": f"{name}.safetensors", "sha256": hub.announced, "licence": "apache-2.0"}] * 2
    (card,) = tmp_path.glob("experiments/x/*/MODEL_CARD.md")
    assert f"began as timm/{name}, whose licence is apache-2.0" in card.read_text().replace("\\_", "_")


# ---------------------------------------------------------------- torchvision


@pytest.fixture
def torchvision_at(monkeypatch):
    """Says that torchvision publishes the weights of every network at an address."""

    def tell(url):
        weights = enum.Enum("Weights", {"IMAGENET1K_V1": types.SimpleNamespace(url=url)})
        weights.url = property(lambda self: self.value.url)
        monkeypatch.setattr("torchvision.models.get_model_weights", lambda _: weights)
        return ModelSpec(name="resnet34", weights="IMAGENET1K_V1")

    return tell


def test_torchvision_s_weights_are_fetched_and_match_the_digest_in_their_name(hub, tmp_path, torchvision_at):
    model = torchvision_at(f"{hub.url}/files/resnet34-{DIGEST[:8]}.pth")
    path = fetch(tmp_path, model)
    assert path == tmp_path / f"resnet34-{DIGEST[:8]}.pth"
    assert path.read_bytes() == BODY
    assert fetch(tmp_path, model) == path
    assert [(token, wanted) for *_, token, wanted in hub.seen] == [(None, None)]
    assert fetch(tmp_path, ModelSpec()) is None


def test_a_fetched_file_that_differs_from_its_digest_is_refused(hub, tmp_path, torchvision_at):
    with pytest.raises(CheckpointError, match=r"is not what its name promises \(its SHA-256 begins with"):
        fetch(tmp_path, torchvision_at(f"{hub.url}/files/resnet34-b627a593.pth"))
    assert names(tmp_path) == []


def test_weights_that_are_there_are_checked_against_their_name(tmp_path):
    (tmp_path / "resnet34-b627a593.pth").write_bytes(b"cut short")
    with pytest.raises(
        CheckpointError, match=r"resnet34-b627a593.pth: is not what its name promises; delete it"
    ):
        fetch(tmp_path, ModelSpec(name="resnet34", weights="IMAGENET1K_V1"))


def test_unknown_named_weights(tmp_path):
    with pytest.raises(SpecError, match=r"resnet34 has no weights 'IMAGENET1K_V9'; known: IMAGENET1K_V1"):
        fetch(tmp_path, ModelSpec(name="resnet34", weights="IMAGENET1K_V9"))


def test_offline_the_error_names_the_address_and_the_three_ways_out(tmp_path, torchvision_at):
    with pytest.raises(
        CheckpointError, match=r"(?s)127.0.0.1:9.*cannot be fetched.*login node.*put the file at.*none"
    ):
        fetch(tmp_path, torchvision_at("http://127.0.0.1:9/resnet34-b627a593.pth"))
    assert names(tmp_path) == []
