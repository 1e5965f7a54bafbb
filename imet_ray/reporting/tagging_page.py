"""The page where a person drops pictures, edits their tags and downloads them; and that of the HTTP interface.

Each is one file without outside resources. What pictures and labels say comes later, as text and never as HTML.
"""

import base64
import hashlib
import json
import re
from typing import Any

from imet_ray.reporting.pages import render

NONE = "'none'"
INLINE = re.compile("<(script|style)>(.*?)</\\1>", re.DOTALL)


def tagging_page() -> str:
    """The page at `/`: the same for all ensembles, for it asks the server for the labels."""
    return render("tagging.html.j2", title="Tag pictures")


def api_page(schema: dict[str, Any]) -> str:
    """What can be asked of the server.

    Args:
        schema: its OpenAPI description.
    """
    calls = [
        {
            "method": method.upper(),
            "path": path,
            "text": call.get("description", ""),
            "parameters": [
                (one["name"], one.get("description", ""), json.dumps(one["schema"].get("default")))
                for one in call.get("parameters", [])
            ],
            "bodies": [
                (kind, _fields(schema, content["schema"]))
                for kind, content in call.get("requestBody", {}).get("content", {}).items()
            ],
            "example": call.get("requestBody", {}).get("description", ""),
            "answers": [
                (code, answer.get("description", ""), _shown(schema, answer))
                for code, answer in sorted(call["responses"].items())
            ],
        }
        for path, methods in schema["paths"].items()
        for method, call in methods.items()
    ]
    info, schemes = schema["info"], schema["components"]["securitySchemes"]
    token = " ".join(one["description"] for one in schemes.values())
    return render("api.html.j2", title=info["title"], text=info["description"], token=token, calls=calls)


def content_policy(page: str) -> str:
    """The policy by which a browser runs the page's own scripts and styles, asks its server, and does no more."""
    kinds: dict[str, list[str]] = {"script": [], "style": []}
    for kind, text in INLINE.findall(page):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        kinds[kind].append(f"'sha256-{digest}'")
    own = "; ".join(f"{kind}-src {' '.join(hashes) or NONE}" for kind, hashes in kinds.items())
    return (
        f"default-src 'none'; {own}; img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )


def _shown(schema: dict[str, Any], answer: dict[str, Any]) -> str:
    """What an answer has: JSON's fields, or the kind of a file."""
    contents = answer.get("content", {})
    return ", ".join(_fields(schema, one.get("schema", {})) or kind for kind, one in contents.items())


def _fields(schema: dict[str, Any], part: dict[str, Any]) -> str:
    """The fields of an object, and in brackets those of its parts; lists have `[]` behind them."""
    named = {
        **schema["components"]["schemas"],
        **part.get("$defs", {}),
    }
    if "$ref" in part:
        part = named[part["$ref"].rpartition("/")[2]]
    found = []
    for name, value in part.get("properties", {}).items():
        inner = _fields(schema, {"$defs": named, **value.get("items", value)})
        found.append(f"{name}{'[]' if 'items' in value else ''}{f' ({inner})' if inner else ''}")
    return ", ".join(found)
