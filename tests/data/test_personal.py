"""Masks: what must be found, what must not, and a bound on the steps of every pattern."""

import re._constants as codes
import re._parser as parser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luban.data import personal
from luban.data.personal import PATTERNS, mask_personal, shape

FOUND = {
    "mail anna.b+c@mail.example.co.uk, or": "mail <EMAIL>, or",
    "邮箱：zhang_san@qq.com。": "邮箱：<EMAIL>。",
    "<a@b.io> and c@d.org.": "<<EMAIL>> and <EMAIL>.",
    "身份证11010519491231002X号": "身份证<ID>号",
    "card 4111 1111 1111 1111 expires": "card <CARD> expires",
    "card 4111-1111-1111-1111.": "card <CARD>.",
    "5555555555554444": "<CARD>",
    "amex 3782 822463 10005": "amex <CARD>",
    "银联6222021234567890128，": "银联<CARD>，",
    "手机13812345678，": "手机<PHONE>，",
    "+86 138 1234 5678": "<PHONE>",
    "8613812345678": "<PHONE>",
    "138-1234-5678": "<PHONE>",
    "call +44 20 7946 0958 now": "call <PHONE> now",
    "call +1 (415) 555-2671.": "call <PHONE>.",
    "(415) 555-2671": "<PHONE>",
    "415-555-2671": "<PHONE>",
    "0044 20 7946 0958": "<PHONE>",
    "电话 010-62345678": "电话 <PHONE>",
    "from 192.168.0.1:8080": "from <IP>:8080",
    "host 203.0.113.7, up": "host <IP>, up",
    "at 2001:db8::8a2e:370:7334.": "at <IP>.",
    "fe80::1 and 2001:0db8:85a3:0000:0000:8a2e:0370:7334": "<IP> and <IP>",
    "::ffff:192.0.2.128": "<IP>",
}
NOT_FOUND = [
    "2024-05-17 and 17.05.2024, 05/17/2024, 20240517",
    "at 12:30:45, 2024-05-17T12:30:45.123456Z",
    "$1,234,567.89 and 1234567.89 and 3.141592653589793",
    "ISBN 978-3-16-148410-0, ISBN 0-306-40615-2, 9783161484100",
    "version 10.0.0.1, v1.12.3.4, section 3.2.1.1, 1.2.3.4, 版本 12.3.4.5",
    "ISBN 0061122416 and 978 @-@ 0061122416",
    "4111111111111112",
    "6222021234567890129",
    "110105194912310021",
    "110105194913310029",
    "std::vector<int> a::b::c, dead::beef, 1:2:3",
    "@decorator def f(): x@y, a @ b.c",
    "300.400.500.600",
    "1234567890123456789012345678901234567890",
    "10000000000000000",
    "pages 100-200, 1914-1918, 555-1234",
    "第12345678901号",
    "0.13812345678",
    "sha 5f4dcc3b5aa765d61d8327deb882cf99",
    "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15",
    "2020 2021 2022 2023 2024",
    "+12 -34 +56",
]


@pytest.mark.parametrize("text", FOUND)
def test_personal_data_is_masked(text):
    assert mask_personal(text)[0] == FOUND[text]


@pytest.mark.parametrize("text", NOT_FOUND)
def test_what_only_looks_like_it_stays(text):
    assert mask_personal(text) == (text, {})


def test_the_shape_tells_nothing():
    text = "anna@example.org 13812345678 11010519491231002X"
    assert mask_personal(text, shape)[0] == "xxxx@xxxxxxx.xxx 00000000000 00000000000000000x"


def steps(tree):
    """The most steps a backtracking engine can take through a pattern from one place."""
    total = 1
    for op, value in tree:
        if op in (codes.MAX_REPEAT, codes.MIN_REPEAT):
            low, high, inner = value
            assert high < 300, "an unbounded repeat"
            single = len(inner) == 1 and inner[0][0] in (codes.IN, codes.LITERAL, codes.CATEGORY)
            # Repeats of one set that is followed by others can be given back, one at a time.
            total *= (
                (high - low + 1)
                if single
                else steps(inner) ** max(1, min(high, 8))
                if high > 1
                else 1 + steps(inner)
            )
        elif op is codes.POSSESSIVE_REPEAT:
            assert value[1] < 300
            total += value[1] * steps(value[2])
        elif op is codes.BRANCH:
            total *= sum(steps(branch) for branch in value[1])
        elif op is codes.SUBPATTERN:
            total *= steps(value[3])
        elif op is codes.GROUPREF_EXISTS:
            total *= steps(value[1]) + (steps(value[2]) if value[2] else 0)
    return total


@pytest.mark.parametrize("name", PATTERNS)
def test_every_pattern_takes_a_bounded_number_of_steps_from_any_place(name):
    assert steps(parser.parse(PATTERNS[name].pattern)) < 50_000


class CountedText(str):
    """A text that counts how often one of its characters is looked at."""

    looks = 0

    def __getitem__(self, key):
        if isinstance(key, int):
            CountedText.looks += 1
        return str.__getitem__(self, key)


@pytest.mark.parametrize("piece", ["a", "@", "a@", "a.", "a@a.", ".@", "@a-", "%"])
def test_the_search_for_addresses_looks_at_few_characters(piece):
    text = CountedText((piece * 20_000)[:20_000])
    CountedText.looks = 0
    personal._Masker(personal.mark).emails(text)
    assert CountedText.looks <= 66 * 20_000


@given(st.text("0123456789+-.: ()@aAfx_/,", max_size=300))
@settings(max_examples=300, deadline=None)
def test_what_is_masked_once_stays_masked_and_counts_agree(text):
    masked, counts = mask_personal(text)
    marks = sum(masked.count(m) for m in ("<EMAIL>", "<ID>", "<CARD>", "<PHONE>", "<IP>"))
    assert marks == sum(counts.values())
    assert (masked == text) == (not counts)


def test_long_runs_that_tempt_a_pattern_to_go_back_end():
    for piece in ("1", "1-", "1 ", "(4", "+1 ", "a:", "1.", ":", "@", "a@a.", "4111 ", "::1", "1:"):
        text = piece * (200_000 // len(piece))
        assert len(mask_personal(text)[0]) <= len(text) * 8
