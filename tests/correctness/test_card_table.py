from __future__ import annotations

from card_table import documented, markdown


def test_the_document_has_the_baselines_figures() -> None:
    assert documented() == markdown(), "scripts/card_table --write writes it anew"
