"""Tiny folders of Stable Diffusion and of text encoders with random weights, as their libraries save them."""

from __future__ import annotations

import json
from pathlib import Path

import torch

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def tokenizer(folder: Path, pad: str = "<|endoftext|>"):
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True)
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "!", "!</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    made = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token=pad, model_max_length=16)
    return made, len(words)


def text_encoder(kind: str, size: int, width: int):
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=12,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        hidden_act="gelu" if width == 24 else "quick_gelu",
    )
    return scrambled(getattr(transformers, kind)(config))


def clip(folder: Path) -> None:
    """CLIP's text encoder with its tokenizer, in one folder."""
    torch.manual_seed(0)
    words, size = tokenizer(folder)
    words.save_pretrained(folder)
    text_encoder("CLIPTextModel", size, 16).save_pretrained(folder)


def t5(folder: Path) -> None:
    """T5's encoder and decoder, with a tokenizer of single letters that ends a text with a mark of its own."""
    import tokenizers
    import transformers

    torch.manual_seed(0)
    vocabulary = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *LETTERS])}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("."), "isolated")
    words.post_processor = tokenizers.processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=64, **special).save_pretrained(folder)
    config = transformers.T5Config(
        vocab_size=len(vocabulary),
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    scrambled(transformers.T5ForConditionalGeneration(config)).save_pretrained(folder)


def scrambled(net: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    return net.eval()


def unet(context: int, **changes):
    import diffusers

    config = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "attention_head_dim": 4,
        "cross_attention_dim": context,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        **changes,
    }
    return scrambled(diffusers.UNet2DConditionModel(**config))


XL = {
    "attention_head_dim": (2, 4),
    "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
}


def vae(scaling_factor: float = 0.18215):
    import diffusers

    return scrambled(
        diffusers.AutoencoderKL(
            in_channels=3,
            out_channels=3,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(32, 64),
            layers_per_block=1,
            latent_channels=4,
            sample_size=16,
            scaling_factor=scaling_factor,
        )
    )


def scheduler(prediction_type: str = "epsilon"):
    import diffusers

    return diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction_type
    )


def stable_diffusion(folder: Path, second: bool = False):
    """Of the first version, or of the second: linear projections, heads by resolution, velocities."""
    import diffusers

    torch.manual_seed(0)
    words, size = tokenizer(folder.parent / "words", "!" if second else "<|endoftext|>")
    changes = {"use_linear_projection": True, "attention_head_dim": (2, 4)} if second else {}
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae(),
        text_encoder=text_encoder("CLIPTextModel", size, 24 if second else 16),
        tokenizer=words,
        unet=unet(24 if second else 16, **changes),
        scheduler=scheduler("v_prediction" if second else "epsilon"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    return pipe


def stable_diffusion_xl(folder: Path):
    import diffusers

    torch.manual_seed(0)
    words, size = tokenizer(folder.parent / "words")
    others, _ = tokenizer(folder.parent / "others", "!")
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=vae(0.13025),
        text_encoder=text_encoder("CLIPTextModel", size, 16),
        text_encoder_2=text_encoder("CLIPTextModelWithProjection", size, 24),
        tokenizer=words,
        tokenizer_2=others,
        unet=unet(40, **XL, projection_class_embeddings_input_dim=12 + 6 * 8),
        scheduler=scheduler(),
        add_watermarker=False,
    )
    pipe.save_pretrained(folder)
    return pipe


def refiner(folder: Path, base):
    """The second stage of a base pipeline, with its second text encoder."""
    import diffusers

    changes = {**XL, "transformer_layers_per_block": (1, 1)}
    pipe = diffusers.StableDiffusionXLImg2ImgPipeline(
        vae=base.vae,
        text_encoder=None,
        text_encoder_2=base.text_encoder_2,
        tokenizer=None,
        tokenizer_2=base.tokenizer_2,
        unet=unet(24, **changes, projection_class_embeddings_input_dim=12 + 5 * 8),
        scheduler=scheduler(),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )
    pipe.save_pretrained(folder)
    return pipe
