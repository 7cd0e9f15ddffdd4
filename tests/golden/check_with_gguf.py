"""What gguf-py reads in GGUF files that someone else wrote: one JSON object a line.

python check_with_gguf.py FILE [FILE ...]

`metadata` maps keys to values; `tensors` maps names to the type's name, the shape, outermost first, and the
numbers as `gguf.quants.dequantize` makes them, in f32.
"""

import json
import sys

import gguf


def tensor(found):
    values = gguf.quants.dequantize(found.data, found.tensor_type)
    shape = [int(extent) for extent in reversed(found.shape)]
    return {"type": found.tensor_type.name, "shape": shape, "values": values.reshape(-1).tolist()}


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    for path in sys.argv[1:]:
        reader = gguf.GGUFReader(path)
        # GGUF.version and the counts are the header's, by names that gguf-py gives them.
        metadata = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
        tensors = {found.name: tensor(found) for found in reader.tensors}
        print(json.dumps({"file": path, "metadata": metadata, "tensors": tensors}), flush=True)


if __name__ == "__main__":
    main()
