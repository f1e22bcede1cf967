"""Sessions that stand in for one with a broker where none is needed."""


class Nobody:
    """A session that must be told nothing: who tests with it acknowledges nowhere."""

    def acknowledge(self, packet_ids: list[int]) -> None:
        raise AssertionError(f"acknowledged {packet_ids}")
