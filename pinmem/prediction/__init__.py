"""Segmenting pictures and videos: what is read, what is drawn, where it goes."""
