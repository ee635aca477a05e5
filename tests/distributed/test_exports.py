"""The public names of `omnigate.distributed` are at home there, in reprs and pickles, too."""

import pickle
import pickletools
import typing

import pytest

import omnigate.distributed
from omnigate.distributed import RedisPacer, SocketPacer


def test_every_public_name_has_the_package_as_its_module() -> None:
    homes = {name: getattr(omnigate.distributed, name).__module__ for name in omnigate.distributed.__all__}
    assert set(homes.values()) == {"omnigate.distributed"}


@pytest.mark.parametrize("name", omnigate.distributed.__all__)
def test_a_public_name_is_pickled_by_it_and_its_annotations_can_be_resolved(name: str) -> None:
    value = getattr(omnigate.distributed, name)
    assert pickle.loads(pickle.dumps(value)) is value
    typing.get_type_hints(value)


@pytest.mark.parametrize("kind", ["socket", "redis"])
def test_a_pickled_link_names_no_private_module(kind: str) -> None:
    if kind == "redis":
        pytest.importorskip("redis", reason="the extra `redis` is not installed")
    link = SocketPacer("unix:/p", secret="x" * 16) if kind == "socket" else RedisPacer("redis://h")
    texts = [str(argument) for _, argument, _ in pickletools.genops(pickle.dumps(link))]
    assert "omnigate.distributed" in texts
    assert not [text for text in texts if "._" in text]
