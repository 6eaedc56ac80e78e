"""python relay.py ARGUMENTS: started by a launcher in place of a script, whose imports take seconds per process.

Sends its arguments and environment to `processes.relayed`, which runs the script with them in a process of the fork
server, while this process waits for its exit code.
"""

import os
import sys
from multiprocessing.connection import Client

with Client(os.environ["RELAY"]) as connection:
    connection.send((sys.argv[1:], dict(os.environ)))
    sys.exit(connection.recv())
