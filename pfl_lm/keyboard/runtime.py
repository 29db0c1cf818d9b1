"""ONNX Runtime Web, fetched once from its npm package, so that the page needs no network.

``make keyboard-web`` (or ``python -m pfl_lm.keyboard.runtime``) writes the few files that a page
needs into ``keyboard/web/`` of the package, which git ignores and no wheel carries: an installed
package fetches them itself. The licence of ONNX Runtime, MIT, lies in ``page/``, so every page that
is served or written holds it, as it asks; the npm package has no copy of it.
"""

from __future__ import annotations

import subprocess
import tarfile
import tempfile
from pathlib import Path

from pfl_lm.files import folder_atomically, sha256_of

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"  # of the tarball
FOLDER = Path(__file__).parent / "web"
# WebAssembly only, one thread: no GPU, no shared memory, so no special headers are asked of a host.
FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


def missing() -> str:
    """Say what to do where the web runtime is not there; empty where it is."""
    if all((FOLDER / name).is_file() for name in FILES):
        return ""
    return (
        "the web runtime is not there: `make keyboard-web`, or outside a clone "
        "`python -m pfl_lm.keyboard.runtime`, fetches it (needs npm)"
    )


def fetch() -> Path:
    """Fetch the pinned npm package and unpack what a page needs; nothing if it is there.

    Raises:
        ValueError: npm is absent or fails, or the package is not the pinned one.
    """
    if not missing():
        return FOLDER
    with tempfile.TemporaryDirectory() as scratch:
        tarball = _pack(Path(scratch))
        if (digest := sha256_of(tarball)) != SHA256:
            raise ValueError(f"{PACKAGE} {VERSION} has SHA-256 {digest}, not the pinned {SHA256}")
        with folder_atomically(FOLDER) as folder, tarfile.open(tarball) as archive:
            for name in FILES:
                content = archive.extractfile(f"package/dist/{name}")
                assert content is not None
                (folder / name).write_bytes(content.read())
    return FOLDER


def _pack(folder: Path) -> Path:
    command = ["npm", "pack", "--silent", f"{PACKAGE}@{VERSION}"]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=300)
    except FileNotFoundError as error:
        raise ValueError("npm is not installed; it fetches the web runtime") from error
    except subprocess.SubprocessError as error:
        raise ValueError(f"npm could not fetch {PACKAGE} {VERSION}: {error}") from error
    return next(folder.glob("*.tgz"))


if __name__ == "__main__":
    print(fetch())
