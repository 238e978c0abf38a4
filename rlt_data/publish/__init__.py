"""Publishing on the Hugging Face Hub: the files, the card that documents them, and the upload."""
