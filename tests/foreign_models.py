"""Tokenizers under the names that other projects publish, restated plainly and in tiny sizes.

Names and mathematics are those of CompVis/taming-transformers, FoundationVision/LlamaGen and
zh460045050/VQGAN-LC; nothing here is shared with vqkit, so that both can be compared.
"""

import torch
import torch.nn.functional as F
from torch import nn

GROUPS = 32
WIDTH, MULTIPLIERS, Z_CHANNELS = 32, (1, 2, 4), 6


def norm(channels):
    return nn.GroupNorm(GROUPS, channels, eps=1e-6)


def swish(x):
    return x * torch.sigmoid(x)


class Residual(nn.Module):
    def __init__(self, before, after):
        super().__init__()
        self.norm1, self.conv1 = norm(before), nn.Conv2d(before, after, 3, padding=1)
        self.norm2, self.conv2 = norm(after), nn.Conv2d(after, after, 3, padding=1)
        if before != after:
            self.nin_shortcut = nn.Conv2d(before, after, 1)

    def forward(self, x):
        added = self.conv2(swish(self.norm2(self.conv1(swish(self.norm1(x))))))
        return added + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in "qkvo")

    def forward(self, x):
        q, k, v = (part(self.norm(x)).flatten(2) for part in (self.q, self.k, self.v))
        weights = (torch.einsum("bcq,bck->bqk", q, k) * x.shape[1] ** -0.5).softmax(-1)
        return x + self.proj_out(torch.einsum("bqk,bck->bcq", weights, v).view_as(x))


class Resampling(nn.Module):
    def __init__(self, channels, up):
        super().__init__()
        self.up = up
        self.conv = nn.Conv2d(channels, channels, 3, stride=1 if up else 2, padding=int(up))

    def forward(self, x):
        if self.up:
            return self.conv(x.repeat_interleave(2, -1).repeat_interleave(2, -2))
        return self.conv(F.pad(x, (0, 1, 0, 1)))


def level(names, before, after, num_blocks, *, attention, resample=""):
    """One level, its parts under the given names for blocks and attention."""
    module = nn.Module()
    channels = [before, *[after] * (num_blocks - 1)]
    setattr(module, names[0], nn.ModuleList(Residual(c, after) for c in channels))
    setattr(module, names[1], nn.ModuleList(Attention(after) for _ in channels if attention))
    if resample:
        setattr(module, resample, Resampling(after, resample == "upsample"))
    return module


def run_level(x, module, names):
    blocks, attentions = getattr(module, names[0]), getattr(module, names[1])
    for index, block in enumerate(blocks):
        x = block(x)
        if len(attentions):
            x = attentions[index](x)
    return x


class Coder(nn.Module):
    """An encoder or a decoder; `style` is "taming" or "llamagen"."""

    def __init__(self, style, *, decode, attention=(4,), channels=3):
        super().__init__()
        self.style, self.decode = style, decode
        self.names = ("block", "attn") if style == "taming" else ("res", "attn")
        widths = [WIDTH * m for m in MULTIPLIERS]
        count, coarse = len(widths), widths[-1]
        levels = {}
        befores = [coarse, *widths[:0:-1]][::-1] if decode else [WIDTH, *widths[:-1]]
        for i, (before, after) in enumerate(zip(befores, widths, strict=True)):
            resample = ("upsample" if i else "") if decode else ("downsample" * (i < count - 1))
            levels[i] = level(
                self.names, before, after, 3 if decode else 2, attention=2**i in attention,
                resample=resample,
            )  # fmt: skip
        backwards = decode and style == "llamagen"
        order = nn.ModuleList(levels[i] for i in sorted(levels, reverse=backwards))
        first, last = (Z_CHANNELS, channels) if decode else (channels, Z_CHANNELS)
        self.conv_in = nn.Conv2d(first, coarse if decode else WIDTH, 3, padding=1)
        name = "conv_blocks" if style == "llamagen" else "up" if decode else "down"
        setattr(self, name, order)
        self.levels = [levels[i] for i in sorted(levels, reverse=decode)]
        middle = [Residual(coarse, coarse), Attention(coarse), Residual(coarse, coarse)]
        if style == "taming":
            self.mid = nn.Module()
            self.mid.block_1, self.mid.attn_1, self.mid.block_2 = middle
        else:
            self.mid = nn.ModuleList(middle)
        self.middle = [*middle]
        self.norm_out = norm(WIDTH if decode else coarse)
        self.conv_out = nn.Conv2d(WIDTH if decode else coarse, last, 3, padding=1)

    def forward(self, x):
        x = self.conv_in(x)
        for part in self.middle if self.decode else ():
            x = part(x)
        for module in self.levels:
            x = run_level(x, module, self.names)
            for name in ("downsample", "upsample"):
                x = getattr(module, name, nn.Identity())(x)
        for part in () if self.decode else self.middle:
            x = part(x)
        return self.conv_out(swish(self.norm_out(x)))


