"""A Google Cloud Storage for tests: buckets in memory behind the part of its JSON API that gcsfs and TensorStore speak.

    with FakeGcs("bucket") as store:
        store.buckets["bucket"]["run/metrics.csv"]

An object is there whole or not at all, as in the real one. What is not spoken here is answered with 501.
"""

import base64
import contextlib
import json
import re
import threading
import zlib
from collections.abc import Callable
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit


class Object(NamedTuple):
    """Bytes, and the number of the write that they came with."""

    data: bytes
    generation: int


class FakeGcs:
    """Buckets by name, each a dict of objects by name; `requests` is all that was asked, in order."""

    def __init__(self, *buckets: str):
        self.buckets: dict[str, dict[str, Object]] = {name: {} for name in buckets}
        self.requests: list[str] = []
        # Called with bucket and name before an object is written.
        self.before_put: Callable[[str, str], None] = lambda bucket, name: None
        # What it says of "VERB name", such as "DELETE run/metrics.csv" or "moveTo run/metrics.csv", is forbidden.
        self.refuse: Callable[[str], bool] = lambda request: False
        self.uploads: dict[str, tuple[str, str, bytes]] = {}
        self.lock = threading.Lock()
        self._count = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"store": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which gcsfs, google-cloud-storage and TensorStore come here."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            # The kind of a bucket is asked for by gRPC, which this does not speak.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "NO_PROXY": "127.0.0.1",
        }

    def __enter__(self) -> "FakeGcs":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def put(self, bucket: str, name: str, data: bytes) -> Object:
        """Writes an object."""
        self.before_put(bucket, name)
        self._count += 1
        self.buckets[bucket][name] = Object(data, self._count)
        return self.buckets[bucket][name]

    def below(self, bucket: str, folder: str) -> dict[str, bytes]:
        """The objects of a folder by their names in it."""
        with self.lock:
            objects = dict(self.buckets[bucket])
        return {name[len(folder) + 1 :]: o.data for name, o in objects.items() if name.startswith(f"{folder}/")}


