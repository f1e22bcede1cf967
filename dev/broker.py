"""A private Mosquitto on a free port of the loopback interface, with the production configuration.

It reads `mosquitto/mosquitto.conf` and differs only in what it must: where it listens and keeps its files, plain TCP,
and anybody may publish and subscribe, because the simulated hardware and a curious user come without passwords.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from dev.processes import Child, ProcessError, free_port, is_root, port_answers

CONFIGURATION = Path(__file__).parent.parent / "mosquitto" / "mosquitto.conf"
_PLACES = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")


class PrivateBroker:
    """A broker with its persistence in a folder; the sessions outlive it."""

    def __init__(self, folder: Path, settings: Mapping[str, str | None] | None = None) -> None:
        """`settings` replace those of the configuration; None takes one out."""
        self.port = free_port()
        folder.mkdir(parents=True, exist_ok=True)
        differences: dict[str, str | None] = {
            "listener": f"{self.port} 127.0.0.1",
            "cafile": None,
            "certfile": None,
            "keyfile": None,
            "password_file": None,
            "acl_file": None,
            "allow_anonymous": "true",
            "use_username_as_clientid": "false",
            "persistence_location": f"{folder}/",
            # Mosquitto leaves root for an account of its own, which the folder may not be open to.
            **({"user": "root"} if is_root() else {}),
            **(settings or {}),
        }
        self.configuration = folder / "mosquitto.conf"
        """The file that it reads."""
        derived = derive(CONFIGURATION.read_text(encoding="utf-8"), differences)
        self.configuration.write_text(derived, encoding="utf-8")
        self.process = Child("mosquitto", [_executable(), "-c", str(self.configuration)], folder)

    @property
    def url(self) -> str:
        """The URL that clients connect to."""
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it accepts connections."""
        self.process.start(lambda: port_answers(self.port))


def derive(configuration: str, differences: Mapping[str, str | None]) -> str:
    """A configuration with some options replaced, added, or (None) taken out; comments are left behind."""
    given = [line.partition(" ") for line in configuration.splitlines() if line.strip() and not line.startswith("#")]
    options: dict[str, str | None] = {name: value for name, _, value in given}
    return "".join(f"{name} {value}\n" for name, value in {**options, **differences}.items() if value is not None)


def _executable() -> str:
    found = shutil.which("mosquitto") or next(
        (path for place in _PLACES if (path := shutil.which("mosquitto", path=place))), None
    )
    if found is None:
        raise ProcessError("mosquitto is not installed; `make broker` installs it or says how")
    return found
