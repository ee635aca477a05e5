"""Run a target under atheris, from the committed corpus.

Where atheris does not install, `HYPOTHESIS_PROFILE=long pytest -m "" tests/proof/test_properties.py` searches the same
decoders without the guidance of coverage.
"""

import sys
from pathlib import Path

MODULES = {
    "decoders": ["omnigate._streams.decoders", "omnigate._streams.readers"],
    "transport": ["omnigate._transport.http11", "omnigate._transport.bodies"],
}
"""What is instrumented: what is not tested here would only be slower."""


def run(name: str) -> None:
    """Fuzz `name`. The first argument is a number of seconds; others (`-runs=…`) are libFuzzer's."""
    import atheris

    here = Path(__file__).parent
    sys.path.insert(0, str(here.parents[1]))
    with atheris.instrument_imports(include=MODULES[name]):
        from tests.fuzz.targets import CORPUS, TARGETS
    arguments = [f"-max_total_time={value}" if value.isdigit() else value for value in sys.argv[1:]]
    found = here / "found" / name  # what reached new code; not committed
    found.mkdir(parents=True, exist_ok=True)
    atheris.Setup(
        [
            sys.argv[0],
            "-max_len=300",
            f"-artifact_prefix={found.parent}/",
            *arguments,
            str(found),
            str(CORPUS / name),
        ],
        TARGETS[name],
    )
    atheris.Fuzz()
