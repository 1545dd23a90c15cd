"""Other ways to fine-tune the same pretrained model, that the paper compares with."""
