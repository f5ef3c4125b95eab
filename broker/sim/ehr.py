"""An EHR: asks by accession number how far an exam is (REST, long poll)."""

import time
from typing import Any
from urllib.parse import quote

import httpx


class Ehr:
    def __init__(self, base_url: str, token: str, timeout_seconds: float = 60) -> None:
        headers = {"Authorization": f"Bearer {token}"}
        self.http = httpx.Client(base_url=base_url, headers=headers, timeout=timeout_seconds)

    def status(self, accession_number: str) -> dict[str, Any]:
        answer = self.http.get(f"/api/v1/status/{quote(accession_number, safe='')}")
        answer.raise_for_status()
        document: dict[str, Any] = answer.json()
        return document

    def wait_for(self, accession_number: str, state: str, seconds: float = 60) -> dict[str, Any]:
        """The first document that shows `state`, or the last one seen when the time is over. Uses ETag and wait=."""
        deadline = time.monotonic() + seconds
        etag = ""
        document: dict[str, Any] = {}
        path = f"/api/v1/status/{quote(accession_number, safe='')}"
        while time.monotonic() < deadline and document.get("state") != state:
            headers = {"If-None-Match": etag} if etag else {}
            answer = self.http.get(path, params={"wait": 5} if etag else {}, headers=headers)
            if answer.status_code == 200:
                document, etag = answer.json(), answer.headers["ETag"]
            elif answer.status_code == 404:
                time.sleep(0.2)
            elif answer.status_code != 304:
                answer.raise_for_status()
        return document

    def cases(self) -> list[dict[str, Any]]:
        answer = self.http.get("/api/v1/cases", params={"state": "OPEN"})
        answer.raise_for_status()
        items: list[dict[str, Any]] = answer.json()["items"]
        return items

    def close(self) -> None:
        self.http.close()
