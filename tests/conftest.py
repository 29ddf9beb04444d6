"""What several tests need: small real images, a small drawn set packed once, the shared real data.

Slow set-ups are made once a run: the workers of pytest-xdist share them (`once`).
"""

import fcntl
import io
import os
import shutil
import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the tests run the checkout, installed or not
# Workers and their processes share the cores: threads that wait for each other only take turns. Before torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from jobs.planning.plan import make_plan  # noqa: E402 - found through the path above
from pipeline.data.drawn import draw  # noqa: E402 - found through the path above
from pipeline.progress import listen  # noqa: E402 - found through the path above
from pipeline.spec import DataSpec  # noqa: E402 - found through the path above
from pipeline.spec.reading import read_spec  # noqa: E402 - found through the path above
from tests.browser import Browser  # noqa: E402 - found through the path above
from tests.cells import jobs, packed_project, project  # noqa: E402 - found through the path above

# The same examples in every run: a red test speaks of the change at hand. LABELGRID_FUZZ=N looks for N new ones.
FUZZ = int(os.environ.get("LABELGRID_FUZZ", "0"))
settings.register_profile("labelgrid", deadline=None, derandomize=not FUZZ, max_examples=FUZZ or 150)
settings.load_profile("labelgrid")


def pytest_collection_modifyitems(config, items):
    """What takes longest begins first, so that no worker is left alone with it: Slurm, other groups, what is slow.

    Of groups, those of most tests.
    """

    def group(item):
        mark = item.get_closest_marker("xdist_group")
        return mark.args[0] if mark else item.nodeid

    ungrouped = [i.nodeid for i in items if i.get_closest_marker("xdist_group") and "@" not in i.nodeid]
    if getattr(config.option, "loadgroup", False) and ungrouped:
        raise pytest.UsageError(
            f"pytest-xdist did not group {ungrouped[0]}: each worker would bring up a Slurm cluster; "
            "install the versions of requirements.lock"
        )
    slow = {group(item) for item in items if item.get_closest_marker("slow")}
    sizes = Counter(group(item) for item in items if item.get_closest_marker("xdist_group"))

    def place(item):
        name = group(item)
        return not name.startswith("slurm"), name not in sizes, name not in slow, -sizes[name]

    items.sort(key=place)


@pytest.fixture
def told(monkeypatch):
    """All that this process reports of its work: states, in order."""
    monkeypatch.setattr("pipeline.progress._EVERY_S", 0)
    states = []
    listen(states.append)
    yield states
    listen(None)


def jpeg(seed=0, size=(40, 30), mode="RGB", **options):
    """A real JPEG of smooth colours, different for every seed."""
    rng = np.random.default_rng(seed)
    bands = len(Image.new(mode, (1, 1)).getbands())
    small = rng.integers(0, 255, (4, 4, bands), np.uint8)
    picture = Image.fromarray(small.squeeze(), mode).resize(size, Image.Resampling.BICUBIC)
    return encoded(picture, "JPEG", quality=92, **options)


def encoded(picture, kind, **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def write_zip(path, files):
    """A zip of name -> bytes or text."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, body in files.items():
            archive.writestr(name, body)
    return path


def data_spec(source, **settings):
    return DataSpec.model_validate({"source": str(source), **settings})


def rewritten(path, change):
    """The zip again, with its files as `change` leaves them."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    write_zip(path, files)


@pytest.fixture
def photos(tmp_path):
    """12 photographs with two labels, in a zip: dog on 1-6, tree on 4-9, 10-12 negative."""
    files = {f"images/im{i}.jpg": jpeg(i) for i in range(1, 13)}
    files["annotations/dog.txt"] = "".join(f"{i}\n" for i in (3, 1, 2, 6, 5, 4))
    files["annotations/tree.txt"] = "".join(f"{i}\n" for i in range(4, 10))
    return write_zip(tmp_path / "photos.zip", files)


@pytest.fixture(scope="session")
def shared():
    """The folder of real images, where this machine has it."""
    folder = os.environ.get("LABELGRID_SHARED")
    if not folder:
        pytest.skip("LABELGRID_SHARED is not set: the real images are not here")
    return Path(folder)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """What a node has verified is kept in this run's folder, not in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABELGRID_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """once(name, make): a folder that `make(folder)` has filled, once for all workers of this run."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base

    def folder_of(name, make):
        folder, made = base / name, base / f"{name}.made"
        with (base / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not made.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
                folder.mkdir()
                make(folder)
                made.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def drawn_zip(once):
    """A small drawn set, packed under `data` beside it: 240 training pictures of 32 px, 40 test pictures."""

    def make(folder):
        drawn = draw(folder, images=240, test_images=40, size_px=32)
        status, printed = jobs("wrangle", project(folder, drawn), cwd=folder)
        assert status == 0, printed

    folder = once("drawn", make)
    return draw(folder, images=240, test_images=40, size_px=32)  # they are there: only their paths


@pytest.fixture(scope="session")
def drawn(drawn_zip, tmp_path_factory):
    """The drawn set packed and split: (data spec, packed folder, split file)."""
    data = data_spec(drawn_zip.train, images="images/im{id}.jpg", size_px=32)
    root = tmp_path_factory.mktemp("data")
    spec = packed_project(root, drawn_zip)
    (packed,) = make_plan(read_spec(spec)).datasets
    return data, packed.packed, packed.split


@pytest.fixture
def cluster_free(monkeypatch):
    """Settings of the outside do not reach the test."""
    for name in ("LABELGRID_CLUSTER", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def finished(drawn_zip, once):
    """The folder of a whole small experiment: two cells and a seed more, trained, ranked, submitted, reported."""

    def make(root):
        grid = "grid: {axes: {train.optimizer.lr: [1e-3, 1e-2]}, seeds: [0, 1]}"
        settings = {"optimizer": {"name": "adam", "lr": 1e-3}, "epochs": 2, "precision": "fp32"}
        spec = packed_project(root, drawn_zip, grid, **settings)
        for verb in ("submission", "report"):
            status, printed = jobs(verb, spec, cwd=root)
            assert status == 0, printed

    return once("finished", make) / "experiments" / "x"


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """One headless Chromium for all tests that look."""
    chromium = Browser(tmp_path_factory.mktemp("chromium"))
    yield chromium
    chromium.close()
