"""GPTs over token maps, on the networks of the transformers library.

`GPT` is the network, `GPTGenerator` a trained one that samples, `GPTTask` what `training.fit`
trains, `measure_bits` its bits per image on a token set, `as_transformers` the same network as a
language model of transformers.
"""

from vqkit.generation.gpt.exporting import as_transformers
from vqkit.generation.gpt.generator import GPTGenerator
from vqkit.generation.gpt.network import GPT
from vqkit.generation.gpt.task import GPTTask, measure_bits

__all__ = ["GPT", "GPTGenerator", "GPTTask", "as_transformers", "measure_bits"]
