"""Streams answers to a web page as server-sent events. Ctrl-C ends it.
Questions from several browsers run in one batch.
    python examples/stream_to_web.py --model baize-13b/ --port 8000
"""

import argparse
import json
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

from baize_engine import BaizeError, Engine


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if not (question := unquote(self.path.partition("?")[2])):
            return self.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\n\r\n" + html)
        if self.headers["Host"] != f"127.0.0.1:{server.server_port}" or self.headers["Sec-Fetch-Site"] == "cross-site":
            return self.send_error(403, explain="Only the page at 127.0.0.1 may ask.")
        try:
            pieces = engine.stream(engine.chat_ids([{"role": "user", "content": question}]))
        except BaizeError as error:
            return self.send_error(400, explain=str(error))
        with suppress(ConnectionError):  # the browser may leave
            self.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
            self.wfile.writelines(f"data: {json.dumps(piece)}\n\n".encode() for piece in pieces)
            self.wfile.write(b"event: end\ndata: end\n\n")


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="baize-demo", help="default: what recover_and_chat.py writes")
parser.add_argument("--port", type=int, default=8000)
options, html = parser.parse_args(), Path(__file__).with_suffix(".html").read_bytes()
server = ThreadingHTTPServer(("127.0.0.1", options.port), Page)
with suppress(KeyboardInterrupt), Engine.from_pretrained(options.model) as engine, server:
    print(f"http://127.0.0.1:{server.server_port}/", flush=True)
    server.serve_forever()
