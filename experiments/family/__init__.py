"""The four systems on the same 1,000 drawn images, in the order of their papers."""
