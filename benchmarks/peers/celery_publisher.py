"""The program that publishes to Celery and waits for every result."""

from celery_app import publish, receive
from measure import run

if __name__ == "__main__":
    run(publish, receive)
