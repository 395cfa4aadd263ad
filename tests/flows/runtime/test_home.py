"""A home is its owner's alone, unless it was made for others; its address keeps its secret."""

import os
import pickle
import stat

import pytest
from pydantic import TypeAdapter

from flows.runtime.home import Home
from headwater.addresses import whole
from storage.registry.client import prepare_database


def rights(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask():
    """Ends with the umask that was; yields a way to ask for it."""
    before = os.umask(0o022)
    os.umask(0o022)

    def now():
        os.umask(mask := os.umask(0))
        return mask

    yield now
    os.umask(before)


def test_a_new_home_and_its_database_are_for_the_owner_alone(tmp_path, umask):
    home = Home.at(tmp_path / "of" / "mine")
    assert rights(home.root) == 0o700
    assert rights(home.root.parent) == 0o755
    prepare_database(home.root / "mlflow.db")
    assert rights(home.root / "mlflow.db") == 0o600  # without a umask, as a notebook has it
    home.narrow_umask()
    assert umask() == 0o077


@pytest.mark.parametrize(("mode", "mask"), [(0o755, 0o022), (0o2770, 0o027)])
def test_a_folder_that_is_there_keeps_its_rights(tmp_path, umask, mode, mask):
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours").chmod(mode)
    home = Home.at(tmp_path / "ours")
    home.narrow_umask()
    assert rights(home.root) == mode
    assert umask() == mask  # never wider than the user's own


def test_only_a_pickle_has_the_password(tmp_path):
    home = Home(tmp_path, tracking_url="postgresql://me:correct-horse@host/db")
    kept = TypeAdapter(Home).dump_json(home).decode()
    assert "correct-horse" not in kept + repr(home)
    assert TypeAdapter(Home).validate_json(kept) == home
    assert pickle.loads(pickle.dumps(home)) == home
    assert b"correct-horse" in pickle.dumps(home)  # a worker connects, too
    assert whole(home.tracking_url) == "postgresql://me:correct-horse@host/db"
