"""The ingestion process: from the broker to the table."""