class Foreign(nn.Module):
    """A whole model: subclasses say which code every vector takes and what the decoder gets."""

    style = "taming"

    def __init__(self, num_codes=24, dim=4, **options):
        super().__init__()
        self.encoder = Coder(self.style, decode=False, **options)
        self.decoder = Coder(self.style, decode=True, **options)
        self.quant_conv = nn.Conv2d(Z_CHANNELS, dim, 1)
        self.post_quant_conv = nn.Conv2d(dim, Z_CHANNELS, 1)
        self.add_quantizer(num_codes, dim)
        self.add_losses()
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():  # so that no two tensors of one shape can be exchanged unnoticed
            for name, tensor in self.state_dict().items():
                drawn = torch.randn(tensor.shape, generator=generator)
                if "embed" in name:
                    tensor.copy_(drawn)
                elif tensor.ndim > 1:
                    tensor.copy_(drawn * tensor[0].numel() ** -0.5)
                elif tensor.is_floating_point():
                    tensor.add_(0.3 * drawn)

    def add_quantizer(self, num_codes, dim):
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(num_codes, dim)

    def add_losses(self):
        """What stands in the state dict beside the tokenizer."""
        self.loss = nn.Module()
        self.loss.discriminator = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    def vectors(self, z):
        return z, self.quantize.embedding.weight

    @torch.no_grad()
    def ids(self, images):
        z = self.quant_conv(self.encoder(images)).permute(0, 2, 3, 1)
        rows, codes = self.vectors(z.reshape(-1, z.shape[-1]))
        return (rows[:, None] - codes).square().sum(-1).argmin(1).view(z.shape[:3])

    @torch.no_grad()
    def images(self, ids):
        z = torch.zeros(1, self.quant_conv.out_channels)
        z_q = self.vectors(z)[1][ids].permute(0, 3, 1, 2)
        return self.decoder(self.post_quant_conv(z_q))


class Taming(Foreign):
    pass


class TamingGumbel(Foreign):
    def __init__(self, num_codes=24, dim=Z_CHANNELS, **options):
        super().__init__(num_codes, dim, **options)

    def add_quantizer(self, num_codes, dim):
        self.quantize = nn.Module()
        self.quantize.proj = nn.Conv2d(Z_CHANNELS, num_codes, 1)
        self.quantize.embed = nn.Embedding(num_codes, dim)

    def vectors(self, z):
        return z, self.quantize.embed.weight

    @torch.no_grad()
    def ids(self, images):
        return self.quantize.proj(self.quant_conv(self.encoder(images))).argmax(1)


class LlamaGen(Foreign):
    style = "llamagen"
    unit_codes = True

    def add_quantizer(self, num_codes, dim):
        super().add_quantizer(num_codes, dim)
        self.quantize.register_buffer("codebook_used", torch.zeros(65536))

    def add_losses(self):
        pass

    def vectors(self, z):
        codes = self.quantize.embedding.weight
        if not self.unit_codes:
            return z, codes
        return F.normalize(z, dim=-1), F.normalize(codes, dim=-1)


class VqganLC(Foreign):
    """`quantizer` is "lc" (projected features), "fc" (codes as they are) or "ema"."""

    def __init__(self, num_codes=24, dim=4, *, quantizer="lc", **options):
        self.quantizer = quantizer
        super().__init__(num_codes, dim, **options)

    def add_quantizer(self, num_codes, dim):
        self.tok_embeddings = nn.Embedding(num_codes, 10 if self.quantizer == "lc" else dim)
        if self.quantizer == "lc":
            self.codebook_projection = nn.Linear(10, dim)
        if self.quantizer == "ema":
            self.cluster_size = nn.Parameter(torch.rand(num_codes) + 1, requires_grad=False)
            self.embed_avg = nn.Parameter(torch.randn(num_codes, dim), requires_grad=False)

    def add_losses(self):
        self.discriminator = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.perceptual_loss = nn.Module()
        self.perceptual_loss.net = nn.Conv2d(3, 4, 3)

    def vectors(self, z):
        codes = self.tok_embeddings.weight
        return z, self.codebook_projection(codes) if self.quantizer == "lc" else codes
