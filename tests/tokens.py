"""A tokens file as an operator makes one."""

from pathlib import Path

from api.auth import Role, new_token


def write_tokens(folder: Path) -> tuple[str, dict[str, str]]:
    """A file with one token of each role, named a-read, a-write and a-admin: its path, and the tokens by role."""
    made = {role.name: new_token(role, f"a-{role.name}") for role in Role}
    path = folder / "tokens"
    path.write_text("# who may what\n\n" + "\n".join(line for _, line in made.values()))
    return str(path), {name: token for name, (token, _) in made.items()}
