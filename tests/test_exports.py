"""What `import omnigate` offers: the names of `__all__`, at home in the package, and nothing else."""

import subprocess
import sys
import typing
from types import ModuleType

import omnigate
import omnigate.exceptions
import omnigate.models
import omnigate.testing

SUBMODULES = {"admin", "async_client", "client", "exceptions", "models"}  # what a program may import from


def test_every_public_name_says_that_it_is_at_home_in_the_package() -> None:
    homes = {name: getattr(getattr(omnigate, name), "__module__", "omnigate") for name in omnigate.__all__}
    assert {name: home for name, home in homes.items() if home != "omnigate"} == {}


def test_nothing_public_stands_in_the_package_that_is_not_exported() -> None:
    script = "import omnigate; print(*(n for n in vars(omnigate) if not n.startswith('_')))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert set(done.stdout.split()) - set(omnigate.__all__) == SUBMODULES


def test_nothing_private_stands_in_the_package_but_its_wings() -> None:
    private = {name: value for name, value in vars(omnigate).items() if name[0] == "_" and name[1] != "_"}
    assert [name for name, value in private.items() if not isinstance(value, ModuleType)] == []


def test_dir_shows_the_public_names_and_no_plumbing() -> None:
    assert dir(omnigate) == sorted([*omnigate.__all__, "exceptions", "models"])


def test_the_modules_of_0_1_0_export_names_that_exist() -> None:
    for module in (omnigate.exceptions, omnigate.models, omnigate.testing):
        assert [name for name in module.__all__ if not hasattr(module, name)] == []


def test_the_annotations_of_every_public_class_can_be_resolved() -> None:
    unresolved = {}
    for name in omnigate.__all__:
        kind = getattr(omnigate, name)
        if isinstance(kind, type):
            try:
                typing.get_type_hints(kind)
            except NameError as error:
                unresolved[name] = str(error)
    assert unresolved == {}
