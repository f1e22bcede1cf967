"""The data layer that the daemon and the sidecar share: migrations, queries and the modules that run them."""
