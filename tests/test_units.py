from __future__ import annotations

import pytest

from sarathi.units import format_duration, parse_duration, parse_size


@pytest.mark.parametrize(
    ("duration", "seconds"),
    [
        ("100ms", 0.1),
        ("1.5s", 1.5),
        ("2s", 2.0),
        ("1m", 60.0),
        ("24h", 86_400.0),
        ("0.1", 0.1),
        (".5 S", 0.5),
        (" 62.5 ms ", 0.0625),
        (0.25, 0.25),
        (3, 3.0),
    ],
)
def test_what_people_write(duration, seconds):
    assert parse_duration(duration) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "ms", "fast", "1x", "-1s", "1e3", "1,5s", "1.5.2s", "1s2", "1 m s", "nan", "१s"]
)
def test_the_error_for_an_invalid_time_has_an_example(text):
    with pytest.raises(ValueError, match="expected seconds as a number, or a text with a unit"):
        parse_duration(text)


@pytest.mark.parametrize(
    "duration", ["0", "0.0ms", "25h", "9" * 30, 0, -1, 86_401, float("nan"), float("inf")]
)
def test_times_out_of_range(duration):
    with pytest.raises(ValueError, match="above 0 and of at most a day"):
        parse_duration(duration)


def test_a_long_text_is_neither_read_nor_repeated():
    with pytest.raises(ValueError, match="expected seconds") as caught:
        parse_duration("1" * 1_000_000)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.1432, "143 ms"), (0.0625, "62.5 ms"), (0.0999999, "100 ms"), (1.5, "1.5 s"), (2, "2 s")],
)
def test_in_words(seconds, words):
    assert format_duration(seconds) == words


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("2GiB", 2**31),
        ("512MB", 512 * 10**6),
        ("1.5g", 1_500_000_000),
        ("1 Ki", 1024),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size
