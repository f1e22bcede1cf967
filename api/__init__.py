"""The HTTP sidecar: what dashboards and technicians ask."""
