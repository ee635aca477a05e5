"""The public names of `omnigate`: those of `__all__`, defined in the package, and nothing else."""

import subprocess
import sys
import typing
from types import ModuleType

import omnigate
import omnigate.exceptions
import omnigate.models
import omnigate.testing

SUBMODULES = {
    "admin",
    "async_client",
    "client",
    "exceptions",
    "models",
}  # modules that programs may import from


def test_every_public_name_has_the_package_as_its_module() -> None:
    homes = {name: getattr(getattr(omnigate, name), "__module__", "omnigate") for name in omnigate.__all__}
    assert {name: home for name, home in homes.items() if home != "omnigate"} == {}


def test_the_package_has_no_public_names_that_are_not_exported() -> None:
    script = "import omnigate; print(*(n for n in vars(omnigate) if not n.startswith('_')))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert set(done.stdout.split()) - set(omnigate.__all__) == SUBMODULES


def test_the_package_has_no_private_names_but_its_subpackages() -> None:
    private = {name: value for name, value in vars(omnigate).items() if name[0] == "_" and name[1] != "_"}
    assert [name for name, value in private.items() if not isinstance(value, ModuleType)] == []


def test_dir_of_the_package_shows_only_public_names() -> None:
    assert dir(omnigate) == sorted([*omnigate.__all__, "exceptions", "models"])


def test_the_public_modules_export_only_names_that_exist() -> None:
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
