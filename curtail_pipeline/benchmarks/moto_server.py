"""An S3 server for tests and benchmarks: moto's, in a process of its own.

    python -m curtail_pipeline.benchmarks.moto_server PORT [SMALLEST_PART_BYTES]

It ends with its standard input, so that it does not outlive who started it.
"""

import sys
import threading
from typing import Any


def main() -> None:
    import moto.s3.models
    import moto.s3.responses
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    if len(sys.argv) > 2:  # 5 MiB at AWS, which every test of parts would have to move
        setattr(moto.s3.models, "S3_UPLOAD_PART_MIN_SIZE", int(sys.argv[2]))  # noqa: B010
    # moto looks whether there is an object (If-None-Match), then writes; a server that many may use does both at once
    put, one_at_a_time = moto.s3.responses.S3Response.put_object, threading.Lock()

    def put_object(self: Any) -> Any:
        with one_at_a_time:
            return put(self)

    setattr(moto.s3.responses.S3Response, "put_object", put_object)  # noqa: B010
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=int(sys.argv[1]), verbose=False)
    server.start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
