"""Facts of an operation of a web service (service, name, required inputs) and the sentence that describes it.

The API models of Amazon Web Services, which botocore carries: the first sentence of an operation's documentation.
"""

from __future__ import annotations

import gzip
import html
import json
import re
from collections.abc import Iterator
from typing import Any

from gptfluence.common.packages import Contents, Package

PACKAGE = Package(
    archive="botocore-1.40.70-py3-none-any.whl",
    sha256="4a394ad25f5d9f1ef0bed610365744523eeb5c22de6862ab25d8c93f9f6d295c",
    size=14_106_829,
    licence="Apache-2.0",
)
# few and large ones: descriptions of one service share words, so that pool and tests have something in common
_SERVICES = (
    *("cloudfront", "cognito-idp", "connect", "dms", "ec2", "glue", "iam", "iot"),
    *("lightsail", "pinpoint", "quicksight", "rds", "redshift", "s3", "sagemaker", "ssm"),
)
_WORDS = range(5, 21)
_INPUTS = 8


def operations(contents: Contents) -> Iterator[dict[str, Any]]:
    """id, service, operation, inputs and sentence of each operation of the services."""
    names = contents.names
    for service in _SERVICES:
        versions = [name for name in names if re.fullmatch(rf"botocore/data/{service}/[^/]+/service-2\.json\.gz", name)]
        with contents.open(max(versions)) as packed:  # versions are dates
            model = json.loads(gzip.decompress(packed.read()))
        for operation, facts in sorted(model["operations"].items()):
            sentence = _first_sentence(facts.get("documentation", ""))
            if len(sentence.split()) in _WORDS and sentence.endswith(".") and "http" not in sentence:
                inputs = model["shapes"].get(facts.get("input", {}).get("shape"), {}).get("required", [])
                yield {
                    "id": f"{service}/{operation}",
                    "service": model["metadata"]["serviceFullName"],
                    "operation": operation,
                    "inputs": ", ".join(inputs[:_INPUTS]) or "none",
                    "sentence": sentence,
                }


def _first_sentence(documentation: str) -> str:
    """Without the HTML."""
    text = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", documentation)).split())
    return re.split(r"(?<=[.!?])\s+(?=[A-Z])", re.sub(r"\s+([.,;:])", r"\1", text))[0]
