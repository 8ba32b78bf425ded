"""The OpenAPI document, with the media type that our errors really have."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from serve_app.problems import PROBLEM_MEDIA_TYPE

PROBLEM_SCHEMA = {"$ref": "#/components/schemas/ProblemDocument"}


class DocumentedAPI(FastAPI):
    """FastAPI documents every response model as the route's own media type; a problem document has another."""

    def openapi(self) -> dict[str, Any]:
        """The document, made once."""
        if self.openapi_schema is None:
            document = super().openapi()
            components = document.setdefault("components", {}).setdefault("schemas", {})
            for operations in document["paths"].values():
                for operation in operations.values():
                    for response in operation["responses"].values():
                        content = response.get("content", {})
                        if content.get("application/json", {}).get("schema") == PROBLEM_SCHEMA:
                            content[PROBLEM_MEDIA_TYPE] = content.pop("application/json")
                    for body in operation.get("requestBody", {}).get("content", {}).values():
                        # Types inside a body that `bodies.json_body` described: where its references say they are.
                        components.update(body.get("schema", {}).pop("$defs", {}))
        return super().openapi()
