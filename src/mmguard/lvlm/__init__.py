"""Any Hugging Face image-text model as a surrogate: pixels, token roles, attention rows, adaptation."""
