"""How rows are written as JSON: by encoders that are kept, for `json.dumps` with an option builds one at each call."""

from __future__ import annotations

import json

to_json = json.JSONEncoder(ensure_ascii=False).encode
to_sorted_json = json.JSONEncoder(ensure_ascii=False, sort_keys=True).encode
