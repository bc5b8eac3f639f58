"""What a server on the CPU does without."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CODE = """
import asyncio, sys
from pathlib import Path
from server.app import App
from server.client import FewstepClient
from server.config import Config

async def serve() -> None:
    app = App(Config(repository=Path(sys.argv[1]), port=0, metrics_port=0))
    await app.start()
    with FewstepClient(f"127.0.0.1:{app.port}") as client:
        samples = await asyncio.to_thread(client.sample, "digits-ddpm", count=2, steps=2)
        assert samples.images.shape == (2, 1, 8, 8)
    assert await app.stop()

asyncio.run(serve())
sys.exit(" ".join({"torch", "diffusers", "onnx", "scipy", "sklearn", "matplotlib"} & sys.modules.keys()) or 0)
"""


def test_a_server_on_the_cpu_loads_no_torch(own_repository: Path):
    """From start to stop, with requests between: torch alone would be 200 MB and most of the time of the start."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(own_repository)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
