"""One fuzz target under Atheris: `python -m dev.fuzz_child MODULE`, and then libFuzzer's arguments.

With a file in place of a corpus folder it runs that one input, which is how a crash is replayed. Coverage is that of
`daemon` alone: `mqtt5` and `msgspec` are compiled, and libFuzzer cannot see into them.
"""

import importlib
import sys

import atheris


def main() -> None:
    """Fuzz until libFuzzer ends the process."""
    module, *arguments = sys.argv[1:]
    with atheris.instrument_imports(include=["daemon"]):
        target = importlib.import_module(module).TARGET
    atheris.Setup([module, *arguments], target.check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
