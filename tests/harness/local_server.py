"""A server of this process, for tests that ask it over the loopback address."""

import contextlib
import threading
import time

from experiments.harness import server


@contextlib.contextmanager
def served(app, close=lambda: None):
    """The address of a server that runs `app` within the block."""
    listening = server.listen(None)
    port = listening.getsockname()[1]
    running = server.Server(app, close)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not running.started:
            time.sleep(0.01)
        yield f"http://{server.ADDRESS}:{port}"
    finally:
        running.should_exit = True
        thread.join()
