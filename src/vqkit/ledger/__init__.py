"""Numbers that papers print: their cells, and what was observed instead."""

from vqkit.ledger.cells import Cell, Column, Row, Table
from vqkit.ledger.published import PAPERS, cell, cells, tables

__all__ = ["PAPERS", "Cell", "Column", "Row", "Table", "cell", "cells", "tables"]
