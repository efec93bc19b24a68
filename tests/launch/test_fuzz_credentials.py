"""A password stays out of all words and files of a run however its key, its address and its characters are spelt."""

import os
import random
import string
from urllib.parse import quote

import pytest

from dist_ssl.errors import ConfigError
from launch import credentials
from launch.variables import ADDRESS
from tests.fuzzing import shares, tried

SPELLINGS = (
    *("data.path={}", "+data.path={}", "++data.path={}", "'data.path={}'", 'data.path="{}"', "data.path='{}'"),
    *("data={{path: {}}}", "++data={{path: '{}'}}", '+data={{path: "{}", train: train}}', "data.path={},data/other"),
    *(
        "++probe.note={}",
        "name={}",
        "+anything.at.all=[{},{}]",
        "--data.path={}",
        "DATA.PATH={}",
        "data.path= {}",
        "{}",
    ),
)
CHARACTERS = string.ascii_letters + string.digits + "!$*+-._~;|^()%:&="


def word(chance: random.Random) -> tuple[str, str]:
    """A word of a command line with a password, and the password as a person knows it."""
    secret = "s3cr3t" + "".join(chance.choices(CHARACTERS, k=chance.randint(4, 20)))
    shown = quote(secret, safe="!$*+-._~;^()&=") if chance.random() < 0.7 else secret
    scheme = chance.choice(["https", "http", "HTTPS", "hTTp"])
    address = chance.choice(
        [
            f"{scheme}://user:{shown}@host/folder",
            f"{scheme}://{shown}@host:8080/folder",
            f"{scheme}://host/folder?signature={shown}",
            f"{scheme}://user:{shown}@host/folder?more={shown}",
        ]
    )
    spelling = chance.choice(SPELLINGS).replace("{{", "\0").replace("{}", address)
    return spelling.replace("\0", "{").replace("}}", "}"), shown


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ADDRESS, "")


def refused_or_left(given: str) -> str:
    """The word without its secret, or why it is refused."""
    try:
        return credentials.set_aside([given])[0]
    except ConfigError as refused:
        return str(refused)


@pytest.mark.parametrize("inputs", shares(300))
def test_no_spelling_leaves_a_secret_in_the_words(inputs: range) -> None:
    def work(chance: random.Random) -> bool:
        given, secret = word(chance)
        os.environ[ADDRESS] = ""
        assert secret not in refused_or_left(given), given
        return secret in os.environ[ADDRESS]

    assert tried(inputs, work) > len(inputs) // 2
