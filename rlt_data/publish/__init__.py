"""Publishing on the Hugging Face Hub: what is uploaded, the card that says how it was made, and the upload itself."""
