"""Images beside their reconstructions: best and worst, where errors lie, enlarged regions."""
