"""What somebody else wrote: every character of it can be seen, and none does anything."""

import pytest

from sql.visible import hex_dump, printable, printable_lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ä €", "plain ä €"),
        ("\x1b]0;x\x07", "\\x1b]0;x\\x07"),
        ("\u202eabc", "\\u202eabc"),
        ("\x9b", "\\x9b"),
        ("a\r\nb\t", "a\\r\\nb\\t"),
        ("\ud83d", "\\ud83d"),
        ("\U000e0001", "\\U000e0001"),
    ],
)
def test_what_does_not_print_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_lines_may_stay_lines() -> None:
    assert printable_lines("a\r\n\n\u2066b") == "a\\r\n\n\\u2066b"


def test_a_hex_dump_has_place_bytes_and_letters() -> None:
    assert hex_dump(b"") == ""
    assert hex_dump(b"fleetwatt\xff and\n1") == (
        "00000000  66 6c 65 65 74 77 61 74  74 ff 20 61 6e 64 0a 31  |fleetwatt. and.1|"
    )
    assert hex_dump(bytes(17)).splitlines()[1] == f"00000010  00{'':21}  {'':23}  |.|"
