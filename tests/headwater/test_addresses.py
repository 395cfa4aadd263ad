"""No address shows a user or password, however it is written, and none is lost."""

import pickle

import pytest

from headwater.addresses import bare, hidden, user_and_password, whole
from headwater.errors import ConfigError

SECRET = [
    ("http://me:hunter22@host:5000/x", "http://host:5000/x"),
    ("postgresql+psycopg2://me:hunter22@host/db", "postgresql+psycopg2://host/db"),
    ("postgresql://me:hun/ter?22@host/db", "postgresql://host/db"),  # as it should not be written
    ("postgresql://me:hun@ter22@host/db", "postgresql://host/db"),
    ("mysql://host/db?user=me&password=hunter22&x=%20y", "mysql://host/db?x=+y"),
    ("s3://me:hunter22@bucket/a", "s3://bucket/a"),
    ("http://token22@[::1]:5000", "http://[::1]:5000"),
]
PLAIN = [
    "sqlite:////srv/a@b/line #2/mlflow.db",
    "http://host:5000/a@b",
    "http://[::1]:5000/a@b",
    "s3://bucket/a@b",
    "tcp://host:8786",
    "file:///x",
    "postgresql:///db?host=/run/pg&x=",
    "C:\\a@b",
    "",
]


@pytest.mark.parametrize(("given", "shown"), SECRET)
def test_what_is_secret_is_taken_out_and_put_back(given, shown):
    assert bare(given) == shown
    assert bare(shown) == shown
    assert whole(shown) == given


@pytest.mark.parametrize("given", PLAIN)
def test_what_holds_no_secret_stays_to_the_letter(given):
    assert bare(given) == whole(given) == hidden(given) == given


@pytest.mark.parametrize("given", [given for given, _ in SECRET])
def test_no_message_shows_it(given):
    error = ConfigError(f"cannot reach {given!r}: refused", expected=given, remedy=f"({given})")
    again = pickle.loads(pickle.dumps(error))
    for text in (str(error), repr(error), str(again), hidden(f"x={given}, y")):
        for word in ("hunter22", "hun/ter", "ter22", "token22", "me:"):
            assert word not in text
        assert "***" in text


def test_a_password_that_was_given_is_hidden_wherever_it_stands():
    bare("http://me:correct%20horse@host")
    assert hidden("wrong password 'correct horse'") == "wrong password '***'"
    bare("http://me:test@host")  # too short to be told from a word
    assert hidden("a test") == "a test"


def test_user_and_password_are_decoded():
    assert user_and_password(bare("http://m%40e:p%3Aw@there")) == ("m@e", "p:w")
    assert user_and_password("http://elsewhere") is None