class _Handler(BaseHTTPRequestHandler):
    store: FakeGcs
    protocol_version = "HTTP/1.1"
    # Or each answer waits 40 ms for an acknowledgement.
    disable_nagle_algorithm = True
    wbufsize = -1

    def handle(self) -> None:
        # A process that is gone, maybe because it was killed.
        with contextlib.suppress(ConnectionError):
            super().handle()

    def log_message(self, *args: object) -> None:
        pass

    def _handle(self) -> None:
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        body = self._body()
        with self.store.lock:
            self.store.requests.append(f"{self.command} {unquote(self.path)}")
            path = re.sub("^/(download|upload)(?=/storage/v1/)", "", parts.path)
            match = re.fullmatch(
                r"/storage/v1/b/([^/]+)(?:/o(?:/([^/]+)(?:/(moveTo|rewriteTo)/(?:b/[^/]+/)?o/([^/]+))?)?)?", path
            )
            if parts.path.startswith("/session/"):
                return self._chunk(parts.path, body)
            if match is None:
                return self._answer(501)
            bucket, name, verb, target = (part and unquote(part) for part in match.groups())
            if bucket not in self.store.buckets:
                return self._answer(404)
            objects = self.store.buckets[bucket]
            if not path.endswith("/o") and name is None:
                return self._json({"kind": "storage#bucket", "name": bucket, "id": bucket})
            if name is None and self.command == "GET":
                return self._list(bucket, query)
            if name is None:
                return self._upload(bucket, query, body)
            if name not in objects:
                return self._answer(404)
            if not self._as_expected(objects[name].generation, query):
                return None
            if self.store.refuse(f"{verb or self.command} {name}"):
                return self._answer(403)
            if verb:
                written = self.store.put(bucket, target, objects[name].data)
                if verb == "moveTo":
                    del objects[name]
                resource = self._resource(bucket, target, written)
                return self._json(resource if verb == "moveTo" else {"done": True, "resource": resource})
            if self.command == "DELETE":
                del objects[name]
                return self._answer(204)
            if query.get("alt") == "media":
                return self._media(objects[name])
            return self._json(self._resource(bucket, name, objects[name]))

    do_GET = do_POST = do_PUT = do_DELETE = _handle

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _as_expected(self, generation: int, query: dict[str, str]) -> bool:
        """Answers itself where the object is not of the generation that was asked for."""
        if "ifGenerationMatch" in query and int(query["ifGenerationMatch"]) != generation:
            self._answer(412)
            return False
        if "ifGenerationNotMatch" in query and int(query["ifGenerationNotMatch"]) == generation:
            self._answer(304)
            return False
        return True

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        start, end = query.get("startOffset", ""), query.get("endOffset")
        found: dict[str, dict | None] = {}
        for name, stored in self.store.buckets[bucket].items():
            if not name.startswith(prefix) or name < start or (end and name >= end):
                continue
            head, cut, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
            if cut:
                found[prefix + head + cut] = None
            else:
                found[name] = self._resource(bucket, name, stored)
        names = sorted(name for name in found if name > query.get("pageToken", ""))
        page = names[: int(query.get("maxResults", 1000))]
        answer = {
            "kind": "storage#objects",
            "items": [found[name] for name in page if found[name]],
            "prefixes": [name for name in page if not found[name]],
        }
        self._json(answer | ({"nextPageToken": page[-1]} if len(page) < len(names) else {}))

    def _upload(self, bucket: str, query: dict[str, str], body: bytes) -> None:
        kind = query["uploadType"]
        if kind == "multipart":
            boundary = re.search('boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
            texts = body.split(b"--" + boundary)
            about, data = (re.split(rb"\r?\n\r?\n", text, maxsplit=1)[1] for text in texts[1:3])
            name, data = json.loads(about)["name"], data.removesuffix(b"\n").removesuffix(b"\r")
        else:
            name, data = query.get("name") or json.loads(body)["name"], body
        stored = self.store.buckets[bucket].get(name)
        if not self._as_expected(stored.generation if stored else 0, query):
            return
        if kind == "resumable":
            session = f"/session/{len(self.store.requests)}"
            self.store.uploads[session] = (bucket, name, b"")
            self._answer(200, {"Location": self.store.url + session})
        else:
            self._json(self._resource(bucket, name, self.store.put(bucket, name, data)))

    def _chunk(self, session: str, body: bytes) -> None:
        bucket, name, data = self.store.uploads.pop(session)
        data += body
        total = self.headers.get("Content-Range", "*/0").rpartition("/")[2]
        if total == "*":
            self.store.uploads[session] = (bucket, name, data)
            self._answer(308, {"Range": f"bytes=0-{len(data) - 1}"})
        else:
            self._json(self._resource(bucket, name, self.store.put(bucket, name, data)))

    def _media(self, stored: Object) -> None:
        data, size, headers = stored.data, len(stored.data), {"x-goog-generation": str(stored.generation)}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return self._answer(200, headers, data)
        first, last = wanted.groups()
        begin = int(first) if first else max(size - int(last), 0)
        end = min(int(last) + 1, size) if first and last else size
        if begin >= size:
            return self._answer(416, {"Content-Range": f"bytes */{size}"})
        return self._answer(206, headers | {"Content-Range": f"bytes {begin}-{end - 1}/{size}"}, data[begin:end])

    def _resource(self, bucket: str, name: str, stored: Object) -> dict:
        return {
            "kind": "storage#object", "bucket": bucket, "name": name, "size": str(len(stored.data)),
            "generation": str(stored.generation), "metageneration": "1", "contentType": "application/octet-stream",
            "md5Hash": base64.b64encode(md5(stored.data, usedforsecurity=False).digest()).decode(),
            "etag": str(zlib.crc32(stored.data)),
            "timeCreated": "2026-01-01T00:00:00.000Z", "updated": "2026-01-01T00:00:00.000Z",
        }  # fmt: skip

    def _json(self, values: dict) -> None:
        self._answer(200, {"Content-Type": "application/json"}, json.dumps(values).encode())

    def _answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        if status >= 400:
            body = json.dumps({"error": {"code": status, "message": f"status {status}"}}).encode()
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if status not in (204, 304):
            self.wfile.write(body)
        self.wfile.flush()
