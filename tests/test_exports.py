"""The public names of `omnigate`: those of `__all__`, defined in the package, and nothing else."""

import ast
import pickle
import subprocess
import sys
import typing
from pathlib import Path
from types import ModuleType

import pytest

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
    script = "import omnigate; omnigate.Client; print(*(n for n in vars(omnigate) if not n.startswith('_')))"
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


def test_the_names_that_type_checkers_see_are_those_that_are_loaded() -> None:
    tree = ast.parse(Path(omnigate.__file__).read_text("utf-8"))
    (block,) = (statement for statement in tree.body if isinstance(statement, ast.If))
    seen = {
        (imported.module, alias.asname or alias.name)
        for imported in block.body
        if isinstance(imported, ast.ImportFrom)
        for alias in imported.names
    }
    loaded = {(f"omnigate.{home}", name) for home, names in omnigate._homes.HOMES.items() for name in names}
    assert seen == loaded
    assert {name for _, name in loaded} | {"__version__"} == set(omnigate.__all__)


FIRST = sorted(omnigate._homes.HOMES)


@pytest.mark.proof
@pytest.mark.parametrize("first", FIRST)
def test_public_names_have_the_package_as_their_module_whichever_module_is_imported_first(first: str) -> None:
    script = f"""
import sys, importlib
module = importlib.import_module("omnigate.{first}")
names = [name for name in {omnigate._homes.HOMES[first]!r} if vars(module)[name].__module__ != "omnigate"]
import omnigate
names += [name for name in omnigate.__all__[:-1] if getattr(getattr(omnigate, name), "__module__", "omnigate") != "omnigate"]
print(names)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_importing_the_package_or_its_plugin_imports_no_dependency() -> None:
    script = """
import sys, pytest
before = set(sys.modules)
import omnigate, omnigate.cli, omnigate.testing.plugin
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("omnigate\n", "")


def test_a_star_import_gives_every_public_name() -> None:
    namespace: dict[str, object] = {}
    exec("from omnigate import *", namespace)
    assert set(omnigate.__all__) - namespace.keys() == set()


def test_an_unknown_name_is_an_attribute_error_that_says_where() -> None:
    with pytest.raises(AttributeError, match="module 'omnigate' has no attribute 'Cleint'"):
        omnigate.Cleint  # noqa: B018
    with pytest.raises(AttributeError, match="module 'omnigate.testing' has no attribute 'Gatewey'"):
        omnigate.testing.Gatewey  # noqa: B018


@pytest.mark.parametrize(
    "name", ["journal.JournalWarning", "meta.Meta", "outcome.Outcome", "retry.RetryConfig"]
)
def test_pickles_that_name_a_former_module_can_be_read(name: str) -> None:
    home, kind = name.split(".")
    assert pickle.loads(f"comnigate.{home}\n{kind}\n.".encode()) is getattr(omnigate, kind)
    with pytest.raises(AttributeError):
        pickle.loads(f"comnigate.{home}\nNothing\n.".encode())
