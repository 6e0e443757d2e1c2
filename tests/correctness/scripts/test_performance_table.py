from __future__ import annotations

from scripts.doc_tables.performance import documented, markdown


def test_the_document_has_the_baselines_figures() -> None:
    assert documented() == markdown(), (
        "python -m scripts.doc_tables performance --write"
    )
