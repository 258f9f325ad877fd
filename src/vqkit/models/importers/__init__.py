"""Importers of published checkpoints: foreign files in, an `ImageTokenizer` out.

`import_tokenizer` is the way in. `pickles` and `torch_files` read files of `torch.save` without
running anything in them; each layout of names has a module that states it.
"""

from vqkit.models.importers.importing import KINDS, Imported, import_checkpoint, import_tokenizer
from vqkit.models.importers.kinds import ImportConfig

__all__ = ["KINDS", "ImportConfig", "Imported", "import_checkpoint", "import_tokenizer"]
