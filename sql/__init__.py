"""The data layer that the daemon and the sidecar share: migrations, queries and the modules that run them."""

__version__ = "0.1.0"
