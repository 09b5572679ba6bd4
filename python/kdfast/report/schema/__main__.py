"""Prints the JSON schema of report.json."""

import json

from kdfast.report.schema import Analysis

print(json.dumps(Analysis.model_json_schema(), indent=1, ensure_ascii=False))
