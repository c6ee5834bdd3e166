"""The program that publishes to Dramatiq and waits for every result."""

from dramatiq_app import publish, receive
from measure import run

if __name__ == "__main__":
    run(publish, receive)
