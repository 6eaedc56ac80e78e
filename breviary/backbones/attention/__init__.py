"""Attention functions that `Stack` selects by name, and the masks that each of them takes."""

from breviary.backbones.attention.causal import BLOCK, BLOCKWISE, blockwise_attention
from breviary.backbones.attention.choices import ATTENTION, check_attention, check_head_masks, check_training_attention
from breviary.backbones.attention.flash import FLASH, flash_mask
from breviary.backbones.attention.flex import FLEX, flex_mask
from breviary.backbones.attention.shared import SharedPrefix

__all__ = [
    "ATTENTION",
    "BLOCK",
    "BLOCKWISE",
    "FLASH",
    "FLEX",
    "SharedPrefix",
    "blockwise_attention",
    "check_attention",
    "check_head_masks",
    "check_training_attention",
    "flash_mask",
    "flex_mask",
]
