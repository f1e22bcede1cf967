"""The pages: what people look at, made of the same answers as the routes under /v1."""
