"""One user who starts desktops as fast as a hundred connections can, from a process of its own.

``python -m tests.rigs.start_flood PORT TOKEN COUNT`` prints how often each status came, and how often
it said when to come again.
"""

import asyncio
import json
import sys
from collections import Counter

import httpx2

CONNECTIONS = 100


async def flood(port: str, token: str, count: int) -> Counter[str]:
    found: Counter[str] = Counter()
    limits = httpx2.Limits(max_connections=CONNECTIONS)
    headers = {"Authorization": f"Bearer {token}"}
    base = f"http://127.0.0.1:{port}/api/v1"
    async with httpx2.AsyncClient(base_url=base, headers=headers, limits=limits, timeout=60, trust_env=False) as client:

        async def start() -> None:
            answer = await client.post("/desktops", json={"image": "tiny"})
            found[str(answer.status_code)] += 1
            found["retry-after"] += "retry-after" in answer.headers

        await asyncio.gather(*(start() for _ in range(count)))
    return found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(flood(sys.argv[1], sys.argv[2], int(sys.argv[3])))))
