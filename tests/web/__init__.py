"""The pages, as a browser has them."""
