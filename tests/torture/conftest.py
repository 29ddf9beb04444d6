"""The project that nobody disturbs: what killed and damaged ones are compared with, made once a run."""

import pytest

from tests.torture.chain import finish, make_project


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, drawn_zip):
    """(its spec, its folder)"""
    root = tmp_path_factory.mktemp("undisturbed")
    spec = make_project(root, drawn_zip)
    finish(spec, root)
    return spec, root
