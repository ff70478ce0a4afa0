"""Make values.json with the torch.func of the installed torch: ``python tests/golden/make.py``.

Run it with the newest torch, when a case was added or changed. This library takes no part in it.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.func
from support.cases import CASES, flatten

VALUES = Path(__file__).with_name("values.json")


def main() -> None:
    values = {
        name: {
            # json writes a float as repr() does: all of its digits
            path: {"shape": list(leaf.shape), "values": leaf.reshape(-1).tolist()}
            for path, leaf in flatten(case(torch.func)).items()
        }
        for name, case in CASES.items()
    }
    lines = [f"    {json.dumps(name)}: {json.dumps(result, allow_nan=False)}" for name, result in values.items()]
    torch_version = str(torch.__version__).partition("+")[0]
    VALUES.write_text(f'{{\n  "torch": "{torch_version}",\n  "values": {{\n' + ",\n".join(lines) + "\n  }\n}\n")
    print(f"{len(values)} cases by torch {torch_version} -> {VALUES}")


if __name__ == "__main__":
    main()
