"""What somebody else wrote, as it may be shown: nothing in it is obeyed, and nothing hides."""


def printable(text: str) -> str:
    """Text with everything escaped that a terminal might obey, and what turns the direction of writing."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def printable_lines(text: str) -> str:
    """The same, but lines stay lines."""
    return "\n".join(map(printable, text.split("\n")))


def hex_dump(data: bytes) -> str:
    """Bytes as technicians know them: place, hexadecimal, ASCII."""
    lines = []
    for at in range(0, len(data), 16):
        part = data[at : at + 16]
        characters = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        lines.append(f"{at:08x}  {part[:8].hex(' '):<23}  {part[8:].hex(' '):<23}  |{characters}|")
    return "\n".join(lines)
