"""The pages are asked as the routes under /v1 are."""

from tests.api.conftest import tokens  # noqa: F401 - a fixture is found by its name
